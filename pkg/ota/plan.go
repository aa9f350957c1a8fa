package ota

import (
	"fmt"
	"time"
)

// Counts are executions by where they stand. Their sum is every execution that
// was ever made for the stage or rollout.
type Counts struct {
	Queued     int
	InProgress int
	Finished   map[Class]int // by class; ClassNone counts cancelled and removed ones
}

// Sample is the number of executions that finished with a verdict.
func (c Counts) Sample() int {
	n := c.Finished[ClassSucceeded]
	for _, class := range Unsuccessful {
		n += c.Finished[class]
	}
	return n
}

// Active is the number of executions that are not finished.
func (c Counts) Active() int { return c.Queued + c.InProgress }

// Total is the number of executions ever made.
func (c Counts) Total() int { return c.Active() + c.Sample() + c.Finished[ClassNone] }

// Of returns the number that finished with the class; ClassAny sums every
// unsuccessful one.
func (c Counts) Of(class Class) int {
	if class != ClassAny {
		return c.Finished[class]
	}
	n := 0
	for _, u := range Unsuccessful {
		n += c.Finished[u]
	}
	return n
}

// Add returns the sum of two counts.
func (c Counts) Add(o Counts) Counts {
	sum := Counts{Queued: c.Queued + o.Queued, InProgress: c.InProgress + o.InProgress, Finished: map[Class]int{}}
	for _, f := range []map[Class]int{c.Finished, o.Finished} {
		for class, n := range f {
			sum.Finished[class] += n
		}
	}
	return sum
}

// Progress is what the executions of one rollout say, read in one query.
type Progress struct {
	Stages []Counts // one for each stage
	Armed  Counts   // finished after the rollout's ArmedAt: what abort rules look at
}

// Total sums the stages.
func (p Progress) Total() Counts {
	var sum Counts
	for _, c := range p.Stages {
		sum = sum.Add(c)
	}
	return sum
}

// Decision is what Plan wants done, all of it in one transaction.
type Decision struct {
	Rollout      Rollout   // the rollout as it should stand; Revision is left to the store
	Changed      bool      // Rollout differs from what came in
	Open         *Opening  // devices to be given executions
	CancelQueued bool      // QUEUED executions are to be cancelled, with Rollout.Reason
	Wake         time.Time // when to plan again if nothing else happens; zero: only on events
}

// Opening asks for executions until the rollout has Target of them.
type Opening struct {
	Stage  int
	Target int  // cumulative over all stages
	Retry  bool // the stage is repeated: its unsuccessful devices get one more attempt
}

// Plan says what happens next to a rollout. It is level-triggered: it looks
// only at where things stand, so running it twice, late, or on two replicas
// asks for nothing twice. Each call makes at most one step of the stage table;
// call again while Changed.
//
//	state            event                                   next
//	RUNNING          an abort rule trips                     ABORTING, QUEUED cancelled
//	ABORTING         nothing in flight                       ABORTED
//	RUNNING, no open stage, one PENDING                      stage OPEN, executions made
//	RUNNING, OPEN    no device was left for it               stage PASSED
//	RUNNING, OPEN    gate met                                SOAKING
//	RUNNING, OPEN    all finished, gate not met              stage FAILED, PAUSED
//	RUNNING, SOAKING gate no longer met                      stage OPEN again (and then judged)
//	RUNNING, SOAKING soak over                               stage PASSED
//	RUNNING          all PASSED, nothing in flight           COMPLETED
//	PAUSED           -                                       stays
func Plan(r Rollout, p Progress, now time.Time) Decision {
	r.Stages = append([]Stage(nil), r.Stages...)
	switch r.State {
	case RolloutAborting:
		return planAborting(r, p, now)
	case RolloutRunning:
		if rule, tripped := firstTripped(r.Abort, p.Armed); tripped {
			return abort(r, tripReason(rule, p.Armed), now)
		}
		return planStages(r, p, now)
	}
	return Decision{Rollout: r}
}

// Tripped reports whether the rule stops a rollout with these counts.
func (a AbortRule) Tripped(c Counts) bool {
	n, sample := c.Of(a.Class), c.Sample()
	if a.Count > 0 && n >= a.Count {
		return true
	}
	if a.Share >= 1 || n == 0 || sample < a.MinSample {
		return false
	}
	return float64(n) > a.Share*float64(sample)+1e-9
}

func firstTripped(rules []AbortRule, c Counts) (AbortRule, bool) {
	for _, rule := range rules {
		if rule.Tripped(c) {
			return rule, true
		}
	}
	return AbortRule{}, false
}

func tripReason(rule AbortRule, c Counts) string {
	return fmt.Sprintf("abort rule %s: %d of %d finished", rule, c.Of(rule.Class), c.Sample())
}

func abort(r Rollout, reason string, now time.Time) Decision {
	r.State, r.Reason = RolloutAborting, reason
	if s := r.current(); s != nil && s.State != StagePending {
		s.State, s.EndedAt = StageFailed, now
	}
	return Decision{Rollout: r, Changed: true, CancelQueued: true}
}

func planAborting(r Rollout, p Progress, now time.Time) Decision {
	total := p.Total()
	if total.Queued > 0 {
		return Decision{Rollout: r, CancelQueued: true}
	}
	if total.InProgress > 0 {
		return Decision{Rollout: r}
	}
	r.State, r.EndedAt = RolloutAborted, now
	return Decision{Rollout: r, Changed: true}
}

func planStages(r Rollout, p Progress, now time.Time) Decision {
	i := r.Current()
	if i == len(r.Stages) {
		if p.Total().Active() > 0 {
			return Decision{Rollout: r}
		}
		r.State, r.EndedAt = RolloutCompleted, now
		return Decision{Rollout: r, Changed: true}
	}
	stage, counts := &r.Stages[i], p.stage(i)
	switch stage.State {
	case StagePending:
		retry := !stage.OpenedAt.IsZero()
		stage.State, stage.OpenedAt = StageOpen, now
		stage.Target = stage.Size.Of(r.Population)
		return Decision{Rollout: r, Changed: true, Open: &Opening{Stage: i, Target: stage.Target, Retry: retry}}
	case StageOpen:
		return planOpen(r, i, counts, now)
	default:
		return planSoaking(r, i, counts, now)
	}
}

func planOpen(r Rollout, i int, c Counts, now time.Time) Decision {
	stage := &r.Stages[i]
	if c.Total() == 0 { // it was given no device: nothing to judge and nothing to soak
		stage.State, stage.EndedAt = StagePassed, now
		return Decision{Rollout: r, Changed: true}
	}
	if stage.Gate.enough(c) && stage.Gate.met(c) {
		stage.State, stage.SoakingAt = StageSoaking, now
		return Decision{Rollout: r, Changed: true, Wake: now.Add(stage.Soak)}
	}
	if c.Active() > 0 {
		return Decision{Rollout: r}
	}
	stage.State, stage.EndedAt = StageFailed, now
	r.State = RolloutPaused
	r.Reason = fmt.Sprintf("stage %d failed its gate: %d of %d finished succeeded, wanted %s",
		i+1, c.Of(ClassSucceeded), c.Sample(), stage.Gate)
	return Decision{Rollout: r, Changed: true}
}

func planSoaking(r Rollout, i int, c Counts, now time.Time) Decision {
	stage := &r.Stages[i]
	if !stage.Gate.met(c) {
		stage.State, stage.SoakingAt = StageOpen, time.Time{}
		return Decision{Rollout: r, Changed: true}
	}
	if end := stage.SoakingAt.Add(stage.Soak); now.Before(end) {
		return Decision{Rollout: r, Wake: end}
	}
	stage.State, stage.EndedAt = StagePassed, now
	return Decision{Rollout: r, Changed: true}
}

// enough reports whether the sample is large enough to judge the gate. A stage
// whose executions have all finished is always judged.
func (g Gate) enough(c Counts) bool {
	if c.Active() == 0 {
		return true
	}
	return g.MinFinished > 0 && c.Sample() >= g.MinFinished
}

// met reports whether the success share of finished executions reaches the
// gate; without any it does not.
func (g Gate) met(c Counts) bool {
	if c.Sample() == 0 {
		return false
	}
	return float64(c.Of(ClassSucceeded)) >= g.Success*float64(c.Sample())-1e-9
}

func (p Progress) stage(i int) Counts {
	if i < len(p.Stages) {
		return p.Stages[i]
	}
	return Counts{}
}

// Current is the index of the first stage that has not passed, len(Stages) when
// all have.
func (r Rollout) Current() int {
	for i, s := range r.Stages {
		if s.State != StagePassed {
			return i
		}
	}
	return len(r.Stages)
}

func (r Rollout) current() *Stage {
	if i := r.Current(); i < len(r.Stages) {
		return &r.Stages[i]
	}
	return nil
}
