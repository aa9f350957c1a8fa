package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	broker Broker
	fleet  *fleet.Service
	log    *slog.Logger
	now    func() time.Time
}

// NewEndpoint returns an Endpoint; Serve starts it.
func NewEndpoint(b Broker, f *fleet.Service, log *slog.Logger, now func() time.Time) *Endpoint {
	return &Endpoint{broker: b, fleet: f, log: log, now: now}
}

// Serve subscribes to the device topics until ctx ends.
func (p *Endpoint) Serve(ctx context.Context) error {
	return p.broker.Subscribe(ctx, Filters, p.Handle)
}

// Handle answers one message. An error is a fault of ours: the message stays
// unacknowledged and comes again.
func (p *Endpoint) Handle(ctx context.Context, m Message) error {
	r, ok := parseTopic(m.Topic)
	if !ok || ota.ValidateDeviceID(r.device) != nil {
		p.log.Warn("message on a topic that is none of ours", "topic", m.Topic)
		return nil
	}
	now := p.now()
	if r.kind == kindPresence {
		p.presence(r.device, m.Payload, now)
		return nil
	}
	p.fleet.Seen(r.device, now)
	var err error
	if r.kind == kindShadow {
		err = p.shadow(ctx, r, m)
	} else {
		err = p.job(ctx, r, m)
	}
	if err != nil && ctx.Err() == nil {
		p.log.Error("device message failed", "topic", m.Topic, "error", err)
	}
	return err
}

func (p *Endpoint) presence(device string, payload []byte, now time.Time) {
	var body struct {
		Online bool   `json:"online"`
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(payload, &body); err != nil {
		p.log.Warn("presence is not JSON", "device", device, "error", err)
		return
	}
	p.fleet.Presence(device, body.Online, body.Reason, now)
}

func (p *Endpoint) shadow(ctx context.Context, r request, m Message) error {
	if !strings.HasPrefix(m.Topic, shadowPrefix(r.device, r.name)) {
		return fmt.Errorf("topic %q does not belong to its parts", m.Topic)
	}
	token := shadow.ClientToken(m.Payload)
	reply, err := p.shadowReply(ctx, r, m.Payload, token)
	if err == nil {
		if reply == nil {
			return nil // UpdateShadow has published accepted, as for every update
		}
		return p.answer(ctx, m, m.Topic+"/accepted", reply)
	}
	var fault *shadow.Error
	switch {
	case errors.As(err, &fault):
	case errors.Is(err, fleet.ErrNotFound):
		fault = shadow.NotFound(r.name)
	default:
		return err
	}
	return p.answer(ctx, m, m.Topic+"/rejected", fault.Payload(token, p.now()))
}

func (p *Endpoint) shadowReply(ctx context.Context, r request, payload []byte, token string) ([]byte, error) {
	switch r.op {
	case "get":
		d, err := p.fleet.Shadow(ctx, r.device, r.name)
		if err != nil {
			return nil, err
		}
		return d.GetAccepted(token, p.now()), nil
	case "delete":
		d, err := p.fleet.DeleteShadow(ctx, r.device, r.name)
		if err != nil {
			return nil, err
		}
		return shadow.DeleteAccepted(d, token, p.now()), nil
	}
	u, err := shadow.ParseUpdate(payload)
	if err != nil {
		return nil, err
	}
	_, err = p.fleet.UpdateShadow(ctx, r.device, r.name, u)
	return nil, err
}

// answer publishes with the QoS and the correlation data of the request.
func (p *Endpoint) answer(ctx context.Context, m Message, topic string, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return p.broker.Publish(ctx, Message{Topic: topic, Payload: payload, QoS: m.QoS, CorrelationData: m.CorrelationData})
}

// reply is answer to the requester alone, as the jobs protocol has it.
func (p *Endpoint) reply(ctx context.Context, m Message, topic string, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return p.broker.Reply(ctx, m, Message{Topic: topic, Payload: payload, QoS: m.QoS, CorrelationData: m.CorrelationData})
}
