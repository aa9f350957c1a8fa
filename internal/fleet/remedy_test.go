package fleet

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/pkg/ota"
)

var whyNow = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// TestEveryCauseHasARemedy: there is no cause without something to do about it, or the
// word that there is nothing to do.
func TestEveryCauseHasARemedy(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "remedy.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	causes := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "Cause") {
			causes++
		}
		return true
	})
	if causes != len(remedies) || causes < 40 {
		t.Errorf("%d causes, %d remedies", causes, len(remedies))
	}
	r := ota.Rollout{ID: "r-1", Release: ota.ReleaseID{Name: "gw", Version: "2.0"}, Stages: make([]ota.Stage, 2)}
	w := inquiry{device: DeviceRecord{DeviceView: DeviceView{Device: Device{ID: "gw-1", Hardware: "rpi4"}}}}
	for cause := range remedies {
		for _, until := range []time.Time{{}, whyNow} {
			text := cause.remedy(w, Because{Rollout: r, Other: "r-2", Until: until})
			if text == "" || strings.ContainsAny(text, "{}") {
				t.Errorf("%s: %q", cause, text)
			}
		}
	}
}

// TestRemedyOfAnAttempt holds every way in which an attempt may stand against what is
// said of it and what there is to do.
func TestRemedyOfAnAttempt(t *testing.T) {
	const again = `otactl rollout create --firmware gw@2.0 --select 'id = "gw-1"'`
	ago, later := whyNow.Add(-time.Hour), whyNow.Add(time.Hour)
	step := func(step ota.Step, why string) map[string]string {
		return map[string]string{ota.DetailStep: string(step), ota.DetailReason: why}
	}
	online := func(w *inquiry) { w.device.Reachability, w.device.LastSeen = Online, ago }
	offline := func(w *inquiry) {
		w.device.Reachability, w.device.Connection = Offline, Connection{Since: ago, Reason: "keep alive"}
	}
	first := func(w *inquiry) { w.pending = []ota.Execution{{RolloutID: "r-1"}} }
	behind := func(w *inquiry) {
		w.pending = []ota.Execution{{RolloutID: "r-9", Status: ota.InProgress}, {RolloutID: "r-1"}}
	}
	over := func(state ota.RolloutState, e ota.Execution) func(*inquiry) { // rollout r-2, which is newer
		return func(w *inquiry) {
			w.rollouts["r-2"] = ota.Rollout{ID: "r-2", Release: ota.ReleaseID{Name: "gw", Version: "3.0"}, State: state, CreatedAt: later}
			if e.RolloutID = "r-2"; e.Status != "" {
				w.attempts, w.newest = append(w.attempts, e), map[string]ota.Execution{"r-2": e}
			}
		}
	}
	paused := func(r *ota.Rollout) { r.State, r.Reason = ota.RolloutPaused, "lunch" }
	failedStage := func(r *ota.Rollout) {
		paused(r)
		r.Stages[0].State = ota.StageFailed
	}
	state := func(s ota.RolloutState) func(*ota.Rollout) { return func(r *ota.Rollout) { r.State = s } }
	queued := ota.Execution{Status: ota.Queued, QueuedAt: ago}
	atWork := ota.Execution{Status: ota.InProgress, StepAt: ago, Details: step(ota.StepFetching, "")}
	ended := func(status ota.Status, class ota.Class, why string) ota.Execution {
		return ota.Execution{Status: status, Class: class, Attempt: 1, FinishedAt: ago, Details: map[string]string{ota.DetailReason: why}}
	}
	retried := func(e ota.Execution, at time.Time) ota.Execution { e.RetryAt = at; return e }
	expiring := func(e ota.Execution, as ota.Class) ota.Execution { e.Expires, e.ExpiresAs = later, as; return e }
	waiting := func(why string) ota.Execution {
		e := queued
		e.Details = step(ota.StepWaiting, why)
		return e
	}
	hold := atWork
	hold.Hold = true
	drifted := ended(ota.Succeeded, ota.ClassDrifted, "")
	drifted.DriftedAt = ago
	underway := retried(ended(ota.Succeeded, ota.ClassUnderway, ""), whyNow)
	for _, c := range []struct {
		cause       Cause
		why, remedy string
		execution   ota.Execution
		rollout     func(*ota.Rollout)
		inquiry     func(*inquiry)
	}{
		{CauseAtWork, "at step fetching since 2026-11-27T11:00:00Z", "nothing to do: the device goes on by itself", atWork, nil, online},
		{CauseAtWork, "at step fetching", "it is ended as silent at 2026-11-27T13:00:00Z", expiring(atWork, ota.ClassSilent), nil, online},
		{CauseAtWorkOffline, "the device is offline since 2026-11-27T11:00:00Z: keep alive", "bring the device back online: it goes on where it was; it is ended as silent at", expiring(atWork, ota.ClassSilent), nil, offline},
		{CauseLost, "keep alive", "'otactl device revoke gw-1'", atWork, nil, offline},
		{CauseHeld, "waits before it activates: lunch", "otactl rollout resume r-1", hold, paused, online},
		{CauseConsent, "asking the user", "let somebody at the device agree", ota.Execution{Status: ota.InProgress, Details: step(ota.StepWaiting, "asking the user")}, nil, online},
		{CauseConsent, "deferred by the user until 2", "let somebody at the device agree", waiting("deferred by the user until 2"), nil, first},
		{CauseWindow, "window opens 2", "when its window opens", waiting("window opens 2"), nil, first},
		{CauseClock, "the clock is not set", "set the device's clock", waiting("the clock is not set: it shows 1970"), nil, first},
		{CauseDeviceWaits, "too warm", "nothing to do", waiting("too warm"), nil, first},
		{CauseTold, "was told, and has not begun", "it is ended as timed_out at 2026-11-27T13:00:00Z. If it does not", expiring(queued, ota.ClassTimedOut), nil, func(w *inquiry) { first(w); online(w) }},
		{CauseOffline, "offline: keep alive", "bring the device online", queued, nil, func(w *inquiry) { first(w); offline(w) }},
		{CauseNeverSeen, "never heard of", "start the agent", queued, nil, func(w *inquiry) { first(w); w.device.Reachability = Unknown }},
		{CauseInFlight, "as it may: 5 in all, 2 of each site", "otactl rollout devices r-1 --active", queued, func(r *ota.Rollout) { r.Terms.InFlight = ota.InFlight{Max: 5, Per: "site", PerMax: 2} }, nil},
		{CauseOtherFirst, "rollout r-9 comes first on the device, where it is IN_PROGRESS", "otactl rollout abort r-9", queued, nil, behind},
		{CausePaused, "PAUSED: lunch", "otactl rollout resume r-1", queued, paused, nil},
		{CauseEnded, "ABORTING", again, queued, state(ota.RolloutAborting), nil},
		{CauseStageFailed, "PAUSED", "otactl rollout resume r-1 --failed-stage repeat", queued, failedStage, nil},
		{CauseNextLeg, "the next leg follows", "nothing to do", underway, nil, nil},
		{CausePaused, "the next leg follows when it runs", "otactl rollout resume r-1", underway, paused, nil},
		{CauseRetry, "attempt 1 ended failed: disk full: it is tried again", "by itself at 2026-11-27T13:00:00Z", retried(ended(ota.Failed, ota.ClassFailed, "disk full"), later), nil, nil},
		{CauseRate, "when the rate of 10/m lets it", "nothing to do", retried(ended(ota.Failed, ota.ClassFailed, "disk full"), ago), func(r *ota.Rollout) { r.Terms.Rate.PerMinute = 10 }, nil},
		{CausePaused, "it is tried again when it runs; the rollout is PAUSED: lunch", "otactl rollout resume r-1", retried(ended(ota.Failed, ota.ClassFailed, ""), later), paused, nil},
		{CauseEnded, "attempt 1 ended failed; the rollout is ABORTED", again, retried(ended(ota.Failed, ota.ClassFailed, ""), later), state(ota.RolloutAborted), nil},
		{CausePassedBy, "it is not tried again: rollout r-2 of gw@3.0, which is newer, has it: there it is QUEUED", "the newer rollout r-2 updates", retried(ended(ota.Failed, ota.ClassFailed, ""), later), nil, over(ota.RolloutRunning, queued)},
		{CausePassedByFailed, "there it ended failed: no space", again, retried(ended(ota.Failed, ota.ClassFailed, ""), later), nil, over(ota.RolloutCompleted, ended(ota.Failed, ota.ClassFailed, "no space"))},
		{CauseSucceeded, "succeeded", "nothing to do", ended(ota.Succeeded, ota.ClassSucceeded, ""), nil, nil},
		{CausePassedBy, "attempt 1 ended succeeded; rollout r-2 of gw@3.0, which is newer, has it: there it ended succeeded", "the newer rollout r-2", ended(ota.Succeeded, ota.ClassSucceeded, ""), nil, over(ota.RolloutRunning, ended(ota.Succeeded, ota.ClassSucceeded, ""))},
		{CauseSucceeded, "succeeded", "nothing to do", ended(ota.Succeeded, ota.ClassSucceeded, ""), nil, over(ota.RolloutRunning, ended(ota.Failed, ota.ClassRolledBack, ""))},
		{CauseJoinsWhenSelected, "the selector does not mean it now", "make the device match", retried(underway, time.Time{}), func(r *ota.Rollout) { r.Follows = true }, nil},
		{CauseEnded, "the next leg was not begun", again, retried(underway, time.Time{}), state(ota.RolloutCompleted), nil},
		{CauseFailed, "attempt 1 ended timed_out", again, ended(ota.TimedOut, ota.ClassTimedOut, ""), nil, nil},
		{CauseFailed, "attempt 1 ended silent", again, ended(ota.TimedOut, ota.ClassSilent, ""), state(ota.RolloutCompleted), nil},
		{CauseFailed, "attempt 1 ended rejected: not for me", again, ended(ota.Rejected, ota.ClassRejected, "not for me"), nil, nil},
		{CauseStageFailed, "attempt 1 ended failed: no space; the rollout is PAUSED: lunch", "--failed-stage repeat", ended(ota.Failed, ota.ClassFailed, "no space"), failedStage, nil},
		{CauseRolledBack, "attempt 1 ended rolled_back: no health", again + " --quarantined", ended(ota.Failed, ota.ClassRolledBack, "no health"), nil, nil},
		{CauseStranded, "no way leads on: sign one", "do what the reason says", ended(ota.Rejected, ota.ClassRejected, ota.StrandedReason+"sign one"), nil, nil},
		{CauseDrifted, "the rollout is COMPLETED, and only records it", again + "; with --continuous", drifted, state(ota.RolloutCompleted), nil},
		{CauseDrifted, "the plan says to record it only", again, drifted, func(r *ota.Rollout) { r.Terms.Drift = ota.DriftRecord }, nil},
		{CauseDrifted, "it had the 3 attempts that the plan allows", again, drifted, func(r *ota.Rollout) { r.Terms.Retry.Attempts = 3 }, nil},
		{CauseDrifted, "rollout r-2, which is newer, has it", again, drifted, nil, over(ota.RolloutRunning, queued)},
		{CauseRetry, "runs another image since", "it is tried again by itself", retried(drifted, later), nil, nil},
		{CauseCanceled, "CANCELED: wrong release", again, ended(ota.Canceled, ota.ClassNone, "wrong release"), state(ota.RolloutAborted), nil},
		{CauseRevoked, "REMOVED: the device was revoked", "otactl device delete gw-1", ended(ota.Removed, ota.ClassNone, RevokedReason), nil, func(w *inquiry) { w.device.RevokedAt = ago }},
		{CauseEnded, "REMOVED: the device was deleted", again, ended(ota.Removed, ota.ClassNone, ota.DeletedReason), nil, nil},
		{CauseJoinsWhenSelected, "the device left", "make the device match", ended(ota.Canceled, ota.ClassNone, ota.LeftReason), func(r *ota.Rollout) { r.Follows = true }, nil},
		{CauseEnded, "the device left", again, ended(ota.Canceled, ota.ClassNone, ota.LeftReason), state(ota.RolloutCompleted), nil},
		{CauseSuperseded, "superseded by rollout r-2 of gw@3.0; there it is QUEUED", "the newer rollout r-2 updates", ended(ota.Canceled, ota.ClassNone, ota.SupersededReason+"r-2"), nil, over(ota.RolloutRunning, queued)},
		{CauseSuperseded, "there it ended failed", "the newer rollout r-2 updates", ended(ota.Canceled, ota.ClassNone, ota.SupersededReason+"r-2"), nil, over(ota.RolloutRunning, retried(ended(ota.Failed, ota.ClassFailed, ""), later))},
		{CauseLetGo, "there it ended CANCELED: bad", again, ended(ota.Canceled, ota.ClassNone, ota.SupersededReason+"r-2"), nil, over(ota.RolloutAborted, ended(ota.Canceled, ota.ClassNone, "bad"))},
		{CauseLetGo, "there it ended failed", again, ended(ota.Canceled, ota.ClassNone, ota.SupersededReason+"r-2"), nil, over(ota.RolloutCompleted, ended(ota.Failed, ota.ClassFailed, "bad"))},
	} {
		t.Run(string(c.cause)+" "+c.why, func(t *testing.T) {
			r := ota.Rollout{ID: "r-1", Release: ota.ReleaseID{Name: "gw", Version: "2.0"}, State: ota.RolloutRunning, CreatedAt: ago, Stages: []ota.Stage{{State: ota.StageOpen}, {State: ota.StagePending}}}
			w := inquiry{now: whyNow, rollouts: map[string]ota.Rollout{}, device: DeviceRecord{DeviceView: DeviceView{Device: Device{ID: "gw-1"}}}}
			if c.rollout != nil {
				c.rollout(&r)
			}
			if c.inquiry != nil {
				c.inquiry(&w)
			}
			w.rollouts[r.ID] = r
			b := w.given(r, c.execution)
			b.Rollout, b.Execution = r, &c.execution
			if got := b.Cause.remedy(w, b); b.Cause != c.cause || !strings.Contains(b.Why, c.why) || !strings.Contains(got, c.remedy) {
				t.Errorf("%s: %s\n\tdo: %s", b.Cause, b.Why, got)
			}
		})
	}
}

// TestRemedyOfACommand: what is tried again is the command.
func TestRemedyOfACommand(t *testing.T) {
	r := ota.Rollout{Command: &ota.Command{Name: "set-level", Parameters: map[string]string{"level": "3"}}}
	if got := oneDevice(r, "gw-1"); got != "otactl command run gw-1 set-level -- KEY=VALUE..." {
		t.Error(got)
	}
}
