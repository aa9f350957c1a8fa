package fleet

import (
	"context"

	"github.com/otad/otad/pkg/ota"
)

// NextExecution returns what the device shall work on; ErrNotFound: nothing.
func (s *Service) NextExecution(ctx context.Context, deviceID string) (ota.Execution, error) {
	return s.Store.NextExecution(ctx, deviceID)
}

// StartNext is NextExecution, and a QUEUED one becomes IN_PROGRESS.
func (s *Service) StartNext(ctx context.Context, deviceID string, details map[string]string) (ota.Execution, error) {
	e, err := s.Store.StartNext(ctx, deviceID, details, s.Now())
	if err == nil {
		s.signals.raise("rollout/" + e.RolloutID)
	}
	return e, err
}

// Report takes a device's word about its execution. On an error of ota.Apply
// the stored execution comes back beside it.
func (s *Service) Report(ctx context.Context, r ota.Report) (ota.Execution, error) {
	e, err := s.Store.Report(ctx, r, s.Now())
	if err != nil {
		return e, err
	}
	s.signals.raise("rollout/" + e.RolloutID)
	if e.Status.Terminal() {
		s.Log.Info("execution finished", "rollout", e.RolloutID, "device", e.DeviceID, "status", e.Status, "class", e.Class, "reason", e.Reason())
		s.Wake()
		s.notifyNext(ctx, e.DeviceID)
	}
	return e, nil
}

// Execution returns the newest attempt; ErrNotFound when there is none.
func (s *Service) Execution(ctx context.Context, rolloutID, deviceID string) (ota.Execution, error) {
	return s.Store.Execution(ctx, rolloutID, deviceID)
}

// PendingExecutions returns the device's executions that are not finished, at
// most limit, those in progress first.
func (s *Service) PendingExecutions(ctx context.Context, deviceID string, limit int) ([]ota.Execution, error) {
	var started, queued []ota.Execution
	err := s.Store.Executions(ctx, ExecutionFilter{DeviceID: deviceID, Active: true, Latest: true}, func(e ota.Execution) bool {
		if e.Status == ota.InProgress {
			started = append(started, e)
		} else {
			queued = append(queued, e)
		}
		return true
	})
	all := append(started, queued...)
	return all[:min(len(all), limit)], err
}

// ExecutionPage returns up to limit executions after the given position (rollout,
// device), and whether there are more.
func (s *Service) ExecutionPage(ctx context.Context, filter ExecutionFilter, afterRollout, afterDevice string, limit int) (page []ota.Execution, more bool, err error) {
	filter.Latest = true
	err = s.Store.Executions(ctx, filter, func(e ota.Execution) bool {
		if e.RolloutID < afterRollout || e.RolloutID == afterRollout && e.DeviceID <= afterDevice {
			return true
		}
		if len(page) == limit {
			more = true
			return false
		}
		page = append(page, e)
		return true
	})
	return page, more, err
}
