package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Event is something that happened on the device, for people who look into its
// history on the server. Nothing depends on it.
type Event struct {
	Seq  int64          `json:"seq"`          // from 1, in its log
	At   int64          `json:"at,omitempty"` // ms since 1970 by the device's clock
	Kind string         `json:"kind"`
	Data map[string]any `json:"data,omitempty"`
}

// Kinds of events that the agent makes.
const (
	EventStart = "start" // the agent began: version, slot, release, boot
	EventState = "state" // from, to, job, release, reason
	EventTrust = "trust" // alarm; empty: it is over
	// EventWaiting: job, reason.
	EventWaiting = "waiting"
	EventReboot  = "reboot" // the device booted and nobody had ordered it: boot, was
	EventCrash   = "crash"  // the application ended by itself: error
)

// Limits of events.
const (
	// MaxPendingEvents is how many undelivered events are kept; then the oldest goes.
	MaxPendingEvents = 128
	// MaxEventBatch is how many are sent at a time.
	MaxEventBatch  = 32
	maxEventsBytes = 256 << 10
)

// events is the queue of events on the disk. Log names it: whoever loses it, or
// is made anew, begins another, so that numbers never mean two things. An event
// that can not be stored is lost, as it is no verdict. Safe for concurrent use.
type events struct {
	now   func() time.Time
	added chan<- struct{} // the outbox's: one loop delivers both

	mu   sync.Mutex
	file twin
	body eventsBody
}

type eventsBody struct {
	Log     string  `json:"log"`
	Next    int64   `json:"next"`
	Boot    string  `json:"boot,omitempty"` // the last boot that was seen
	Pending []Event `json:"pending,omitempty"`
}

// openEvents loads what waits; damaged copies begin a log anew.
func openEvents(file twin, now func() time.Time, added chan<- struct{}) (*events, error) {
	e := &events{now: now, added: added, file: file}
	e.file.limit = maxEventsBytes
	bodies, _, err := e.file.load()
	if err != nil {
		return nil, fmt.Errorf("open events: %w", err)
	}
	for _, b := range bodies {
		var body eventsBody
		if json.Unmarshal(b, &body) == nil && body.Log != "" && body.Next > 0 {
			e.body = body
			return e, nil
		}
	}
	e.body = eventsBody{Log: rand.Text()[:16], Next: 1}
	return e, nil
}

// add makes an event durable and then queues it.
func (e *events) add(kind string, data map[string]any) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.body
	event := Event{Seq: next.Next, At: e.now().UnixMilli(), Kind: kind, Data: data}
	pending := next.Pending[max(0, len(next.Pending)-MaxPendingEvents+1):]
	next.Pending = append(pending[:len(pending):len(pending)], event)
	next.Next++
	if err := e.store(next); err != nil {
		return err
	}
	signal(e.added)
	return nil
}

func (e *events) store(next eventsBody) error {
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode events: %w", err)
	}
	if err := e.file.store(b); err != nil {
		return err
	}
	e.body = next
	return nil
}

// booted remembers the boot, and returns the one before; empty: none is known, or
// it is the same.
func (e *events) booted(id string) (was string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.body.Boot == id {
		return "", nil
	}
	next := e.body
	was, next.Boot = next.Boot, id
	return was, e.store(next)
}

// head is the oldest batch.
func (e *events) head() (log string, batch []Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.body.Log, e.body.Pending[:min(len(e.body.Pending), MaxEventBatch)]
}

// delivered forgets the events up to the number.
func (e *events) delivered(log string, ack int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.body
	for log == next.Log && len(next.Pending) > 0 && next.Pending[0].Seq <= ack {
		next.Pending = next.Pending[1:]
	}
	if len(next.Pending) == len(e.body.Pending) {
		return nil
	}
	return e.store(next)
}

// event queues what happened; one that can not be stored is missed by nobody.
func (a *Agent) event(kind string, data map[string]any) {
	if err := a.events.add(kind, data); err != nil {
		a.cfg.Log.Warn("queue event", "kind", kind, "err", err)
	}
}

// deliverEvents hands over the oldest batch; busy means that there was one.
func (a *Agent) deliverEvents(ctx context.Context) (busy bool, err error) {
	log, batch := a.events.head()
	if len(batch) == 0 {
		return false, nil
	}
	last := batch[len(batch)-1].Seq
	var ack int64
	err = a.call(ctx, func() error {
		ack, err = a.cfg.Transport.SendEvents(ctx, log, batch)
		return err
	})
	if errors.Is(err, ErrEvents) {
		a.cfg.Log.Warn("events dropped", "first", batch[0].Seq, "last", last, "err", err)
		ack, err = last, nil
	}
	if err != nil {
		return true, fmt.Errorf("events: %w", err)
	}
	if ack < batch[0].Seq {
		return true, fmt.Errorf("events: the server has them up to %d, sent were %d to %d", ack, batch[0].Seq, last)
	}
	if err := a.events.delivered(log, ack); err != nil {
		return true, diskError{err}
	}
	return true, nil
}
