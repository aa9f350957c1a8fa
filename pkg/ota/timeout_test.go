package ota

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The timers of one execution, report by report: minutes after t0.
func TestTimeouts(t *testing.T) {
	type at struct {
		minute int
		status Status
		step   time.Duration
		want   int // when it expires, in minutes after t0; 0: never
	}
	const none = NoStepTimeout
	for _, c := range []struct {
		name    string
		timeout time.Duration
		reports []at
	}{
		{"none", 0, []at{{1, InProgress, 0, 0}, {9, InProgress, 0, 0}, {10, Succeeded, 0, 0}}},
		{"the rollout's, fixed by the start", time.Hour, []at{{1, InProgress, 0, 61}, {9, InProgress, 0, 61}, {10, InProgress, none, 61}, {20, Failed, 0, 0}}},
		{"a step's", 0, []at{{1, InProgress, 5 * time.Minute, 6}, {3, InProgress, 0, 6}, {4, InProgress, 10 * time.Minute, 14}, {5, InProgress, time.Minute, 6}, {6, InProgress, none, 0}, {7, InProgress, 0, 0}}},
		{"a step's below the rollout's", time.Hour, []at{
			{1, InProgress, 5 * time.Minute, 6}, {5, InProgress, 2 * time.Hour, 61}, {6, InProgress, 10 * time.Minute, 16}, {7, InProgress, none, 61}, {8, InProgress, 53 * time.Minute, 61}, {9, Succeeded, 5 * time.Minute, 0},
		}},
		{"straight to the end", time.Hour, []at{{1, Succeeded, 0, 0}}},
	} {
		e := Execution{Status: Queued, Version: 1, Timeout: c.timeout, QueuedAt: t0}
		for i, r := range c.reports {
			now := t0.Add(time.Duration(r.minute) * time.Minute)
			var err error
			if e, err = Apply(e, Report{Status: r.status, StepTimeout: r.step}, now); err != nil {
				t.Fatalf("%s, report %d: %v", c.name, i+1, err)
			}
			want := time.Time{}
			if r.want != 0 {
				want = t0.Add(time.Duration(r.want) * time.Minute)
			}
			if !e.Expires.Equal(want) {
				t.Errorf("%s, report %d: expires %v, want %v", c.name, i+1, e.Expires, want)
			}
		}
	}
	e, err := Start(Execution{Status: Queued, Timeout: time.Hour}, Starting{StepTimeout: time.Minute}, t0)
	if err != nil || !e.Expires.Equal(t0.Add(time.Minute)) {
		t.Errorf("started with a step timeout: %+v, %v", e, err)
	}
	again, err := Start(e, Starting{StepTimeout: 10 * time.Minute}, t0)
	if err != nil || cmp.Diff(e, again) != "" {
		t.Errorf("starting again moved the timer: %+v, %v", again, err)
	}
}

func TestTimeoutLimits(t *testing.T) {
	for _, c := range []struct {
		step time.Duration
		ok   bool
	}{
		{0, true}, {NoStepTimeout, true}, {MinTimeout, true}, {MaxTimeout, true},
		{MinTimeout - 1, false}, {MaxTimeout + 1, false}, {-2, false}, {-time.Minute, false},
	} {
		_, err := Apply(Execution{Status: InProgress}, Report{Status: InProgress, StepTimeout: c.step}, t0)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("step of %s: %v", c.step, err)
		}
		stages, _ := ParseStages("100%", Gate{}, 0)
		err = Rollout{Release: ReleaseID{Name: "a", Version: "1"}, Stages: stages, InProgressTimeout: c.step}.Validate()
		if (err == nil) != (c.ok && c.step != NoStepTimeout) || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("rollout with %s: %v", c.step, err)
		}
	}
}

func TestExpireEndsWhatIsDue(t *testing.T) {
	for _, s := range Statuses {
		for _, expires := range []time.Time{{}, t0.Add(-time.Second), t0, t0.Add(1)} {
			e := Execution{Status: s, Version: 1, Details: map[string]string{"step": "fetching"}, Expires: expires, ExpiresAs: ClassSilent}
			got, changed := Expire(e, t0)
			if due := !s.Terminal() && !expires.IsZero() && !expires.After(t0); changed != due {
				t.Errorf("%s, expires %v: changed %v", s, expires, changed)
			}
			if !changed {
				if cmp.Diff(e, got) != "" {
					t.Errorf("%s was let be but changed: %+v", s, got)
				}
				continue
			}
			if got.Status != TimedOut || got.Class != ClassSilent || got.Version != 2 || !got.FinishedAt.Equal(t0) || !got.Expires.IsZero() || got.Step() != "fetching" {
				t.Errorf("%+v", got)
			}
			if _, again := Expire(got, t0.Add(time.Hour)); again {
				t.Error("expired twice")
			}
			if _, err := Apply(got, Report{Status: Succeeded}, t0); !errors.Is(err, ErrTerminal) {
				t.Errorf("a late report: %v", err)
			}
		}
	}
}

// The timers of a plan, report by report: minutes after t0.
func TestTimersRunFromTheStepTheyBelongTo(t *testing.T) {
	timers := Timers{Claim: 30 * time.Minute, Fetch: 20 * time.Minute, Install: 5 * time.Minute, Reboot: 4 * time.Minute, Health: 10 * time.Minute}
	e := Queue(Execution{Timers: timers, Timeout: time.Hour}, t0)
	at := func(minute int) time.Time { return t0.Add(time.Duration(minute) * time.Minute) }
	expect := func(minute int, class Class) {
		t.Helper()
		if !e.Expires.Equal(at(minute)) || e.ExpiresAs != class {
			t.Fatalf("%s expires %v as %q, want minute %d as %q", e.Step(), e.Expires, e.ExpiresAs, minute, class)
		}
	}
	expect(30, ClassTimedOut)
	for _, c := range []struct {
		minute  int
		step    Step
		timeout time.Duration
		want    int
		class   Class
	}{
		{10, StepWaiting, 0, 70, ClassTimedOut}, // the whole alone
		{12, StepFetching, 0, 32, ClassTimedOut},
		{20, StepFetching, 0, 32, ClassTimedOut},             // the same step: its timer runs on
		{21, StepFetching, NoStepTimeout, 32, ClassTimedOut}, // a device does not lift the plan's bound
		{22, StepFetching, 2 * time.Hour, 32, ClassTimedOut},
		{23, StepFetching, time.Minute, 24, ClassTimedOut}, // but may set a shorter one
		{23, StepStaged, 0, 28, ClassTimedOut},
		{24, StepRebooting, 0, 28, ClassSilent},
		{27, StepTrial, 0, 37, ClassSilent},
		{36, StepCommitting, 0, 46, ClassSilent},
		{37, StepRollingBack, 0, 41, ClassSilent},
		{69, StepTrial, 0, 70, ClassTimedOut}, // the whole is nearer
		{69, "its own", 0, 70, ClassTimedOut},
	} {
		var err error
		e, err = Apply(e, Report{Status: InProgress, StepTimeout: c.timeout, Details: map[string]string{DetailStep: string(c.step)}}, at(c.minute))
		if err != nil {
			t.Fatal(err)
		}
		expect(c.want, c.class)
	}
	over, ended := Expire(e, at(70))
	if !ended || over.Class != ClassTimedOut {
		t.Errorf("%+v", over)
	}
}

func TestRetry(t *testing.T) {
	retry := Retry{Attempts: 4, Backoff: time.Hour, On: []Class{ClassFailed, ClassSilent}}
	for _, c := range []struct {
		status  Status
		class   Class
		attempt int
		want    time.Duration // 0: never
	}{
		{Failed, ClassFailed, 1, time.Hour}, {Failed, ClassFailed, 2, 2 * time.Hour}, {Failed, ClassFailed, 3, 4 * time.Hour},
		{Failed, ClassFailed, 4, 0}, {Failed, ClassSilent, 1, time.Hour}, {Failed, ClassRolledBack, 1, 0}, {Rejected, ClassRejected, 1, 0}, {Succeeded, ClassSucceeded, 1, 0},
	} {
		e := Execution{Status: InProgress, Attempt: c.attempt, Retry: retry}
		details := map[string]string{}
		if c.status == Failed {
			details[DetailClass] = string(c.class)
		}
		e, err := Apply(e, Report{Status: c.status, Details: details}, t0)
		want := time.Time{}
		if c.want > 0 {
			want = t0.Add(c.want)
		}
		if err != nil || e.Class != c.class || !e.RetryAt.Equal(want) {
			t.Errorf("%s %d: %s, retry at %v, want %v; %v", c.class, c.attempt, e.Class, e.RetryAt, want, err)
		}
	}
	e, _ := Expire(Execution{Status: Queued, Attempt: 1, Expires: t0, ExpiresAs: ClassTimedOut, Retry: Retry{Attempts: 2}}, t0)
	if !e.RetryAt.Equal(t0) {
		t.Errorf("what timed out is retried by default: %v", e.RetryAt)
	}
	far := Execution{Attempt: 10, Class: ClassFailed, FinishedAt: t0}
	if got := (Retry{Attempts: 11, Backoff: MaxBackoff}).after(far); !got.Equal(t0.Add(MaxBackoff)) {
		t.Errorf("backoff over its limit: %v", got)
	}
}

// Whatever a device says, its execution ends by the rollout's timeout at the
// latest.
func TestTimeoutProperty(t *testing.T) {
	steps := rapid.SampledFrom([]time.Duration{0, NoStepTimeout, MinTimeout, time.Hour, MaxTimeout})
	rapid.Check(t, func(t *rapid.T) {
		e := Execution{Status: Queued, Version: 1, Timeout: rapid.SampledFrom([]time.Duration{0, MinTimeout, 2 * time.Hour, MaxTimeout}).Draw(t, "timeout")}
		now := t0
		for range rapid.IntRange(1, 12).Draw(t, "reports") {
			now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "minutes")) * time.Minute)
			r := Report{Status: rapid.SampledFrom(Statuses).Draw(t, "status"), StepTimeout: steps.Draw(t, "step")}
			if rapid.IntRange(0, 3).Draw(t, "expire") == 0 {
				e, _ = Expire(e, now)
			} else if next, err := Apply(e, r, now); err == nil {
				e = next
			}
			switch {
			case e.Status.Terminal() && !e.Expires.IsZero():
				t.Fatalf("%s expires %v", e.Status, e.Expires)
			case e.Expires.IsZero() != (e.ExpiresAs == ClassNone):
				t.Fatalf("expires %v as %q", e.Expires, e.ExpiresAs)
			case e.Status == InProgress && e.Timeout > 0 && (e.Expires.IsZero() || e.Expires.After(e.StartedAt.Add(e.Timeout))):
				t.Fatalf("started %v, timeout %s, expires %v", e.StartedAt, e.Timeout, e.Expires)
			}
		}
	})
}

// A device that waits for its window before it begins keeps its place, and its
// claim runs from the opening.
func TestWaitingBeforeTheStart(t *testing.T) {
	e := Queue(Execution{Attempt: 1, Timers: Timers{Claim: time.Hour}, Window: Window{RRule: "FREQ=DAILY;BYHOUR=2", Duration: 3600}}, t0)
	wait := Report{Status: Queued, Details: map[string]string{DetailStep: string(StepWaiting), DetailReason: "window opens at two"}}
	got, err := Apply(e, wait, t0.Add(time.Minute))
	if err != nil || got.Status != Queued || got.Version != 2 || got.Reason() != "window opens at two" || !got.StartedAt.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	if want := time.Date(2026, 3, 2, 2, 0, 0, 0, time.UTC).Add(15 * time.Hour); !got.Expires.Equal(want) {
		t.Errorf("its claim ends %v, want %v", got.Expires, want)
	}
	e.Window = Window{}
	if got, _ = Apply(e, wait, t0.Add(time.Minute)); !got.Expires.Equal(t0.Add(61 * time.Minute)) {
		t.Errorf("without a window its claim ends %v", got.Expires)
	}
	for _, bad := range []Report{{Status: Queued}, {Status: Queued, Details: map[string]string{DetailStep: "fetching"}}, {Status: Queued, Details: wait.Details, ExpectedVersion: 9}} {
		if got, err := Apply(e, bad, t0); err == nil || got.Version != 1 {
			t.Errorf("%+v: %+v, %v", bad, got, err)
		}
	}
	e.Status = InProgress
	if _, err := Apply(e, wait, t0); !errors.Is(err, ErrTransition) {
		t.Errorf("one in progress went back: %v", err)
	}
}
