package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Because says what one rollout means for a device, and what holds it up.
type Because struct {
	Rollout   ota.Rollout
	Execution *ota.Execution // the newest attempt; nil: it has none
	Why       string         // for people
	Until     time.Time      // when that ends by itself; zero: not by time
}

// Why explains what holds a device now: what every rollout that has not ended
// means for it, and which of those that have ended it has drifted from.
func (s *Service) Why(ctx context.Context, deviceID string) ([]Because, error) {
	record, err := s.Device(ctx, deviceID)
	if err != nil {
		return nil, err
	}
	rollouts, err := s.Store.Rollouts(ctx)
	if err != nil {
		return nil, err
	}
	pending, err := s.Store.Pending(ctx, deviceID, MaxNotified)
	if err != nil {
		return nil, err
	}
	drifted, err := s.drifted(ctx, deviceID)
	if err != nil {
		return nil, err
	}
	var list []Because
	for _, r := range rollouts {
		if r.State.Terminal() && !drifted[r.ID] {
			continue
		}
		b := Because{Rollout: r}
		e, err := s.Store.Execution(ctx, r.ID, deviceID)
		switch {
		case err == nil:
			b.Execution = &e
			b.Why, b.Until = holding(r, e, pending, record)
			b.Why = onLeg(e) + b.Why
		case errors.Is(err, ErrNotFound):
			b.Why, err = s.unreached(ctx, r, record.DeviceView)
			b.Until = startOf(r)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

// drifted returns the rollouts that updated the device, which runs another image
// since.
func (s *Service) drifted(ctx context.Context, deviceID string) (map[string]bool, error) {
	rollouts := map[string]bool{}
	err := s.Store.Executions(ctx, ExecutionFilter{DeviceID: deviceID, Latest: true}, func(e ota.Execution) bool {
		rollouts[e.RolloutID] = e.Class == ota.ClassDrifted
		return true
	})
	return rollouts, err
}

func startOf(r ota.Rollout) time.Time {
	if r.State == ota.RolloutScheduled {
		return r.Terms.Start
	}
	return time.Time{}
}

// holding says what an execution waits for.
func holding(r ota.Rollout, e ota.Execution, pending []ota.Execution, d DeviceRecord) (string, time.Time) {
	switch {
	case e.Status == ota.InProgress && e.Hold:
		return fmt.Sprintf("at step %s; the rollout is paused, and it waits before it activates", stepText(e)), e.Expires
	case e.Status == ota.InProgress:
		return fmt.Sprintf("at step %s since %s", stepText(e), e.StepAt.Format(time.RFC3339)), e.Expires
	case e.Class == ota.ClassUnderway && r.State == ota.RolloutRunning && !e.RetryAt.IsZero():
		return "it is there, and the next leg follows", time.Time{}
	case e.Status.Terminal() && !e.RetryAt.IsZero():
		return fmt.Sprintf("attempt %d ended %s: it is tried again", e.Attempt, ended(e)), e.RetryAt
	case e.Status.Terminal():
		return fmt.Sprintf("attempt %d ended %s", e.Attempt, ended(e)), time.Time{}
	case r.State != ota.RolloutRunning:
		return fmt.Sprintf("the rollout is %s: %s", r.State, r.Reason), time.Time{}
	case !slices.ContainsFunc(pending, func(p ota.Execution) bool { return p.RolloutID == r.ID }):
		return "the rollout has as many devices in flight as it may", time.Time{}
	case pending[0].RolloutID != r.ID:
		return fmt.Sprintf("rollout %s comes first on the device", pending[0].RolloutID), time.Time{}
	case e.Step() == ota.StepWaiting:
		return "the device has not begun: " + e.Reason(), e.Expires
	case d.Reachability == Offline:
		return "the device is offline: " + d.Connection.Reason, e.Expires
	}
	return "the device was told, and has not begun", e.Expires
}

// onLeg says where on its path a device is; empty where that has one release.
func onLeg(e ota.Execution) string {
	if e.Legs() == 1 || e.Command != nil {
		return ""
	}
	return fmt.Sprintf("leg %d of %d, %s: ", e.Leg, e.Legs(), e.Release)
}

func stepText(e ota.Execution) string {
	if e.Step() == "" {
		return "(not said)"
	}
	if why := e.Reason(); why != "" {
		return fmt.Sprintf("%s (%s)", e.Step(), why)
	}
	return string(e.Step())
}

func ended(e ota.Execution) string {
	text := string(e.Class)
	if e.Class == ota.ClassNone {
		text = string(e.Status)
	}
	if why := e.Reason(); why != "" {
		text += ": " + why
	}
	return text
}

// unreached says why a device has no execution of a rollout.
func (s *Service) unreached(ctx context.Context, r ota.Rollout, v DeviceView) (string, error) {
	if v.Revoked() {
		return "the device is revoked", nil
	}
	if r.RevertOf != "" {
		return s.notReturned(ctx, r, v)
	}
	meant, err := s.means(ctx, r.Selector, v.ID)
	if err != nil {
		return "", err
	}
	j, err := s.judgeOf(ctx, r)
	if err != nil {
		return "", err
	}
	d := Survey(v, nil)
	switch why := j.exclude(d); {
	case !meant:
		if r.Terms.Continuous {
			return "the rollout's selector does not match it; it joins when it does", nil
		}
		return "the rollout's selector does not match it", nil
	case why == ExcludedHardware:
		return "the release is for other hardware", nil
	case why == ExcludedCurrent:
		return "it runs this image already", nil
	case why == ExcludedQuarantined:
		return "it tried this image, or one on the way to it, before and went back", nil
	case why == ExcludedVersion:
		return j.detail(why, d), nil
	case !r.State.Begun():
		return fmt.Sprintf("the rollout is %s", r.State), nil
	case r.StartedAt.IsZero():
		return fmt.Sprintf("the rollout is %s: %s", r.State, r.Reason), nil
	case r.Terms.Continuous && r.State == ota.RolloutRunning && r.Cursor == r.Population:
		return "it is about to join: devices that change are looked at within seconds", nil
	case v.CreatedAt.After(r.StartedAt) && !r.Terms.Continuous:
		return "it enrolled after the rollout had begun", nil
	}
	health, err := s.heldByHealth(ctx, r)
	return itsTurn(r) + health, err
}

// heldByHealth says which signal a rollout waits for; empty: none.
func (s *Service) heldByHealth(ctx context.Context, r ota.Rollout) (string, error) {
	if !r.Terms.Health.Set() || r.State != ota.RolloutRunning {
		return "", nil
	}
	p, err := s.Store.Progress(ctx, r, s.Now())
	for _, v := range ota.Verdicts(r.Terms.Health, p.Health) {
		if v.Judgement == ota.HealthHold {
			return "; its health is not settled: " + v.String(), err
		}
	}
	return "", err
}

func itsTurn(r ota.Rollout) string {
	stage := min(r.Current(), len(r.Stages)-1)
	return fmt.Sprintf("waits for its turn: stage %d of %d is %s, %d of %d devices had theirs", stage+1, len(r.Stages), r.Stages[stage].State, r.Cursor, r.Population)
}

// notReturned says why a device has no execution of a revert.
func (s *Service) notReturned(ctx context.Context, r ota.Rollout, v DeviceView) (string, error) {
	of, err := s.Store.Rollout(ctx, r.RevertOf)
	if err != nil {
		return "", err
	}
	to, err := s.Store.Release(ctx, r.Release)
	if err != nil {
		return "", err
	}
	before := fmt.Sprintf("it reverts rollout %s, which has not changed the device", of.ID)
	_, err = s.changes(ctx, of, v.ID, func(e ota.Execution) {
		if before = itsTurn(r); e.From != to.ImageDigest {
			before = fmt.Sprintf("it brings devices of rollout %s back to %s, which this one did not run before", of.ID, to.ID())
		}
	})
	return before, err
}

// means reports whether a selector means the device.
func (s *Service) means(ctx context.Context, expr, deviceID string) (bool, error) {
	only := fmt.Sprintf("id = %q", deviceID)
	if expr != "" {
		only += " AND (" + expr + ")"
	}
	sel, err := s.selector(ctx, only)
	if err != nil {
		return false, err
	}
	n, err := s.Store.CountDevices(ctx, DeviceQuery{Selector: sel})
	return n > 0, err
}
