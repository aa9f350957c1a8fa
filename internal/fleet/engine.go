package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// Wake makes the engine look again. It never blocks.
func (s *Service) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// RunEngine moves rollouts until ctx ends: it reads where each stands, asks
// ota.Plan, writes the decision in one transaction and tells the devices after
// that. It keeps nothing in memory, so it may be killed anywhere, and several
// replicas may run it.
func (s *Service) RunEngine(ctx context.Context) error {
	// The crash may have come between a commit and its messages.
	s.tellAll(ctx)
	for {
		next := s.advanceAll(ctx)
		timer := time.NewTimer(min(max(time.Until(next), 0), s.Poll))
		select {
		case <-s.wake:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// advanceAll steps every rollout that is not final and returns when to look
// again at the latest.
func (s *Service) advanceAll(ctx context.Context) time.Time {
	next := time.Now().Add(s.Poll)
	all, err := s.Store.Rollouts(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.Log.Error("engine can not read the rollouts", "error", err)
		}
		return next
	}
	for _, r := range all {
		if r.State.Terminal() || r.State == ota.RolloutPaused {
			continue
		}
		wake, err := s.advance(ctx, r.ID)
		if err != nil && ctx.Err() == nil {
			s.Log.Error("engine can not move a rollout, trying again", "rollout", r.ID, "error", err)
		}
		if in := wake.Sub(s.Now()); !wake.IsZero() {
			if at := time.Now().Add(in); at.Before(next) {
				next = at
			}
		}
	}
	return next
}

// advance steps one rollout until nothing changes.
func (s *Service) advance(ctx context.Context, id string) (wake time.Time, err error) {
	for {
		r, err := s.Store.Rollout(ctx, id)
		if err != nil {
			return wake, err
		}
		p, err := s.Store.Progress(ctx, r)
		if err != nil {
			return wake, err
		}
		now := s.Now()
		d := ota.Plan(r, p, now)
		if !d.Changed && !d.CancelQueued {
			return d.Wake, nil
		}
		step := Advance{Rollout: d.Rollout, CancelQueued: d.CancelQueued, Now: now}
		if d.Open != nil {
			if step.Insert, err = s.open(ctx, d.Rollout, *d.Open, p, now); err != nil {
				return wake, fmt.Errorf("open stage %d: %w", d.Open.Stage+1, err)
			}
		}
		err = s.Store.Advance(ctx, step)
		if errors.Is(err, ErrStale) {
			continue
		}
		if err != nil {
			return wake, err
		}
		s.logStep(r, d.Rollout, len(step.Insert))
		s.signals.raise("rollout/" + id)
		s.tellStep(ctx, r, step)
	}
}

func (s *Service) logStep(before, after ota.Rollout, inserted int) {
	stage := min(after.Current()+1, len(after.Stages))
	s.Log.Info("rollout moved", "rollout", after.ID, "state", after.State, "stage", stage, "was", before.State, "executions", inserted, "reason", after.Reason)
}

// open returns the executions that an opening asks for.
func (s *Service) open(ctx context.Context, r ota.Rollout, o ota.Opening, p ota.Progress, now time.Time) ([]ota.Execution, error) {
	sel, err := selector.Parse(r.Selector)
	if err != nil {
		return nil, err
	}
	release, err := s.Store.Release(ctx, r.Release)
	if err != nil {
		return nil, err
	}
	if release.State != ota.ReleaseSigned {
		return nil, fmt.Errorf("%w: %s is %s", ErrUnsigned, r.Release, release.State)
	}
	c := candidates{rollout: r, release: release, sel: sel, has: map[string]bool{}}
	var insert []ota.Execution
	err = s.Store.Executions(ctx, ExecutionFilter{RolloutID: r.ID, Latest: true}, func(e ota.Execution) bool {
		c.has[e.DeviceID] = true
		if o.Retry && e.Stage == o.Stage && e.Status.Terminal() && e.Status != ota.Succeeded && e.Status != ota.Removed {
			insert = append(insert, queued(r, e.DeviceID, o.Stage, e.Attempt+1, now))
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	ids, err := s.pick(ctx, c, o.Target-len(c.has))
	for _, id := range ids {
		insert = append(insert, queued(r, id, o.Stage, 1, now))
	}
	return insert, err
}

func queued(r ota.Rollout, deviceID string, stage, attempt int, now time.Time) ota.Execution {
	return ota.Execution{
		RolloutID: r.ID, DeviceID: deviceID, Release: r.Release, Stage: stage, Attempt: attempt,
		Status: ota.Queued, Version: 1, QueuedAt: now, UpdatedAt: now,
	}
}
