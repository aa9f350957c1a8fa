package ota

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func rollout(states ...StageState) Rollout {
	r := Rollout{
		ID: "r-1", Release: ReleaseID{"gw", "1.0"}, Seed: "s", State: RolloutRunning, Population: 100, StartedAt: t0, PacedAt: t0,
		Abort: []AbortRule{{Class: ClassAny, Share: 0.5, MinSample: 4}},
	}
	for i, s := range states {
		st := Stage{Size: Size{Percent: float64(100 * (i + 1) / len(states))}, Target: 100 * (i + 1) / len(states), Gate: Gate{Success: 0.9}, Soak: time.Hour, State: s}
		if s != StagePending {
			st.OpenedAt = t0
			r.Cursor = st.Target
		}
		if s == StageSoaking {
			st.SoakingAt = t0
		}
		r.Stages = append(r.Stages, st)
	}
	return r
}

func counts(queued, inProgress, ok, failed int) Counts {
	return Counts{Queued: queued, InProgress: inProgress, Finished: map[Class]int{ClassSucceeded: ok, ClassFailed: failed}}
}

func progress(stages ...Counts) Progress {
	p := Progress{Stages: stages}
	p.Armed = p.Total()
	return p
}

// small has the first stage add no device.
func small(r Rollout) Rollout {
	r.Stages[0].Target, r.Cursor = 0, 0
	return r
}

// selective has the first stage be a selector.
func selective(r Rollout) Rollout {
	r.Stages[0].Size = Size{Selector: "x"}
	return r
}

// TestPlanWalksTheStageTable has a row for every row of Plan's table and for
// every stage state in every rollout state.
func TestPlanWalksTheStageTable(t *testing.T) {
	for _, c := range []struct {
		name     string
		r        Rollout
		p        Progress
		at       time.Duration
		state    RolloutState
		stages   []StageState
		take     *Taking
		cancel   bool
		arrange  bool
		wake     time.Duration
		mustStay bool
		revert   bool
	}{
		{name: "first stage opens", r: rollout(StagePending, StagePending), p: progress(),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}},
		{name: "an open stage takes its devices", r: untaken(rollout(StageOpen, StagePending), 0), p: progress(),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, take: &Taking{Stage: 0, To: 50}},
		{name: "and no more than its rate allows", r: rated(untaken(rollout(StageOpen, StagePending), 10)), p: progress(counts(10, 0, 0, 0)),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, take: &Taking{Stage: 0, From: 10, To: 12}},
		{name: "and waits for its rate", r: rated(untaken(rollout(StageOpen, StagePending), 10)), p: progress(counts(10, 0, 0, 0)), at: -time.Second,
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, wake: -time.Second / 2, mustStay: true},
		{name: "a stage is not judged while devices wait for their turn", r: rated(untaken(rollout(StageOpen, StagePending), 10)), p: progress(counts(0, 0, 0, 3)), at: -time.Second,
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, wake: -time.Second / 2, mustStay: true},
		{name: "retries come before new devices", r: rated(untaken(rollout(StageOpen, StagePending), 10)), p: due(progress(counts(0, 0, 9, 1)), 1),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, take: &Taking{Stage: 0, From: 10, To: 11, Retries: 1}},
		{name: "retries go on when all stages have passed", r: rollout(StagePassed, StagePassed), p: due(progress(counts(0, 0, 99, 1)), 1),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePassed}, take: &Taking{Stage: 1, From: 100, To: 100, Retries: 1}},
		{name: "a stage is not judged while a device will try again", r: rollout(StageOpen, StagePending), p: retrying(progress(counts(0, 0, 1, 1)), 1),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, wake: time.Hour, mustStay: true},
		{name: "a stage that needs approval waits", r: approval(rollout(StagePassed, StagePending), false), p: progress(counts(0, 0, 50, 0)),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePending}, mustStay: true},
		{name: "and opens when it has it", r: approval(rollout(StagePassed, StagePending), true), p: progress(counts(0, 0, 50, 0)),
			state: RolloutRunning, stages: []StageState{StagePassed, StageOpen}},
		{name: "a scheduled one waits for its time", r: in(RolloutScheduled), p: progress(),
			state: RolloutScheduled, stages: []StageState{StageFailed, StagePending}, wake: time.Minute, mustStay: true},
		{name: "and is arranged then", r: in(RolloutScheduled), p: progress(), at: time.Minute,
			state: RolloutScheduled, stages: []StageState{StageFailed, StagePending}, arrange: true, mustStay: true},
		{name: "a draft stays", r: in(RolloutDraft), p: progress(),
			state: RolloutDraft, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "one that awaits approval stays", r: in(RolloutAwaitingApproval), p: progress(),
			state: RolloutAwaitingApproval, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "open and unfinished stays", r: rollout(StageOpen, StagePending), p: progress(counts(1, 0, 49, 0)),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, mustStay: true},
		{name: "gate met soaks", r: rollout(StageOpen, StagePending), p: progress(counts(0, 0, 48, 2)),
			state: RolloutRunning, stages: []StageState{StageSoaking, StagePending}, wake: time.Hour},
		{name: "all finished, gate not met: failed and paused, never passed", r: rollout(StageOpen, StagePending), p: progress(counts(0, 0, 40, 10)),
			state: RolloutPaused, stages: []StageState{StageFailed, StagePending}},
		{name: "soaking waits", r: rollout(StageSoaking, StagePending), p: progress(counts(0, 0, 50, 0)), at: 59 * time.Minute,
			state: RolloutRunning, stages: []StageState{StageSoaking, StagePending}, wake: time.Hour, mustStay: true},
		{name: "soak over passes", r: rollout(StageSoaking, StagePending), p: progress(counts(0, 0, 50, 0)), at: time.Hour,
			state: RolloutRunning, stages: []StageState{StagePassed, StagePending}},
		{name: "gate lost while soaking opens again", r: rollout(StageSoaking, StagePending), p: progress(counts(0, 0, 40, 10)), at: time.Hour,
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}},
		{name: "next stage opens after the pass", r: rollout(StagePassed, StagePending), p: progress(counts(0, 0, 50, 0)),
			state: RolloutRunning, stages: []StageState{StagePassed, StageOpen}},
		{name: "all passed completes", r: rollout(StagePassed, StagePassed), p: progress(counts(0, 0, 50, 0), counts(0, 0, 50, 0)),
			state: RolloutCompleted, stages: []StageState{StagePassed, StagePassed}},
		{name: "all passed with stragglers waits", r: rollout(StagePassed, StagePassed), p: progress(counts(0, 1, 50, 0)),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePassed}, mustStay: true},
		{name: "abort rule trips", r: rollout(StageOpen, StagePending), p: progress(counts(40, 6, 1, 3)),
			state: RolloutAborting, stages: []StageState{StageFailed, StagePending}},
		{name: "abort rule below its sample does not", r: rollout(StageOpen, StagePending), p: progress(counts(40, 7, 0, 3)),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, mustStay: true},
		{name: "paused stays whatever happens", r: paused(), p: progress(counts(0, 0, 0, 50)),
			state: RolloutPaused, stages: []StageState{StageOpen, StagePending}, mustStay: true},
		{name: "aborting cancels what is queued", r: in(RolloutAborting), p: progress(counts(3, 1, 0, 4)),
			state: RolloutAborting, stages: []StageState{StageFailed, StagePending}, cancel: true, mustStay: true},
		{name: "aborting cancels what is in flight, if it can be", r: in(RolloutAborting), p: progress(counts(0, 1, 0, 4)),
			state: RolloutAborting, stages: []StageState{StageFailed, StagePending}, cancel: true, mustStay: true},
		{name: "aborting ends", r: in(RolloutAborting), p: progress(counts(0, 0, 0, 5)),
			state: RolloutAborted, stages: []StageState{StageFailed, StagePending}},
		{name: "abort rule trips, by the plan to be reverted", r: reverted(rollout(StageOpen, StagePending)), p: progress(counts(40, 6, 1, 3)),
			state: RolloutRollingBack, stages: []StageState{StageFailed, StagePending}},
		{name: "rolling back cancels what is queued", r: in(RolloutRollingBack), p: progress(counts(3, 1, 0, 4)),
			state: RolloutRollingBack, stages: []StageState{StageFailed, StagePending}, cancel: true, mustStay: true},
		{name: "rolling back cancels what is in flight, if it can be", r: in(RolloutRollingBack), p: progress(counts(0, 1, 0, 4)),
			state: RolloutRollingBack, stages: []StageState{StageFailed, StagePending}, cancel: true, mustStay: true},
		{name: "and then has its reverts made", r: in(RolloutRollingBack), p: progress(counts(0, 0, 3, 4)),
			state: RolloutRollingBack, stages: []StageState{StageFailed, StagePending}, revert: true, mustStay: true},
		{name: "and waits for the last of them", r: in(RolloutRollingBack), p: reverts(progress(counts(0, 0, 3, 4)), RolloutCompleted, RolloutPaused),
			state: RolloutRollingBack, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "and ends when they have, however that was", r: in(RolloutRollingBack), p: reverts(progress(counts(0, 0, 3, 4)), RolloutCompleted, RolloutAborted),
			state: RolloutRolledBack, stages: []StageState{StageFailed, StagePending}},
		{name: "rolled back stays", r: in(RolloutRolledBack), p: progress(counts(0, 0, 3, 4)),
			state: RolloutRolledBack, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "aborted stays", r: in(RolloutAborted), p: progress(counts(0, 0, 0, 5)),
			state: RolloutAborted, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "completed stays", r: in(RolloutCompleted), p: progress(counts(0, 0, 0, 50)),
			state: RolloutCompleted, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "a stage whose devices were given nothing proves nothing", r: rollout(StageOpen, StagePending), p: progress(Counts{}),
			state: RolloutPaused, stages: []StageState{StageFailed, StagePending}},
		{name: "the last one has nothing to prove", r: rollout(StagePassed, StageOpen), p: progress(counts(0, 0, 50, 0), Counts{}),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePassed}},
		{name: "a size that adds no device asks for no proof", r: small(rollout(StageOpen, StagePending)), p: progress(Counts{}),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePending}},
		{name: "nor does a command that wants no success", r: commandRollout(StageOpen, StagePending), p: progress(Counts{}),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePending}},
		{name: "a selector does, whomever it means", r: selective(small(rollout(StageOpen, StagePending))), p: progress(Counts{}),
			state: RolloutPaused, stages: []StageState{StageFailed, StagePending}},
		{name: "a stage with only cancelled executions proves nothing", r: rollout(StageOpen, StagePending),
			p:     progress(Counts{Finished: map[Class]int{ClassNone: 5}}),
			state: RolloutPaused, stages: []StageState{StageFailed, StagePending}},
		{name: "but a command that wants no success has nothing to prove", r: commandRollout(StageOpen, StagePending),
			p:     progress(Counts{Finished: map[Class]int{ClassNone: 5}}),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePending}},
		{name: "unless some of it goes on", r: commandRollout(StageOpen, StagePending),
			p:     progress(Counts{Queued: 1, Finished: map[Class]int{ClassNone: 5}}),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, mustStay: true},
		{name: "a command that wants success has its gate too", r: gated(commandRollout(StageOpen, StagePending), 0.5),
			p:     progress(Counts{Finished: map[Class]int{ClassNone: 5}}),
			state: RolloutPaused, stages: []StageState{StageFailed, StagePending}},
		{name: "a command passes whatever its results if it wants no success", r: commandRollout(StageOpen, StagePending), p: progress(counts(0, 0, 0, 3)),
			state: RolloutRunning, stages: []StageState{StageSoaking, StagePending}, wake: time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Plan(c.r, c.p, t0.Add(c.at))
			if d.Rollout.State != c.state {
				t.Errorf("state %s, want %s", d.Rollout.State, c.state)
			}
			for i, want := range c.stages {
				if got := d.Rollout.Stages[i].State; got != want {
					t.Errorf("stage %d is %s, want %s", i+1, got, want)
				}
			}
			if diff := cmp.Diff(c.take, d.Take); diff != "" {
				t.Errorf("takes:\n%s", diff)
			}
			if d.Cancel != c.cancel || d.Changed == c.mustStay || d.Arrange != c.arrange || d.Revert != c.revert {
				t.Errorf("cancel %v, changed %v, arrange %v", d.Cancel, d.Changed, d.Arrange)
			}
			want := time.Time{}
			if c.wake != 0 {
				want = t0.Add(c.wake)
			}
			if !d.Wake.Equal(want) {
				t.Errorf("wake %v, want %v", d.Wake, want)
			}
		})
	}
}

// untaken is the rollout with the cursor set back.
func untaken(r Rollout, cursor int) Rollout {
	r.Cursor = cursor
	return r
}

// rated makes two a second, starting with t0.
func rated(r Rollout) Rollout {
	r.Terms.Rate, r.PacedAt, r.Terms.Start = Rate{PerMinute: 120}, t0, t0
	return r
}

func gated(r Rollout, success float64) Rollout {
	for i := range r.Stages {
		r.Stages[i].Gate.Success = success
	}
	return r
}

func approval(r Rollout, given bool) Rollout {
	s := &r.Stages[len(r.Stages)-1]
	s.Approval = true
	if given {
		s.ApprovedAt = t0
	}
	return r
}

func due(p Progress, n int) Progress {
	p.Due, p.Stages[0].Retrying = n, n
	return p
}

func retrying(p Progress, n int) Progress {
	p.NextRetry, p.Stages[0].Retrying = t0.Add(time.Hour), n
	return p
}

func reverted(r Rollout) Rollout {
	r.Terms.OnAbort = AbortRevert
	return r
}

func reverts(p Progress, states ...RolloutState) Progress {
	for _, s := range states {
		p.Reverts = append(p.Reverts, Revert{State: s})
	}
	return p
}

func paused() Rollout {
	r := rollout(StageOpen, StagePending)
	r.State = RolloutPaused
	return r
}

func in(s RolloutState) Rollout {
	r := rollout(StageFailed, StagePending)
	r.State, r.Terms.Start = s, t0.Add(time.Minute)
	return r
}

func TestGateOverAPartOfTheStage(t *testing.T) {
	r := rollout(StageOpen, StagePending)
	r.Stages[0].Gate.MinFinished = 10
	if d := Plan(r, progress(counts(41, 0, 9, 0)), t0); d.Changed {
		t.Fatal("judged before the minimum")
	}
	if d := Plan(r, progress(counts(40, 0, 10, 0)), t0); d.Rollout.Stages[0].State != StageSoaking {
		t.Fatal("not judged at the minimum")
	}
	// Under the gate with executions still running it waits: they may lift it.
	if d := Plan(r, progress(counts(10, 28, 10, 2)), t0); d.Changed {
		t.Fatal("gave up while executions run")
	}
}

func TestRepeatedStageAsksForRetries(t *testing.T) {
	r := rollout(StageFailed, StagePending)
	r.State = RolloutPaused
	if _, err := Resume(r, "", t0); err == nil {
		t.Fatal("a failed stage was skipped by silence")
	}
	again, err := Resume(r, ResumeRepeat, t0)
	if err != nil {
		t.Fatal(err)
	}
	d := Plan(again, Progress{}, t0)
	if diff := cmp.Diff(&Taking{Stage: 0, Repeat: true}, d.Take); diff != "" {
		t.Fatal(diff)
	}
	skipped, err := Resume(r, ResumeSkip, t0)
	if err != nil || skipped.Stages[0].State != StagePassed || !skipped.Stages[0].SkippedAt.Equal(t0) || r.Stages[0].State != StageFailed {
		t.Fatalf("%+v %v, the input is now %v", skipped.Stages[0], err, r.Stages[0].State)
	}
	if !again.Stages[0].SkippedAt.IsZero() {
		t.Errorf("repeated, it was skipped at %s", again.Stages[0].SkippedAt)
	}
}

// TestOperatorActsFitTheState walks every (state, act) pair.
func TestOperatorActsFitTheState(t *testing.T) {
	acts := map[string]func(Rollout) (Rollout, error){
		"submit":  Submit,
		"approve": func(r Rollout) (Rollout, error) { return Approve(r, t0) },
		"edit":    func(r Rollout) (Rollout, error) { return Edit(r, r) },
		"stage":   func(r Rollout) (Rollout, error) { return ApproveStage(r, 2, t0) },
		"pause":   func(r Rollout) (Rollout, error) { return Pause(r, "why", "") },
		"let":     func(r Rollout) (Rollout, error) { return Pause(r, "why", PauseLetFinish) },
		"hold":    func(r Rollout) (Rollout, error) { return Pause(r, "why", PauseHoldBeforeInstall) },
		"resume":  func(r Rollout) (Rollout, error) { return Resume(r, "", t0) },
		"abort":   func(r Rollout) (Rollout, error) { return Abort(r, "why", "", t0) },
		"revert":  func(r Rollout) (Rollout, error) { return Abort(r, "why", AbortRevert, t0) },
	}
	want := map[RolloutState]map[string]RolloutState{
		RolloutDraft:            {"submit": RolloutAwaitingApproval, "edit": RolloutDraft, "stage": RolloutDraft, "abort": RolloutAborting},
		RolloutAwaitingApproval: {"approve": RolloutScheduled, "edit": RolloutAwaitingApproval, "stage": RolloutAwaitingApproval, "abort": RolloutAborting},
		RolloutScheduled:        {"pause": RolloutPaused, "let": RolloutPaused, "hold": RolloutPaused, "edit": RolloutAwaitingApproval, "stage": RolloutScheduled, "abort": RolloutAborting},
		RolloutRunning:          {"pause": RolloutPaused, "let": RolloutPaused, "hold": RolloutPaused, "stage": RolloutRunning, "abort": RolloutAborting},
		RolloutPaused:           {"hold": RolloutPaused, "resume": RolloutRunning, "stage": RolloutPaused, "abort": RolloutAborting},
		RolloutRollingBack:      {"pause": RolloutPaused, "let": RolloutPaused, "hold": RolloutPaused},
		RolloutFinishing:        {"hold": RolloutPaused, "abort": RolloutAborting},
	}
	for _, acts := range want {
		if acts["abort"] != "" {
			acts["revert"] = RolloutRollingBack
		}
	}
	want[RolloutCompleted] = map[string]RolloutState{"revert": RolloutRollingBack}
	want[RolloutAborted] = map[string]RolloutState{"revert": RolloutRollingBack}
	for _, state := range RolloutStates {
		for name, act := range acts {
			r := approval(rollout(StageOpen, StagePending), false)
			r.State, r.Terms.Approval, r.ApprovedAt = state, true, t0
			got, err := act(r)
			next, ok := want[state][name]
			if !ok {
				if !errors.Is(err, ErrState) || cmp.Diff(r, got) != "" {
					t.Errorf("%s in %s: %s, %v", name, state, got.State, err)
				}
				continue
			}
			if err != nil || got.State != next {
				t.Errorf("%s in %s: %s, %v", name, state, got.State, err)
			}
			if got.Holds() != (name == "hold") {
				t.Errorf("%s in %s: it holds: %v", name, state, got.Holds())
			}
			if diff := cmp.Diff(r.Terms, got.Terms); diff != "" {
				t.Errorf("%s in %s: another plan: %s", name, state, diff)
			}
			if goes := got.State == RolloutRollingBack; name != "resume" && got.Reverting != goes {
				t.Errorf("%s in %s: devices go back: %v, it is %s", name, state, got.Reverting, got.State)
			}
			if name == "edit" && !got.ApprovedAt.IsZero() {
				t.Errorf("an edit in %s left the approval", state)
			}
		}
	}
}

// TestAHeldRolloutIsWhatItWas walks what an operator may do with one that was held in
// each state in which devices may be at work.
func TestAHeldRolloutIsWhatItWas(t *testing.T) {
	hold := func(r Rollout) (Rollout, error) { return Pause(r, "fire", PauseHoldBeforeInstall) }
	running := continuous(rollout(StagePassed, StageOpen))
	running.Reason = "before"
	failed := continuous(rollout(StagePassed, StageFailed))
	failed.State, failed.Reason = RolloutPaused, "stage 2 failed its gate"
	finish := func(r Rollout) Rollout {
		r, err := Finish(r, "enough")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	back := running
	back.State, back.Reverting, back.Follows = RolloutRollingBack, true, false
	newer := continuous(rollout(StagePending, StagePending))
	newer.ID, newer.CreatedAt = "s", running.CreatedAt.Add(time.Hour)
	for name, c := range map[string]struct {
		r        Rollout
		reason   string // when it is held
		finishes bool
		resumed  RolloutState
		after    string // its reason then
	}{
		"running":                  {running, "fire", false, RolloutRunning, ""},
		"its stage has failed":     {failed, "stage 2 failed its gate; held: fire", false, RolloutRunning, ""},
		"finishing":                {finish(running), "fire; resumed, it goes on to finish: enough", true, RolloutFinishing, "enough"},
		"finishing after a failed": {finish(failed), "fire; resumed, it goes on to finish: enough", true, RolloutFinishing, "enough"},
		"rolling back":             {back, "fire", false, RolloutRollingBack, "fire"},
	} {
		held, err := hold(c.r)
		if err != nil || held.State != RolloutPaused || !held.Holds() || held.Reason != c.reason || held.Finishes() != c.finishes {
			t.Errorf("%s: %s, %q, holds %v, finishes %v, %v", name, held.State, held.Reason, held.Holds(), held.Finishes(), err)
			continue
		}
		if _, err := hold(held); !errors.Is(err, ErrState) {
			t.Errorf("%s: held twice: %v", name, err)
		}
		if d := Plan(held, progress(counts(3, 2, 1, 0)), t0); d.Changed || d.Cancel {
			t.Errorf("%s: held, it moves: %+v", name, d)
		}
		if _, err := Finish(held, "too"); (err == nil) != (c.resumed == RolloutRunning) {
			t.Errorf("%s: finished while it is held: %v", name, err)
		}
		if _, err := ApproveStage(held, 2, t0); !errors.Is(err, ErrState) {
			t.Errorf("%s: a stage is approved: %v", name, err)
		}
		if got, err := Abort(held, "no", AbortKeep, t0); err != nil || got.Finishes() {
			t.Errorf("%s: aborted while it is held: %s, %v", name, got.State, err)
		}
		if may := newer.TakesPlaceOf(held); may != (c.resumed == RolloutRunning) {
			t.Errorf("%s: another takes its place: %v", name, may)
		} else if may {
			if got, err := MakeWay(held, newer); err != nil || !got.Holds() || !got.Finishes() {
				t.Errorf("%s: made way: %s, %q, %v", name, got.State, got.Reason, err)
			}
		}
		got, err := Resume(held, ResumeSkip, t0)
		if err != nil || got.State != c.resumed || got.Reason != c.after || got.Holds() || got.Finishes() != c.finishes {
			t.Errorf("%s, resumed: %s, %q, %v", name, got.State, got.Reason, err)
		}
		if c.finishes {
			if got, err := Resume(held, "", t0); err != nil || got.State != RolloutFinishing {
				t.Errorf("%s: asks about its failed stage: %s, %v", name, got.State, err)
			}
		}
	}
}

// TestAPauseSaysNothingOfTheNext: what an operator says with one pause holds for that one,
// whatever the plan says and wherever the rollout goes on to.
func TestAPauseSaysNothingOfTheNext(t *testing.T) {
	ons := map[string]func(Rollout) (Rollout, error){
		"resumed":  func(r Rollout) (Rollout, error) { return Resume(r, ResumeRepeat, t0) },
		"finished": func(r Rollout) (Rollout, error) { return Finish(r, "enough") },
		"made way": func(r Rollout) (Rollout, error) {
			next, err := MakeWay(r, Rollout{ID: "s"})
			if err == nil && next.Holds() != r.Holds() {
				t.Errorf("made way, it holds: %v", next.Holds())
			}
			if err == nil && next.State == RolloutPaused {
				next, err = Resume(next, "", t0)
			}
			return next, err
		},
		"aborted":  func(r Rollout) (Rollout, error) { return Abort(r, "no", AbortKeep, t0) },
		"reverted": func(r Rollout) (Rollout, error) { return Abort(r, "no", AbortRevert, t0) },
	}
	policies := []PausePolicy{"", PauseLetFinish, PauseHoldBeforeInstall}
	for _, plan := range policies {
		for _, said := range policies {
			for name, on := range ons {
				r := continuous(rollout(StagePassed, StageOpen))
				r.Terms.OnPause = plan
				holds := said == PauseHoldBeforeInstall || said == "" && plan == PauseHoldBeforeInstall
				paused, err := Pause(r, "why", said)
				if err != nil || paused.Holds() != holds || paused.Terms.OnPause != plan {
					t.Errorf("plan %q, said %q: it holds %v, the plan says %q, %v", plan, said, paused.Holds(), paused.Terms.OnPause, err)
				}
				next, err := on(paused)
				if err != nil || next.Pause != "" || cmp.Diff(r.Terms, next.Terms) != "" {
					t.Errorf("plan %q, said %q, %s: %s, %+v, %v", plan, said, name, next.State, next.Terms, err)
				}
				if next.State != RolloutRunning {
					continue
				}
				again, err := Pause(next, "why", "")
				if err != nil || again.Holds() != (plan == PauseHoldBeforeInstall) {
					t.Errorf("plan %q, said %q, %s, paused again: it holds %v, %v", plan, said, name, again.Holds(), err)
				}
			}
		}
	}
}

// TestStoppable: an emergency stop leaves out only where nobody is at work who could be
// held.
func TestStoppable(t *testing.T) {
	always := map[RolloutState]bool{RolloutScheduled: true, RolloutRunning: true, RolloutRollingBack: true}
	atWork := map[RolloutState]bool{RolloutPaused: true, RolloutFinishing: true}
	for _, state := range RolloutStates {
		r := rollout(StageOpen, StagePending)
		r.State = state
		if none, some := r.Stoppable(0), r.Stoppable(1); none != always[state] || some != (always[state] || atWork[state]) {
			t.Errorf("%s: %v, with a device at work %v", state, none, some)
		}
		if got, err := Pause(r, "fire", PauseHoldBeforeInstall); r.Stoppable(1) != (err == nil) || err == nil && got.Stoppable(1) {
			t.Errorf("%s: stopped it is %s, and stoppable again %v, %v", state, got.State, got.Stoppable(1), err)
		}
	}
}

func TestAnEditVoidsTheApprovalOfAStage(t *testing.T) {
	r := approval(rollout(StagePending, StagePending), true)
	r.State = RolloutDraft
	if got, err := Edit(r, r); err != nil || !got.Stages[1].ApprovedAt.IsZero() || r.Stages[1].ApprovedAt.IsZero() {
		t.Errorf("%+v, %v", got.Stages[1], err)
	}
	bad := r
	bad.Stages = nil
	if _, err := Edit(r, bad); !errors.Is(err, ErrInvalid) {
		t.Errorf("an impossible plan: %v", err)
	}
}

func TestAStageWithoutApprovalIsNotApproved(t *testing.T) {
	r := approval(rollout(StageOpen, StagePending), false)
	for stage, want := range map[int]error{0: ErrInvalid, 1: ErrState, 2: nil, 3: ErrInvalid} {
		got, err := ApproveStage(r, stage, t0)
		if !errors.Is(err, want) || err == nil && (got.Stages[1].ApprovedAt.IsZero() || !r.Stages[1].ApprovedAt.IsZero()) {
			t.Errorf("stage %d: %v", stage, err)
		}
	}
}

func TestARolloutThatFindsNobodyWaitsForAnOperator(t *testing.T) {
	r := Begin(in(RolloutScheduled), nil, 0, "line", t0)
	if r.State != RolloutPaused || r.Reason == "" {
		t.Fatalf("%+v", r)
	}
	r.Stages = []Stage{{State: StagePending}}
	if r, err := Resume(r, "", t0); err != nil || r.State != RolloutScheduled {
		t.Errorf("%s, %v", r.State, err)
	}
}
