package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/otad/otad/pkg/ota"
)

const insertCandidates = `INSERT INTO candidates (rollout_id, line, turn, device_id, lane, standing)
	SELECT CAST(? AS TEXT), CAST(? AS TEXT), v.turn, v.device, v.lane, (SELECT 1 FROM rollouts r WHERE r.id = ? AND r.follows = 1) FROM {rows} WHERE 1 = 1
	ON CONFLICT (rollout_id, line, turn) DO NOTHING`

// PutCandidates implements fleet.RolloutStore.
func (s *Store) PutCandidates(ctx context.Context, rolloutID, line string, turn int, candidates []ota.Candidate) error {
	turns := make([]int64, len(candidates))
	for i := range turns {
		turns[i] = int64(turn + i)
	}
	return s.writer.do(ctx, func(t *tx) error {
		for from := 0; from < len(candidates); from += insertRows {
			part := candidates[from:min(from+insertRows, len(candidates))]
			_, err := t.bulk(t.exec, insertCandidates, len(part), []any{rolloutID, line, rolloutID},
				integers("turn", turns[from:from+len(part)]),
				texts("device", list(part, func(c ota.Candidate) string { return c.DeviceID })),
				texts("lane", list(part, func(c ota.Candidate) string { return c.Lane })))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

const selectCandidates = `SELECT device_id, lane FROM candidates WHERE rollout_id = ? AND line = ? AND turn >= ? ORDER BY turn LIMIT ?`

// Candidates implements fleet.RolloutStore.
func (s *Store) Candidates(ctx context.Context, rolloutID, line string, turn, limit int) ([]ota.Candidate, error) {
	var found []ota.Candidate
	err := s.rows(ctx, func(row row) error {
		var c ota.Candidate
		err := row.Scan(&c.DeviceID, &c.Lane)
		found = append(found, c)
		return err
	}, selectCandidates, rolloutID, line, turn, limit)
	if err != nil {
		return nil, fmt.Errorf("read candidates of rollout %s: %w", rolloutID, err)
	}
	return found, nil
}

const selectTurn = `SELECT MAX(turn) FROM candidates WHERE rollout_id = ? AND line = ? AND device_id = ?`

// Turn implements fleet.RolloutStore.
func (s *Store) Turn(ctx context.Context, rolloutID, line, deviceID string) (turn int, ok bool, err error) {
	err = s.rows(ctx, func(row row) error {
		var last sql.NullInt64
		err := row.Scan(&last)
		turn, ok = int(last.Int64), last.Valid
		return err
	}, selectTurn, rolloutID, line, deviceID)
	if err != nil {
		return 0, false, fmt.Errorf("read the turn of device %s in rollout %s: %w", deviceID, rolloutID, err)
	}
	return turn, ok, nil
}

const (
	selectOldCandidates = `SELECT line, turn FROM candidates WHERE rollout_id = ? AND line <> ? ORDER BY line, turn LIMIT ?`
	deleteCandidates    = `DELETE FROM candidates WHERE rollout_id = ? AND (line, turn) IN (SELECT v.line, v.turn FROM {rows})`
)

// DropCandidates implements fleet.RolloutStore.
func (s *Store) DropCandidates(ctx context.Context, rolloutID, keep string, limit int) (more bool, err error) {
	err = s.writer.do(ctx, func(t *tx) error {
		var lines []string
		var turns []int64
		err := t.rows(func(r row) error {
			var line string
			var turn int64
			err := r.Scan(&line, &turn)
			lines, turns = append(lines, line), append(turns, turn)
			return err
		}, selectOldCandidates, rolloutID, keep, limit)
		if err != nil {
			return err
		}
		more = len(lines) == limit
		_, err = t.bulk(t.exec, deleteCandidates, len(lines), []any{rolloutID}, texts("line", slices.Clip(lines)), integers("turn", turns))
		return err
	})
	return more, err
}
