package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Wake makes the engine look again. It never blocks.
func (s *Service) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// lookEvery is the shortest time between two looks, of the engine at the rollouts and
// of RunLooks for marked devices, however often they are woken: a flood of reports must
// not be one of looks.
const lookEvery = 20 * time.Millisecond

// RunEngine moves rollouts until ctx ends: it reads where each stands, asks
// ota.Plan and writes the decision in one transaction; RunNotifier tells the
// devices after that. It keeps nothing in memory, so it may be killed anywhere, and
// several replicas may run it.
func (s *Service) RunEngine(ctx context.Context) error {
	for {
		select {
		case <-s.wake: // this look is the one that was asked for
		default:
		}
		looked := time.Now()
		next := s.advanceAll(ctx)
		if !s.rest(ctx, min(max(time.Until(next), 0), s.Poll), s.wake) || !s.rest(ctx, time.Until(looked.Add(lookEvery)), nil) {
			return nil
		}
	}
}

// rest waits so long, or until it is woken; false: ctx has ended.
func (s *Service) rest(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// advanceAll steps every rollout that may move and returns when to look again at
// the latest.
func (s *Service) advanceAll(ctx context.Context) time.Time {
	next := time.Now().Add(s.Poll)
	moving, err := s.Store.Moving(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.Log.Error("engine can not read the rollouts", "error", err)
		}
		return next
	}
	for _, id := range moving {
		if _, ok := s.beginning.Load(id); ok {
			continue
		}
		wake, err := s.advance(ctx, id)
		if err != nil && ctx.Err() == nil {
			s.Log.Error("engine can not move a rollout, trying again", "rollout", id, "error", err)
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
		now := s.Now()
		p, err := s.Store.Progress(ctx, r, now)
		if err != nil {
			return wake, err
		}
		looked, again, err := s.lookAfter(ctx, r, p.Health, now)
		if err != nil {
			return wake, err
		}
		if looked {
			s.signals.raise("rollout/" + id)
			continue
		}
		d := ota.Plan(r, p, now)
		if d.Cancel {
			if more, err := s.cancel(ctx, r, now); more || err != nil {
				if err != nil {
					return wake, err
				}
				continue
			}
		}
		if !d.Changed && !d.Arrange && !d.Revert {
			if r.State.Terminal() { // another replica was faster
				s.tellCancelled(r)
			}
			s.tellHeld(ctx, r, p.Total())
			if d.Wake.IsZero() || !again.IsZero() && again.Before(d.Wake) {
				return again, nil
			}
			return d.Wake, nil
		}
		step := Advance{Rollout: d.Rollout, Now: now}
		if r.Terms.Continuous && r.Stages[0].State == ota.StagePending && d.Rollout.Stages[0].State == ota.StageOpen {
			if err := s.finishOlder(ctx, r); err != nil {
				return wake, err
			}
		}
		switch {
		case d.Arrange:
			step.Rollout, err = s.arrange(ctx, r, now)
		case d.Revert:
			step, err = s.sendBack(ctx, r, now)
		case d.Take != nil:
			err = s.take(ctx, *d.Take, &step)
		}
		if errors.Is(err, ErrUnsigned) {
			step, err = s.abandon(ctx, r, now, err)
		}
		if err != nil {
			return wake, err
		}
		if step.Open == nil {
			err = s.Store.Advance(ctx, step)
		} else {
			err = s.turns.give(ctx, func() error { return s.Store.Advance(ctx, step) })
		}
		if errors.Is(err, ErrStale) {
			continue
		}
		if err != nil {
			return wake, err
		}
		if r.Opening() != step.Rollout.Opening() {
			s.turns.lookAnew()
		}
		s.logStep(r, step)
		s.signals.raise("rollout/" + id)
		s.tellStep(r, step)
		if step.Rollout.Follows && r.StartedAt.IsZero() {
			s.Look() // at who changed meanwhile
		}
		if step.Rollout.State.Terminal() {
			s.tellCancelled(step.Rollout)
			s.held.forget(id)
			s.looked.forget(id)
		}
		if len(step.Create) > 0 || step.Rollout.State.Terminal() && r.RevertOf != "" {
			s.Wake() // for the reverts, or for what waits for this one
		}
		if d.Arrange || step.Rollout.State.Terminal() {
			s.dropCandidates(ctx, step.Rollout)
		}
	}
}

// abandon is the step that ends a rollout which was made while its release was being
// withdrawn. Of another release the error stays.
func (s *Service) abandon(ctx context.Context, r ota.Rollout, now time.Time, unsigned error) (Advance, error) {
	release, err := s.Store.Release(ctx, r.Release)
	if err != nil {
		return Advance{}, err
	}
	next, changed := ota.Abandon(r, release, "", now)
	if release.State != ota.ReleaseWithdrawn || !changed {
		return Advance{}, unsigned
	}
	return Advance{Rollout: next, Now: now}, nil
}

// CancelBatch is how many executions are cancelled in one transaction: others get
// their turn between two.
const CancelBatch = 2000

// cancel cancels some executions of a rollout that can be, and says whether there
// may be more.
func (s *Service) cancel(ctx context.Context, r ota.Rollout, now time.Time) (more bool, err error) {
	done, err := s.Store.Cancel(ctx, r, now, CancelBatch)
	if err != nil {
		return false, err
	}
	if done.Total() == 0 {
		s.tellCancelled(r)
		return false, nil
	}
	if done.Queued > 0 && s.cancelled.of(r.ID).IsZero() {
		s.cancelled.set(r.ID, now.Truncate(time.Microsecond)) // as stores keep it
	}
	s.Look() // at whom an older rollout has again
	s.Log.Info("executions cancelled", "rollout", r.ID, "executions", done.Total())
	s.signals.raise("rollout/" + r.ID)
	if len(done.Begun) > 0 {
		s.notifier.add(telling{what: tellGone, rollout: r, list: done.Begun})
	}
	return true, nil
}

// tellCancelled has those told whose executions waited and were cancelled, once there
// are no more. It is no haste: what they ask for they do not get.
func (s *Service) tellCancelled(r ota.Rollout) {
	since := s.cancelled.of(r.ID)
	if since.IsZero() {
		return
	}
	s.cancelled.forget(r.ID)
	s.notifier.add(telling{what: tellGone, rollout: r, whole: func(e ota.Execution) bool {
		return e.Status == ota.Canceled && e.StartedAt.IsZero() && !e.FinishedAt.Before(since)
	}})
}

func (s *Service) logStep(before ota.Rollout, step Advance) {
	after := step.Rollout
	stage := min(after.Current()+1, len(after.Stages))
	s.Log.Info("rollout moved", "rollout", after.ID, "state", after.State, "stage", stage, "was", before.State, "turns", after.Cursor-before.Cursor, "retries", len(step.Insert), "reason", after.Reason)
}

// take adds to the step the executions that are asked for.
func (s *Service) take(ctx context.Context, t ota.Taking, step *Advance) error {
	r := step.Rollout
	if t.Repeat {
		step.Repeat = &t.Stage
	}
	if t.Retries > 0 {
		var due []ota.Execution
		err := s.Store.Executions(ctx, ExecutionFilter{RolloutID: r.ID, Latest: true, RetryDue: step.Now}, func(e ota.Execution) bool {
			due = append(due, e)
			return len(due) < t.Retries
		})
		if err == nil && r.Kind() == ota.KindInstall {
			_, err = s.signed(ctx, r.Release)
		}
		if err == nil {
			step.Insert, err = s.following(ctx, r, due)
		}
		if err != nil {
			return err
		}
	}
	if t.From == t.To {
		return nil
	}
	step.Open = &Opening{Stage: t.Stage, From: t.From, To: t.To}
	if err := s.turn(ctx, r, step.Open); err != nil {
		return fmt.Errorf("open stage %d: %w", t.Stage+1, err)
	}
	return nil
}

// turn says in an opening which devices keep their turn, and how they go.
func (s *Service) turn(ctx context.Context, r ota.Rollout, o *Opening) error {
	if r.Kind() == ota.KindCommand {
		return nil // it brings no image
	}
	release, err := s.signed(ctx, r.Release)
	if err != nil {
		return err
	}
	if r.RevertOf != "" {
		o.Only, err = s.onlyThose(ctx, r, release.ImageDigest)
		return err
	}
	o.Digest = release.ImageDigest
	w, err := s.waysTo(ctx, release)
	o.Ways = w.all()
	return err
}

// signed returns a release that may be rolled out.
func (s *Service) signed(ctx context.Context, id ota.ReleaseID) (ota.Release, error) {
	release, err := s.Store.Release(ctx, id)
	if err != nil {
		return release, err
	}
	if err := release.Offered(); err != nil {
		return release, fmt.Errorf("%w: %w", ErrUnsigned, err)
	}
	return release, nil
}
