package fleet

import (
	"context"
	"sync"
	"time"

	"github.com/otad/otad/pkg/ota"
)

const (
	// TimeoutGrace is how long after its start a server ends nothing: what devices
	// had to report while it was away comes first.
	TimeoutGrace = time.Minute
	// timeoutLook is how often it looks for what it was not told of: deadlines that
	// a device gave another replica, which is gone since.
	timeoutLook = time.Minute
	// timeoutRetry is how long it waits after a failure.
	timeoutRetry = 5 * time.Second
)

// timeouts is the alarm clock of RunTimeouts: when it will look next.
type timeouts struct {
	mu    sync.Mutex
	at    time.Time
	early chan struct{} // at is earlier than it was
}

func newTimeouts() *timeouts { return &timeouts{early: make(chan struct{}, 1)} }

// set says when to look next.
func (t *timeouts) set(at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at = at
}

// next is when to look next.
func (t *timeouts) next() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at
}

// expect makes the look no later than at; zero: nothing is expected.
func (t *timeouts) expect(at time.Time) {
	if at.IsZero() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !at.Before(t.at) {
		return
	}
	t.at = at
	select {
	case t.early <- struct{}{}:
	default:
	}
}

// RunTimeouts ends executions whose time is up until ctx ends. It sleeps until
// the next is due. All it knows stands in the store, so it may be killed
// anywhere, and several replicas may run it.
func (s *Service) RunTimeouts(ctx context.Context) error {
	began := s.Now().Add(TimeoutGrace)
	s.timeouts.set(began)
	for {
		at := s.timeouts.next()
		if at.Before(began) {
			at = began
		}
		timer := time.NewTimer(at.Sub(s.Now()))
		select {
		case <-timer.C:
			s.expire(ctx)
		case <-s.timeouts.early:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// expire ends what is due and sets the alarm for what comes then. The alarm is
// set first, so that a deadline given meanwhile is not lost.
func (s *Service) expire(ctx context.Context) {
	now := s.Now()
	s.timeouts.set(now.Add(timeoutLook))
	expired, next, err := s.Store.Expire(ctx, now)
	if err != nil {
		s.timeouts.expect(now.Add(timeoutRetry))
		if ctx.Err() == nil {
			s.Log.Error("time-outs can not be looked at, trying again", "error", err)
		}
		return
	}
	s.timeouts.expect(next)
	if len(expired) == 0 {
		return
	}
	for _, e := range expired {
		s.Log.Info("execution finished", "rollout", e.RolloutID, "device", e.DeviceID, "status", e.Status, "class", e.Class, "step", e.Step())
		s.signals.raise("rollout/" + e.RolloutID)
	}
	s.Wake()
	// it was IN_PROGRESS, so it was what the device should work on
	s.tellEach(ctx, expired, func(ota.Execution, []ota.Execution) bool { return true })
}
