package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Why a step that can be given up is cut short.
var (
	errOver = errors.New("the execution is over on the server")
	errShut = errors.New("the maintenance window is closed")
)

// ended remembers the execution that the server says is over. Safe for
// concurrent use.
type ended struct {
	mu  sync.Mutex
	key string // of Report.key
	why string
	// told receives a value when there is, or may be, something new.
	told chan struct{}
}

func newEnded() *ended { return &ended{told: make(chan struct{}, 1)} }

func (e *ended) set(key, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.key, e.why = key, why
	signal(e.told)
}

// of returns why an execution is over; empty: it is not known to be.
func (e *ended) of(key string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.key != key {
		return ""
	}
	return e.why
}

// forget is of, and forgets it: an execution that the server offers again is
// not over.
func (e *ended) forget(key string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.key != key {
		return ""
	}
	why := e.why
	e.key, e.why = "", ""
	return why
}

func (r Record) key() string { return Report{JobID: r.JobID, Attempt: r.Attempt}.key() }

// guarded runs a step of an execution that can still be given up: it is cut short
// when the server ends the execution meanwhile, or, if it needs the window, when
// that closes. Then nothing that runs has been changed.
func (a *Agent) guarded(ctx context.Context, needsWindow bool, step func(context.Context) (Record, error)) (Record, error) {
	working, stop := context.WithCancelCause(ctx)
	watched := a.rec // a copy: the step changes a.rec
	var watching sync.WaitGroup
	watching.Go(func() { a.watch(working, watched, needsWindow, stop) })
	rec, err := step(working)
	stop(nil)
	watching.Wait()
	switch cause := context.Cause(working); {
	case err == nil || isDisk(err) || ctx.Err() != nil:
		return rec, err
	case errors.Is(cause, errOver):
		return a.giveUp(rec)
	case errors.Is(cause, errShut):
		return rec, nil
	}
	return rec, err
}

// watch looks at the execution when woken, and now and then, until ctx ends.
func (a *Agent) watch(ctx context.Context, rec Record, needsWindow bool, stop context.CancelCauseFunc) {
	key := rec.key()
	for ctx.Err() == nil {
		if a.ended.of(key) != "" {
			stop(errOver)
			return
		}
		wait := a.cfg.Jitter(a.cfg.Poll)
		if needsWindow {
			open, until := rec.Window.State(a.cfg.Now(), a.cfg.Zone)
			if !open {
				stop(errShut)
				return
			}
			if !until.IsZero() {
				wait = min(wait, max(until.Sub(a.cfg.Now()), 0))
			}
		}
		if a.pauseFor(ctx, wait) != nil {
			return
		}
		switch _, err := a.lookAt(ctx, rec); {
		case ctx.Err() != nil:
			signal(a.ended.told) // what woke us is for the next step
		case err != nil && !errors.Is(err, ErrEnded):
			a.cfg.Log.Debug("look at the execution", "job", rec.JobID, "err", err)
		}
	}
}

// pauseFor waits that long, or until something may have changed.
func (a *Agent) pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.cfg.Transport.Wake():
		a.outbox.kick()
	case <-a.ended.told:
	case <-t.C:
	}
	return nil
}

// lookAt asks the server how the execution stands; ErrEnded, which is
// remembered, when it is over.
func (a *Agent) lookAt(ctx context.Context, rec Record) (job Job, err error) {
	err = a.call(ctx, func() error {
		job, err = a.cfg.Transport.Look(ctx, rec.JobID, rec.Attempt)
		return err
	})
	if err == nil && job.Status.Terminal() {
		err = fmt.Errorf("job %s is %s: %w", rec.JobID, job.Status, ErrEnded)
	}
	if errors.Is(err, ErrEnded) {
		a.ended.set(rec.key(), err.Error())
	}
	return job, err
}

// giveUp is the record of an agent whose execution ended on the server before
// anything that runs was changed. There is no verdict: the server has its own.
func (a *Agent) giveUp(rec Record) (Record, error) {
	why := a.ended.of(rec.key())
	switch rec.State {
	case StateFetch, StateStaged, StateReady:
		if err := a.cfg.Boot.MarkUnbootable(); err != nil {
			return rec, diskError{err}
		}
	}
	return rec.idle().because("given up: " + why), a.look()
}

// refuseLate is the record of an execution that is refused after all, before
// anything that runs was changed.
func (a *Agent) refuseLate(rec Record, reason string) (Record, error) {
	if err := a.cfg.Boot.MarkUnbootable(); err != nil {
		return rec, diskError{err}
	}
	return failed(rec, ota.Rejected, reason), a.look()
}
