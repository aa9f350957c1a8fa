package fleet

import (
	"context"
	"time"

	"github.com/otad/otad/pkg/ota"
)

const (
	// TimeoutGrace is how long after its start a server ends nothing: what devices
	// had to report while it was away comes first.
	TimeoutGrace = time.Minute
	// timeoutLook is how often it looks what is due next, without being told: a
	// deadline is at least ota.MinTimeout away when it is given, here or on another
	// replica, so it is always seen before.
	timeoutLook = ota.MinTimeout
	// timeoutRetry is how long it waits after a failure.
	timeoutRetry = 5 * time.Second
)

// RunTimeouts ends executions whose time is up until ctx ends. It sleeps until
// the next is due. All it knows stands in the store, so it may be killed
// anywhere, and several replicas may run it.
func (s *Service) RunTimeouts(ctx context.Context) error {
	look := s.Now().Add(TimeoutGrace)
	for {
		timer := time.NewTimer(look.Sub(s.Now()))
		select {
		case <-timer.C:
			look = s.expire(ctx)
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// expire ends what is due and returns when to look again.
func (s *Service) expire(ctx context.Context) (look time.Time) {
	now := s.Now()
	expired, next, err := s.Store.Expire(ctx, now)
	if err != nil {
		if ctx.Err() == nil {
			s.Log.Error("time-outs can not be looked at, trying again", "error", err)
		}
		return now.Add(timeoutRetry)
	}
	look = now.Add(timeoutLook)
	if !next.IsZero() && next.Before(look) {
		look = next
	}
	if len(expired) == 0 {
		return look
	}
	for _, e := range expired {
		s.Log.Info("execution finished", "rollout", e.RolloutID, "device", e.DeviceID, "status", e.Status, "class", e.Class, "step", e.Step())
		s.signals.raise("rollout/" + e.RolloutID)
	}
	s.Wake()
	s.notifier.add(telling{what: tellAnew, list: expired}) // it was what the device should work on
	return look
}
