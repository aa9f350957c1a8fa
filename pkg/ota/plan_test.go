package ota

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func rollout(states ...StageState) Rollout {
	r := Rollout{
		ID: "r-1", Release: ReleaseID{"gw", "1.0"}, Seed: "s", State: RolloutRunning, Population: 100,
		Abort: []AbortRule{{Class: ClassAny, Share: 0.5, MinSample: 4}},
	}
	for i, s := range states {
		st := Stage{Size: Size{Percent: float64(100 * (i + 1) / len(states))}, Gate: Gate{Success: 0.9}, Soak: time.Hour, State: s}
		if s != StagePending {
			st.OpenedAt = t0
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
		open     *Opening
		cancel   bool
		wake     time.Duration
		mustStay bool
	}{
		{name: "first stage opens", r: rollout(StagePending, StagePending), p: progress(),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, open: &Opening{Stage: 0, Target: 50}},
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
			state: RolloutRunning, stages: []StageState{StagePassed, StageOpen}, open: &Opening{Stage: 1, Target: 100}},
		{name: "all passed completes", r: rollout(StagePassed, StagePassed), p: progress(counts(0, 0, 50, 0), counts(0, 0, 50, 0)),
			state: RolloutCompleted, stages: []StageState{StagePassed, StagePassed}},
		{name: "all passed with stragglers waits", r: rollout(StagePassed, StagePassed), p: progress(counts(0, 1, 50, 0)),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePassed}, mustStay: true},
		{name: "abort rule trips", r: rollout(StageOpen, StagePending), p: progress(counts(40, 6, 1, 3)),
			state: RolloutAborting, stages: []StageState{StageFailed, StagePending}, cancel: true},
		{name: "abort rule below its sample does not", r: rollout(StageOpen, StagePending), p: progress(counts(40, 7, 0, 3)),
			state: RolloutRunning, stages: []StageState{StageOpen, StagePending}, mustStay: true},
		{name: "paused stays whatever happens", r: paused(), p: progress(counts(0, 0, 0, 50)),
			state: RolloutPaused, stages: []StageState{StageOpen, StagePending}, mustStay: true},
		{name: "aborting cancels what is queued", r: in(RolloutAborting), p: progress(counts(3, 1, 0, 4)),
			state: RolloutAborting, stages: []StageState{StageFailed, StagePending}, cancel: true, mustStay: true},
		{name: "aborting waits for what is in flight", r: in(RolloutAborting), p: progress(counts(0, 1, 0, 4)),
			state: RolloutAborting, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "aborting ends", r: in(RolloutAborting), p: progress(counts(0, 0, 0, 5)),
			state: RolloutAborted, stages: []StageState{StageFailed, StagePending}},
		{name: "aborted stays", r: in(RolloutAborted), p: progress(counts(0, 0, 0, 5)),
			state: RolloutAborted, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "completed stays", r: in(RolloutCompleted), p: progress(counts(0, 0, 0, 50)),
			state: RolloutCompleted, stages: []StageState{StageFailed, StagePending}, mustStay: true},
		{name: "a stage without devices passes and does not soak", r: rollout(StageOpen, StagePending), p: progress(Counts{}),
			state: RolloutRunning, stages: []StageState{StagePassed, StagePending}},
		{name: "a stage with only cancelled executions proves nothing", r: rollout(StageOpen, StagePending),
			p:     progress(Counts{Finished: map[Class]int{ClassNone: 5}}),
			state: RolloutPaused, stages: []StageState{StageFailed, StagePending}},
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
			if (d.Open == nil) != (c.open == nil) || d.Open != nil && *d.Open != *c.open {
				t.Errorf("opening %+v, want %+v", d.Open, c.open)
			}
			if d.CancelQueued != c.cancel || d.Changed == c.mustStay {
				t.Errorf("cancel %v, changed %v", d.CancelQueued, d.Changed)
			}
			want := time.Time{}
			if c.wake > 0 {
				want = t0.Add(c.wake)
			}
			if !d.Wake.Equal(want) {
				t.Errorf("wake %v, want %v", d.Wake, want)
			}
		})
	}
}

func paused() Rollout {
	r := rollout(StageOpen, StagePending)
	r.State = RolloutPaused
	return r
}

func in(s RolloutState) Rollout {
	r := rollout(StageFailed, StagePending)
	r.State = s
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
	if d.Open == nil || !d.Open.Retry || d.Open.Stage != 0 {
		t.Fatalf("opening %+v", d.Open)
	}
	skipped, err := Resume(r, ResumeSkip, t0)
	if err != nil || skipped.Stages[0].State != StagePassed || r.Stages[0].State != StageFailed {
		t.Fatalf("%v %v, the input is now %v", skipped.Stages[0].State, err, r.Stages[0].State)
	}
}

func TestOperatorActsFitTheState(t *testing.T) {
	for _, s := range []RolloutState{RolloutRunning, RolloutPaused, RolloutAborting, RolloutCompleted, RolloutAborted} {
		r := rollout(StageOpen, StagePending)
		r.State = s
		_, pauseErr := Pause(r, "why")
		_, resumeErr := Resume(r, "", t0)
		_, abortErr := Abort(r, "why", t0)
		if (pauseErr == nil) != (s == RolloutRunning) || (resumeErr == nil) != (s == RolloutPaused) ||
			(abortErr == nil) != (s == RolloutRunning || s == RolloutPaused) {
			t.Errorf("%s: pause %v, resume %v, abort %v", s, pauseErr, resumeErr, abortErr)
		}
	}
}

// TestPlanProperty drives random rollouts over random fleets, with crashes (a
// decision that is lost), repetitions and operators, and holds the rules that
// must never break.
func TestPlanProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for step := 0; step < 400 && !m.r.State.Terminal(); step++ {
			m.step(t)
			m.check(t)
		}
		m.drain(t)
		m.check(t)
	})
}

type model struct {
	r       Rollout
	now     time.Time
	devices []Execution
	started int // executions made after an abort or pause was written
}

func newModel(t *rapid.T) *model {
	n := rapid.IntRange(1, 40).Draw(t, "devices")
	m := &model{now: t0, r: Rollout{ID: "r", State: RolloutRunning, Population: n}}
	last := 0.0
	for last < 100 {
		last = min(100, last+rapid.Float64Range(1, 100).Draw(t, "percent"))
		m.r.Stages = append(m.r.Stages, Stage{
			Size: Size{Percent: last}, State: StagePending, Soak: time.Duration(rapid.IntRange(0, 3).Draw(t, "soak")) * time.Minute,
			Gate: Gate{Success: rapid.Float64Range(0, 1).Draw(t, "gate"), MinFinished: rapid.IntRange(0, 5).Draw(t, "min")},
		})
	}
	if rapid.Bool().Draw(t, "abort rule") {
		m.r.Abort = []AbortRule{{Class: ClassAny, Share: rapid.Float64Range(0, 1).Draw(t, "share"), Count: rapid.IntRange(0, 5).Draw(t, "count")}}
	}
	return m
}

func (m *model) progress() Progress {
	p := Progress{Stages: make([]Counts, len(m.r.Stages)), Armed: Counts{Finished: map[Class]int{}}}
	for i := range p.Stages {
		p.Stages[i].Finished = map[Class]int{}
	}
	for _, e := range m.devices {
		c := &p.Stages[e.Stage]
		switch {
		case e.Status == Queued:
			c.Queued++
		case e.Status == InProgress:
			c.InProgress++
		default:
			c.Finished[e.Class]++
			if e.FinishedAt.After(m.r.ArmedAt) {
				p.Armed.Finished[e.Class]++
			}
		}
	}
	return p
}

func (m *model) plan(t *rapid.T) bool {
	d := Plan(m.r, m.progress(), m.now)
	if rapid.IntRange(0, 9).Draw(t, "crash") == 0 {
		return true // before it was written
	}
	m.write(d)
	return d.Changed || d.CancelQueued
}

func (m *model) write(d Decision) {
	wasStopped := m.r.State != RolloutRunning
	m.r = d.Rollout
	if d.Open != nil {
		if wasStopped {
			m.started++
		}
		for len(m.devices) < d.Open.Target {
			m.devices = append(m.devices, Execution{Status: Queued, Stage: d.Open.Stage, Attempt: 1, Version: 1})
		}
		for i, e := range m.devices {
			if d.Open.Retry && e.Stage == d.Open.Stage && e.Status.Terminal() && e.Status != Succeeded {
				m.devices[i] = Execution{Status: Queued, Stage: e.Stage, Attempt: e.Attempt + 1, Version: 1}
			}
		}
	}
	if d.CancelQueued {
		for i := range m.devices {
			m.devices[i], _ = Cancel(m.devices[i], m.r.Reason, m.now)
		}
	}
}

func (m *model) step(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0, 1, 2, 3:
		m.plan(t)
	case 4, 5, 6, 7, 8:
		m.report(t)
	default:
		m.operator(t)
	}
}

func (m *model) report(t *rapid.T) {
	if len(m.devices) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.devices)-1).Draw(t, "device")
	if m.devices[i].Status == Queued && m.r.State != RolloutRunning {
		return // the store holds it back
	}
	to := rapid.SampledFrom([]Status{InProgress, Succeeded, Succeeded, Failed, Rejected}).Draw(t, "status")
	if next, err := Apply(m.devices[i], Report{Status: to}, m.now); err == nil {
		m.devices[i] = next
	}
}

func (m *model) operator(t *rapid.T) {
	var next Rollout
	var err error
	switch rapid.IntRange(0, 5).Draw(t, "operator") {
	case 0:
		next, err = Abort(m.r, "stop", m.now)
		if err == nil {
			m.write(Decision{Rollout: next, CancelQueued: true})
		}
		return
	case 1, 2:
		next, err = Pause(m.r, "wait")
	case 3:
		next, err = Resume(m.r, ResumeSkip, m.now)
	default:
		next, err = Resume(m.r, ResumeRepeat, m.now)
	}
	if err == nil {
		m.r = next
	}
}

func (m *model) check(t *rapid.T) {
	if m.started > 0 {
		t.Fatalf("executions were made after an abort or pause was written")
	}
	open := 0
	for i, s := range m.r.Stages {
		if s.State == StageOpen || s.State == StageSoaking {
			open++
		}
		if s.State != StagePassed && i+1 < len(m.r.Stages) && m.r.Stages[i+1].State != StagePending {
			t.Fatalf("stage %d is %s while stage %d is %s", i+1, s.State, i+2, m.r.Stages[i+1].State)
		}
	}
	if open > 1 {
		t.Fatalf("%d stages are open", open)
	}
	limit := 0
	for _, s := range m.r.Stages {
		limit = max(limit, s.Target)
	}
	if len(m.devices) > limit || limit > m.r.Population {
		t.Fatalf("%d executions, limit %d of %d", len(m.devices), limit, m.r.Population)
	}
}

// drain lets everything in flight finish: a running or aborting rollout then
// ends, or is paused with a reason.
func (m *model) drain(t *rapid.T) {
	for i := 0; i < 10*len(m.r.Stages)+10; i++ {
		for j, e := range m.devices {
			if !e.Status.Terminal() && (e.Status == InProgress || m.r.State == RolloutRunning) {
				m.devices[j], _ = Apply(e, Report{Status: Succeeded}, m.now)
			}
		}
		m.now = m.now.Add(time.Hour)
		m.write(Plan(m.r, m.progress(), m.now))
	}
	switch m.r.State {
	case RolloutCompleted, RolloutAborted:
	case RolloutPaused:
		if m.r.Reason == "" {
			t.Fatal("paused without a reason")
		}
	default:
		t.Fatalf("never ends: %s", m.r.State)
	}
}
