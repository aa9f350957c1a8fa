package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// continuous makes a continuous rollout of a release, for the devices of site north.
func (w *world) continuous(r ota.Release, terms ota.Terms, stages string) fleet.RolloutView {
	w.t.Helper()
	terms.Continuous = true
	v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Selector: `tags.site = "north"`, Stages: w.stages(stages), Terms: terms, Seed: "s"})
	w.ok(err)
	return v
}

// made makes a device of a site.
func (w *world) made(id, site string) {
	w.t.Helper()
	_, err := w.s.CreateDevice(w.ctx, fleet.Device{ID: id, Hardware: "rpi4", Tags: map[string]string{"site": site}})
	w.ok(err)
}

func (w *world) moved(id, site string) {
	w.t.Helper()
	_, err := w.s.ChangeTags(w.ctx, id, map[string]string{"site": site}, nil)
	w.ok(err)
}

// rests lets the engine and the looks come to rest; they need no time for that.
func (w *world) rests() {
	<-time.After(time.Second)
	synctest.Wait()
}

func (w *world) attempt(rollout, device string) ota.Execution {
	w.t.Helper()
	e, err := w.store.Execution(w.ctx, rollout, device)
	if errors.Is(err, fleet.ErrNotFound) {
		return ota.Execution{}
	}
	w.ok(err)
	return e
}

func (w *world) view(id string) fleet.RolloutView {
	w.t.Helper()
	v, err := w.s.Rollout(w.ctx, id)
	w.ok(err)
	return v
}

func (w *world) because(device string) string {
	w.t.Helper()
	list, err := w.s.Why(w.ctx, device)
	w.ok(err)
	if len(list) != 1 {
		w.t.Fatalf("why: %+v", list)
	}
	return list[0].Why
}

// TestContinuous: a continuous rollout goes to devices that come to match it, waits
// for them without ending, and leaves alone those that match no longer.
func TestContinuous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("2.0")
		w.made("a", "north")
		w.made("b", "south")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		v := w.continuous(r, ota.Terms{}, "50%,100%")
		w.rests()
		w.installs("a", r)
		<-time.After(2 * time.Minute) // the soak
		if v = w.view(v.ID); v.State != ota.RolloutRunning || !v.Idle || v.Current() != 1 || v.Stages[1].State != ota.StageOpen {
			t.Fatalf("it is %s, idle %v: %+v", v.State, v.Idle, v.Stages)
		}
		if why := w.because("b"); !strings.Contains(why, "it joins when it does") {
			t.Error(why)
		}
		w.moved("b", "north")
		w.made("c", "north")
		w.rests()
		for _, id := range []string{"b", "c"} {
			if e := w.attempt(v.ID, id); e.Status != ota.Queued || e.Stage != 1 {
				t.Errorf("%s joined, and has %+v", id, e)
			}
		}
		if v = w.view(v.ID); v.Population != 3 || v.Stages[1].Target != 3 || v.Idle {
			t.Errorf("population %d, %+v", v.Population, v.Stages)
		}
		w.moved("b", "south")
		w.rests()
		if e := w.attempt(v.ID, "b"); e.Status != ota.Canceled || e.Reason() != ota.LeftReason {
			t.Errorf("b left, and has %+v", e)
		}
		w.moved("b", "north")
		w.rests()
		if e := w.attempt(v.ID, "b"); e.Status != ota.Queued || e.Attempt != 2 {
			t.Errorf("b is back, and has %+v", e)
		}
		w.installs("b", r)
		w.runs("c", r.ImageDigest) // flashed in the factory
		w.rests()
		if v = w.view(v.ID); v.State != ota.RolloutRunning || !v.Idle || v.Progress.Total().Of(ota.ClassSucceeded) != 3 {
			t.Errorf("%s, idle %v: %+v", v.State, v.Idle, v.Progress.Total())
		}
		if ids, err := w.store.Moving(w.ctx); err != nil || len(ids) > 0 {
			t.Errorf("an idle one moves: %v %v", ids, err)
		}
		w.made("d", "north")
		w.rests()
		_, err := w.s.FinishRollout(w.ctx, v.ID, "enough")
		w.ok(err)
		w.made("e", "north")
		w.rests()
		if v = w.view(v.ID); v.State != ota.RolloutCompleted || w.attempt(v.ID, "d").Status != ota.Canceled || w.attempt(v.ID, "e").Attempt != 0 {
			t.Errorf("%s, d has %+v, e has %+v", v.State, w.attempt(v.ID, "d"), w.attempt(v.ID, "e"))
		}
		if faults, err := w.store.Check(w.ctx); err != nil || len(faults) > 0 {
			t.Errorf("%v, %v", faults, err)
		}
	})
}

// TestContinuousJoinersKeepTheRate: those who join later are no faster than the rate,
// however many come at once.
func TestContinuousJoinersKeepTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("2.0")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		v := w.continuous(r, ota.Terms{Rate: ota.Rate{PerMinute: 2}, InFlight: ota.InFlight{Max: 1}}, "100%")
		w.rests()
		for i := range 30 {
			w.made(fmt.Sprintf("d%02d", i), "north")
		}
		began := time.Now()
		for range 10 {
			<-time.After(time.Minute)
			synctest.Wait()
			most := 1 + 2*int(time.Since(began)/time.Minute)
			if n := w.view(v.ID).Progress.Total().Total(); n > most || n < most-2 {
				t.Errorf("%d of at most %d after %s", n, most, time.Since(began))
			}
		}
		for i := range 30 {
			_, _ = w.s.StartNext(w.ctx, fmt.Sprintf("d%02d", i), ota.Starting{})
		}
		if n := w.view(v.ID).Progress.Total().InProgress; n != 1 {
			t.Errorf("%d in progress at a time", n)
		}
	})
}

// meddling is a store in which something happens while a line is being stored: after
// the fleet was walked, and before the rollout begins.
type meddling struct {
	fleet.Store
	meddle func()
}

func (m *meddling) PutCandidates(ctx context.Context, rollout, line string, turn int, list []ota.Candidate) error {
	if f := m.meddle; f != nil {
		m.meddle = nil
		f()
	}
	return m.Store.PutCandidates(ctx, rollout, line, turn, list)
}

// TestWhoChangesWhileAContinuousRolloutIsArranged: nobody is lost, and nobody stays
// who has left.
func TestWhoChangesWhileAContinuousRolloutIsArranged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("2.0")
		w.made("stays", "north")
		w.made("leaves", "north")
		w.made("comes", "south")
		m := &meddling{Store: w.store}
		w.s.Store = m
		// At a rate, so that its turn has not come when it is looked at.
		defer w.background(w.s.RunLooks)()
		m.meddle = func() {
			w.made("new", "north")
			w.moved("comes", "north")
			w.moved("leaves", "south")
			<-time.After(30 * time.Second) // they are looked at before it begins
		}
		v := w.continuous(r, ota.Terms{Rate: ota.Rate{PerMinute: 1}}, "100%")
		if m.meddle != nil {
			t.Fatal("nothing was arranged")
		}
		w.rests()
		defer w.background(w.s.RunEngine, w.s.RunNotifier)()
		<-time.After(10 * time.Minute)
		synctest.Wait()
		for id, want := range map[string]ota.Status{"stays": ota.Queued, "new": ota.Queued, "comes": ota.Queued} {
			if e := w.attempt(v.ID, id); e.Status != want {
				t.Errorf("%s has %+v", id, e)
			}
		}
		if e := w.attempt(v.ID, "leaves"); e.Attempt > 0 && e.Status != ota.Canceled {
			t.Errorf("leaves has %+v", e)
		}
		if v = w.view(v.ID); v.Population != 4 || v.Stages[0].Target != 4 {
			t.Errorf("population %d, %+v", v.Population, v.Stages)
		}
		if faults, err := w.store.Check(w.ctx); err != nil || len(faults) > 0 {
			t.Errorf("%v, %v", faults, err)
		}
	})
}

// TestANewerContinuousRolloutTakesTheOldersPlace: the older one is finished, whatever
// it was about, and its devices get the newer release.
func TestANewerContinuousRolloutTakesTheOldersPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		w.made("a", "north")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		older := w.continuous(one, ota.Terms{}, "100%")
		w.rests()
		newer := w.continuous(two, ota.Terms{}, "100%")
		w.rests()
		if v := w.view(older.ID); v.State != ota.RolloutCompleted || !strings.Contains(v.Reason, newer.ID) {
			t.Errorf("the older is %s: %s", v.State, v.Reason)
		}
		w.installs("a", two)
		w.made("b", "north")
		w.rests()
		if w.attempt(older.ID, "b").Attempt != 0 || w.attempt(newer.ID, "b").Status != ota.Queued {
			t.Errorf("b has %+v of the newer one", w.attempt(newer.ID, "b"))
		}
	})
}

// TestAnOlderContinuousRolloutDoesNotBringBack: a device that runs what a newer
// continuous rollout means for it is not given the older release.
func TestAnOlderContinuousRolloutDoesNotBringBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		older := w.continuous(one, ota.Terms{}, "100%")
		<-time.After(time.Second)
		_, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Continuous: true}})
		w.ok(err)
		w.rests()
		w.made("a", "south")
		w.runs("a", two.ImageDigest)
		w.rests()
		w.moved("a", "north")
		w.rests()
		if e := w.attempt(older.ID, "a"); e.Attempt != 0 {
			t.Errorf("it is brought back: %+v", e)
		}
	})
}

// TestWhatANewerContinuousRolloutLetsGo: when it has ended, the older one takes the
// devices that it had left to it.
func TestWhatANewerContinuousRolloutLetsGo(t *testing.T) {
	for name, end := range map[string]func(w *world, id string) error{
		"finished": func(w *world, id string) error { _, err := w.s.FinishRollout(w.ctx, id, "done"); return err },
		"aborted": func(w *world, id string) error {
			_, err := w.s.AbortRollout(w.ctx, id, "bad", ota.AbortKeep)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.release("1.0"), w.release("2.0")
				defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
				older := w.continuous(one, ota.Terms{}, "100%")
				<-time.After(time.Second)
				newer, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Continuous: true}})
				w.ok(err)
				w.rests()
				w.made("runs-it", "south")
				w.runs("runs-it", two.ImageDigest)
				w.rests()
				w.made("waits-for-it", "south")
				w.rests()
				w.moved("runs-it", "north")
				w.moved("waits-for-it", "north")
				w.rests()
				for _, id := range []string{"runs-it", "waits-for-it"} {
					if e := w.attempt(older.ID, id); e.Attempt != 0 {
						t.Errorf("before: %s has %+v", id, e)
					}
				}
				w.ok(end(w, newer.ID))
				<-time.After(time.Minute) // nobody says that there are marks
				w.rests()
				for _, id := range []string{"runs-it", "waits-for-it"} {
					if e := w.attempt(older.ID, id); e.Status != ota.Queued {
						t.Errorf("%s is lost: %+v", id, e)
					}
				}
			})
		})
	}
}

// TestWhoLeavesANewerContinuousRolloutIsTheOlders: one look lets it go and takes it.
func TestWhoLeavesANewerContinuousRolloutIsTheOlders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		older := w.continuous(one, ota.Terms{}, "100%")
		<-time.After(time.Second)
		newer, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Selector: `tags.site = "south"`, Stages: w.stages("100%"), Terms: ota.Terms{Continuous: true}})
		w.ok(err)
		w.rests()
		w.made("a", "south")
		w.rests()
		if e := w.attempt(newer.ID, "a"); e.Status != ota.Queued {
			t.Fatalf("the newer one has %+v", e)
		}
		w.moved("a", "north")
		w.rests()
		if e := w.attempt(older.ID, "a"); e.Status != ota.Queued {
			t.Errorf("the older one has %+v", e)
		}
	})
}

func TestContinuousRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("1.0")
		for expr, want := range map[string]string{
			`online = true`:  "a continuous rollout can not ask who is online",
			`NOT lastSeen:*`: "a continuous rollout can not ask when a device was seen",
			`groups:*`:       "name those that are meant",
			`groups:"lab"`:   "asks for groups that there are",
			`tags.site ~ 12`: "",
		} {
			plan := ota.Rollout{Release: r.ID(), Selector: expr, Stages: w.stages("100%"), Terms: ota.Terms{Continuous: true}}
			for what, try := range map[string]func() error{
				"plan":   func() error { _, err := w.s.PlanRollout(w.ctx, plan); return err },
				"create": func() error { _, err := w.s.CreateRollout(w.ctx, plan); return err },
			} {
				if err := try(); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s %s: %v", what, expr, err)
				}
			}
		}
		_, err := w.s.CreateGroup(w.ctx, fleet.Group{Name: "lab"}, nil)
		w.ok(err)
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Selector: `groups:"lab"`, Stages: w.stages("100%"), Terms: ota.Terms{Continuous: true}})
		w.ok(err)
		if err := w.store.DeleteGroup(w.ctx, "lab"); !errors.Is(err, fleet.ErrConflict) || !strings.Contains(err.Error(), v.ID) {
			t.Errorf("delete: %v", err)
		}
		p, err := w.s.PlanRollout(w.ctx, v.Rollout)
		if err != nil || p.Population != 0 {
			t.Errorf("a plan that nobody has joined: %+v %v", p, err)
		}
	})
}

// TestContinuousTakesWhoAPathIsOpenedFor: who was left out, since no release led there,
// joins when one is signed that does, though nothing of the device has changed.
func TestContinuousTakesWhoAPathIsOpenedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.needing("1.0", "")
		three := w.needing("3.0", "2.0")
		w.made("a", "north")
		w.made("b", "north") // nobody knows what it runs
		w.made("c", "south")
		for _, id := range []string{"a", "c"} {
			w.runs(id, one.ImageDigest)
		}
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		v := w.continuous(three, ota.Terms{}, "100%")
		w.rests()
		if v = w.view(v.ID); v.Population != 0 || !v.Idle {
			t.Fatalf("population %d, idle %v", v.Population, v.Idle)
		}
		two := w.needing("2.0", "")
		w.rests()
		if e := w.attempt(v.ID, "a"); e.Status != ota.Queued || e.Release != two.ID() || e.Legs() != 2 {
			t.Errorf("a has %+v", e)
		}
		for _, id := range []string{"b", "c"} {
			if e := w.attempt(v.ID, id); e.Attempt != 0 {
				t.Errorf("%s has %+v", id, e)
			}
		}
		newer := w.needing("2.1", "")
		_, err := w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", "", w.without(two.ID()))
		w.ok(err)
		w.rests()
		if e := w.attempt(v.ID, "a"); e.Status != ota.Queued || e.Release != newer.ID() || e.Attempt != 2 {
			t.Errorf("a goes on with %+v", e)
		}
	})
}
