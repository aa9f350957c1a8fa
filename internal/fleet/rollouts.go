package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/pkg/health"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// RolloutView is a rollout with where its executions stand.
type RolloutView struct {
	ota.Rollout
	Progress ota.Progress
}

// ErrNoDevices: a rollout would reach nobody.
var ErrNoDevices = errors.New("nothing to roll out")

// ErrUntagged: a plan goes by a tag that none of its devices has.
var ErrUntagged = errors.New("the plan does not bind as it is meant")

// MaxSeedBytes is the longest seed of a rollout.
const MaxSeedBytes = 64

// prepare checks a plan and fills in what the operator left to the server. A
// rollout whose State is DRAFT stays one. What it refuses is an ota.FieldError.
func (s *Service) prepare(r ota.Rollout) (ota.Rollout, error) {
	r = r.Ordered()
	if err := r.Validate(); err != nil {
		return r, err
	}
	sel, err := selector.Parse(r.Selector)
	if err == nil {
		err = followable(r, sel)
	}
	if err != nil {
		return r, ota.AtField("select", err)
	}
	for i, stage := range r.Stages {
		if _, err := selector.Parse(stage.Size.Selector); err != nil {
			return r, ota.AtField(fmt.Sprintf("stages[%d].select", i), fmt.Errorf("stage %d: %w", i+1, err))
		}
	}
	if len(r.Seed) > MaxSeedBytes {
		return r, ota.AtField("seed", fmt.Errorf("%w: seed of %d bytes: at most %d", ErrInvalid, len(r.Seed), MaxSeedBytes))
	}
	if r.Seed == "" {
		r.Seed = newID("")
	}
	r.CreatedAt = s.Now()
	if start := r.Terms.Start; start.After(r.CreatedAt.Add(ota.MaxStart)) {
		return r, ota.AtField("start", fmt.Errorf("%w: start at %s: at most %d days ahead", ErrInvalid, start.Format(time.RFC3339), ota.MaxStart/(24*time.Hour)))
	}
	if r.State == ota.RolloutDraft {
		return r, nil
	}
	r.State = ota.RolloutDraft
	return ota.Submit(r)
}

// possible reports what a plan asks for and can not have, as things are, as an
// ota.FieldError.
func (s *Service) possible(ctx context.Context, r ota.Rollout) error {
	if err := s.groupsExist(ctx, r); err != nil {
		return ota.AtField("select", err)
	}
	if err := s.opens(r); err != nil {
		return err
	}
	if r.Kind() == ota.KindCommand {
		return nil
	}
	release, err := s.signed(ctx, r.Release)
	if err != nil {
		return ota.AtField("firmware", err)
	}
	id, trial, err := s.longestTrial(ctx, release)
	if err != nil {
		return ota.AtField("firmware", err)
	}
	if timer := r.Terms.Timers.Health; timer > 0 && trial >= timer {
		err = fmt.Errorf("%w: health timer of %s: %s gives a device %s to prove its health, and it would count as silent before; give more, such as %s, or 0 for no timer",
			ErrInvalid, timer, id, trial, 2*trial)
	}
	return ota.AtField("timers.health", err)
}

// opens reports a window in which no device of the rollout could ever begin.
func (s *Service) opens(r ota.Rollout) error {
	from := s.Now()
	if r.Terms.Start.After(from) {
		from = r.Terms.Start
	}
	return ota.AtField("window", r.Terms.Window.PossibleFrom(from))
}

// longestTrial returns the longest time that a device has to prove its health, of the
// release and of those that it may have to pass through.
func (s *Service) longestTrial(ctx context.Context, release ota.Release) (of ota.ReleaseID, longest time.Duration, err error) {
	w, err := s.waysTo(ctx, release)
	if err != nil {
		return of, 0, err
	}
	installed := []ota.Release{release}
	for _, way := range w.all() {
		for _, id := range way.Via {
			if slices.ContainsFunc(installed, func(r ota.Release) bool { return r.ID() == id }) {
				continue
			}
			r, err := s.Store.Release(ctx, id)
			if err != nil {
				return of, 0, err
			}
			installed = append(installed, r)
		}
	}
	for _, r := range installed {
		c, err := health.Parse(r.Health)
		if err != nil {
			return of, 0, fmt.Errorf("%w: no device takes %s: %w; upload a new version", ErrInvalid, r.ID(), err)
		}
		if c.Deadline > longest {
			of, longest = r.ID(), c.Deadline
		}
	}
	return of, longest, nil
}

// ErrUnsigned: the release is not signed, or withdrawn, so no device would install it.
var ErrUnsigned = errors.New("release is not offered")

// CreateRollout stores a rollout and starts it, unless it is a DRAFT, awaits
// approval or its time. It refuses what PlanRollout does.
func (s *Service) CreateRollout(ctx context.Context, r ota.Rollout) (RolloutView, error) {
	return s.create(ctx, r, s.mayCome)
}

// create is CreateRollout with what is to be asked when its devices are known.
func (s *Service) create(ctx context.Context, r ota.Rollout, may func(context.Context, ota.Rollout, *ota.Line) error) (RolloutView, error) {
	r, err := s.prepare(r)
	if err != nil {
		return RolloutView{}, err
	}
	if err := s.possible(ctx, r); err != nil {
		return RolloutView{}, err
	}
	line, err := s.devicesFor(ctx, r)
	if err == nil {
		err = may(ctx, r, line)
	}
	if err != nil {
		return RolloutView{}, err
	}
	r.ID = newID("r-")
	s.beginning.Store(r.ID, true) // the engine leaves it alone until then
	defer s.Wake()
	defer s.beginning.Delete(r.ID)
	if err := s.Store.CreateRollout(ctx, r); err != nil {
		return RolloutView{}, err
	}
	s.Log.Info("rollout created", "rollout", r.ID, "brings", whatOf(r), "state", r.State, "population", line.Len())
	s.begin(ctx, r, line)
	s.follow(ctx, r)
	return s.Rollout(ctx, r.ID)
}

// devicesFor returns the devices that a plan means, and refuses one that can not be meant with
// these.
func (s *Service) devicesFor(ctx context.Context, r ota.Rollout) (*ota.Line, error) {
	j, err := s.judgeOf(ctx, r)
	if err != nil {
		return nil, err
	}
	_, line, err := s.survey(ctx, j, false)
	if err == nil {
		err = untagged(r, j, line)
	}
	return line, err
}

// begin starts a rollout whose time has come with the devices that were just found
// for it, so that they are judged once. What fails here the engine does later.
func (s *Service) begin(ctx context.Context, r ota.Rollout, line *ota.Line) {
	now := s.Now()
	// That of a continuous rollout has to follow first: then nobody who changes
	// since is missed.
	if d := ota.Plan(r, ota.Progress{}, now); !d.Arrange {
		return
	}
	begun, err := s.lineUp(ctx, r, line, now)
	if err == nil {
		err = s.Store.Advance(ctx, Advance{Rollout: begun, Now: now})
	}
	if errors.Is(err, ErrStale) { // another replica was faster
		if r, err = s.Store.Rollout(ctx, r.ID); err == nil {
			s.dropCandidates(ctx, r)
		}
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("the engine will start the rollout later", "rollout", r.ID, "error", err)
	}
}

// Rollout returns one rollout, with counts of the same moment: had it moved
// between the two readings, it would seem to have outrun its stages.
func (s *Service) Rollout(ctx context.Context, id string) (RolloutView, error) {
	r, err := s.Store.Rollout(ctx, id)
	for err == nil {
		var p ota.Progress
		if p, err = s.Store.Progress(ctx, r, s.Now()); err != nil {
			break
		}
		var again ota.Rollout
		if again, err = s.Store.Rollout(ctx, id); err != nil {
			break
		}
		if again.Revision == r.Revision {
			return RolloutView{Rollout: r, Progress: p}, nil
		}
		r = again
	}
	return RolloutView{}, err
}

// Rollouts returns those of the kind, all if it is empty, newest first.
func (s *Service) Rollouts(ctx context.Context, kind ota.Kind) ([]RolloutView, error) {
	all, err := s.Store.Rollouts(ctx)
	if err != nil {
		return nil, err
	}
	var views []RolloutView
	for _, r := range all {
		if kind != "" && r.Kind() != kind {
			continue
		}
		v, err := s.Rollout(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		views = append(views, v)
	}
	return views, nil
}

// SubmitRollout lets a DRAFT start, or await its approval, unless another rollout has
// come that outranks it.
func (s *Service) SubmitRollout(ctx context.Context, id string) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) {
		next, err := ota.Submit(r)
		if err == nil {
			err = s.mayComeStill(ctx, next)
		}
		return next, err
	})
}

// ApproveRollout approves a rollout that awaits it, unless another one has come that
// outranks it; or with a stage, counted from 1, that stage. ErrStale when its plan is not
// that of the revision, see ota.Rollout.PlanRevision; 0 approves any.
func (s *Service) ApproveRollout(ctx context.Context, id string, stage int, revision int64) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) {
		if at := r.PlanRevision(); revision != 0 && revision != at {
			return r, fmt.Errorf("the plan of rollout %s is at revision %d, not %d: look at it again, then approve that: %w", id, at, revision, ErrStale)
		}
		if stage != 0 {
			return ota.ApproveStage(r, stage, s.Now())
		}
		next, err := ota.Approve(r, s.Now())
		if err == nil {
			err = s.mayComeStill(ctx, next)
		}
		return next, err
	})
}

// EditRollout replaces the plan of a rollout that has not begun; what was approved
// is to be approved again. It refuses what PlanRollout does, but for the devices.
func (s *Service) EditRollout(ctx context.Context, id string, plan ota.Rollout) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) {
		plan.Release, plan.Command = r.Release, r.Command
		if plan.Seed == "" {
			plan.Seed = r.Seed
		}
		plan, err := s.prepare(plan)
		if err == nil {
			err = s.possible(ctx, plan)
		}
		if err != nil {
			return r, err
		}
		next, err := ota.Edit(r, plan)
		if err != nil {
			return r, err
		}
		line, err := s.devicesFor(ctx, next)
		if err == nil {
			err = s.mayCome(ctx, next, line)
		}
		return next, err
	})
}

// PauseRollout stops new executions at once. A policy overrides that of the plan.
func (s *Service) PauseRollout(ctx context.Context, id, reason string, policy ota.PausePolicy) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) { return ota.Pause(r, reason, policy) })
}

// ResumeRollout lets a paused rollout go on.
func (s *Service) ResumeRollout(ctx context.Context, id string, failed ota.ResumeAction) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) { return ota.Resume(r, failed, s.Now()) })
}

// AbortRollout cancels what can be cancelled and ends the rollout when what is in
// flight has finished: at once when nothing is. A policy overrides that of the
// plan.
func (s *Service) AbortRollout(ctx context.Context, id, reason string, policy ota.AbortPolicy) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) {
		next, err := ota.Abort(r, reason, policy, s.Now())
		if err != nil || !r.Reverting {
			return next, err
		}
		p, err := s.Store.Progress(ctx, r, s.Now())
		if err == nil {
			err = ota.CalledOff(r, p.Reverts)
		}
		return next, err
	})
}

// FinishRollout ends a continuous rollout: what is queued is cancelled, what is in
// progress finishes.
func (s *Service) FinishRollout(ctx context.Context, id, reason string) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) { return ota.Finish(r, reason) })
}

// StopRollouts is the emergency stop: it pauses every rollout that starts devices or
// has some at work, with those held before they install, and returns those that it
// stopped. One that is paused already is held; one that is ABORTING cancels by itself
// what has not installed. One that can not be stopped does not keep it from the others. It looks again
// until there is no new one: the engine may just have made a revert.
func (s *Service) StopRollouts(ctx context.Context, reason string) (stopped []string, err error) {
	var failed []error
	tried := map[string]bool{}
	for {
		all, err := s.Store.Rollouts(ctx)
		if err != nil {
			return stopped, errors.Join(append(failed, err)...)
		}
		more := false
		for _, r := range all {
			if tried[r.ID] || !s.stoppable(ctx, r) {
				continue
			}
			tried[r.ID], more = true, true
			switch _, err := s.PauseRollout(ctx, r.ID, reason, ota.PauseHoldBeforeInstall); {
			case err == nil:
				stopped = append(stopped, r.ID)
			case !errors.Is(err, ota.ErrState): // it ended by itself
				failed = append(failed, fmt.Errorf("stop rollout %s: %w", r.ID, err))
			}
		}
		if !more {
			return stopped, errors.Join(failed...)
		}
	}
}

// stoppable reports whether there is anything to stop in a rollout: how many are at work
// is asked only where that depends on it, and where it can not be read there may be.
func (s *Service) stoppable(ctx context.Context, r ota.Rollout) bool {
	if r.Stoppable(0) || !r.Stoppable(1) {
		return r.Stoppable(0)
	}
	p, err := s.Store.Progress(ctx, r, s.Now())
	return err != nil || r.Stoppable(p.Total().InProgress)
}

// follow does what an operator's act asks for besides its record. What fails
// here the engine does later.
func (s *Service) follow(ctx context.Context, r ota.Rollout) {
	defer s.Wake()
	if r.State.Ending() || r.State == ota.RolloutScheduled {
		if _, err := s.advance(ctx, r.ID); err != nil && ctx.Err() == nil {
			s.Log.Warn("the engine will move the rollout later", "rollout", r.ID, "state", r.State, "error", err)
		}
	}
}

// operate applies an operator's act, again if the engine was faster.
func (s *Service) operate(ctx context.Context, id string, act func(ota.Rollout) (ota.Rollout, error)) (RolloutView, error) {
	for {
		r, err := s.Store.Rollout(ctx, id)
		if err != nil {
			return RolloutView{}, err
		}
		next, err := act(r)
		if err != nil {
			return RolloutView{}, err
		}
		step := Advance{Rollout: next, Now: s.Now()}
		err = s.Store.Advance(ctx, step)
		if errors.Is(err, ErrStale) {
			continue
		}
		if err != nil {
			return RolloutView{}, err
		}
		s.Log.Info("rollout changed by an operator", "rollout", id, "state", next.State, "reason", next.Reason)
		s.signals.raise("rollout/" + id)
		s.tellStep(r, step)
		s.follow(ctx, next)
		s.tellReleased(r, next)
		return s.Rollout(ctx, id)
	}
}
