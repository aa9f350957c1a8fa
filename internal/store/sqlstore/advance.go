package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// insertRows is how many executions are handed to the database at a time.
const insertRows = 10_000

// Advance implements fleet.RolloutStore. Executions are inserted first and
// cancelled then, so CancelQueued leaves none.
func (s *Store) Advance(ctx context.Context, a fleet.Advance) error {
	stages, abort, err := planText(a.Rollout)
	if err != nil {
		return err
	}
	insert := inOrder(a.Insert)
	return s.writer.do(ctx, func(t *tx) error {
		old, err := scanRollout(t.row(selectRollout+` WHERE id = ?`+t.forUpdate("rollouts"), a.Rollout.ID))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return notFound("rollout %s", a.Rollout.ID)
		case err != nil:
			return err
		case old.Revision != a.Rollout.Revision:
			return fmt.Errorf("rollout %s is at revision %d, not %d: %w", old.ID, old.Revision, a.Rollout.Revision, fleet.ErrStale)
		}
		r := a.Rollout
		r.Release = old.Release
		if err := writeRollout(t, r, stages, abort); err != nil {
			return err
		}
		if err := insertExecutions(t, r, insert, a); err != nil {
			return err
		}
		if a.CancelQueued {
			return cancelQueued(t, a)
		}
		return nil
	})
}

// inOrder returns the executions by attempt and device: first attempts can go in
// together, and keys in ascending order go into an index fastest.
func inOrder(list []ota.Execution) []ota.Execution {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b ota.Execution) int {
		return cmp.Or(a.Attempt-b.Attempt, strings.Compare(a.DeviceID, b.DeviceID))
	})
	return list
}

func writeRollout(t *tx, r ota.Rollout, stages, abort string) error {
	_, err := t.exec(`UPDATE rollouts SET selector = ?, seed = ?, stages = ?, abort = ?, priority = ?, state = ?, reason = ?,
		population = ?, armed_at = ?, revision = ?, ended_at = ? WHERE id = ?`,
		r.Selector, r.Seed, stages, abort, r.Priority, r.State, r.Reason,
		r.Population, micros(r.ArmedAt), r.Revision+1, micros(r.EndedAt), r.ID)
	return err
}

func insertExecutions(t *tx, r ota.Rollout, insert []ota.Execution, a fleet.Advance) error {
	for _, e := range insert {
		if err := fleet.ValidInsert(r, e); err != nil {
			return err
		}
	}
	first := len(insert)
	if i := slices.IndexFunc(insert, func(e ota.Execution) bool { return e.Attempt > 1 }); i >= 0 {
		first = i
	}
	for chunk := range slices.Chunk(insert[:first], insertRows) {
		if err := insertChunk(t, r, chunk, a); err != nil {
			return err
		}
	}
	for _, e := range insert[first:] {
		if err := insertRetry(t, r, e, a); err != nil {
			return err
		}
	}
	return nil
}

// insertQueued gives what all rows share once. The WHERE is what SQLite's
// grammar wants before ON CONFLICT.
const insertQueued = `INSERT INTO executions
	(rollout_id, device_id, attempt, latest, stage, status, class, version, queued_at, updated_at, details)
	SELECT CAST(? AS TEXT), v.device, v.attempt, 1, v.stage, CAST(? AS TEXT), '', 1, CAST(? AS BIGINT), CAST(? AS BIGINT), '{}'
	FROM {rows} WHERE 1 = 1 ON CONFLICT (rollout_id, device_id, attempt) DO NOTHING`

func insertChunk(t *tx, r ota.Rollout, chunk []ota.Execution, a fleet.Advance) error {
	_, err := t.bulk(t.exec, insertQueued, len(chunk), []any{r.ID, ota.Queued, micros(a.Now), micros(a.Now)},
		texts("device", list(chunk, func(e ota.Execution) string { return e.DeviceID })),
		integers("stage", list(chunk, func(e ota.Execution) int64 { return int64(e.Stage) })),
		integers("attempt", list(chunk, func(e ota.Execution) int64 { return int64(e.Attempt) })))
	if errors.Is(err, errForeignKey) {
		return notFound("device %s, or one after it in the step", chunk[0].DeviceID)
	}
	return err
}

// insertRetry adds an attempt after the first; the one before it must have
// finished.
func insertRetry(t *tx, r ota.Rollout, e ota.Execution, a fleet.Advance) error {
	n, err := t.exec(`UPDATE executions SET latest = 0
		WHERE rollout_id = ? AND device_id = ? AND attempt = ? AND status NOT IN ('QUEUED', 'IN_PROGRESS')`,
		r.ID, e.DeviceID, e.Attempt-1)
	if err != nil {
		return err
	}
	if n == 0 {
		if err := t.deviceExists(e.DeviceID); err != nil {
			return err
		}
		return fmt.Errorf("%w: attempt %d of rollout %s on device %s: the attempt before it is not finished", fleet.ErrInvalid, e.Attempt, r.ID, e.DeviceID)
	}
	return insertChunk(t, r, []ota.Execution{e}, a)
}

// updateQueued looks at the status of the row itself too: another process may
// have started it since the index was read.
const updateQueued = `UPDATE executions SET status = ?, class = ?, details = ?, version = version + 1, updated_at = ?, finished_at = ?
	WHERE status = 'QUEUED' AND (rollout_id, device_id, attempt) IN
	(SELECT rollout_id, device_id, attempt FROM executions WHERE rollout_id = ? AND status = 'QUEUED' AND latest = 1)`

// cancelQueued does to every QUEUED row what ota.Cancel does to one.
func cancelQueued(t *tx, a fleet.Advance) error {
	e, _ := ota.Cancel(ota.Execution{Status: ota.Queued}, a.Rollout.Reason, a.Now)
	details, err := mapText(e.Details)
	if err != nil {
		return err
	}
	_, err = t.exec(updateQueued,
		e.Status, e.Class, details, micros(e.UpdatedAt), micros(e.FinishedAt), a.Rollout.ID)
	return err
}
