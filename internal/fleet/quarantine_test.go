package fleet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// TestLateRollbackIsQuarantined: a device that is heard of again after the server has ended
// its attempt as silent, and went back, is not given the image again. What has ended stays
// as it was counted.
func TestLateRollbackIsQuarantined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(3, "rpi4")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunTimeouts)()
		w.release("1.0")
		plan := ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%")}
		plan.Terms.Timers.Reboot = time.Hour
		v, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		synctest.Wait()
		for _, id := range ids {
			_, err := w.s.StartNext(w.ctx, id, ota.Starting{Details: map[string]string{ota.DetailStep: string(ota.StepRebooting)}})
			w.ok(err)
		}
		<-time.After(time.Hour + time.Second)
		synctest.Wait()
		before, err := w.s.Rollout(w.ctx, v.ID)
		w.ok(err)
		if n := before.Progress.Total().Of(ota.ClassSilent); n != 3 {
			t.Fatalf("%d are silent: %+v", n, before.Progress.Total())
		}
		for device, class := range map[string]ota.Class{ids[0]: ota.ClassRolledBack, ids[1]: ota.ClassFailed} {
			_, err := w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: device, Attempt: 1, Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(class)}})
			if !errors.Is(err, ota.ErrTerminal) {
				t.Errorf("%s: %v", device, err)
			}
		}
		after, err := w.s.Rollout(w.ctx, v.ID)
		w.ok(err)
		if diff := cmp.Diff(before.Progress, after.Progress); diff != "" || after.Revision != before.Revision {
			t.Errorf("counted anew: %s", diff)
		}
		p, err := w.s.PlanRollout(w.ctx, plan)
		w.ok(err)
		if p.Population != 2 || len(p.Excluded) != 1 || p.Excluded[0].Reason != fleet.ExcludedQuarantined || p.Excluded[0].Sample[0] != ids[0] {
			t.Errorf("%d devices, excluded %+v", p.Population, p.Excluded)
		}
		_, err = w.s.AbortRollout(w.ctx, v.ID, "enough", "")
		w.ok(err)
		synctest.Wait()
		for i, want := range []fleet.Cause{fleet.CauseRolledBack, fleet.CauseFailed} {
			if b := w.says(ids[i], v.ID, want, "ended silent", ""); (i == 0) != strings.Contains(b.Why, "that it had gone back") {
				t.Errorf("%s: %s", ids[i], b.Why)
			}
		}
	})
}

// TestQuarantine: a device that went back from an image is not given it again,
// under whatever release, unless the plan says so.
func TestQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(2, "rpi4")
		r := w.release("1.0")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Stages: w.stages("100%")})
		w.ok(err)
		for device, class := range map[string]ota.Class{ids[0]: ota.ClassRolledBack, ids[1]: ota.ClassFailed} {
			_, err := w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: device, Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(class)}})
			w.ok(err)
		}
		w.name = "renamed" // the same image
		draft, index, err := w.draft("9.9", []byte("firmware 1.0"))
		w.ok(err)
		_, _, err = w.s.PublishTargets(w.ctx, w.sign(draft, index))
		w.ok(err)
		if draft.ImageDigest != r.ImageDigest {
			t.Fatal("another image")
		}
		plan := ota.Rollout{Release: draft.ID(), Stages: w.stages("100%")}
		p, err := w.s.PlanRollout(w.ctx, plan)
		w.ok(err)
		if p.Population != 1 || len(p.Excluded) != 1 || p.Excluded[0].Reason != fleet.ExcludedQuarantined || p.Excluded[0].Sample[0] != ids[0] {
			t.Errorf("%d devices, excluded %+v", p.Population, p.Excluded)
		}
		plan.Terms.Quarantined = true
		p, err = w.s.PlanRollout(w.ctx, plan)
		w.ok(err)
		if p.Population != 2 {
			t.Errorf("%d devices, excluded %+v", p.Population, p.Excluded)
		}
	})
}
