package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// insertRows is how many executions are handed to the database at a time.
const insertRows = 10_000

// manyRows is how many turns of a rollout have been given when a database wants to know
// of it at once, and then each time that they are manyTimes as many.
const (
	manyRows  = 10_000
	manyTimes = 8
)

// grewMuch reports whether giving these turns passes by such a number.
func grewMuch(from, to int) bool {
	n := manyRows
	for n <= from {
		n *= manyTimes
	}
	return n <= to
}

// Advance implements fleet.RolloutStore.
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
	tries, begins := 0, false
	err = s.writer.doReading(ctx, reading{stops: a.Rollout.State != ota.RolloutRunning, alone: true}, func(t *tx) error {
		tries++
		old, err := scanRollout(t.row(selectRollout+` WHERE id = ?`+t.forUpdate("rollouts"), a.Rollout.ID))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return notFound("rollout %s", a.Rollout.ID)
		case err != nil:
			return err
		case old.Revision != a.Rollout.Revision:
			return fmt.Errorf("rollout %s is at revision %d, not %d: %w", old.ID, old.Revision, a.Rollout.Revision, fleet.ErrStale)
		}
		var taken bool
		if err := t.row(selectTaken, old.ID).Scan(&taken); err != nil {
			return err
		}
		begins = old.StartedAt.IsZero() && !a.Rollout.StartedAt.IsZero()
		r := a.Rollout
		r.Release, r.Command = old.Release, old.Command
		if old.State.Begun() {
			r.InProgressTimeout = old.InProgressTimeout
		}
		if err := writeRollout(t, r, p); err != nil {
			return err
		}
		if len(insert) > 0 || a.Open != nil || a.Repeat != nil {
			if err := t.beginMaking(r); err != nil {
				return err
			}
			if err := t.offered(r, insert, a.Open); err != nil {
				return err
			}
		}
		if err := insertExecutions(t, r, insert, a); err != nil {
			return err
		}
		if a.Open != nil {
			if err := t.open(r, *a.Open, a.Now, taken || tries > 1 || !s.config.Dialect.Confident); err != nil {
				return err
			}
		}
		for i, made := range a.Create {
			if err := createRollout(t, made, plans[i], a.Now); err != nil {
				return err
			}
		}
		t.tell(ota.Changes(old, r, a.Now)...)
		return t.follow(old, r, a)
	})
	if analyze := s.config.Dialect.AnalyzeLines; err == nil && begins && a.Rollout.Population >= manyRows && analyze != "" {
		_, _ = s.config.Writer.ExecContext(ctx, analyze) // as below
	}
	if analyze := s.config.Dialect.Analyze; err == nil && a.Open != nil && grewMuch(a.Open.From, a.Open.To) && analyze != "" {
		_, _ = s.config.Writer.ExecContext(ctx, analyze) // the step is made; without it, the database looks by itself later
	}
	return err
}

// follow does to executions what a step asks for besides new ones.
func (t *tx) follow(old, r ota.Rollout, a fleet.Advance) error {
	if err := t.following(old, r); err != nil {
		return err
	}
	if a.Repeat != nil {
		_, err := t.exec(updateRepeat, micros(a.Now), r.ID, *a.Repeat, r.ID, r.Line)
		if err != nil {
			return err
		}
	}
	if a.Repeat != nil || !old.ArmedAt.Equal(stored(r.ArmedAt)) {
		t.counting.recount(r.ID)
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
	AND (status IN ('FAILED', 'REJECTED', 'TIMED_OUT', 'CANCELED') OR class = 'drifted')
	AND device_id NOT IN (SELECT c.device_id FROM candidates c WHERE c.rollout_id = ? AND c.line = ? AND c.standing = 0)
	AND EXISTS (SELECT 1 FROM devices d WHERE d.id = executions.device_id)`

// inOrder returns the executions by attempt, stage and device: what goes in together
// stands together, and keys in ascending order go into an index fastest. Of one that is
// there twice the first counts.
func inOrder(list []ota.Execution) []ota.Execution {
	compare := func(a, b ota.Execution) int {
		return cmp.Or(a.Attempt-b.Attempt, a.Stage-b.Stage, strings.Compare(a.DeviceID, b.DeviceID))
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, compare)
	return slices.CompactFunc(list, func(a, b ota.Execution) bool { return compare(a, b) == 0 })
}

func writeRollout(t *tx, r ota.Rollout, p planText) error {
	_, err := t.exec(`UPDATE rollouts SET selector = ?, seed = ?, stages = ?, abort = ?, priority = ?, state = ?, reason = ?,
		population = ?, armed_at = ?, revision = ?, ended_at = ?, in_progress_timeout = ?,
		terms = ?, max_in_flight = ?, max_per_lane = ?, line = ?, next_turn = ?, paced_at = ?, approved_at = ?, started_at = ?, reverting = ?, follows = ?, idle = ?, opening = ?, taken = taken * ? WHERE id = ?`,
		r.Selector, r.Seed, p.stages, p.abort, r.Priority, r.State, r.Reason,
		r.Population, micros(r.ArmedAt), r.Revision+1, micros(r.EndedAt), r.InProgressTimeout.Microseconds(),
		p.terms, r.Terms.InFlight.Max, r.Terms.InFlight.PerMax, r.Line, r.Cursor, micros(r.PacedAt), micros(r.ApprovedAt), micros(r.StartedAt), flag(r.Reverting), flag(r.Follows), flag(r.Idle), flag(r.Opening()), flag(r.Opening()), r.ID)
	return err
}

func insertExecutions(t *tx, r ota.Rollout, insert []ota.Execution, a fleet.Advance) error {
	for _, e := range insert {
		if err := fleet.ValidInsert(r, e); err != nil {
			return err
		}
	}
	var refused []ota.Execution
	for len(insert) > 0 { // those of one attempt and stage together
		n := slices.IndexFunc(insert, func(e ota.Execution) bool { return e.Attempt != insert[0].Attempt || e.Stage != insert[0].Stage })
		if n < 0 {
			n = len(insert)
		}
		for chunk := range slices.Chunk(insert[:n], insertRows) {
			if chunk[0].Attempt > 1 {
				var err error
				if chunk, err = t.replace(r, chunk); err != nil {
					return err
				}
			}
			if len(chunk) == 0 {
				continue
			}
			if err := insertChunk(t, r, chunk, a); err != nil {
				return err
			}
			refused = append(refused, slices.DeleteFunc(slices.Clone(chunk), func(e ota.Execution) bool { return e.Status != ota.Rejected })...)
		}
		insert = insert[n:]
	}
	if len(a.Insert) == 0 {
		return nil
	}
	if err := t.removeRevoked(r, a.Now); err != nil {
		return err
	}
	for _, e := range refused {
		if err := t.strand(r, e, stored(a.Now)); err != nil {
			return fmt.Errorf("refuse attempt %d on device %s: %w", e.Attempt, e.DeviceID, err)
		}
	}
	return nil
}

// strand ends what was just queued for a device and is not offered to it, unless the
// device is revoked.
func (t *tx) strand(r ota.Rollout, e ota.Execution, now time.Time) error {
	made, err := scanExecution(t.row(selectNewest, r.ID, e.DeviceID))
	if err != nil || made.Status != ota.Queued {
		return err
	}
	refused, err := ota.Refuse(made, e.Reason(), now)
	if err != nil {
		return err
	}
	if r.Follows {
		t.markAnyway(e.DeviceID) // a way may have been opened since the step was decided
	}
	return t.putExecution(made, refused)
}

// updateRevoked finds them from the few devices that are revoked.
const updateRevoked = `UPDATE executions SET status = ?, class = ?, details = ?, version = version + 1, updated_at = ?, finished_at = ?,
	expires_at = NULL, expires_as = '' WHERE status = 'QUEUED' AND latest = 1 AND rollout_id = ?
	AND device_id IN (SELECT id FROM devices WHERE revoked_at IS NOT NULL) RETURNING stage`

// removeRevoked removes what was just queued for devices that were revoked since
// the step was decided. RevokeDevice of another process came before and is seen here,
// or comes after the commit and sees the rows: see Dialect.Reach.
func (t *tx) removeRevoked(r ota.Rollout, now time.Time) error {
	e, _ := ota.Remove(ota.Execution{Status: ota.Queued}, fleet.RevokedReason, now)
	details, err := mapText(e.Details)
	if err != nil {
		return err
	}
	return t.unqueued(r.ID, e, updateRevoked, e.Status, e.Class, details, micros(e.UpdatedAt), micros(e.FinishedAt), r.ID)
}

// unqueued runs a statement that has QUEUED executions of the rollout end as e
// and returns the stage of each, and counts them.
func (t *tx) unqueued(rolloutID string, e ota.Execution, statement string, args ...any) error {
	stages := map[int]int64{}
	err := t.returning(func(r row) error {
		var stage int
		err := r.Scan(&stage)
		stages[stage]++
		return err
	}, statement, args...)
	if err != nil {
		return err
	}
	e.RolloutID = rolloutID
	for stage, n := range stages {
		e.Stage = stage
		if err := t.counted(ota.Execution{RolloutID: rolloutID, Stage: stage, Status: ota.Queued}, -n); err != nil {
			return err
		}
		if err := t.counted(e, n); err != nil {
			return err
		}
		t.tell(ota.MovedTogether(ota.Queued, e, int(n), e.UpdatedAt))
	}
	return nil
}

const selectUnknown = `SELECT v.device FROM {rows} WHERE NOT EXISTS (SELECT 1 FROM devices d WHERE d.id = v.device)`

// insertQueued gives what all rows share once. The WHERE is what SQLite's
// grammar wants before ON CONFLICT.
const insertQueued = `INSERT INTO executions
	(rollout_id, device_id, attempt, latest, stage, status, class, version, queued_at, updated_at, details, expires_at, expires_as, lane, from_digest, via, leg)
	SELECT CAST(? AS TEXT), v.device, v.attempt, 1, v.stage, CAST(? AS TEXT), '', 1, CAST(? AS BIGINT), CAST(? AS BIGINT), '{}',
	CAST(? AS BIGINT), CAST(? AS TEXT), v.lane, v.digest, v.via, v.leg
	FROM {rows} WHERE 1 = 1 ON CONFLICT (rollout_id, device_id, attempt) DO NOTHING`

// insertChunk inserts executions of one stage.
func insertChunk(t *tx, r ota.Rollout, chunk []ota.Execution, a fleet.Advance) error {
	e := ota.Queue(ota.Execution{RolloutID: r.ID, Stage: chunk[0].Stage, Timers: r.Terms.Timers}, a.Now)
	var unknown string
	devices := texts("device", list(chunk, func(e ota.Execution) string { return e.DeviceID }))
	err := t.look(func(r row) error {
		var id string
		if err := r.Scan(&id); err != nil {
			return err
		}
		unknown = id
		return nil
	}, selectUnknown, len(chunk), devices)
	if err != nil {
		return err
	}
	if unknown != "" {
		return notFound("device %s", unknown)
	}
	n, err := t.bulk(t.exec, insertQueued, len(chunk), []any{r.ID, e.Status, micros(e.QueuedAt), micros(e.UpdatedAt), micros(e.Expires), e.ExpiresAs},
		devices, integers("stage", list(chunk, func(e ota.Execution) int64 { return int64(e.Stage) })),
		integers("attempt", list(chunk, func(e ota.Execution) int64 { return int64(e.Attempt) })),
		texts("lane", list(chunk, func(e ota.Execution) string { return e.Lane })),
		texts("digest", list(chunk, func(e ota.Execution) string { return e.From })),
		texts("via", list(chunk, func(e ota.Execution) string { return viaText(e.Via) })),
		integers("leg", list(chunk, func(e ota.Execution) int64 { return int64(max(e.Leg, 1)) })))
	if err != nil {
		return err
	}
	t.tell(ota.MovedTogether("", e, int(n), a.Now))
	return t.counted(e, n)
}

const (
	selectPrevious = `SELECT e.device_id, e.latest, e.stage, e.status, e.class, e.finished_at, e.retry_at, e.drifted_at
	FROM {rows} JOIN executions e ON e.device_id = v.device WHERE e.rollout_id = ? AND e.attempt = ?`
	updatePrevious = `UPDATE executions SET latest = 0, retry_at = NULL FROM {rows}
	WHERE executions.device_id = v.device AND executions.rollout_id = ? AND executions.attempt = ?`
	updateGivenUp = `UPDATE executions SET retry_at = NULL FROM {rows}
	WHERE executions.device_id = v.device AND executions.rollout_id = ? AND executions.attempt = ?`
	selectOver = `SELECT v.device FROM {rows} WHERE EXISTS (SELECT 1 FROM executions e WHERE e.device_id = v.device
	AND e.status NOT IN ('CANCELED', 'REMOVED') AND e.rollout_id IN (SELECT o.id FROM rollouts o WHERE ` + superseding + `))`
)

// replace makes way for further attempts, all with one number; those before them
// must have finished. It returns those that are still wanted: what a newer rollout
// brings to a device is not undone by another attempt of an older one.
func (t *tx) replace(r ota.Rollout, chunk []ota.Execution) (wanted []ota.Execution, err error) {
	devices, attempt := texts("device", list(chunk, func(e ota.Execution) string { return e.DeviceID })), chunk[0].Attempt-1
	finished, made := make(map[string]bool, len(chunk)), map[string]bool{}
	var newest []ota.Execution
	err = t.lookWith(func(row row) error {
		e := ota.Execution{RolloutID: r.ID}
		var latest bool
		err := row.Scan(&e.DeviceID, &latest, &e.Stage, &e.Status, &e.Class, timeInto{&e.FinishedAt}, timeInto{&e.RetryAt}, timeInto{&e.DriftedAt})
		finished[e.DeviceID] = e.Status.Terminal()
		if made[e.DeviceID] = !latest; latest {
			newest = append(newest, e)
		}
		return err
	}, selectPrevious+t.forUpdate("e"), len(chunk), []any{r.ID, attempt}, devices)
	if err != nil {
		return nil, err
	}
	for _, e := range chunk {
		if !finished[e.DeviceID] {
			if err := t.deviceExists(e.DeviceID); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("%w: attempt %d of rollout %s on device %s: the attempt before it is not finished", fleet.ErrInvalid, e.Attempt, r.ID, e.DeviceID)
		}
	}
	over, err := t.superseded(r, len(chunk), devices)
	if err == nil {
		err = t.gone(len(chunk), devices, over)
	}
	if err == nil && r.Terms.Continuous {
		err = t.left(r, len(chunk), devices, over)
	}
	if err != nil {
		return nil, err
	}
	for _, e := range newest {
		if err := t.counted(e, -1); err != nil {
			return nil, err
		}
		if e.RetryAt = (time.Time{}); over[e.DeviceID] {
			if err := t.counted(e, 1); err != nil {
				return nil, err
			}
		}
	}
	wanted = slices.DeleteFunc(slices.Clone(chunk), func(e ota.Execution) bool { return over[e.DeviceID] || made[e.DeviceID] })
	for statement, ids := range map[string][]string{
		updatePrevious: list(wanted, func(e ota.Execution) string { return e.DeviceID }),
		updateGivenUp:  slices.Sorted(maps.Keys(over)),
	} {
		if _, err = t.bulkWith(t.exec, statement, len(ids), []any{r.ID, attempt}, texts("device", ids)); err != nil {
			return nil, err
		}
	}
	return wanted, nil
}

// gone adds to over the devices that were deleted.
func (t *tx) gone(n int, devices Column, over map[string]bool) error {
	return t.look(func(row row) error {
		var id string
		err := row.Scan(&id)
		over[id] = true
		return err
	}, selectUnknown, n, devices)
}

// superseded returns on which of the devices a rollout that supersedes this one has
// work, or had.
func (t *tx) superseded(r ota.Rollout, n int, devices Column) (map[string]bool, error) {
	over := map[string]bool{}
	by, rollouts := superseders(r), 0
	if err := t.row(countSuperseding, by...).Scan(&rollouts); err != nil || rollouts == 0 {
		return over, err
	}
	err := t.lookWith(func(row row) error {
		var id string
		err := row.Scan(&id)
		over[id] = true
		return err
	}, selectOver, n, by, devices)
	return over, err
}
