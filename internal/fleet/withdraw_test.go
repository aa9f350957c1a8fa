package fleet_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

// without returns the next targets without a release.
func (w *world) without(id ota.ReleaseID) []byte {
	w.t.Helper()
	info, err := w.s.Trust(w.ctx)
	w.ok(err)
	next, err := signing.RemoveTarget(info.Targets, id.TargetPath(), time.Now().Add(1000*time.Hour), w.targets)
	w.ok(err)
	return next
}

// TestWithdraw: a release that is withdrawn vanishes from the signed targets, its
// rollouts end and nothing of it begins, in one step.
func TestWithdraw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		ids := w.enroll(4, "rpi4")
		w.runs(ids[0], two.ImageDigest)
		plan := ota.Rollout{Release: two.ID(), Stages: w.stages("100%")}
		v, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		draft := plan
		draft.State = ota.RolloutDraft
		d, err := w.s.CreateRollout(w.ctx, draft)
		w.ok(err)
		stop := w.background(w.s.RunEngine)
		for v.Progress.Total().Queued == 0 {
			<-time.After(time.Second) // virtual
			v, err = w.s.Rollout(w.ctx, v.ID)
			w.ok(err)
		}
		stop()
		_, _, err = w.s.PublishTargets(w.ctx, w.without(two.ID()))
		if !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "otactl firmware withdraw gw@2.0") {
			t.Errorf("a signed release left out: %v", err)
		}
		stale := w.without(one.ID())
		_, err = w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", "", stale)
		if !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "sign them without it") {
			t.Errorf("targets that still list it: %v", err)
		}
		_, err = w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", "burn", nil)
		if !errors.Is(err, fleet.ErrInvalid) {
			t.Error(err)
		}
		if r, err := w.store.Release(w.ctx, two.ID()); err != nil || r.State != ota.ReleaseSigned {
			t.Fatalf("refused, and done: %s, %v", r.State, err)
		}

		done, err := w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", "", w.without(two.ID()))
		w.ok(err)
		if done.Release.State != ota.ReleaseWithdrawn || done.Listed || done.Version == 0 || len(done.Rollouts) != 2 || done.Running.Devices != 1 || done.Desiring.Devices != 0 {
			t.Errorf("%+v", done)
		}
		for _, id := range ids {
			if _, err := w.s.StartNext(w.ctx, id, ota.Starting{}); !errors.Is(err, fleet.ErrNotFound) {
				t.Errorf("%s begins: %v", id, err)
			}
		}
		for _, id := range []string{v.ID, d.ID} {
			r, err := w.s.Rollout(w.ctx, id)
			w.ok(err)
			if r.State != ota.RolloutAborted || r.Reason != "release gw@2.0 is withdrawn: hangs" || r.Progress.Total().Active() != 0 {
				t.Errorf("rollout %s is %s: %s, %+v", id, r.State, r.Reason, r.Progress.Total())
			}
		}
		info, err := w.s.Trust(w.ctx)
		w.ok(err)
		list, err := signing.Targets(info.Targets)
		w.ok(err)
		if len(list) != 1 || list[0].Path != one.ID().TargetPath() {
			t.Errorf("targets list %v", list)
		}
		_, planned := w.s.PlanRollout(w.ctx, plan)
		_, created := w.s.CreateRollout(w.ctx, plan)
		for _, err := range []error{planned, created} {
			if !errors.Is(err, fleet.ErrUnsigned) || !strings.Contains(err.Error(), "gw@2.0 is withdrawn: hangs; roll out another version") {
				t.Error(err)
			}
		}
		events, err := w.store.Feed(w.ctx, fleet.FeedFilter{}, 0, 99)
		w.ok(err)
		at := slices.IndexFunc(events, func(e fleet.RolloutEvent) bool { return e.Kind == ota.EventRelease })
		if at < 0 || events[at].Release != two.ID() || fleet.EventType(events[at].Event) != "release.withdrawn" || events[at].RolloutID != "" {
			t.Errorf("events %+v", events)
		}
	})
}

// TestWithdrawWithoutAKey: who has no key at hand withdraws all the same, and whoever
// signs next has to leave the release out.
func TestWithdrawWithoutAKey(t *testing.T) {
	w := newWorld(t)
	one := w.release("1.0")
	w.enroll(1, "rpi4")
	done, err := w.s.WithdrawRelease(w.ctx, one.ID(), "hangs", "", nil)
	w.ok(err)
	if !done.Listed || done.Version != 0 {
		t.Errorf("%+v", done)
	}
	two, index, err := w.draft("2.0", []byte("two"))
	w.ok(err)
	_, _, err = w.s.PublishTargets(w.ctx, w.sign(two, index))
	if !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "gw@1.0 is withdrawn: hangs; sign them without it") {
		t.Errorf("targets that still list it: %v", err)
	}
	again, err := w.s.WithdrawRelease(w.ctx, one.ID(), "", "", w.without(one.ID()))
	w.ok(err)
	if again.Listed || again.Release.Reason != "hangs" || again.Version == 0 {
		t.Errorf("again: %+v", again)
	}
	if _, _, err := w.s.PublishTargets(w.ctx, w.sign(two, index)); err != nil {
		t.Error(err)
	}
	_, _, err = w.s.PublishTargets(w.ctx, w.sign(one, w.index(one)))
	if !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "upload a new version") {
		t.Errorf("signed anew: %v", err)
	}
}

// index is the artifact index of a release.
func (w *world) index(r ota.Release) []byte {
	w.t.Helper()
	b, err := w.s.Index(w.ctx, r.IndexDigest)
	w.ok(err)
	return b
}

// TestWithdrawnOnTheWay: devices that were to pass through a release go another way
// once it is withdrawn.
func TestWithdrawnOnTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, old, two := w.needing("1.0", ""), w.needing("2.0", ""), w.needing("2.1", "")
		three, four := w.needing("3.0", "2.0"), w.needing("4.0", "3.0")
		ids := w.enroll(6, "rpi4")
		runs := map[string]ota.ReleaseID{}
		w.settle(runs, ids, one)
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: four.ID(), Stages: w.stages("100%"), Seed: "s", Terms: ota.Terms{InFlight: ota.InFlight{Max: 2}}})
		w.ok(err)
		installed := map[string][]string{}
		withdrawn := false
		v = w.run(v.ID, 2, ids, w.installer(runs, func(device string, r ota.Release) ota.Report {
			installed[device] = append(installed[device], r.Version)
			if r.ID() == two.ID() && !withdrawn { // the newest on the way, of which some have begun
				withdrawn = true
				done, err := w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", "", w.without(two.ID()))
				w.ok(err)
				if len(done.Rollouts) != 0 || done.Rerouted < len(ids)-2 {
					t.Errorf("%d rollouts ended, %d devices go another way", len(done.Rollouts), done.Rerouted)
				}
			}
			return ota.Report{Status: ota.Succeeded}
		}))
		if total := v.Progress.Total(); v.State != ota.RolloutCompleted || total.Of(ota.ClassSucceeded) != len(ids) {
			t.Fatalf("%s: %s, %+v", v.State, v.Reason, v.Progress.Total())
		}
		other := 0
		for _, id := range ids {
			if runs[id] != four.ID() || !slices.Contains(installed[id], three.Version) {
				t.Errorf("%s runs %s by %v", id, runs[id], installed[id])
			}
			if slices.Contains(installed[id], old.Version) {
				other++
			}
		}
		if other < len(ids)-2 {
			t.Errorf("%d went over %s: %v", other, old.ID(), installed)
		}
	})
}

// TestWithdrawnLeavesNoWay: who was to go over what is withdrawn, and has not begun, loses
// its turn.
func TestWithdrawnLeavesNoWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.needing("1.0", ""), w.needing("2.0", "")
		three := w.needing("3.0", "2.0")
		ids := w.enroll(2, "rpi4")
		runs := map[string]ota.ReleaseID{}
		w.settle(runs, ids, one)
		plan := ota.Rollout{Release: three.ID(), Stages: w.stages("1,2"), Seed: "s"}
		v, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		withdrawn := false
		v = w.run(v.ID, 1, ids, w.installer(runs, func(_ string, r ota.Release) ota.Report {
			if r.ID() == three.ID() && !withdrawn { // the first is there, the second has not begun
				withdrawn = true
				_, err := w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", "", w.without(two.ID()))
				w.ok(err)
			}
			return ota.Report{Status: ota.Succeeded}
		}))
		if v.State != ota.RolloutCompleted || v.Progress.Total().Total() != 1 { // the other lost its turn
			t.Errorf("%s: %s, %+v", v.State, v.Reason, v.Progress.Total())
		}
		_, err = w.s.PlanRollout(w.ctx, plan)
		if !errors.Is(err, fleet.ErrNoDevices) || !strings.Contains(err.Error(), "no signed release leads there from gw@1.0") {
			t.Error(err)
		}
	})
}

// TestNothingIsOfferedWithoutAWay: a device on its way over what is withdrawn, that has
// no other, is offered nothing, whatever it would install. Its attempt says what is
// missing and what to do; and in a continuous rollout it goes on when a way is signed.
func TestNothingIsOfferedWithoutAWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.needing("1.0", ""), w.needing("2.0", "")
		three, four := w.needing("3.0", "2.0"), w.needing("4.0", "3.0")
		w.made("a", "north")
		w.made("b", "north")
		w.runs("a", one.ImageDigest)
		w.runs("b", two.ImageDigest)
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		v := w.continuous(four, ota.Terms{Retry: ota.Retry{Attempts: 2}}, "100%")
		w.rests()
		w.installs("b", three) // and waits for the next leg
		withdraw := func(r ota.Release) {
			_, err := w.s.WithdrawRelease(w.ctx, r.ID(), "hangs", "", w.without(r.ID()))
			w.ok(err)
			w.rests()
		}
		nothing := func(device string, attempt int, words ...string) {
			t.Helper()
			e := w.attempt(v.ID, device)
			if e.Status != ota.Rejected || e.Class != ota.ClassRejected || e.Attempt != attempt || !e.RetryAt.IsZero() {
				t.Fatalf("%s has %+v", device, e)
			}
			if next, err := w.s.NextExecution(w.ctx, device); err == nil && next.RolloutID == v.ID {
				t.Errorf("%s is offered %+v", device, next)
			}
			why, err := w.s.Why(w.ctx, device)
			w.ok(err)
			list, err := w.s.Failures(w.ctx, v.ID)
			w.ok(err)
			said := ""
			for _, b := range why {
				said += b.Why + "\n"
			}
			for _, word := range append(words, ota.StrandedReason) {
				if !strings.Contains(said, word) || !slices.ContainsFunc(list, func(e ota.Execution) bool { return e.DeviceID == device && strings.Contains(e.Reason(), word) }) {
					t.Errorf("%q is not said of %s: %s, nor in %+v", word, device, said, list)
				}
			}
		}
		withdraw(two)
		nothing("a", 2, "gw@4.0 needs gw 3.0 or newer", "no signed release leads there from gw@1.0: sign one that gw@1.0 can take", "gw@2.0, over which it was to go, is withdrawn")
		if e := w.attempt(v.ID, "b"); e.Status != ota.Queued || e.Release != four.ID() {
			t.Errorf("b, which is past it, has %+v", e)
		}
		newer := w.needing("2.1", "")
		w.rests()
		if e := w.attempt(v.ID, "a"); e.Status != ota.Queued || e.Release != newer.ID() || e.Attempt != 3 || e.Legs() != 3 {
			t.Fatalf("a way is opened, and a has %+v", e)
		}
		w.installs("a", newer)
		w.rests()
		if e := w.attempt(v.ID, "a"); e.Release != three.ID() || e.Leg != 2 {
			t.Errorf("a goes on with %+v", e)
		}
		withdraw(three)
		nothing("a", 5, "gw@3.0, over which it was to go, is withdrawn", "from gw@2.1")
		if faults, err := w.store.Check(w.ctx); err != nil || len(faults) > 0 {
			t.Errorf("%v, %v", faults, err)
		}
	})
}

// TestDriftToWhereNoWayBegins: a device that fell back to an image from which no way
// leads on is offered nothing.
func TestDriftToWhereNoWayBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		two := w.needing("2.0", "")
		three := w.needing("3.0", "2.0")
		ids := w.enroll(1, "rpi4")
		w.runs(ids[0], two.ImageDigest)
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		stages := w.stages("100%")
		stages[0].Soak = time.Hour
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: three.ID(), Stages: stages, Terms: ota.Terms{Retry: ota.Retry{Attempts: 3}}})
		w.ok(err)
		w.rests()
		w.installs(ids[0], three)
		w.rests()
		w.runs(ids[0], strings.Repeat("f", 64))
		w.rests()
		e := w.attempt(v.ID, ids[0])
		if e.Status != ota.Rejected || e.Attempt != 2 || !strings.HasPrefix(e.Reason(), ota.StrandedReason) || !strings.Contains(e.Reason(), "upload it as one") {
			t.Errorf("%+v", e)
		}
		if v = w.view(v.ID); v.State != ota.RolloutPaused { // a failure stays one
			t.Fatalf("%s: %+v", v.State, v.Progress.Total())
		}
		w.runs(ids[0], two.ImageDigest) // the operator repaired it
		_, err = w.s.ResumeRollout(w.ctx, v.ID, ota.ResumeRepeat)
		w.ok(err)
		w.rests()
		if e := w.attempt(v.ID, ids[0]); e.Status != ota.Queued || e.Attempt != 3 || e.Release != three.ID() {
			t.Errorf("repeated: %+v", e)
		}
	})
}

// TestRevertDoesNotReturnToWhatIsWithdrawn: devices stay, and it is said why.
func TestRevertDoesNotReturnToWhatIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		ids := w.enroll(2, "rpi4")
		runs := map[string]ota.ReleaseID{}
		w.settle(runs, ids, one)
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%")})
		w.ok(err)
		v = w.run(v.ID, 1, ids, w.installer(runs, func(string, ota.Release) ota.Report { return ota.Report{Status: ota.Succeeded} }))
		if v.State != ota.RolloutCompleted {
			t.Fatal(v.State)
		}
		_, err = w.s.WithdrawRelease(w.ctx, one.ID(), "hangs", "", w.without(one.ID()))
		w.ok(err)
		_, err = w.s.AbortRollout(w.ctx, v.ID, "back", ota.AbortRevert)
		w.ok(err)
		v = w.run(v.ID, 1, nil, nil)
		if v.State != ota.RolloutRolledBack || len(v.Progress.Reverts) != 0 || !strings.Contains(v.Reason, "gw@1.0, which they ran before, is WITHDRAWN") {
			t.Errorf("%s: %s, %v", v.State, v.Reason, v.Progress.Reverts)
		}
	})
}

// TestWithdrawnDesire: what devices desired and is withdrawn is brought to nobody, and
// nobody may desire it.
func TestWithdrawnDesire(t *testing.T) {
	w := newWorld(t)
	w.release("1.0")
	two := w.release("2.0")
	ids := w.enroll(2, "rpi4")
	w.ok(w.desires(ids[0], desired(two)))
	done, err := w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", "", w.without(two.ID()))
	w.ok(err)
	if len(done.Rollouts) != 1 || done.Desiring.Devices != 1 || done.Desiring.Selector != fleet.DesiredSelector(two.ID()) {
		t.Errorf("%+v", done)
	}
	if err := w.desires(ids[1], desired(two)); !errors.Is(err, fleet.ErrUnsigned) || !strings.Contains(err.Error(), "withdrawn: hangs") {
		t.Error(err)
	}
}

// TestRolloutMadeWhileItsReleaseIsWithdrawn: the engine ends what it could not have
// ended before.
func TestRolloutMadeWhileItsReleaseIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		two := w.release("2.0")
		ids := w.enroll(2, "rpi4")
		_, err := w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", "", w.without(two.ID()))
		w.ok(err)
		r := ota.Rollout{ID: "r-late", Release: two.ID(), Stages: w.stages("100%"), State: ota.RolloutScheduled, CreatedAt: time.Now()}
		w.ok(w.store.CreateRollout(w.ctx, r))
		v := w.run(r.ID, 1, ids, succeed)
		if v.State != ota.RolloutAborted || !strings.Contains(v.Reason, "withdrawn: hangs") || v.Progress.Total().Total() != 0 {
			t.Errorf("%s: %s, %+v", v.State, v.Reason, v.Progress.Total())
		}
	})
}
