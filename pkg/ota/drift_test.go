package ota

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func standing(rollout, digest string, status Status, minutes int) Standing {
	at := t0.Add(time.Duration(minutes) * time.Minute)
	e := Execution{RolloutID: rollout, DeviceID: "d", Attempt: 1, Status: status, Version: 2, QueuedAt: at, Retry: Retry{Attempts: 3, Backoff: time.Minute}}
	if status.Terminal() {
		e.FinishedAt = at
		e.Class = classOf(e)
	}
	return Standing{Execution: e, Digest: digest, Rollout: Rollout{
		ID: rollout, Release: ReleaseID{Name: "gw", Version: rollout}, State: RolloutRunning, CreatedAt: at, Terms: Terms{Retry: e.Retry},
	}}
}

// TestCompare holds what a device says against every status of its execution.
func TestCompare(t *testing.T) {
	for _, status := range Statuses {
		for _, runs := range []string{"new", "old", ""} {
			for _, minutes := range []int{-1, 0, 1} { // the word comes before the execution was settled, with it, after it
				s := standing("r", "new", status, 0)
				changed := Compare([]Standing{s}, Running{Digest: runs, At: t0.Add(time.Duration(minutes) * time.Minute)}, t0.Add(time.Hour))
				got := "nothing"
				if len(changed) > 0 {
					got = fmt.Sprintf("%s %s", changed[0].Status, changed[0].Class)
				}
				want := "nothing"
				switch {
				case minutes < 1:
				case status == Queued && runs == "new":
					want = "SUCCEEDED succeeded"
				case status == Succeeded && runs == "old":
					want = "SUCCEEDED drifted"
				}
				if got != want {
					t.Errorf("%s, it runs %q said at %d: %s, want %s", status, runs, minutes, got, want)
				}
			}
		}
	}
}

func TestDrift(t *testing.T) {
	now := t0.Add(time.Hour)
	runs := func(digest string, minutes int) Running {
		return Running{Digest: digest, At: t0.Add(time.Duration(minutes) * time.Minute)}
	}
	one := func(name string, list []Standing, r Running) Execution {
		t.Helper()
		changed := Compare(list, r, now)
		if len(changed) != 1 {
			t.Fatalf("%s: %d executions changed: %+v", name, len(changed), changed)
		}
		return changed[0]
	}
	none := func(name string, list []Standing, r Running) {
		t.Helper()
		if changed := Compare(list, r, now); len(changed) != 0 {
			t.Errorf("%s: changed %+v", name, changed)
		}
	}

	s := standing("b", "new", Succeeded, 0)
	d := one("fell back", []Standing{s}, runs("old", 1))
	if !d.RetryAt.Equal(now.Add(time.Minute)) || d.Runs != "old" || !d.DriftedAt.Equal(t0.Add(time.Minute)) || d.Version != s.Version || d.Status != Succeeded {
		t.Errorf("fell back: %+v", d)
	}
	back := s
	back.Execution = d
	none("it still runs that", []Standing{back}, runs("old", 61))
	none("a word from before it said so", []Standing{back}, runs("new", 1))
	if r := one("came back", []Standing{back}, runs("new", 2)); r.Class != ClassSucceeded || !r.RetryAt.IsZero() || r.Runs != "" || !r.DriftedAt.IsZero() {
		t.Errorf("came back: %+v", r)
	}

	again := back
	again.Attempt, again.Status, again.Class, again.QueuedAt, again.FinishedAt = 2, Failed, ClassFailed, now, now
	older := standing("a", "first", Succeeded, -60)
	none("the attempt after it failed", []Standing{older, back, again}, runs("other", 61))
	none("an older success was replaced", []Standing{older, s}, runs("new", 1))
	if d := one("of two, the last", []Standing{older, s}, runs("first", 1)); d.RolloutID != "b" {
		t.Errorf("drifted: %+v", d)
	}
	none("it works on another", []Standing{s, standing("c", "newer", InProgress, 1)}, runs("newer", 2))
	none("what installs nothing", []Standing{standing("r", "", Succeeded, 0), standing("q", "", Queued, 0)}, runs("old", 1))

	for name, change := range map[string]func(*Standing){
		"policy":        func(s *Standing) { s.Rollout.Terms.Drift = DriftRecord },
		"attempts":      func(s *Standing) { s.Attempt = 3 },
		"ended":         func(s *Standing) { s.Rollout.State = RolloutCompleted },
		"being aborted": func(s *Standing) { s.Rollout.State = RolloutAborting },
		"going back":    func(s *Standing) { s.Rollout.State = RolloutRollingBack },
	} {
		s := standing("b", "new", Succeeded, 0)
		change(&s)
		if d := one(name, []Standing{s}, runs("old", 1)); d.Class != ClassDrifted || !d.RetryAt.IsZero() {
			t.Errorf("%s: %+v", name, d)
		}
	}
	newer := standing("c", "newer", Queued, 1)
	if d := one("a newer one waits", []Standing{s, newer}, runs("old", 2)); d.RolloutID != "b" || !d.RetryAt.IsZero() {
		t.Errorf("a newer one waits: %+v", d)
	}
	if a := one("it has the newer one", []Standing{standing("c", "newer", Queued, 1)}, runs("newer", 2)); a.Reason() != ArrivedReason || a.StartedAt.IsZero() || a.Version != 3 {
		t.Errorf("arrived: %+v", a)
	}
}

// TestCompareProperty: whatever a device says, asking twice changes nothing more,
// what is terminal stays so, and no more attempts come of it than there may be.
func TestCompareProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []Standing
		busy := false
		for i := range rapid.IntRange(1, 4).Draw(t, "rollouts") {
			s := standing(fmt.Sprintf("r%d", i), fmt.Sprintf("d%d", rapid.IntRange(0, 2).Draw(t, "digest")),
				rapid.SampledFrom(Statuses).Draw(t, "status"), rapid.IntRange(-30, 30).Draw(t, "minutes"))
			s.Attempt = rapid.IntRange(1, 4).Draw(t, "attempt")
			busy = busy || s.Status == InProgress
			list = append(list, s)
		}
		for range rapid.IntRange(1, 6).Draw(t, "words") {
			now := t0.Add(time.Duration(rapid.IntRange(30, 60).Draw(t, "now")) * time.Minute)
			r := Running{Digest: fmt.Sprintf("d%d", rapid.IntRange(0, 3).Draw(t, "runs")), At: now.Add(-time.Duration(rapid.IntRange(0, 60).Draw(t, "ago")) * time.Minute)}
			changed := Compare(list, r, now)
			if busy && len(changed) > 0 {
				t.Fatalf("changed %+v while the device works", changed)
			}
			for _, e := range changed {
				for i := range list {
					if list[i].RolloutID != e.RolloutID {
						continue
					}
					if was := list[i].Status; was.Terminal() && was != e.Status || !e.Status.Terminal() {
						t.Fatalf("went from %s to %s", was, e.Status)
					}
					if !e.RetryAt.IsZero() && (e.Class != ClassDrifted || e.Attempt >= e.Retry.Attempts) {
						t.Fatalf("due again: %+v", e)
					}
					list[i].Execution = e
				}
			}
			if again := Compare(list, r, now); len(again) > 0 {
				t.Fatalf("asked twice, it changes %+v", again)
			}
		}
	})
}

// A device has drifted from what it was brought last, and from nothing before that.
func TestDriftedFrom(t *testing.T) {
	e := func(rollout string, status Status, class Class, minutes int) Execution {
		return Execution{RolloutID: rollout, Status: status, Class: class, FinishedAt: t0.Add(time.Duration(minutes) * time.Minute)}
	}
	drifted, later := e("a", Succeeded, ClassDrifted, 1), e("b", Succeeded, ClassSucceeded, 2)
	command := e("c", Succeeded, ClassSucceeded, 3)
	command.Command = &Command{Name: "reboot"}
	for name, c := range map[string]struct {
		list []Execution
		want string
	}{
		"nothing":            {nil, ""},
		"never brought any":  {[]Execution{e("a", Failed, ClassFailed, 1)}, ""},
		"runs what it shall": {[]Execution{later}, ""},
		"drifted":            {[]Execution{drifted}, "a"},
		"and tried again":    {[]Execution{drifted, e("a", InProgress, ClassNone, 0)}, "a"},
		"and failed":         {[]Execution{drifted, e("a", Failed, ClassFailed, 2)}, "a"},
		"brought another":    {[]Execution{later, drifted}, ""},
		"ran a command":      {[]Execution{drifted, command}, "a"},
	} {
		if from, is := DriftedFrom(c.list); from.RolloutID != c.want || is != (c.want != "") {
			t.Errorf("%s: %v from %q, want %q", name, is, from.RolloutID, c.want)
		}
	}
}
