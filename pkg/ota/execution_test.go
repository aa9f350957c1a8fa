package ota

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var t0 = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

// TestApplyWalksEveryPair is the whole device-side state table: from every
// status, a report of every status.
func TestApplyWalksEveryPair(t *testing.T) {
	allowed := map[[2]Status]bool{
		{Queued, InProgress}: true, {Queued, Succeeded}: true, {Queued, Failed}: true, {Queued, Rejected}: true,
		{InProgress, InProgress}: true, {InProgress, Succeeded}: true, {InProgress, Failed}: true, {InProgress, Rejected}: true,
	}
	for _, from := range Statuses {
		for _, to := range append(Statuses, "", "BOGUS") {
			e := Execution{Status: from, Version: 7, Attempt: 2, QueuedAt: t0}
			got, err := Apply(e, Report{Status: to}, t0.Add(time.Minute))
			want := error(nil)
			switch {
			case from.Terminal():
				want = ErrTerminal
			case !allowed[[2]Status{from, to}]:
				want = ErrTransition
			}
			if !errors.Is(err, want) || (want == nil) != (err == nil) {
				t.Errorf("%s -> %s: %v, want %v", from, to, err, want)
			}
			if err != nil {
				if diff := cmp.Diff(e, got); diff != "" {
					t.Errorf("%s -> %s was refused but changed:\n%s", from, to, diff)
				}
				continue
			}
			if got.Version != 8 || got.StartedAt.IsZero() || got.FinishedAt.IsZero() == to.Terminal() {
				t.Errorf("%s -> %s: version %d, started %v, finished %v", from, to, got.Version, got.StartedAt, got.FinishedAt)
			}
		}
	}
}

func TestApplyComparesVersionAndAttempt(t *testing.T) {
	e := Execution{Status: InProgress, Version: 3, Attempt: 2}
	for _, c := range []struct {
		r    Report
		want error
	}{
		{Report{Status: Succeeded, ExpectedVersion: 3, Attempt: 2}, nil},
		{Report{Status: Succeeded, ExpectedVersion: 2}, ErrVersionMismatch},
		{Report{Status: Succeeded, Attempt: 1}, ErrVersionMismatch},
		{Report{Status: Succeeded, Attempt: 3}, ErrVersionMismatch},
	} {
		if _, err := Apply(e, c.r, t0); !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%+v: %v, want %v", c.r, err, c.want)
		}
	}
}

// TestLateWalksEveryPair: of what the server ended, a word that the device went back is
// remembered, once, and nothing else of any execution changes.
func TestLateWalksEveryPair(t *testing.T) {
	back := map[string]string{DetailClass: string(ClassRolledBack)}
	for _, stands := range Statuses {
		for _, said := range Statuses {
			for _, class := range []Class{"", ClassFailed, ClassSilent, ClassRolledBack} {
				e := Execution{Status: stands, Class: ClassSilent, Version: 7, Attempt: 2, FinishedAt: t0, RetryAt: t0}
				r := Report{Status: said, Details: map[string]string{DetailClass: string(class)}, ExpectedVersion: 6, Attempt: 2}
				got, ok := Late(e, r, t0.Add(time.Hour))
				if want := (stands == TimedOut || stands == Canceled) && said == Failed && class == ClassRolledBack; ok != want || got.WentBack() != want {
					t.Errorf("%s, and the device says %s %q: taken %v, went back %v", stands, said, class, ok, got.WentBack())
				}
				if got.WentBackAt = e.WentBackAt; cmp.Diff(e, got) != "" {
					t.Errorf("%s, and the device says %s %q:\n%s", stands, said, class, cmp.Diff(e, got))
				}
			}
		}
	}
	e := Execution{Status: TimedOut, Attempt: 2, Details: map[string]string{DetailReason: "no word"}}
	said := Report{Status: Failed, Details: back}
	first, ok := Late(e, said, t0)
	if want := "no word; the device said at 2026-03-01T10:00:00Z that it had gone back"; !ok || first.Reason() != want {
		t.Errorf("the reason: %q", first.Reason())
	}
	if again, ok := Late(first, said, t0.Add(time.Hour)); ok || !again.WentBackAt.Equal(t0) {
		t.Errorf("said again: %s", again.WentBackAt)
	}
	command := e
	command.Command = &Command{}
	for name, c := range map[string]struct {
		e Execution
		r Report
	}{
		"another attempt": {e, Report{Status: Failed, Details: back, Attempt: 1}},
		"a command":       {command, said},
		"no report":       {e, Report{Status: Failed, Details: map[string]string{DetailClass: string(ClassRolledBack), "": ""}}},
	} {
		if _, ok := Late(c.e, c.r, t0); ok {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestLateIsForWhatApplyRefused(t *testing.T) {
	back := Report{Status: Failed, Details: map[string]string{DetailClass: string(ClassRolledBack)}}
	of := func(attempt int, r Report) Report { r.Attempt = attempt; return r }
	for _, c := range []struct {
		r       Report
		refused error
		want    int
	}{
		{back, ErrTerminal, 2},
		{of(1, back), ErrTerminal, 1},
		{of(1, back), ErrVersionMismatch, 1},
		{of(2, back), ErrTerminal, 2},
		{of(3, back), ErrVersionMismatch, 0},
		{of(-1, back), ErrVersionMismatch, 0},
		{back, ErrTransition, 0},
		{back, ErrInvalid, 0},
		{Report{Status: Failed}, ErrTerminal, 0},
		{Report{Status: Succeeded}, ErrTerminal, 0},
	} {
		if got, ok := LateFor(Execution{Attempt: 2}, c.r, c.refused); ok != (c.want > 0) || ok && got != c.want {
			t.Errorf("%+v, %v: attempt %d, %v", c.r, c.refused, got, ok)
		}
	}
}

func TestClassRefinesFailed(t *testing.T) {
	for class, want := range map[string]Class{
		"": ClassFailed, "failed": ClassFailed, "rolled_back": ClassRolledBack, "silent": ClassSilent,
		"timed_out": ClassTimedOut, "succeeded": ClassFailed, "any": ClassFailed, "made-up": ClassFailed,
	} {
		e, err := Apply(Execution{Status: InProgress}, Report{Status: Failed, Details: map[string]string{DetailClass: class}}, t0)
		if err != nil || e.Class != want {
			t.Errorf("class %q: %q, %v, want %q", class, e.Class, err, want)
		}
	}
	// A device can not talk itself into another class than its status has.
	e, err := Apply(Execution{Status: InProgress}, Report{Status: Rejected, Details: map[string]string{DetailClass: "succeeded"}}, t0)
	if err != nil || e.Class != ClassRejected {
		t.Errorf("rejected: %q, %v", e.Class, err)
	}
}

func TestReportLimits(t *testing.T) {
	many := map[string]string{}
	for _, k := range strings.Split("a b c d e f g h i j k", " ") {
		many[k] = ""
	}
	for name, details := range map[string]map[string]string{
		"too many": many, "long value": {"k": strings.Repeat("x", MaxDetailValueBytes+1)},
		"long key": {strings.Repeat("k", MaxDetailKeyBytes+1): ""}, "empty key": {"": ""}, "bad key": {"a b": ""},
	} {
		if _, err := Apply(Execution{Status: Queued}, Report{Status: InProgress, Details: details}, t0); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Apply(Execution{Status: Queued}, Report{Status: InProgress, Details: map[string]string{strings.Repeat("k", MaxDetailKeyBytes): strings.Repeat("x", MaxDetailValueBytes)}}, t0); err != nil {
		t.Errorf("details at the limit: %v", err)
	}
}

func TestDetailsAreKeptWhenAbsentAndReplacedWhenPresent(t *testing.T) {
	e := Execution{Status: InProgress, Details: map[string]string{"step": "fetching"}}
	kept, _ := Apply(e, Report{Status: InProgress}, t0)
	replaced, _ := Apply(e, Report{Status: InProgress, Details: map[string]string{"x": "y"}}, t0)
	if kept.Step() != "fetching" || replaced.Step() != "" || replaced.Details["x"] != "y" {
		t.Fatalf("kept %v, replaced %v", kept.Details, replaced.Details)
	}
}

func TestStartIsIdempotent(t *testing.T) {
	e, err := Start(Execution{Status: Queued, Version: 1}, Starting{Details: map[string]string{"a": "b"}}, t0)
	if err != nil || e.Status != InProgress || e.Version != 2 {
		t.Fatalf("%+v, %v", e, err)
	}
	again, err := Start(e, Starting{}, t0.Add(time.Hour))
	if err != nil || cmp.Diff(e, again) != "" {
		t.Fatalf("starting again changed it: %+v, %v", again, err)
	}
	if _, err := Start(Execution{Status: Canceled}, Starting{}, t0); !errors.Is(err, ErrTerminal) {
		t.Fatalf("started a cancelled execution: %v", err)
	}
}

// TestCancelLeavesWhatIsActivated walks every (status, step) pair.
func TestCancelLeavesWhatIsActivated(t *testing.T) {
	early := map[Step]bool{StepWaiting: true, StepFetching: true, StepStaged: true}
	for _, s := range Statuses {
		for _, step := range []Step{"", StepWaiting, StepFetching, StepStaged, StepRebooting, StepTrial, StepCommitting, StepRollingBack, "its own"} {
			before := Execution{Status: s, Version: 1, Details: map[string]string{DetailStep: string(step)}, Expires: t0, ExpiresAs: ClassSilent}
			e, changed := Cancel(before, "why", t0)
			if want := s == Queued || s == InProgress && early[step]; changed != want || !changed && cmp.Diff(before, e) != "" {
				t.Errorf("%s at %s: changed %v to %s", s, step, changed, e.Status)
			}
			if changed && (e.Status != Canceled || e.Class != ClassNone || e.Reason() != "why" || e.Version != 2 || e.FinishedAt.IsZero() || !e.Expires.IsZero()) {
				t.Errorf("%s at %s: %+v", s, step, e)
			}
			e, changed = Supersede(before, "r-2", t0)
			if changed != (s == Queued) || changed && (e.Status != Canceled || e.Reason() != "superseded by rollout r-2") {
				t.Errorf("%s at %s: superseded %v, %+v", s, step, changed, e)
			}
		}
	}
}

func TestRemoveEndsWhatIsNotFinished(t *testing.T) {
	for _, s := range Statuses {
		e, changed := Remove(Execution{Status: s, Version: 1}, "why", t0)
		if changed == s.Terminal() || changed && (e.Status != Removed || e.Class != ClassNone || e.Version != 2 || e.FinishedAt.IsZero()) {
			t.Errorf("%s: changed %v to %+v", s, changed, e)
		}
	}
}

func TestBeforeIsCommandThenPriorityThenAge(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	e := func(id string, age time.Duration) Execution { return Execution{RolloutID: id, QueuedAt: at.Add(-age)} }
	command := func(id string, age time.Duration) Execution {
		x := e(id, age)
		x.Command = &Command{}
		return x
	}
	for _, c := range []struct {
		a      Execution
		pa     int
		b      Execution
		pb     int
		before bool
	}{
		{e("a", 0), 1, e("b", time.Hour), 0, true},
		{e("a", time.Hour), 0, e("b", 0), 1, false},
		{e("b", time.Second), 0, e("a", 0), 0, true},
		{e("a", 0), 0, e("b", 0), 0, true},
		{e("a", 0), 0, e("a", 0), 0, false},
		{command("b", 0), 0, e("a", time.Hour), 9, true},
		{e("a", time.Hour), 9, command("b", 0), 0, false},
		{command("b", 0), 1, command("a", time.Hour), 0, true},
	} {
		if got := Before(c.a, c.pa, c.b, c.pb); got != c.before {
			t.Errorf("%v of %d before %v of %d: %v", c.a, c.pa, c.b, c.pb, got)
		}
		if c.before && Before(c.b, c.pb, c.a, c.pa) {
			t.Errorf("%v and %v stand before each other", c.a, c.b)
		}
	}
}
