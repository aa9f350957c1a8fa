package ota

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrState is returned when an operator's act does not fit the rollout's state.
var ErrState = fmt.Errorf("%w state", ErrInvalid)

// ResumeAction says what a resumed rollout does about its failed stage.
type ResumeAction string

// ResumeRepeat opens the failed stage once more and gives its unsuccessful
// devices another attempt; ResumeSkip passes it by the operator's word.
const (
	ResumeRepeat ResumeAction = "repeat"
	ResumeSkip   ResumeAction = "skip"
)

// Submit makes a DRAFT wait for its approval, or for its time.
func Submit(r Rollout) (Rollout, error) {
	if r.State != RolloutDraft {
		return r, wrongState(r, "only a DRAFT can be submitted")
	}
	r.State = RolloutScheduled
	if r.Terms.Approval {
		r.State = RolloutAwaitingApproval
	}
	return r, nil
}

// Approve lets a rollout that awaits it go on.
func Approve(r Rollout, now time.Time) (Rollout, error) {
	if r.State != RolloutAwaitingApproval {
		return r, wrongState(r, "only one that is AWAITING_APPROVAL can be approved")
	}
	r.State, r.ApprovedAt = RolloutScheduled, now
	return r, nil
}

// ApproveStage lets a PENDING stage, counted from 1, open when its turn comes.
func ApproveStage(r Rollout, stage int, now time.Time) (Rollout, error) {
	if r.State.Terminal() || r.Ending() || r.Reverting {
		return r, wrongState(r, "nothing of it is left to approve")
	}
	if stage < 1 || stage > len(r.Stages) {
		return r, invalid("stage %d of rollout %s: it has %d", stage, r.ID, len(r.Stages))
	}
	r.Stages = append([]Stage(nil), r.Stages...)
	s := &r.Stages[stage-1]
	if s.State != StagePending || !s.Approval {
		return r, fmt.Errorf("%w: stage %d of rollout %s awaits no approval", ErrState, stage, r.ID)
	}
	s.ApprovedAt = now
	return r, nil
}

// Edit replaces the plan of a rollout that has not begun: what stands in plan
// but its release or command. Whatever was approved is to be approved again.
func Edit(r, plan Rollout) (Rollout, error) {
	if r.State.Begun() {
		return r, wrongState(r, "only one that has not begun can be edited")
	}
	if r.RevertOf != "" {
		return r, fmt.Errorf("%w: rollout %s reverts %s and has no plan of its own", ErrState, r.ID, r.RevertOf)
	}
	plan.Release, plan.Command = r.Release, r.Command
	plan = plan.Ordered()
	if err := plan.Validate(); err != nil {
		return r, err
	}
	r.Selector, r.Seed, r.Abort, r.Priority = plan.Selector, plan.Seed, plan.Abort, plan.Priority
	r.InProgressTimeout, r.Terms, r.Edits = plan.InProgressTimeout, plan.Terms, r.Edits+1
	r.Stages = append([]Stage(nil), plan.Stages...)
	for i := range r.Stages {
		r.Stages[i].ApprovedAt = time.Time{}
	}
	r.ApprovedAt, r.Follows = time.Time{}, false
	if r.State != RolloutDraft {
		r.State = RolloutDraft
		return Submit(r)
	}
	return r, nil
}

func wrongState(r Rollout, rule string) error {
	return fmt.Errorf("%w: rollout %s is %s: %s", ErrState, r.ID, r.State, rule)
}

// Pause stops new executions at once; the policy, which holds for this pause only, else
// Terms.OnPause, says what becomes of those in flight:
//
//	state                    policy       next
//	RUNNING                  any          PAUSED
//	SCHEDULED                any          PAUSED: it does not start
//	ROLLING_BACK             any          PAUSED: it makes no reverts; those that it has made are paused by themselves
//	FINISHING                hold         PAUSED, and Finishes: nothing of it starts anyway
//	PAUSED, let-finish       hold, named  PAUSED, and Holds
//	others                   -            refused; what is ABORTING is cancelled before it installs
func Pause(r Rollout, reason string, policy PausePolicy) (Rollout, error) {
	hold := cmp.Or(policy, r.Terms.OnPause) == PauseHoldBeforeInstall
	switch {
	case r.Holds():
		return r, wrongState(r, "devices at work are asked to hold already")
	case r.State == RolloutPaused && !hold:
		return r, wrongState(r, "nothing of it starts; to have devices at work wait too, pause it with hold (--hold)")
	case r.State == RolloutFinishing && !hold:
		return r, wrongState(r, "nothing of it starts any more; to have devices at work wait too, pause it with hold (--hold)")
	case !slices.Contains([]RolloutState{RolloutRunning, RolloutScheduled, RolloutRollingBack, RolloutFinishing, RolloutPaused}, r.State):
		return r, wrongState(r, "only one that is RUNNING, SCHEDULED, FINISHING, ROLLING_BACK or PAUSED can be paused")
	}
	if err := policy.validate(); err != nil {
		return r, err
	}
	switch r.State {
	case RolloutPaused: // why it stands is still to be seen to
		reason = r.Reason + heldReason + reason
	case RolloutFinishing:
		reason += finishesReason + r.Reason
	}
	r.State, r.Reason, r.Idle, r.Pause = RolloutPaused, reason, false, policy
	return r, nil
}

// What stands in the reason of a rollout: between why it is PAUSED and why it was held
// besides; between why it is held and why it Finishes.
const (
	heldReason     = "; held: "
	finishesReason = "; resumed, it goes on to finish: "
)

// Stoppable reports whether an emergency stop, which pauses with hold, has anything to
// stop in a rollout of which so many devices are at work.
func (r Rollout) Stoppable(atWork int) bool {
	switch r.State {
	case RolloutRunning, RolloutScheduled, RolloutRollingBack:
		return true
	case RolloutPaused, RolloutFinishing:
		return atWork > 0 && !r.Holds()
	}
	return false
}

// Finishes reports whether a rollout is FINISHING, or PAUSED in it and goes back to it.
// A continuous one follows until it is finished, so that is how it is told.
func (r Rollout) Finishes() bool {
	paused := r.State == RolloutPaused && r.Terms.Continuous && !r.Follows && !r.Reverting && !r.StartedAt.IsZero()
	return r.State == RolloutFinishing || paused
}

// Ending reports whether the rollout was aborted or finished and has not ended yet, be it
// that a pause with hold keeps it from finishing.
func (r Rollout) Ending() bool { return r.State.Ending() || r.Finishes() }

// Resume lets a PAUSED rollout go on. Abort rules look only at what finishes
// after it. A failed stage must be dealt with by name: silence never skips it.
func Resume(r Rollout, action ResumeAction, now time.Time) (Rollout, error) {
	if r.State != RolloutPaused {
		return r, wrongState(r, "only a PAUSED one can be resumed")
	}
	was := r
	r.Pause = ""
	if r.Reverting {
		r.State = RolloutRollingBack
		return r, nil
	}
	if r.Finishes() {
		r.State = RolloutFinishing
		_, r.Reason, _ = strings.Cut(r.Reason, finishesReason)
		return r, nil
	}
	if r.StartedAt.IsZero() { // it had not begun
		r.State, r.Reason = RolloutScheduled, ""
		return r, nil
	}
	r.Stages = append([]Stage(nil), r.Stages...)
	if s := r.current(); s != nil && s.State == StageFailed {
		switch action {
		case ResumeSkip:
			s.State, s.EndedAt, s.SkippedAt = StagePassed, now, now
			if r.Terms.Continuous && r.Current() == len(r.Stages) { // it goes on
				s.State, s.EndedAt = StageOpen, time.Time{}
			}
		case ResumeRepeat:
			s.State, s.EndedAt, s.SoakingAt = StagePending, time.Time{}, time.Time{}
		default:
			return was, fmt.Errorf("%w: stage %d of rollout %s failed its gate: say repeat or skip", ErrState, r.Current()+1, r.ID)
		}
	}
	r.State, r.Reason, r.ArmedAt = RolloutRunning, "", now
	return r, nil
}

// Abort ends a rollout: executions are cancelled as Cancel does it, the others
// finish. The policy, else Terms.OnAbort, which stays as it was written, says whether
// devices keep what is installed; Reverting has which it is. One that is COMPLETED or ABORTED can be aborted by AbortRevert alone: then
// devices go back. One that goes back and is PAUSED is called off by AbortKeep alone, see
// CalledOff.
func Abort(r Rollout, reason string, policy AbortPolicy, now time.Time) (Rollout, error) {
	if rule := r.unabortable(policy); rule != "" {
		return r, wrongState(r, rule)
	}
	if policy == AbortRevert && r.Kind() == KindCommand {
		return r, fmt.Errorf("%w: rollout %s is of a command, which installs nothing that could be reverted: abort it without", ErrState, r.ID)
	}
	if policy == AbortRevert && r.RevertOf != "" {
		return r, fmt.Errorf("%w: rollout %s reverts %s: what it brought back stays", ErrState, r.ID, r.RevertOf)
	}
	if err := policy.validate(); err != nil {
		return r, err
	}
	r.Pause = ""
	if r.State.Terminal() { // its stages stay as they ended
		if r.State == RolloutAborted && r.Reason != "" {
			reason += abortedReason + r.Reason
		}
		r.State, r.Reason, r.Reverting, r.EndedAt = RolloutRollingBack, reason, true, time.Time{}
		return r, nil
	}
	r.Stages = append([]Stage(nil), r.Stages...)
	return abort(r, reason, cmp.Or(policy, r.Terms.OnAbort), now).Rollout, nil
}

// abortedReason stands in the reason of a rollout that is reverted after its abort,
// between why it is reverted and why it was aborted.
const abortedReason = "; it was aborted: "

// CalledOff reports why a rollout that is PAUSED on its way to ROLLED_BACK can not be
// aborted by AbortKeep: the rollouts that bring its devices back are made, and end by
// themselves. If it ended without them, a later revert would find them made, and bring back
// nobody whom they had left.
func CalledOff(r Rollout, reverts []Revert) error {
	if r.State != RolloutPaused || !r.Reverting || len(reverts) == 0 {
		return nil
	}
	var at []string
	for _, v := range reverts {
		at = append(at, fmt.Sprintf("%s, %s", v.ID, v.State))
	}
	return wrongState(r, "its devices go back already, by "+strings.Join(at, "; ")+": to have devices stay, abort those of them that go on, then resume this one, which ends it")
}

// unabortable says why the state of the rollout does not let it be aborted; empty: it
// does.
func (r Rollout) unabortable(policy AbortPolicy) string {
	switch {
	case r.State == RolloutRolledBack:
		return "its devices were sent back already"
	case r.State == RolloutRollingBack:
		return "its devices go back already"
	case r.State == RolloutPaused && r.Reverting && policy != AbortKeep:
		return "its devices are to go back already: 'otactl rollout resume' lets them, and to have them stay it is aborted with keep (--keep)"
	case r.State == RolloutAborting:
		return "it is being aborted already"
	case r.State.Terminal() && (r.Kind() == KindCommand || r.RevertOf != ""):
		return "it has ended, and nothing of it can be reverted"
	case r.State.Terminal() && policy != AbortRevert:
		return "it can not be aborted; 'otactl rollout revert' brings its devices back"
	}
	return ""
}

// Holds reports whether devices in flight are asked to stay as they are.
func (r Rollout) Holds() bool {
	return r.State == RolloutPaused && cmp.Or(r.Pause, r.Terms.OnPause) == PauseHoldBeforeInstall
}
