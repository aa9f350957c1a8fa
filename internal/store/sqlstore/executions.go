package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const selectExecution = `SELECT e.rollout_id, e.device_id, r.release_name, r.release_version, e.stage, e.attempt, e.status, e.class,
	e.version, e.queued_at, e.started_at, e.step_at, e.updated_at, e.finished_at, e.details, e.lane, e.from_digest,
	r.command, r.in_progress_timeout, r.state, r.terms, e.expires_at, e.expires_as, e.retry_at,
	e.drifted_at, e.runs, e.via, e.leg
	FROM executions e JOIN rollouts r ON r.id = e.rollout_id`

func scanExecution(r row) (ota.Execution, error) {
	var e ota.Execution
	var of ota.Rollout
	err := r.Scan(&e.RolloutID, &e.DeviceID, textInto{&of.Release.Name}, textInto{&of.Release.Version}, &e.Stage, &e.Attempt, &e.Status, &e.Class,
		&e.Version, timeInto{&e.QueuedAt}, timeInto{&e.StartedAt}, timeInto{&e.StepAt}, timeInto{&e.UpdatedAt}, timeInto{&e.FinishedAt},
		mapInto{&e.Details}, &e.Lane, &e.From, commandInto{&of.Command}, durationInto{&of.InProgressTimeout}, &of.State, termsInto{&of.Terms}, timeInto{&e.Expires}, &e.ExpiresAs, timeInto{&e.RetryAt},
		timeInto{&e.DriftedAt}, &e.Runs, viaInto{&e.Via}, &e.Leg)
	return e.Under(of), err
}

// termsInto scans terms; most rollouts have none.
type termsInto struct{ t *ota.Terms }

func (s termsInto) Scan(v any) error {
	if v == emptyMap {
		return nil
	}
	return jsonInto{s.t}.Scan(v)
}

const (
	// mayRun is so for an execution that its rollout does not hold back.
	mayRun = `(r.state = 'RUNNING'
	AND (r.max_in_flight = 0 OR r.max_in_flight > (SELECT COUNT(*) FROM executions x WHERE x.rollout_id = r.id AND x.status = 'IN_PROGRESS'))
	AND (r.max_per_lane = 0 OR r.max_per_lane > (SELECT COUNT(*) FROM executions x WHERE x.rollout_id = r.id AND x.status = 'IN_PROGRESS' AND x.lane = e.lane)))`
	selectPending = selectExecution + ` WHERE e.device_id = ? AND e.status IN ('QUEUED', 'IN_PROGRESS')
	AND (e.status = 'IN_PROGRESS' OR ` + mayRun + `)
	ORDER BY CASE WHEN e.status = 'IN_PROGRESS' THEN 0 WHEN r.command <> '' THEN 1 ELSE 2 END, r.priority DESC, e.queued_at, e.rollout_id LIMIT `
	selectNext = selectPending + `1`
)

// NextExecution implements fleet.ExecutionStore.
func (s *Store) NextExecution(ctx context.Context, deviceID string) (ota.Execution, error) {
	e, err := scanExecution(s.row(ctx, selectNext, deviceID))
	if errors.Is(err, sql.ErrNoRows) {
		return ota.Execution{}, notFound("next execution of device %s", deviceID)
	}
	return e, err
}

// Pending implements fleet.ExecutionStore. The limit stands in the text, since SQLite
// plans a query with one that is bound anew every time; callers use few.
func (s *Store) Pending(ctx context.Context, deviceID string, limit int) ([]ota.Execution, error) {
	var list []ota.Execution
	err := s.rows(ctx, func(r row) error {
		e, err := scanExecution(r)
		list = append(list, e)
		return err
	}, selectPending+strconv.Itoa(limit), deviceID)
	if err != nil {
		return nil, fmt.Errorf("read pending executions: %w", err)
	}
	return list, nil
}

const selectBusyDevices = `SELECT DISTINCT device_id FROM executions WHERE status IN ('QUEUED', 'IN_PROGRESS') AND device_id > ? ORDER BY device_id LIMIT ?`

// Busy implements fleet.ExecutionStore.
func (s *Store) Busy(ctx context.Context, after string, limit int) (ids []string, err error) {
	err = s.rows(ctx, func(r row) error {
		var id string
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	}, selectBusyDevices, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read busy devices: %w", err)
	}
	return ids, nil
}

// StartNext implements fleet.ExecutionStore. Only a QUEUED execution costs a
// write: a poll that finds nothing, or what runs already, is a read.
func (s *Store) StartNext(ctx context.Context, deviceID string, start ota.Starting, now time.Time) (ota.Execution, error) {
	e, err := s.NextExecution(ctx, deviceID)
	if err != nil || e.Status == ota.InProgress {
		return e, err
	}
	err = s.writer.do(ctx, func(t *tx) error {
		if e, err = t.lockNext(deviceID); err != nil {
			return err
		}
		started, err := ota.Start(e, start, stored(now))
		if err != nil || started.Version == e.Version {
			return err
		}
		before := e
		e = started
		return t.putExecution(t.only, before, e)
	})
	if err != nil {
		return ota.Execution{}, err
	}
	return own(e), nil
}

// lockNext is NextExecution with the device held, so that two can not start two
// executions on it. The execution that stood first when it was read may have
// been cancelled before it was locked: then there is no row, and another one may
// stand first now.
func (t *tx) lockNext(deviceID string) (ota.Execution, error) {
	if err := t.lockDevice(deviceID); err != nil {
		return ota.Execution{}, err
	}
	for {
		seen, err := scanExecution(t.row(selectNext, deviceID))
		if errors.Is(err, sql.ErrNoRows) {
			return ota.Execution{}, notFound("next execution of device %s", deviceID)
		}
		if err == nil && seen.Status == ota.Queued {
			err = t.lockLimited(seen.RolloutID)
		}
		if err != nil {
			return ota.Execution{}, err
		}
		e, err := scanExecution(t.row(selectNext+t.forUpdate("e"), deviceID))
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return ota.Execution{}, err
		}
		if err == nil && (e.RolloutID == seen.RolloutID || e.Status != ota.Queued) {
			return e, nil
		}
	}
}

// lockLimited holds a rollout with a bound of what is in flight, so that two can
// not both take the last place.
func (t *tx) lockLimited(rolloutID string) error {
	if t.w.dialect.ForShare == "" {
		return nil // there are no others
	}
	var one int
	err := t.row(`SELECT 1 FROM rollouts WHERE id = ? AND (max_in_flight > 0 OR max_per_lane > 0)`+t.forUpdate("rollouts"), rolloutID).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

func (t *tx) lockDevice(id string) error {
	var one int
	err := t.row(`SELECT 1 FROM devices WHERE id = ?`+t.forUpdate("devices"), id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return notFound("device %s", id)
	}
	return err
}

// selectNewest says in its order too which one that is: it makes every database
// read the primary key, whatever it believes of the size of the table.
const selectNewest = selectExecution + ` WHERE e.rollout_id = ? AND e.device_id = ? AND e.latest = 1 ORDER BY e.attempt DESC LIMIT 1`

// Report implements fleet.ExecutionStore.
func (s *Store) Report(ctx context.Context, r ota.Report, now time.Time) (ota.Execution, error) {
	var e ota.Execution
	err := s.writer.do(ctx, func(t *tx) (err error) {
		e, err = t.report(r, stored(now))
		return err
	})
	if err != nil && !answersState(err) {
		return ota.Execution{}, err
	}
	return own(e), err
}

// answersState reports whether the error comes with the execution as it stands.
func answersState(err error) bool {
	return errors.Is(err, ota.ErrTerminal) || errors.Is(err, ota.ErrVersionMismatch) ||
		errors.Is(err, ota.ErrTransition) || errors.Is(err, ota.ErrInvalid)
}

func (t *tx) report(r ota.Report, now time.Time) (ota.Execution, error) {
	// Whoever starts an execution holds the device first, here as in lockNext.
	if r.Status == ota.InProgress {
		if err := t.lockDevice(r.DeviceID); err != nil {
			return ota.Execution{}, noExecution(err, r.RolloutID, r.DeviceID)
		}
	}
	e, err := scanExecution(t.row(selectNewest+t.forUpdate("e"), r.RolloutID, r.DeviceID))
	if err != nil {
		return ota.Execution{}, noExecution(err, r.RolloutID, r.DeviceID)
	}
	next, err := ota.Apply(e, r, now)
	if err != nil {
		return e, err
	}
	if e.Status == ota.Queued && next.Status == ota.InProgress {
		if err := t.mayStart(e); err != nil {
			return e, err
		}
	}
	return next, t.putExecution(t.only, e, next)
}

// noExecution says what is not there.
func noExecution(err error, rolloutID, deviceID string) error {
	if errors.Is(err, sql.ErrNoRows) || errors.Is(err, fleet.ErrNotFound) {
		return notFound("execution of rollout %s on device %s", rolloutID, deviceID)
	}
	return err
}

const selectMayRun = `SELECT r.state, ` + mayRun + ` FROM executions e JOIN rollouts r ON r.id = e.rollout_id
	WHERE e.rollout_id = ? AND e.device_id = ? AND e.latest = 1 ORDER BY e.attempt DESC LIMIT 1`

const selectBusy = `SELECT rollout_id FROM executions WHERE device_id = ? AND status = 'IN_PROGRESS'`

// mayStart reports why a QUEUED execution must wait.
func (t *tx) mayStart(e ota.Execution) error {
	if err := t.lockDevice(e.DeviceID); err != nil {
		return err
	}
	if err := t.lockLimited(e.RolloutID); err != nil {
		return err
	}
	var state ota.RolloutState
	var may bool
	if err := t.row(selectMayRun, e.RolloutID, e.DeviceID).Scan(&state, &may); err != nil {
		return err
	}
	if state != ota.RolloutRunning {
		return fmt.Errorf("%w: rollout %s is %s", ota.ErrTransition, e.RolloutID, state)
	}
	if !may {
		return fmt.Errorf("%w: rollout %s has as many devices in flight as it may", ota.ErrTransition, e.RolloutID)
	}
	var other string
	err := t.row(selectBusy, e.DeviceID).Scan(&other)
	if err == nil {
		return fmt.Errorf("%w: device %s works on rollout %s", ota.ErrTransition, e.DeviceID, other)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// putExecution writes an execution that stood as before. run is t.exec, or t.only.
func (t *tx) putExecution(run func(string, ...any) (int64, error), before, e ota.Execution) error {
	details, err := mapText(e.Details)
	if err != nil {
		return err
	}
	_, err = run(`UPDATE executions SET status = ?, class = ?, version = ?, started_at = ?, step_at = ?, updated_at = ?, finished_at = ?,
		details = ?, step = ?, expires_at = ?, expires_as = ?, retry_at = ?, drifted_at = ?, runs = ?, via = ?
		WHERE rollout_id = ? AND device_id = ? AND attempt = ?`,
		e.Status, e.Class, e.Version, micros(e.StartedAt), micros(e.StepAt), micros(e.UpdatedAt), micros(e.FinishedAt),
		details, e.Step(), micros(e.Expires), e.ExpiresAs, micros(e.RetryAt), micros(e.DriftedAt), e.Runs, viaText(e.Via),
		e.RolloutID, e.DeviceID, e.Attempt)
	if err != nil {
		return err
	}
	return t.recounted(before, e)
}

// own is an execution as it reads back: without the caller's map.
func own(e ota.Execution) ota.Execution {
	if len(e.Details) == 0 {
		e.Details = nil
		return e
	}
	details := make(map[string]string, len(e.Details))
	for k, v := range e.Details {
		details[k] = v
	}
	e.Details = details
	return e
}

// Execution implements fleet.ExecutionStore.
func (s *Store) Execution(ctx context.Context, rolloutID, deviceID string) (ota.Execution, error) {
	e, err := scanExecution(s.row(ctx, selectNewest, rolloutID, deviceID))
	if err != nil {
		return ota.Execution{}, noExecution(err, rolloutID, deviceID)
	}
	return e, nil
}

// Executions implements fleet.ExecutionStore.
func (s *Store) Executions(ctx context.Context, filter fleet.ExecutionFilter, f func(ota.Execution) bool) error {
	query, args := selectFiltered(filter)
	last := filter.After
	page := make([]ota.Execution, 0, pageRows)
	for {
		page = page[:0]
		err := s.rows(ctx, func(r row) error {
			e, err := scanExecution(r)
			page = append(page, e)
			return err
		}, query, append(args[:len(args):len(args)], last.RolloutID, last.DeviceID, last.Attempt, pageRows)...)
		if err != nil {
			return fmt.Errorf("read executions: %w", err)
		}
		for _, e := range page {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !f(e) {
				return nil
			}
		}
		if len(page) < pageRows {
			return nil
		}
		last = fleet.KeyOf(page[len(page)-1])
	}
}

// selectFiltered returns the query for one page, whose last arguments are the
// rollout, device and attempt it comes after and its size.
func selectFiltered(f fleet.ExecutionFilter) (query string, args []any) {
	query = selectExecution + ` WHERE 1 = 1`
	if f.RolloutID != "" {
		query, args = query+` AND e.rollout_id = ?`, append(args, f.RolloutID)
	}
	if f.DeviceID != "" {
		query, args = query+` AND e.device_id = ?`, append(args, f.DeviceID)
	}
	if f.Stage != nil {
		query, args = query+` AND e.stage = ?`, append(args, *f.Stage)
	}
	if f.Active {
		query += ` AND e.status IN ('QUEUED', 'IN_PROGRESS') AND e.latest = 1`
	}
	if f.Latest {
		query += ` AND e.latest = 1`
	}
	if !f.RetryDue.IsZero() {
		query, args = query+` AND e.retry_at <= ?`, append(args, f.RetryDue.UnixMicro())
	}
	return query + ` AND (e.rollout_id, e.device_id, e.attempt) > (?, ?, ?)
		ORDER BY e.rollout_id, e.device_id, e.attempt LIMIT ?`, args
}

const selectFailures = selectExecution + ` WHERE e.rollout_id = ? AND e.class NOT IN ('', 'succeeded', 'underway')
	ORDER BY e.finished_at DESC, e.device_id, e.attempt LIMIT ?`

// Failures implements fleet.ExecutionStore.
func (s *Store) Failures(ctx context.Context, rolloutID string, limit int) ([]ota.Execution, error) {
	var list []ota.Execution
	err := s.rows(ctx, func(r row) error {
		e, err := scanExecution(r)
		list = append(list, e)
		return err
	}, selectFailures, rolloutID, limit)
	if err != nil {
		return nil, fmt.Errorf("read failures: %w", err)
	}
	return list, nil
}
