package sqlstore

import (
	"context"
	"fmt"
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
