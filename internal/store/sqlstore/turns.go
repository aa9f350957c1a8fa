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
	selectComes = `SELECT MAX(turn) FROM candidates WHERE rollout_id = ? AND line = ? AND device_id = ? HAVING MAX(turn) >= ? AND MAX(turn) < ?
	AND NOT EXISTS (SELECT 1 FROM executions e WHERE e.rollout_id = ? AND e.device_id = ?)`

	// lookupComes looks for what exists one by one: PostgreSQL would read all that exists.
	lookupComes = `SELECT v.rollout, v.line, v.first, v.past, v.device FROM {rows}
	CROSS JOIN LATERAL (SELECT MAX(c.turn) AS turn FROM candidates c WHERE c.rollout_id = v.rollout AND c.line = v.line AND c.device_id = v.device) AS l
	WHERE l.turn >= v.first AND l.turn < v.past
	AND (SELECT COUNT(*) FROM executions e WHERE e.rollout_id = v.rollout AND e.device_id = v.device AND e.attempt = 1) = 0`
)

// dueKey asks whether a device is about to have one of the turns from first to past,
// which is not one of them.
type dueKey struct {
	rollout, line string
	first, past   int
	device        string
}

// Due implements fleet.RolloutStore. What can not be read together with what others ask
// for is read by itself.
func (s *Store) Due(ctx context.Context, r ota.Rollout, deviceID string) (due bool, err error) {
	_, from, to := r.OpenTurns()
	if s.due != nil {
		due, err := s.due.get(ctx, dueKey{r.ID, r.Line, from, to, deviceID})
		if err == nil || ctx.Err() != nil {
			return due, err
		}
	}
	err = s.rows(ctx, func(row) error {
		due = true
		return nil
	}, selectComes, r.ID, r.Line, deviceID, from, to, r.ID, deviceID)
	if err != nil {
		return false, fmt.Errorf("read whether the turn of device %s in rollout %s comes: %w", deviceID, r.ID, err)
	}
	return due, nil
}

// readDue returns those that are.
func (s *Store) readDue(ctx context.Context, keys []dueKey) (map[dueKey]bool, error) {
	ctx, cancel := s.together(ctx)
	defer cancel()
	found := make(map[dueKey]bool, len(keys))
	err := s.lookOver(ctx, func(r row) error {
		var k dueKey
		err := r.Scan(&k.rollout, &k.line, &k.first, &k.past, &k.device)
		found[k] = true
		return err
	}, lookupComes, texts("rollout", list(keys, func(k dueKey) string { return k.rollout })),
		texts("line", list(keys, func(k dueKey) string { return k.line })),
		integers("first", list(keys, func(k dueKey) int64 { return int64(k.first) })),
		integers("past", list(keys, func(k dueKey) int64 { return int64(k.past) })),
		texts("device", list(keys, func(k dueKey) string { return k.device })))
	return found, err
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
