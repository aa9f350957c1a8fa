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
	jobs, shadow, presence string
}

func newTopics(id string) topics {
	return topics{
		jobs:     "$aws/things/" + id + "/jobs",
		shadow:   "$aws/things/" + id + "/shadow",
		presence: "ota/" + id + "/presence",
	}
}

func (t topics) notifyNext() string            { return t.jobs + "/notify-next" }
func (t topics) nextGet() string               { return t.jobs + "/$next/get" }
func (t topics) jobUpdate(jobID string) string { return t.jobs + "/" + jobID + "/update" }
func (t topics) shadowUpdate() string          { return t.shadow + "/update" }

func (t topics) subscriptions() []paho.SubscribeOptions {
	var all []paho.SubscribeOptions
	add := func(topic string) { all = append(all, paho.SubscribeOptions{Topic: topic, QoS: 1}) }
	add(t.notifyNext())
	for _, request := range []string{t.nextGet(), t.jobUpdate("+"), t.shadowUpdate()} {
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
	limit := time.NewTimer(t.cfg.RequestTimeout)
	defer limit.Stop()
	l, err := t.awaitLine(ctx, limit.C)
	if err != nil {
		return answer{}, err
	}
	token, got := t.register(topic)
	defer t.forget(topic + " " + token)
	document["clientToken"] = token
	payload, err := json.Marshal(document)
	if err != nil {
		return answer{}, err
	}
	if len(payload) > MaxPayload {
		return answer{}, fmt.Errorf("document of %d bytes for %s: at most %d; report less at a time", len(payload), topic, MaxPayload)
	}
	// QoS 0: the answer is the acknowledgement, and nothing old is sent again
	if _, err := t.cm.Publish(ctx, &paho.Publish{Topic: topic, Payload: payload}); err != nil {
		return answer{}, fmt.Errorf("send to %s: %w: %w", topic, agent.ErrUnreachable, err)
	}
	select {
	case a := <-got:
		return a, nil
	case <-l.down:
		return answer{}, fmt.Errorf("%s: %w: connection lost before the answer", topic, agent.ErrUnreachable)
	case <-limit.C:
		return answer{}, fmt.Errorf("%s: %w: no answer within %s", topic, agent.ErrUnreachable, t.cfg.RequestTimeout)
	case <-ctx.Done():
		return answer{}, fmt.Errorf("%s: %w", topic, context.Cause(ctx))
	}
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
