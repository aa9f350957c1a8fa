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
		if err := s.mayCreate(r); err != nil {
			return err
		}
		s.rollouts[r.ID] = ownRollout(r)
		s.tell(ota.Changes(ota.Rollout{}, r, r.CreatedAt)...)
		return nil
	})
}

func (s *Store) mayCreate(r ota.Rollout) error {
	if _, ok := s.rollouts[r.ID]; ok {
		return fmt.Errorf("rollout %s exists: %w", r.ID, fleet.ErrConflict)
	}
	if _, ok := s.releases[r.Release]; !ok && r.Command == nil {
		return notFound("release %s", r.Release)
	}
	return fleet.Followable(r)
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

// Moving implements fleet.RolloutStore.
func (s *Store) Moving(ctx context.Context) (ids []string, err error) {
	err = s.locked(ctx, func() error {
		for id, r := range s.rollouts {
			if r.State.Moves() && !r.Idle {
				ids = append(ids, id)
			}
		}
		return nil
	})
	slices.Sort(ids)
	return ids, err
}

// Cancel implements fleet.RolloutStore.
func (s *Store) Cancel(ctx context.Context, r ota.Rollout, now time.Time, limit int) (done fleet.Cancelled, err error) {
	err = s.locked(ctx, func() error {
		for _, status := range []ota.Status{ota.InProgress, ota.Queued} {
			for _, device := range slices.Sorted(maps.Keys(s.executions[r.ID])) {
				attempts := s.executions[r.ID][device]
				was := attempts[len(attempts)-1]
				e, ok := ota.Cancel(was, r.Reason, stored(now))
				if !ok || was.Status != status || done.Total() == limit || r.State == ota.RolloutFinishing && status == ota.InProgress {
					continue
				}
				s.set(e)
				s.letGo(r, device)
				s.tell(ota.MovedTogether(status, e, 1, now))
				if status == ota.Queued {
					done.Queued++
					continue
				}
				done.Begun = append(done.Begun, ota.Execution{
					RolloutID: r.ID, DeviceID: device, Stage: e.Stage, Status: e.Status, QueuedAt: e.QueuedAt, StartedAt: e.StartedAt, FinishedAt: e.FinishedAt,
				})
			}
		}
		return nil
	})
	return done, err
}

// Progress implements fleet.RolloutStore.
func (s *Store) Progress(ctx context.Context, r ota.Rollout, now time.Time) (ota.Progress, error) {
	p := ota.Progress{Stages: make([]ota.Counts, len(r.Stages)), Armed: ota.Counts{Finished: map[ota.Class]int{}}}
	for i := range p.Stages {
		p.Stages[i].Finished = map[ota.Class]int{}
	}
	err := s.locked(ctx, func() error {
		kept, ok := s.rollouts[r.ID]
		if !ok {
			return notFound("rollout %s", r.ID)
		}
		for _, attempts := range s.executions[r.ID] {
			e := attempts[len(attempts)-1]
			if e.Status.Terminal() && e.SettledAt().After(kept.ArmedAt) {
				p.Armed.Finished[e.Class]++
			}
			if e.Stage < len(p.Stages) {
				count(&p.Stages[e.Stage], e)
			}
			if !e.RetryAt.IsZero() && r.State == ota.RolloutRunning {
				retry(&p, e, stored(now))
			}
		}
		if r.Terms.Health.Set() {
			p.Health = s.seen(r, p.Armed.Finished[ota.ClassSucceeded])
		}
		for _, v := range s.rollouts {
			if r.Reverting && v.RevertOf == r.ID {
				p.Reverts = append(p.Reverts, ota.Revert{ID: v.ID, State: v.State})
			}
		}
		slices.SortFunc(p.Reverts, func(a, b ota.Revert) int { return cmp.Compare(a.ID, b.ID) })
		return nil
	})
	if err != nil {
		return ota.Progress{}, err
	}
	return p, nil
}

func retry(p *ota.Progress, e ota.Execution, now time.Time) {
	switch {
	case !e.RetryAt.After(now):
		p.Due++
	case p.NextRetry.IsZero() || e.RetryAt.Before(p.NextRetry):
		p.NextRetry = e.RetryAt
	}
	if e.Stage < len(p.Stages) {
		p.Stages[e.Stage].Retrying++
	}
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

// Advance implements fleet.RolloutStore.
func (s *Store) Advance(ctx context.Context, a fleet.Advance) error {
	return s.locked(ctx, func() error {
		old, ok := s.rollouts[a.Rollout.ID]
		if !ok {
			return notFound("rollout %s", a.Rollout.ID)
		}
		if old.Revision != a.Rollout.Revision {
			return fmt.Errorf("rollout %s is at revision %d, not %d: %w", old.ID, old.Revision, a.Rollout.Revision, fleet.ErrStale)
		}
		if err := fleet.Followable(a.Rollout); err != nil {
			return err
		}
		next := ownRollout(a.Rollout)
		next.Release, next.Command, next.CreatedAt, next.RevertOf = old.Release, old.Command, old.CreatedAt, old.RevertOf
		if old.State.Begun() {
			next.InProgressTimeout = old.InProgressTimeout
		}
		next.Revision++
		if err := fleet.Brings(next, a.Insert, a.Open, s.withdrawn()); err != nil {
			return err
		}
		executions := maps.Clone(s.executions[next.ID])
		if executions == nil {
			executions = map[string][]ota.Execution{}
		}
		if err := s.insert(executions, next, slices.Clone(a.Insert), stored(a.Now)); err != nil {
			return err
		}
		opened, err := s.opened(next, a.Open)
		if err != nil {
			return err
		}
		if err := s.insert(executions, next, opened, stored(a.Now)); err != nil {
			return err
		}
		for _, r := range a.Create {
			if err := s.mayCreate(r); err != nil {
				return err
			}
		}
		for _, r := range a.Create {
			s.rollouts[r.ID] = ownRollout(r)
			s.tell(ota.Changes(ota.Rollout{}, r, a.Now)...)
		}
		s.tell(ota.Changes(old, next, a.Now)...)
		change(executions, func(e ota.Execution) (ota.Execution, bool) { return s.follow(old, next, a, e) })
		s.rollouts[next.ID], s.executions[next.ID] = next, executions
		if a.Open != nil {
			s.supersede(next, *a.Open, stored(a.Now))
		}
		s.following(old, next)
		for _, e := range a.Insert {
			attempts := executions[e.DeviceID]
			if last := len(attempts) - 1; next.Follows && e.Status == ota.Rejected && last >= 0 && attempts[last].Status == ota.Rejected && attempts[last].Attempt == e.Attempt {
				s.markAnyway(e.DeviceID) // a way may have been opened since the step was decided
			}
		}
		return nil
	})
}

// follow does to an execution what a step asks for besides new ones.
func (s *Store) follow(old, r ota.Rollout, a fleet.Advance, e ota.Execution) (ota.Execution, bool) {
	changed := false
	if a.Repeat != nil && e.Stage == *a.Repeat && e.Status.Terminal() && e.Class != ota.ClassSucceeded && e.Class != ota.ClassUnderway && e.Status != ota.Removed && !s.gone(r, e.DeviceID) && s.there(e.DeviceID) {
		e.RetryAt, changed = stored(a.Now), true
	}
	if runs := r.State == ota.RolloutRunning; e.Status == ota.Queued && runs != (old.State == ota.RolloutRunning) {
		e, changed = ota.Claimable(e, stored(a.Now)), true
		if !runs {
			e.Expires, e.ExpiresAs = time.Time{}, ota.ClassNone
		}
	}
	return e, changed
}

func (s *Store) there(device string) bool {
	_, ok := s.devices[device]
	return ok
}

// opened is what the candidates of a step are given: those that keep their turn.
func (s *Store) opened(r ota.Rollout, o *fleet.Opening) (list []ota.Execution, err error) {
	if o == nil {
		return nil, nil
	}
	for turn := o.From; turn < o.To; turn++ {
		c, ok := s.lines[line{r.ID, r.Line}][turn]
		if !ok {
			return nil, fleet.NoTurn(r, *o)
		}
		d, ok := s.devices[c.DeviceID]
		digest := fleet.ReportedDigest(s.shadows[shadowKey{c.DeviceID, ""}])
		via, way := o.Way(ota.Position{Hardware: d.Hardware, Digest: digest})
		if ok && !d.Revoked() && way && o.Takes(digest) && !s.superseded(r, c.DeviceID) && !s.gone(r, c.DeviceID) {
			list = append(list, ota.Execution{DeviceID: c.DeviceID, Stage: o.Stage, Attempt: 1, Lane: c.Lane, From: digest, Via: via, Status: ota.Queued})
		}
	}
	if o.Stage < 0 || o.Stage >= len(r.Stages) {
		return nil, fleet.ValidInsert(r, ota.Execution{Stage: o.Stage, Attempt: 1, Status: ota.Queued})
	}
	return list, nil
}

func (s *Store) supersede(r ota.Rollout, o fleet.Opening, now time.Time) {
	devices := map[string]bool{}
	for turn := o.From; turn < o.To; turn++ {
		c := s.lines[line{r.ID, r.Line}][turn]
		devices[c.DeviceID] = len(s.executions[r.ID][c.DeviceID]) > 0
	}
	for id, o := range s.rollouts {
		if r.Supersedes(o) {
			change(s.executions[id], func(e ota.Execution) (ota.Execution, bool) {
				if !devices[e.DeviceID] {
					return e, false
				}
				after, superseded := ota.Supersede(e, r.ID, now)
				if superseded {
					s.tell(ota.MovedTogether(e.Status, after, 1, now))
				}
				return after, superseded
			})
		}
	}
}

// insert adds executions to a copy of those of the rollout.
func (s *Store) insert(executions map[string][]ota.Execution, r ota.Rollout, insert []ota.Execution, now time.Time) error {
	slices.SortFunc(insert, func(x, y ota.Execution) int {
		return cmp.Or(x.Attempt-y.Attempt, strings.Compare(x.DeviceID, y.DeviceID))
	})
	for _, e := range insert {
		if err := fleet.ValidInsert(r, e); err != nil {
			return err
		}
	}
	for _, e := range insert {
		d, ok := s.devices[e.DeviceID]
		attempts := executions[e.DeviceID]
		if !ok && (e.Attempt == 1 || len(attempts) == 0) {
			return notFound("device %s", e.DeviceID)
		}
		if e.Attempt <= len(attempts) {
			continue
		}
		if e.Attempt != len(attempts)+1 || (len(attempts) > 0 && !attempts[len(attempts)-1].Status.Terminal()) {
			if !ok {
				return notFound("device %s", e.DeviceID)
			}
			return fmt.Errorf("%w: attempt %d of rollout %s on device %s: the attempt before it is not finished", fleet.ErrInvalid, e.Attempt, r.ID, e.DeviceID)
		}
		attempts = slices.Clone(attempts)
		if last := len(attempts) - 1; last >= 0 {
			attempts[last].RetryAt = time.Time{}
		}
		if e.Attempt > 1 && (!ok || s.superseded(r, e.DeviceID) || s.gone(r, e.DeviceID)) {
			executions[e.DeviceID] = attempts
			continue
		}
		made := ota.Queue(ota.Execution{
			RolloutID: r.ID, DeviceID: e.DeviceID, Release: r.Release, Stage: e.Stage, Attempt: e.Attempt,
			Lane: e.Lane, From: e.From, Via: e.Via, Leg: e.Leg,
		}.Under(r), now)
		s.tell(ota.MovedTogether("", made, 1, now))
		if d.Revoked() { // since the step was decided
			made, _ = ota.Remove(made, fleet.RevokedReason, now)
			s.tell(ota.MovedTogether(ota.Queued, made, 1, now))
		}
		if e.Status == ota.Rejected && made.Status == ota.Queued {
			refused, err := ota.Refuse(made, e.Reason(), now)
			if err != nil {
				return err
			}
			if told, moved := ota.Moved(made, refused); moved {
				s.tell(told)
			}
			made = refused
		}
		executions[e.DeviceID] = append(attempts, ownExecution(made))
	}
	return nil
}

// change replaces the newest attempts that f changes.
func change(executions map[string][]ota.Execution, f func(ota.Execution) (ota.Execution, bool)) {
	for device, attempts := range executions {
		last := len(attempts) - 1
		if e, changed := f(attempts[last]); changed {
			executions[device] = append(slices.Clone(attempts[:last]), ownExecution(e))
		}
	}
}

func ownRollout(r ota.Rollout) ota.Rollout {
	r.Stages = append([]ota.Stage(nil), r.Stages...)
	for i := range r.Stages {
		g := &r.Stages[i]
		g.ApprovedAt, g.OpenedAt, g.SoakingAt, g.EndedAt = stored(g.ApprovedAt), stored(g.OpenedAt), stored(g.SoakingAt), stored(g.EndedAt)
		g.SkippedAt = stored(g.SkippedAt)
	}
	r.Abort = append([]ota.AbortRule(nil), r.Abort...)
	r.InProgressTimeout = r.InProgressTimeout.Truncate(time.Microsecond)
	r.ArmedAt, r.CreatedAt, r.EndedAt = stored(r.ArmedAt), stored(r.CreatedAt), stored(r.EndedAt)
	r.PacedAt, r.ApprovedAt, r.StartedAt, r.Terms.Start = stored(r.PacedAt), stored(r.ApprovedAt), stored(r.StartedAt), stored(r.Terms.Start)
	r.Terms.Health.Signals = slices.Clone(r.Terms.Health.Signals)
	r.Terms.Strata, r.Terms.Retry.On = slices.Clone(r.Terms.Strata), slices.Clone(r.Terms.Retry.On)
	return r
}

// line names a line of candidates.
type line struct{ rollout, name string }

// PutCandidates implements fleet.RolloutStore.
func (s *Store) PutCandidates(ctx context.Context, rolloutID, name string, turn int, list []ota.Candidate) error {
	return s.locked(ctx, func() error {
		l := line{rolloutID, name}
		if s.lines[l] == nil {
			s.lines[l] = map[int]ota.Candidate{}
		}
		for i, c := range list {
			if _, ok := s.lines[l][turn+i]; !ok {
				s.lines[l][turn+i] = ota.Candidate{DeviceID: c.DeviceID, Lane: c.Lane}
			}
		}
		return nil
	})
}

// Candidates implements fleet.RolloutStore.
func (s *Store) Candidates(ctx context.Context, rolloutID, name string, turn, limit int) ([]ota.Candidate, error) {
	var list []ota.Candidate
	err := s.locked(ctx, func() error {
		l := s.lines[line{rolloutID, name}]
		for _, n := range slices.Sorted(maps.Keys(l)) {
			if n >= turn && len(list) < limit {
				list = append(list, l[n])
			}
		}
		return nil
	})
	return list, err
}

// Turn implements fleet.RolloutStore.
func (s *Store) Turn(ctx context.Context, rolloutID, name, deviceID string) (turn int, ok bool, err error) {
	err = s.locked(ctx, func() error {
		turn, ok = s.turn(ota.Rollout{ID: rolloutID, Line: name}, deviceID)
		turn = max(turn, 0)
		return nil
	})
	return turn, ok, err
}

func (s *Store) superseded(r ota.Rollout, device string) bool {
	for id, devices := range s.executions {
		for _, e := range devices[device] {
			if s.rollouts[id].Supersedes(r) && e.Status != ota.Canceled && e.Status != ota.Removed {
				return true
			}
		}
	}
	return false
}

// DropCandidates implements fleet.RolloutStore.
func (s *Store) DropCandidates(ctx context.Context, rolloutID, keep string, limit int) (more bool, err error) {
	err = s.locked(ctx, func() error {
		for l, candidates := range s.lines {
			if l.rollout != rolloutID || l.name == keep {
				continue
			}
			for turn := range candidates {
				if limit == 0 {
					more = true
					return nil
				}
				delete(candidates, turn)
				limit--
			}
			delete(s.lines, l)
		}
		return nil
	})
	return more, err
}
