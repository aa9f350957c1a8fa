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
)

// needing signs a release of the world's firmware that needs a version of it, or
// other firmware; need is "", a version, or NAME@VERSION.
func (w *world) needing(version, need string) ota.Release {
	w.t.Helper()
	w.need = need
	defer func() { w.need = "" }()
	r, index, err := w.draft(version, []byte("firmware "+w.name+version))
	w.ok(err)
	_, _, err = w.s.PublishTargets(w.ctx, w.sign(r, index))
	w.ok(err)
	return r
}

// installer plays devices that run what they install, and refuse what they may not.
// It tells of each install, one at a time.
func (w *world) installer(runs map[string]ota.ReleaseID, told func(device string, r ota.Release) ota.Report) func(ota.Execution) ota.Report {
	return func(e ota.Execution) ota.Report {
		w.install.Lock()
		defer w.install.Unlock()
		r, err := w.store.Release(w.ctx, e.Release)
		w.ok(err)
		if err := r.Admits(runs[e.DeviceID]); err != nil && runs[e.DeviceID] != r.ID() {
			return ota.Report{Status: ota.Rejected, Details: map[string]string{ota.DetailReason: err.Error()}}
		}
		report := told(e.DeviceID, r)
		if report.Status == ota.Succeeded {
			runs[e.DeviceID] = r.ID()
			w.runs(e.DeviceID, r.ImageDigest)
		}
		if report.Details == nil {
			report.Details = map[string]string{}
		}
		now, err := w.store.Release(w.ctx, runs[e.DeviceID])
		w.ok(err)
		report.Details[ota.DetailDigest] = now.ImageDigest
		return report
	}
}

// settle has devices run releases.
func (w *world) settle(runs map[string]ota.ReleaseID, devices []string, releases ...ota.Release) {
	w.t.Helper()
	for i, id := range devices {
		r := releases[i%len(releases)]
		runs[id] = r.ID()
		w.runs(id, r.ImageDigest)
	}
}

// TestRolloutPassesThrough: devices install what they need first, one after the other,
// in their own turn, and count once.
func TestRolloutPassesThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two, three := w.needing("1.0", ""), w.needing("2.0", ""), w.needing("3.0", "2.0")
		four := w.needing("4.0", "3.0")
		ids := w.enroll(12, "rpi4")
		runs := map[string]ota.ReleaseID{}
		w.settle(runs, ids, one, two, three)
		plan := ota.Rollout{Release: four.ID(), Stages: w.stages("25%,100%"), Seed: "s", Terms: ota.Terms{Rate: ota.Rate{PerMinute: 60}}}
		p, err := w.s.PlanRollout(w.ctx, plan)
		w.ok(err)
		devices := map[string]int{}
		for _, path := range p.Paths {
			devices[fmt.Sprint(path.Via)] = path.Devices
		}
		if len(devices) != 3 || devices["[gw@2.0 gw@3.0]"] != 4 || devices["[gw@3.0]"] != 4 || devices["[]"] != 4 {
			t.Errorf("paths %v", devices)
		}
		size := func(r ota.Release) int64 { return r.ObjectSize + r.IndexSize }
		if want := 12*size(four) + 8*size(three) + 4*size(two); p.Bytes != want {
			t.Errorf("%d bytes, want %d", p.Bytes, want)
		}
		if p.Duration < plan.Terms.Rate.Least(24) { // and the soaks
			t.Errorf("takes %s", p.Duration)
		}
		v, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		installed := map[string][]string{}
		v = w.run(v.ID, 2, ids, w.installer(runs, func(device string, r ota.Release) ota.Report {
			installed[device] = append(installed[device], r.Version)
			return ota.Report{Status: ota.Succeeded}
		}))
		if total := v.Progress.Total(); v.State != ota.RolloutCompleted || total.Of(ota.ClassSucceeded) != 12 || total.Total() != 12 {
			t.Fatalf("%s: %+v", v.State, v.Progress.Total())
		}
		for i, id := range ids {
			if want := [][]string{{"2.0", "3.0", "4.0"}, {"3.0", "4.0"}, {"4.0"}}[i%3]; !slices.Equal(installed[id], want) || runs[id] != four.ID() {
				t.Errorf("%s installed %v", id, installed[id])
			}
		}
	})
}

// TestPlanSaysWhoNeedsAVersion: who can not come there is left out, with what is
// missing.
func TestPlanSaysWhoNeedsAVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two, four := w.needing("1.0", ""), w.needing("3.0", "2.0"), w.needing("4.0", "3.0")
		ids := w.enroll(4, "rpi4")
		w.settle(map[string]ota.ReleaseID{}, ids[:3], one, two, one)
		plan := ota.Rollout{Release: four.ID(), Stages: w.stages("100%")}
		p, err := w.s.PlanRollout(w.ctx, plan)
		w.ok(err)
		var words []string
		for _, e := range p.Excluded {
			words = append(words, fmt.Sprint(e.Reason, " ", e.Devices, ": ", e.Detail))
		}
		want := []string{
			"needs-version 1: gw@4.0 needs gw 3.0 or newer, and no release has the image that they say they run: upload it as one",
			"needs-version 2: gw@4.0 needs gw 3.0 or newer, and no signed release leads there from gw@1.0: sign one that gw@1.0 can take",
		}
		if slices.Sort(words); p.Population != 1 || !slices.Equal(words, want) {
			t.Errorf("%d devices, excluded %q", p.Population, words)
		}
		plan.Selector = fmt.Sprintf("id = %q", ids[0])
		_, err = w.s.CreateRollout(w.ctx, plan)
		if !errors.Is(err, fleet.ErrNoDevices) || !strings.Contains(err.Error(), "1 do not run what it needs: gw@4.0 needs gw 3.0 or newer") {
			t.Error(err)
		}
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: four.ID(), Stages: w.stages("100%")})
		w.ok(err)
		list, err := w.s.Why(w.ctx, ids[0])
		w.ok(err)
		if len(list) != 1 || list[0].Rollout.ID != v.ID || !strings.Contains(list[0].Why, "no signed release leads there from gw@1.0") {
			t.Errorf("why: %+v", list)
		}
	})
}

// TestPlanRefusesACircle: releases that need each other are refused by name.
func TestPlanRefusesACircle(t *testing.T) {
	w := newWorld(t)
	w.needing("1.0", "")
	w.enroll(1, "rpi4")
	w.name = "ng"
	w.needing("1.0", "gw@2.0")
	w.name = "gw"
	two := w.needing("2.0", "ng@1.0")
	plan := ota.Rollout{Release: two.ID(), Stages: w.stages("100%")}
	_, err := w.s.PlanRollout(w.ctx, plan)
	_, created := w.s.CreateRollout(w.ctx, plan)
	for _, err := range []error{err, created} {
		if !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "in a circle: gw@2.0 needs ng@1.0, which needs gw@2.0; upload") {
			t.Error(err)
		}
	}
}

// TestPathEndsWhereALegFails: a leg that fails is the device's failure, and is tried
// again like any other.
func TestPathEndsWhereALegFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.needing("1.0", ""), w.needing("2.0", "")
		three := w.needing("3.0", "2.0")
		ids := w.enroll(3, "rpi4")
		runs := map[string]ota.ReleaseID{}
		w.settle(runs, ids, one)
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: three.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Retry: ota.Retry{Attempts: 2}}})
		w.ok(err)
		failed := map[string]int{}
		rolledBack := ota.Report{Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(ota.ClassRolledBack)}}
		v = w.run(v.ID, 1, ids, w.installer(runs, func(device string, r ota.Release) ota.Report {
			switch failed[device]++; {
			case device == ids[0] && r.ID() == two.ID():
				return rolledBack
			case device == ids[1] && (failed[device] == 1 || failed[device] == 3):
				return ota.Report{Status: ota.Failed} // each leg once: one time too often
			case device == ids[2] && failed[device] == 2:
				return ota.Report{Status: ota.Failed}
			}
			return ota.Report{Status: ota.Succeeded}
		}))
		total := v.Progress.Total()
		if v.State != ota.RolloutPaused || total.Of(ota.ClassRolledBack) != 1 || total.Of(ota.ClassFailed) != 1 || total.Of(ota.ClassSucceeded) != 1 {
			t.Errorf("%s (%s): %+v", v.State, v.Reason, total)
		}
		e, err := w.s.Execution(w.ctx, v.ID, ids[1])
		w.ok(err)
		if e.Leg != 2 || e.Attempt != 3 || e.Release != three.ID() {
			t.Errorf("%+v", e)
		}
		_, err = w.s.AbortRollout(w.ctx, v.ID, "", ota.AbortKeep)
		w.ok(err)

		// The image of the leg is quarantined on the device, and no way leads over it.
		p, err := w.s.PlanRollout(w.ctx, ota.Rollout{Release: three.ID(), Stages: w.stages("100%")})
		w.ok(err)
		if i := slices.IndexFunc(p.Excluded, func(e fleet.Exclusion) bool { return e.Reason == fleet.ExcludedQuarantined }); i < 0 || p.Excluded[i].Sample[0] != ids[0] || p.Population != 1 {
			t.Errorf("%d devices, excluded %+v", p.Population, p.Excluded)
		}
		p, err = w.s.PlanRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%")})
		w.ok(err)
		if i := slices.IndexFunc(p.Excluded, func(e fleet.Exclusion) bool { return e.Reason == fleet.ExcludedQuarantined }); i < 0 || p.Excluded[i].Devices != 1 {
			t.Errorf("excluded %+v", p.Excluded)
		}
	})
}

// TestRevertOverSeveralLegs: devices go back to what they ran before the first leg,
// wherever they stand; a device that was not moved stays.
func TestRevertOverSeveralLegs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.needing("1.0", ""), w.needing("2.0", "")
		three := w.needing("3.0", "2.0")
		ids := w.enroll(4, "rpi4")
		runs := map[string]ota.ReleaseID{}
		w.settle(runs, ids, one)
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: three.ID(), Stages: w.stages("100%"), Terms: ota.Terms{OnAbort: ota.AbortRevert}})
		w.ok(err)
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		outcome := w.installer(runs, func(device string, r ota.Release) ota.Report {
			rolledBack := ota.Report{Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(ota.ClassRolledBack)}}
			if device == ids[0] && r.ID() == two.ID() || device == ids[1] && r.ID() == three.ID() {
				return rolledBack
			}
			return ota.Report{Status: ota.Succeeded}
		})
		for _, id := range ids {
			go w.device(ctx, id, outcome)
		}
		defer w.background(w.s.RunEngine, w.s.RunEngine)()
		w.settled(v.ID, ota.RolloutPaused)
		want := map[string]ota.ReleaseID{ids[0]: one.ID(), ids[1]: two.ID(), ids[2]: three.ID(), ids[3]: three.ID()}
		w.install.Lock()
		for id, r := range want {
			if runs[id] != r {
				t.Errorf("%s runs %s before it is aborted, want %s", id, runs[id], r)
			}
		}
		w.install.Unlock()
		_, err = w.s.AbortRollout(w.ctx, v.ID, "smells", "")
		w.ok(err)
		v = w.settled(v.ID, ota.RolloutRolledBack)
		if !strings.Contains(v.Reason, "3 devices go back to gw@1.0") {
			t.Error(v.Reason)
		}
		for _, id := range ids {
			if runs[id] != one.ID() {
				t.Errorf("%s runs %s", id, runs[id])
			}
		}
	})
}

// TestDriftOnThePath: a device that falls back is brought the whole way again.
func TestDriftOnThePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, _ := w.needing("1.0", ""), w.needing("2.0", "")
		three := w.needing("3.0", "2.0")
		ids := w.enroll(2, "rpi4")
		runs := map[string]ota.ReleaseID{}
		w.settle(runs, ids, one)
		stages := w.stages("50%,100%")
		stages[1].Approval = true // so that it runs on
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: three.ID(), Stages: stages, Seed: "s", Terms: ota.Terms{Retry: ota.Retry{Attempts: 2}}})
		w.ok(err)
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		var installed []string
		outcome := w.installer(runs, func(device string, r ota.Release) ota.Report {
			installed = append(installed, r.Version)
			return ota.Report{Status: ota.Succeeded}
		})
		for _, id := range ids {
			go w.device(ctx, id, outcome)
		}
		defer w.background(w.s.RunEngine, w.s.RunLooks)()
		succeeded := func(n int) {
			for range 1000 {
				v, err = w.s.Rollout(w.ctx, v.ID)
				w.ok(err)
				w.install.Lock()
				came := len(installed)
				w.install.Unlock()
				if came == n && v.Progress.Total().Of(ota.ClassSucceeded) == 1 && v.Progress.Total().Settled() {
					return
				}
				<-time.After(time.Second) // virtual
			}
			t.Fatalf("installed %v: %+v", installed, v.Progress.Total())
		}
		succeeded(2)
		var device string
		for id, r := range runs {
			if r == three.ID() {
				device = id
			}
		}
		<-time.After(time.Minute) // virtual
		w.install.Lock()
		runs[device] = one.ID() // flashed
		w.install.Unlock()
		w.runs(device, one.ImageDigest)
		succeeded(4)
		if !slices.Equal(installed, []string{"2.0", "3.0", "2.0", "3.0"}) {
			t.Errorf("installed %v", installed)
		}
		e, err := w.s.Execution(w.ctx, v.ID, device)
		w.ok(err)
		if e.Attempt != 4 || e.Leg != 3 {
			t.Errorf("%+v", e)
		}
	})
}
