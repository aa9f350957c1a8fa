package fleet_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// TestWhatANewerRolloutLetsGoIsMadeAgain: what made way for a newer rollout that ends
// before it has begun on the device is the older one's again, at its rate.
func TestWhatANewerRolloutLetsGoIsMadeAgain(t *testing.T) {
	for name, c := range map[string]struct {
		terms ota.Terms
		end   func(w *world, newer, older string) error
		again bool
	}{
		"aborted": {ota.Terms{}, func(w *world, newer, _ string) error {
			_, err := w.s.AbortRollout(w.ctx, newer, "bad", ota.AbortKeep)
			return err
		}, true},
		"finished": {ota.Terms{Continuous: true}, func(w *world, newer, _ string) error {
			_, err := w.s.FinishRollout(w.ctx, newer, "enough")
			return err
		}, true},
		"withdrawn": {ota.Terms{}, func(w *world, _, _ string) error {
			_, err := w.s.WithdrawRelease(w.ctx, ota.ReleaseID{Name: "gw", Version: "2.0"}, "bad", ota.AbortKeep, nil)
			return err
		}, true},
		"the devices left it": {ota.Terms{Continuous: true}, func(w *world, _, _ string) error {
			w.moved("a", "south")
			w.moved("b", "south")
			return nil
		}, true},
		"paused": {ota.Terms{}, func(w *world, newer, _ string) error {
			_, err := w.s.PauseRollout(w.ctx, newer, "lunch", "")
			return err
		}, false},
		"aborted after the older": {ota.Terms{}, func(w *world, newer, older string) error {
			if _, err := w.s.AbortRollout(w.ctx, older, "both", ota.AbortKeep); err != nil {
				return err
			}
			_, err := w.s.AbortRollout(w.ctx, newer, "both", ota.AbortKeep)
			return err
		}, false},
		"failed there": {ota.Terms{}, func(w *world, newer, _ string) error {
			for _, id := range []string{"a", "b"} {
				if _, err := w.s.Report(w.ctx, ota.Report{RolloutID: newer, DeviceID: id, Status: ota.Failed}); err != nil {
					return err
				}
			}
			_, err := w.s.AbortRollout(w.ctx, newer, "bad", ota.AbortKeep)
			return err
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.release("1.0"), w.release("2.0")
				w.made("a", "north")
				w.made("b", "north")
				w.made("c", "south") // it keeps the stage open
				defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
				older, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: one.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Rate: ota.Rate{PerMinute: 1}}})
				w.ok(err)
				<-time.After(4 * time.Minute)
				newer, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Selector: `tags.site = "north"`, Stages: w.stages("100%"), Terms: c.terms})
				w.ok(err)
				w.rests()
				for _, id := range []string{"a", "b"} {
					w.says(id, older.ID, fleet.CauseSuperseded, "superseded by rollout "+newer.ID, "nothing to do")
				}
				w.ok(c.end(w, newer.ID, older.ID))
				w.rests()
				count := func() (made int) {
					for _, id := range []string{"a", "b"} {
						if e := w.attempt(older.ID, id); e.Attempt == 2 && e.Status == ota.Queued && w.attempt(older.ID, id).Stage == 0 {
							made++
						}
					}
					return made
				}
				if !c.again {
					<-time.After(time.Hour)
					w.rests()
					if n := count(); n != 0 {
						t.Errorf("%d attempts are made again", n)
					}
					return
				}
				<-time.After(10 * time.Second)
				w.rests()
				if n := count(); n != 1 {
					t.Errorf("%d attempts within seconds, at 1 a minute", n)
				}
				<-time.After(2 * time.Minute)
				w.rests()
				if n := count(); n != 2 {
					t.Errorf("%d attempts are made again", n)
				}
				for _, id := range []string{"a", "b", "c"} {
					w.installs(id, one)
				}
				w.settled(older.ID, ota.RolloutCompleted)
			})
		})
	}
}

// TestEverythingMadeWay: an older rollout of which nothing was left waits for its
// operator, and does what device why says then.
func TestEverythingMadeWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		w.made("a", "north")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		older, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: one.ID(), Stages: w.stages("100%")})
		w.ok(err)
		w.rests()
		newer, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%")})
		w.ok(err)
		w.settled(older.ID, ota.RolloutPaused)
		_, err = w.s.AbortRollout(w.ctx, newer.ID, "bad", ota.AbortKeep)
		w.ok(err)
		w.rests()
		w.says("a", older.ID, fleet.CauseStageFailed, "it is tried again when it runs; the rollout is PAUSED", "otactl rollout resume "+older.ID+" --failed-stage repeat")
		if e := w.attempt(older.ID, "a"); e.Attempt != 1 {
			t.Errorf("made while it is paused: %+v", e)
		}
		_, err = w.s.ResumeRollout(w.ctx, older.ID, ota.ResumeRepeat)
		w.ok(err)
		w.rests()
		w.installs("a", one)
		w.settled(older.ID, ota.RolloutCompleted)
	})
}
