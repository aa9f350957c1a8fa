package sqlstore

import (
	"context"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
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
	// selectQueued says by its order that it wants executions_progress: as the batches
	// go on, the table is full of what has been cancelled.
	selectQueued = ` FROM executions WHERE rollout_id = ? AND status = 'QUEUED' AND latest = 1 ORDER BY stage, class, finished_at LIMIT ?`
)

// Cancel implements fleet.RolloutStore.
func (s *Store) Cancel(ctx context.Context, r ota.Rollout, now time.Time, limit int) (done fleet.Cancelled, err error) {
	e, _ := ota.Cancel(ota.Execution{RolloutID: r.ID, Status: ota.Queued}, r.Reason, stored(now))
	details, err := mapText(e.Details)
	if err != nil {
		return fleet.Cancelled{}, err
	}
	err = s.writer.doAlone(ctx, func(t *tx) error {
		done = fleet.Cancelled{}
		older, err := t.waitsOlder(r)
		if err != nil {
			return err
		}
		c := cancelling{t: t, as: e, details: details, older: older}
		if r.State != ota.RolloutFinishing {
			if done.Begun, err = c.begun(limit); err != nil {
				return err
			}
		}
		if left := limit - len(done.Begun); left > 0 {
			done.Queued, err = c.queued(left)
		}
		return err
	})
	if err != nil {
		return fleet.Cancelled{}, fmt.Errorf("cancel executions of rollout %s: %w", r.ID, err)
	}
	return done, nil
}

// cancelling has executions of a rollout end as one does. older: an older rollout may
// have passed their devices by, or made way, and they are looked at again.
type cancelling struct {
	t       *tx
	as      ota.Execution
	details string
	older   bool
}

// begun cancels those at work, and returns them: there are not many.
func (c cancelling) begun(limit int) (list []ota.Execution, err error) {
	stages := map[int]int{}
	err = c.run(cancelBegun, limit, func(r row) (string, error) {
		e := ota.Execution{RolloutID: c.as.RolloutID, Status: c.as.Status, FinishedAt: c.as.FinishedAt}
		err := r.Scan(&e.DeviceID, &e.Stage, timeInto{&e.QueuedAt}, timeInto{&e.StartedAt})
		list = append(list, e)
		stages[e.Stage]++
		return e.DeviceID, err
	})
	if err == nil {
		err = c.moved(ota.InProgress, stages)
	}
	return list, err
}

// queued cancels those that wait, and returns how many: of a million, nobody keeps a
// list.
func (c cancelling) queued(limit int) (n int, err error) {
	stages := map[int]int{}
	statement := updateCancelled + `status = 'QUEUED' AND ` + c.t.w.dialect.Found(selectQueued) + ` RETURNING device_id, stage`
	err = c.run(statement, limit, func(r row) (device string, err error) {
		var stage int
		err = r.Scan(&device, &stage)
		stages[stage]++
		n++
		return device, err
	})
	if err == nil {
		err = c.moved(ota.Queued, stages)
	}
	return n, err
}

// run calls f for each that a statement cancels; f says whose it was.
func (c cancelling) run(statement string, limit int, f func(row) (device string, err error)) error {
	e := c.as
	return c.t.returning(func(r row) error {
		device, err := f(r)
		if c.older {
			c.t.markAnyway(device)
		}
		return err
	}, statement, e.Status, e.Class, c.details, micros(e.UpdatedAt), micros(e.FinishedAt), e.RolloutID, limit)
}

// moved counts what was cancelled, by stage, and tells of it.
func (c cancelling) moved(from ota.Status, stages map[int]int) error {
	for stage, n := range stages {
		c.as.Stage = stage
		if err := c.t.counted(ota.Execution{RolloutID: c.as.RolloutID, Stage: stage, Status: from}, int64(-n)); err != nil {
			return err
		}
		if err := c.t.counted(c.as, int64(n)); err != nil {
			return err
		}
		c.t.tell(ota.MovedTogether(from, c.as, n, c.as.FinishedAt))
	}
	return nil
}
