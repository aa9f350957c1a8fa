package sqlstore

import (
	"context"
	"fmt"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// The statements look at the status of the row itself too: another process may
// have moved it since the index was read.
const (
	updateCancelled = `UPDATE executions SET status = ?, class = ?, details = ?, step = '', version = version + 1, updated_at = ?, finished_at = ?,
	expires_at = NULL, expires_as = '' WHERE `
	returnCancelled = ` RETURNING device_id, stage, queued_at, started_at`
	cancelBegun     = updateCancelled + `status = 'IN_PROGRESS' AND step IN ('waiting', 'fetching', 'staged') AND (rollout_id, device_id, attempt) IN
	(SELECT p.rollout_id, p.device_id, p.attempt FROM executions p
	JOIN executions q ON q.rollout_id = p.rollout_id AND q.device_id = p.device_id AND q.attempt = p.attempt
	WHERE p.rollout_id = ? AND p.status = 'IN_PROGRESS' AND p.latest = 1 AND q.step IN ('waiting', 'fetching', 'staged') LIMIT ?)` + returnCancelled
	cancelQueued = updateCancelled + `status = 'QUEUED' AND (rollout_id, device_id, attempt) IN
	(SELECT rollout_id, device_id, attempt FROM executions WHERE rollout_id = ? AND status = 'QUEUED' AND latest = 1 LIMIT ?)` + returnCancelled
)

// Cancel implements fleet.RolloutStore.
func (s *Store) Cancel(ctx context.Context, r ota.Rollout, now time.Time, limit int) (cancelled []ota.Execution, err error) {
	e, _ := ota.Cancel(ota.Execution{RolloutID: r.ID, Status: ota.Queued}, r.Reason, stored(now))
	details, err := mapText(e.Details)
	if err != nil {
		return nil, err
	}
	err = s.writer.do(ctx, func(t *tx) error {
		cancelled = nil
		for _, of := range []struct {
			status    ota.Status
			statement string
		}{{ota.InProgress, cancelBegun}, {ota.Queued, cancelQueued}} {
			left := limit - len(cancelled)
			if left == 0 {
				break
			}
			if r.State == ota.RolloutFinishing && of.status == ota.InProgress {
				continue
			}
			some, err := t.cancel(of.statement, e, details, left)
			if err != nil {
				return err
			}
			for _, c := range some {
				if err := t.counted(ota.Execution{RolloutID: r.ID, Stage: c.Stage, Status: of.status}, -1); err != nil {
					return err
				}
				if err := t.counted(c, 1); err != nil {
					return err
				}
				c.Class, c.Details = e.Class, e.Details
				t.tell(ota.MovedTogether(of.status, c, 1, now))
			}
			cancelled = append(cancelled, some...)
		}
		return t.letGo(r, cancelled)
	})
	if err != nil {
		return nil, fmt.Errorf("cancel executions of rollout %s: %w", r.ID, err)
	}
	return cancelled, nil
}

// cancel has those that a statement finds end as e.
func (t *tx) cancel(statement string, e ota.Execution, details string, limit int) (list []ota.Execution, err error) {
	err = t.returning(func(r row) error {
		c := ota.Execution{RolloutID: e.RolloutID, Status: e.Status, FinishedAt: e.FinishedAt}
		err := r.Scan(&c.DeviceID, &c.Stage, timeInto{&c.QueuedAt}, timeInto{&c.StartedAt})
		list = append(list, c)
		return err
	}, statement, e.Status, e.Class, details, micros(e.UpdatedAt), micros(e.FinishedAt), e.RolloutID, limit)
	return list, err
}
