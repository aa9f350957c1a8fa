package fleet_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// TestHealthTimerIsLongerThanATrial: nobody is called silent who still has time to
// prove its health, on the release or on one on the way there.
func TestHealthTimerIsLongerThanATrial(t *testing.T) {
	w := newWorld(t)
	one := w.needing("1.0", "")
	w.health = `{"hold":"1m","deadline":"15m"}`
	w.needing("2.0", "")
	w.health = `{"deadline":"90s"}`
	three := w.needing("3.0", "2.0")
	w.health = `{"hold":"a while"}`
	unreadable := w.needing("4.0", "")
	w.settle(map[string]ota.ReleaseID{}, w.enroll(1, "rpi4"), one)
	draft, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: three.ID(), Stages: w.stages("100%"), State: ota.RolloutDraft})
	w.ok(err)
	for _, c := range []struct {
		release ota.ReleaseID
		timer   time.Duration
		words   string
	}{
		{three.ID(), 2 * time.Minute, "health timer of 2m0s: gw@2.0 gives a device 15m0s to prove its health, and it would count as silent before; give more, such as 30m0s, or 0"},
		{three.ID(), 15 * time.Minute, "give more, such as 30m0s"},
		{three.ID(), 16 * time.Minute, ""},
		{three.ID(), 0, ""},
		{one.ID(), 2 * time.Minute, ""},
		{unreadable.ID(), time.Hour, "no device takes gw@4.0: invalid health contract"},
		{unreadable.ID(), 0, "upload a new version"},
	} {
		plan := ota.Rollout{Release: c.release, Stages: w.stages("100%"), Terms: ota.Terms{Timers: ota.Timers{Health: c.timer}}, State: ota.RolloutDraft}
		_, planned := w.s.PlanRollout(w.ctx, plan)
		_, created := w.s.CreateRollout(w.ctx, plan)
		errs := []error{planned, created}
		if c.release == three.ID() {
			_, edited := w.s.EditRollout(w.ctx, draft.ID, plan)
			errs = append(errs, edited)
		}
		for i, err := range errs {
			switch {
			case c.words == "" && err != nil && !errors.Is(err, fleet.ErrNoDevices):
				t.Errorf("%s, timer %s, %d: %v", c.release, c.timer, i, err)
			case c.words != "" && (!errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), c.words)):
				t.Errorf("%s, timer %s, %d: %v, want %q", c.release, c.timer, i, err, c.words)
			}
		}
	}
}

// TestDesiredFirmwareHasItsTime: what nobody gave timers has those of every plan, and
// longer ones where the release says so.
func TestDesiredFirmwareHasItsTime(t *testing.T) {
	w := newWorld(t)
	w.made("a", "north")
	for contract, want := range map[string]time.Duration{"": ota.DefaultTimers.Health, `{"deadline":"3h"}`: 6 * time.Hour} {
		w.health = contract
		r := w.release("1." + want.String())
		w.ok(w.desires("a", desired(r)))
		made := false
		for _, v := range w.rollouts() {
			made = made || v.Release == r.ID()
			if got := v.Terms.Timers; v.Release == r.ID() && got != (ota.Timers{Reboot: ota.DefaultTimers.Reboot, Health: want}) {
				t.Errorf("%s: %+v, want %s", contract, got, want)
			}
		}
		if !made {
			t.Errorf("no rollout of %s", r.ID())
		}
	}
}
