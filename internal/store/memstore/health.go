package memstore

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// seen counts the pairs of a rollout for its progress.
func (s *Store) seen(r ota.Rollout, succeeded int) ota.Seen {
	seen := ota.Seen{Signals: make([]ota.Compared, len(r.Terms.Health.Signals))}
	all := 0
	for at, p := range s.pairs {
		if at.rollout != r.ID || !p.From.After(stored(r.ArmedAt)) {
			continue
		}
		all++
		switch p.Outcomes {
		case "":
			seen.Watched++
		case fleet.PairAlone:
			seen.Alone++
		default:
			seen.Add(p.Outcomes, 1)
		}
	}
	seen.Unmatched = max(0, min(succeeded, fleet.MaxPairs)-all)
	return seen
}

// Unmatched implements fleet.HealthStore.
func (s *Store) Unmatched(ctx context.Context, r ota.Rollout, limit int) ([]fleet.Member, error) {
	var list []fleet.Member
	err := s.locked(ctx, func() error {
		for id, attempts := range s.executions[r.ID] {
			e := attempts[len(attempts)-1]
			if _, matched := s.pairs[attempt{r.ID, id, e.Attempt}]; matched || e.Status != ota.Succeeded || e.Class == ota.ClassUnderway || !e.FinishedAt.After(stored(r.ArmedAt)) {
				continue
			}
			list = append(list, fleet.Member{Surveyed: s.surveyed(id, r), Attempt: e.Attempt, FinishedAt: e.FinishedAt})
		}
		return nil
	})
	slices.SortFunc(list, func(a, b fleet.Member) int {
		return cmp.Or(a.FinishedAt.Compare(b.FinishedAt), cmp.Compare(a.ID, b.ID))
	})
	return list[:min(limit, len(list))], err
}

func (s *Store) surveyed(id string, r ota.Rollout) fleet.Surveyed {
	return fleet.Survey(fleet.DeviceView{Device: s.devices[id], Shadow: s.shadows[shadowKey{id, ""}]}, r.Terms.Strata)
}

// Partners implements fleet.HealthStore.
func (s *Store) Partners(ctx context.Context, r ota.Rollout, turn, limit int) ([]fleet.Surveyed, error) {
	var list []fleet.Surveyed
	err := s.locked(ctx, func() error {
		l := s.lines[line{r.ID, r.Line}]
		taken := map[string]bool{}
		for at, p := range s.pairs {
			taken[p.PartnerID] = taken[p.PartnerID] || at.rollout == r.ID
		}
		for _, n := range slices.Sorted(maps.Keys(l)) {
			id := l[n].DeviceID
			d, ok := s.devices[id]
			if n >= turn && len(list) < limit && ok && !d.Revoked() && !taken[id] && len(s.executions[r.ID][id]) == 0 {
				list = append(list, s.surveyed(id, r))
			}
		}
		return nil
	})
	return list, err
}

// PutPairs implements fleet.HealthStore.
func (s *Store) PutPairs(ctx context.Context, rolloutID string, pairs []fleet.Pair) error {
	return s.locked(ctx, func() error {
		for _, p := range pairs {
			key := attempt{rolloutID, p.DeviceID, p.Attempt}
			if _, ok := s.pairs[key]; ok || s.isPartner(rolloutID, p.PartnerID) || !s.there(p.DeviceID) || p.PartnerID != "" && !s.there(p.PartnerID) {
				continue
			}
			p.From, p.Until = stored(p.From), stored(p.Until)
			s.pairs[key] = p
		}
		return nil
	})
}

func (s *Store) isPartner(rolloutID, deviceID string) bool {
	for at, p := range s.pairs {
		if at.rollout == rolloutID && p.PartnerID == deviceID && deviceID != "" {
			return true
		}
	}
	return false
}

// DuePairs implements fleet.HealthStore.
func (s *Store) DuePairs(ctx context.Context, r ota.Rollout, now time.Time, limit int) ([]fleet.WatchedPair, error) {
	var due []fleet.WatchedPair
	documents := slices.ContainsFunc(r.Terms.Health.Signals, func(s ota.Signal) bool { return s.Path() != nil })
	err := s.locked(ctx, func() error {
		for at, p := range s.pairs {
			if at.rollout != r.ID || p.Outcomes != "" || p.Until.After(stored(now)) {
				continue
			}
			due = append(due, fleet.WatchedPair{
				Pair: p, Device: s.vitals(p.DeviceID, p, documents), Partner: s.vitals(p.PartnerID, p, documents), Changed: len(s.executions[r.ID][p.PartnerID]) > 0 || s.surveyed(p.PartnerID, r).Digest != p.PartnerDigest,
			})
		}
		return nil
	})
	slices.SortFunc(due, func(a, b fleet.WatchedPair) int {
		return cmp.Or(a.Until.Compare(b.Until), cmp.Compare(a.DeviceID, b.DeviceID))
	})
	return due[:min(limit, len(due))], err
}

func (s *Store) vitals(device string, p fleet.Pair, documents bool) (v fleet.Vitals) {
	for _, e := range s.events[device].events {
		if !e.Received.After(p.From) || e.Received.After(p.Until) {
			continue
		}
		switch e.Kind {
		case fleet.EventCrash:
			v.Crashes++
		case fleet.EventReboot:
			v.Reboots++
		}
	}
	c := s.devices[device].Connection
	v.Known, v.Connected = c != fleet.Connection{}, c.Connected
	if documents {
		v.Shadow = s.shadows[shadowKey{device, ""}]
		if !v.Shadow.Exists() {
			v.Shadow.Version = 0
		}
	}
	return v
}

// PutOutcomes implements fleet.HealthStore.
func (s *Store) PutOutcomes(ctx context.Context, rolloutID string, pairs []fleet.Pair) error {
	return s.locked(ctx, func() error {
		for _, p := range pairs {
			key := attempt{rolloutID, p.DeviceID, p.Attempt}
			if old, ok := s.pairs[key]; ok && old.Outcomes == "" {
				old.Outcomes = p.Outcomes
				s.pairs[key] = old
			}
		}
		return nil
	})
}
