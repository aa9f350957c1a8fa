package ota

import (
	"fmt"
	"slices"
	"time"
)

// Counts are executions by where they stand. Their sum is every execution that
// was ever made for the stage or rollout.
type Counts struct {
	Queued     int
	InProgress int
	Finished   map[Class]int // by class; ClassNone counts cancelled and removed ones
	Retrying   int           // of the finished ones: those that will get another attempt, or their next leg
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
func (c Counts) Total() int {
	return c.Active() + c.Sample() + c.Finished[ClassNone] + c.Finished[ClassUnderway]
}

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
	sum := Counts{Queued: c.Queued + o.Queued, InProgress: c.InProgress + o.InProgress, Retrying: c.Retrying + o.Retrying, Finished: map[Class]int{}}
	for _, f := range []map[Class]int{c.Finished, o.Finished} {
		for class, n := range f {
			sum.Finished[class] += n
		}
	}
	return sum
}

// Settled reports whether nothing more is to come from them.
func (c Counts) Settled() bool { return c.Active() == 0 && c.Retrying == 0 }

// Progress is what the executions of one rollout say at one moment.
type Progress struct {
	Stages    []Counts  // one for each stage
	Armed     Counts    // finished after the rollout's ArmedAt: what abort rules look at
	Due       int       // executions whose next attempt, or leg, is due
	NextRetry time.Time // when the next one will be due; zero: none waits
	Health    Seen      // of a rollout whose terms compare devices
	Reverts   []Revert  // of a rollout that is or was ROLLING_BACK, in order of their ids
}

// Revert is how a rollout stands that brings devices back.
type Revert struct {
	ID    string
	State RolloutState
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
	Rollout Rollout   // the rollout as it should stand; Revision is left to the store
	Changed bool      // Rollout differs from what came in
	Arrange bool      // its devices are to be arranged, see Line and Begin
	Take    *Taking   // executions are to be made
	Cancel  bool      // what can be cancelled is to be, as Cancel does it, with Rollout.Reason, some at a time
	Revert  bool      // its devices are to be sent back, see SendBack
	Wake    time.Time // when to plan again if nothing else happens; zero: only on events
}

// Taking asks for executions.
type Taking struct {
	Stage    int
	From, To int  // of the candidates that have these turns: From <= turn < To. One that is no longer eligible loses it.
	Retries  int  // next attempts, of so many whose RetryAt has come
	Repeat   bool // what did not succeed in the stage is due for another attempt now
}

// MaxTaken is how many executions are made in one transaction.
const MaxTaken = 10_000

// Plan says what happens next to a rollout. It is level-triggered: it looks
// only at where things stand, so running it twice, late, or on two replicas
// asks for nothing twice. Each call makes at most one step of the stage table;
// call again while Changed.
//
//	state            event                                   next
//	SCHEDULED        its time has come, continuous           it follows: changes of devices are looked at
//	SCHEDULED        the same, or not continuous             devices arranged, see Begin
//	RUNNING          an abort rule trips                     ABORTING: nothing starts from then on
//	RUNNING          the same, to be reverted                ROLLING_BACK: likewise
//	ABORTING, ROLLING_BACK  something not finished           what can be cancelled is, some at a time
//	ABORTING         nothing in flight                       ABORTED
//	FINISHING        something QUEUED                        cancelled, some at a time
//	FINISHING        nothing in flight                       COMPLETED
//	ROLLING_BACK     nothing in flight                       reverts made, see SendBack
//	ROLLING_BACK     its reverts have ended                  ROLLED_BACK
//	RUNNING          retries due, the rate allows            attempts made
//	RUNNING, no open stage, one PENDING and approved         stage OPEN
//	RUNNING, OPEN    devices left for it, the rate allows    executions made
//	RUNNING, OPEN    no device of it was given an execution  stage FAILED, PAUSED
//	RUNNING, OPEN    the same, the last one, or one whose
//	                 size adds none to the stages before     stage PASSED
//	RUNNING, OPEN    a command that wants no success share,
//	                 all finished without a verdict          stage PASSED
//	RUNNING, OPEN    gate met                                SOAKING
//	RUNNING, OPEN    all finished, gate not met              stage FAILED, PAUSED
//	RUNNING, SOAKING gate no longer met                      stage OPEN again (and then judged)
//	RUNNING, SOAKING soak over, no signal on hold            stage PASSED
//	RUNNING, SOAKING a signal on hold for too long           stage FAILED, PAUSED
//	RUNNING          a signal failed                         stage FAILED, PAUSED; or ABORTING
//	RUNNING, OPEN    the last stage of a continuous one:     stays OPEN; idle when nothing is left to do
//	RUNNING          all PASSED, nothing in flight           COMPLETED
//	others           -                                       stay
func Plan(r Rollout, p Progress, now time.Time) Decision {
	r.Stages = append([]Stage(nil), r.Stages...)
	switch r.State {
	case RolloutScheduled:
		if now.Before(r.Terms.Start) {
			return Decision{Rollout: r, Wake: r.Terms.Start}
		}
		if r.Terms.Continuous && !r.Follows {
			r.Follows = true
			return Decision{Rollout: r, Changed: true}
		}
		return Decision{Rollout: r, Arrange: true}
	case RolloutAborting, RolloutRollingBack, RolloutFinishing:
		return planEnding(r, p, now)
	case RolloutRunning:
		if rule, tripped := firstTripped(r.Abort, p.Armed); tripped {
			return abort(r, tripReason(rule, p.Armed), r.Terms.OnAbort, now)
		}
		verdicts := Verdicts(r.Terms.Health, p.Health)
		if v, failed := worst(verdicts, HealthFail); failed {
			return unhealthy(r, v, now)
		}
		return planRunning(r, p, now)
	}
	return Decision{Rollout: r}
}

// Begin returns the rollout as it starts, with stages as Line.Arrange returns them and
// the name of the arrangement.
func Begin(r Rollout, stages []Stage, population int, line string, now time.Time) Rollout {
	r.Stages, r.Population, r.Line, r.Cursor = stages, population, line, 0
	r.State, r.StartedAt, r.ArmedAt, r.PacedAt = RolloutRunning, now, now, now
	if population == 0 && !r.Terms.Continuous {
		r.State, r.Reason, r.StartedAt = RolloutPaused, "no device is eligible", time.Time{}
	}
	return r
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

func abort(r Rollout, reason string, policy AbortPolicy, now time.Time) Decision {
	r.State, r.Reason, r.Reverting = RolloutAborting, reason, policy == AbortRevert
	r.Follows, r.Idle = false, false
	if r.Reverting {
		r.State = RolloutRollingBack
	}
	if s := r.current(); s != nil && s.State != StagePending {
		s.State, s.EndedAt = StageFailed, now
	}
	return Decision{Rollout: r, Changed: true}
}

func planEnding(r Rollout, p Progress, now time.Time) Decision {
	if p.Total().Active() > 0 {
		return Decision{Rollout: r, Cancel: true}
	}
	switch {
	case r.State == RolloutFinishing:
		closeStage(&r, p, now)
		r.State = RolloutCompleted
	case r.State == RolloutAborting:
		r.State = RolloutAborted
	case len(p.Reverts) == 0:
		return Decision{Rollout: r, Revert: true}
	case slices.ContainsFunc(p.Reverts, func(v Revert) bool { return !v.State.Terminal() }):
		return Decision{Rollout: r}
	default:
		r.State = RolloutRolledBack
	}
	r.EndedAt = now
	return Decision{Rollout: r, Changed: true}
}

// planRunning makes executions first: what the rate allows now can not wait for
// a verdict.
func planRunning(r Rollout, p Progress, now time.Time) Decision {
	total, idle := p.Total(), r.Idle
	r.Idle = false
	want := min(r.waiting()+p.Due, MaxTaken)
	n, pacedAt, again := r.Terms.Rate.pace(total, r.PacedAt, now, want)
	if n > 0 {
		r.PacedAt = pacedAt
		take := &Taking{Stage: min(r.Current(), len(r.Stages)-1), Retries: min(p.Due, n)}
		take.From, take.To = r.Cursor, r.Cursor+n-take.Retries
		r.Cursor = take.To
		return Decision{Rollout: r, Changed: true, Take: take}
	}
	var d Decision
	if r.following() {
		d = planFollowing(r, p, idle, now)
	} else {
		d = planStages(r, p, now)
	}
	d.Wake = earliest(d.Wake, again, p.NextRetry)
	return d
}

// waiting is how many candidates of the open stage have not had their turn.
func (r Rollout) waiting() int {
	if s := r.current(); s != nil && s.State == StageOpen {
		return max(s.Target-r.Cursor, 0)
	}
	return 0
}

// Opening reports whether devices of the open stage are about to have their turn, with
// nothing to wait for: no rate. One of them that asks may take it at once.
func (r Rollout) Opening() bool {
	return r.State == RolloutRunning && r.Terms.Rate.PerMinute == 0 && r.waiting() > 0
}

// OpenTurns are the turns from <= turn < to that a rollout which is Opening is about to
// give, in its stage with this index.
func (r Rollout) OpenTurns() (stage, from, to int) {
	if !r.Opening() {
		return 0, 0, 0
	}
	return r.Current(), r.Cursor, r.Cursor + r.waiting()
}

func earliest(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if first.IsZero() || !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	return first
}

func planStages(r Rollout, p Progress, now time.Time) Decision {
	i := r.Current()
	if i == len(r.Stages) {
		if !p.Total().Settled() {
			return Decision{Rollout: r}
		}
		r.State, r.EndedAt = RolloutCompleted, now
		return Decision{Rollout: r, Changed: true}
	}
	stage, counts := &r.Stages[i], p.stage(i)
	switch stage.State {
	case StagePending:
		if stage.Approval && stage.ApprovedAt.IsZero() {
			return Decision{Rollout: r}
		}
		d := Decision{Changed: true}
		if !stage.OpenedAt.IsZero() {
			d.Take = &Taking{Stage: i, Repeat: true}
		}
		stage.State, stage.OpenedAt = StageOpen, now
		d.Rollout = r
		return d
	case StageOpen:
		return planOpen(r, i, counts, now)
	default:
		return planSoaking(r, i, p, now)
	}
}

func planOpen(r Rollout, i int, c Counts, now time.Time) Decision {
	stage := &r.Stages[i]
	if r.waiting() > 0 {
		return Decision{Rollout: r}
	}
	if c.Total() == 0 && r.provesNothing(i) {
		return failedGate(r, i, c, now)
	}
	if c.Total() == 0 { // nothing to judge and nothing to soak
		stage.State, stage.EndedAt = StagePassed, now
		return Decision{Rollout: r, Changed: true}
	}
	if stage.Gate.enough(c) && stage.Gate.met(c) {
		stage.State, stage.SoakingAt = StageSoaking, now
		return Decision{Rollout: r, Changed: true, Wake: now.Add(stage.Soak)}
	}
	if !c.Settled() {
		return Decision{Rollout: r}
	}
	if r.Kind() == KindCommand && stage.Gate.Success == 0 { // there is nothing to prove
		stage.State, stage.EndedAt = StagePassed, now
		return Decision{Rollout: r, Changed: true}
	}
	return failedGate(r, i, c, now)
}

// provesNothing reports whether a stage without executions keeps the next one from
// opening: devices were to prove the release, and not one was given it. A size that adds
// no device to those before it asks for no proof, nor does the last stage, nor a command
// without a share that has to succeed.
func (r Rollout) provesNothing(i int) bool {
	before := 0
	if i > 0 {
		before = r.Stages[i-1].Target
	}
	s := r.Stages[i]
	return i+1 < len(r.Stages) && (s.Target > before || s.Size.Selector != "") && (r.Kind() == KindInstall || s.Gate.Success > 0)
}

func failedGate(r Rollout, i int, c Counts, now time.Time) Decision {
	stage := &r.Stages[i]
	stage.State, stage.EndedAt = StageFailed, now
	r.State = RolloutPaused
	r.Reason = fmt.Sprintf("stage %d failed its gate: %d of %d finished succeeded, wanted %s",
		i+1, c.Of(ClassSucceeded), c.Sample(), stage.Gate)
	switch {
	case c.Total() == 0:
		r.Reason = fmt.Sprintf("stage %d proves nothing: none of its devices could take the release when its turn came", i+1)
	case c.Sample() == 0:
		r.Reason = fmt.Sprintf("stage %d proves nothing: its %d executions were all cancelled or removed", i+1, c.Total())
	}
	return Decision{Rollout: r, Changed: true}
}

func planSoaking(r Rollout, i int, p Progress, now time.Time) Decision {
	c := p.stage(i)
	stage := &r.Stages[i]
	if !stage.Gate.met(c) {
		stage.State, stage.SoakingAt = StageOpen, time.Time{}
		return Decision{Rollout: r, Changed: true}
	}
	if end := stage.SoakingAt.Add(stage.Soak); now.Before(end) {
		return Decision{Rollout: r, Wake: end}
	}
	if v, waits := worst(Verdicts(r.Terms.Health, p.Health), HealthHold); waits {
		return held(r, i, v, now)
	}
	stage.State, stage.EndedAt = StagePassed, now
	return Decision{Rollout: r, Changed: true}
}

// enough reports whether the sample is large enough to judge the gate. A stage
// whose executions have all finished is always judged.
func (g Gate) enough(c Counts) bool {
	if c.Settled() {
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
