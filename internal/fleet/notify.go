package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/otad/otad/pkg/ota"
)

// MaxNotified is how many executions a device is told of at once, those that it
// shall work on first.
const MaxNotified = 10

// maxNotifying is how many devices are told at a time: a broker that takes long
// to answer must not keep the engine from its next step.
const maxNotifying = 32

// tellStep has the devices told whose executions a step of the rollout, which was
// as in before, added or held back.
func (s *Service) tellStep(before ota.Rollout, step Advance) {
	after := step.Rollout
	runs, ran := after.State == ota.RolloutRunning, before.State == ota.RolloutRunning
	goesOn := runs && !ran && !before.StartedAt.IsZero()
	stops := ran && after.State == ota.RolloutPaused
	held, holds := before.Holds(), after.Holds()
	t := telling{rollout: before}
	switch {
	case goesOn:
		t.what, t.whole = tellCome, func(e ota.Execution) bool {
			return e.Status == ota.Queued || held && e.Status == ota.InProgress
		}
	case runs && step.Open != nil:
		t.what, t.rollout, t.from, t.to = tellCome, after, step.Open.From, step.Open.To
	case stops || holds && !held:
		t.what, t.whole = tellGone, func(e ota.Execution) bool {
			return stops && e.Status == ota.Queued || holds && e.Status == ota.InProgress
		}
	}
	if t.what != "" {
		s.notifier.add(t)
	}
	if runs && len(step.Insert) > 0 {
		s.notifier.add(telling{what: tellCome, rollout: before, list: step.Insert})
	}
}

// tellReleased has the devices told that an act lets go which were held, but those of a
// rollout that runs: that step tells them. What is cancelled has to be so before, or
// they would be told to go on first.
func (s *Service) tellReleased(before, after ota.Rollout) {
	if before.Holds() && !after.Holds() && after.State != ota.RolloutRunning {
		s.notifier.add(telling{what: tellCome, rollout: before, whole: func(e ota.Execution) bool { return e.Status == ota.InProgress }})
	}
}

// nextChanged says of an execution that was told of whether it changed what is next
// for its device, where this is pending now.
func (s *Service) nextChanged(ctx context.Context, t telling) func(e ota.Execution, pending []ota.Execution) bool {
	switch t.what {
	case tellCome: // it is next itself
		return func(_ ota.Execution, pending []ota.Execution) bool {
			return len(pending) > 0 && pending[0].RolloutID == t.rollout.ID
		}
	case tellGone: // unless something else stood before it
		priority := s.priorities()
		return func(e ota.Execution, pending []ota.Execution) bool {
			// what it works on is cancelled, or to be held
			if len(pending) == 0 || !e.StartedAt.IsZero() {
				return true
			}
			first := pending[0]
			return first.Status == ota.Queued && ota.Before(e, t.rollout.Priority, first, priority(ctx, first.RolloutID))
		}
	}
	return func(ota.Execution, []ota.Execution) bool { return true }
}

// priorities reads the priority of rollouts, each once or a few times. One that can
// not be read counts as the lowest: then one message too many is sent.
func (s *Service) priorities() func(ctx context.Context, rolloutID string) int {
	var known sync.Map
	return func(ctx context.Context, id string) int {
		if p, ok := known.Load(id); ok {
			return p.(int)
		}
		r, err := s.Store.Rollout(ctx, id) // under no lock: others need not wait for it
		p := r.Priority
		if err != nil {
			p = -1 << 31
		}
		known.Store(id, p)
		return p
	}
}

// tellEach sends each execution's device the list of what is pending, and what
// is next if next says that this changed.
func (s *Service) tellEach(ctx context.Context, list []ota.Execution, next func(e ota.Execution, pending []ota.Execution) bool) {
	var told errgroup.Group
	told.SetLimit(maxNotifying)
	for _, e := range list {
		if ctx.Err() != nil {
			break
		}
		told.Go(func() error {
			if pending, ok := s.pending(ctx, e.DeviceID); ok {
				s.tell(ctx, e.DeviceID, pending, true, next(e, pending))
			}
			return nil
		})
	}
	_ = told.Wait() // tell logs
}

// heldTold is how many devices that wait for a place are told in one look.
const heldTold = 32

// tellHeld tells devices that wait for a place in a rollout with a bound of what
// is in flight, some at each look, so that those that are off hold up nobody. Who
// asks first gets the place.
func (s *Service) tellHeld(ctx context.Context, r ota.Rollout, c ota.Counts) {
	limit := r.Terms.InFlight
	if r.State != ota.RolloutRunning || c.Queued == 0 || limit == (ota.InFlight{}) || limit.Max > 0 && c.InProgress >= limit.Max {
		return
	}
	n := heldTold
	if limit.Max > 0 {
		n = max(n, 2*(limit.Max-c.InProgress))
	}
	after := s.held.of(r.ID)
	var list []ota.Execution
	for range 2 { // from the start again at the end
		err := s.Store.Executions(ctx, ExecutionFilter{RolloutID: r.ID, Active: true, After: after}, func(e ota.Execution) bool {
			if e.Status == ota.Queued {
				list = append(list, e)
			}
			return len(list) < n
		})
		if err != nil {
			s.Log.Error("the executions can not be read, devices ask by themselves later", "error", err)
			return
		}
		if len(list) > 0 || after == (ExecutionKey{}) {
			break
		}
		after = ExecutionKey{}
	}
	if len(list) > 0 {
		s.held.set(r.ID, KeyOf(list[len(list)-1]))
		s.notifier.add(telling{what: tellCome, rollout: r, list: list})
	}
}

// pending is what the device may be told of; false when it can not be read. The
// device asks by itself when it connects.
func (s *Service) pending(ctx context.Context, deviceID string) ([]ota.Execution, bool) {
	list, err := s.Store.Pending(ctx, deviceID, MaxNotified)
	if err != nil {
		s.Log.Warn("device was not notified", "device", deviceID, "error", err)
	}
	return list, err == nil
}

// tellMoved tells a device what its own word did to an execution: that began, or
// ended.
func (s *Service) tellMoved(ctx context.Context, e ota.Execution) {
	ended, queued := e.Status.Terminal(), e.StartedAt.Equal(e.UpdatedAt)
	if !ended && !queued {
		return // progress
	}
	pending, ok := s.pending(ctx, e.DeviceID)
	if !ok {
		return
	}
	first := true // what has begun stands first
	if queued {
		first = s.stoodFirst(ctx, e, pending)
	}
	s.tell(ctx, e.DeviceID, pending, ended, first == ended)
}

// stoodFirst reports whether an execution was next on its device before it left the
// queue. pending is what is there now, with it or without.
func (s *Service) stoodFirst(ctx context.Context, e ota.Execution, pending []ota.Execution) bool {
	others := slices.DeleteFunc(slices.Clone(pending), func(o ota.Execution) bool { return sameExecution(o, e) })
	if len(others) == 0 || others[0].Status == ota.InProgress {
		return len(others) == 0
	}
	mine, err := s.Store.Rollout(ctx, e.RolloutID)
	other, err2 := s.Store.Rollout(ctx, others[0].RolloutID)
	if err := errors.Join(err, err2); err != nil {
		s.Log.Warn("device was not told what is next", "device", e.DeviceID, "error", err)
		return e.Status.Terminal() // then it is told, be it once too often
	}
	e.Status = ota.Queued
	return mine.State == ota.RolloutRunning && ota.Before(e, mine.Priority, others[0], other.Priority)
}

// tellRevoked tells a device that nothing is left for it, if there was something.
func (s *Service) tellRevoked(ctx context.Context, deviceID string, before []ota.Execution) {
	if after, ok := s.pending(ctx, deviceID); ok {
		s.tell(ctx, deviceID, after, true, !slices.EqualFunc(first(before), first(after), sameExecution))
	}
}

func first(list []ota.Execution) []ota.Execution { return list[:min(len(list), 1)] }

func sameExecution(a, b ota.Execution) bool {
	return a.RolloutID == b.RolloutID && a.Attempt == b.Attempt
}

// tell sends what changed. A failure is logged only.
func (s *Service) tell(ctx context.Context, deviceID string, pending []ota.Execution, list, next bool) {
	var errList, errNext error
	if list {
		errList = s.Publisher.NotifyJobs(ctx, deviceID, pending)
	}
	if next && len(pending) > 0 {
		errNext = s.Publisher.NotifyNext(ctx, deviceID, &pending[0])
	} else if next {
		errNext = s.Publisher.NotifyNext(ctx, deviceID, nil)
	}
	if err := errors.Join(errList, errNext); err != nil {
		s.Log.Warn("device was not notified", "device", deviceID, "error", err)
	}
}
