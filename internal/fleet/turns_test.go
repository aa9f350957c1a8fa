package fleet_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// slowSteps is a store in which no step gives turns while held, and turns that are
// taken are noted.
type slowSteps struct {
	fleet.Store
	held   atomic.Bool
	broken atomic.Bool // it can not say what is being opened
	takes  time.Duration
	step   chan struct{} // nil: a step does not wait for it to be closed
	mu     sync.Mutex
	taken  []int // how many took their turn together
}

var errHeld = errors.New("held")

func (s *slowSteps) Advance(ctx context.Context, a fleet.Advance) error {
	if a.Open != nil && s.held.Load() {
		return errHeld
	}
	if a.Open != nil && s.step != nil {
		<-s.step
	}
	return s.Store.Advance(ctx, a)
}

func (s *slowSteps) Openings(ctx context.Context) ([]ota.Rollout, error) {
	if s.broken.Load() {
		return nil, errHeld
	}
	return s.Store.Openings(ctx)
}

func (s *slowSteps) TakeTurns(ctx context.Context, id string, o fleet.Opening, devices []string, now time.Time) error {
	<-time.After(s.takes)
	s.mu.Lock()
	s.taken = append(s.taken, len(devices))
	s.mu.Unlock()
	return s.Store.TakeTurns(ctx, id, o, devices, now)
}

// slowWorld is a world over such a store.
func slowWorld(t *testing.T) (*world, *slowSteps) {
	w := newWorld(t)
	slow := &slowSteps{Store: w.store}
	slow.held.Store(true)
	config := w.s.Config
	config.Store = slow
	w.store, w.s = slow, fleet.New(config)
	return w, slow
}

// engine runs the engine until it rests.
func (w *world) engine() {
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	go func() { done <- w.s.RunEngine(ctx) }()
	synctest.Wait()
	cancel()
	w.ok(<-done)
}

func TestADeviceThatAsksTakesItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, slow := slowWorld(t)
		w.release("1.0")
		ids := w.enroll(5, "rpi4")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("4,100%")})
		w.ok(err)
		w.engine()
		r, err := w.store.Rollout(w.ctx, v.ID)
		w.ok(err)
		if r.Stages[0].State != ota.StageOpen || r.Cursor != 0 {
			t.Fatalf("stage %s, %d had their turn", r.Stages[0].State, r.Cursor)
		}
		line, err := w.store.Candidates(w.ctx, r.ID, r.Line, 0, len(ids))
		w.ok(err)
		nobody := func(what, id string) {
			t.Helper()
			if _, err := w.s.NextExecution(w.ctx, id); !errors.Is(err, fleet.ErrNotFound) {
				t.Errorf("%s: %v", what, err)
			}
		}
		slow.broken.Store(true)
		nobody("what is being opened can not be read", line[3].DeviceID)
		slow.broken.Store(false)
		<-time.After(time.Second) // until it is looked at again
		if e, err := w.s.StartNext(w.ctx, line[3].DeviceID, ota.Starting{}); err != nil || e.Status != ota.InProgress || e.RolloutID != r.ID {
			t.Errorf("started %+v: %v", e, err)
		}
		if e, err := w.s.NextExecution(w.ctx, line[1].DeviceID); err != nil || e.Status != ota.Queued {
			t.Errorf("asked, next is %+v: %v", e, err)
		}
		if list, err := w.s.Pending(w.ctx, line[2].DeviceID, 10); err != nil || len(list) != 1 {
			t.Errorf("pending %+v: %v", list, err)
		}
		nobody("of the next stage", line[4].DeviceID)
		if n := len(slow.taken); n != 3 {
			t.Errorf("%d times somebody took a turn", n)
		}
		if _, err := w.s.Pending(w.ctx, line[3].DeviceID, 10); err != nil || len(slow.taken) != 3 {
			t.Errorf("who has had its turn takes another: %v, %v", slow.taken, err)
		}
		slow.held.Store(false)
		w.engine()
		v, err = w.s.Rollout(w.ctx, r.ID)
		w.ok(err)
		if c := v.Progress.Total(); c.Queued != 3 || c.InProgress != 1 || c.Total() != 4 {
			t.Errorf("the step after it: %+v", c)
		}
		if faults, err := w.store.Check(w.ctx); err != nil || len(faults) > 0 {
			t.Fatalf("%v, %v", faults, err)
		}
	})
}

// TestAnotherServerGivesTurnsToo: within 20 ms of the commit that opens a stage, a device of
// it that asks any other otad on the same store has its turn.
func TestAnotherServerGivesTurnsToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, slow := slowWorld(t)
		w.release("1.0")
		id := w.enroll(1, "rpi4")[0]
		config := w.s.Config
		config.Store = slow
		other := fleet.New(config)
		if _, err := other.NextExecution(w.ctx, id); !errors.Is(err, fleet.ErrNotFound) { // it has just looked
			t.Fatalf("before there is a rollout: %v", err)
		}
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%")})
		w.ok(err)
		w.engine()
		<-time.After(20 * time.Millisecond)
		if e, err := other.NextExecution(w.ctx, id); err != nil || e.RolloutID != v.ID || e.Status != ota.Queued {
			t.Errorf("next is %+v: %v", e, err)
		}
		if r, err := w.store.Rollout(w.ctx, v.ID); err != nil || r.Cursor != 0 {
			t.Errorf("a step gave %d turns, and that was not to be seen: %v", r.Cursor, err)
		}
	})
}

// TestADeviceThatAsksWaitsForTheRate, the approval of its stage, and for a rollout that
// is paused.
func TestADeviceThatAsksWaitsForTheRate(t *testing.T) {
	for what, plan := range map[string]func(*ota.Rollout){
		"a rate":    func(r *ota.Rollout) { r.Terms.Rate.PerMinute = 1 },
		"approval":  func(r *ota.Rollout) { r.Stages[0].Approval = true },
		"its start": func(r *ota.Rollout) { r.Terms.Start = time.Now().Add(time.Hour) },
		"a pause":   func(*ota.Rollout) {},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, slow := slowWorld(t)
				w.release("1.0")
				ids := w.enroll(2, "rpi4")
				r := ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%")}
				plan(&r)
				v, err := w.s.CreateRollout(w.ctx, r)
				w.ok(err)
				w.engine()
				if what == "a pause" {
					_, err = w.s.PauseRollout(w.ctx, v.ID, "lunch", "")
					w.ok(err)
				}
				for _, id := range ids {
					if _, err := w.s.StartNext(w.ctx, id, ota.Starting{}); !errors.Is(err, fleet.ErrNotFound) {
						t.Errorf("%s: %v", id, err)
					}
				}
				if len(slow.taken) != 0 {
					t.Errorf("turns were taken: %v", slow.taken)
				}
			})
		})
	}
}

// TestManyTakeTheirTurnTogether: while one transaction is made, those who ask gather.
func TestManyTakeTheirTurnTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 1200
		w, slow := slowWorld(t)
		slow.takes = time.Second
		w.release("1.0")
		ids := w.enroll(n, "rpi4")
		_, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%")})
		w.ok(err)
		w.engine()
		gone, cancel := context.WithCancel(w.ctx)
		var asking sync.WaitGroup
		asking.Go(func() { // it does not wait for its answer, and others need not suffer for it
			if _, err := w.s.StartNext(gone, ids[0], ota.Starting{}); !errors.Is(err, context.Canceled) {
				t.Errorf("who has gone hears %v", err)
			}
		})
		synctest.Wait()
		for _, id := range ids[1:] {
			asking.Go(func() {
				if _, err := w.s.StartNext(w.ctx, id, ota.Starting{}); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		synctest.Wait()
		cancel()
		asking.Wait()
		if len(slow.taken) != 3 {
			t.Errorf("they took their turns in transactions of %v", slow.taken)
		}
		for _, devices := range slow.taken {
			if devices > 1000 {
				t.Errorf("%d in one transaction", devices)
			}
		}
	})
}

// TestWhoAsksDuringAStepGoesWithTheOthers: all wait for one step of the engine, nobody for
// the one after it.
func TestWhoAsksDuringAStepGoesWithTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, slow := slowWorld(t)
		w.release("1.0")
		ids := w.enroll(5, "rpi4")
		_, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%")})
		w.ok(err)
		w.engine()
		slow.held.Store(false)
		slow.step = make(chan struct{})
		ctx, cancel := context.WithCancel(w.ctx)
		var running sync.WaitGroup
		running.Go(func() { w.ok(w.s.RunEngine(ctx)) })
		for _, id := range ids[:4] {
			synctest.Wait()
			running.Go(func() {
				if _, err := w.s.NextExecution(w.ctx, id); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		synctest.Wait()
		close(slow.step)
		synctest.Wait()
		cancel()
		running.Wait()
		if !slices.Equal(slow.taken, []int{4}) {
			t.Errorf("they took their turns in transactions of %v", slow.taken)
		}
	})
}
