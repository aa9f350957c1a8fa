package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// agent is a device: how it reports, and what may happen to it. What stands in
// job and digest it keeps over a loss of power.
type agent struct {
	sim     *Sim
	id      string
	off     bool
	revoked bool  // or deleted, until it is enrolled again
	born    int   // raised by each enrollment: what was on its way before is lost with its connection
	calm    bool  // it has connected after the faults were over
	life    int   // raised by each loss of power: what it had in mind is gone
	events  int64 // that it told of
	asking  bool
	woken   bool // while it was asking
	job     *job
	running string // digest of the image
	before  string // that of the other slot
	says    says
}

// says is how an agent tells what it runs: one message at a time, the newest word
// again and again until it was heard.
type says struct {
	word    int       // raised each time that there is something to say
	heard   int       // the newest word that was acknowledged
	sending bool      // the server works on one
	at      time.Time // when the newest that was acknowledged was sent
}

// job is what an agent works on.
type job struct {
	rollout string
	release ota.ReleaseID // zero: a command
	attempt int
	version int64
	at      int    // index into its course
	from    string // digest of what ran before
	course  []word
	asked   int  // raised by each question whether it may go on
	held    bool // the last answer was that it may not
	cleared int  // Sim.Calls when the server read that it may
}

// word is what an agent says of its work, and how long it works before that.
type word struct {
	after  time.Duration
	status ota.Status
	step   ota.Step
	class  ota.Class
	silent time.Duration // it is off so long before
}

// stepRunning is the step of a command that runs.
const stepRunning ota.Step = "running"

// courseOf draws how an install goes, or a command.
func (a *agent) courseOf(release ota.ReleaseID) []word {
	s := a.sim
	work := func(step ota.Step) word {
		return word{after: s.upTo(90 * time.Second), status: ota.InProgress, step: step}
	}
	end := func(status ota.Status, class ota.Class) word {
		return word{after: s.upTo(20 * time.Second), status: status, class: class}
	}
	if release == (ota.ReleaseID{}) {
		if s.rng.IntN(10) == 0 {
			return []word{end(ota.Rejected, "")}
		}
		return []word{work(stepRunning), end(pick(s, ota.Succeeded, ota.Succeeded, ota.Succeeded, ota.Failed), "")}
	}
	if !s.suits(release, a.running) && a.running != digestOf(release) {
		return []word{end(ota.Rejected, "")}
	}
	course := []word{work(ota.StepFetching), work(ota.StepStaged), work(ota.StepRebooting), work(ota.StepTrial)}
	for i := range course {
		if !s.calm && s.rng.IntN(60) == 0 { // a network that fails, a disk that is full
			return append(course[:i], end(ota.Failed, ""))
		}
	}
	if !s.calm && s.rng.IntN(60) == 0 {
		return []word{end(ota.Rejected, "")}
	}
	if !s.calm && s.rng.IntN(25) == 0 {
		course[3].silent = s.upTo(2 * time.Hour)
	}
	if a.running == digestOf(release) {
		return []word{end(ota.Succeeded, "")}
	}
	if s.rng.Float64() < s.badness(release) {
		return append(course, work(ota.StepRollingBack), end(ota.Failed, ota.ClassRolledBack))
	}
	return append(course, work(ota.StepCommitting), end(ota.Succeeded, ""))
}

// later has the agent do something, unless it loses its power before.
func (a *agent) later(d time.Duration, f func()) {
	life := a.life
	a.sim.after(d, func() {
		if life == a.life && !a.off && !a.revoked {
			f()
		}
	})
}

// hear is what an agent does about a message: when it has nothing to do, or
// something else, it asks.
func (a *agent) hear(next *ota.Execution) {
	switch {
	case a.off || a.revoked:
	case a.job == nil && next != nil:
		a.woken = a.asking // what it is answered may be older than the message
		a.ask()
	case a.job != nil && (next == nil || next.RolloutID != a.job.rollout || next.Attempt != a.job.attempt):
		a.look()
	case a.job != nil && a.job.held:
		a.goOn()
	}
}

// message has a message go over a network, which loses, doubles and delays.
func (a *agent) message(arrives func()) {
	s := a.sim
	copies, born := 1, a.born
	if !s.calm {
		switch n := s.rng.IntN(100); {
		case n < 6:
			copies = 0
		case n < 14:
			copies = 2
		}
	}
	for range copies {
		d := s.upTo(2 * time.Second)
		if !s.calm && s.rng.IntN(12) == 0 {
			d = s.upTo(20 * time.Minute)
		}
		s.after(d, func() {
			if born == a.born {
				arrives()
			}
		})
	}
}

// send sends a request until its answer has arrived once. Copies of the request
// arrive too, and what they are answered is heard as well.
func (a *agent) send(what string, do request, heard func(ota.Execution, error)) {
	answered := false
	a.message(func() {
		a.sim.request(a.id+" "+what, do, func(e ota.Execution, err error) {
			a.message(func() { answered = true; heard(e, err) })
		})
	})
	a.later(30*time.Second+a.sim.upTo(30*time.Second), func() {
		if !answered {
			heard(ota.Execution{}, errStore)
		}
	})
}

// ask asks for what is next, and starts it.
func (a *agent) ask() {
	if a.asking {
		return
	}
	a.asking = true
	life := a.life
	a.send("start", func(ctx context.Context, r *fleet.Service) (ota.Execution, error) {
		return r.StartNext(ctx, a.id, ota.Starting{})
	}, func(e ota.Execution, err error) {
		if life != a.life || a.off || a.revoked {
			return
		}
		a.asking = false
		switch {
		case err == nil:
			a.begin(e)
		case errors.Is(err, errStore) || errors.Is(err, context.Canceled):
			a.later(5*time.Second, func() {
				if a.job == nil {
					a.ask()
				}
			})
		case errors.Is(err, fleet.ErrNotFound) && a.woken:
			a.woken = false
			a.later(0, a.ask)
		case !errors.Is(err, fleet.ErrNotFound):
			a.sim.check.say("device %s asks for work: %v", a.id, err)
		}
	})
}

// begin begins to work, if it does not work yet.
func (a *agent) begin(e ota.Execution) {
	if a.job != nil {
		return
	}
	// The answer may be late: what it speaks of may be over by now, as the first
	// report will say.
	a.job = &job{rollout: e.RolloutID, release: e.Release, attempt: e.Attempt, version: e.Version, course: a.courseOf(e.Release), from: a.running}
	a.work()
}

// grab is a device that takes what it likes: it begins something of its list
// though it is not next, or though it works already. Nobody works on it if it may.
func (a *agent) grab() {
	var take int
	if take = a.sim.rng.IntN(fleet.MaxNotified); a.sim.calm {
		return
	}
	a.send("grabs", func(ctx context.Context, s *fleet.Service) (ota.Execution, error) {
		list, err := s.Pending(ctx, a.id, fleet.MaxNotified)
		if err != nil || len(list) == 0 {
			return ota.Execution{}, err
		}
		e := list[take%len(list)]
		return s.Report(ctx, ota.Report{RolloutID: e.RolloutID, DeviceID: a.id, Status: ota.InProgress})
	}, func(ota.Execution, error) {})
}

// work takes the time of what comes next, and reports it.
func (a *agent) work() {
	if a.job == nil { // given up meanwhile
		return
	}
	if a.sim.one(20) {
		a.grab()
	}
	w := a.job.course[a.job.at]
	if w.silent > 0 && !a.sim.calm {
		a.job.course[a.job.at].silent = 0
		a.die(w.silent)
		return
	}
	switch install := a.job.release != (ota.ReleaseID{}); {
	case install && w.step == ota.StepTrial:
		a.becomes(digestOf(a.job.release))
	case install && w.step == ota.StepRollingBack:
		a.becomes(a.job.from)
	}
	a.later(w.after, a.goOn)
}

// committing reports whether there is no way back behind a word: the new slot is
// activated, or the command run.
func (j *job) committing(w word) bool {
	if j.release == (ota.ReleaseID{}) {
		return j.at == 0 && !w.status.Terminal()
	}
	return w.step == ota.StepRebooting
}

// goOn reports what comes next; where there is no way back it asks before whether it may.
func (a *agent) goOn() {
	if a.job == nil {
		return
	}
	if j := a.job; j.committing(j.course[j.at]) {
		a.mayI()
		return
	}
	a.report()
}

// mayI asks how the execution stands, and goes on unless it is asked to hold: then it
// says that it waits, and asks again when it is told of it, or after a while.
func (a *agent) mayI() {
	j, life := a.job, a.life
	j.asked++
	asked, read := j.asked, 0
	a.send("asks whether it may", func(ctx context.Context, r *fleet.Service) (ota.Execution, error) {
		e, err := r.Execution(ctx, j.rollout, a.id)
		if read == 0 { // by the first of several copies
			read = a.sim.Calls
		}
		return e, err
	}, func(e ota.Execution, err error) {
		if life != a.life || a.off || a.revoked || a.job != j || j.asked != asked {
			return
		}
		j.asked++ // once is enough
		switch {
		case err != nil:
			a.later(10*time.Second, a.goOn)
		case e.Attempt > j.attempt || e.Attempt == j.attempt && e.Status.Terminal():
			a.forget()
		case e.Hold:
			a.waits()
		default:
			j.held, j.cleared = false, read
			a.report()
		}
	})
}

// waits says that the agent waits, once each time.
func (a *agent) waits() {
	j := a.job
	if again := a.sim.upTo(10 * time.Minute); j.held {
		a.later(again, a.goOn)
		return
	}
	j.held = true
	j.course = slices.Insert(slices.Clone(j.course), j.at, word{status: ota.InProgress, step: ota.StepWaiting})
	a.report()
}

// report reports where the work stands, again and again until it is heard.
func (a *agent) report() {
	if a.job == nil {
		return
	}
	j, life := a.job, a.life
	w := j.course[j.at]
	r := ota.Report{
		RolloutID: j.rollout, DeviceID: a.id, Status: w.status, ExpectedVersion: j.version, Attempt: j.attempt,
		Details: map[string]string{ota.DetailStep: string(w.step), ota.DetailClass: string(w.class)},
	}
	maps.DeleteFunc(r.Details, func(_, v string) bool { return v == "" })
	if w.status.Terminal() {
		r.ExpectedVersion = 0 // as the agent tells a verdict: it is one whatever the server knows
	}
	at, version := j.at, j.version
	a.send(fmt.Sprintf("reports %s %s", w.status, w.step), func(ctx context.Context, s *fleet.Service) (ota.Execution, error) {
		return s.Report(ctx, r)
	}, func(e ota.Execution, err error) {
		if life != a.life || a.off || a.revoked || a.job != j || j.at != at || j.version != version {
			return
		}
		a.answered(w, e, err)
	})
}

// answered is what an agent does about the answer to its report.
func (a *agent) answered(w word, e ota.Execution, err error) {
	j := a.job
	switch {
	case err == nil:
		j.version = e.Version
		a.done(w)
	case errors.Is(err, errStore), errors.Is(err, context.Canceled):
		a.later(10*time.Second, a.goOn)
	case errors.Is(err, ota.ErrTerminal), errors.Is(err, ota.ErrVersionMismatch):
		switch {
		case e.Attempt == j.attempt && e.Status == w.status && (e.Status.Terminal() || e.Step() == w.step): // its own word, told before
			j.version = e.Version
			a.done(w)
		case e.Attempt != j.attempt || e.Status.Terminal():
			a.forget()
		default:
			j.version = e.Version
			a.later(time.Second, a.goOn)
		}
	default:
		a.sim.check.say("device %s reports %s %s of rollout %s: %v", a.id, w.status, w.step, j.rollout, err)
	}
}

// done goes on after a report that the server has stored.
func (a *agent) done(w word) {
	if w.status == ota.Succeeded && a.sim.rng.Float64() < a.sim.badness(a.job.release) {
		a.later(a.sim.upTo(5*time.Minute), a.crash)
	}
	if !w.status.Terminal() {
		a.job.at++
		a.work()
		return
	}
	a.forget()
}

// forget gives the job up, and asks whether there is more.
func (a *agent) forget() {
	a.job = nil
	a.later(time.Second, a.ask)
}

// look asks whether the job is still what it should work on.
func (a *agent) look() {
	j, life := a.job, a.life
	a.send("looks", func(ctx context.Context, r *fleet.Service) (ota.Execution, error) {
		return r.Execution(ctx, j.rollout, a.id)
	}, func(e ota.Execution, err error) {
		if life == a.life && a.job == j && err == nil && (e.Attempt > j.attempt || e.Attempt == j.attempt && e.Status.Terminal()) {
			a.forget()
		}
	})
}

// becomes has the device run another image.
func (a *agent) becomes(digest string) {
	if digest == a.running {
		return
	}
	a.before, a.running = a.running, digest
	a.tell()
}

// tell says what the device runs, until it was heard.
func (a *agent) tell() {
	a.says.word++
	a.say(a.says.word)
}

// say sends a word, unless it was heard or there is a newer one. Messages of a
// connection do not overtake each other.
func (a *agent) say(word int) {
	if a.off || a.revoked || a.says.heard >= word || a.says.word != word {
		return
	}
	if a.running == factory {
		a.says.heard, a.sim.moved = word, true
		return
	}
	a.message(func() {
		if a.says.sending || a.says.word != word {
			return
		}
		a.says.sending = true
		sent := a.sim.now()
		a.sim.check.said[claim{a.id, a.running}] = sent
		u := shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"digest": a.running}})
		a.sim.request(a.id+" runs "+a.running[:4], func(ctx context.Context, r *fleet.Service) (ota.Execution, error) {
			_, err := r.UpdateShadow(ctx, a.id, "", u)
			return ota.Execution{}, err
		}, func(_ ota.Execution, err error) {
			a.says.sending = false
			if err == nil && a.says.word == word {
				a.says.heard, a.says.at, a.sim.moved = word, sent, true
			}
		})
	})
	a.later(30*time.Second+a.sim.upTo(30*time.Second), func() { a.say(word) })
}

// drift has the device run another image than it was given, behind the back of
// its agent: it falls back, or somebody flashes it.
func (a *agent) drift() {
	if a.off || a.revoked || a.job != nil {
		return
	}
	digest := a.before
	if digest == factory || a.sim.one(3) {
		digest = digestOf(pick(a.sim, a.sim.releases...).id)
	}
	a.sim.log("%s runs %s now", a.id, digest[:4])
	a.before, a.running = a.running, digest
	a.die(a.sim.upTo(2 * time.Minute))
}

// die takes the power away for so long.
func (a *agent) die(d time.Duration) {
	if a.off || a.revoked {
		return
	}
	a.sim.log("%s is off for %s", a.id, d.Round(time.Second))
	a.off, a.asking = true, false
	a.life++
	life := a.life
	a.sim.after(d, func() {
		if life == a.life {
			a.wake()
		}
	})
}

// wake lets a device start, or connect again.
func (a *agent) wake() {
	if a.revoked {
		return
	}
	a.off, a.asking = false, false
	a.life++
	a.tell()
	if a.job != nil {
		a.later(a.sim.upTo(10*time.Second), a.work)
		return
	}
	a.later(a.sim.upTo(10*time.Second), a.ask)
}

// publisher carries messages of the servers to the agents.
type publisher struct{ sim *Sim }

func (p publisher) NotifyNext(ctx context.Context, id string, next *ota.Execution) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a := p.sim.agent[id]
	a.message(func() { a.hear(next) })
	return nil
}

func (p publisher) NotifyJobs(ctx context.Context, _ string, _ []ota.Execution) error {
	return ctx.Err()
}

func (p publisher) ShadowUpdated(context.Context, string, string, shadow.Result) error { return nil }

func (p publisher) Evict(e fleet.Eviction) {
	a := p.sim.agent[e.DeviceID]
	if e.Reason != fleet.EvictedDeleted { // of that the store tells every server
		p.sim.after(0, func() { a.revoked = true })
	}
}

// crash has the application of a device end by itself, which it tells once.
func (a *agent) crash() {
	a.events++
	events := []fleet.Event{{Seq: a.events, Kind: fleet.EventCrash, Data: "{}"}}
	a.send("crash", func(ctx context.Context, r *fleet.Service) (ota.Execution, error) {
		_, err := r.TakeEvents(ctx, a.id, "log", events)
		return ota.Execution{}, err
	}, func(ota.Execution, error) {})
}
