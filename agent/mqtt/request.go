package mqtt

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/otad/otad/agent"
)

var (
	online  = []byte(`{"online":true}`)
	offline = []byte(`{"online":false}`)
)

// topics are the device's own.
type topics struct {
	jobs, shadow, own, presence string
}

func newTopics(id string) topics {
	return topics{
		jobs:     "$aws/things/" + id + "/jobs",
		shadow:   "$aws/things/" + id + "/shadow",
		own:      "ota/" + id,
		presence: "ota/" + id + "/presence",
	}
}

func (t topics) events() string                { return t.own + "/events" }
func (t topics) eventsAck() string             { return t.own + "/events/ack" }
func (t topics) notifyNext() string            { return t.jobs + "/notify-next" }
func (t topics) nextGet() string               { return t.jobGet("$next") }
func (t topics) jobGet(jobID string) string    { return t.jobs + "/" + jobID + "/get" }
func (t topics) jobUpdate(jobID string) string { return t.jobs + "/" + jobID + "/update" }
func (t topics) shadowUpdate() string          { return t.shadow + "/update" }

func (t topics) subscriptions() []paho.SubscribeOptions {
	var all []paho.SubscribeOptions
	add := func(topic string) { all = append(all, paho.SubscribeOptions{Topic: topic, QoS: 1}) }
	add(t.notifyNext())
	add(t.eventsAck())
	for _, request := range []string{t.jobGet("+"), t.jobUpdate("+"), t.shadowUpdate()} {
		add(request + accepted)
		add(request + rejected)
	}
	return all
}

// Endings of reply topics.
const (
	accepted = "/accepted"
	rejected = "/rejected"
)

// answer is the reply to one request.
type answer struct {
	rejected bool
	payload  []byte
}

// received takes each message from the broker. It never blocks: it only wakes
// the agent or hands an answer to whoever waits for it.
func (t *Transport) received(p paho.PublishReceived) (bool, error) {
	topic, payload := p.Packet.Topic, p.Packet.Payload
	if topic == t.topics.notifyNext() {
		t.poke()
		return true, nil
	}
	if len(payload) > MaxPayload {
		t.cfg.Log.Warn("message dropped: too large", "topic", topic, "bytes", len(payload))
		return true, nil
	}
	if topic == t.topics.eventsAck() {
		if p.Packet.Properties != nil {
			t.deliver(t.topics.events()+" "+string(p.Packet.Properties.CorrelationData), answer{payload: payload})
		}
		return true, nil
	}
	var reply struct {
		ClientToken string `json:"clientToken"`
	}
	if err := json.Unmarshal(payload, &reply); err != nil {
		t.cfg.Log.Warn("message dropped: no JSON object", "topic", topic, "bytes", len(payload))
		return true, nil
	}
	request, isRejected := strings.CutSuffix(topic, rejected)
	if !isRejected {
		request = strings.TrimSuffix(topic, accepted)
	}
	t.deliver(request+" "+reply.ClientToken, answer{rejected: isRejected, payload: payload})
	return true, nil
}

// deliver hands an answer over once; late and foreign ones find nobody.
func (t *Transport) deliver(key string, a answer) {
	t.mu.Lock()
	to, ok := t.pending[key]
	delete(t.pending, key)
	t.mu.Unlock()
	if ok {
		to <- a
	}
}

// request sends a document, which gets its clientToken here, and waits for the
// answer. agent.ErrUnreachable when the line is down, is lost, or gives none in
// time: the request may or may not have been done.
func (t *Transport) request(ctx context.Context, topic string, document map[string]any) (answer, error) {
	return t.exchange(ctx, topic, "", func(token string) ([]byte, error) {
		document["clientToken"] = token
		return json.Marshal(document)
	})
}

// exchange is request for a payload made with its token, which goes along as
// trace id and, where there is a response topic, as correlation data.
func (t *Transport) exchange(ctx context.Context, topic, response string, encode func(token string) ([]byte, error)) (answer, error) {
	limit := time.NewTimer(t.cfg.RequestTimeout)
	defer limit.Stop()
	l, err := t.awaitLine(ctx, limit.C)
	if err != nil {
		return answer{}, err
	}
	token, got := t.register(topic)
	defer t.forget(topic + " " + token)
	payload, err := encode(token)
	if err != nil {
		return answer{}, err
	}
	if len(payload) > MaxPayload {
		return answer{}, fmt.Errorf("document of %d bytes for %s: at most %d; report less at a time", len(payload), topic, MaxPayload)
	}
	t.cfg.Log.Debug("request", "topic", topic, "trace", token, "bytes", len(payload))
	// QoS 0: the answer is the acknowledgement, and nothing old is sent again
	if _, err := t.cm.Publish(ctx, &paho.Publish{Topic: topic, Payload: payload, Properties: t.properties(token, response)}); err != nil {
		return answer{}, fmt.Errorf("send to %s: %w: %w", topic, agent.ErrUnreachable, err)
	}
	select {
	case a := <-got:
		return a, nil
	case <-l.down:
		return answer{}, fmt.Errorf("%s: %w: connection lost before the answer", topic, agent.ErrUnreachable)
	case <-limit.C:
		return answer{}, fmt.Errorf("%s: %w: no answer within %s (trace %s)", topic, agent.ErrUnreachable, t.cfg.RequestTimeout, token)
	case <-ctx.Done():
		return answer{}, fmt.Errorf("%s: %w", topic, context.Cause(ctx))
	}
}

// TraceProperty is the user property that carries a request's trace id; the
// server writes it into its log.
const TraceProperty = "trace-id"

// properties of a request: after RequestTimeout nobody waits for its answer, so
// no broker needs to keep it longer.
func (t *Transport) properties(token, response string) *paho.PublishProperties {
	p := &paho.PublishProperties{ResponseTopic: response, User: paho.UserProperties{{Key: TraceProperty, Value: token}}}
	if response != "" {
		p.CorrelationData = []byte(token)
	}
	expiry := uint32(max(t.cfg.RequestTimeout/time.Second, 1))
	p.MessageExpiry = &expiry
	return p
}

// awaitLine returns the connection once it can carry requests.
func (t *Transport) awaitLine(ctx context.Context, limit <-chan time.Time) (*line, error) {
	for {
		t.mu.Lock()
		l, ready := t.line, t.ready
		t.mu.Unlock()
		select {
		case <-ready:
			if l != nil {
				return l, nil
			}
			continue // it went down between the two looks
		default:
		}
		select {
		case <-ready:
		case <-t.cm.Done():
			return nil, fmt.Errorf("%w: transport closed", agent.ErrUnreachable)
		case <-limit:
			return nil, fmt.Errorf("%w: not connected to %s", agent.ErrUnreachable, t.cfg.URL)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (t *Transport) register(topic string) (token string, got <-chan answer) {
	c := make(chan answer, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	token = fmt.Sprintf("%s-%d", t.prefix, t.count)
	t.pending[topic+" "+token] = c
	return token, c
}

func (t *Transport) forget(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.pending, key)
}
