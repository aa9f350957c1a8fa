package sqlstore

import (
	"context"
	"fmt"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const insertCandidates = `INSERT INTO candidates (rollout_id, line, turn, device_id, stage, lane)
	SELECT CAST(? AS TEXT), CAST(? AS TEXT), v.turn, v.device, v.stage, v.lane FROM {rows} WHERE 1 = 1
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
			_, err := t.bulk(t.exec, insertCandidates, len(part), []any{rolloutID, line},
				integers("turn", turns[from:from+len(part)]),
				texts("device", list(part, func(c ota.Candidate) string { return c.DeviceID })),
				integers("stage", list(part, func(c ota.Candidate) int64 { return int64(c.Stage) })),
				texts("lane", list(part, func(c ota.Candidate) string { return c.Lane })))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Turns implements fleet.RolloutStore.
func (s *Store) Turns(ctx context.Context, r ota.Rollout, turn, limit int) ([]fleet.Turn, error) {
	digest := s.config.Dialect.JSON.At("s.document", []string{"reported", "firmware", "digest"}, false).Text()
	query := Say(`SELECT c.device_id, c.stage, c.lane, CASE WHEN d.id IS NULL OR d.revoked_at IS NOT NULL THEN 1 ELSE 0 END, COALESCE(CAST(? AS TEXT), ''),
		CASE WHEN EXISTS (SELECT 1 FROM executions e JOIN rollouts o ON o.id = e.rollout_id WHERE e.device_id = c.device_id AND e.status NOT IN ('CANCELED', 'REMOVED')
			AND o.id <> ? AND o.release_name = ? AND o.priority >= ? AND (o.created_at > ? OR o.created_at = ? AND o.id > ?)) THEN 1 ELSE 0 END
		FROM candidates c LEFT JOIN devices d ON d.id = c.device_id LEFT JOIN shadows s ON s.device_id = c.device_id AND s.name = '' AND s.deleted_at IS NULL
		WHERE c.rollout_id = ? AND c.line = ? AND c.turn >= ? ORDER BY c.turn LIMIT ?`, digest,
		r.ID, r.Release.Name, r.Priority, micros(r.CreatedAt), micros(r.CreatedAt), r.ID, r.ID, r.Line, turn, limit)
	var turns []fleet.Turn
	err := s.adhoc(ctx, func(row row) error {
		var t fleet.Turn
		var revoked, superseded int
		err := row.Scan(&t.DeviceID, &t.Stage, &t.Lane, &revoked, &t.Digest, &superseded)
		t.Revoked, t.Superseded = revoked == 1, superseded == 1
		turns = append(turns, t)
		return err
	}, query)
	if err != nil {
		return nil, fmt.Errorf("read candidates of rollout %s: %w", r.ID, err)
	}
	return turns, nil
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
