package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

func (s *Sim) create() {
	r := s.plan()
	if r.Terms.Continuous { // somebody changes while it is arranged
		for range s.rng.IntN(4) {
			s.change()
		}
	}
	s.operate(strings.TrimSpace("create "+string(r.Kind())+" "+r.Release.String()), func(ctx context.Context, f *fleet.Service) error {
		_, err := f.CreateRollout(ctx, r)
		return err
	})
}

// think has the operator roll out another release of a firmware that is under way, and
// think better of it: what made way is the older rollout's again.
func (s *Sim) think() {
	for _, r := range s.rollouts() {
		if r.Kind() != ota.KindInstall || r.State != ota.RolloutRunning || r.RevertOf != "" {
			continue
		}
		newer := ota.Rollout{
			Release: pick(s, s.releases...).id, Priority: 2, Seed: fmt.Sprint("think ", s.rng.IntN(1000)),
			Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}}, Terms: ota.Terms{Continuous: s.one(3)},
		}
		newer.Release.Name = r.Release.Name
		s.operate("create "+newer.Release.String()+" instead of "+r.ID, func(ctx context.Context, f *fleet.Service) error {
			_, err := f.CreateRollout(ctx, newer)
			return err
		})
		s.after(s.upTo(2*time.Minute), func() { s.thinkBetter(newer.Seed) })
		return
	}
}

func (s *Sim) thinkBetter(seed string) {
	for _, r := range s.rollouts() {
		if r.Seed != seed {
			continue
		}
		s.operate("abort "+r.ID+" again", func(ctx context.Context, f *fleet.Service) error {
			_, err := f.AbortRollout(ctx, r.ID, "thought better", ota.AbortKeep)
			return err
		})
	}
}

// withdraw takes a release out of use, be it one that devices are about to pass through.
func (s *Sim) withdraw() {
	id, policy := pick(s, s.releases...).id, pick(s, "", ota.AbortKeep, ota.AbortRevert)
	if on := s.onTheWay(); len(on) > 0 && !s.one(3) {
		id = pick(s, on...)
	}
	s.operate("withdraw "+id.String(), func(ctx context.Context, f *fleet.Service) error {
		_, err := f.WithdrawRelease(ctx, id, "it is bad", policy, nil)
		return err
	})
}

// onTheWay are the releases that have to run before those of rollouts that go on.
func (s *Sim) onTheWay() (ids []ota.ReleaseID) {
	for _, r := range s.rollouts() {
		if needs := s.release(digestOf(r.Release)).needs; needs != (ota.ReleaseID{}) && !r.State.Terminal() {
			ids = append(ids, needs)
		}
	}
	return ids
}

// operate is an act of an operator. What is refused is no fault.
func (s *Sim) operate(what string, do func(ctx context.Context, f *fleet.Service) error) {
	s.log("operator: %s", what)
	s.request("op "+what, func(ctx context.Context, f *fleet.Service) (ota.Execution, error) {
		return ota.Execution{}, do(ctx, f)
	}, func(_ ota.Execution, err error) {
		if err != nil {
			s.log("operator: %s: %v", what, err)
		}
		for _, fine := range []error{nil, errStore, context.Canceled, ota.ErrInvalid, fleet.ErrNoDevices, fleet.ErrUnsigned, fleet.ErrOutranked, fleet.ErrNotFound} {
			if errors.Is(err, fine) {
				return
			}
		}
		s.check.say("operator: %s: %v", what, err)
	})
}

// operator does one thing that operators do.
func (s *Sim) operator() {
	list := s.rollouts()
	if len(list) == 0 {
		return
	}
	r := pick(s, list...)
	act := func(what string, do func(ctx context.Context, f *fleet.Service) error) { s.operate(what+" "+r.ID, do) }
	reason := fmt.Sprintf("reason %d", s.rng.IntN(1000))
	switch s.rng.IntN(19) {
	case 17, 18:
		ended := pick(s, ota.RolloutCompleted, ota.RolloutAborted)
		for _, done := range list {
			if done.State == ended {
				r = done
			}
		}
		act("abort revert", func(ctx context.Context, f *fleet.Service) error {
			_, err := f.AbortRollout(ctx, r.ID, reason, ota.AbortRevert)
			return err
		})
	case 16:
		act("finish", func(ctx context.Context, f *fleet.Service) error {
			_, err := f.FinishRollout(ctx, r.ID, reason)
			return err
		})
	case 0, 1:
		policy := pick(s, "", ota.AbortKeep, ota.AbortRevert, ota.AbortRevert)
		act(strings.TrimSpace("abort "+string(policy)), func(ctx context.Context, f *fleet.Service) error {
			_, err := f.AbortRollout(ctx, r.ID, reason, policy)
			return err
		})
	case 2:
		act("stop all", func(ctx context.Context, f *fleet.Service) error { _, err := f.StopRollouts(ctx, reason); return err })
	case 3, 4, 5:
		policy := pick(s, "", ota.PauseLetFinish, ota.PauseHoldBeforeInstall)
		act("pause", func(ctx context.Context, f *fleet.Service) error {
			_, err := f.PauseRollout(ctx, r.ID, reason, policy)
			return err
		})
		if s.one(2) {
			s.after(s.upTo(time.Hour), func() { s.resume(r.ID) })
		}
	case 6, 7, 8:
		s.resume(r.ID)
	case 9:
		plan := s.plan()
		plan.State = r.State
		act("edit", func(ctx context.Context, f *fleet.Service) error {
			_, err := f.EditRollout(ctx, r.ID, plan)
			return err
		})
	default:
		s.approve(r)
	}
}

func (s *Sim) resume(id string) {
	action := pick(s, "", ota.ResumeRepeat, ota.ResumeRepeat, ota.ResumeSkip)
	s.operate(strings.TrimSpace("resume "+string(action)+" "+id), func(ctx context.Context, f *fleet.Service) error {
		_, err := f.ResumeRollout(ctx, id, action)
		return err
	})
}

// approve does what a rollout waits for an operator to do.
func (s *Sim) approve(r ota.Rollout) {
	switch {
	case r.State == ota.RolloutDraft:
		s.operate("submit "+r.ID, func(ctx context.Context, f *fleet.Service) error {
			_, err := f.SubmitRollout(ctx, r.ID)
			return s.orDrop(ctx, f, r, err)
		})
	case r.State == ota.RolloutAwaitingApproval:
		s.operate("approve "+r.ID, func(ctx context.Context, f *fleet.Service) error {
			_, err := f.ApproveRollout(ctx, r.ID, 0, 0)
			return s.orDrop(ctx, f, r, err)
		})
	case r.State == ota.RolloutRunning:
		for i, stage := range r.Stages {
			if stage.State == ota.StagePending && stage.Approval && stage.ApprovedAt.IsZero() {
				s.operate(fmt.Sprintf("approve stage %d of %s", i+1, r.ID), func(ctx context.Context, f *fleet.Service) error {
					_, err := f.ApproveRollout(ctx, r.ID, i+1, 0)
					return err
				})
				return
			}
		}
	}
}

// orDrop has the operator give up a rollout that was refused because another outranks
// it, once all is calm: that one may be paused for ever.
func (s *Sim) orDrop(ctx context.Context, f *fleet.Service, r ota.Rollout, err error) error {
	if !s.calm || !errors.Is(err, fleet.ErrOutranked) {
		return err
	}
	_, err = f.AbortRollout(ctx, r.ID, "outranked", ota.AbortKeep)
	return err
}
