package sim

import (
	"slices"

	"github.com/otad/otad/pkg/ota"
)

// path: a device goes a way on which it may install each release, to that of the
// rollout, and goes on only from where it came.
func (k *checker) path(name string, r ota.Rollout, attempts []ota.Execution, e ota.Execution) {
	runs := e.From
	if n := len(attempts); n > 0 {
		last := attempts[n-1]
		switch last.Class {
		case ota.ClassUnderway:
			if e.Leg != last.Leg+1 || !slices.Equal(e.Via, last.Via[1:]) {
				k.say("%s goes on leg %d over %v, after leg %d over %v", name, e.Leg, e.Via, last.Leg, last.Via)
			}
			return
		case ota.ClassDrifted:
			if runs = last.Runs; e.Leg != last.Leg || len(e.Via) == 0 {
				return // the device refuses what it may not install
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
