package ota

import (
	"fmt"
	"slices"
	"time"
)

// A continuous rollout (Terms.Continuous) follows its selector: a device that
// comes to match joins the end of the line and belongs to the last stage, one that
// matches no longer leaves. Its last stage stays OPEN, and it ends by Finish, by an
// abort, or when a newer one of the same firmware and selector takes its place.

// LeftReason is why an execution was CANCELED whose device left a continuous
// rollout before it had begun.
const LeftReason = "the device left: the rollout's selector does not match it any more"

// Left reports whether it was CANCELED for that.
func (e Execution) Left() bool { return e.Status == Canceled && e.Details[DetailReason] == LeftReason }

func (r Rollout) validateContinuous() error {
	if !r.Terms.Continuous {
		return nil
	}
	if r.Kind() == KindCommand {
		return AtField("continuous", invalid("a command can not be continuous: run it again when devices have joined"))
	}
	if i := len(r.Stages) - 1; r.Stages[i].Size.Percent != 100 {
		return AtField(fmt.Sprintf("stages[%d]", i), invalid("the last stage of a continuous rollout is 100%%, not %s: devices that join belong to it; add a stage of 100%%", r.Stages[i].Size))
	}
	for i, s := range r.Stages {
		if s.Size.Selector != "" {
			return AtField(fmt.Sprintf("stages[%d].select", i), invalid("stage %d is a selector, and devices that join a continuous rollout belong to its last stage: write numbers or percentages, or make a rollout of its own for these devices", i+1))
		}
	}
	return nil
}

// Finish ends a continuous rollout: nothing starts any more, what is QUEUED is
// cancelled, and what is in progress finishes.
func Finish(r Rollout, reason string) (Rollout, error) {
	switch {
	case !r.Terms.Continuous:
		return r, wrongState(r, "it is not continuous and ends by itself; to end it now, abort it")
	case r.State == RolloutPaused && r.Finishes():
		return r, wrongState(r, "it is being finished already; resume it, and it goes on to finish")
	case r.State != RolloutRunning && r.State != RolloutPaused || r.Reverting:
		return r, wrongState(r, "only one that is RUNNING or PAUSED can be finished")
	case r.StartedAt.IsZero():
		return r, wrongState(r, "it has not begun; abort it")
	}
	r.State, r.Reason, r.Follows, r.Idle, r.Pause = RolloutFinishing, reason, false, false, ""
	return r, nil
}

// MakeWay finishes a continuous rollout because r has begun and TakesPlaceOf it. Where
// devices at work are held, they stay held: nobody has said that they may go on.
func MakeWay(o, r Rollout) (Rollout, error) {
	next, err := Finish(o, fmt.Sprintf("rollout %s has taken its place", r.ID))
	if err == nil && o.Holds() {
		return Pause(next, o.Reason, PauseHoldBeforeInstall)
	}
	return next, err
}

// TakesPlaceOf reports whether o, which is continuous, is to be finished because r
// has begun: r is continuous, supersedes it and means the same devices.
func (r Rollout) TakesPlaceOf(o Rollout) bool {
	return r.Terms.Continuous && o.Terms.Continuous && r.Selector == o.Selector && r.Supersedes(o) &&
		(o.State == RolloutRunning || o.State == RolloutPaused) && !o.Reverting && !o.Finishes() && !o.StartedAt.IsZero()
}

// following reports whether the open stage is the last one of a continuous rollout:
// it waits for devices that join, and does not pass by itself.
func (r Rollout) following() bool {
	i := r.Current()
	return r.Terms.Continuous && i == len(r.Stages)-1 && r.Stages[i].State == StageOpen
}

// judged is what the gate of the last stage of a continuous rollout is held against.
// An operator who has skipped a failure has settled what was before: then only what
// finished since counts.
func (r Rollout) judged(i int, p Progress) Counts {
	if !r.Stages[i].SkippedAt.IsZero() {
		return p.Armed
	}
	return p.stage(i)
}

// planFollowing judges the last stage of a continuous rollout whenever nothing of
// the rollout is left to wait for.
func planFollowing(r Rollout, p Progress, idle bool, now time.Time) Decision {
	if r.waiting() > 0 || !p.Total().Settled() || p.Health.Watched > 0 || p.Health.Unmatched > 0 {
		return Decision{Rollout: r, Changed: idle}
	}
	i := r.Current()
	judged := r.judged(i, p)
	if judged.Sample() > 0 && !r.Stages[i].Gate.met(judged) {
		return failedGate(r, i, judged, now)
	}
	r.Idle = true
	return Decision{Rollout: r, Changed: !idle}
}

// closeStage ends the stage that is open when a rollout is finished: it passes if
// every device had its turn, and its gate is met or there is nothing to judge.
func closeStage(r *Rollout, p Progress, now time.Time) {
	s := r.current()
	if s == nil || s.State != StageOpen && s.State != StageSoaking {
		return
	}
	c := r.judged(r.Current(), p)
	s.State, s.EndedAt = StageFailed, now
	if r.Cursor >= s.Target && (c.Sample() == 0 || s.Gate.met(c)) {
		s.State = StagePassed
	}
}

// Belonging is how a device stands to a continuous rollout that has begun.
type Belonging struct {
	Meant    bool // the selector matches it
	Eligible bool // it may be given the release, if it is meant
	InLine   bool // it has or had a place in the line,
	Turn     int  // this one
	Left     bool // which it has left
	Newest   *Execution
	// Superseded: a rollout that supersedes this one has work for it, or had.
	Superseded bool
}

// Move is what becomes of a device's place in the line of a continuous rollout.
type Move string

// MoveStay leaves it. MoveJoin gives it a place at the end, unless it has one that
// is still to come or has had an execution. MoveLeave keeps it from getting its
// turn. MoveAwait moves nobody: the device is to be looked at again when that rollout
// ceases to follow, since an older one leaves it alone until then. MoveLater moves
// nobody either: the rollout is being arranged, and the device is to be looked at again
// when it has begun.
const (
	MoveStay  Move = ""
	MoveJoin  Move = "join"
	MoveLeave Move = "leave"
	MoveAwait Move = "await"
	MoveLater Move = "later"
)

// MoveOf says what a continuous rollout makes of a device that was looked at, and
// its newest execution, if that changes:
//
//	meant  eligible  its place              its execution                        move
//	no     -         none                   -                                    stay
//	no     -         in line                QUEUED                               leave, CANCELED
//	no     -         any                    is to be tried again                 leave, it is not
//	no     -         in line                other                                leave
//	yes    no        -                      -                                    stay
//	yes    yes       none, left, or passed  none                                 join
//	yes    yes       to come                none                                 stay
//	yes    yes       left                   CANCELED when it left                join, next attempt
//	yes    yes       left                   its retry was taken away             join, next attempt
//	yes    yes       left                   other                                join
//	yes    yes       in line                REJECTED: no way led on              next attempt
//	yes    yes       in line                other                                stay
//
// Attempts go on from where they were: leaving and coming back gives no fresh ones,
// and MaxAttempts bounds a device that keeps doing it.
func MoveOf(r Rollout, b Belonging, now time.Time) (Move, *Execution) {
	switch {
	case !b.Meant:
		return b.leave(now)
	case !b.Eligible || b.Superseded:
		return MoveStay, nil
	case b.Newest == nil && (!b.InLine || b.Left || b.Turn < r.Cursor):
		return MoveJoin, nil
	case b.Newest == nil:
		return MoveStay, nil
	case !b.Left && b.Newest.Stranded(): // it is eligible: a way was opened
		return MoveStay, r.again(*b.Newest, now)
	case !b.Left:
		return MoveStay, nil
	}
	return MoveJoin, r.again(*b.Newest, now)
}

func (b Belonging) leave(now time.Time) (Move, *Execution) {
	move := MoveStay
	if b.InLine && !b.Left {
		move = MoveLeave
	}
	if b.Newest == nil {
		return move, nil
	}
	e := *b.Newest
	switch {
	case e.Status == Queued:
		e = ended(e, Canceled, LeftReason, now)
	case !e.RetryAt.IsZero():
		e.RetryAt = time.Time{}
	default:
		return move, nil
	}
	return move, &e
}

// again gives a device that has come back the attempt that it lost by leaving, or by
// being deleted; and one to which a way was opened that which it could not be offered.
func (r Rollout) again(e Execution, now time.Time) *Execution {
	if !e.Status.Terminal() || !e.RetryAt.IsZero() {
		return nil
	}
	deleted := e.Status == Removed && e.Details[DetailReason] == DeletedReason
	switch {
	case (e.Left() || deleted || e.Stranded()) && e.Attempt < MaxAttempts:
		e.RetryAt = now
	case e.Class == ClassUnderway:
		e.RetryAt = now
	case e.Class == ClassDrifted && r.Terms.Drift != DriftRecord:
		e.RetryAt = r.Terms.Retry.next(e, now)
	case slices.Contains(Unsuccessful, e.Class) && e.Class != ClassDrifted:
		if e.RetryAt = r.Terms.Retry.after(e); !e.RetryAt.IsZero() && e.RetryAt.Before(now) {
			e.RetryAt = now
		}
	}
	if e.RetryAt.IsZero() {
		return nil
	}
	return &e
}

// Joined returns a continuous rollout with so many turns more at the end of its
// line, of which so many are of devices that it did not have before.
func Joined(r Rollout, turns, devices int) Rollout {
	r.Stages = slices.Clone(r.Stages)
	r.Stages[len(r.Stages)-1].Target += turns
	r.Population += devices
	r.Idle = false
	return r
}
