package sqlstore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"sync"
	"sync/atomic"
)

// inbox is where callers leave operations for the writers.
type inbox struct {
	queue   chan *operation
	batches chan []*operation // see Store.Together
	closing chan struct{}
	stopped chan struct{} // closed when the last writer has ended
}

func newInbox() *inbox {
	return &inbox{queue: make(chan *operation, maxBatch), batches: make(chan []*operation), closing: make(chan struct{}), stopped: make(chan struct{})}
}

// operation is one caller's wish. run may be called again after a batch was
// rolled back, so it must not add to what an earlier run left in its results.
type operation struct {
	ctx   context.Context
	run   func(*tx) error
	reads reading
	state atomic.Int32
	done  chan error
}

// reading is what an operation begins by reading, and all that it reads of its kind.
type reading struct {
	shadow *shadowKey // nil: none
	// execution is the newest attempt of a rollout on a device, or with no rollout
	// what the device shall work on. Zero: none.
	execution executionKey
	begins    bool // it may start the execution
	stops     bool // it may have a rollout start nothing more
	alone     bool // see doAlone
}

// keepsExecutions reports whether the operation reads and writes executions, if any,
// by the cache of the batch alone.
func (r reading) keepsExecutions() bool { return r.shadow != nil || r.execution != executionKey{} }

// An operation waits until either the writer takes it or its caller leaves it,
// never both: a cancelled operation has not happened.
const (
	waiting int32 = iota
	taken
	left
)

// startWriters starts as many as the database takes: while one waits for it,
// another works out what to write. They keep out of each other's way as those of
// several otad do.
func startWriters(d Dialect, db *sql.DB) *inbox {
	in := newInbox()
	var writers sync.WaitGroup
	for range max(1, d.Writers) {
		w := &writer{inbox: in, dialect: d, db: db, name: rand.Text()}
		writers.Go(w.loop)
	}
	go func() {
		writers.Wait()
		close(in.stopped)
	}()
	return in
}

// do runs f within a transaction and returns when that is durable, or when it
// is certain that it never happened.
func (in *inbox) do(ctx context.Context, f func(*tx) error) error {
	return in.queued(&operation{ctx: ctx, run: f, done: make(chan error, 1)})
}

// doReading is do for an f that begins by reading something. What the operations of a
// batch begin with is read together.
func (in *inbox) doReading(ctx context.Context, reads reading, f func(*tx) error) error {
	return in.queued(&operation{ctx: ctx, run: f, reads: reads, done: make(chan error, 1)})
}

// doAlone is do for an f that locks what others lock too, in an order of its own. It
// has a transaction of its own where there are others: in one with more operations
// it would come to its locks with theirs in hand, and they and others would wait for
// each other.
func (in *inbox) doAlone(ctx context.Context, f func(*tx) error) error {
	return in.doReading(ctx, reading{alone: true}, f)
}

// doShadow is doReading for a shadow.
func (in *inbox) doShadow(ctx context.Context, key shadowKey, f func(*tx) error) error {
	return in.doReading(ctx, reading{shadow: &key}, f)
}

func (in *inbox) queued(o *operation) error {
	ctx := o.ctx
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-in.closing:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	case in.queue <- o:
	}
	var reason error
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		reason = ctx.Err()
	case <-in.stopped:
		reason = errClosed
	}
	if o.state.CompareAndSwap(waiting, left) {
		return reason
	}
	return <-o.done
}

// stop waits until everything in the queue is committed.
func (in *inbox) stop() {
	close(in.closing)
	<-in.stopped
}
