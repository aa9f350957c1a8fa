package mqtt

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// Endpoint answers devices: it turns their topics into calls of fleet. Its
// Handle is the broker's Handler, so a request is acknowledged when what it
// asked for is durable.
type Endpoint struct {
	// Provisioning opens the door of fleet provisioning. It is set before Serve, and
	// only with a broker that sets Message.Sender and whose Reply reaches the
	// requester alone.
	Provisioning bool

	// Told: the broker tells the fleet who is connected, so that what is published as
	// presence, by a will or a companion perhaps, does not. It is set before Serve.
	Told bool

	broker Broker
	fleet  *fleet.Service
	log    *slog.Logger
	now    func() time.Time

	flights flights
	turns   turns // of requests for blocks of streams
}

// NewEndpoint returns an Endpoint; Serve starts it.
func NewEndpoint(b Broker, f *fleet.Service, log *slog.Logger, now func() time.Time) *Endpoint {
	return &Endpoint{broker: b, fleet: f, log: log, now: now}
}

// Serve subscribes to the device topics until ctx ends.
func (p *Endpoint) Serve(ctx context.Context) error {
	filters := Filters
	if p.Provisioning {
		filters = slices.Concat(Filters, ProvisioningFilters)
	}
	return p.broker.Subscribe(ctx, filters, p.Handle)
}

// Handle answers one message. An error is a fault of ours: the message stays
// unacknowledged and comes again. One of QoS 0 does not, so its sender is told.
func (p *Endpoint) Handle(ctx context.Context, m Message) error {
	if !fleet.ValidTrace(m.Trace) {
		m.Trace = ""
	}
	ctx = fleet.WithTrace(ctx, m.Trace)
	r, ok := parseTopic(m.Topic)
	if ok && r.kind == kindProvision {
		return p.provision(ctx, r, m)
	}
	if !ok || ota.ValidateDeviceID(r.device) != nil {
		p.log.Warn("message on a topic that is none of ours", "topic", m.Topic)
		return nil
	}
	now := p.now()
	if r.kind == kindPresence {
		if !p.Told {
			p.presence(r.device, m.Payload, now)
		} else if m.Origin != nil { // no will
			p.fleet.Seen(r.device, now)
		}
		return nil
	}
	if !p.flights.begin(r.device) {
		return p.refuse(ctx, r, m, shadow.ErrThrottled)
	}
	defer p.flights.end(r.device)
	p.fleet.Seen(r.device, now)
	p.log.Debug("device message", "topic", m.Topic, "trace", m.Trace, "bytes", len(m.Payload))
	err := p.request(ctx, r, m)
	if err == nil || ctx.Err() != nil {
		return err
	}
	p.log.Error("device message failed", "topic", m.Topic, "trace", m.Trace, "error", err)
	if m.QoS == 0 {
		return p.refuse(ctx, r, m, shadow.ErrInternal)
	}
	return err
}

func (p *Endpoint) request(ctx context.Context, r request, m Message) error {
	switch r.kind {
	case kindShadow:
		return p.shadow(ctx, r, m)
	case kindStream:
		return p.stream(ctx, r, m)
	case kindEvents:
		return p.events(ctx, r, m)
	}
	return p.job(ctx, r, m)
}

// refuse rejects a request, whatever it is about, for what is no fault of its
// content.
func (p *Endpoint) refuse(ctx context.Context, r request, m Message, why *shadow.Error) error {
	switch r.kind {
	case kindShadow:
		return p.answer(ctx, m, r.answerTopic(m, "/rejected"), why.Payload(shadow.ClientToken(m.Payload), p.now()))
	case kindEvents:
		return p.answerEvents(ctx, r, m, "/rejected", eventAnswer{Code: refusals[why], Message: why.Message})
	case kindStream: // that protocol has no word for too many
		return p.rejectStream(ctx, r, m, "", streamFaultf(streamInternal, "%s", why.Message))
	}
	return p.reject(ctx, r, m, jobAnswer{Code: refusals[why], Message: why.Message, ClientToken: shadow.ClientToken(m.Payload)})
}

// refusals are the codes of refuse in the words of the jobs protocol.
var refusals = map[*shadow.Error]string{shadow.ErrThrottled: "RequestThrottled", shadow.ErrInternal: "InternalError"}

// SaidOffline is why a device went that gives no reason: nothing tells its will from
// what it says itself.
const SaidOffline = "its will or own word"

func (p *Endpoint) presence(device string, payload []byte, now time.Time) {
	var body struct {
		Online bool   `json:"online"`
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(payload, &body); err != nil {
		p.log.Warn("presence is not JSON", "device", device, "error", err)
		return
	}
	p.fleet.Presence(device, body.Online, cmp.Or(body.Reason, SaidOffline), now)
}

func (p *Endpoint) shadow(ctx context.Context, r request, m Message) error {
	var reply []byte
	var err error
	switch r.op {
	case "update":
		reply, err = p.shadowUpdate(ctx, r, m)
	case "get":
		reply, err = p.shadowGet(ctx, r, m.Payload)
	default:
		reply, err = p.shadowDelete(ctx, r, m.Payload)
	}
	if err == nil {
		if reply == nil {
			return nil // ShadowUpdated has published accepted, as for every update
		}
		return p.answer(ctx, m, r.answerTopic(m, "/accepted"), reply)
	}
	fault, ok := shadowFault(err, r)
	if !ok {
		return err
	}
	return p.answer(ctx, m, r.answerTopic(m, "/rejected"), fault.Payload(shadow.ClientToken(m.Payload), p.now()))
}

// shadowFault is an error in the protocol's words; false for a fault of ours.
func shadowFault(err error, r request) (*shadow.Error, bool) {
	var fault *shadow.Error
	switch {
	case errors.As(err, &fault):
		return fault, true
	case errors.Is(err, fleet.ErrNoShadow) && r.name == "":
		return shadow.NotFound(r.device), true
	case errors.Is(err, fleet.ErrNoShadow):
		return shadow.NotFound(r.name), true
	case errors.Is(err, fleet.ErrNotFound):
		return shadow.ErrDeviceNotFound, true
	}
	return nil, false
}

// shadowUpdate returns an answer when the request names a topic for it; accepted has
// been published for everybody who listens then, too.
func (p *Endpoint) shadowUpdate(ctx context.Context, r request, m Message) ([]byte, error) {
	u, err := shadow.ParseUpdate(m.Payload)
	if err != nil {
		return nil, err
	}
	u.Correlation = m.CorrelationData
	result, err := p.fleet.UpdateShadow(ctx, r.device, r.name, u)
	if err != nil || r.answerTopic(m, "") == m.Topic {
		return nil, err
	}
	return result.AcceptedPayload(), nil
}

func (p *Endpoint) shadowGet(ctx context.Context, r request, payload []byte) ([]byte, error) {
	token, err := shadow.ParseGet(payload)
	if err != nil {
		return nil, err
	}
	d, err := p.fleet.Shadow(ctx, r.device, r.name)
	if err != nil {
		return nil, err
	}
	return d.GetAccepted(token, p.now()), nil
}

// shadowDelete takes any body: only its client token counts.
func (p *Endpoint) shadowDelete(ctx context.Context, r request, payload []byte) ([]byte, error) {
	d, err := p.fleet.DeleteShadow(ctx, r.device, r.name)
	if err != nil {
		return nil, err
	}
	return shadow.DeleteAccepted(d, shadow.ClientToken(payload), p.now()), nil
}

// answerTopic is the response topic of the request (MQTT 5, 4.10), if it has one that
// is the device's own: on a topic of somebody else's the server would send where the
// device may not, on one of requests it would ask itself. Otherwise it is the topic of
// the request with suffix.
func (r request) answerTopic(m Message, suffix string) string {
	t := m.ResponseTopic
	if !owns(r.device, t) || strings.ContainsAny(t, "+#") || strings.Count(t, "/") >= MaxTopicLevels {
		return m.Topic + suffix
	}
	if _, asks := parseTopic(t); asks {
		return m.Topic + suffix
	}
	return t
}

// answer publishes with the QoS and the correlation data of the request.
func (p *Endpoint) answer(ctx context.Context, m Message, topic string, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return p.broker.Publish(ctx, Message{Topic: topic, Payload: payload, QoS: m.QoS, CorrelationData: m.CorrelationData, Origin: m.Origin})
}

// reply is answer to the requester alone, as the jobs protocol has it.
func (p *Endpoint) reply(ctx context.Context, m Message, topic string, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return p.broker.Reply(ctx, m, Message{Topic: topic, Payload: payload, QoS: m.QoS, CorrelationData: m.CorrelationData})
}
