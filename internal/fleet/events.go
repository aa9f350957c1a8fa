package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Event is what a device says happened on it.
type Event struct {
	Position int64     // in the device's history, from 1, given by the store
	Log      string    // the device's log that it is in; a device made anew begins another
	Seq      int64     // its number in the log, from 1
	At       time.Time // the device's clock; zero: it had none
	Received time.Time
	Kind     string
	Data     string // a JSON object
	Trace    string // of the message that brought it, empty: none
}

// Limits of events.
const (
	MaxEvents      = 64  // in one message
	MaxEventsKept  = 500 // of one device; older ones are dropped
	MaxEventBytes  = 4 << 10
	MaxEventKind   = 64
	MaxEventLog    = 64
	MaxTraceID     = 64
	maxEventNumber = 1 << 53 // what JSON numbers carry everywhere
)

var (
	eventWord = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)
	traceWord = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:-]*$`)
)

// ValidTrace reports a trace id that may stand in logs and stores.
func ValidTrace(id string) bool { return len(id) <= MaxTraceID && traceWord.MatchString(id) }

// ValidEvents says why a batch can not be stored; ErrInvalid.
func ValidEvents(log string, events []Event) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: events: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	if log == LogServer {
		return bad("log %s is that of the server: begin one with another name", log)
	}
	if len(log) > MaxEventLog || !eventWord.MatchString(log) {
		return bad("log %.80q: want a word of at most %d bytes", log, MaxEventLog)
	}
	if len(events) == 0 || len(events) > MaxEvents {
		return bad("%d in one message: want 1 to %d", len(events), MaxEvents)
	}
	last := int64(0)
	for _, e := range events {
		switch {
		case e.Seq <= last || e.Seq > maxEventNumber:
			return bad("number %d after %d: they rise from 1", e.Seq, last)
		case len(e.Kind) > MaxEventKind || !eventWord.MatchString(e.Kind):
			return bad("number %d: kind %.80q: want a word of at most %d bytes", e.Seq, e.Kind, MaxEventKind)
		case len(e.Data) > MaxEventBytes:
			return bad("number %d: %d bytes of data: at most %d", e.Seq, len(e.Data), MaxEventBytes)
		case !isObject(e.Data):
			return bad("number %d: its data is not a JSON object", e.Seq)
		}
		last = e.Seq
	}
	return nil
}

func isObject(text string) bool {
	var m map[string]json.RawMessage
	return json.Unmarshal([]byte(text), &m) == nil && m != nil
}

// EventStore keeps the newest MaxEventsKept events of each device.
type EventStore interface {
	// AppendEvents stores those of the events, ascending in Seq, that are behind
	// the last one stored of the log: what comes again changes nothing. The first
	// of another log than the last begins that one. It returns the number up to
	// which the log is stored. Log, Position and Received of the given events are
	// not looked at.
	AppendEvents(ctx context.Context, deviceID, log string, events []Event, now time.Time) (ack int64, err error)
	// Events returns up to limit events before the position (0: the newest), newest
	// first. A device that sent none, or is unknown, has none.
	Events(ctx context.Context, deviceID string, before int64, limit int) ([]Event, error)
}

// TakeEvents stores a batch and returns the number up to which the device may
// forget. ErrInvalid: it can never be stored, so the device may as well forget it.
func (s *Service) TakeEvents(ctx context.Context, deviceID, log string, events []Event) (ack int64, err error) {
	if err := ValidEvents(log, events); err != nil {
		return 0, err
	}
	return s.Store.AppendEvents(ctx, deviceID, log, events, s.Now())
}

// Events returns a device's history, newest first, and whether there are more;
// ErrNotFound when there is no such device.
func (s *Service) Events(ctx context.Context, deviceID string, before int64, limit int) (page []Event, more bool, err error) {
	if err := ota.ValidateDeviceID(deviceID); err != nil {
		return nil, false, err
	}
	if _, err := s.Store.Device(ctx, deviceID); err != nil {
		return nil, false, err
	}
	page, err = s.Store.Events(ctx, deviceID, before, limit+1)
	if len(page) > limit {
		return page[:limit], true, err
	}
	return page, false, err
}
