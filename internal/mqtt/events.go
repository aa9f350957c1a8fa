package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// MaxEventsPayload bounds one message of events, bytes.
const MaxEventsPayload = 128 << 10

// eventBatch is what a device sends to ota/{id}/events.
type eventBatch struct {
	Log    string `json:"log"`
	Events []struct {
		Seq  int64           `json:"seq"`
		At   int64           `json:"at"` // ms since 1970
		Kind string          `json:"kind"`
		Data json.RawMessage `json:"data"`
	} `json:"events"`
}

// eventAnswer is an acknowledgement of all events of the log up to Ack, or a
// refusal.
type eventAnswer struct {
	Log     string `json:"log,omitempty"`
	Ack     *int64 `json:"ack,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// events stores a batch and acknowledges it to the requester alone: on the
// response topic, if it gave one of its own, else beside the request.
func (p *Endpoint) events(ctx context.Context, r request, m Message) error {
	batch, err := parseEvents(m.Payload)
	var ack int64
	if err == nil {
		ack, err = p.fleet.TakeEvents(ctx, r.device, batch.Log, batch.events(m.Trace))
	}
	switch {
	case err == nil:
		return p.answerEvents(ctx, r, m, "/accepted", eventAnswer{Log: batch.Log, Ack: &ack})
	case errors.Is(err, fleet.ErrInvalid):
		p.log.Warn("events refused", "device", r.device, "trace", m.Trace, "error", err)
		return p.answerEvents(ctx, r, m, "/rejected", eventAnswer{Code: "InvalidRequest", Message: err.Error()})
	case errors.Is(err, fleet.ErrNotFound):
		return p.answerEvents(ctx, r, m, "/rejected", eventAnswer{Code: "ResourceNotFound", Message: err.Error()})
	}
	return err
}

func parseEvents(payload []byte) (eventBatch, error) {
	var b eventBatch
	if len(payload) > MaxEventsPayload {
		return b, fmt.Errorf("%w: %d bytes of events in one message, at most %d", fleet.ErrInvalid, len(payload), MaxEventsPayload)
	}
	if err := readJSON(payload, &b); err != nil {
		return b, fmt.Errorf("%w: events: %w", fleet.ErrInvalid, err)
	}
	if len(b.Events) > fleet.MaxEvents {
		return b, fmt.Errorf("%w: %d events in one message, at most %d", fleet.ErrInvalid, len(b.Events), fleet.MaxEvents)
	}
	return b, nil
}

func (b eventBatch) events(trace string) []fleet.Event {
	out := make([]fleet.Event, 0, len(b.Events))
	for _, e := range b.Events {
		f := fleet.Event{Seq: e.Seq, Kind: e.Kind, Data: string(e.Data), Trace: trace}
		if f.Data == "" {
			f.Data = "{}"
		}
		if e.At > 0 && e.At < maxEventTime {
			f.At = time.UnixMilli(e.At)
		}
		out = append(out, f)
	}
	return out
}

// maxEventTime is the year 9999: a clock beyond it is none.
const maxEventTime = 253_402_300_799_000

func (p *Endpoint) answerEvents(ctx context.Context, r request, m Message, suffix string, a eventAnswer) error {
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return p.reply(ctx, m, r.answerTopic(m, suffix), b)
}
