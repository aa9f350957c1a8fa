package sqlstore

import (
	"context"
	"fmt"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// selectUnfinished goes along the primary key: an execution that is not finished is
// the newest of its device, so a page ends between two devices.
const selectUnfinished = `SELECT device_id FROM executions WHERE rollout_id = ? AND device_id > ? AND latest = 1
	AND status IN ('QUEUED', 'IN_PROGRESS') ORDER BY device_id LIMIT ?`

// Unfinished implements fleet.ExecutionStore.
func (s *Store) Unfinished(ctx context.Context, rolloutID string, f func(deviceID string) bool) error {
	after := ""
	for size := firstRows; ; size = min(2*size, surveyRows) {
		page := make([]string, 0, size)
		err := s.rows(ctx, func(r row) error {
			var id string
			err := r.Scan(&id)
			page = append(page, id)
			return err
		}, selectUnfinished, rolloutID, after, size)
		if err != nil {
			return fmt.Errorf("read what is unfinished in rollout %s: %w", rolloutID, err)
		}
		for _, id := range page {
			if !f(id) {
				return nil
			}
		}
		if len(page) < size {
			return nil
		}
		after = page[len(page)-1]
	}
}

// selectWentBack says the condition of its index in the words of that. The order is one that
// the primary key does not have: SQLite would rather go along that, through all of a rollout.
const selectWentBack = selectExecution + ` WHERE e.rollout_id = ? AND (e.class = 'rolled_back' OR e.went_back_at IS NOT NULL)
	AND (e.attempt, e.device_id) > (?, ?) ORDER BY e.attempt, e.device_id LIMIT ?`

// WentBack implements fleet.ExecutionStore.
func (s *Store) WentBack(ctx context.Context, rolloutID string, f func(ota.Execution) bool) error {
	var last fleet.ExecutionKey
	for size := firstRows; ; size = min(2*size, surveyRows) {
		page := make([]ota.Execution, 0, size)
		err := s.rows(ctx, func(r row) error {
			e, err := scanExecution(r)
			page = append(page, e)
			return err
		}, selectWentBack, rolloutID, last.Attempt, last.DeviceID, size)
		if err != nil {
			return fmt.Errorf("read what went back in rollout %s: %w", rolloutID, err)
		}
		for _, e := range page {
			if !f(e) {
				return nil
			}
		}
		if len(page) < size {
			return nil
		}
		last = fleet.KeyOf(page[len(page)-1])
	}
}
