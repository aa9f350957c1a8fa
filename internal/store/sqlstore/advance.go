package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// insertRows is how many executions are handed to the database at a time.
const insertRows = 10_000

// Advance implements fleet.RolloutStore. Executions are inserted first and
// cancelled then, so Cancel leaves none that it should not.
func (s *Store) Advance(ctx context.Context, a fleet.Advance) error {
	p, err := planOf(a.Rollout)
	if err != nil {
		return err
	}
	insert := inOrder(a.Insert)
	plans := make([]planText, len(a.Create))
	for i, r := range a.Create {
		if plans[i], err = planOf(r); err != nil {
			return err
		}
	}
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
		r.Release, r.Command = old.Release, old.Command
		if old.State.Begun() {
			r.InProgressTimeout = old.InProgressTimeout
		}
		if err := writeRollout(t, r, p); err != nil {
			return err
		}
		if err := insertExecutions(t, r, insert, a); err != nil {
			return err
		}
		if a.Open != nil {
			if err := t.open(r, *a.Open, a.Now); err != nil {
				return err
			}
		}
		for i, made := range a.Create {
			if err := createRollout(t, made, plans[i]); err != nil {
				return err
			}
		}
		return t.follow(old, r, a)
	})
}

// follow does to executions what a step asks for besides new ones.
func (t *tx) follow(old, r ota.Rollout, a fleet.Advance) error {
	if a.Repeat != nil {
		_, err := t.exec(updateRepeat, micros(a.Now), r.ID, *a.Repeat)
		if err != nil {
			return err
		}
	}
	if a.Cancel {
		if err := cancel(t, a); err != nil {
			return err
		}
	}
	if (old.State == ota.RolloutRunning) == (r.State == ota.RolloutRunning) || r.Terms.Timers.Claim == 0 {
		return nil
	}
	var e ota.Execution
	if r.State == ota.RolloutRunning {
		e = ota.Claimable(ota.Execution{Timers: r.Terms.Timers}, a.Now)
	}
	_, err := t.exec(`UPDATE executions SET expires_at = ?, expires_as = ? WHERE rollout_id = ? AND status = 'QUEUED' AND latest = 1`, micros(e.Expires), e.ExpiresAs, r.ID)
	return err
}

const updateRepeat = `UPDATE executions SET retry_at = ? WHERE rollout_id = ? AND stage = ? AND latest = 1
	AND status IN ('FAILED', 'REJECTED', 'TIMED_OUT', 'CANCELED')`

// inOrder returns the executions by attempt and device: first attempts can go in
// together, and keys in ascending order go into an index fastest.
func inOrder(list []ota.Execution) []ota.Execution {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b ota.Execution) int {
		return cmp.Or(a.Attempt-b.Attempt, strings.Compare(a.DeviceID, b.DeviceID))
	})
	return list
}

func writeRollout(t *tx, r ota.Rollout, p planText) error {
	_, err := t.exec(`UPDATE rollouts SET selector = ?, seed = ?, stages = ?, abort = ?, priority = ?, state = ?, reason = ?,
		population = ?, armed_at = ?, revision = ?, ended_at = ?, in_progress_timeout = ?,
		terms = ?, max_in_flight = ?, max_per_lane = ?, line = ?, next_turn = ?, paced_at = ?, approved_at = ?, started_at = ?, reverting = ? WHERE id = ?`,
		r.Selector, r.Seed, p.stages, p.abort, r.Priority, r.State, r.Reason,
		r.Population, micros(r.ArmedAt), r.Revision+1, micros(r.EndedAt), r.InProgressTimeout.Microseconds(),
		p.terms, r.Terms.InFlight.Max, r.Terms.InFlight.PerMax, r.Line, r.Cursor, micros(r.PacedAt), micros(r.ApprovedAt), micros(r.StartedAt), flag(r.Reverting), r.ID)
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
	if len(insert) == 0 {
		return nil
	}
	return t.removeRevoked(r, a.Now)
}

// updateRevoked finds them from the few devices that are revoked.
const updateRevoked = `UPDATE executions SET status = ?, class = ?, details = ?, version = version + 1, updated_at = ?, finished_at = ?,
	expires_at = NULL, expires_as = '' WHERE status = 'QUEUED' AND latest = 1 AND rollout_id = ?
	AND device_id IN (SELECT id FROM devices WHERE revoked_at IS NOT NULL)`

// removeRevoked removes what was just queued for devices that were revoked since
// the step was decided. The rows refer to their devices, so RevokeDevice of another
// process, which locks the device, came before them and is seen here, or comes
// after the commit and sees them.
func (t *tx) removeRevoked(r ota.Rollout, now time.Time) error {
	e, _ := ota.Remove(ota.Execution{Status: ota.Queued}, fleet.RevokedReason, now)
	details, err := mapText(e.Details)
	if err == nil {
		_, err = t.exec(updateRevoked, e.Status, e.Class, details, micros(e.UpdatedAt), micros(e.FinishedAt), r.ID)
	}
	return err
}

// insertQueued gives what all rows share once. The WHERE is what SQLite's
// grammar wants before ON CONFLICT.
const insertQueued = `INSERT INTO executions
	(rollout_id, device_id, attempt, latest, stage, status, class, version, queued_at, updated_at, details, expires_at, expires_as, lane, from_digest)
	SELECT CAST(? AS TEXT), v.device, v.attempt, 1, v.stage, CAST(? AS TEXT), '', 1, CAST(? AS BIGINT), CAST(? AS BIGINT), '{}',
	CAST(? AS BIGINT), CAST(? AS TEXT), v.lane, v.digest
	FROM {rows} WHERE 1 = 1 ON CONFLICT (rollout_id, device_id, attempt) DO NOTHING`

func insertChunk(t *tx, r ota.Rollout, chunk []ota.Execution, a fleet.Advance) error {
	e := ota.Queue(ota.Execution{Timers: r.Terms.Timers}, a.Now)
	_, err := t.bulk(t.exec, insertQueued, len(chunk), []any{r.ID, e.Status, micros(e.QueuedAt), micros(e.UpdatedAt), micros(e.Expires), e.ExpiresAs},
		texts("device", list(chunk, func(e ota.Execution) string { return e.DeviceID })),
		integers("stage", list(chunk, func(e ota.Execution) int64 { return int64(e.Stage) })),
		integers("attempt", list(chunk, func(e ota.Execution) int64 { return int64(e.Attempt) })),
		texts("lane", list(chunk, func(e ota.Execution) string { return e.Lane })),
		texts("digest", list(chunk, func(e ota.Execution) string { return e.From })))
	if errors.Is(err, errForeignKey) {
		return notFound("device %s, or one after it in the step", chunk[0].DeviceID)
	}
	return err
}

// insertRetry adds an attempt after the first; the one before it must have
// finished.
func insertRetry(t *tx, r ota.Rollout, e ota.Execution, a fleet.Advance) error {
	n, err := t.exec(`UPDATE executions SET latest = 0, retry_at = NULL
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

// updateCancelled looks at the status of the row itself too: another process may
// have moved it since the index was read.
const updateCancelled = `UPDATE executions SET status = ?, class = ?, details = ?, step = '', version = version + 1, updated_at = ?, finished_at = ?,
	expires_at = NULL, expires_as = ''
	WHERE (status = 'QUEUED' OR status = 'IN_PROGRESS' AND step IN ('waiting', 'fetching', 'staged')) AND (rollout_id, device_id, attempt) IN
	(SELECT rollout_id, device_id, attempt FROM executions WHERE rollout_id = ? AND status IN ('QUEUED', 'IN_PROGRESS') AND latest = 1)`

// cancel does to every row what ota.Cancel does to one.
func cancel(t *tx, a fleet.Advance) error {
	e, _ := ota.Cancel(ota.Execution{Status: ota.Queued}, a.Rollout.Reason, a.Now)
	details, err := mapText(e.Details)
	if err != nil {
		return err
	}
	_, err = t.exec(updateCancelled,
		e.Status, e.Class, details, micros(e.UpdatedAt), micros(e.FinishedAt), a.Rollout.ID)
	return err
}
