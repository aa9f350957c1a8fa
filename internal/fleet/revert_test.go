package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// runs says what a device reports to run.
func (w *world) runs(id, digest string) {
	w.t.Helper()
	u := shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"digest": digest}})
	_, err := w.s.UpdateShadow(w.ctx, id, "", u)
	w.ok(err)
}

// secured is release with a security version.
func (w *world) secured(version string, security int64) ota.Release {
	w.t.Helper()
	r, index, err := w.drafted(version, []byte("firmware "+version), security)
	w.ok(err)
	_, _, err = w.s.PublishTargets(w.ctx, w.sign(r, index))
	w.ok(err)
	return r
}

// settled waits, in virtual time, until a rollout is in the state.
func (w *world) settled(id string, state ota.RolloutState) fleet.RolloutView {
	w.t.Helper()
	for range 1000 {
		v, err := w.s.Rollout(w.ctx, id)
		w.ok(err)
		if v.State == state {
			return v
		}
		<-time.After(time.Second)
	}
	v, err := w.s.Rollout(w.ctx, id)
	w.ok(err)
	w.t.Fatalf("rollout %s is %s (%s), not %s", id, v.State, v.Reason, state)
	return v
}

// TestAbortRevertsWhatChanged: devices go back to what each ran before, in
// reverse order, and those that can not are named.
func TestAbortRevertsWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		low, one, two := w.secured("0.5", 0), w.secured("1.0", 1), w.secured("1.1", 1)
		draft, _, err := w.draft("0.8", []byte("never signed"))
		w.ok(err)
		bad := w.secured("2.0", 1)
		ids := w.enroll(12, "rpi4")
		before := map[string]string{}
		for i, id := range ids {
			before[id] = []string{one.ImageDigest, two.ImageDigest, low.ImageDigest, draft.ImageDigest, strings.Repeat("e", 64), ""}[i%6]
			w.runs(id, before[id])
		}
		moved := ids[1] // brought on by somebody else before its turn to go back
		var order []string
		outcome := func(e ota.Execution) ota.Report {
			if e.DeviceID == ids[6] && e.Release == bad.ID() {
				return ota.Report{Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(ota.ClassRolledBack)}}
			}
			release, err := w.s.Store.Release(w.ctx, e.Release)
			w.ok(err)
			w.runs(e.DeviceID, release.ImageDigest)
			w.install.Lock()
			defer w.install.Unlock()
			order = append(order, e.DeviceID)
			return ota.Report{Status: ota.Succeeded, Details: map[string]string{ota.DetailDigest: release.ImageDigest}}
		}
		stages := w.stages("75%,100%")
		stages[0].Gate.Success, stages[1].Approval = 0.5, true
		plan := ota.Rollout{Release: bad.ID(), Stages: stages, Seed: "s", Terms: ota.Terms{Rate: ota.Rate{PerMinute: 2}, OnAbort: ota.AbortRevert}}
		v, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		for _, id := range ids {
			go w.device(ctx, id, outcome)
		}
		defer w.background(w.s.RunEngine, w.s.RunEngine)()
		for v.Stages[0].State != ota.StagePassed {
			<-time.After(time.Second)
			v, err = w.s.Rollout(w.ctx, v.ID)
			w.ok(err)
		}
		w.install.Lock()
		first := slices.Clone(order)
		order = nil
		w.install.Unlock()
		w.runs(moved, strings.Repeat("9", 64))
		_, err = w.s.AbortRollout(w.ctx, v.ID, "smells", "")
		w.ok(err)
		v = w.settled(v.ID, ota.RolloutRolledBack)

		gone := map[string][]string{} // by what they ran before
		for _, id := range first {
			gone[before[id]] = append(gone[before[id]], id)
		}
		if len(first) != 8 || len(v.Progress.Reverts) != 2 {
			t.Fatalf("%d changed, reverts %+v: %s", len(first), v.Progress.Reverts, v.Reason)
		}
		for _, words := range []string{
			"smells; ", "goes back to gw@1.0", "to gw@1.1", "security version 0, below 1", "gw@0.8, which they ran before, is DRAFT",
			"no release has the image", "had not said what they ran before",
		} {
			if !strings.Contains(v.Reason, words) {
				t.Errorf("the reason does not say %q: %s", words, v.Reason)
			}
		}
		back := map[string][]string{}
		for _, id := range order {
			back[before[id]] = append(back[before[id]], id)
		}
		for digest, list := range gone {
			slices.Reverse(list)
			list = slices.DeleteFunc(list, func(id string) bool { return id == moved })
			if digest != one.ImageDigest && digest != two.ImageDigest {
				list = nil
			}
			if !slices.Equal(list, back[digest]) {
				t.Errorf("%q changed in the order %v, and went back as %v", digest, gone[digest], back[digest])
			}
		}
		child, err := w.s.Rollout(w.ctx, v.Progress.Reverts[0].ID)
		w.ok(err)
		if child.RevertOf != v.ID || child.Terms.Rate.PerMinute != 2 || child.State != ota.RolloutCompleted {
			t.Errorf("%+v", child.Rollout)
		}
		cancel()
		if faults, err := w.store.Check(w.ctx); err != nil || len(faults) > 0 {
			t.Errorf("%v, %v", faults, err)
		}
	})
}

// TestStopAllCallsAReturnOff: an emergency stop holds what has not gone back,
// whether the reverts are made or not.
func TestStopAllCallsAReturnOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old, bad := w.release("1.0"), w.release("2.0")
		ids := w.enroll(2, "rpi4")
		for _, id := range ids {
			w.runs(id, old.ImageDigest)
		}
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: bad.ID(), Stages: w.stages("100%")})
		w.ok(err)
		w.opened(v.ID)
		report := func(id, rollout string, r ota.Report) {
			t.Helper()
			r.RolloutID, r.DeviceID = rollout, id
			_, err := w.s.Report(w.ctx, r)
			w.ok(err)
		}
		report(ids[0], v.ID, ota.Report{Status: ota.Succeeded})
		report(ids[1], v.ID, ota.Report{Status: ota.InProgress, Details: map[string]string{ota.DetailStep: string(ota.StepTrial)}})
		_, err = w.s.AbortRollout(w.ctx, v.ID, "why", ota.AbortRevert)
		w.ok(err)
		stopped, err := w.s.StopRollouts(w.ctx, "fire")
		if w.ok(err); !slices.Equal(stopped, []string{v.ID}) {
			t.Fatalf("stopped %v", stopped)
		}
		report(ids[1], v.ID, ota.Report{Status: ota.Succeeded})
		stop := w.background(w.s.RunEngine)
		<-time.After(time.Hour)
		all, err := w.s.Rollouts(w.ctx, "")
		if w.ok(err); len(all) != 1 || all[0].State != ota.RolloutPaused {
			t.Fatalf("%d rollouts, the first is %s", len(all), all[0].State)
		}
		if _, err := w.s.AbortRollout(w.ctx, v.ID+"-none", "", ota.AbortRevert); !errors.Is(err, fleet.ErrNotFound) {
			t.Error(err)
		}
		_, err = w.s.ResumeRollout(w.ctx, v.ID, "")
		w.ok(err)
		w.rests()
		why, err := w.s.Why(w.ctx, ids[0])
		if w.ok(err); len(why) != 2 || why[1].Rollout.RevertOf != v.ID || why[1].Execution == nil {
			t.Errorf("%+v", why)
		}
		stopped, err = w.s.StopRollouts(w.ctx, "fire")
		if w.ok(err); len(stopped) != 2 {
			t.Errorf("stopped %v", stopped)
		}
		stop()
	})
}

// TestRevertOfACompletedRollout: its devices go back, but those that a newer rollout
// has been given stay.
func TestRevertOfACompletedRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two, three := w.needing("1.0", ""), w.needing("2.0", ""), w.needing("3.0", "")
		ids := w.enroll(3, "rpi4")
		runs := map[string]ota.ReleaseID{}
		w.settle(runs, ids, one)
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		outcome := w.installer(runs, func(string, ota.Release) ota.Report { return ota.Report{Status: ota.Succeeded} })
		for _, id := range ids {
			go w.device(ctx, id, outcome)
		}
		defer w.background(w.s.RunEngine, w.s.RunEngine)()
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%")})
		w.ok(err)
		v = w.settled(v.ID, ota.RolloutCompleted)
		newer, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: three.ID(), Stages: w.stages("100%"), Selector: "id = \"" + ids[0] + "\""})
		w.ok(err)
		w.settled(newer.ID, ota.RolloutCompleted)

		if _, err := w.s.AbortRollout(w.ctx, v.ID, "late", ota.AbortKeep); !errors.Is(err, ota.ErrState) || !strings.Contains(err.Error(), "otactl rollout revert") {
			t.Error(err)
		}
		_, err = w.s.AbortRollout(w.ctx, v.ID, "late", ota.AbortRevert)
		w.ok(err)
		v = w.settled(v.ID, ota.RolloutRolledBack)
		if v.Stages[0].State != ota.StagePassed || !strings.HasPrefix(v.Reason, "late; 3 devices go back to gw@1.0") {
			t.Errorf("%s: %s", v.Stages[0].State, v.Reason)
		}
		if runs[ids[0]] != three.ID() || runs[ids[1]] != one.ID() || runs[ids[2]] != one.ID() {
			t.Errorf("they run %v", runs)
		}
		if _, err := w.s.AbortRollout(w.ctx, v.ID, "again", ota.AbortRevert); !errors.Is(err, ota.ErrState) {
			t.Error(err)
		}
		faults, err := w.store.Check(w.ctx)
		w.ok(err)
		for _, f := range faults {
			t.Error(f)
		}
	})
}

// TestRevertOfAnAbortedRollout: devices that kept what an aborted rollout brought go
// back when somebody says so later, be it aborted by hand or by withdrawing its release.
func TestRevertOfAnAbortedRollout(t *testing.T) {
	for name, abort := range map[string]func(w *world, v fleet.RolloutView) error{
		"by hand": func(w *world, v fleet.RolloutView) error {
			_, err := w.s.AbortRollout(w.ctx, v.ID, "smells", ota.AbortKeep)
			return err
		},
		"by withdrawing": func(w *world, v fleet.RolloutView) error {
			_, err := w.s.WithdrawRelease(w.ctx, v.Release, "smells", "", nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.needing("1.0", ""), w.needing("2.0", "")
				ids := w.enroll(3, "rpi4")
				runs := map[string]ota.ReleaseID{}
				w.settle(runs, ids, one)
				ctx, cancel := context.WithCancel(w.ctx)
				defer cancel()
				outcome := w.installer(runs, func(string, ota.Release) ota.Report { return ota.Report{Status: ota.Succeeded} })
				for _, id := range ids {
					go w.device(ctx, id, outcome)
				}
				defer w.background(w.s.RunEngine, w.s.RunEngine)()
				stages := w.stages("2,100%")
				stages[1].Approval = true
				v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: stages})
				w.ok(err)
				for v.Stages[0].State != ota.StagePassed {
					<-time.After(time.Second)
					v = w.view(v.ID)
				}
				w.ok(abort(w, v))
				w.settled(v.ID, ota.RolloutAborted)
				updated := 0
				for _, id := range ids {
					if runs[id] == two.ID() {
						updated++
					}
				}
				if updated != 2 {
					t.Fatalf("they run %v", runs)
				}

				if _, err := w.s.AbortRollout(w.ctx, v.ID, "again", ""); !errors.Is(err, ota.ErrState) || !strings.Contains(err.Error(), "otactl rollout revert") {
					t.Error(err)
				}
				_, err = w.s.AbortRollout(w.ctx, v.ID, "late", ota.AbortRevert)
				w.ok(err)
				v = w.settled(v.ID, ota.RolloutRolledBack)
				if !strings.HasPrefix(v.Reason, "late; it was aborted: ") || !strings.Contains(v.Reason, "smells") || !strings.HasSuffix(v.Reason, "; 2 devices go back to gw@1.0") {
					t.Errorf("the reason: %s", v.Reason)
				}
				for _, id := range ids {
					if runs[id] != one.ID() {
						t.Errorf("%s runs %s", id, runs[id])
					}
				}
				if _, err := w.s.AbortRollout(w.ctx, v.ID, "again", ota.AbortRevert); !errors.Is(err, ota.ErrState) || !strings.Contains(err.Error(), "sent back already") {
					t.Error(err)
				}
				faults, err := w.store.Check(w.ctx)
				w.ok(err)
				for _, f := range faults {
					t.Error(f)
				}
			})
		})
	}
}

// TestARevertIsCalledOffBeforeItIsMade: a rollout that is paused on its way back keeps its
// devices as they are while nothing brings them back yet, and a later revert finds them.
// Once they go back, the rollouts that bring them are what is to be ended: else a later
// revert would find these made, and bring nobody back whom they had left.
func TestARevertIsCalledOffBeforeItIsMade(t *testing.T) {
	for _, made := range []bool{false, true} {
		t.Run(fmt.Sprintf("made=%v", made), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.needing("1.0", ""), w.needing("2.0", "")
				ids := w.enroll(3, "rpi4")
				for _, id := range ids {
					w.runs(id, one.ImageDigest)
				}
				defer w.background(w.s.RunEngine)()
				v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%")})
				w.ok(err)
				synctest.Wait()
				says := func(id string, status ota.Status, details map[string]string) {
					t.Helper()
					_, err := w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: id, Status: status, Details: details})
					w.ok(err)
					synctest.Wait()
				}
				says(ids[2], ota.InProgress, map[string]string{ota.DetailStep: string(ota.StepTrial)})
				for _, id := range ids[:2] {
					w.runs(id, two.ImageDigest)
					says(id, ota.Succeeded, map[string]string{ota.DetailDigest: two.ImageDigest})
				}
				abort := func(id string, policy ota.AbortPolicy) error {
					_, err := w.s.AbortRollout(w.ctx, id, "smells", policy)
					synctest.Wait()
					return err
				}
				w.ok(abort(v.ID, ota.AbortRevert))
				if made { // when nobody is at work any more
					w.runs(ids[2], two.ImageDigest)
					says(ids[2], ota.Succeeded, map[string]string{ota.DetailDigest: two.ImageDigest})
					<-time.After(time.Minute)
				}
				_, err = w.s.PauseRollout(w.ctx, v.ID, "wait", "")
				w.ok(err)
				v = w.view(v.ID)
				if (len(v.Progress.Reverts) == 1) != made || v.State != ota.RolloutPaused {
					t.Fatalf("%s, reverts %+v", v.State, v.Progress.Reverts)
				}
				err = abort(v.ID, ota.AbortKeep)
				if made {
					back := v.Progress.Reverts[0].ID
					if !errors.Is(err, ota.ErrState) || !strings.Contains(err.Error(), "by "+back+", RUNNING: to have devices stay, abort") {
						t.Fatalf("called off: %v", err)
					}
					w.ok(abort(back, ota.AbortKeep))
					_, err = w.s.ResumeRollout(w.ctx, v.ID, "")
					w.ok(err)
					w.settled(v.ID, ota.RolloutRolledBack)
					return
				}
				w.ok(err)
				says(ids[2], ota.Failed, nil)
				w.settled(v.ID, ota.RolloutAborted)
				w.ok(abort(v.ID, ota.AbortRevert))
				v = w.view(v.ID)
				if len(v.Progress.Reverts) != 1 || v.Progress.Reverts[0].State.Terminal() || !strings.Contains(v.Reason, "2 devices go back to gw@1.0") {
					t.Errorf("%s: %s, %+v", v.State, v.Reason, v.Progress.Reverts)
				}
			})
		})
	}
}
