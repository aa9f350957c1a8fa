package ota

import (
	"fmt"
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

// Pause stops new executions at once; those in flight finish.
func Pause(r Rollout, reason string) (Rollout, error) {
	if r.State != RolloutRunning {
		return r, fmt.Errorf("%w: rollout %s is %s, only a RUNNING one can be paused", ErrState, r.ID, r.State)
	}
	r.State, r.Reason = RolloutPaused, reason
	return r, nil
}

// Resume lets a PAUSED rollout go on. Abort rules look only at what finishes
// after it. A failed stage must be dealt with by name: silence never skips it.
func Resume(r Rollout, action ResumeAction, now time.Time) (Rollout, error) {
	if r.State != RolloutPaused {
		return r, fmt.Errorf("%w: rollout %s is %s, only a PAUSED one can be resumed", ErrState, r.ID, r.State)
	}
	r.Stages = append([]Stage(nil), r.Stages...)
	if s := r.current(); s != nil && s.State == StageFailed {
		switch action {
		case ResumeSkip:
			s.State, s.EndedAt = StagePassed, now
		case ResumeRepeat:
			s.State, s.EndedAt, s.SoakingAt = StagePending, time.Time{}, time.Time{}
		default:
			return r, fmt.Errorf("%w: stage %d of rollout %s failed its gate: say repeat or skip", ErrState, r.Current()+1, r.ID)
		}
	}
	r.State, r.Reason, r.ArmedAt = RolloutRunning, "", now
	return r, nil
}

// Abort ends a rollout and keeps what is installed: QUEUED executions are
// cancelled, those in flight finish.
func Abort(r Rollout, reason string, now time.Time) (Rollout, error) {
	if r.State != RolloutRunning && r.State != RolloutPaused {
		return r, fmt.Errorf("%w: rollout %s is %s, only a RUNNING or PAUSED one can be aborted", ErrState, r.ID, r.State)
	}
	r.Stages = append([]Stage(nil), r.Stages...)
	return abort(r, reason, now).Rollout, nil
}
