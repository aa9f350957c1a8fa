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
// a release that the device may be given: ErrInvalid, ErrUnsigned, or ErrNotFound; no
// rollout of higher priority may have the device (ErrOutranked), and no other device be
// brought back by it (ErrConflict).
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
	wish := ota.Rollout{
		Release: id, Selector: DesiredSelector(id), Abort: []ota.AbortRule{DesiredAbort},
		Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}}, Terms: ota.Terms{Continuous: true, Timers: ota.DefaultTimers},
	}
	if err := s.mayDesire(ctx, wish, d, rollouts); err != nil {
		return err
	}
	if brings(newestOf(rollouts, id.Name), id) {
		return nil
	}
	_, trial, err := s.longestTrial(ctx, release)
	if err != nil {
		return err
	}
	wish.Terms.Timers.Health = max(wish.Terms.Timers.Health, 2*trial)
	_, err = s.create(ctx, wish, func(_ context.Context, _ ota.Rollout, line *ota.Line) error { return alone(line, deviceID, id) })
	return err
}

// alone refuses a new rollout that would bring other devices than the one of which the
// release is desired now: they desired it before a newer rollout, or the end of that which
// brought it, had the last word.
func alone(line *ota.Line, deviceID string, id ota.ReleaseID) error {
	others := line.Len()
	if _, ok := line.Find(deviceID); ok {
		others--
	}
	if others == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d other devices still desire %s and do not run it, since a newer rollout came or the one that brought it ended; they would be taken along. Begin a rollout for this device alone (otactl rollout create --firmware %[3]s --select 'id = %[5]q') or for all of them (otactl rollout create --continuous --firmware %[3]s --select '%[4]s'), or have them desire it no more (otactl device clear-firmware; otactl device list --select '%[4]s' shows them)",
		ErrConflict, others, id, DesiredSelector(id), deviceID)
}

// mayDesire refuses a firmware for a device that a rollout of higher priority has: it
// would be undone, or undo what that one counts on.
func (s *Service) mayDesire(ctx context.Context, wish ota.Rollout, d Device, rollouts []ota.Rollout) error {
	for _, o := range rollouts {
		if !outranks(o, wish) {
			continue
		}
		has, err := s.has(ctx, o, d)
		if err != nil {
			return err
		}
		if has {
			return fmt.Errorf("%w: rollout %s of priority %d has %s for this device, and what is desired has priority 0: wait until that has ended, end it (otactl rollout %s %[2]s), or begin a rollout for the device (otactl rollout create --firmware %[6]s --select 'id = %[7]q' --priority %[3]d)",
				ErrOutranked, o.ID, o.Priority, o.Release, endOf(o), wish.Release, d.ID)
		}
	}
	return nil
}

// has reports whether a rollout that goes on has brought a device its release, or is
// going to.
func (s *Service) has(ctx context.Context, r ota.Rollout, d Device) (has bool, err error) {
	given := false
	err = s.Store.Executions(ctx, ExecutionFilter{RolloutID: r.ID, DeviceID: d.ID, Latest: true}, func(e ota.Execution) bool {
		given, has = true, !e.Status.Terminal() || e.Status == ota.Succeeded
		return true
	})
	if err != nil || has {
		return has, err
	}
	if r.RevertOf == "" && (r.Terms.Continuous || r.StartedAt.IsZero()) && !given {
		release, err := s.Store.Release(ctx, r.Release)
		if err != nil || !release.Fits(d.Hardware) {
			return false, err
		}
		return s.means(ctx, r.Selector, d.ID)
	}
	turn, there, err := s.Store.Turn(ctx, r.ID, r.Line, d.ID)
	return there && turn >= r.Cursor, err
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
