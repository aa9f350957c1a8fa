package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// StartNext implements fleet.ExecutionStore. Only a QUEUED execution costs a
// write: a poll that finds nothing, or what runs already, is a read.
func (s *Store) StartNext(ctx context.Context, deviceID string, start ota.Starting, now time.Time) (ota.Execution, error) {
	e, err := s.NextExecution(ctx, deviceID)
	if err != nil || e.Status == ota.InProgress {
		return e, err
	}
	err = s.writer.doReading(ctx, reading{execution: executionKey{device: deviceID}, begins: true}, func(t *tx) error {
		c, err := t.nextExecution(deviceID)
		if err != nil {
			return err
		}
		e = c.Execution
		started, err := ota.Start(e, start, stored(now))
		if err != nil || started.Version == e.Version {
			return err
		}
		e = started
		return t.changeExecution(c, e)
	})
	if err != nil {
		return ota.Execution{}, err
	}
	return own(e), nil
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
	var refused error
	key := executionKey{r.RolloutID, r.DeviceID}
	err := s.writer.doReading(ctx, reading{execution: key, begins: r.Status == ota.InProgress}, func(t *tx) (err error) {
		e, refused, err = t.report(r, stored(now))
		return err
	})
	err = cmp.Or(err, refused)
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

// report applies a report; refused says why it was not taken, beside what was kept of it.
func (t *tx) report(r ota.Report, now time.Time) (e ota.Execution, refused, err error) {
	c, err := t.newestExecution(executionKey{r.RolloutID, r.DeviceID}, r.Status == ota.InProgress)
	if err != nil {
		return ota.Execution{}, nil, noExecution(err, r.RolloutID, r.DeviceID)
	}
	next, refused := ota.Apply(c.Execution, r, now)
	if refused != nil {
		err := t.takeLate(c, r, refused, now)
		return c.Execution, refused, err
	}
	if c.Status == ota.Queued && next.Status == ota.InProgress {
		if err := t.mayStart(c.Execution); err != nil {
			return c.Execution, nil, err
		}
	}
	return next, nil, t.changeExecution(c, next)
}

const (
	selectAttempt  = selectExecution + ` WHERE e.rollout_id = ? AND e.device_id = ? AND e.attempt = ?`
	updateWentBack = `UPDATE executions SET went_back_at = ? WHERE rollout_id = ? AND device_id = ? AND attempt = ? AND went_back_at IS NULL`
)

// takeLate keeps what a report says that was refused for the newest attempt. What it is about
// has ended and stays so, so that an attempt before the newest is only read: whoever holds
// several holds them in ascending order.
func (t *tx) takeLate(c *cachedExecution, r ota.Report, refused error, now time.Time) error {
	attempt, ok := ota.LateFor(c.Execution, r, refused)
	if !ok {
		return nil
	}
	e := c.Execution
	if attempt != e.Attempt {
		var err error
		if e, err = scanExecution(t.row(selectAttempt, r.RolloutID, r.DeviceID, attempt)); err != nil {
			return err
		}
	}
	late, ok := ota.Late(e, r, now)
	if !ok {
		return nil
	}
	_, err := t.exec(updateWentBack, micros(late.WentBackAt), r.RolloutID, r.DeviceID, attempt)
	if err == nil && attempt == c.Attempt {
		c.WentBackAt = late.WentBackAt
	}
	return err
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
	t.writeExecutions()
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

// putExecution writes an execution that stood as before.
func (t *tx) putExecution(before, e ota.Execution) error {
	details, err := mapText(e.Details)
	if err != nil {
		return err
	}
	if _, err := t.exec(updateExecution, executionValues(e, details)...); err != nil {
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
