package sim

import (
	"context"
	"slices"
	"strings"

	"github.com/otad/otad/pkg/ota"
)

// path: a device goes a way on which it may install each release, to that of the
// rollout, and goes on only from where it came.
func (k *checker) path(name string, r ota.Rollout, attempts []ota.Execution, e ota.Execution) {
	runs := e.From
	if n := len(attempts); n > 0 {
		last := attempts[n-1]
		blocked := last.Class != ota.ClassDrifted && k.blocked(last)
		if e.Status == ota.Rejected {
			k.stranded(name, r, last, blocked, e)
			return
		}
		switch {
		case blocked || last.Stranded():
			if leg := ota.Detour(last, ota.Path{}).Leg; e.Leg != leg {
				k.say("%s goes another way on leg %d, not %d, over %v", name, e.Leg, leg, e.Via)
			}
			runs = k.runsAfter(last)
		case last.Class == ota.ClassUnderway:
			if e.Leg != last.Leg+1 || !slices.Equal(e.Via, last.Via[1:]) {
				k.say("%s goes on leg %d over %v, after leg %d over %v", name, e.Leg, e.Via, last.Leg, last.Via)
			}
			return
		case last.Class == ota.ClassDrifted:
			if runs = last.Runs; e.Leg != last.Leg {
				k.say("%s goes leg %d after a drift on leg %d", name, e.Leg, last.Leg)
			}
		default:
			if e.Leg != last.Leg || !slices.Equal(e.Via, last.Via) {
				k.say("%s goes leg %d over %v, once more leg %d over %v", name, e.Leg, e.Via, last.Leg, last.Via)
			}
			return
		}
	}
	if r.RevertOf != "" || r.Kind() == ota.KindCommand {
		if len(e.Via) > 0 {
			k.say("%s goes over %v", name, e.Via)
		}
		return
	}
	if runs == digestOf(r.Release) && len(e.Via) == 0 {
		return // it is there
	}
	seen := []string{runs}
	for _, id := range append(slices.Clone(e.Via), r.Release) {
		if to := digestOf(id); !k.sim.suits(id, runs) || slices.Contains(seen, to) {
			k.say("%s goes over %v from %.4s: %s is not for what runs then", name, e.Via, seen[0], id)
			return
		} else {
			runs, seen = to, append(seen, to)
		}
	}
}

// stranded: nothing is offered to a device from which no way leads on, and to no other.
func (k *checker) stranded(name string, r ota.Rollout, last ota.Execution, blocked bool, e ota.Execution) {
	if !e.Stranded() || !blocked && last.Class != ota.ClassDrifted && !last.Stranded() {
		k.say("%s is REJECTED, and its path goes on: %s", name, e.Reason())
	}
	if k.pathOf(r, e.DeviceID, k.runsAfter(last)).Stay == "" {
		k.say("%s is not offered, and a way leads on", name)
	}
}

// runsAfter is what the device of an attempt is known to run after it.
func (k *checker) runsAfter(e ota.Execution) string {
	switch e.Class {
	case ota.ClassDrifted:
		return e.Runs
	case ota.ClassUnderway:
		return digestOf(e.Release)
	}
	return k.reported(e.DeviceID)
}

// blocked reports whether the attempt after one would go over what is withdrawn.
func (k *checker) blocked(e ota.Execution) bool {
	_, blocked := ota.Blocked(e, func(id ota.ReleaseID) bool { return !k.withdrawn[id] })
	return blocked
}

// noteWithdrawn keeps which releases are withdrawn.
func (k *checker) noteWithdrawn() {
	list, err := k.sim.store.Releases(context.Background())
	if err != nil {
		k.say("releases: %v", err)
	}
	for _, r := range list {
		if r.State == ota.ReleaseWithdrawn {
			k.withdrawn[r.ID()] = true
		}
	}
}

// detours counts the attempts that were cancelled since they led over what was
// withdrawn, or that were not offered since no way led on: they do not count against
// the retries.
func detours(attempts []ota.Execution) (n int) {
	for _, e := range attempts {
		if e.Stranded() || e.Status == ota.Canceled && strings.Contains(e.Reason(), "is withdrawn") {
			n++
		}
	}
	return n
}
