package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// given says what the newest attempt of a rollout on the device waits for, or how it
// ended.
func (w inquiry) given(r ota.Rollout, e ota.Execution) Because {
	switch {
	case e.Status == ota.InProgress:
		return w.atWork(r, e)
	case e.Status == ota.Queued:
		return w.queued(r, e)
	case !e.RetryAt.IsZero():
		return w.again(r, e)
	case e.Class == ota.ClassNone:
		return w.taken(r, e)
	}
	return w.finished(r, e)
}

// atWork says at which step the device is.
func (w inquiry) atWork(r ota.Rollout, e ota.Execution) Because {
	b := Because{Cause: CauseAtWork, Since: e.StepAt, Until: e.Expires, Why: fmt.Sprintf("at step %s since %s", stepText(e), e.StepAt.Format(time.RFC3339))}
	switch {
	case e.Hold && !e.Step().Activated():
		b.Cause, b.Why = CauseHeld, fmt.Sprintf("at step %s; the rollout is paused, and it waits before it activates: %s", stepText(e), r.Reason)
	case w.device.Reachability == Offline:
		b.Cause = CauseAtWorkOffline
		b.Why += fmt.Sprintf("; the device is offline since %s: %s", w.device.Connection.Since.Format(time.RFC3339), w.device.Connection.Reason)
	case e.Step() == ota.StepWaiting:
		b.Cause = waitsFor(e)
	}
	if b.Cause == CauseAtWorkOffline && e.Expires.IsZero() {
		b.Cause = CauseLost
	}
	return b
}

// waitsFor is what a device says that it waits for, by the words of our agent.
func waitsFor(e ota.Execution) Cause {
	switch why := e.Reason(); {
	case strings.HasPrefix(why, "window opens "):
		return CauseWindow
	case strings.HasPrefix(why, "asking the user"), strings.HasPrefix(why, "deferred by the user"):
		return CauseConsent
	case strings.HasPrefix(why, "the clock is not set"):
		return CauseClock
	}
	return CauseDeviceWaits
}

// queued says why the device has not begun.
func (w inquiry) queued(r ota.Rollout, e ota.Execution) Because {
	b := Because{Since: e.QueuedAt, Until: e.Expires}
	mine := slices.IndexFunc(w.pending, func(p ota.Execution) bool { return p.RolloutID == r.ID })
	switch {
	case r.State != ota.RolloutRunning:
		return notRunning(r)
	case mine < 0:
		b.Cause, b.Why = CauseInFlight, "the rollout has as many devices in flight as it may: "+bounds(r.Terms.InFlight)
	case mine > 0:
		first := w.pending[0]
		b.Cause, b.Other = CauseOtherFirst, first.RolloutID
		b.Why = fmt.Sprintf("rollout %s comes first on the device, where it is %s", first.RolloutID, first.Status)
	case e.Step() == ota.StepWaiting:
		b.Cause, b.Why = waitsFor(e), "the device has not begun: "+e.Reason()
	case w.device.Reachability == Offline:
		b.Cause, b.Since = CauseOffline, w.device.Connection.Since
		b.Why = "the device is offline: " + w.device.Connection.Reason
	case w.device.Reachability == Unknown && w.device.LastSeen.IsZero():
		b.Cause, b.Why = CauseNeverSeen, "the device was never heard of"
	default:
		b.Cause, b.Why = CauseTold, "the device was told, and has not begun"
	}
	switch b.Cause {
	case CauseTold, CauseOffline, CauseNeverSeen: // else it waits for another, or says itself what for
		b.Why += w.shut(r, w.now)
	}
	return b
}

func bounds(f ota.InFlight) string {
	var parts []string
	if f.Max > 0 {
		parts = append(parts, fmt.Sprintf("%d in all", f.Max))
	}
	if f.PerMax > 0 {
		parts = append(parts, fmt.Sprintf("%d of each %s", f.PerMax, f.Per))
	}
	return strings.Join(parts, ", ")
}

// notRunning says what keeps a rollout from giving anybody anything.
func notRunning(r ota.Rollout) Because {
	b := Because{Why: fmt.Sprintf("the rollout is %s", r.State), Since: r.CreatedAt}
	if r.Reason != "" {
		b.Why += ": " + r.Reason
	}
	switch r.State {
	case ota.RolloutDraft:
		b.Cause = CauseDraft
	case ota.RolloutAwaitingApproval:
		b.Cause = CauseApproval
	case ota.RolloutScheduled:
		b.Cause, b.Until = CauseScheduled, r.Terms.Start
	case ota.RolloutPaused:
		b.Cause, b.Since = CausePaused, time.Time{}
		if stage, failed := failedStage(r); failed {
			b.Cause, b.Since = CauseStageFailed, r.Stages[stage].EndedAt
		}
	default:
		b.Cause, b.Since = CauseEnded, r.EndedAt
	}
	return b
}

// failedStage is the stage whose gate was not met, if that is what a rollout that is
// PAUSED waits for.
func failedStage(r ota.Rollout) (stage int, failed bool) {
	i := r.Current()
	return i, r.State == ota.RolloutPaused && !r.Reverting && !r.Finishes() && i < len(r.Stages) && r.Stages[i].State == ota.StageFailed
}

// again says of an attempt that ended that another follows, and what that waits for.
func (w inquiry) again(r ota.Rollout, e ota.Execution) Because {
	b := Because{Cause: CauseRetry, Since: e.SettledAt(), Until: e.RetryAt}
	b.Why = fmt.Sprintf("attempt %d ended %s: it is tried again", e.Attempt, ended(e))
	if e.Class == ota.ClassUnderway {
		b.Cause, b.Until, b.Why = CauseNextLeg, time.Time{}, "it is there, and the next leg follows"
	}
	switch by := w.passedBy(r); {
	case by != nil:
		over := w.overtaken(r, *by)
		over.Why = fmt.Sprintf("attempt %d ended %s; it is not tried again: %s", e.Attempt, ended(e), over.Why)
		return over
	case r.State != ota.RolloutRunning:
		held := notRunning(r)
		held.Why = b.Why + " when it runs; " + held.Why
		if held.Cause == CauseEnded {
			held.Why = fmt.Sprintf("attempt %d ended %s; %s", e.Attempt, ended(e), notRunning(r).Why)
		}
		return held
	case e.Class != ota.ClassUnderway && !e.RetryAt.After(w.now) && r.Terms.Rate != (ota.Rate{}):
		b.Cause, b.Until = CauseRate, r.PacedAt
		b.Why += fmt.Sprintf(" when the rate of %s lets it", r.Terms.Rate)
	}
	return b
}

// taken says why an attempt was CANCELED or REMOVED.
func (w inquiry) taken(r ota.Rollout, e ota.Execution) Because {
	b := Because{Cause: CauseCanceled, Since: e.FinishedAt, Why: fmt.Sprintf("attempt %d ended %s", e.Attempt, ended(e))}
	switch by := e.Superseded(); {
	case w.device.Revoked():
		b.Cause = CauseRevoked
	case by != "":
		return w.superseded(r, b, by)
	case e.Left():
		b.Cause = CauseJoinsWhenSelected
		if !r.Follows {
			b.Cause = CauseEnded
		}
	case e.Status == ota.Removed: // it was deleted, and is there again
		b.Cause = CauseEnded
	}
	return b
}

// superseded says where the rollout stands for which an attempt made way.
func (w inquiry) superseded(r ota.Rollout, b Because, by string) Because {
	o := w.rollouts[by]
	b.Other, b.Cause = by, CauseSuperseded
	b.Why += " of " + o.Release.String() + "; " + w.standsThere(o)
	switch e, given := w.newest[by]; {
	case given && (e.Class == ota.ClassSucceeded || !e.Status.Terminal() || !e.RetryAt.IsZero()):
	case !given || o.Ending() || o.State.Terminal() || e.Status.Terminal():
		b.Cause = CauseLetGo
	}
	return b
}

// finished says how the last attempt ended.
func (w inquiry) finished(r ota.Rollout, e ota.Execution) Because {
	b := Because{Cause: CauseFailed, Since: e.SettledAt(), Why: fmt.Sprintf("attempt %d ended %s", e.Attempt, ended(e))}
	stage, failed := failedStage(r)
	switch {
	case e.Class == ota.ClassSucceeded:
		if by := w.passedBy(r); by != nil && w.newest[by.ID].Class == ota.ClassSucceeded {
			over := w.overtaken(r, *by)
			over.Why = b.Why + "; " + over.Why
			return over
		}
		b.Cause = CauseSucceeded
	case e.Class == ota.ClassDrifted:
		b.Cause = CauseDrifted
		b.Why = fmt.Sprintf("attempt %d ended %s; %s", e.Attempt, ended(e), w.unrepaired(r))
	case e.Class == ota.ClassUnderway: // it left between two legs
		b.Cause, b.Why = CauseEnded, "it is there, and the next leg was not begun before it left the rollout, or that ended"
		if r.Follows {
			b.Cause, b.Why = CauseJoinsWhenSelected, "it is there, and left the rollout before the next leg: the selector does not mean it now"
		}
	case failed && e.Stage == stage:
		b.Cause = CauseStageFailed
		b.Why += "; " + notRunning(r).Why
	case e.Stranded():
		b.Cause = CauseStranded
	case e.WentBack():
		b.Cause = CauseRolledBack
	}
	return b
}

// unrepaired says why a device that has drifted is not updated again.
func (w inquiry) unrepaired(r ota.Rollout) string {
	switch by := w.passedBy(r); {
	case by != nil:
		return "rollout " + by.ID + ", which is newer, has it"
	case r.State.Terminal() || r.Ending():
		return fmt.Sprintf("the rollout is %s, and only records it", r.State)
	case r.Terms.Drift == ota.DriftRecord:
		return "the plan says to record it only"
	}
	return fmt.Sprintf("it had the %d attempts that the plan allows", max(r.Terms.Retry.Attempts, 1))
}

// onLeg says where on its path a device is; empty where that has one release.
func onLeg(e ota.Execution) string {
	if e.Legs() == 1 || e.Command != nil {
		return ""
	}
	return fmt.Sprintf("leg %d of %d, %s: ", e.Leg, e.Legs(), e.Release)
}

func stepText(e ota.Execution) string {
	if e.Step() == "" {
		return "(not said)"
	}
	if why := e.Reason(); why != "" {
		return fmt.Sprintf("%s (%s)", e.Step(), why)
	}
	return string(e.Step())
}

func ended(e ota.Execution) string {
	text := string(e.Class)
	if e.Class == ota.ClassNone {
		text = string(e.Status)
	}
	if why := e.Reason(); why != "" {
		text += ": " + why
	}
	return text
}
