package fleet_test

import (
	"testing"
	"testing/synctest"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

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
