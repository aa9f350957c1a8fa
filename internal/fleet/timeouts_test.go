package fleet_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// background runs a loop of the service until the returned func is called.
func (w *world) background(loops ...func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error, len(loops))
	for _, loop := range loops {
		go func() { done <- loop(ctx) }()
	}
	return func() {
		w.t.Helper()
		cancel()
		for range loops {
			w.ok(<-done)
		}
	}
}

func (w *world) timed(version string, timeout time.Duration) fleet.RolloutView {
	w.t.Helper()
	w.release(version)
	v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: version}, Stages: w.stages("100%"), InProgressTimeout: timeout})
	w.ok(err)
	synctest.Wait()
	return v
}

func (w *world) status(rolloutID, device string) ota.Status {
	w.t.Helper()
	e, err := w.store.Execution(w.ctx, rolloutID, device)
	w.ok(err)
	return e.Status
}

// What takes too long is TIMED_OUT to the moment; the device is told, the
// rollout judges it, and a late report changes nothing.
func TestTimeoutsEndExecutions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := w.enroll(1, "rpi4")[0]
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunTimeouts)()
		v := w.timed("1.0", time.Hour)
		_, err := w.s.StartNext(w.ctx, d, ota.Starting{Details: map[string]string{"step": "fetching"}})
		w.ok(err)
		w.notes.take(d)
		<-time.After(time.Hour - time.Nanosecond)
		synctest.Wait()
		if got := w.status(v.ID, d); got != ota.InProgress {
			t.Fatalf("a moment before: %s", got)
		}
		<-time.After(time.Microsecond)
		synctest.Wait()
		e, err := w.store.Execution(w.ctx, v.ID, d)
		w.ok(err)
		if e.Status != ota.TimedOut || e.Class != ota.ClassTimedOut || e.Step() != "fetching" {
			t.Fatalf("%+v", e)
		}
		if got := w.notes.take(d); got != "jobs, next none" {
			t.Errorf("told %q", got)
		}
		if _, err := w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: d, Status: ota.Succeeded}); !errors.Is(err, ota.ErrTerminal) {
			t.Errorf("a late report: %v", err)
		}
		after, err := w.s.Rollout(w.ctx, v.ID)
		w.ok(err)
		if after.State != ota.RolloutPaused || after.Progress.Total().Finished[ota.ClassTimedOut] != 1 {
			t.Errorf("rollout %s, %+v", after.State, after.Progress.Total())
		}
	})
}

// A step's timer that is given between two looks ends to the moment, and the
// loop looks once a minute at the most besides.
func TestTimeoutsGivenBetweenTwoLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(2, "rpi4")
		counted := &countedExpiry{Store: w.store}
		w.s.Store = counted
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunTimeouts)()
		v := w.timed("1.0", 0)
		<-time.After(fleet.TimeoutGrace + 30*time.Second) // in the middle between two looks
		for i, d := range ids {
			_, err := w.s.StartNext(w.ctx, d, ota.Starting{StepTimeout: time.Minute + time.Duration(i)*20*time.Second})
			w.ok(err)
		}
		looked := counted.calls.Load()
		<-time.After(time.Minute)
		synctest.Wait()
		if a, b := w.status(v.ID, ids[0]), w.status(v.ID, ids[1]); a != ota.TimedOut || b != ota.InProgress {
			t.Errorf("after a minute: %s and %s", a, b)
		}
		_, err := w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: ids[1], Status: ota.InProgress, StepTimeout: ota.NoStepTimeout})
		w.ok(err)
		<-time.After(3 * time.Hour)
		synctest.Wait()
		if got := w.status(v.ID, ids[1]); got != ota.InProgress {
			t.Errorf("its timer was taken off: %s", got)
		}
		if n := counted.calls.Load() - looked; n > 3*60+5 {
			t.Errorf("looked %d times in three hours", n)
		}
	})
}

// countedExpiry counts the looks.
type countedExpiry struct {
	fleet.Store
	calls atomic.Int64
	fail  atomic.Bool
}

func (c *countedExpiry) Expire(ctx context.Context, now time.Time) ([]ota.Execution, time.Time, error) {
	c.calls.Add(1)
	if c.fail.Load() {
		return nil, time.Time{}, errors.New("disk")
	}
	return c.Store.Expire(ctx, now)
}

// A server that was away ends nothing before devices could report what they did
// meanwhile, and everything that is due after that, though it kept nothing in
// memory. A store that fails is asked again.
func TestTimeoutsAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(2, "rpi4")
		stop := w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunTimeouts)
		v := w.timed("1.0", time.Hour)
		for _, d := range ids {
			_, err := w.s.StartNext(w.ctx, d, ota.Starting{})
			w.ok(err)
		}
		stop()
		<-time.After(5 * time.Hour)
		restarted := fleet.New(w.s.Config)
		counted := &countedExpiry{Store: w.store}
		restarted.Store = counted
		counted.fail.Store(true)
		w.s = restarted
		defer w.background(restarted.RunEngine, restarted.RunTimeouts)()
		<-time.After(fleet.TimeoutGrace - time.Second)
		synctest.Wait()
		if counted.calls.Load() != 0 {
			t.Errorf("looked before the devices had their minute")
		}
		_, err := w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: ids[0], Status: ota.Succeeded})
		w.ok(err)
		<-time.After(2 * time.Second)
		synctest.Wait()
		if got := w.status(v.ID, ids[1]); got != ota.InProgress || counted.calls.Load() != 1 {
			t.Errorf("the store fails: %s after %d looks", got, counted.calls.Load())
		}
		counted.fail.Store(false)
		<-time.After(10 * time.Second)
		synctest.Wait()
		if a, b := w.status(v.ID, ids[0]), w.status(v.ID, ids[1]); a != ota.Succeeded || b != ota.TimedOut {
			t.Errorf("%s and %s", a, b)
		}
	})
}

// More than one call ends are ended at once all the same.
func TestTimeoutsOfManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const n = fleet.MaxExpired + 50
		ids := w.enroll(n, "rpi4")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunTimeouts)()
		v := w.timed("1.0", time.Hour)
		for i, d := range ids {
			_, err := w.s.StartNext(w.ctx, d, ota.Starting{})
			w.ok(err)
			if i%100 == 0 {
				<-time.After(time.Microsecond)
			}
		}
		<-time.After(time.Hour + time.Second)
		synctest.Wait()
		p, err := w.store.Progress(w.ctx, v.Rollout, time.Now())
		w.ok(err)
		if got := p.Total().Finished[ota.ClassTimedOut]; got != n {
			t.Errorf("%d of %d", got, n)
		}
	})
}
