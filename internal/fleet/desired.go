package fleet

import (
	"context"
	"fmt"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// What an operator writes to desired.firmware of a device's classic shadow, as
// {"name": NAME, "version": VERSION}, is brought to it by a continuous rollout of
// that release over all devices that desire it. So it takes the way of every
// install, with the rules of every rollout.

// DesiredAbort ends such a rollout: what goes wrong on so many of those that desire
// a release is its fault.
var DesiredAbort = ota.AbortRule{Class: ota.ClassAny, Share: 0.1, MinSample: 10}

// DesiredSelector means the devices that desire a release.
func DesiredSelector(id ota.ReleaseID) string {
	return fmt.Sprintf("shadow.desired.firmware.name = %q AND shadow.desired.firmware.version = %q", id.Name, id.Version)
}

// ChangeShadow is UpdateShadow for an operator. A firmware that it desires has to be
// a release that the device may be given: ErrInvalid, ErrUnsigned, or ErrNotFound.
func (s *Service) ChangeShadow(ctx context.Context, deviceID, name string, u shadow.Update) (shadow.Result, error) {
	if id, desired, err := desiredFirmware(name, u); err != nil {
		return shadow.Result{}, err
	} else if desired {
		if err := s.bring(ctx, deviceID, id); err != nil {
			return shadow.Result{}, fmt.Errorf("desired.firmware: %w", err)
		}
	}
	return s.UpdateShadow(ctx, deviceID, name, u)
}

// desiredFirmware is what an update desires, if it desires a firmware.
func desiredFirmware(name string, u shadow.Update) (id ota.ReleaseID, desired bool, err error) {
	value, ok := u.Desired.Object.Get("firmware")
	if name != "" || !u.Desired.Set || !ok || value.IsNull() {
		return id, false, nil
	}
	members := value.Object()
	text := func(k string) string { v, _ := members.Get(k); s, _ := v.Text(); return s }
	id.Name, id.Version = text("name"), text("version")
	if len(members) != 2 || id.Name == "" || id.Version == "" {
		return id, false, fmt.Errorf(`%w: desired.firmware: want {"name": NAME, "version": VERSION} and nothing else, or null to desire none`, ErrInvalid)
	}
	return id, true, nil
}

// bring sees to it that a rollout brings the release to whoever desires it. It is
// there before the first device desires it, so a crash leaves at most a rollout that
// nobody is in.
func (s *Service) bring(ctx context.Context, deviceID string, id ota.ReleaseID) error {
	release, err := s.signed(ctx, id)
	if err != nil {
		return err
	}
	d, err := s.Store.Device(ctx, deviceID)
	if err != nil {
		return err
	}
	if !release.Fits(d.Hardware) {
		return fmt.Errorf("%w: %s is not for hardware %s: %v", ErrInvalid, id, d.Hardware, release.HardwareIDs)
	}
	rollouts, err := s.Store.Rollouts(ctx)
	if err != nil {
		return err
	}
	if brings(newestOf(rollouts, id.Name), id) {
		return nil
	}
	timers := ota.DefaultTimers
	_, trial, err := s.longestTrial(ctx, release)
	if err != nil {
		return err
	}
	timers.Health = max(timers.Health, 2*trial)
	// Whom a rollout of higher priority has waits for that one: a shadow is not to be
	// refused because of what others plan.
	waits := func(context.Context, ota.Rollout, *ota.Line) error { return nil }
	_, err = s.create(ctx, ota.Rollout{
		Release: id, Selector: DesiredSelector(id), Abort: []ota.AbortRule{DesiredAbort},
		Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}}, Terms: ota.Terms{Continuous: true, Timers: timers},
	}, waits)
	return err
}

// newestOf is the newest rollout of a firmware: on a device it comes before all
// others, so what is desired last has to be in it.
func newestOf(rollouts []ota.Rollout, firmware string) (newest ota.Rollout) {
	for _, r := range rollouts {
		if r.Release.Name == firmware && r.RevertOf == "" && (newest.ID == "" || r.CreatedAt.After(newest.CreatedAt)) {
			newest = r
		}
	}
	return newest
}

// brings reports whether a rollout brings the release to whoever desires it.
func brings(r ota.Rollout, id ota.ReleaseID) bool {
	return r.Release == id && r.Terms.Continuous && r.Selector == DesiredSelector(id) && !r.State.Terminal() && !r.Ending()
}
