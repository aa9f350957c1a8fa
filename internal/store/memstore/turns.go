package memstore

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// Openings implements fleet.RolloutStore.
func (s *Store) Openings(ctx context.Context) (list []ota.Rollout, err error) {
	err = s.locked(ctx, func() error {
		for _, r := range s.rollouts {
			if r.Opening() {
				list = append(list, ownRollout(r))
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b ota.Rollout) int { return strings.Compare(a.ID, b.ID) })
	return list, err
}

// Due implements fleet.RolloutStore.
func (s *Store) Due(ctx context.Context, r ota.Rollout, deviceID string) (due bool, err error) {
	err = s.locked(ctx, func() error {
		_, from, to := r.OpenTurns()
		turn, ok := s.turn(r, deviceID)
		due = ok && turn >= from && turn < to && len(s.executions[r.ID][deviceID]) == 0
		return nil
	})
	return due, err
}

// TakeTurns implements fleet.RolloutStore.
func (s *Store) TakeTurns(ctx context.Context, rolloutID string, o fleet.Opening, devices []string, now time.Time) error {
	return s.locked(ctx, func() error {
		r, ok := s.rollouts[rolloutID]
		if !ok {
			return notFound("rollout %s", rolloutID)
		}
		stage, from, to := r.OpenTurns()
		if from == to || stage != o.Stage || len(devices) == 0 {
			return nil
		}
		if err := fleet.Brings(r, nil, &o, s.withdrawn()); err != nil {
			return err
		}
		for _, id := range devices {
			turn, ok := s.turn(r, id)
			if !ok || turn < from || turn >= to {
				continue
			}
			o.From, o.To = turn, turn+1
			executions := maps.Clone(s.executions[r.ID])
			if executions == nil {
				executions = map[string][]ota.Execution{}
			}
			opened, err := s.opened(r, &o)
			if err != nil {
				return err
			}
			if err := s.insert(executions, r, opened, stored(now)); err != nil {
				return err
			}
			s.executions[r.ID] = executions
			s.supersede(r, o, stored(now))
		}
		return nil
	})
}
