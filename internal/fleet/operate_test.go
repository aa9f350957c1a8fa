package fleet_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

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
