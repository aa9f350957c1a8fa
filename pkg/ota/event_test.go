package ota

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestChangesOfARollout(t *testing.T) {
	before := rollout(StageSoaking, StagePending)
	after := rollout(StagePassed, StageOpen)
	after.State, after.Reason = RolloutPaused, "lunch"
	at := t0.Add(time.Hour)
	want := []Event{
		{At: at, RolloutID: "r-1", Kind: EventRollout, From: "RUNNING", To: "PAUSED", Reason: "lunch"},
		{At: at, RolloutID: "r-1", Kind: EventStage, Stage: 1, From: "SOAKING", To: "PASSED"},
		{At: at, RolloutID: "r-1", Kind: EventStage, Stage: 2, From: "PENDING", To: "OPEN"},
	}
	if d := cmp.Diff(want, Changes(before, after, at)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Event{{At: t0, RolloutID: "r-1", Kind: EventRollout, To: "DRAFT"}}, Changes(Rollout{}, Rollout{ID: "r-1", State: RolloutDraft, Stages: []Stage{{State: StagePending}}}, t0)); d != "" {
		t.Error(d)
	}
	if got := Changes(after, after, at); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestAStageThatWasSkippedIsToldFromOneThatPassed: also of a continuous rollout, where it
// goes on, and each time.
func TestAStageThatWasSkippedIsToldFromOneThatPassed(t *testing.T) {
	for _, to := range []StageState{StagePassed, StageOpen} {
		r := rollout(StageFailed, StagePending)
		if to == StageOpen {
			r = continuous(rollout(StagePassed, StageFailed))
		}
		i := r.Current()
		for _, at := range []time.Time{t0, t0.Add(time.Hour)} {
			r.State, r.Stages[i].State = RolloutPaused, StageFailed
			skipped, err := Resume(r, ResumeSkip, at)
			if err != nil {
				t.Fatal(err)
			}
			want := Event{At: at, RolloutID: r.ID, Kind: EventStage, Stage: i + 1, From: "FAILED", To: string(to), Reason: "skipped by an operator"}
			if d := cmp.Diff(want, Changes(r, skipped, at)[1]); d != "" {
				t.Error(d)
			}
			r = skipped
		}
		failed := r
		failed.Stages = append([]Stage(nil), r.Stages...)
		failed.Stages[i].State = StageFailed
		if got := Changes(r, failed, t0)[0]; got.Reason != "" {
			t.Errorf("what comes of it later is %q too", got.Reason)
		}
	}
}

func TestEventsOfExecutions(t *testing.T) {
	e := Execution{RolloutID: "r", DeviceID: "d", Stage: 1, Attempt: 2, Status: InProgress}
	done, err := Apply(e, Report{Status: Failed, Details: map[string]string{DetailReason: "no space"}}, t0)
	if err != nil {
		t.Fatal(err)
	}
	got, moved := Moved(e, done)
	want := Event{At: t0, RolloutID: "r", Kind: EventExecution, Stage: 2, DeviceID: "d", Attempt: 2, From: "IN_PROGRESS", To: "FAILED", Class: ClassFailed, Count: 1, Reason: "no space"}
	if d := cmp.Diff(want, got); d != "" || !moved {
		t.Error(d)
	}
	if _, moved := Moved(e, e); moved {
		t.Error("nothing has changed")
	}
}

// TestInOrderCountsWhatMovedTogether: the order does not depend on that in which
// things were noted, and no execution is lost or counted twice.
func TestInOrderCountsWhatMovedTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var events []Event
		want := map[string]int{}
		for range rapid.IntRange(0, 20).Draw(t, "events") {
			e := Execution{RolloutID: rapid.SampledFrom([]string{"q", "r"}).Draw(t, "rollout"), Stage: rapid.IntRange(0, 1).Draw(t, "stage"), Status: rapid.SampledFrom([]Status{Queued, Canceled}).Draw(t, "to")}
			n := rapid.IntRange(0, 3).Draw(t, "n")
			want[e.RolloutID+string(e.Status)] += n
			events = append(events, MovedTogether("", e, n, t0))
		}
		told := InOrder(events)
		got := map[string]int{}
		for i, e := range told {
			got[e.RolloutID+e.To] += e.Count
			if i > 0 && told[i-1].RolloutID == e.RolloutID && told[i-1].Stage == e.Stage && told[i-1].To == e.To {
				t.Fatalf("told apart: %+v", e)
			}
		}
		for k, n := range want {
			if got[k] != n {
				t.Fatalf("%s: %d of %d", k, got[k], n)
			}
		}
		if d := cmp.Diff(told, InOrder(rapid.Permutation(events).Draw(t, "otherwise"))); d != "" {
			t.Fatal(d)
		}
	})
}
