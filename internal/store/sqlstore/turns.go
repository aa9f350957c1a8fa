package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const selectOpenings = selectRollout + ` WHERE opening = 1 ORDER BY id`

// Openings implements fleet.RolloutStore.
func (s *Store) Openings(ctx context.Context) (list []ota.Rollout, err error) {
	err = s.rows(ctx, func(r row) error {
		o, err := scanRollout(r)
		list = append(list, o)
		return err
	}, selectOpenings)
	if err != nil {
		return nil, fmt.Errorf("read rollouts that are being opened: %w", err)
	}
	return list, nil
}

const (
	selectTaken = `SELECT taken FROM rollouts WHERE id = ?`
	updateTaken = `UPDATE rollouts SET taken = 1 WHERE id = ? AND taken = 0`
)

// TakeTurns implements fleet.RolloutStore. Whoever gives turns holds the row of the
// rollout, so its cursor says which have been given.
func (s *Store) TakeTurns(ctx context.Context, rolloutID string, o fleet.Opening, devices []string, now time.Time) error {
	return s.writer.doAlone(ctx, func(t *tx) error {
		r, err := scanRollout(t.row(selectRollout+` WHERE id = ?`+t.forUpdate("rollouts"), rolloutID))
		if errors.Is(err, sql.ErrNoRows) {
			return notFound("rollout %s", rolloutID)
		}
		if err != nil {
			return err
		}
		stage, from, to := r.OpenTurns()
		if from == to || stage != o.Stage || len(devices) == 0 {
			return nil
		}
		if err := t.beginMaking(r); err != nil {
			return err
		}
		if err := t.offered(r, nil, &o); err != nil {
			return err
		}
		if _, err := t.exec(updateTaken, r.ID); err != nil {
			return err
		}
		o.From, o.To = from, to
		return t.give(r, o, devices, now, true)
	})
}
