package fleet_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// opened runs an engine just long enough to open the first stage.
func (w *world) opened(id string) {
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	go func() { done <- w.s.RunEngine(ctx) }()
	synctest.Wait()
	cancel()
	w.ok(<-done)
	v, err := w.s.Rollout(w.ctx, id)
	w.ok(err)
	if v.Progress.Total().Queued == 0 {
		w.t.Fatal("nothing is queued")
	}
}

func TestAbortWithNothingInFlightEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		w.enroll(3, "rpi4")
		plan := ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%")}
		for _, pause := range []bool{false, true} {
			v, err := w.s.CreateRollout(w.ctx, plan)
			w.ok(err)
			w.opened(v.ID)
			if pause {
				_, err = w.s.PauseRollout(w.ctx, v.ID, "lunch", "")
				w.ok(err)
			}
			v, err = w.s.AbortRollout(w.ctx, v.ID, "wrong colour", "") // no engine runs
			w.ok(err)
			if v.State != ota.RolloutAborted || v.EndedAt.IsZero() || v.Reason != "wrong colour" || v.Progress.Total().Finished[ota.ClassNone] != 3 {
				t.Fatalf("%s, ended %s, %q, %+v", v.State, v.EndedAt, v.Reason, v.Progress.Total())
			}
		}
		if faults, err := w.store.Check(w.ctx); err != nil || len(faults) > 0 {
			t.Fatalf("%v, %v", faults, err)
		}
	})
}

// TestResumeTellsWhoAskedInVain: a device that asked while the rollout was
// paused asks again only after minutes by itself.
func TestResumeTellsWhoAskedInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		ids := w.enroll(3, "rpi4")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%")})
		w.ok(err)
		w.opened(v.ID)
		_, err = w.s.PauseRollout(w.ctx, v.ID, "lunch", "")
		w.ok(err)
		defer w.background(w.s.RunNotifier)()
		synctest.Wait()
		clear(w.notes.next)
		_, err = w.s.ResumeRollout(w.ctx, v.ID, "")
		w.ok(err)
		synctest.Wait()
		for _, id := range ids {
			if w.notes.next[id] == nil {
				t.Errorf("%s was not told", id)
			}
		}
	})
}

// TestEmergencyStopHoldsWhoeverIsAtWork: whatever the rollout is in, devices that have
// not installed yet are told to wait, and go on when it is resumed, to where it was
// going.
func TestEmergencyStopHoldsWhoeverIsAtWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.background(w.s.RunEngine, w.s.RunNotifier)()
		none := func(string) (fleet.RolloutView, error) { return fleet.RolloutView{}, nil }
		letFinish := func(id string) (fleet.RolloutView, error) {
			return w.s.PauseRollout(w.ctx, id, "lunch", ota.PauseLetFinish)
		}
		finish := func(id string) (fleet.RolloutView, error) { return w.s.FinishRollout(w.ctx, id, "enough") }
		cases := []struct {
			name    string
			act     func(id string) (fleet.RolloutView, error)
			before  ota.RolloutState
			resumed ota.RolloutState
			reason  string // when it is held
		}{
			{"running", none, ota.RolloutRunning, ota.RolloutRunning, "fire"},
			{"paused", letFinish, ota.RolloutPaused, ota.RolloutRunning, "lunch; held: fire"},
			{"finishing", finish, ota.RolloutFinishing, ota.RolloutFinishing, "fire; resumed, it goes on to finish: enough"},
		}
		ids, devices := make([]string, len(cases)), w.enroll(len(cases)+2, "rpi4")
		roll := func(name, device string) string {
			w.name = name
			v, err := w.s.CreateRollout(w.ctx, ota.Rollout{
				Release: w.release("1.0").ID(), Stages: w.stages("100%"), Selector: `id = "` + device + `"`, Terms: ota.Terms{Continuous: true},
			})
			w.ok(err)
			synctest.Wait()
			return v.ID
		}
		for i, c := range cases {
			ids[i] = roll(c.name, devices[i])
			_, err := w.s.StartNext(w.ctx, devices[i], ota.Starting{})
			w.ok(err)
			_, err = c.act(ids[i])
			w.ok(err)
			synctest.Wait()
			if v := w.view(ids[i]); v.State != c.before || v.Progress.Total().InProgress != 1 {
				t.Fatalf("%s: %s, %+v", c.name, v.State, v.Progress.Total())
			}
		}
		idle := roll("idle", devices[len(cases)]) // nobody is at work in it: it is left as it is
		_, err := letFinish(idle)
		w.ok(err)
		aborting := roll("aborting", devices[len(cases)+1])
		_, err = w.s.Report(w.ctx, ota.Report{RolloutID: aborting, DeviceID: devices[len(cases)+1], Status: ota.InProgress, Details: map[string]string{ota.DetailStep: string(ota.StepTrial)}})
		w.ok(err)
		_, err = w.s.AbortRollout(w.ctx, aborting, "bad", ota.AbortKeep) // it has installed: nothing is left to hold
		w.ok(err)
		synctest.Wait()
		for _, d := range devices {
			w.notes.take(d)
		}

		stopped, err := w.s.StopRollouts(w.ctx, "fire")
		slices.Sort(stopped)
		if want := slices.Sorted(slices.Values(ids)); err != nil || !slices.Equal(stopped, want) {
			t.Fatalf("stopped %v, want %v: %v", stopped, want, err)
		}
		synctest.Wait()
		for i, c := range cases {
			e, err := w.s.NextExecution(w.ctx, devices[i])
			w.ok(err)
			if v := w.view(ids[i]); v.State != ota.RolloutPaused || v.Reason != c.reason || !e.Hold {
				t.Errorf("%s: %s, %q, its device is to hold: %v", c.name, v.State, v.Reason, e.Hold)
			}
			if told := w.notes.take(devices[i]); !strings.Contains(told, "next 1.0") {
				t.Errorf("%s: its device was told %q", c.name, told)
			}
		}
		if again, err := w.s.StopRollouts(w.ctx, "fire"); err != nil || len(again) > 0 {
			t.Errorf("stopped again: %v, %v", again, err)
		}
		<-time.After(time.Hour) // virtual
		for i, c := range cases {
			v, err := w.s.ResumeRollout(w.ctx, ids[i], "")
			synctest.Wait()
			e, err2 := w.s.NextExecution(w.ctx, devices[i])
			if err := errors.Join(err, err2); err != nil || v.State != c.resumed || e.Hold {
				t.Errorf("%s, resumed: %s, its device is to hold: %v, %v", c.name, v.State, e.Hold, err)
			}
			if told := w.notes.take(devices[i]); !strings.Contains(told, "next 1.0") {
				t.Errorf("%s, resumed: its device was told %q", c.name, told)
			}
		}
		_, err = w.s.Report(w.ctx, ota.Report{RolloutID: ids[2], DeviceID: devices[2], Status: ota.Succeeded})
		w.ok(err)
		w.rests()
		if v := w.view(ids[2]); v.State != ota.RolloutCompleted || v.Reason != "enough" {
			t.Errorf("it is %s, %q", v.State, v.Reason)
		}
	})
}

// TestWhoTakesThePlaceOfAHeldRolloutLeavesItHeld: nobody has said that its devices may
// go on.
func TestWhoTakesThePlaceOfAHeldRolloutLeavesItHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := "gw-1"
		w.made(d, "north")
		defer w.background(w.s.RunEngine)()
		older := w.continuous(w.release("1.0"), ota.Terms{}, "100%")
		synctest.Wait()
		_, err := w.s.StartNext(w.ctx, d, ota.Starting{})
		w.ok(err)
		_, err = w.s.StopRollouts(w.ctx, "fire")
		w.ok(err)
		w.rests()
		newer := w.continuous(w.release("2.0"), ota.Terms{}, "100%")
		w.rests()
		e, err := w.s.NextExecution(w.ctx, d)
		w.ok(err)
		if v := w.view(older.ID); v.State != ota.RolloutPaused || !v.Finishes() || !e.Hold || e.RolloutID != older.ID {
			t.Errorf("%s, %q, its device is to hold: %v in %s", v.State, v.Reason, e.Hold, e.RolloutID)
		}
		_, err = w.s.ResumeRollout(w.ctx, older.ID, "")
		w.ok(err)
		_, err = w.s.Report(w.ctx, ota.Report{RolloutID: older.ID, DeviceID: d, Status: ota.Succeeded})
		w.ok(err)
		w.rests()
		if o, n := w.view(older.ID), w.view(newer.ID); o.State != ota.RolloutCompleted || n.Progress.Total().Queued != 1 {
			t.Errorf("%s, %q; the newer has %+v", o.State, o.Reason, n.Progress.Total())
		}
	})
}

// TestApprovingWhatWasLookedAt: an approval by revision is of that plan, and neither of
// what it was edited to nor spoilt by what becomes of the rollout.
func TestApprovingWhatWasLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enroll(4, "rpi4")
		plan := ota.Rollout{Release: w.release("1.0").ID(), Stages: w.stages("1,50%,100%"), Terms: ota.Terms{Approval: true}, State: ota.RolloutDraft}
		plan.Stages[1].Approval, plan.Stages[2].Approval = true, true
		v, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		looked := v.PlanRevision()
		_, err = w.s.SubmitRollout(w.ctx, v.ID)
		w.ok(err)
		_, err = w.s.ApproveRollout(w.ctx, v.ID, 2, looked) // it was submitted, not edited
		w.ok(err)
		plan.Stages = w.stages("1,100%")
		plan.Stages[1].Approval = true
		edited, err := w.s.EditRollout(w.ctx, v.ID, plan)
		w.ok(err)
		if edited.PlanRevision() == looked {
			t.Fatalf("the plan was edited and is at revision %d still", looked)
		}
		for _, stage := range []int{0, 2} {
			for _, revision := range []int64{looked, edited.PlanRevision() + 1, -1} {
				if _, err := w.s.ApproveRollout(w.ctx, v.ID, stage, revision); !errors.Is(err, fleet.ErrStale) {
					t.Errorf("stage %d, revision %d: %v", stage, revision, err)
				}
			}
		}
		if now := w.view(v.ID); now.State != ota.RolloutAwaitingApproval || now.Revision != edited.Revision {
			t.Fatalf("approvals were refused, and it is %s", now.State)
		}
		_, err = w.s.ApproveRollout(w.ctx, v.ID, 0, edited.PlanRevision())
		w.ok(err)
		w.opened(v.ID)
		running := w.view(v.ID)
		if running.State != ota.RolloutRunning || running.Revision <= edited.Revision+1 {
			t.Fatalf("it is %s at revision %d", running.State, running.Revision)
		}
		_, err = w.s.ApproveRollout(w.ctx, v.ID, 2, edited.PlanRevision())
		w.ok(err)
		if s := w.view(v.ID).Stages[1]; s.ApprovedAt.IsZero() {
			t.Error("the stage of a running rollout was not approved")
		}
	})
}

func TestLimitsOfOperators(t *testing.T) {
	w := newWorld(t)
	r := w.release("1.0")
	w.enroll(1, "rpi4")
	plan := ota.Rollout{Release: r.ID(), Stages: w.stages("100%"), Seed: strings.Repeat("s", fleet.MaxSeedBytes)}
	_, err := w.s.PlanRollout(w.ctx, plan)
	w.ok(err)
	plan.Seed += "s"
	if _, err := w.s.PlanRollout(w.ctx, plan); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("long seed: %v", err)
	}
	glob := strings.Repeat("g", fleet.MaxGlobBytes)
	w.token(fleet.EnrollmentToken{DeviceGlob: glob})
	if _, _, err := w.s.CreateEnrollmentToken(w.ctx, fleet.EnrollmentToken{DeviceGlob: glob + "g"}); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("long pattern: %v", err)
	}
}

// TestFailedDevicesByAnotherRollout: devices on which every attempt was used up are tried
// again by another rollout of the release, which reaches nobody else, and changes nothing
// of what was judged.
func TestFailedDevicesByAnotherRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("1.0")
		ids := w.enroll(6, "rpi4")
		broken := map[string]bool{ids[1]: true, ids[4]: true}
		outcome := func(e ota.Execution) ota.Report {
			if broken[e.DeviceID] {
				return ota.Report{Status: ota.Failed}
			}
			w.runs(e.DeviceID, r.ImageDigest)
			return ota.Report{Status: ota.Succeeded}
		}
		plan := ota.Rollout{Release: r.ID(), Stages: w.stages("100%")}
		plan.Stages[0].Gate.Success, plan.Stages[0].Soak = 0.5, 24*time.Hour
		first, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		stop := w.background(w.s.RunEngine, w.s.RunNotifier)
		for _, id := range ids {
			e, err := w.s.StartNext(w.ctx, id, ota.Starting{})
			w.ok(err)
			report := outcome(e)
			report.RolloutID, report.DeviceID = e.RolloutID, id
			_, err = w.s.Report(w.ctx, report)
			w.ok(err)
		}
		w.rests()
		stop()
		if v := w.view(first.ID); v.State != ota.RolloutRunning || v.Progress.Total().Of(ota.ClassFailed) != 2 {
			t.Fatalf("the first is %s, %+v", v.State, v.Progress.Total())
		}

		again := ota.Rollout{Release: r.ID(), Stages: w.stages("1,100%")}
		p, err := w.s.PlanRollout(w.ctx, again)
		w.ok(err)
		if p.Population != 2 || p.Stages[0].Devices+p.Stages[1].Devices != 2 || len(p.Conflicts) != 0 {
			t.Fatalf("it would reach %d: %+v, in conflict with %+v", p.Population, p.Stages, p.Conflicts)
		}
		broken = nil
		second, err := w.s.CreateRollout(w.ctx, again)
		w.ok(err)
		if v := w.run(second.ID, 1, ids, outcome); v.State != ota.RolloutCompleted || v.Progress.Total().Of(ota.ClassSucceeded) != 2 {
			t.Errorf("the second is %s: %s, %+v", v.State, v.Reason, v.Progress.Total())
		}
		if v := w.view(first.ID); v.State != ota.RolloutRunning || v.Progress.Total().Of(ota.ClassFailed) != 2 {
			t.Errorf("the first is %s, %+v", v.State, v.Progress.Total())
		}
		if v := w.run(first.ID, 1, nil, outcome); v.State != ota.RolloutRunning && v.State != ota.RolloutCompleted {
			t.Errorf("the first ended %s: %s", v.State, v.Reason)
		}
		if _, err := w.s.PlanRollout(w.ctx, again); !errors.Is(err, fleet.ErrNoDevices) {
			t.Errorf("nobody is left: %v", err)
		}
	})
}

// TestEditingIsRefusedAsCreating: what create refuses for the devices that a plan means,
// edit refuses as well, and the rollout stays as it was.
func TestEditingIsRefusedAsCreating(t *testing.T) {
	w := newWorld(t)
	release := w.release("1.0").ID()
	w.enroll(3, "rpi4")
	v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: release, Stages: w.stages("100%"), State: ota.RolloutDraft})
	w.ok(err)
	nobody, err := ota.ParseSignal("shadow.reported.cpu.tmp +5")
	w.ok(err)
	canary := w.stages("1,100%")
	canary[0].Size = ota.Size{Selector: `id = "canray"`}
	for what, c := range map[string]struct {
		plan ota.Rollout
		want error
	}{
		"nobody":                     {ota.Rollout{Stages: w.stages("100%"), Selector: `id = "none"`}, fleet.ErrNoDevices},
		"a canary that is nobody":    {ota.Rollout{Stages: canary}, fleet.ErrNoDevices},
		"a stratum that nobody has":  {ota.Rollout{Stages: w.stages("100%"), Terms: ota.Terms{Strata: []string{"nosuch"}}}, fleet.ErrUntagged},
		"a bound that nobody has":    {ota.Rollout{Stages: w.stages("100%"), Terms: ota.Terms{InFlight: ota.InFlight{Per: "nosuch", PerMax: 5}}}, fleet.ErrUntagged},
		"a signal that nobody tells": {ota.Rollout{Stages: w.stages("100%"), Terms: ota.Terms{Health: ota.Health{Signals: []ota.Signal{nobody}}}}, fleet.ErrInvalid},
	} {
		plan := c.plan
		plan.Release = release
		if _, err := w.s.CreateRollout(w.ctx, plan); !errors.Is(err, c.want) {
			t.Errorf("%s, created: %v", what, err)
		}
		if _, err := w.s.EditRollout(w.ctx, v.ID, plan); !errors.Is(err, c.want) {
			t.Errorf("%s, edited: %v", what, err)
		}
	}
	if now := w.view(v.ID); now.Revision != v.Revision {
		t.Errorf("edits were refused, and the rollout is at revision %d, not %d", now.Revision, v.Revision)
	}
	_, err = w.s.EditRollout(w.ctx, v.ID, ota.Rollout{Stages: w.stages("50%,100%")})
	w.ok(err)
}
