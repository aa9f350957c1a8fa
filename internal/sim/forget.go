package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// forget has an operator delete a device, by force or not.
func (s *Sim) forget(a *agent) {
	d := fleet.Deletion{DeviceID: a.id, Force: s.one(2)}
	s.log("operator: delete %s, by force: %t", d.DeviceID, d.Force)
	s.request("op delete "+d.DeviceID, func(ctx context.Context, f *fleet.Service) (ota.Execution, error) {
		return ota.Execution{}, f.DeleteDevice(ctx, d)
	}, func(_ ota.Execution, err error) {
		for _, fine := range []error{nil, errStore, context.Canceled, fleet.ErrNotFound, fleet.ErrConflict} {
			if errors.Is(err, fine) {
				return
			}
		}
		s.check.say("delete %s: %v", d.DeviceID, err)
	})
}

// forgotten is what a device notices of its deletion: it is let in no more. Most are
// enrolled again after a while, by the same name or by another.
func (a *agent) forgotten() {
	s := a.sim
	s.log("%s is deleted", a.id)
	a.revoked, a.job = true, nil
	a.life++
	a.born++
	again := a
	switch s.rng.IntN(5) {
	case 0:
		return
	case 1, 2:
		again = &agent{sim: s, id: fmt.Sprint("again-", a.id, "-", a.born), running: a.running, before: a.before, off: true}
	}
	if s.one(3) { // it was flashed on the way
		again.running = digestOf(pick(s, s.releases...).id)
	}
	s.after(time.Minute+s.upTo(30*time.Minute), func() {
		if again != a {
			s.agents, s.agent[again.id] = append(s.agents, again), again
		}
		s.enroll(again)
	})
}

// enroll makes a device known, which then connects.
func (s *Sim) enroll(a *agent) {
	d := fleet.Device{ID: a.id, Hardware: pick(s, "rpi4", "rpi5"), Tags: map[string]string{"site": pick(s, "a", "b", "c")}}
	s.log("%s comes", a.id)
	var enroll func()
	enroll = func() {
		s.request(a.id+" is made", func(ctx context.Context, f *fleet.Service) (ota.Execution, error) {
			_, err := f.CreateDevice(ctx, d)
			return ota.Execution{}, err
		}, func(_ ota.Execution, err error) {
			if err != nil && !errors.Is(err, fleet.ErrConflict) {
				s.after(time.Minute, enroll)
				return
			}
			a.revoked, a.calm = false, s.calm
			a.wake()
		})
	}
	enroll()
}
