package sqlstore

import (
	"context"
	"fmt"
	"strconv"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const selectExecution = `SELECT e.rollout_id, e.device_id, r.release_name, r.release_version, e.stage, e.attempt, e.status, e.class,
	e.version, e.queued_at, e.started_at, e.step_at, e.updated_at, e.finished_at, e.details, e.lane, e.from_digest,
	r.command, r.in_progress_timeout, r.state, r.terms, e.expires_at, e.expires_as, e.retry_at,
	e.drifted_at, e.runs, e.via, e.leg, e.went_back_at
	FROM executions e JOIN rollouts r ON r.id = e.rollout_id`

func scanExecution(r row) (ota.Execution, error) {
	var e ota.Execution
	var of ota.Rollout
	err := r.Scan(&e.RolloutID, &e.DeviceID, textInto{&of.Release.Name}, textInto{&of.Release.Version}, &e.Stage, &e.Attempt, &e.Status, &e.Class,
		&e.Version, timeInto{&e.QueuedAt}, timeInto{&e.StartedAt}, timeInto{&e.StepAt}, timeInto{&e.UpdatedAt}, timeInto{&e.FinishedAt},
		mapInto{&e.Details}, &e.Lane, &e.From, commandInto{&of.Command}, durationInto{&of.InProgressTimeout}, &of.State, termsInto{&of}, timeInto{&e.Expires}, &e.ExpiresAs, timeInto{&e.RetryAt},
		timeInto{&e.DriftedAt}, &e.Runs, viaInto{&e.Via}, &e.Leg, timeInto{&e.WentBackAt})
	return e.Under(of), err
}

// termsText is what is kept as the terms of a rollout: beside them what goes with its plan
// and its executions, and is looked for by nobody.
type termsText struct {
	ota.Terms
	Pause ota.PausePolicy `json:"pause,omitempty"`
	Edits int             `json:"edits,omitempty"`
}

// termsInto scans it; most rollouts have none.
type termsInto struct{ r *ota.Rollout }

func (s termsInto) Scan(v any) error {
	if v == emptyMap {
		return nil
	}
	var t termsText
	err := jsonInto{&t}.Scan(v)
	s.r.Terms, s.r.Pause, s.r.Edits = t.Terms, t.Pause, t.Edits
	return err
}

const (
	// mayRun is so for an execution that its rollout does not hold back.
	mayRun = `(r.state = 'RUNNING'
	AND (r.max_in_flight = 0 OR r.max_in_flight > (SELECT COUNT(*) FROM executions x WHERE x.rollout_id = r.id AND x.status = 'IN_PROGRESS'))
	AND (r.max_per_lane = 0 OR r.max_per_lane > (SELECT COUNT(*) FROM executions x WHERE x.rollout_id = r.id AND x.status = 'IN_PROGRESS' AND x.lane = e.lane)))`
	pending = ` AND e.status IN ('QUEUED', 'IN_PROGRESS')
	AND (e.status = 'IN_PROGRESS' OR ` + mayRun + `)
	ORDER BY CASE WHEN e.status = 'IN_PROGRESS' THEN 0 WHEN r.command <> '' THEN 1 ELSE 2 END, r.priority DESC, e.queued_at, e.rollout_id LIMIT `
	selectPending = selectExecution + ` WHERE e.device_id = ?` + pending
	selectNext    = selectPending + `1`
	// lookupPending is selectPending for each of many devices, with pendingEnd
	// behind its limit.
	lookupPending = `SELECT p.* FROM {rows} CROSS JOIN LATERAL (` + selectExecution + ` WHERE e.device_id = v.device` + pending
	pendingEnd    = `) AS p`
)

// NextExecution implements fleet.ExecutionStore.
func (s *Store) NextExecution(ctx context.Context, deviceID string) (ota.Execution, error) {
	list, err := s.pending(ctx, deviceID, 1)
	if err != nil {
		return ota.Execution{}, err
	}
	if len(list) == 0 {
		return ota.Execution{}, notFound("next execution of device %s", deviceID)
	}
	return list[0], nil
}

// Pending implements fleet.ExecutionStore.
func (s *Store) Pending(ctx context.Context, deviceID string, limit int) ([]ota.Execution, error) {
	list, err := s.pending(ctx, deviceID, limit)
	if err != nil {
		return nil, fmt.Errorf("read pending executions: %w", err)
	}
	return list, nil
}

// pending reads what a device may work on, together with what others ask for. What can
// not be read together is read by itself. The limit stands in the text, since SQLite
// plans a query with one that is bound anew every time; callers use few.
func (s *Store) pending(ctx context.Context, deviceID string, limit int) (found []ota.Execution, err error) {
	if s.executions != nil {
		shared, err := s.executions.get(ctx, pendingKey{deviceID, limit})
		if err == nil || ctx.Err() != nil {
			for _, e := range shared {
				found = append(found, own(e))
			}
			return found, err
		}
	}
	err = s.rows(ctx, func(r row) error {
		e, err := scanExecution(r)
		found = append(found, e)
		return err
	}, selectPending+strconv.Itoa(limit), deviceID)
	return found, err
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

// selectAtWork is read where few are, and finds these first: SQLite would go through
// all of the rollout.
const selectAtWork = selectExecution + ` WHERE e.rollout_id = ? AND e.latest = 1 AND e.device_id IN
	(SELECT o.device_id FROM executions o WHERE o.rollout_id = ? AND o.status = 'IN_PROGRESS' AND o.latest = 1)
	ORDER BY e.step_at, e.device_id LIMIT ?`

// AtWork implements fleet.ExecutionStore.
func (s *Store) AtWork(ctx context.Context, rolloutID string, limit int) ([]ota.Execution, error) {
	return s.listed(ctx, selectAtWork, rolloutID, rolloutID, limit)
}

const selectFailures = selectExecution + ` WHERE e.rollout_id = ? AND e.class NOT IN ('', 'succeeded', 'underway')
	ORDER BY e.finished_at DESC, e.device_id, e.attempt LIMIT ?`

// Failures implements fleet.ExecutionStore.
func (s *Store) Failures(ctx context.Context, rolloutID string, limit int) ([]ota.Execution, error) {
	return s.listed(ctx, selectFailures, rolloutID, limit)
}

// listed returns the few executions that a query finds.
func (s *Store) listed(ctx context.Context, query string, args ...any) (list []ota.Execution, err error) {
	err = s.rows(ctx, func(r row) error {
		e, err := scanExecution(r)
		list = append(list, e)
		return err
	}, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read executions: %w", err)
	}
	return list, nil
}
