package fleet

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// changes calls f for each device that may run an image of the rollout because of it,
// with its first attempt, in order of the devices, see ota.Changed. f must not call
// the store.
func (s *Service) changes(ctx context.Context, r ota.Rollout, deviceID string, f func(e ota.Execution)) (ota.Release, error) {
	releases, err := s.Store.Releases(ctx)
	if err != nil {
		return ota.Release{}, err
	}
	images := map[ota.ReleaseID]string{}
	var release ota.Release
	for _, o := range releases {
		if images[o.ID()] = o.ImageDigest; o.ID() == r.Release {
			release = o
		}
	}
	var attempts []ota.Execution
	done := func() {
		if len(attempts) > 0 && ota.Changed(attempts, func(id ota.ReleaseID) string { return images[id] }) {
			f(attempts[0])
		}
		attempts = attempts[:0]
	}
	err = s.Store.Executions(ctx, ExecutionFilter{RolloutID: r.ID, DeviceID: deviceID}, func(e ota.Execution) bool {
		if len(attempts) > 0 && e.DeviceID != attempts[0].DeviceID {
			done()
		}
		attempts = append(attempts, e)
		return true
	})
	done()
	return release, err
}

// sendBack is the step in which a rollout that is ROLLING_BACK makes its reverts.
func (s *Service) sendBack(ctx context.Context, r ota.Rollout, now time.Time) (Advance, error) {
	groups := map[string]*ota.Return{}
	release, err := s.changes(ctx, r, "", func(e ota.Execution) {
		g := groups[e.From]
		if g == nil {
			g = &ota.Return{Digest: e.From}
			groups[e.From] = g
		}
		g.Devices++
		if len(g.Sample) < ota.ReturnSample {
			g.Sample = append(g.Sample, e.DeviceID)
		}
	})
	if err != nil {
		return Advance{}, err
	}
	releases, err := s.Store.Releases(ctx)
	if err != nil {
		return Advance{}, err
	}
	var returns []ota.Return
	for _, digest := range slices.Sorted(maps.Keys(groups)) {
		g := groups[digest]
		g.To, g.Stay = before(release, digest, releases)
		returns = append(returns, *g)
	}
	step := Advance{Now: now}
	step.Rollout, step.Create = ota.SendBack(r, returns, now)
	return step, nil
}

// before returns the release that devices go back to which ran an image before
// this one, or why they stay: only what operators have signed may be ordered, and
// no device goes below the security version that it has reached. Of several
// releases with the image one of the same firmware is chosen, then the newest.
func before(r ota.Release, digest string, newestFirst []ota.Release) (to ota.ReleaseID, stay string) {
	if digest == "" {
		return to, "they had not said what they ran before"
	}
	stay = "no release has the image that they ran before"
	for _, o := range newestFirst {
		switch {
		case o.ImageDigest != digest:
		case o.State != ota.ReleaseSigned:
			if to == (ota.ReleaseID{}) {
				stay = fmt.Sprintf("%s, which they ran before, is %s", o.ID(), o.State)
			}
		case o.SecurityVersion < r.SecurityVersion:
			if to == (ota.ReleaseID{}) {
				stay = fmt.Sprintf("%s has security version %d, below %d of %s, and no device goes back below what it has reached", o.ID(), o.SecurityVersion, r.SecurityVersion, r.ID())
			}
		case o.Admits(r.ID()) != nil:
			if to == (ota.ReleaseID{}) {
				stay = o.Admits(r.ID()).Error()
			}
		case to == (ota.ReleaseID{}) || to.Name != r.Name && o.Name == r.Name:
			to, stay = o.ID(), ""
		}
	}
	return to, stay
}

// arrangeReturn is arrange for a revert.
func (s *Service) arrangeReturn(ctx context.Context, r ota.Rollout, now time.Time) (ota.Rollout, error) {
	of, err := s.Store.Rollout(ctx, r.RevertOf)
	if err != nil {
		return r, err
	}
	to, err := s.Store.Release(ctx, r.Release)
	if err != nil {
		return r, err
	}
	var home ota.Homeward
	_, err = s.changes(ctx, of, "", func(e ota.Execution) {
		if e.From == to.ImageDigest {
			home.Add(e.DeviceID, e.Lane)
		}
	})
	if err != nil {
		return r, err
	}
	q := queue{s: s, rollout: r.ID, name: newID("")}
	var unread error // of the line
	stages, err := home.Arrange(r.Stages, s.line(ctx, of, &unread), func(c ota.Candidate) error {
		if unread != nil {
			return unread
		}
		return q.put(ctx, c)
	})
	if unread != nil {
		err = unread
	}
	if err != nil {
		return r, err
	}
	return ota.Begin(r, stages, home.Len(), q.name, now), q.flush(ctx)
}

// line goes along the devices of a rollout in the order of their turns.
func (s *Service) line(ctx context.Context, r ota.Rollout, err *error) iter.Seq[string] {
	return func(yield func(string) bool) {
		for turn := 0; ; {
			part, failed := s.Store.Candidates(ctx, r.ID, r.Line, turn, turnsPut)
			if *err = failed; failed != nil || len(part) == 0 {
				return
			}
			for _, c := range part {
				if !yield(c.DeviceID) {
					return
				}
			}
			turn += len(part)
		}
	}
}

// onlyThose are the images that a device may say it runs which has to go back
// when its turn comes: that of the rollout, and those on the way to it. A revert
// passes by what was brought on to another one meanwhile, and asks those that seem
// to run the old one too: a device that was not heard of again may yet turn up with
// the new one.
func (s *Service) onlyThose(ctx context.Context, r ota.Rollout, to string) ([]string, error) {
	of, err := s.Store.Rollout(ctx, r.RevertOf)
	if err != nil {
		return nil, err
	}
	passed, err := s.Store.Passed(ctx, of.ID)
	if err != nil {
		return nil, err
	}
	only := []string{to}
	for _, id := range append(passed, of.Release) {
		from, err := s.Store.Release(ctx, id)
		if err != nil {
			return nil, err
		}
		only = append(only, from.ImageDigest)
	}
	return only, nil
}
