package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/ota"
)

// inLine is how many devices a stage is opened for.
const inLine = 120

// take opens a stage in small steps while devices of it take their turn and begin, in
// every replica at once, and it is paused and goes on. In the end every device has one
// execution; none was made, or begun, while the rollout was paused.
func (r *race) take(t *testing.T) {
	ctx := t.Context()
	o := replicaRollout("taken")
	o.Line, o.Stages[0].Target = "l", inLine
	must(t, r.stores[0].CreateRollout(ctx, o))
	var line []ota.Candidate
	for i := range inLine {
		line = append(line, ota.Candidate{DeviceID: fmt.Sprint("t", i)})
		must(t, r.stores[0].CreateDevice(ctx, fleet.Device{ID: line[i].DeviceID, Hardware: "h", CreatedAt: time.Now()}))
	}
	must(t, r.stores[0].PutCandidates(ctx, o.ID, "l", 0, line))
	must(t, errors.Join(r.all(func(s *sqlstore.Store, i int) error {
		for range 30 {
			err := error(nil)
			switch i % 4 {
			case 0:
				err = advanceTaken(ctx, s, o.ID, i)
			default:
				id := fmt.Sprint("t", rand.IntN(inLine))
				err = s.TakeTurns(ctx, o.ID, fleet.Opening{}, []string{id, fmt.Sprint("t", rand.IntN(inLine))}, time.Now())
				if _, none := s.StartNext(ctx, id, ota.Starting{}, time.Now()); !errors.Is(none, fleet.ErrNotFound) {
					err = errors.Join(err, none)
				}
			}
			if err != nil {
				return fmt.Errorf("worker %d: %w", i, err)
			}
		}
		return nil
	})...))
	for o.Cursor < inLine {
		must(t, advanceTaken(ctx, r.stores[0], o.ID, 0))
		var err error
		o, err = r.stores[0].Rollout(ctx, o.ID)
		must(t, err)
	}
	n := 0
	must(t, r.stores[0].Executions(ctx, fleet.ExecutionFilter{RolloutID: o.ID}, func(e ota.Execution) bool {
		n++
		return true
	}))
	if n != inLine {
		t.Errorf("%d executions for %d devices", n, inLine)
	}
	_, err := r.stores[0].Cancel(ctx, o, time.Now(), inLine)
	must(t, err)
}

// advanceTaken gives a few turns, or pauses the rollout, holds that nothing moves, and
// has it go on.
func advanceTaken(ctx context.Context, s *sqlstore.Store, id string, worker int) error {
	o, err := s.Rollout(ctx, id)
	if err != nil || o.State != ota.RolloutRunning {
		return err
	}
	step := fleet.Advance{Rollout: o, Now: time.Now()}
	if worker != 4 {
		to := min(o.Cursor+3, inLine)
		step.Open, step.Rollout.Cursor = &fleet.Opening{From: o.Cursor, To: to}, to
		return unlessStale(s.Advance(ctx, step))
	}
	step.Rollout.State = ota.RolloutPaused
	if err := s.Advance(ctx, step); err != nil {
		return unlessStale(err)
	}
	before, err := s.Progress(ctx, o, time.Now())
	if err != nil {
		return err
	}
	if err := s.TakeTurns(ctx, id, fleet.Opening{}, []string{"t0", fmt.Sprint("t", inLine-1)}, time.Now()); err != nil {
		return err
	}
	after, err := s.Progress(ctx, o, time.Now())
	if err != nil {
		return err
	}
	if a, b := before.Total(), after.Total(); a.Total() != b.Total() || a.Queued != b.Queued {
		return fmt.Errorf("while it was paused %+v became %+v", a, b)
	}
	step.Rollout.Revision++
	step.Rollout.State = ota.RolloutRunning
	return s.Advance(ctx, step)
}

func unlessStale(err error) error {
	if errors.Is(err, fleet.ErrStale) {
		return nil
	}
	return err
}

// giveWay has two rollouts of a firmware come to the same devices at once, by steps, by
// turns that devices take and by further attempts, in every replica. In the end none of
// them waits for the older one where the newer has it.
func (r *race) giveWay(t *testing.T) {
	ctx := t.Context()
	var line []ota.Candidate
	for i := range inLine {
		line = append(line, ota.Candidate{DeviceID: fmt.Sprint("w", i)})
		must(t, r.stores[0].CreateDevice(ctx, fleet.Device{ID: line[i].DeviceID, Hardware: "h", CreatedAt: time.Now()}))
	}
	_, err := r.stores[0].CreateRelease(ctx, ota.Release{Manifest: ota.Manifest{Name: "app", Version: "2"}, CreatedAt: time.Now()})
	must(t, err)
	for i, id := range []string{"w-old", "w-new"} {
		o := replicaRollout(id)
		o.Release.Version = fmt.Sprint(i + 1)
		o.Line, o.Stages[0].Target, o.CreatedAt = "l", inLine, o.CreatedAt.Add(time.Duration(i)*time.Second)
		must(t, r.stores[0].CreateRollout(ctx, o))
		must(t, r.stores[0].PutCandidates(ctx, id, "l", 0, line))
	}
	must(t, errors.Join(r.all(func(s *sqlstore.Store, i int) error {
		for n := range 30 {
			id := []string{"w-old", "w-new"}[(i+n)%2]
			var err error
			switch device := line[rand.IntN(inLine)].DeviceID; i % 3 {
			case 0:
				err = advanceTaken(ctx, s, id, 0)
			case 1:
				err = s.TakeTurns(ctx, id, fleet.Opening{}, []string{device, line[rand.IntN(inLine)].DeviceID}, time.Now())
			default:
				err = again(ctx, s, device)
			}
			if err != nil {
				return fmt.Errorf("worker %d: %w", i, err)
			}
		}
		return nil
	})...))
	for _, c := range line {
		newer, err := r.stores[0].Execution(ctx, "w-new", c.DeviceID)
		if errors.Is(err, fleet.ErrNotFound) {
			continue
		}
		must(t, err)
		older, err := r.stores[0].Execution(ctx, "w-old", c.DeviceID)
		if err == nil && older.Status == ota.Queued {
			t.Errorf("%s: attempt %d of the older rollout is %s beside the newer one, which is %s", c.DeviceID, older.Attempt, older.Status, newer.Status)
		}
	}
	for _, id := range []string{"w-old", "w-new"} {
		o, err := r.stores[0].Rollout(ctx, id)
		must(t, err)
		_, err = r.stores[0].Cancel(ctx, o, time.Now(), inLine)
		must(t, err)
	}
}

// again fails the older rollout on a device and makes another attempt of it.
func again(ctx context.Context, s *sqlstore.Store, device string) error {
	o, err := s.Rollout(ctx, "w-old")
	if err != nil {
		return err
	}
	for _, status := range []ota.Status{ota.InProgress, ota.Failed} {
		_, err := s.Report(ctx, ota.Report{RolloutID: o.ID, DeviceID: device, Status: status}, time.Now())
		if errors.Is(err, fleet.ErrNotFound) || errors.Is(err, ota.ErrTerminal) || errors.Is(err, ota.ErrTransition) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	e, err := s.Execution(ctx, o.ID, device)
	if err != nil || e.Status != ota.Failed || e.Attempt == ota.MaxAttempts {
		return err
	}
	err = s.Advance(ctx, fleet.Advance{Rollout: o, Now: time.Now(), Insert: []ota.Execution{{DeviceID: device, Attempt: e.Attempt + 1, Status: ota.Queued}}})
	if errors.Is(err, fleet.ErrInvalid) { // somebody else made it
		return nil
	}
	return unlessStale(err)
}
