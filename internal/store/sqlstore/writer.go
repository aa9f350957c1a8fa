package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// Limits of a group commit.
const (
	// maxBatch is the most operations in one commit.
	maxBatch = 500
	// maxLinger is the longest that the first operation of a batch waits for
	// company, maxGap the longest pause after which no more is expected. Nobody
	// waits unless the batch before had company.
	maxLinger = 5 * time.Millisecond
	maxGap    = time.Millisecond
	// maxTries is how often a transaction is begun that other processes keep
	// getting in the way of, maxPause the longest pause before another try.
	maxTries = 8
	maxPause = 64 * time.Millisecond
	// maxDoubt bounds the search for what became of a COMMIT without an answer.
	maxDoubt = 30 * time.Second
)

var errClosed = errors.New("the store is closed")

// writer runs operations one after the other and commits them together.
type writer struct {
	*inbox
	dialect Dialect
	db      *sql.DB
	conn    *sql.Conn            // nil until the first batch and after a fault
	stmts   map[string]*sql.Stmt // of conn
	groups  *groupSet            // the dynamic groups of the last batch that asked
	over    map[overKey]string   // statements with their rows written out
	last    int                  // operations in the batch before
	text    []byte               // room to write a document
	name    string               // see Commit
}

func (w *writer) loop() {
	defer w.disconnect()
	for {
		select {
		case o := <-w.queue:
			w.commit(w.collect(o))
			continue
		case batch := <-w.batches:
			w.commit(batch)
			continue
		case <-w.closing:
		}
		select {
		case o := <-w.queue:
			w.commit(w.collect(o))
		default:
			return
		}
	}
}

// collect gathers what is queued, and what is about to be.
func (w *writer) collect(first *operation) []*operation {
	batch := w.drain([]*operation{first})
	if w.last > 1 {
		batch = w.linger(batch)
	}
	w.last = len(batch)
	return batch
}

func (w *writer) drain(batch []*operation) []*operation {
	for len(batch) < maxBatch {
		select {
		case o := <-w.queue:
			batch = append(batch, o)
		default:
			return batch
		}
	}
	return batch
}

// linger waits while operations keep arriving, and no longer than it took to
// fill the batch before.
func (w *writer) linger(batch []*operation) []*operation {
	end := time.NewTimer(maxLinger)
	defer end.Stop()
	gap := time.NewTimer(maxGap)
	defer gap.Stop()
	for len(batch) < min(w.last, maxBatch) {
		select {
		case o := <-w.queue:
			batch = w.drain(append(batch, o))
			gap.Reset(maxGap)
		case <-gap.C:
			return batch
		case <-end.C:
			return batch
		case <-w.closing:
			return batch
		}
	}
	return batch
}

// commit runs the batch. When the database fails, not just an operation, each
// is tried once more by itself, so that none suffers for another.
func (w *writer) commit(batch []*operation) {
	batch, alone := w.apart(take(batch))
	for _, o := range alone {
		w.commitOne(o)
	}
	if len(batch) == 0 {
		return
	}
	errs, err := w.attempt(batch)
	if err != nil && len(batch) > 1 && !ofAll(err) {
		for _, o := range batch {
			w.commitOne(o)
		}
		return
	}
	for i, o := range batch {
		if err != nil {
			o.done <- err
		} else {
			o.done <- errs[i]
		}
	}
}

// apart returns what may share a transaction and what may not, see doAlone. An order
// was promised to nobody: the callers wait at the same time.
func (w *writer) apart(batch []*operation) (shared, alone []*operation) {
	if w.dialect.ForShare == "" {
		return batch, nil // there are no others
	}
	for _, o := range batch {
		if o.reads.alone {
			alone = append(alone, o)
		} else {
			shared = append(shared, o)
		}
	}
	return shared, alone
}

func (w *writer) commitOne(o *operation) {
	errs, err := w.attempt([]*operation{o})
	if err == nil {
		err = errs[0]
	}
	o.done <- err
}

// attempt runs the batch until no other process gets in its way, and once more
// when the connection was lost under it. The error says that nothing of it
// happened, unless it is fleet.ErrDoubt; errs are those of the operations.
func (w *writer) attempt(batch []*operation) (errs []error, err error) {
	lost := 0
	for n := range maxTries {
		if errs, err = w.try(batch); err == nil {
			return errs, nil
		}
		switch fault := w.dialect.Fault(err); {
		case ofAll(err):
			return nil, err
		case fault == FaultConflict, errors.Is(err, errRaced):
			w.pause(n)
		case errors.Is(err, errForeignKey) && len(batch) == 1: // another otad deleted it meanwhile
			w.pause(n)
		case fault == FaultLost && lost == 0:
			lost++
		case fault == FaultLost:
			return nil, fmt.Errorf("%w: %w", fleet.ErrUnavailable, err)
		default:
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: others keep writing the same; nothing was stored, try again: %w", fleet.ErrBusy, err)
}

// ofAll reports an error that concerns the whole batch: trying its operations one by
// one would not help, or be wrong.
func ofAll(err error) bool {
	return errors.Is(err, fleet.ErrUnavailable) || errors.Is(err, fleet.ErrDoubt)
}

// pause lets others finish, for a random while that grows with each try.
func (w *writer) pause(tries int) {
	longest := min(time.Millisecond<<tries, maxPause)
	t := time.NewTimer(rand.N(longest))
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.closing:
	}
}

// take leaves out the operations whose callers have gone.
func take(batch []*operation) []*operation {
	kept := batch[:0]
	for _, o := range batch {
		if !o.state.CompareAndSwap(waiting, taken) {
			continue
		}
		if err := o.ctx.Err(); err != nil {
			o.done <- err
			continue
		}
		kept = append(kept, o)
	}
	return kept
}

// try runs the batch in one transaction.
func (w *writer) try(batch []*operation) (errs []error, err error) {
	if err := w.connect(); err != nil {
		return nil, fmt.Errorf("%w: %w", fleet.ErrUnavailable, err)
	}
	if err := w.control(w.dialect.Begin); err != nil {
		w.disconnect()
		return nil, fmt.Errorf("begin transaction: %w", err)
	}
	defer func() {
		if err != nil && w.conn != nil && w.control("ROLLBACK") != nil {
			w.disconnect()
		}
	}()
	t := &tx{w: w}
	if err := t.orderStarts(batch); err != nil {
		return nil, err
	}
	if err := t.prefetch(batch); err != nil {
		return nil, err
	}
	if err := t.prefetchExecutions(batch); err != nil {
		return nil, err
	}
	for _, o := range batch {
		errs = append(errs, t.run(o))
		if t.broken != nil {
			return nil, t.broken
		}
	}
	if err := t.flush(); err != nil {
		return nil, err
	}
	if err := w.end(t); err != nil {
		return nil, fmt.Errorf("commit transaction: %w", err)
	}
	return errs, nil
}

// end commits. When the connection is lost under it, the database is asked what
// became of the transaction.
func (w *writer) end(t *tx) error {
	outcome := w.dialect.Outcome
	if outcome == nil {
		return w.control("COMMIT")
	}
	c := Commit{Writer: w.name, Token: rand.Int64()}
	err := t.row(outcome.Mark, c.Writer, c.Token).Scan(&c.ID)
	wrote := !errors.Is(err, sql.ErrNoRows)
	if err != nil && wrote {
		return err
	}
	if err = w.control("COMMIT"); err == nil || !wrote || w.dialect.Fault(err) != FaultLost {
		return err
	}
	w.disconnect()
	ctx, cancel := context.WithTimeout(context.Background(), maxDoubt)
	defer cancel()
	committed, unknown := outcome.Committed(ctx, w.db, c)
	switch {
	case unknown != nil:
		return fmt.Errorf("%w: %w: %w", fleet.ErrDoubt, err, unknown)
	case committed:
		return nil
	}
	return err
}

// statement is the context of one statement. It does not come from a caller:
// the batch belongs to many.
func (w *writer) statement() (context.Context, context.CancelFunc) {
	if w.dialect.Timeout == 0 {
		return context.Background(), func() {}
	}
	return context.WithTimeout(context.Background(), w.dialect.Timeout)
}

// connect takes the one connection, unless it is held already.
func (w *writer) connect() error {
	if w.conn != nil {
		return nil
	}
	ctx, cancel := w.statement()
	defer cancel()
	conn, err := w.db.Conn(ctx)
	if err != nil {
		return err
	}
	w.conn, w.stmts = conn, map[string]*sql.Stmt{}
	return nil
}

// disconnect throws the connection away, with whatever it was in the middle of.
func (w *writer) disconnect() {
	if w.conn == nil {
		return
	}
	for _, st := range w.stmts {
		_ = st.Close()
	}
	_ = w.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = w.conn.Close()
	w.conn, w.stmts = nil, nil
}

// control runs a statement of transaction control.
func (w *writer) control(query string) error {
	st, err := w.prepare(query)
	if err != nil {
		return err
	}
	ctx, cancel := w.statement()
	defer cancel()
	_, err = st.ExecContext(ctx)
	return err
}

func (w *writer) prepare(query string) (*sql.Stmt, error) {
	if st, ok := w.stmts[query]; ok {
		return st, nil
	}
	ctx, cancel := w.statement()
	defer cancel()
	st, err := w.conn.PrepareContext(ctx, w.dialect.Rebind(query))
	if err != nil {
		return nil, fmt.Errorf("prepare %q: %w", query, err)
	}
	w.stmts[query] = st
	return st, nil
}
