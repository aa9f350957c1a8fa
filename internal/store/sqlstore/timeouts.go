package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const (
	selectExpiry = `SELECT expires_at FROM executions WHERE expires_at IS NOT NULL ORDER BY expires_at LIMIT 1`
	// selectLastDue is the last of a full batch of those that are due.
	selectLastDue = `SELECT expires_at FROM executions WHERE expires_at <= ? ORDER BY expires_at LIMIT 1 OFFSET ?`
	selectDue     = selectExecution + ` WHERE e.expires_at <= ? AND e.status IN ('QUEUED', 'IN_PROGRESS') ORDER BY e.expires_at, e.rollout_id, e.device_id`
	// selectHeld is what is due, but could not have been started.
	selectHeld = selectExecution + ` WHERE e.expires_at <= ? AND e.status = 'QUEUED' AND NOT ` + mayRun + ` ORDER BY e.expires_at, e.rollout_id, e.device_id`
	updateDue  = `UPDATE executions SET status = CAST(? AS TEXT), class = v.class, version = version + 1, updated_at = CAST(? AS BIGINT), finished_at = CAST(? AS BIGINT),
		expires_at = NULL, expires_as = '', retry_at = v.retry FROM {rows}
		WHERE executions.rollout_id = v.rollout AND executions.device_id = v.device AND executions.attempt = v.attempt`
)

// Expire implements fleet.ExecutionStore. A look that finds nothing due is a
// read of one row of an index.
func (s *Store) Expire(ctx context.Context, now time.Time) (expired []ota.Execution, next time.Time, err error) {
	now = stored(now)
	if next, err = expiry(s.row(ctx, selectExpiry)); err != nil || next.IsZero() || next.After(now) {
		return nil, next, err
	}
	err = s.writer.doAlone(ctx, func(t *tx) error {
		if expired, err = t.expire(now); err != nil {
			return err
		}
		next, err = expiry(t.row(selectExpiry))
		return err
	})
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("end what timed out: %w", err)
	}
	return expired, next, nil
}

// expiry is the moment that a row holds; zero: there is no row.
func expiry(r row) (at time.Time, err error) {
	if err = r.Scan(timeInto{&at}); errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	return at, err
}

// expire does to every row that is due what ota.Expire does to one, up to a
// batch of them and what is due at the same moment as its last.
func (t *tx) expire(now time.Time) ([]ota.Execution, error) {
	due := now
	last, err := expiry(t.row(selectLastDue, micros(now), fleet.MaxExpired-1))
	if err != nil {
		return nil, err
	}
	if !last.IsZero() {
		due = last
	}
	if err := t.hold(due, now); err != nil {
		return nil, err
	}
	var before, expired []ota.Execution
	err = t.rows(func(r row) error {
		e, err := scanExecution(r)
		if err != nil {
			return err
		}
		before = append(before, e)
		e, _ = ota.Expire(e, now)
		expired = append(expired, e)
		return nil
	}, selectDue+t.forUpdate("e"), micros(due))
	if err != nil || len(expired) == 0 {
		return nil, err // another process was faster
	}
	for i, e := range expired {
		if err := t.recounted(before[i], e); err != nil {
			return nil, err
		}
	}
	over := expired[0]
	_, err = t.bulk(t.exec, updateDue, len(expired), []any{over.Status, micros(over.UpdatedAt), micros(over.FinishedAt)},
		texts("rollout", list(expired, func(e ota.Execution) string { return e.RolloutID })),
		texts("device", list(expired, func(e ota.Execution) string { return e.DeviceID })),
		integers("attempt", list(expired, func(e ota.Execution) int64 { return int64(e.Attempt) })),
		texts("class", list(expired, func(e ota.Execution) string { return string(e.Class) })),
		times("retry", list(expired, func(e ota.Execution) time.Time { return e.RetryAt })))
	return expired, err
}

// hold starts the claim timers of what is held back anew.
func (t *tx) hold(due, now time.Time) error {
	var held []ota.Execution
	err := t.rows(func(r row) error {
		e, err := scanExecution(r)
		held = append(held, ota.Claimable(e, now))
		return err
	}, selectHeld+t.forUpdate("e"), micros(due))
	if err != nil {
		return err
	}
	for _, e := range held {
		if err := t.putExecution(e, e); err != nil {
			return err
		}
	}
	return nil
}
