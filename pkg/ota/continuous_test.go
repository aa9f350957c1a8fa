package ota

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func continuous(r Rollout) Rollout {
	r.Terms.Continuous, r.Follows = true, true
	return r
}

// TestPlanOfAContinuousRollout has a row for each way that the last stage of a
// continuous rollout may go.
func TestPlanOfAContinuousRollout(t *testing.T) {
	idle := func(r Rollout) Rollout { r.Idle = true; return r }
	skipped := func(r Rollout) Rollout { r.Stages[1].SkippedAt = t0; return r }
	armed := func(p Progress, c Counts) Progress { p.Armed = c; return p }
	watched := func(p Progress) Progress { p.Health.Watched = 1; return p }
	scheduled := in(RolloutScheduled)
	scheduled.Terms.Continuous, scheduled.Terms.Start = true, time.Time{}
	finishing := continuous(rollout(StagePassed, StageOpen))
	finishing.State, finishing.Follows = RolloutFinishing, false
	for name, c := range map[string]struct {
		r       Rollout
		p       Progress
		state   RolloutState
		stage   StageState // the last
		idle    bool
		stays   bool
		take    *Taking
		cancel  bool
		arrange bool
	}{
		"it follows before it is arranged": {r: scheduled, state: RolloutScheduled, stage: StagePending},
		"and is arranged then":             {r: continuous(scheduled), state: RolloutScheduled, stage: StagePending, arrange: true, stays: true},
		"it takes the devices that joined": {r: untaken(continuous(rollout(StagePassed, StageOpen)), 90), p: progress(counts(0, 0, 50, 0), counts(0, 0, 40, 0)),
			state: RolloutRunning, stage: StageOpen, take: &Taking{Stage: 1, From: 90, To: 100}},
		"also when it was idle": {r: idle(untaken(continuous(rollout(StagePassed, StageOpen)), 90)), p: progress(counts(0, 0, 50, 0), counts(0, 0, 40, 0)),
			state: RolloutRunning, stage: StageOpen, take: &Taking{Stage: 1, From: 90, To: 100}},
		"at its rate": {r: rated(untaken(continuous(rollout(StagePassed, StageOpen)), 10)), p: progress(counts(0, 0, 10, 0)),
			state: RolloutRunning, stage: StageOpen, take: &Taking{Stage: 1, From: 10, To: 12}},
		"it waits for what is in flight": {r: continuous(rollout(StagePassed, StageOpen)), p: progress(counts(0, 0, 50, 0), counts(0, 1, 49, 0)),
			state: RolloutRunning, stage: StageOpen, stays: true},
		"nor is it idle while devices are compared": {r: continuous(rollout(StagePassed, StageOpen)), p: watched(progress(counts(0, 0, 50, 0), counts(0, 0, 50, 0))),
			state: RolloutRunning, stage: StageOpen, stays: true},
		"its gate is met: it is idle and does not end": {r: continuous(rollout(StagePassed, StageOpen)), p: progress(counts(0, 0, 50, 0), counts(0, 0, 50, 0)),
			state: RolloutRunning, stage: StageOpen, idle: true},
		"and stays so": {r: idle(continuous(rollout(StagePassed, StageOpen))), p: progress(counts(0, 0, 50, 0), counts(0, 0, 50, 0)),
			state: RolloutRunning, stage: StageOpen, idle: true, stays: true},
		"without a device it is idle": {r: continuous(rollout(StagePassed, StageOpen)), p: progress(),
			state: RolloutRunning, stage: StageOpen, idle: true},
		"all of them left: it is idle": {r: continuous(rollout(StagePassed, StageOpen)), p: progress(Counts{}, Counts{Finished: map[Class]int{ClassNone: 5}}),
			state: RolloutRunning, stage: StageOpen, idle: true},
		"its gate is not met": {r: continuous(rollout(StagePassed, StageOpen)), p: armed(progress(counts(0, 0, 50, 0), counts(0, 0, 40, 10)), Counts{}),
			state: RolloutPaused, stage: StageFailed},
		"an operator has skipped what failed": {r: skipped(continuous(rollout(StagePassed, StageOpen))), p: armed(progress(counts(0, 0, 50, 0), counts(0, 0, 40, 10)), Counts{}),
			state: RolloutRunning, stage: StageOpen, idle: true},
		"and it fails again": {r: skipped(continuous(rollout(StagePassed, StageOpen))), p: armed(progress(counts(0, 0, 50, 0), counts(0, 0, 40, 10)), counts(0, 0, 2, 1)),
			state: RolloutPaused, stage: StageFailed},
		"an abort rule trips in an idle one that is looked at": {r: idle(continuous(rollout(StagePassed, StageOpen))), p: progress(counts(0, 0, 5, 50), counts(0, 0, 0, 50)),
			state: RolloutAborting, stage: StageFailed},
		"finishing cancels what is queued": {r: finishing, p: progress(counts(0, 0, 50, 0), counts(3, 2, 45, 0)),
			state: RolloutFinishing, stage: StageOpen, cancel: true, stays: true},
		"and ends, its stage by its gate": {r: finishing, p: progress(counts(0, 0, 50, 0), counts(0, 0, 45, 0)), state: RolloutCompleted, stage: StagePassed},
		"or without it":                   {r: finishing, p: progress(counts(0, 0, 50, 0), counts(0, 0, 40, 10)), state: RolloutCompleted, stage: StageFailed},
	} {
		t.Run(name, func(t *testing.T) {
			before := c.r.Stages[len(c.r.Stages)-1]
			d := Plan(c.r, c.p, t0)
			last := d.Rollout.Stages[len(d.Rollout.Stages)-1].State
			if d.Rollout.State != c.state || last != c.stage || d.Rollout.Idle != c.idle || d.Changed == c.stays || d.Cancel != c.cancel || d.Arrange != c.arrange {
				t.Errorf("%s, last stage %s, idle %v, changed %v, cancel %v, arrange %v", d.Rollout.State, last, d.Rollout.Idle, d.Changed, d.Cancel, d.Arrange)
			}
			if diff := cmp.Diff(c.take, d.Take); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(before, c.r.Stages[len(c.r.Stages)-1]); diff != "" {
				t.Error("the input has changed", diff)
			}
			if d.Rollout.Follows && (c.state == RolloutAborting || c.state == RolloutCompleted) {
				t.Error("it follows still")
			}
		})
	}
}

// TestMoveOfWalksItsTable has a row for every row of MoveOf's table.
func TestMoveOfWalksItsTable(t *testing.T) {
	r := continuous(rollout(StagePassed, StageOpen))
	r.Terms.Retry = Retry{Attempts: 3, Backoff: time.Minute}
	r.Cursor = 10
	now := t0.Add(time.Hour)
	in := func(status Status, class Class, change ...func(*Execution)) *Execution {
		e := Execution{RolloutID: r.ID, DeviceID: "d", Attempt: 1, Status: status, Class: class, Version: 1, Retry: r.Terms.Retry}
		if status.Terminal() {
			e.FinishedAt = t0
		}
		for _, f := range change {
			f(&e)
		}
		return &e
	}
	again := func(e *Execution) { e.RetryAt = t0.Add(2 * time.Hour) }
	left := func(e *Execution) { e.Details = map[string]string{DetailReason: LeftReason} }
	deleted := func(e *Execution) { e.Details = map[string]string{DetailReason: DeletedReason} }
	strand := func(e *Execution) { e.Details = map[string]string{DetailReason: StrandedReason + "why"} }
	last := func(e *Execution) { e.Attempt = MaxAttempts }
	third := func(e *Execution) { e.Attempt = 3 }
	both := Belonging{Meant: true, Eligible: true}
	place := func(b Belonging, turn int, left bool) Belonging {
		b.InLine, b.Turn, b.Left = true, turn, left
		return b
	}
	with := func(b Belonging, e *Execution) Belonging { b.Newest = e; return b }
	over := func(b Belonging) Belonging { b.Superseded = true; return b }
	for name, c := range map[string]struct {
		b     Belonging
		move  Move
		retry time.Time // when the execution is tried again
		ends  Status    // how it ends, empty: as it was
		same  bool      // the execution stays
	}{
		"a stranger":                         {b: Belonging{}, same: true},
		"a device that can not have it":      {b: Belonging{Meant: true}, same: true},
		"a joiner":                           {b: both, move: MoveJoin, same: true},
		"a joiner that is superseded":        {b: over(both), same: true},
		"one that waits for its turn":        {b: place(both, 10, false), same: true},
		"one that has lost its turn":         {b: place(both, 9, false), move: MoveJoin, same: true},
		"one that came back before its turn": {b: place(both, 12, true), move: MoveJoin, same: true},
		"a leaver before its turn":           {b: place(Belonging{}, 12, false), move: MoveLeave, same: true},
		"one that has left":                  {b: place(Belonging{}, 12, true), same: true},
		"a leaver that is queued":            {b: with(place(Belonging{}, 3, false), in(Queued, "")), move: MoveLeave, ends: Canceled},
		"a leaver at work":                   {b: with(place(Belonging{}, 3, false), in(InProgress, "")), move: MoveLeave, same: true},
		"a leaver that succeeded":            {b: with(place(Belonging{}, 3, false), in(Succeeded, ClassSucceeded)), move: MoveLeave, same: true},
		"a leaver that would try again":      {b: with(place(Belonging{}, 3, false), in(Failed, ClassFailed, again)), move: MoveLeave},
		"one that left, failed since":        {b: with(place(Belonging{}, 3, true), in(Failed, ClassFailed, again))},
		"back, cancelled when it left":       {b: with(place(both, 3, true), in(Canceled, "", left)), move: MoveJoin, retry: now},
		"back once too often":                {b: with(place(both, 3, true), in(Canceled, "", left, last)), move: MoveJoin, same: true},
		"back, cancelled by another":         {b: with(place(both, 3, true), in(Canceled, "")), move: MoveJoin, same: true},
		"back, its retry was taken away":     {b: with(place(both, 3, true), in(Failed, ClassFailed)), move: MoveJoin, retry: now},
		"back, its attempts are over":        {b: with(place(both, 3, true), in(Failed, ClassFailed, third)), move: MoveJoin, same: true},
		"back, and is not retried":           {b: with(place(both, 3, true), in(Rejected, ClassRejected)), move: MoveJoin, same: true},
		"back, drifted":                      {b: with(place(both, 3, true), in(Succeeded, ClassDrifted)), move: MoveJoin, retry: now.Add(time.Minute)},
		"back, on its way":                   {b: with(place(both, 3, true), in(Succeeded, ClassUnderway)), move: MoveJoin, retry: now},
		"back, succeeded":                    {b: with(place(both, 3, true), in(Succeeded, ClassSucceeded)), move: MoveJoin, same: true},
		"back, removed":                      {b: with(place(both, 3, true), in(Removed, "")), move: MoveJoin, same: true},
		"back, removed when it was deleted":  {b: with(place(both, 3, true), in(Removed, "", deleted)), move: MoveJoin, retry: now},
		"deleted once too often":             {b: with(place(both, 3, true), in(Removed, "", deleted, last)), move: MoveJoin, same: true},
		"back, at work still":                {b: with(place(both, 3, true), in(InProgress, "")), move: MoveJoin, same: true},
		"back, but runs it":                  {b: with(place(Belonging{Meant: true}, 3, true), in(Canceled, "", left)), same: true},
		"never left, failed":                 {b: with(place(both, 3, false), in(Failed, ClassFailed)), same: true},
		"no way led on, and one does":        {b: with(place(both, 3, false), in(Rejected, ClassRejected, strand)), retry: now},
		"back, and a way leads on":           {b: with(place(both, 3, true), in(Rejected, ClassRejected, strand)), move: MoveJoin, retry: now},
		"no way led on, waits to try again":  {b: with(place(both, 3, false), in(Rejected, ClassRejected, strand, again)), same: true},
		"no way led on once too often":       {b: with(place(both, 3, false), in(Rejected, ClassRejected, strand, last)), same: true},
		"no way led on, it is superseded":    {b: with(over(place(both, 3, false)), in(Rejected, ClassRejected, strand)), same: true},
		"it refused by itself":               {b: with(place(both, 3, false), in(Rejected, ClassRejected)), same: true},
	} {
		t.Run(name, func(t *testing.T) {
			move, e := MoveOf(r, c.b, now)
			if move != c.move {
				t.Errorf("%q, want %q", move, c.move)
			}
			if c.same {
				if e != nil {
					t.Errorf("becomes %+v", *e)
				}
				return
			}
			want := c.ends
			if want == "" {
				want = c.b.Newest.Status
			}
			if e == nil || e.Status != want || !e.RetryAt.Equal(c.retry) || e.Attempt != c.b.Newest.Attempt {
				t.Fatalf("becomes %+v", e)
			}
			if c.ends != "" && (e.Version != 2 || e.Reason() != LeftReason) {
				t.Errorf("ends as %+v", *e)
			}
		})
	}
}

func TestImpossibleContinuousPlansAreRefused(t *testing.T) {
	for want, change := range map[string]func(*Rollout){
		"a command can not be continuous":                           func(r *Rollout) { r.Release, r.Command = ReleaseID{}, &Command{Name: "x"} },
		"the last stage of a continuous rollout is 100%, not 50%":   func(r *Rollout) { r.Stages = r.Stages[:1] },
		"the last stage of a continuous rollout is 100%, not 7":     func(r *Rollout) { r.Stages[1].Size = Size{Count: 7} },
		"stage 1 is a selector, and devices that join a continuous": func(r *Rollout) { r.Stages[0].Size = Size{Selector: "x"} },
	} {
		r := continuous(rollout(StagePending, StagePending))
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&r)
		if err := r.Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestFinishFitsTheState walks the states.
func TestAFinishedRolloutIsJudgedByWhatFinishedSinceItWasSkipped(t *testing.T) {
	r := continuous(rollout(StagePassed, StageOpen))
	r.State, r.Cursor = RolloutFinishing, r.Stages[1].Target
	failed := Counts{Finished: map[Class]int{ClassRolledBack: 2}}
	for _, tc := range []struct {
		skipped time.Time
		armed   Counts
		want    StageState
	}{
		{time.Time{}, Counts{}, StageFailed},
		{t0, Counts{}, StagePassed},
		{t0, failed, StageFailed},
	} {
		r.Stages[1].SkippedAt = tc.skipped
		d := Plan(r, Progress{Stages: []Counts{{}, failed}, Armed: tc.armed}, t0)
		if got := d.Rollout.Stages[1].State; got != tc.want || d.Rollout.State != RolloutCompleted {
			t.Errorf("skipped at %s: %s, the rollout %s", tc.skipped, got, d.Rollout.State)
		}
	}
}

func TestFinishFitsTheState(t *testing.T) {
	for _, state := range RolloutStates {
		r := continuous(rollout(StagePassed, StageOpen))
		r.State, r.Idle = state, true
		got, err := Finish(r, "why")
		if may := state == RolloutRunning || state == RolloutPaused; !may {
			if !errors.Is(err, ErrState) || cmp.Diff(r, got) != "" {
				t.Errorf("in %s: %s, %v", state, got.State, err)
			}
			continue
		}
		if err != nil || got.State != RolloutFinishing || got.Reason != "why" || got.Follows || got.Idle {
			t.Errorf("in %s: %+v, %v", state, got, err)
		}
	}
	for name, change := range map[string]func(*Rollout){
		"not continuous":   func(r *Rollout) { r.Terms.Continuous = false },
		"not begun":        func(r *Rollout) { r.StartedAt = time.Time{} },
		"its revert waits": func(r *Rollout) { r.Reverting = true },
	} {
		r := continuous(rollout(StagePassed, StageOpen))
		r.State = RolloutPaused
		change(&r)
		if _, err := Finish(r, "why"); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSkippingTheLastStageOfAContinuousRolloutKeepsItOpen(t *testing.T) {
	r := continuous(rollout(StagePassed, StageFailed))
	r.State = RolloutPaused
	got, err := Resume(r, ResumeSkip, t0)
	if s := got.Stages[1]; err != nil || got.State != RolloutRunning || s.State != StageOpen || !s.SkippedAt.Equal(t0) || !got.ArmedAt.Equal(t0) || !s.EndedAt.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	r = continuous(rollout(StageFailed, StagePending))
	r.State = RolloutPaused
	if got, err = Resume(r, ResumeSkip, t0); err != nil || got.Stages[0].State != StagePassed {
		t.Errorf("another stage: %+v, %v", got, err)
	}
}

func TestWhoTakesWhosePlace(t *testing.T) {
	older := continuous(rollout(StagePassed, StageOpen))
	newer := continuous(rollout(StagePending, StagePending))
	newer.ID, newer.CreatedAt, newer.Release.Version = "r-2", t0, "2.0"
	if !newer.TakesPlaceOf(older) {
		t.Fatal("the newer one does not")
	}
	for name, change := range map[string]func(o, n *Rollout){
		"another selector":      func(o, _ *Rollout) { o.Selector = "x" },
		"another firmware":      func(o, _ *Rollout) { o.Release.Name = "x" },
		"of a higher priority":  func(o, _ *Rollout) { o.Priority = 1 },
		"the newer by itself":   func(o, n *Rollout) { *o, *n = *n, *o },
		"the older is not":      func(o, _ *Rollout) { o.Terms.Continuous = false },
		"the newer is not":      func(_, n *Rollout) { n.Terms.Continuous = false },
		"it has not begun":      func(o, _ *Rollout) { o.StartedAt = time.Time{} },
		"it finishes already":   func(o, _ *Rollout) { o.State = RolloutFinishing },
		"it was paused to roll": func(o, _ *Rollout) { o.State, o.Reverting = RolloutPaused, true },
	} {
		o, n := older, newer
		change(&o, &n)
		if n.TakesPlaceOf(o) {
			t.Error(name)
		}
	}
}

func TestJoinedLeavesItsInputAlone(t *testing.T) {
	r := continuous(rollout(StagePassed, StageOpen))
	r.Idle = true
	before := slices.Clone(r.Stages)
	got := Joined(r, 3, 2)
	if got.Stages[1].Target != 103 || got.Population != 102 || got.Idle || cmp.Diff(before, r.Stages) != "" {
		t.Errorf("%+v", got)
	}
}

func TestAContinuousRolloutBeginsWithoutADevice(t *testing.T) {
	r := Begin(continuous(in(RolloutScheduled)), []Stage{{State: StagePending}}, 0, "line", t0)
	if r.State != RolloutRunning || r.StartedAt.IsZero() {
		t.Errorf("%+v", r)
	}
}
