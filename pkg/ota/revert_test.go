package ota

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestWhatChangedADevice walks the ways in which an execution may end.
func TestWhatChangedADevice(t *testing.T) {
	step := func(s Step) map[string]string { return map[string]string{DetailStep: string(s)} }
	runs := func(digest string) map[string]string { return map[string]string{DetailDigest: digest} }
	for _, c := range []struct {
		name string
		e    Execution
		want bool
	}{
		{"succeeded", Execution{Status: Succeeded, Class: ClassSucceeded}, true},
		{"queued", Execution{Status: Queued}, false},
		{"in progress", Execution{Status: InProgress, Details: step(StepTrial), StartedAt: t0}, false},
		{"rolled back", Execution{Status: Failed, Class: ClassRolledBack, StartedAt: t0}, false},
		{"failed and runs the old one", Execution{Status: Failed, Class: ClassFailed, Details: runs("old"), StartedAt: t0}, false},
		{"failed and runs the new one", Execution{Status: Failed, Class: ClassFailed, Details: runs("new"), StartedAt: t0}, true},
		{"failed, and does not say", Execution{Status: Failed, Class: ClassFailed, StartedAt: t0}, false},
		{"rejected", Execution{Status: Rejected, Class: ClassRejected, StartedAt: t0}, false},
		{"silent by its own word", Execution{Status: Failed, Class: ClassSilent, StartedAt: t0}, true},
		{"silent after the reboot", Execution{Status: TimedOut, Class: ClassSilent, Details: step(StepRebooting), StartedAt: t0}, true},
		{"timed out while it fetched", Execution{Status: TimedOut, Class: ClassTimedOut, Details: step(StepFetching), StartedAt: t0}, false},
		{"timed out at a step that nobody knows", Execution{Status: TimedOut, Class: ClassTimedOut, StartedAt: t0}, true},
		{"never claimed", Execution{Status: TimedOut, Class: ClassTimedOut}, false},
		{"cancelled", Execution{Status: Canceled, Details: map[string]string{DetailReason: "x"}, StartedAt: t0}, false},
		{"removed", Execution{Status: Removed, StartedAt: t0}, false},
	} {
		if got := c.e.Changed("new"); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestSendBackMakesOneRevertForEachImage(t *testing.T) {
	r := rollout(StageFailed, StagePending)
	r.State, r.Reason, r.CreatedAt, r.Priority = RolloutRollingBack, "abort rule", t0, 3
	r.Terms = Terms{
		Rate: Rate{PerMinute: 6}, InFlight: InFlight{Max: 2}, Approval: true, Start: t0, Strata: []string{"site"}, OnAbort: AbortRevert,
		Timers: Timers{Reboot: time.Minute}, Retry: Retry{Attempts: 2}, Window: Window{RRule: "FREQ=DAILY;BYHOUR=2", Duration: 600},
	}
	b, a := strings.Repeat("b", 64), strings.Repeat("a", 64)
	got, made := SendBack(r, []Return{
		{Digest: b, Devices: 1, Sample: []string{"d1"}, To: ReleaseID{"gw", "0.8"}},
		{Digest: "", Devices: 12, Sample: []string{"d3", "d4"}, Stay: "nobody knows"},
		{Digest: a, Devices: 2, Sample: []string{"d2", "d5"}, To: ReleaseID{"gw", "0.9"}},
	}, t0.Add(time.Hour))
	if got.State != RolloutRollingBack || got.Reason != "abort rule; 12 devices stay (d3 d4 ...): nobody knows; 2 devices go back to gw@0.9; 1 device goes back to gw@0.8" {
		t.Errorf("%s: %s", got.State, got.Reason)
	}
	if len(made) != 2 || made[0].ID != "r-1-aaaaaaaaaaaa" || made[1].ID != "r-1-bbbbbbbbbbbb" {
		t.Fatalf("%+v", made)
	}
	want := Rollout{
		ID: "r-1-aaaaaaaaaaaa", RevertOf: "r-1", Release: ReleaseID{"gw", "0.9"}, Seed: "s", Abort: r.Abort, Priority: 3, State: RolloutScheduled, CreatedAt: t0,
		Terms: Terms{
			Rate: Rate{PerMinute: 6}, InFlight: InFlight{Max: 2}, Timers: Timers{Reboot: time.Minute}, Retry: Retry{Attempts: 2},
			Window: Window{RRule: "FREQ=DAILY;BYHOUR=2", Duration: 600}, Quarantined: true,
		},
		Stages: []Stage{{Size: Size{Percent: 100}, Gate: Gate{Success: 0.9}, State: StagePending}},
	}
	if diff := cmp.Diff(want, made[0]); diff != "" {
		t.Error(diff)
	}
	if err := made[0].Validate(); err != nil {
		t.Error(err)
	}
	newer := Rollout{ID: "a", Release: ReleaseID{"gw", "2"}, CreatedAt: t0.Add(time.Second), Priority: 3}
	if !newer.Supersedes(made[0]) || r.Supersedes(made[0]) || !made[0].Supersedes(r) {
		t.Error("a revert does not stand in the place of its rollout")
	}
	if _, err := Abort(made[0], "why", AbortRevert, t0); !errors.Is(err, ErrState) {
		t.Errorf("a revert was reverted: %v", err)
	}
	if _, err := Edit(made[0], made[0]); !errors.Is(err, ErrState) {
		t.Errorf("a revert was edited: %v", err)
	}
}

func TestNobodyToSendBack(t *testing.T) {
	r := rollout(StageFailed)
	r.State, r.Reason = RolloutRollingBack, "why"
	got, made := SendBack(r, nil, t0)
	if got.State != RolloutRolledBack || !got.EndedAt.Equal(t0) || len(made) > 0 || got.Reason != "why; no device had changed" {
		t.Errorf("%s at %s: %s, %v", got.State, got.EndedAt, got.Reason, made)
	}
	got, made = SendBack(r, []Return{{Devices: 1, Sample: []string{"d"}, Stay: "x"}}, t0)
	if got.State != RolloutRolledBack || len(made) > 0 || got.Reason != "why; 1 device stays (d): x" {
		t.Errorf("%s: %s, %v", got.State, got.Reason, made)
	}
}

// TestRevertOfAnEndedRollout: what has ended is reverted, once, and a refusal says why.
func TestRevertOfAnEndedRollout(t *testing.T) {
	of := rollout(StageFailed, StagePending)
	command, back := commandRollout(StagePassed), of
	back.RevertOf = "r-0"
	for _, c := range []struct {
		r      Rollout
		state  RolloutState
		policy AbortPolicy
		words  string // of the refusal; empty: it goes back
	}{
		{of, RolloutCompleted, AbortRevert, ""},
		{of, RolloutAborted, AbortRevert, ""},
		{of, RolloutAborted, AbortKeep, "is ABORTED: it can not be aborted; 'otactl rollout revert' brings its devices back"},
		{of, RolloutAborted, "", "'otactl rollout revert' brings its devices back"},
		{of, RolloutAborting, AbortRevert, "is ABORTING: it is being aborted already"},
		{of, RolloutRollingBack, AbortRevert, "is ROLLING_BACK: its devices go back already"},
		{of, RolloutRolledBack, AbortRevert, "is ROLLED_BACK: its devices were sent back already"},
		{of, RolloutRolledBack, "", "is ROLLED_BACK: its devices were sent back already"},
		{command, RolloutAborted, AbortRevert, "nothing of it can be reverted"},
		{command, RolloutCompleted, "", "nothing of it can be reverted"},
		{back, RolloutAborted, AbortRevert, "nothing of it can be reverted"},
	} {
		c.r.State, c.r.Reason, c.r.EndedAt = c.state, "smells", t0
		got, err := Abort(c.r, "why", c.policy, t0)
		if c.words != "" {
			if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), c.words) || got.State != c.state {
				t.Errorf("%s by %q: %s, %v, want %q", c.state, c.policy, got.State, err, c.words)
			}
			continue
		}
		reason := map[RolloutState]string{RolloutCompleted: "why", RolloutAborted: "why; it was aborted: smells"}[c.state]
		if err != nil || got.State != RolloutRollingBack || !got.Reverting || !got.EndedAt.IsZero() || got.Reason != reason || got.Stages[0].State != StageFailed {
			t.Errorf("%s: %+v, %v", c.state, got, err)
		}
	}
}

// TestAbortGoesByWhatIsSaid: what is said with an abort is for that abort, and the plan
// stays as it was written.
func TestAbortGoesByWhatIsSaid(t *testing.T) {
	policies := []AbortPolicy{"", AbortKeep, AbortRevert}
	for _, state := range []RolloutState{RolloutDraft, RolloutRunning, RolloutPaused, RolloutCompleted} {
		for _, plan := range policies {
			for _, said := range policies {
				r := rollout(StageOpen, StagePending)
				r.State, r.Terms.OnAbort = state, plan
				goes := said == AbortRevert || said == "" && plan == AbortRevert
				got, err := Abort(r, "why", said, t0)
				if refused := state == RolloutCompleted && said != AbortRevert; refused != (err != nil) || !refused && got.Reverting != goes {
					t.Errorf("%s, plan %q, said %q: goes back %v, %v", state, plan, said, got.Reverting, err)
				}
				if got.Terms.OnAbort != plan {
					t.Errorf("%s, plan %q, said %q: the plan says %q", state, plan, said, got.Terms.OnAbort)
				}
			}
		}
	}
}

func TestARevertIsCalledOff(t *testing.T) {
	r, err := Abort(rollout(StageOpen, StagePending), "why", AbortRevert, t0)
	if err != nil || r.State != RolloutRollingBack {
		t.Fatalf("%s, %v", r.State, err)
	}
	if r, err = Pause(r, "wait", ""); err != nil || r.State != RolloutPaused {
		t.Fatalf("%s, %v", r.State, err)
	}
	on, err := Resume(r, "", t0)
	if err != nil || on.State != RolloutRollingBack {
		t.Errorf("resumed: %s, %v", on.State, err)
	}
	if _, err := ApproveStage(approval(r, false), 2, t0); !errors.Is(err, ErrState) {
		t.Errorf("a stage was approved: %v", err)
	}
	for _, policy := range []AbortPolicy{"", AbortRevert} {
		if _, err := Abort(r, "again", policy, t0); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "resume") || !strings.Contains(err.Error(), "--keep") {
			t.Errorf("aborted by %q: %v", policy, err)
		}
	}
	made := []Revert{{"r-1-aa", RolloutRunning}, {"r-1-bb", RolloutAborted}}
	for _, c := range []struct {
		r       Rollout
		reverts []Revert
		refused bool
	}{{r, nil, false}, {r, made, true}, {on, made, false}, {paused(), made, false}} {
		err := CalledOff(c.r, c.reverts)
		if c.refused != errors.Is(err, ErrState) || c.refused && !strings.Contains(err.Error(), "by r-1-aa, RUNNING; r-1-bb, ABORTED: ") {
			t.Errorf("%s beside %v: %v", c.r.State, c.reverts, err)
		}
	}
	off, err := Abort(r, "keep it", AbortKeep, t0)
	if err != nil || off.State != RolloutAborting || off.Reverting {
		t.Errorf("called off: %s, %v", off.State, err)
	}
	if _, err := Abort(r, "x", "burn", t0); !errors.Is(err, ErrInvalid) {
		t.Errorf("an unknown policy: %v", err)
	}
}
