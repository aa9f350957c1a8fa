package ota

import (
	"slices"
	"strings"
	"time"
)

// LetGo returns what becomes of attempts that made way for a newer rollout which has let
// the device go before it began there. Of each rollout the newest attempt on the device is
// given, and runs is the digest that it reports; empty: it has not said.
//
//	attempt               its rollout       those that supersede it on the device     then
//	CANCELED, superseded  RUNNING, PAUSED   all CANCELED or REMOVED, or gave nothing  another attempt, due now
//	the same              the same          work there, did, or will again            stays
//	the same              the same          -, and it runs the image already          stays
//	the same              others            -                                         stays
//	others                -                 -                                         stay
//
// The device had its turn, so the attempt is one more in its stage, and like every further
// attempt it is made only while the rollout runs, and takes from its rate. Of several that
// made way the newest gets it, and is in the way of the others then.
func LetGo(list []Standing, runs string, now time.Time) (changed []Execution) {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Standing) int { return b.Rollout.compareAge(a.Rollout) })
	for i, s := range list {
		if !s.madeWay() || s.retried(list) || runs != "" && runs == s.Goal {
			continue
		}
		if slices.ContainsFunc(list, func(o Standing) bool { return o.Rollout.Supersedes(s.Rollout) && o.holds() }) {
			continue
		}
		list[i].RetryAt = now
		changed = append(changed, list[i].Execution)
	}
	return changed
}

// madeWay reports whether the attempt was superseded, and may be made again.
func (s Standing) madeWay() bool {
	goesOn := !s.Rollout.Reverting && !s.Rollout.Finishes() && (s.Rollout.State == RolloutRunning || s.Rollout.State == RolloutPaused)
	return goesOn && s.Superseded() != "" && s.RetryAt.IsZero() && s.Attempt < MaxAttempts
}

// holds reports whether a rollout works on the device, did, or will again.
func (s Standing) holds() bool {
	if s.Status != Canceled && s.Status != Removed {
		return true
	}
	return !s.RetryAt.IsZero() && !s.Rollout.Ending() && !s.Rollout.State.Terminal()
}

// Superseded is the rollout for which the attempt made way; empty: it did not.
func (e Execution) Superseded() string {
	by, superseded := strings.CutPrefix(e.Details[DetailReason], SupersededReason)
	if e.Status != Canceled || !superseded {
		return ""
	}
	return by
}
