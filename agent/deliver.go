package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// shadowBox holds the newest reported state until the server has it.
type shadowBox struct {
	mu      *sync.Mutex
	state   map[string]any
	version int // of state
	sent    int // version that the server has
}

func newShadowBox() shadowBox { return shadowBox{mu: new(sync.Mutex)} }

func (s *shadowBox) set(state map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.version = state, s.version+1
}

func (s *shadowBox) unsent() (map[string]any, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sent == s.version {
		return nil, s.version
	}
	return s.state, s.version
}

// again has a state that the server has sent once more: it may have lost it, or
// wonder what runs here.
func (s *shadowBox) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sent == s.version && s.state != nil {
		s.version++
	}
}

func (s *shadowBox) done(version int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = version
}

// reported is what the shadow says about the device.
func (a *Agent) reported() map[string]any {
	slot := a.facts.Active
	info := a.facts.Slots[slot]
	state := map[string]any{
		"firmware": map[string]any{"name": info.Name, "version": info.Version, "digest": info.Digest, "slot": slot},
		"agent":    map[string]any{"version": a.cfg.Version, "trustExpired": a.trust.expired != ""},
	}
	if name := a.cfg.Zone.String(); name != "Local" {
		state["timezone"] = name
	}
	return state
}

// report queues a step of the execution. A report that can not be queued is
// missed by nobody; the verdict's queue does not forgive.
func (a *Agent) report(rec Record, step ota.Step, details map[string]string) {
	d := map[string]string{ota.DetailStep: string(step)}
	maps.Copy(d, details)
	if err := a.outbox.progress(rec.JobID, rec.Attempt, d); err != nil {
		a.cfg.Log.Warn("queue report", "step", step, "err", err)
	}
}

// ask is Transport.Next, one call on the line at a time.
func (a *Agent) ask(ctx context.Context) (job Job, ok bool, err error) {
	err = a.call(ctx, func() error {
		job, ok, err = a.cfg.Transport.Next(ctx)
		return err
	})
	return job, ok, err
}

func (a *Agent) call(ctx context.Context, f func() error) error {
	select {
	case a.line <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.line }()
	return f()
}

// deliver hands over the shadow, the outbox and the events, in order, until ctx ends. It
// returns only disk errors.
func (a *Agent) deliver(ctx context.Context) error {
	retry := backoff{jitter: a.cfg.Jitter}
	for ctx.Err() == nil {
		busy, err := a.deliverOne(ctx)
		if isDisk(err) {
			return err
		}
		if err == nil && busy {
			retry.reset()
			continue
		}
		if err == nil {
			signal(a.delivered)
		}
		var again <-chan time.Time
		if err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("deliver", "err", err)
			t := time.NewTimer(retry.next())
			defer t.Stop()
			again = t.C
		}
		select {
		case <-ctx.Done():
		case <-a.outbox.added:
		case <-a.cfg.Transport.Connected():
			a.shadow.again()
		case <-again:
		}
	}
	return nil
}

// deliverOne hands over the next thing; busy means that there was one.
func (a *Agent) deliverOne(ctx context.Context) (busy bool, err error) {
	if state, version := a.shadow.unsent(); state != nil {
		if err := a.call(ctx, func() error { return a.cfg.Transport.ReportShadow(ctx, state) }); err != nil {
			return true, fmt.Errorf("shadow: %w", err)
		}
		a.shadow.done(version)
		select {
		case <-a.cfg.Transport.Connected(): // by this connection
		default:
		}
		return true, nil
	}
	err = a.call(ctx, func() error {
		busy, err = a.handOver(ctx)
		return err
	})
	if err != nil || busy {
		return true, err
	}
	return a.deliverEvents(ctx)
}

// handOver hands over the oldest report; busy means that there was one. The line
// is the caller's. A report that the server refuses for good is delivered, and so
// is one on the way that it does not take now: a later one will tell.
func (a *Agent) handOver(ctx context.Context) (busy bool, err error) {
	r, ok := a.outbox.head()
	if !ok {
		return false, nil
	}
	err = a.cfg.Transport.Report(ctx, r)
	switch {
	case errors.Is(err, ErrEnded):
		a.ended.set(r.key(), err.Error())
	case errors.Is(err, ErrHeld) && !r.Status.Terminal():
	case err != nil:
		return true, fmt.Errorf("report %s of job %s: %w", r.Status, r.JobID, err)
	}
	if err := a.outbox.delivered(r.Seq); err != nil {
		return true, diskError{err}
	}
	return true, nil
}

// signal leaves a value in a channel of capacity 1, unless one is there.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
