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
	selectDue     = selectExecution + ` WHERE e.expires_at <= ? AND e.status = 'IN_PROGRESS' ORDER BY e.expires_at, e.rollout_id, e.device_id`
	updateDue     = `UPDATE executions SET status = ?, class = ?, version = version + 1, updated_at = ?, finished_at = ?, expires_at = NULL
		WHERE expires_at <= ? AND status = 'IN_PROGRESS'`
)

// Expire implements fleet.ExecutionStore. A look that finds nothing due is a
// read of one row of an index.
func (s *Store) Expire(ctx context.Context, now time.Time) (expired []ota.Execution, next time.Time, err error) {
	now = stored(now)
	if next, err = expiry(s.row(ctx, selectExpiry)); err != nil || next.IsZero() || next.After(now) {
		return nil, next, err
	}
	err = s.writer.do(ctx, func(t *tx) error {
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
	var expired []ota.Execution
	err = t.rows(func(r row) error {
		e, err := scanExecution(r)
		if err != nil {
			return err
		}
		e, _ = ota.Expire(e, now)
		expired = append(expired, e)
		return nil
	}, selectDue+t.forUpdate("e"), micros(due))
	if err != nil || len(expired) == 0 {
		return nil, err // another process was faster
	}
	over := expired[0]
	_, err = t.exec(updateDue, over.Status, over.Class, micros(over.UpdatedAt), micros(over.FinishedAt), micros(due))
	return expired, err
}
