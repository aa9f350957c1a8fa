package memstore

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// NextExecution implements fleet.ExecutionStore.
func (s *Store) NextExecution(ctx context.Context, deviceID string) (ota.Execution, error) {
	var e ota.Execution
	err := s.locked(ctx, func() (err error) {
		e, err = s.next(deviceID)
		return err
	})
	return ownExecution(e), err
}

// StartNext implements fleet.ExecutionStore.
func (s *Store) StartNext(ctx context.Context, deviceID string, start ota.Starting, now time.Time) (ota.Execution, error) {
	var e ota.Execution
	err := s.locked(ctx, func() (err error) {
		if e, err = s.next(deviceID); err != nil {
			return err
		}
		if e, err = ota.Start(e, start, stored(now)); err != nil {
			return err
		}
		e = s.put(e)
		return nil
	})
	if err != nil {
		return ota.Execution{}, err
	}
	return ownExecution(e), nil
}

// Pending implements fleet.ExecutionStore.
func (s *Store) Pending(ctx context.Context, deviceID string, limit int) ([]ota.Execution, error) {
	var list []ota.Execution
	err := s.locked(ctx, func() error {
		for _, e := range s.pending(deviceID) {
			if len(list) < limit {
				list = append(list, ownExecution(e))
			}
		}
		return nil
	})
	return list, err
}

// Busy implements fleet.ExecutionStore.
func (s *Store) Busy(ctx context.Context, after string, limit int) (ids []string, err error) {
	err = s.locked(ctx, func() error {
		for _, id := range slices.Sorted(maps.Keys(s.devices)) {
			if id > after && len(ids) < limit && len(s.active(id)) > 0 {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, err
}

// Unfinished implements fleet.ExecutionStore.
func (s *Store) Unfinished(ctx context.Context, rolloutID string, f func(deviceID string) bool) error {
	var ids []string
	err := s.locked(ctx, func() error {
		for id, attempts := range s.executions[rolloutID] {
			if !attempts[len(attempts)-1].Status.Terminal() {
				ids = append(ids, id)
			}
		}
		return nil
	})
	slices.Sort(ids)
	for _, id := range ids {
		if !f(id) {
			break
		}
	}
	return err
}

// WentBack implements fleet.ExecutionStore.
func (s *Store) WentBack(ctx context.Context, rolloutID string, f func(ota.Execution) bool) error {
	var list []ota.Execution
	err := s.Executions(ctx, fleet.ExecutionFilter{RolloutID: rolloutID}, func(e ota.Execution) bool {
		if e.WentBack() {
			list = append(list, e)
		}
		return true
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(list, func(a, b ota.Execution) int { return a.Attempt - b.Attempt })
	return each(ctx, list, f)
}

// next is what the device shall work on.
func (s *Store) next(deviceID string) (ota.Execution, error) {
	if list := s.pending(deviceID); len(list) > 0 {
		return list[0], nil
	}
	return ota.Execution{}, notFound("next execution of device %s", deviceID)
}

// pending is what the device may work on, in the order it shall.
func (s *Store) pending(deviceID string) []ota.Execution {
	var list []ota.Execution
	for _, e := range s.active(deviceID) {
		if e.Status == ota.InProgress || s.rollouts[e.RolloutID].State == ota.RolloutRunning && !s.full(e) {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b ota.Execution) int {
		switch {
		case a.Status == ota.InProgress:
			return -1
		case b.Status == ota.InProgress:
			return 1
		case ota.Before(a, s.rollouts[a.RolloutID].Priority, b, s.rollouts[b.RolloutID].Priority):
			return -1
		}
		return 1
	})
	return list
}

// full reports whether the rollout has as many in flight as it may.
func (s *Store) full(e ota.Execution) bool {
	limit := s.rollouts[e.RolloutID].Terms.InFlight
	if limit == (ota.InFlight{}) {
		return false
	}
	n, lane := 0, 0
	for _, attempts := range s.executions[e.RolloutID] {
		if other := attempts[len(attempts)-1]; other.Status == ota.InProgress {
			n++
			if other.Lane == e.Lane {
				lane++
			}
		}
	}
	return limit.Max > 0 && n >= limit.Max || limit.PerMax > 0 && lane >= limit.PerMax
}

// active returns the device's executions that are not finished, one for each
// rollout at most.
func (s *Store) active(deviceID string) []ota.Execution {
	var list []ota.Execution
	for rollout, devices := range s.executions {
		attempts := devices[deviceID]
		if n := len(attempts); n > 0 && !attempts[n-1].Status.Terminal() {
			list = append(list, attempts[n-1].Under(s.rollouts[rollout]))
		}
	}
	return list
}

// Report implements fleet.ExecutionStore.
func (s *Store) Report(ctx context.Context, r ota.Report, now time.Time) (ota.Execution, error) {
	var e ota.Execution
	err := s.locked(ctx, func() (err error) {
		if e, err = s.newest(r.RolloutID, r.DeviceID); err != nil {
			return err
		}
		next, err := ota.Apply(e, r, stored(now))
		if err != nil {
			e = s.takeLate(e, r, err, stored(now))
			return err
		}
		if e.Status == ota.Queued && next.Status == ota.InProgress {
			if err := s.mayStart(e); err != nil {
				return err
			}
		}
		e = s.put(next)
		return nil
	})
	return ownExecution(e), err
}

// takeLate keeps what a report says that was refused for the newest attempt, and returns that.
func (s *Store) takeLate(newest ota.Execution, r ota.Report, refused error, now time.Time) ota.Execution {
	attempt, ok := ota.LateFor(newest, r, refused)
	if !ok {
		return newest
	}
	e, ok := ota.Late(s.executions[r.RolloutID][r.DeviceID][attempt-1].Under(s.rollouts[r.RolloutID]), r, now)
	if ok {
		s.set(e)
	}
	if ok && attempt == newest.Attempt {
		return e
	}
	return newest
}

// mayStart reports why a QUEUED execution must wait.
func (s *Store) mayStart(e ota.Execution) error {
	if state := s.rollouts[e.RolloutID].State; state != ota.RolloutRunning {
		return fmt.Errorf("%w: rollout %s is %s", ota.ErrTransition, e.RolloutID, state)
	}
	if s.full(e) {
		return fmt.Errorf("%w: rollout %s has as many devices in flight as it may", ota.ErrTransition, e.RolloutID)
	}
	for _, other := range s.active(e.DeviceID) {
		if other.Status == ota.InProgress {
			return fmt.Errorf("%w: device %s works on rollout %s", ota.ErrTransition, e.DeviceID, other.RolloutID)
		}
	}
	return nil
}

// Expire implements fleet.ExecutionStore.
func (s *Store) Expire(ctx context.Context, now time.Time) (expired []ota.Execution, next time.Time, err error) {
	now = stored(now)
	err = s.locked(ctx, func() error {
		due := s.timed(now)
		if len(due) > fleet.MaxExpired {
			due = s.timed(due[fleet.MaxExpired-1].Expires)
		}
		for i, e := range due {
			if e.Status == ota.Queued && (s.rollouts[e.RolloutID].State != ota.RolloutRunning || s.full(e)) {
				due[i] = s.put(ota.Claimable(e, now))
			}
		}
		for _, e := range due {
			if over, ended := ota.Expire(e, now); ended {
				expired = append(expired, ownExecution(s.put(over)))
			}
		}
		if rest := s.timed(time.Time{}); len(rest) > 0 {
			next = rest[0].Expires
		}
		return nil
	})
	return expired, next, err
}

// timed returns the executions that expire by then, or all that ever do when it
// is zero, in the order in which they do.
func (s *Store) timed(by time.Time) []ota.Execution {
	var timed []ota.Execution
	for device := range s.devices {
		for _, e := range s.active(device) {
			if !e.Expires.IsZero() && (by.IsZero() || !e.Expires.After(by)) {
				timed = append(timed, e)
			}
		}
	}
	slices.SortFunc(timed, func(a, b ota.Execution) int {
		return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(a.RolloutID, b.RolloutID), cmp.Compare(a.DeviceID, b.DeviceID))
	})
	return timed
}

// Execution implements fleet.ExecutionStore.
func (s *Store) Execution(ctx context.Context, rolloutID, deviceID string) (ota.Execution, error) {
	var e ota.Execution
	err := s.locked(ctx, func() (err error) {
		e, err = s.newest(rolloutID, deviceID)
		return err
	})
	return ownExecution(e), err
}

// Executions implements fleet.ExecutionStore.
func (s *Store) Executions(ctx context.Context, filter fleet.ExecutionFilter, f func(ota.Execution) bool) error {
	var list []ota.Execution
	err := s.locked(ctx, func() error {
		for _, rollout := range slices.Sorted(maps.Keys(s.executions)) {
			devices := s.executions[rollout]
			for _, device := range slices.Sorted(maps.Keys(devices)) {
				for i, e := range devices[device] {
					latest := i == len(devices[device])-1
					if matches(filter, e, latest) {
						list = append(list, ownExecution(e.Under(s.rollouts[rollout])))
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return each(ctx, list, f)
}

// Failures implements fleet.ExecutionStore.
func (s *Store) Failures(ctx context.Context, rolloutID string, limit int) ([]ota.Execution, error) {
	var list []ota.Execution
	err := s.locked(ctx, func() error {
		for _, attempts := range s.executions[rolloutID] {
			for _, e := range attempts {
				if e.Class != ota.ClassNone && e.Class != ota.ClassSucceeded && e.Class != ota.ClassUnderway {
					list = append(list, ownExecution(e.Under(s.rollouts[rolloutID])))
				}
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b ota.Execution) int {
		return cmp.Or(b.FinishedAt.Compare(a.FinishedAt), fleet.KeyOf(a).Compare(fleet.KeyOf(b)))
	})
	return list[:min(len(list), limit)], err
}

// AtWork implements fleet.ExecutionStore.
func (s *Store) AtWork(ctx context.Context, rolloutID string, limit int) ([]ota.Execution, error) {
	var list []ota.Execution
	err := s.locked(ctx, func() error {
		for _, attempts := range s.executions[rolloutID] {
			if e := attempts[len(attempts)-1]; e.Status == ota.InProgress {
				list = append(list, ownExecution(e.Under(s.rollouts[rolloutID])))
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b ota.Execution) int {
		return cmp.Or(a.StepAt.Compare(b.StepAt), cmp.Compare(a.DeviceID, b.DeviceID))
	})
	return list[:min(len(list), limit)], err
}

// Passed implements fleet.ExecutionStore.
func (s *Store) Passed(ctx context.Context, rolloutID string) ([]ota.ReleaseID, error) {
	seen := map[ota.ReleaseID]bool{}
	err := s.locked(ctx, func() error {
		for _, attempts := range s.executions[rolloutID] {
			for _, e := range attempts {
				if len(e.Via) > 0 {
					seen[e.Via[0]] = true
				}
			}
		}
		return nil
	})
	return slices.SortedFunc(maps.Keys(seen), func(a, b ota.ReleaseID) int { return cmp.Compare(a.String(), b.String()) }), err
}

func matches(f fleet.ExecutionFilter, e ota.Execution, latest bool) bool {
	return (f.RolloutID == "" || f.RolloutID == e.RolloutID) &&
		(f.DeviceID == "" || f.DeviceID == e.DeviceID) &&
		f.After.Compare(fleet.KeyOf(e)) < 0 &&
		(f.RetryDue.IsZero() || !e.RetryAt.IsZero() && !e.RetryAt.After(stored(f.RetryDue))) &&
		(f.Stage == nil || *f.Stage == e.Stage) &&
		(!f.Active || !e.Status.Terminal()) &&
		(!f.Latest || latest)
}

func (s *Store) newest(rolloutID, deviceID string) (ota.Execution, error) {
	attempts := s.executions[rolloutID][deviceID]
	if len(attempts) == 0 {
		return ota.Execution{}, notFound("execution of rollout %s on device %s", rolloutID, deviceID)
	}
	return attempts[len(attempts)-1].Under(s.rollouts[rolloutID]), nil
}

func (s *Store) put(e ota.Execution) ota.Execution {
	e = ownExecution(e)
	if told, moved := ota.Moved(s.executions[e.RolloutID][e.DeviceID][e.Attempt-1], e); moved {
		s.tell(told)
	}
	return s.set(e)
}

// set is put for what is told of together with others.
func (s *Store) set(e ota.Execution) ota.Execution {
	e = ownExecution(e)
	s.executions[e.RolloutID][e.DeviceID][e.Attempt-1] = e
	return e
}

func ownExecution(e ota.Execution) ota.Execution {
	e.Details = copied(e.Details)
	e.Via = append([]ota.ReleaseID(nil), e.Via...)
	e.Expires, e.RetryAt = stored(e.Expires), stored(e.RetryAt) // terms may name parts of a microsecond
	return e
}
