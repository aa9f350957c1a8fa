package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
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
		turns, err := t.lastTurns(r, devices)
		if err != nil {
			return err
		}
		turns = slices.DeleteFunc(turns, func(turn int64) bool { return turn < int64(from) || turn >= int64(to) })
		if err := t.beginMaking(r); err != nil {
			return err
		}
		if err := t.offered(r, nil, &o); err != nil {
			return err
		}
		if len(turns) == 0 {
			return nil
		}
		if _, err := t.exec(updateTaken, r.ID); err != nil {
			return err
		}
		o.From, o.To = from, to
		return t.give(r, o, turns, now, true)
	})
}

const selectLastTurns = `SELECT MAX(c.turn) FROM {rows} CROSS JOIN candidates c WHERE c.rollout_id = ? AND c.line = ? AND c.device_id = v.device GROUP BY v.device`

// lastTurns returns the last turn of each of the devices that is in line.
func (t *tx) lastTurns(r ota.Rollout, devices []string) (turns []int64, err error) {
	err = t.lookWith(func(row row) error {
		var turn int64
		err := row.Scan(&turn)
		turns = append(turns, turn)
		return err
	}, selectLastTurns, len(devices), []any{r.ID, r.Line}, texts("device", devices))
	return turns, err
}
