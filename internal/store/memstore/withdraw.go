package memstore

import (
	"context"
	"maps"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// Withdraw implements fleet.ReleaseStore.
func (s *Store) Withdraw(ctx context.Context, w fleet.Withdrawal) (done fleet.Withdrawn, err error) {
	err = s.locked(ctx, func() error {
		old, ok := s.releases[w.Release]
		if !ok {
			return notFound("release %s", w.Release)
		}
		r, err := ota.Withdraw(old, w.Reason, stored(w.Now))
		if err == nil {
			err = s.publish(w.Files, w.Signed, w.Now)
		}
		if err != nil {
			return err
		}
		if done.Release, err = ownRelease(r); err != nil || old.State == ota.ReleaseWithdrawn {
			return err
		}
		before := slices.Collect(maps.Values(s.releases))
		s.releases[w.Release] = r
		s.markOpened(before)
		s.tell(ota.Withdrawn(old, r))
		for _, id := range slices.Sorted(maps.Keys(s.rollouts)) {
			s.stop(s.rollouts[id], w, &done)
		}
		return nil
	})
	return done, err
}

// stop keeps a rollout from bringing a release that was withdrawn.
func (s *Store) stop(o ota.Rollout, w fleet.Withdrawal, done *fleet.Withdrawn) {
	now := stored(w.Now)
	if next, changed := ota.Abandon(o, done.Release, w.Policy, now); changed {
		next = ownRollout(next)
		next.Revision++
		s.tell(ota.Changes(o, next, now)...)
		change(s.executions[o.ID], func(e ota.Execution) (ota.Execution, bool) { return s.follow(o, next, fleet.Advance{Now: now}, e) })
		s.rollouts[o.ID] = next
		s.following(o, next)
		done.Rollouts = append(done.Rollouts, fleet.Abandoned{Before: ownRollout(o), After: ownRollout(next)})
		return
	}
	if o.Kind() == ota.KindCommand || !ota.GoesOn(o) { // a command passes through nothing
		return
	}
	n := len(done.Rerouted)
	for _, device := range slices.Sorted(maps.Keys(s.executions[o.ID])) {
		was, _ := s.newest(o.ID, device)
		e, rerouted := ota.Reroute(was, done.Release, now)
		if !rerouted {
			continue
		}
		s.set(e)
		s.tell(ota.MovedTogether(was.Status, e, 1, now))
		done.Rerouted = append(done.Rerouted, ota.Execution{
			RolloutID: o.ID, DeviceID: device, Stage: e.Stage, Status: e.Status, QueuedAt: e.QueuedAt, StartedAt: e.StartedAt,
		})
	}
	if len(done.Rerouted) > n {
		o.Idle = false
		o.Revision++
		s.rollouts[o.ID] = o
	}
}

// markOpened has devices looked at whose paths a change of the releases opens, from how
// they stood before.
func (s *Store) markOpened(before []ota.Release) {
	for _, at := range fleet.Opened(slices.Collect(maps.Values(s.rollouts)), before, slices.Collect(maps.Values(s.releases))) {
		for id, d := range s.devices {
			if d.Hardware == at.Hardware && fleet.ReportedDigest(s.shadows[shadowKey{id, ""}]) == at.Digest {
				s.markAnyway(id)
			}
		}
	}
}

// withdrawn are the releases that are.
func (s *Store) withdrawn() (ids []ota.ReleaseID) {
	for id, r := range s.releases {
		if r.State == ota.ReleaseWithdrawn {
			ids = append(ids, id)
		}
	}
	return ids
}
