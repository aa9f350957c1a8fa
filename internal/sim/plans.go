package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// firmware is a release, on what share of devices it does not work, and what has to
// run there before; zero: anything.
type firmware struct {
	id    ota.ReleaseID
	bad   float64
	needs ota.ReleaseID
}

func digestOf(id ota.ReleaseID) string {
	sum := sha256.Sum256([]byte(id.String()))
	return hex.EncodeToString(sum[:])
}

// factory is what no release has; of a device that runs it nothing is known.
var factory = digestOf(ota.ReleaseID{Name: "factory", Version: "0"})

func (s *Sim) badness(id ota.ReleaseID) float64 {
	for _, f := range s.releases {
		if f.id == id {
			return f.bad
		}
	}
	return 0
}

// release is the one with the image; zero: none has it.
func (s *Sim) release(digest string) firmware {
	for _, f := range s.releases {
		if digestOf(f.id) == digest {
			return f
		}
	}
	return firmware{}
}

// suits reports whether a device that runs an image may install a release. Versions
// have one digit here.
func (s *Sim) suits(id ota.ReleaseID, running string) bool {
	needs, runs := s.release(digestOf(id)).needs, s.release(running).id
	return needs == (ota.ReleaseID{}) || runs.Name == needs.Name && runs.Version >= needs.Version
}

// upTo draws a duration.
func (s *Sim) upTo(d time.Duration) time.Duration { return time.Duration(s.rng.Int64N(int64(d))) }

// one draws true once in n times.
func (s *Sim) one(n int) bool { return s.rng.IntN(n) == 0 }

func pick[T any](s *Sim, of ...T) T { return of[s.rng.IntN(len(of))] }

// populate makes devices and releases.
func (s *Sim) populate() {
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	for i := range s.rng.IntN(22) + 2 {
		a := &agent{sim: s, id: fmt.Sprintf("d%02d", i), running: factory, before: factory}
		s.agents, s.agent[a.id] = append(s.agents, a), a
		must(s.store.CreateDevice(ctx, fleet.Device{
			ID: a.id, Hardware: pick(s, "rpi4", "rpi4", "rpi5"), CreatedAt: s.began,
			Tags: map[string]string{"site": pick(s, "a", "b", "c")},
		}))
	}
	must(s.store.CreateGroup(ctx, fleet.Group{Name: "lab", CreatedAt: s.began}, []string{s.agents[0].id}))
	for _, name := range []string{"gw", "modem"} {
		for v := range 3 {
			f := firmware{id: ota.ReleaseID{Name: name, Version: fmt.Sprint(v + 1)}, bad: pick(s, 0, 0, 0.1, 0.4, 1)}
			m := ota.Manifest{
				Name: f.id.Name, Version: f.id.Version, HardwareIDs: []string{"rpi4", "rpi5"}, Installer: ota.InstallImage,
				ImageDigest: digestOf(f.id), ImageSize: 1, ObjectSize: 1,
			}
			if name == "gw" && v > 0 && !s.one(3) {
				f.needs = s.releases[v-1].id
				m.MinVersion = f.needs.Version
			}
			if name == "modem" && v == 2 && s.one(2) {
				f.needs = pick(s, s.releases[:v+1]...).id
				m.Requires = []ota.ReleaseID{f.needs}
			}
			s.releases = append(s.releases, f)
			_, err := s.store.CreateRelease(ctx, ota.Release{Manifest: m, IndexDigest: digestOf(f.id), IndexSize: 1, CreatedAt: s.began})
			must(err)
			must(s.store.PublishMetadata(ctx, nil, []ota.ReleaseID{f.id}, s.began))
		}
	}
	for _, a := range s.agents {
		if s.one(3) {
			continue // it does not say what it runs
		}
		a.running = digestOf(pick(s, s.releases[0], s.releases[0], s.releases[1], s.releases[3]).id)
	}
}

// plan draws a rollout.
func (s *Sim) plan() ota.Rollout {
	r := ota.Rollout{
		Release: pick(s, s.releases...).id, Seed: fmt.Sprint(s.rng.IntN(1000)), Priority: s.rng.IntN(3), Terms: s.terms(),
		Stages: s.stages(), Selector: pick(s, "", "", `tags.site = "a" OR tags.site = "b"`),
	}
	if s.one(4) {
		s.commanded(&r)
	} else if s.one(3) {
		s.continuous(&r)
	}
	if s.one(8) {
		r.State = ota.RolloutDraft
	}
	if s.one(3) {
		r.InProgressTimeout = time.Minute + s.upTo(time.Hour)
	}
	for range s.rng.IntN(3) {
		a := ota.AbortRule{Class: pick(s, ota.ClassAny, ota.ClassRolledBack, ota.ClassFailed, ota.ClassTimedOut), Share: 1}
		if s.one(2) {
			a.Share, a.MinSample = s.rng.Float64(), s.rng.IntN(8)
		} else {
			a.Count = s.rng.IntN(6) + 1
		}
		r.Abort = append(r.Abort, a)
	}
	return r
}

// continuous makes a rollout one that follows its selector.
func (s *Sim) continuous(r *ota.Rollout) {
	r.Terms.Continuous = true
	r.Selector = pick(s, "", `tags.site = "a"`, `tags.site = "a" OR tags.site = "b"`, `groups:"lab"`, `groups:"lab" OR tags.site = "c"`, `shadow.reported.firmware.digest = "`+digestOf(s.releases[0].id)+`" OR tags.site = "a"`)
	r.Stages = slices.DeleteFunc(r.Stages, func(stage ota.Stage) bool { return stage.Size.Selector != "" || stage.Size.Percent == 100 })
	r.Stages = append(r.Stages, ota.Stage{Size: ota.Size{Percent: 100}, State: ota.StagePending, Gate: ota.Gate{Success: pick(s, 0, 0.3, 0.8, 1)}})
}

// commanded makes a rollout one of a command.
func (s *Sim) commanded(r *ota.Rollout) {
	r.Release, r.Command = ota.ReleaseID{}, &ota.Command{Name: "x"}
	r.Terms.OnAbort = ""
	r.Terms.Timers, r.Terms.Quarantined = ota.Timers{Claim: r.Terms.Timers.Claim}, false
	if s.one(2) {
		for i := range r.Stages {
			r.Stages[i].Gate.Success = 0
		}
	}
}

func (s *Sim) stages() (stages []ota.Stage) {
	percent, count := 0.0, 0
	byCount := s.one(4)
	for len(stages) < 5 && percent < 100 {
		var size ota.Size
		switch {
		case s.one(6):
			size.Selector = pick(s, `tags.site = "a"`, `hardware = "rpi5"`, `id = "d01"`)
		case byCount && len(stages) < 3:
			count += s.rng.IntN(6) + 1
			size.Count = count
		default:
			percent = min(100, percent+1+s.rng.Float64()*70)
			size.Percent = percent
		}
		stage := ota.Stage{Size: size, State: ota.StagePending, Approval: s.one(6), Gate: ota.Gate{Success: pick(s, 0, 0.3, 0.5, 0.8, 0.95, 1)}}
		if s.one(2) {
			stage.Soak = s.upTo(20 * time.Minute)
		}
		if s.one(3) {
			stage.Gate.MinFinished = s.rng.IntN(6)
		}
		stages = append(stages, stage)
	}
	return stages
}

func (s *Sim) terms() ota.Terms {
	var t ota.Terms
	if s.one(5) {
		t.Start = s.now().Add(s.upTo(30 * time.Minute))
	}
	t.Approval = s.one(6)
	if s.one(2) {
		t.Rate.PerMinute = pick(s, 0.3, 1, 2.5, 30, 300)
		if s.one(2) {
			t.Rate.Factor, t.Rate.Each, t.Rate.Max = 1.5+s.rng.Float64(), s.rng.IntN(5)+1, t.Rate.PerMinute*10
			t.Rate.Of = pick(s, ota.RateByNotified, ota.RateBySucceeded)
		}
	}
	if s.one(3) {
		t.InFlight.Max = s.rng.IntN(5) + 1
	}
	if s.one(4) {
		t.InFlight.Per, t.InFlight.PerMax = pick(s, "site", ota.ByHardware), s.rng.IntN(3)+1
	}
	if s.one(2) {
		timer := func() time.Duration {
			if s.one(3) {
				return 0
			}
			return time.Minute + s.upTo(15*time.Minute)
		}
		t.Timers = ota.Timers{Claim: timer(), Fetch: timer(), Install: timer(), Reboot: timer(), Health: timer()}
	}
	if s.one(2) {
		t.Retry = ota.Retry{Attempts: s.rng.IntN(3) + 2, Backoff: s.upTo(10 * time.Minute)}
		if s.one(3) {
			t.Retry.On = []ota.Class{ota.ClassRolledBack, ota.ClassSilent}
		}
	}
	if s.one(3) {
		t.Strata = pick(s, []string{ota.ByHardware}, []string{"site", ota.ByHardware})
	}
	if s.one(4) {
		t.Health = ota.Health{
			Signals: []ota.Signal{{Name: ota.SignalCrash, Tolerance: pick(s, 0, 0.05, 0.3), MinPairs: s.rng.IntN(4), Alpha: 0.3}},
			Watch:   time.Minute + s.upTo(15*time.Minute), Wait: s.upTo(2*time.Hour) + 1, OnFail: pick(s, "", ota.HealthPause, ota.HealthAbort),
		}
	}
	t.OnAbort = pick(s, "", ota.AbortKeep, ota.AbortRevert, ota.AbortRevert)
	t.Drift = pick(s, "", ota.DriftRequeue, ota.DriftRecord)
	t.OnPause = pick(s, "", ota.PauseLetFinish, ota.PauseHoldBeforeInstall)
	t.Quarantined = s.one(3)
	return t
}

// schedule says when what happens until the faults are over.
func (s *Sim) schedule(poll time.Duration) {
	at := func() time.Duration { return s.upTo(stormy) }
	for i := range s.rng.IntN(3) + 1 {
		d := at() / 2
		if i == 0 {
			d = 0
		}
		s.after(d, s.create)
	}
	for _, a := range s.agents {
		a.off = true
		s.after(s.upTo(time.Minute), a.wake)
		for range s.rng.IntN(3) {
			d := s.upTo(20 * time.Minute)
			if s.one(6) {
				d = 10 * stormy // until the faults are over
			}
			s.after(at(), func() { a.die(d) })
		}
		for range s.rng.IntN(3) {
			s.after(at(), a.drift)
		}
		if s.one(25) {
			s.after(at(), func() {
				s.operate("revoke "+a.id, func(ctx context.Context, f *fleet.Service) error { _, err := f.RevokeDevice(ctx, a.id); return err })
			})
		}
	}
	if s.one(2) {
		for range s.rng.IntN(4) {
			a := pick(s, s.agents...)
			s.after(at(), func() { s.forget(a) })
		}
	}
	for range s.rng.IntN(8) {
		s.after(at(), s.operator)
	}
	if s.one(3) {
		for range s.rng.IntN(3) + 1 {
			s.after(at(), s.withdraw)
		}
	}
	for i := range s.rng.IntN(6) {
		s.after(at(), func() { s.newcomer(i) })
	}
	for range s.rng.IntN(12) {
		s.after(at(), s.change)
	}
	if s.one(3) {
		s.after(at(), func() { s.jumped.Add(int64(s.upTo(2 * time.Hour))); s.log("the clocks jump to %s", s.now()) })
	}
	for range s.rng.IntN(3) {
		s.after(at()/2, s.think)
	}
	for i := range s.servers {
		for life := range s.rng.IntN(3) {
			s.after(at(), func() { s.servers[i].kill(); s.log("%s is killed", s.servers[i].name) })
			_ = life
		}
		s.revive(i, 2, poll)
	}
}

// revive starts a replica again some time after its death.
func (s *Sim) revive(i, life int, poll time.Duration) {
	s.after(s.upTo(10*time.Minute), func() {
		if !s.calm {
			if s.servers[i].ctx.Err() != nil {
				s.start(i, life, poll)
			}
			s.revive(i, life+1, poll)
		}
	})
}

// becalm ends the faults: the servers run, every device connects once more, and
// operators approve what waits for it.
func (s *Sim) becalm(poll time.Duration) {
	s.log("the faults are over")
	s.calm = true
	for i, r := range s.servers {
		if r.ctx.Err() != nil {
			s.start(i, 1000, poll)
		}
	}
	for _, a := range s.agents {
		s.after(time.Hour+s.upTo(time.Minute), func() {
			a.life++
			a.calm = true
			a.wake()
		})
	}
	s.after(2*time.Hour, s.listen)
	s.approving()
}

// listen has one more rollout made when all is calm. Devices are connected and ask
// for nothing: it ends only if they are told.
func (s *Sim) listen() {
	r := ota.Rollout{Release: s.releases[0].id, Seed: "listen", Terms: ota.Terms{Quarantined: true}, Stages: []ota.Stage{
		{Size: ota.Size{Count: 1}, State: ota.StagePending}, {Size: ota.Size{Percent: 100}, State: ota.StagePending},
	}}
	if s.check.withdrawn[r.Release] {
		s.commanded(&r)
	}
	s.log("operator: create the last one")
	s.request("op create the last one", func(ctx context.Context, f *fleet.Service) (ota.Execution, error) {
		_, err := f.CreateRollout(ctx, r)
		return ota.Execution{}, err
	}, func(_ ota.Execution, err error) {
		if err != nil && !errors.Is(err, fleet.ErrNoDevices) && !errors.Is(err, fleet.ErrUnsigned) && !errors.Is(err, fleet.ErrOutranked) {
			s.check.say("the last rollout: %v", err)
		}
		s.listened, s.moved = true, true
	})
}

// newcomer is a device that comes later.
func (s *Sim) newcomer(i int) {
	a := &agent{sim: s, id: fmt.Sprintf("n%02d", i), running: factory, before: factory, off: true}
	if s.one(3) {
		a.running = digestOf(pick(s, s.releases...).id)
	}
	s.agents, s.agent[a.id] = append(s.agents, a), a
	s.enroll(a)
}

// change changes the tag of a device, or whether it is in the group.
func (s *Sim) change() {
	id, site := pick(s, s.agents...).id, pick(s, "a", "b", "c")
	var add, remove []string
	if list := []string{id}; s.one(2) {
		add = list
	} else {
		remove = list
	}
	if s.one(2) {
		s.operate("tag "+id+" "+site, func(ctx context.Context, f *fleet.Service) error {
			_, err := f.ChangeTags(ctx, id, map[string]string{"site": site}, nil)
			return err
		})
		return
	}
	s.operate("group "+id, func(ctx context.Context, f *fleet.Service) error {
		_, err := f.ChangeMembers(ctx, "lab", add, remove)
		return err
	})
}

func (s *Sim) approving() {
	for _, r := range s.rollouts() {
		if r.Holds() && s.check.active(r.ID, ota.InProgress) > 0 { // they wait for that
			s.resume(r.ID)
		}
		s.approve(r)
	}
	s.after(10*time.Minute, s.approving)
}

// ended reports whether every rollout has come to rest, and everything that
// devices said was looked at.
func (s *Sim) ended() bool { return s.listened && s.unfinished() == "" }

// waits reports whether a rollout waits for its reverts, and an operator would
// have to resume one of these.
func (s *Sim) waits(r ota.Rollout) bool {
	paused := false
	for _, v := range s.check.rollouts {
		if v.RevertOf == r.ID && !v.State.Terminal() {
			paused = true
			if v.State != ota.RolloutPaused {
				return false
			}
		}
	}
	return paused && r.State == ota.RolloutRollingBack
}

// unfinished names what has not ended.
func (s *Sim) unfinished() string {
	var names []string
	for _, r := range s.check.rollouts {
		if !r.State.Terminal() && !s.waits(r) && !(r.State == ota.RolloutRunning && r.Idle) && (r.State != ota.RolloutPaused || s.check.active(r.ID, ota.InProgress) > 0) {
			names = append(names, fmt.Sprintf("rollout %s is %s with %d queued and %d in progress", r.ID, r.State, s.check.active(r.ID, ota.Queued), s.check.active(r.ID, ota.InProgress)))
		}
	}
	for _, a := range s.agents {
		if !a.revoked && (!a.calm || a.says.heard < a.says.word) {
			names = append(names, "device "+a.id+" has not said what it runs")
		}
	}
	if marked, err := s.store.Marked(context.Background(), 1); err != nil || len(marked) > 0 {
		names = append(names, fmt.Sprintf("marked: %v %v", marked, err))
	}
	return strings.Join(names, "; ")
}
