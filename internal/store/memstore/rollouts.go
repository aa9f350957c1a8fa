package memstore

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// CreateRollout implements fleet.RolloutStore.
func (s *Store) CreateRollout(ctx context.Context, r ota.Rollout) error {
	return s.locked(ctx, func() error {
		if _, ok := s.rollouts[r.ID]; ok {
			return fmt.Errorf("rollout %s exists: %w", r.ID, fleet.ErrConflict)
		}
		if _, ok := s.releases[r.Release]; !ok {
			return notFound("release %s", r.Release)
		}
		s.rollouts[r.ID] = ownRollout(r)
		return nil
	})
}

// Rollout implements fleet.RolloutStore.
func (s *Store) Rollout(ctx context.Context, id string) (ota.Rollout, error) {
	var r ota.Rollout
	err := s.locked(ctx, func() error {
		var ok bool
		if r, ok = s.rollouts[id]; !ok {
			return notFound("rollout %s", id)
		}
		return nil
	})
	return ownRollout(r), err
}

// Rollouts implements fleet.RolloutStore.
func (s *Store) Rollouts(ctx context.Context) ([]ota.Rollout, error) {
	var list []ota.Rollout
	err := s.locked(ctx, func() error {
		for _, r := range s.rollouts {
			list = append(list, ownRollout(r))
		}
		return nil
	})
	slices.SortFunc(list, func(a, b ota.Rollout) int { return newestFirst(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	return list, err
}

// Progress implements fleet.RolloutStore.
func (s *Store) Progress(ctx context.Context, r ota.Rollout) (ota.Progress, error) {
	p := ota.Progress{Stages: make([]ota.Counts, len(r.Stages)), Armed: ota.Counts{Finished: map[ota.Class]int{}}}
	for i := range p.Stages {
		p.Stages[i].Finished = map[ota.Class]int{}
	}
	err := s.locked(ctx, func() error {
		if _, ok := s.rollouts[r.ID]; !ok {
			return notFound("rollout %s", r.ID)
		}
		for _, attempts := range s.executions[r.ID] {
			e := attempts[len(attempts)-1]
			if e.Status.Terminal() && e.FinishedAt.After(stored(r.ArmedAt)) {
				p.Armed.Finished[e.Class]++
			}
			if e.Stage < len(p.Stages) {
				count(&p.Stages[e.Stage], e)
			}
		}
		return nil
	})
	if err != nil {
		return ota.Progress{}, err
	}
	return p, nil
}

func count(c *ota.Counts, e ota.Execution) {
	switch e.Status {
	case ota.Queued:
		c.Queued++
	case ota.InProgress:
		c.InProgress++
	default:
		c.Finished[e.Class]++
	}
}

// Advance implements fleet.RolloutStore. Executions are inserted first and
// cancelled then, so CancelQueued leaves none.
func (s *Store) Advance(ctx context.Context, a fleet.Advance) error {
	return s.locked(ctx, func() error {
		old, ok := s.rollouts[a.Rollout.ID]
		if !ok {
			return notFound("rollout %s", a.Rollout.ID)
		}
		if old.Revision != a.Rollout.Revision {
			return fmt.Errorf("rollout %s is at revision %d, not %d: %w", old.ID, old.Revision, a.Rollout.Revision, fleet.ErrStale)
		}
		next := ownRollout(a.Rollout)
		next.Release, next.CreatedAt, next.InProgressTimeout = old.Release, old.CreatedAt, old.InProgressTimeout
		next.Revision++
		executions, err := s.inserted(next, a)
		if err != nil {
			return err
		}
		if a.CancelQueued {
			cancelQueued(executions, a)
		}
		s.rollouts[next.ID], s.executions[next.ID] = next, executions
		return nil
	})
}

// inserted returns the rollout's executions after a.Insert, leaving those of
// the store untouched.
func (s *Store) inserted(r ota.Rollout, a fleet.Advance) (map[string][]ota.Execution, error) {
	executions := maps.Clone(s.executions[r.ID])
	if executions == nil {
		executions = map[string][]ota.Execution{}
	}
	insert := slices.Clone(a.Insert)
	slices.SortFunc(insert, func(x, y ota.Execution) int {
		return cmp.Or(x.Attempt-y.Attempt, strings.Compare(x.DeviceID, y.DeviceID))
	})
	for _, e := range insert {
		if err := fleet.ValidInsert(r, e); err != nil {
			return nil, err
		}
	}
	for _, e := range insert {
		if _, ok := s.devices[e.DeviceID]; !ok {
			return nil, notFound("device %s", e.DeviceID)
		}
		attempts := executions[e.DeviceID]
		if e.Attempt <= len(attempts) {
			continue
		}
		if e.Attempt != len(attempts)+1 || (len(attempts) > 0 && !attempts[len(attempts)-1].Status.Terminal()) {
			return nil, fmt.Errorf("%w: attempt %d of rollout %s on device %s: the attempt before it is not finished", fleet.ErrInvalid, e.Attempt, r.ID, e.DeviceID)
		}
		now := stored(a.Now)
		executions[e.DeviceID] = append(slices.Clone(attempts), ota.Execution{
			RolloutID: r.ID, DeviceID: e.DeviceID, Release: r.Release, Stage: e.Stage, Attempt: e.Attempt,
			Status: ota.Queued, Version: 1, QueuedAt: now, UpdatedAt: now, Timeout: r.InProgressTimeout,
		})
	}
	return executions, nil
}

func cancelQueued(executions map[string][]ota.Execution, a fleet.Advance) {
	for device, attempts := range executions {
		last := len(attempts) - 1
		if e, changed := ota.Cancel(attempts[last], a.Rollout.Reason, stored(a.Now)); changed {
			executions[device] = append(slices.Clone(attempts[:last]), e)
		}
	}
}

func ownRollout(r ota.Rollout) ota.Rollout {
	r.Stages = append([]ota.Stage(nil), r.Stages...)
	for i := range r.Stages {
		g := &r.Stages[i]
		g.OpenedAt, g.SoakingAt, g.EndedAt = stored(g.OpenedAt), stored(g.SoakingAt), stored(g.EndedAt)
	}
	r.Abort = append([]ota.AbortRule(nil), r.Abort...)
	r.InProgressTimeout = r.InProgressTimeout.Truncate(time.Microsecond)
	r.ArmedAt, r.CreatedAt, r.EndedAt = stored(r.ArmedAt), stored(r.CreatedAt), stored(r.EndedAt)
	return r
}
