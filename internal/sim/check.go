package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// checker keeps how everything stood after the last change, and holds what must
// never break against how it stands after the next one. It counts for itself.
type checker struct {
	sim        *Sim
	broken     []string
	rollouts   map[string]ota.Rollout
	executions map[place][]ota.Execution // attempts in order
	flying     map[string]int            // IN_PROGRESS by device
	made       map[string][]time.Time    // when executions were made, by rollout
	repeats    map[string]int            // stages that operators repeated, by rollout
	runs       map[string]time.Time      // since when a rollout is RUNNING
	basis      map[string]basis          // what a caller saw of a rollout last, by label and rollout
	withdrawn  map[ota.ReleaseID]bool
	holds      map[string]int      // Sim.Calls when devices of a rollout were asked to hold, last
	said       map[claim]time.Time // when a device said last that it runs an image
	tookTurns  int                 // by devices that asked before the turn was given to them
}

// claim is a device that says that it runs an image.
type claim struct{ device, digest string }

// place is a device in a rollout.
type place struct{ rollout, device string }

// basis is what a decision stands on.
type basis struct {
	revision int64
	stages   []tally
	armed    map[ota.Class]int
}

// tally counts newest attempts.
type tally struct {
	total, active, retrying, sample, succeeded int
}

func newChecker(s *Sim) *checker {
	return &checker{
		sim: s, rollouts: map[string]ota.Rollout{}, executions: map[place][]ota.Execution{}, flying: map[string]int{},
		made: map[string][]time.Time{}, repeats: map[string]int{}, runs: map[string]time.Time{}, basis: map[string]basis{}, withdrawn: map[ota.ReleaseID]bool{}, holds: map[string]int{}, said: map[claim]time.Time{},
	}
}

func (k *checker) say(format string, args ...any) {
	if len(k.broken) < 10 {
		at := time.Since(k.sim.began).Round(time.Millisecond)
		k.broken = append(k.broken, fmt.Sprintf("after %s: ", at)+fmt.Sprintf(format, args...))
	}
}

// seen notes what a caller that now reads the progress of a rollout will see.
func (k *checker) seen(label, rollout string) {
	r := k.rollouts[rollout]
	b := basis{revision: r.Revision, stages: make([]tally, len(r.Stages)), armed: map[ota.Class]int{}}
	for at, attempts := range k.executions {
		if at.rollout != rollout {
			continue
		}
		e := attempts[len(attempts)-1]
		b.stages[e.Stage].add(e)
		if e.Status.Terminal() && e.SettledAt().After(r.ArmedAt) {
			b.armed[e.Class]++
		}
	}
	k.basis[label+" "+rollout] = b
}

func (t *tally) add(e ota.Execution) {
	t.total++
	switch {
	case !e.Status.Terminal():
		t.active++
	case e.Class != ota.ClassNone && e.Class != ota.ClassUnderway:
		t.sample++
	}
	if e.Class == ota.ClassSucceeded {
		t.succeeded++
	}
	if !e.RetryAt.IsZero() {
		t.retrying++
	}
}

// met reports whether the gate is met.
func (t tally) met(g ota.Gate) bool {
	return t.sample > 0 && float64(t.succeeded)+1e-6 >= g.Success*float64(t.sample)
}

// active counts the executions of a rollout with the status.
func (k *checker) active(rollout string, status ota.Status) (n int) {
	for at, attempts := range k.executions {
		if at.rollout == rollout && attempts[len(attempts)-1].Status == status {
			n++
		}
	}
	return n
}

// changed looks at what a call did to the store.
func (k *checker) changed(c change) {
	ctx := context.Background()
	faults, err := k.sim.store.Check(ctx)
	if err != nil {
		k.say("check: %v", err)
	}
	for _, f := range faults {
		k.say("%s: %s: %s", c.label, c.method, f)
	}
	was := k.rollouts
	k.rollouts = make(map[string]ota.Rollout, len(was))
	for _, r := range k.sim.rollouts() {
		k.rollouts[r.ID] = r
	}
	for id := range was {
		if _, ok := k.rollouts[id]; !ok {
			k.say("rollout %s is gone", id)
		}
	}
	for id, r := range k.rollouts {
		if r.Holds() && !was[id].Holds() {
			k.holds[id] = k.sim.Calls
		}
	}
	if c.method == "Report" {
		k.accepted(c)
		k.heldBack(c)
	}
	switch c.method {
	case "Withdraw":
		k.noteWithdrawn()
	case "DeleteDevice":
		defer k.removed(c)
	}
	err = k.sim.store.Executions(ctx, k.touched(c), func(e ota.Execution) bool {
		k.execution(c, was[e.RolloutID], e)
		return true
	})
	if err != nil {
		k.say("executions: %v", err)
	}
	for id, r := range k.rollouts {
		if old, ok := was[id]; !ok || old.Revision != r.Revision {
			k.rollout(c, old, r)
		} else if old.State != r.State {
			k.say("rollout %s went from %s to %s within revision %d", id, old.State, r.State, r.Revision)
		}
	}
}

// removed: of a device that was deleted nothing is left to do, and what it had to do is
// REMOVED.
func (k *checker) removed(c change) {
	if _, err := k.sim.store.Device(context.Background(), c.device); !errors.Is(err, fleet.ErrNotFound) {
		k.say("device %s was deleted, and is there: %v", c.device, err)
	}
	for at, attempts := range k.executions {
		last := attempts[len(attempts)-1]
		switch {
		case at.device != c.device:
		case !last.Status.Terminal() || !last.RetryAt.IsZero():
			k.say("device %s was deleted, and rollout %s is %s on it, to be tried again at %s", c.device, at.rollout, last.Status, last.RetryAt)
		case last.FinishedAt.Equal(c.now) && last.Status == ota.Removed && last.Reason() != ota.DeletedReason:
			k.say("device %s was deleted, and what rollout %s had for it is REMOVED since %s", c.device, at.rollout, last.Reason())
		}
	}
}

// touched is which executions a call may have changed.
func (k *checker) touched(c change) fleet.ExecutionFilter {
	if c.report != nil {
		return fleet.ExecutionFilter{DeviceID: c.report.DeviceID}
	}
	return fleet.ExecutionFilter{}
}

// accepted: a report counts once, and what it says it knows is so.
func (k *checker) accepted(c change) {
	attempts := k.executions[place{c.report.RolloutID, c.report.DeviceID}]
	if len(attempts) == 0 {
		k.say("%s: a report on no execution was accepted", c.label)
		return
	}
	e := attempts[len(attempts)-1]
	if c.report.Attempt != 0 && e.Attempt != c.report.Attempt || c.report.ExpectedVersion != 0 && e.Version != c.report.ExpectedVersion {
		k.say("%s: a report on attempt %d, version %d was accepted by attempt %d, version %d", c.label, c.report.Attempt, c.report.ExpectedVersion, e.Attempt, e.Version)
	}
}

// heldBack: no device activates, or runs a command, that asked after its rollout was
// held whether it may.
func (k *checker) heldBack(c change) {
	j, r := k.sim.agent[c.report.DeviceID].job, k.rollouts[c.report.RolloutID]
	step := ota.Step(c.report.Details[ota.DetailStep])
	if j == nil || j.rollout != r.ID || c.report.Attempt != j.attempt || step != ota.StepRebooting && step != stepRunning {
		return
	}
	if r.Holds() && j.cleared > k.holds[r.ID] {
		k.say("%s: device %s goes on to %s though rollout %s is held", c.label, c.report.DeviceID, step, r.ID)
	}
}

// execution looks at one attempt; old is its rollout before the change.
func (k *checker) execution(c change, old ota.Rollout, e ota.Execution) {
	at := place{e.RolloutID, e.DeviceID}
	attempts := k.executions[at]
	if e.Attempt == len(attempts)+1 {
		k.created(c, old, attempts, e)
		k.executions[at] = append(attempts, e)
		return
	}
	was := attempts[e.Attempt-1]
	attempts[e.Attempt-1] = e
	if was.Class != e.Class && was.Status == e.Status && (c.method != "Settle" || e.Status != ota.Succeeded) {
		k.say("%s: %s: %s on %s went from class %s to %s", c.label, c.method, e.RolloutID, e.DeviceID, was.Class, e.Class)
	}
	if was.Version == e.Version && was.Status == e.Status {
		return
	}
	name := fmt.Sprintf("%s: %s: attempt %d of rollout %s on device %s", c.label, c.method, e.Attempt, e.RolloutID, e.DeviceID)
	if was.Status.Terminal() {
		k.say("%s went from %s, version %d to %s, version %d", name, was.Status, was.Version, e.Status, e.Version)
	}
	if e.Version != was.Version+1 {
		k.say("%s went from version %d to %d", name, was.Version, e.Version)
	}
	if e.Stage != was.Stage || e.Lane != was.Lane || !e.QueuedAt.Equal(was.QueuedAt) {
		k.say("%s moved from stage %d, lane %q to stage %d, lane %q", name, was.Stage, was.Lane, e.Stage, e.Lane)
	}
	k.moved(c, name, was, e)
}

// moved: an execution changes only as it may.
func (k *checker) moved(c change, name string, was, e ota.Execution) {
	if was.Status == ota.InProgress {
		k.flying[e.DeviceID]--
	}
	if e.Status == ota.InProgress {
		k.flying[e.DeviceID]++
		if k.flying[e.DeviceID] > 1 {
			k.say("%s: the device works on %d at once", name, k.flying[e.DeviceID])
		}
	}
	r := k.rollouts[e.RolloutID]
	by := map[ota.Status]string{ota.InProgress: "StartNext Report", ota.TimedOut: "Expire", ota.Canceled: "Advance TakeTurns Cancel Withdraw", ota.Removed: "RevokeDevice DeleteDevice"}[e.Status]
	if by == "" {
		by = "Report"
	}
	if (e.Reason() == ota.ArrivedReason || e.Reason() == ota.LeftReason) && was.Status == ota.Queued {
		by = "Settle"
	}
	if !strings.Contains(by, c.method) {
		k.say("%s went from %s to %s", name, was.Status, e.Status)
	}
	switch {
	case was.Status == ota.Queued && e.Status == ota.InProgress:
		if r.State != ota.RolloutRunning {
			k.say("%s was started while the rollout is %s", name, r.State)
		}
		if k.withdrawn[e.Release] {
			k.say("%s was started though %s is withdrawn", name, e.Release)
		}
		if other := k.overtaken(e); c.method == "StartNext" && other != "" {
			k.say("%s was started before command %s", name, other)
		}
		k.bounded(name, r, e)
		k.stays(name, r, e)
	case e.Status == ota.Canceled && was.Status == ota.InProgress && was.Step().Activated():
		k.say("%s was cancelled at step %q", name, was.Step())
	case e.Status == ota.TimedOut && (was.Expires.IsZero() || was.Expires.After(c.now)):
		k.say("%s ended at %s, before its time %s", name, c.now, was.Expires)
	case e.Status == ota.TimedOut && was.Status == ota.Queued:
		since := was.QueuedAt
		if runs := k.runs[r.ID]; runs.After(since) {
			since = runs
		}
		if waited := c.now.Sub(since); r.State != ota.RolloutRunning || waited+time.Millisecond < r.Terms.Timers.Claim {
			k.say("%s was ended unclaimed after %s, the rollout is %s", name, waited, r.State)
		}
	}
}

// bounded: no more are in flight than may be.
func (k *checker) bounded(name string, r ota.Rollout, e ota.Execution) {
	all, lane := 0, 0
	for at, attempts := range k.executions {
		if o := attempts[len(attempts)-1]; at.rollout == r.ID && o.Status == ota.InProgress {
			all++
			if o.Lane == e.Lane {
				lane++
			}
		}
	}
	if limit := r.Terms.InFlight; limit.Max > 0 && all > limit.Max || limit.PerMax > 0 && lane > limit.PerMax {
		k.say("%s is one of %d in flight, %d in lane %q: over %+v", name, all, lane, e.Lane, limit)
	}
}

// overtaken returns a command that the device could have started instead of the
// install; empty: there is none.
func (k *checker) overtaken(e ota.Execution) string {
	if e.Command != nil {
		return ""
	}
	for at, attempts := range k.executions {
		r := k.rollouts[at.rollout]
		if at.device == e.DeviceID && r.Kind() == ota.KindCommand && r.State == ota.RolloutRunning && r.Terms.InFlight == (ota.InFlight{}) &&
			attempts[len(attempts)-1].Status == ota.Queued {
			return at.rollout
		}
	}
	return ""
}

// created: executions are made only while the rollout runs, for an open stage,
// in time, and not again and again.
func (k *checker) created(c change, old ota.Rollout, attempts []ota.Execution, e ota.Execution) {
	name := fmt.Sprintf("%s: %s: attempt %d of rollout %s on device %s", c.label, c.method, e.Attempt, e.RolloutID, e.DeviceID)
	r := k.rollouts[e.RolloutID]
	if c.method != "Advance" && c.method != "TakeTurns" || old.State != ota.RolloutRunning || r.State != ota.RolloutRunning {
		k.say("%s was made while the rollout went from %s to %s", name, old.State, r.State)
	}
	if c.method == "TakeTurns" {
		k.tookTurn(name, r, e)
	}
	d, err := k.sim.store.Device(context.Background(), e.DeviceID)
	if err != nil || d.Revoked() != (e.Status == ota.Removed) || !d.Revoked() && e.Status != ota.Queued && e.Status != ota.Rejected {
		k.say("%s was made %s, the device is revoked: %t", name, e.Status, d.Revoked())
	}
	if k.withdrawn[e.Release] && e.Status == ota.Queued {
		k.say("%s was made though %s is withdrawn", name, e.Release)
	}
	if e.Stage >= len(r.Stages) || r.Stages[e.Stage].OpenedAt.IsZero() {
		k.say("%s was made in stage %d, which is not open", name, e.Stage+1)
	}
	if n := len(attempts); n > 0 {
		if last := attempts[n-1]; !last.Status.Terminal() || last.Class == ota.ClassSucceeded || last.Stage != e.Stage {
			k.say("%s follows one that is %s", name, last.Status)
		}
		for at, others := range k.executions {
			if o := others[len(others)-1]; at.device == e.DeviceID && k.rollouts[at.rollout].Supersedes(r) && o.Status != ota.Canceled && o.Status != ota.Removed {
				k.say("%s was made though rollout %s, which supersedes it, is %s there", name, at.rollout, o.Status)
			}
		}
		if most := max(1, r.Terms.Retry.Attempts) + k.repeats[r.ID] + leavings(attempts) + detours(attempts) + madeWay(attempts); e.Attempt-e.Leg+1 > most {
			k.say("%s, leg %d: at most %d", name, e.Leg, most)
		}
	}
	k.path(name, r, attempts, e)
	if r.RevertOf != "" && !k.mayReturn(r, e.DeviceID, true) {
		k.say("%s brings back a device that rollout %s did not change", name, r.RevertOf)
	}
	k.stays(name, r, e)
	k.paced(r, e.QueuedAt)
}

// tookTurn: a device takes its turn before it is given to it only where that is about to
// come, in the open stage, and nothing bounds how many have theirs.
func (k *checker) tookTurn(name string, r ota.Rollout, e ota.Execution) {
	k.tookTurns++
	turn, ok, err := k.sim.store.Turn(context.Background(), r.ID, r.Line, e.DeviceID)
	if err != nil {
		k.say("%s: its turn: %v", name, err)
		return
	}
	s := r.Stages[e.Stage]
	switch {
	case !ok || turn < r.Cursor || turn >= s.Target:
		k.say("%s was taken at turn %d (%t) of %d to %d", name, turn, ok, r.Cursor, s.Target)
	case s.State != ota.StageOpen || e.Stage > 0 && r.Stages[e.Stage-1].State != ota.StagePassed:
		k.say("%s was taken in stage %d, which is %s", name, e.Stage+1, s.State)
	case r.Terms.Rate != (ota.Rate{}) || e.Attempt != 1:
		k.say("%s was taken, at a rate of %s", name, r.Terms.Rate)
	}
}

// paced holds the promise of ota.Rate for every span that ends now.
func (k *checker) paced(r ota.Rollout, at time.Time) {
	made := append(k.made[r.ID], at)
	k.made[r.ID] = made
	rate := r.Terms.Rate
	if rate.PerMinute == 0 {
		return
	}
	most := rate.PerMinute
	if rate.Factor > 0 {
		most = rate.Max
		for raised, n := rate.PerMinute, 0; rate.Of == ota.RateByNotified && raised < most; n += rate.Each {
			if n+rate.Each > len(made) {
				most = raised
				break
			}
			raised *= rate.Factor
		}
	}
	second := float64(int(most/60 + 0.999999))
	for i, from := range made {
		if n := len(made) - i; float64(n) > second+at.Sub(from).Minutes()*most+1e-3 {
			k.say("rollout %s made %d executions within %s at %g a minute", r.ID, n, at.Sub(from), most)
			return
		}
	}
}

// whole looks at everything once more: counts are those of the rows, no device
// that is shut out has work, and who drifted is known.
func (k *checker) whole() {
	ctx := context.Background()
	k.feed()
	for id, r := range k.rollouts {
		k.followed(r)
		k.letGo(r)
		p, err := k.sim.store.Progress(ctx, r, k.sim.now())
		if err != nil {
			k.say("progress: %v", err)
		}
		k.seen("end", id)
		for i, c := range p.Stages {
			t := k.basis["end "+id].stages[i]
			if c.Total() != t.total || c.Active() != t.active || c.Sample() != t.sample || c.Of(ota.ClassSucceeded) != t.succeeded {
				k.say("stage %d of rollout %s counts %+v, its rows %+v", i+1, id, c, t)
			}
		}
	}
	for at, attempts := range k.executions {
		if e := attempts[len(attempts)-1]; !e.Status.Terminal() && k.sim.agent[at.device].revoked {
			k.say("device %s is revoked, and rollout %s is %s on it", at.device, at.rollout, e.Status)
		}
	}
	for _, a := range k.sim.agents {
		k.agrees(a)
	}
}

// agrees: the last success on a device says whether the device still runs it.
func (k *checker) agrees(a *agent) {
	var last ota.Execution
	newest, spokeAtWork := false, false // what is said at work does not count, until it is said again
	for at, attempts := range k.executions {
		for i, e := range attempts {
			if at.device == a.id && !e.StartedAt.IsZero() && e.Status != ota.Succeeded && e.FinishedAt.After(a.says.at) {
				spokeAtWork = true
			}
			if at.device == a.id && e.Status == ota.Succeeded && e.Release != (ota.ReleaseID{}) && (last.RolloutID == "" || e.FinishedAt.After(last.FinishedAt)) {
				last, newest = e, i == len(attempts)-1
			}
		}
	}
	d, err := k.sim.store.Device(context.Background(), a.id)
	if last.RolloutID == "" || err != nil || d.Revoked() || !newest || spokeAtWork || a.running == factory {
		return
	}
	if drifted := last.Class == ota.ClassDrifted; drifted != (digestOf(last.Release) != a.running) {
		k.say("device %s runs %.4s, and attempt %d of rollout %s of %.4s is of class %s", a.id, a.running, last.Attempt, last.RolloutID, digestOf(last.Release), last.Class)
	}
}
