package sim

import (
	"context"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// means reports whether a rollout's selector means the device as it stands.
func (k *checker) means(r ota.Rollout, device string) bool {
	sel, err := selector.Parse(r.Selector)
	if err != nil {
		k.say("rollout %s: %v", r.ID, err)
		return false
	}
	found := false
	err = k.sim.store.SelectDevices(context.Background(), fleet.DeviceQuery{Selector: sel}, func(v fleet.DeviceView) bool {
		found = found || v.ID == device
		return true
	})
	if err != nil {
		k.say("select devices: %v", err)
	}
	return found
}

// awaited reports whether a device is marked: its last change was not looked at yet.
func (k *checker) awaited(device string) bool {
	marked, err := k.sim.store.Marked(context.Background(), len(k.sim.agents)+1)
	if err != nil {
		k.say("marked: %v", err)
	}
	return slices.ContainsFunc(marked, func(m fleet.Marked) bool { return m.ID == device })
}

// stays: a continuous rollout gives nothing to a device that was seen to leave, and
// has it begin nothing.
func (k *checker) stays(name string, r ota.Rollout, e ota.Execution) {
	if r.Terms.Continuous && !k.means(r, e.DeviceID) && !k.awaited(e.DeviceID) {
		k.say("%s: the rollout does not mean the device any more, and it was looked at since", name)
	}
}

// leavings counts the attempts that were cancelled because their device had left, or was
// deleted.
func leavings(attempts []ota.Execution) (n int) {
	for _, e := range attempts {
		if e.Left() || e.Status == ota.Removed && e.Reason() == ota.DeletedReason {
			n++
		}
	}
	return n
}

// madeWay counts the attempts that made way for a newer rollout.
func madeWay(attempts []ota.Execution) (n int) {
	for _, e := range attempts {
		if e.Superseded() != "" {
			n++
		}
	}
	return n
}

// followed: of a continuous rollout that rests, every device that it means has had
// its execution, or there is a reason why not; who has left has nothing to do.
func (k *checker) followed(r ota.Rollout) {
	if !r.Terms.Continuous || r.State != ota.RolloutRunning {
		return
	}
	if !r.Idle {
		if at := r.Current(); at == len(r.Stages)-1 && r.Stages[at].State == ota.StageOpen {
			k.say("rollout %s rests and is not idle", r.ID)
		}
		return
	}
	for _, a := range k.sim.agents {
		attempts := k.executions[place{r.ID, a.id}]
		d, err := k.sim.store.Device(context.Background(), a.id)
		if err != nil || d.Revoked() {
			continue
		}
		last := ota.Execution{}
		if n := len(attempts); n > 0 {
			last = attempts[n-1]
		}
		if n := len(attempts); n > 0 && (!last.Status.Terminal() || !last.RetryAt.IsZero()) {
			k.say("rollout %s is idle, and %s on device %s, to be tried again at %s", r.ID, last.Status, a.id, last.RetryAt)
		}
		switch lost := len(attempts) == 0 || leavings(attempts[len(attempts)-1:]) > 0 && last.RetryAt.IsZero() && last.Attempt < ota.MaxAttempts; {
		case !k.means(r, a.id):
			if len(attempts) > 0 && (last.Status == ota.Queued || !last.RetryAt.IsZero()) {
				k.say("device %s has left rollout %s, and is %s in it, to be tried again at %s", a.id, r.ID, last.Status, last.RetryAt)
			}
		case lost && !k.excused(r, a.id):
			k.say("rollout %s means device %s, and has given it %d attempts, the last %s %s", r.ID, a.id, len(attempts), last.Status, last.Reason())
		}
	}
}

// letGo: of a rollout that goes on, no device made way for one that has let it go since,
// and is forgotten.
func (k *checker) letGo(r ota.Rollout) {
	if r.State != ota.RolloutRunning && r.State != ota.RolloutPaused || r.Reverting || r.Finishes() {
		return
	}
	for at, attempts := range k.executions {
		last := attempts[len(attempts)-1]
		if at.rollout != r.ID || last.Superseded() == "" || !last.RetryAt.IsZero() || last.Attempt == ota.MaxAttempts {
			continue
		}
		d, err := k.sim.store.Device(context.Background(), at.device)
		if err != nil || d.Revoked() || r.Terms.Continuous && !k.means(r, at.device) || k.excused(r, at.device) || k.toCome(r, at.device) {
			continue
		}
		if k.said[claim{at.device, digestOf(r.Release)}].After(last.QueuedAt) { // it had the image by then, whatever it runs now
			continue
		}
		k.say("device %s made way in rollout %s for %s, and nobody has it", at.device, r.ID, last.Superseded())
	}
}

// toCome reports whether a rollout that supersedes r will try the device again.
func (k *checker) toCome(r ota.Rollout, device string) bool {
	for at, attempts := range k.executions {
		o := k.rollouts[at.rollout]
		if at.device == device && o.Supersedes(r) && !attempts[len(attempts)-1].RetryAt.IsZero() && !o.State.Terminal() && !o.Ending() {
			return true
		}
	}
	return false
}

// excused reports whether there is a reason to give a device nothing.
func (k *checker) excused(r ota.Rollout, device string) bool {
	runs := k.reported(device)
	if runs == digestOf(r.Release) || k.cut(r, device, runs) {
		return true
	}
	for at, attempts := range k.executions {
		if at.device != device {
			continue
		}
		o := k.rollouts[at.rollout]
		for _, e := range attempts {
			if e.WentBack() && e.Release == r.Release && !r.Terms.Quarantined || o.Supersedes(r) && e.Status != ota.Canceled && e.Status != ota.Removed {
				return true
			}
		}
	}
	for _, o := range k.rollouts {
		if o.Follows && o.Supersedes(r) && digestOf(o.Release) == runs && k.means(o, device) {
			return true
		}
	}
	return false
}

// reported is what a device says it runs.
func (k *checker) reported(device string) (runs string) {
	err := k.sim.store.Survey(context.Background(), fleet.DeviceQuery{}, nil, func(d fleet.Surveyed) bool {
		if d.ID == device {
			runs = d.Digest
		}
		return true
	})
	if err != nil {
		k.say("survey: %v", err)
	}
	return runs
}

// cut reports whether no path leads a device from what it runs to the release, or one
// over an image that was rolled back on it.
func (k *checker) cut(r ota.Rollout, device, runs string) bool {
	path := k.pathOf(r, device, runs)
	back := func(e ota.Execution) bool {
		return e.WentBack() && slices.Contains(path.Via, e.Release)
	}
	for at, attempts := range k.executions {
		if at.device == device && !r.Terms.Quarantined && slices.ContainsFunc(attempts, back) {
			return true
		}
	}
	return path.Stay != ""
}

// pathOf is the path of a device that runs an image to the release of a rollout, over
// what is signed now.
func (k *checker) pathOf(r ota.Rollout, device, runs string) ota.Path {
	ctx := context.Background()
	d, err := k.sim.store.Device(ctx, device)
	if err != nil {
		k.say("device %s: %v", device, err)
	}
	target, err := k.sim.store.Release(ctx, r.Release)
	if err != nil {
		k.say("release %s: %v", r.Release, err)
	}
	all, err := k.sim.store.Releases(ctx)
	if err != nil {
		k.say("releases: %v", err)
	}
	paths, err := ota.NewPaths(target, all)
	if err != nil {
		return ota.Path{Stay: err.Error()}
	}
	return paths.From(ota.Position{Hardware: d.Hardware, Digest: runs})
}
