package sim

import "github.com/otad/otad/pkg/ota"

// revert looks at a rollout that brings devices of another back, and changed.
func (k *checker) revert(name string, old, r ota.Rollout) {
	of := k.rollouts[r.RevertOf]
	if old.ID == "" {
		if of.State != ota.RolloutRollingBack {
			k.say("%s was made to revert rollout %s, which is %s", name, of.ID, of.State)
		}
		if n := k.active(of.ID, ota.Queued) + k.active(of.ID, ota.InProgress); n > 0 {
			k.say("%s was made to revert rollout %s, which has %d executions that are not finished", name, of.ID, n)
		}
		for id, other := range k.rollouts {
			if id != r.ID && other.RevertOf == r.RevertOf && other.Release == r.Release {
				k.say("%s reverts rollout %s to %s, as %s does", name, of.ID, r.Release, id)
			}
		}
		return
	}
	if old.StartedAt.IsZero() && !r.StartedAt.IsZero() {
		n := 0
		for at := range k.executions {
			if at.rollout == of.ID && k.mayReturn(r, at.device, false) {
				n++
			}
		}
		if r.Population != n || n == 0 {
			k.say("%s brings back %d devices of rollout %s, which changed %d of %s", name, r.Population, of.ID, n, r.Release)
		}
	}
}

// mayReturn reports whether the rollout that a revert is of changed the device,
// and it ran the revert's release before. The word of the newest attempt counts
// that has one; one that ends a later leg leaves the device where the legs before it
// brought it. One that drifted since it was lined up may return too.
func (k *checker) mayReturn(r ota.Rollout, device string, drifted bool) bool {
	attempts := k.executions[place{r.RevertOf, device}]
	for i := len(attempts) - 1; i >= 0 && attempts[i].Class != ota.ClassDrifted; i-- {
		if attempts[i].Class == ota.ClassUnderway {
			return attempts[i].From == digestOf(r.Release)
		}
	}
	for i := len(attempts) - 1; i >= 0; i-- {
		e := attempts[i]
		switch e.Status {
		case ota.Succeeded:
			return (drifted || e.Class == ota.ClassSucceeded) && e.From == digestOf(r.Release)
		case ota.TimedOut: // the agent had begun, and was at a step behind the activation or said none
			began := !e.StartedAt.IsZero() && e.Step() != ota.StepFetching && e.Step() != ota.StepStaged && e.Step() != ota.StepWaiting
			return began && e.From == digestOf(r.Release)
		case ota.Failed, ota.Rejected:
			return false
		}
	}
	return false
}
