package fleet

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Cause is why a device stands as it does to a rollout, in a word for programs.
type Cause string

// The causes.
const (
	// It has an attempt, which waits or is at work.
	CauseAtWork        Cause = "at-work"
	CauseAtWorkOffline Cause = "at-work-offline" // in the middle of it, with a timer
	CauseLost          Cause = "lost"            // the same, without one
	CauseHeld          Cause = "held"            // by a pause, before it activates
	CauseWindow        Cause = "window"
	CauseConsent       Cause = "consent"
	CauseClock         Cause = "clock"
	CauseDeviceWaits   Cause = "device-waits"
	CauseTold          Cause = "told"
	CauseOffline       Cause = "offline"
	CauseNeverSeen     Cause = "never-seen"
	CauseInFlight      Cause = "in-flight"
	CauseOtherFirst    Cause = "other-first"
	CauseNextLeg       Cause = "next-leg"
	CauseRetry         Cause = "retry"
	// Its last attempt ended.
	CauseSucceeded  Cause = "succeeded"
	CauseFailed     Cause = "failed"
	CauseRolledBack Cause = "rolled-back"
	CauseStranded   Cause = "stranded"
	CauseDrifted    Cause = "drifted"
	CauseCanceled   Cause = "canceled"
	CauseSuperseded Cause = "superseded"
	CauseLetGo      Cause = "let-go" // superseded, and the newer rollout does not bring it either
	// It has none, and is to get one.
	CauseTurn          Cause = "turn"
	CauseRate          Cause = "rate"
	CauseStage         Cause = "stage" // an earlier one, or its own, is judged first
	CauseSoak          Cause = "soak"
	CauseHealth        Cause = "health"
	CauseStageApproval Cause = "stage-approval"
	CauseJoins         Cause = "joins"
	CauseAwaits        Cause = "awaits" // a newer continuous rollout's end
	// The rollout does not run.
	CauseDraft       Cause = "draft"
	CauseApproval    Cause = "approval"
	CauseScheduled   Cause = "scheduled"
	CausePaused      Cause = "paused"
	CauseStageFailed Cause = "stage-failed"
	CauseEnded       Cause = "ended"
	// It gets none.
	CauseRevoked           Cause = "revoked"
	CauseWithdrawn         Cause = "withdrawn"
	CauseNotSelected       Cause = ExcludedSelector
	CauseJoinsWhenSelected Cause = "joins-when-selected"
	CauseHardware          Cause = ExcludedHardware
	CauseCurrent           Cause = ExcludedCurrent
	CauseQuarantined       Cause = ExcludedQuarantined
	CauseNeedsVersion      Cause = ExcludedVersion
	CausePassedBy          Cause = "passed-by" // a newer rollout has it
	CausePassedByFailed    Cause = "passed-by-failed"
	CauseLate              Cause = "late"
	CauseTurnLost          Cause = "turn-lost"
	CauseNotReturned       Cause = "not-returned"
)

// remedies say what to do about each cause. What stands in braces is filled in by
// Cause.remedy.
var remedies = map[Cause]string{
	CauseAtWork:        "nothing to do: the device goes on by itself{ends}",
	CauseAtWorkOffline: "bring the device back online: it goes on where it was{ends}",
	CauseLost:          "bring the device back online: it goes on where it was. It has no time limit; if it never comes back, 'otactl device revoke {device}' lets the rollout go on without it",
	CauseHeld:          "otactl rollout resume {rollout}",
	CauseWindow:        "nothing to do: the device begins by itself when its window opens. To install it before, make a rollout without a window: {again}",
	CauseConsent:       "let somebody at the device agree; when they have put it off as often as they may, it installs by itself",
	CauseClock:         "set the device's clock: it can not tell whether its window is open",
	CauseDeviceWaits:   "nothing to do: the device goes on by itself when that is over{ends}",
	CauseTold:          "nothing to do: the device begins when it asks for work{ends}. If it does not, look at its agent's log, or 'otactl device history {device}'",
	CauseOffline:       "bring the device online: it asks for work by itself then{ends}",
	CauseNeverSeen:     "start the agent on the device, with its identity: it asks for work by itself then{ends}",
	CauseInFlight:      "nothing to do: it begins when one of those has ended; 'otactl rollout devices {rollout} --active' lists them",
	CauseOtherFirst:    "nothing to do: it begins by itself after that one; see there what that waits for. As long as that has not begun on the device it can be ended: otactl rollout abort {other}",
	CauseNextLeg:       "nothing to do: it goes on by itself, at the rate of the rollout",
	CauseRetry:         "nothing to do: it is tried again by itself{when}",

	CauseSucceeded:  "nothing to do: it runs what the rollout brings",
	CauseFailed:     "see to the reason, then try again: {again}",
	CauseRolledBack: "upload a release that mends it and roll that out; to try this image again all the same: {again} --quarantined",
	CauseStranded:   "do what the reason says; then a continuous rollout goes on by itself, and for another: {again}",
	CauseDrifted:    "to bring it back: {again}; with --continuous it is brought back whenever it drifts",
	CauseCanceled:   "to install it all the same: {again}",
	CauseSuperseded: "nothing to do: the newer rollout {other} updates the device; if that is aborted before it has begun there, this one takes it again",
	CauseLetGo:      "to install it all the same: {again}",

	CauseTurn:          "nothing to do: it takes its turn when it asks, and is told of it within seconds",
	CauseRate:          "nothing to do: its turn comes by itself{earliest}",
	CauseStage:         "nothing to do: the next stage opens when this one has passed; 'otactl rollout devices {rollout} --active' lists whom it waits for",
	CauseSoak:          "nothing to do: the next stage opens by itself{when}, if the gate still holds then",
	CauseHealth:        "nothing to do: it goes on by itself when enough devices were watched; 'otactl rollout show {rollout}' has the numbers",
	CauseStageApproval: "otactl rollout approve {rollout} --stage {stage}",
	CauseJoins:         "nothing to do: it joins by itself",
	CauseAwaits:        "nothing to do, if that is meant; else end the newer one: otactl rollout finish {other}",

	CauseDraft:       "otactl rollout submit {rollout}",
	CauseApproval:    "otactl rollout approve {rollout} --revision {revision}",
	CauseScheduled:   "nothing to do: it starts by itself{when}",
	CausePaused:      "otactl rollout resume {rollout}",
	CauseStageFailed: "see to the failures, then: otactl rollout resume {rollout} --failed-stage repeat, or skip to pass by them",
	CauseEnded:       "to install it all the same: {again}",

	CauseRevoked:           "a device is revoked for good: 'otactl device delete {device}' makes room for another one under its id, or enroll it under another",
	CauseWithdrawn:         "roll out another version; 'otactl firmware list' shows them",
	CauseNotSelected:       "nothing to do, if it is not meant; else: {again}",
	CauseJoinsWhenSelected: "nothing to do, if it is not meant; else make the device match: 'otactl rollout show {rollout}' has the selector",
	CauseHardware:          "nothing to do, if that is so; else upload a release for hardware {hardware}: otactl firmware upload IMAGE --hardware {hardware}",
	CauseCurrent:           "nothing to do",
	CauseQuarantined:       "upload a release that mends it and roll that out; to try this image again all the same: {again} --quarantined",
	CauseNeedsVersion:      "do what the reason says; then a continuous rollout goes on by itself, and for another: {again}",
	CausePassedBy:          "nothing to do: the newer rollout {other} updates the device",
	CausePassedByFailed:    "see to what failed there, then try again: {again}",
	CauseLate:              "to install it all the same: {again}; a rollout with --continuous takes those who come later",
	CauseTurnLost:          "to install it all the same: {again}",
	CauseNotReturned:       "nothing to do, if that is meant; else roll out the release that it shall run",
}

// concerns reports whether the rollout is, or was, about the device at all.
func (c Cause) concerns() bool {
	switch c {
	case CauseNotSelected, CauseJoinsWhenSelected, CauseHardware, CauseNotReturned:
		return false
	}
	return true
}

// brings reports whether the device runs what the rollout brings, or gets it once the
// remedy is followed, without another rollout.
func (c Cause) brings() bool {
	switch c {
	case CauseAtWork, CauseAtWorkOffline, CauseLost, CauseHeld, CauseWindow, CauseConsent, CauseClock, CauseDeviceWaits, CauseTold, CauseOffline, CauseNeverSeen,
		CauseInFlight, CauseOtherFirst, CauseNextLeg, CauseRetry, CauseTurn, CauseRate, CauseStage, CauseSoak, CauseHealth, CauseStageApproval, CauseJoins,
		CauseDraft, CauseApproval, CauseScheduled, CausePaused, CauseStageFailed, CauseSucceeded, CauseCurrent:
		return true
	}
	return false
}

// remedy is what to do about it.
func (c Cause) remedy(w inquiry, b Because) string {
	r, at := b.Rollout, func(before string, t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return before + t.UTC().Format(time.RFC3339)
	}
	what := string(ota.ClassTimedOut)
	if e := b.Execution; e != nil && e.ExpiresAs != ota.ClassNone {
		what = string(e.ExpiresAs)
	}
	text := strings.NewReplacer("{again}", oneDevice(r, w.device.ID)).Replace(remedies[c])
	return strings.NewReplacer(
		"{rollout}", r.ID, "{device}", w.device.ID, "{hardware}", w.device.Hardware, "{other}", b.Other,
		"{revision}", strconv.FormatInt(r.PlanRevision(), 10),
		"{stage}", strconv.Itoa(min(r.Current(), len(r.Stages)-1)+1),
		"{when}", at(" at ", b.Until), "{earliest}", at(", at the earliest at ", b.Until),
		"{ends}", at("; it is ended as "+what+" at ", b.Until),
	).Replace(text)
}

// oneDevice is the command that brings to one device what the rollout does.
func oneDevice(r ota.Rollout, deviceID string) string {
	if c := r.Command; c != nil {
		text := "otactl command run " + deviceID + " " + c.Name
		if len(c.Parameters) > 0 {
			text += " -- KEY=VALUE..."
		}
		return text
	}
	return fmt.Sprintf(`otactl rollout create --firmware %s --select 'id = "%s"'`, r.Release, deviceID)
}
