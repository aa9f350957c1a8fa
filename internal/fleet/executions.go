package fleet

import (
	"context"
	"fmt"

	"github.com/otad/otad/pkg/ota"
)

// NextExecution returns what the device shall work on; ErrNotFound: nothing.
func (s *Service) NextExecution(ctx context.Context, deviceID string) (ota.Execution, error) {
	s.takeTurn(ctx, deviceID)
	return s.Store.NextExecution(ctx, deviceID)
}

// StartNext is NextExecution, and a QUEUED one becomes IN_PROGRESS.
func (s *Service) StartNext(ctx context.Context, deviceID string, start ota.Starting) (ota.Execution, error) {
	s.takeTurn(ctx, deviceID)
	e, err := s.Store.StartNext(ctx, deviceID, start, s.Now())
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
		s.logger(ctx).Info("execution finished", "rollout", e.RolloutID, "device", e.DeviceID, "status", e.Status, "class", e.Class, "reason", e.Reason())
		s.Wake()
	}
	s.tellMoved(ctx, e)
	return e, nil
}

// Execution returns the newest attempt; ErrNotFound when there is none.
func (s *Service) Execution(ctx context.Context, rolloutID, deviceID string) (ota.Execution, error) {
	return s.Store.Execution(ctx, rolloutID, deviceID)
}

// Attempt returns one attempt, counted from 1; ErrNotFound when there is none.
func (s *Service) Attempt(ctx context.Context, rolloutID, deviceID string, attempt int) (ota.Execution, error) {
	var found *ota.Execution
	err := s.Store.Executions(ctx, ExecutionFilter{RolloutID: rolloutID, DeviceID: deviceID}, func(e ota.Execution) bool {
		if e.Attempt == attempt {
			found = &e
		}
		return found == nil
	})
	if err != nil {
		return ota.Execution{}, err
	}
	if found == nil {
		return ota.Execution{}, fmt.Errorf("%w: execution %d of rollout %s on device %s", ErrNotFound, attempt, rolloutID, deviceID)
	}
	return *found, nil
}

// Pending returns what the device may work on, what is next first, at most limit.
func (s *Service) Pending(ctx context.Context, deviceID string, limit int) ([]ota.Execution, error) {
	s.takeTurn(ctx, deviceID)
	return s.Store.Pending(ctx, deviceID, limit)
}

// MaxFailures is how many failures a rollout is shown with.
const MaxFailures = 10

// Failures returns the attempts of a rollout that ended unsuccessfully last, the
// newest first, at most MaxFailures.
func (s *Service) Failures(ctx context.Context, rolloutID string) ([]ota.Execution, error) {
	return s.Store.Failures(ctx, rolloutID, MaxFailures)
}

// Limits of who is shown at work.
const (
	// MaxAtWork is how many attempts in progress a rollout is shown with.
	MaxAtWork = 5
	// FewAtWork is up to how many in progress it is: they are sorted for it, and while
	// there are more, nobody waits for single ones.
	FewAtWork = 1000
)

// AtWork returns the attempts in progress of a rollout that are at their step longest,
// the oldest first, at most MaxAtWork; none while more than FewAtWork are in progress.
func (s *Service) AtWork(ctx context.Context, v RolloutView) ([]ota.Execution, error) {
	if n := v.Progress.Total().InProgress; n == 0 || n > FewAtWork {
		return nil, nil
	}
	return s.Store.AtWork(ctx, v.ID, MaxAtWork)
}

// ExecutionPage returns up to limit executions and whether there are more.
func (s *Service) ExecutionPage(ctx context.Context, filter ExecutionFilter, limit int) (page []ota.Execution, more bool, err error) {
	if filter.RolloutID != "" {
		if _, err := s.Store.Rollout(ctx, filter.RolloutID); err != nil {
			return nil, false, err
		}
	}
	err = s.Store.Executions(ctx, filter, func(e ota.Execution) bool {
		if len(page) == limit {
			more = true
			return false
		}
		page = append(page, e)
		return true
	})
	return page, more, err
}
