package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// Config is what a store needs. The store owns the two handles and closes them.
type Config struct {
	Dialect Dialect
	Writer  *sql.DB // for a connection of each writer, read and write
	Reader  *sql.DB // the same database, for any number of readers
	// Cleanup is called by Close after the last write, before the handles are
	// closed. Nil: nothing to do.
	Cleanup func(*sql.DB) error
}

// Store implements fleet.Store. See the package comment.
type Store struct {
	config     Config
	writer     *inbox
	shadows    *lookups[shadowKey, string]           // nil: each is read by itself
	executions *lookups[pendingKey, []ota.Execution] // likewise
	due        *lookups[dueKey, bool]                // likewise
	statements sync.Map                              // query -> *sql.Stmt of the readers
	indexes    atomic.Pointer[[]selector.Field]
	closing    sync.Once
	closeError error
}

var _ fleet.Store = (*Store)(nil)

// Open migrates the database and starts the writer.
func Open(ctx context.Context, c Config) (*Store, error) {
	if err := c.Dialect.migrate(ctx, c.Writer); err != nil {
		return nil, err
	}
	s := &Store{config: c, writer: startWriters(c.Dialect, c.Writer)}
	if c.Dialect.Chunks == nil {
		s.shadows, s.executions, s.due = startLookups(s.readShadows), startLookups(s.readPending), startLookups(s.readDue)
	}
	if c.Dialect.LockBroker == nil {
		if err := s.freeWebhooks(ctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// Ping implements fleet.Store: both the readers and the writer must answer.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.row(ctx, `SELECT 1`).Scan(&one); err != nil {
		return fmt.Errorf("ping store: %w", err)
	}
	return s.writer.do(ctx, func(*tx) error { return nil })
}

// Close lets the writer finish what was asked for, then closes everything.
// Operations after it fail.
func (s *Store) Close() error {
	s.closing.Do(func() {
		var cleanup error
		s.writer.stop()
		if s.shadows != nil {
			s.shadows.stop()
			s.executions.stop()
			s.due.stop()
		}
		readers := s.config.Reader.Close()
		if s.config.Cleanup != nil {
			cleanup = s.config.Cleanup(s.config.Writer)
		}
		s.closeError = errors.Join(readers, cleanup, s.config.Writer.Close())
	})
	return s.closeError
}

// reader returns the query, prepared for the pool of readers.
func (s *Store) reader(ctx context.Context, query string) (*sql.Stmt, error) {
	if st, ok := s.statements.Load(query); ok {
		return st.(*sql.Stmt), nil
	}
	st, err := s.config.Reader.PrepareContext(ctx, s.config.Dialect.Rebind(query))
	if err != nil {
		return nil, err
	}
	if first, raced := s.statements.LoadOrStore(query, st); raced {
		return first.(*sql.Stmt), st.Close()
	}
	return st, nil
}

// row reads at most one row; a cancelled context reads none.
func (s *Store) row(ctx context.Context, query string, args ...any) row {
	st, err := s.reader(ctx, query)
	if err != nil {
		return failedRow{s.away(ctx, err)}
	}
	r := st.QueryRowContext(ctx, args...)
	if s.lost(ctx, r.Err()) {
		r = st.QueryRowContext(ctx, args...)
	}
	if err := r.Err(); err != nil {
		return failedRow{s.away(ctx, err)}
	}
	return r
}

// rows calls f for each row, with what it scans from.
func (s *Store) rows(ctx context.Context, f func(row) error, query string, args ...any) error {
	n, err := s.rowsOnce(ctx, f, query, args)
	if n == 0 && s.lost(ctx, err) {
		_, err = s.rowsOnce(ctx, f, query, args)
	}
	return s.away(ctx, err)
}

// lost reports whether a read failed for its connection, and may be tried on
// another one.
func (s *Store) lost(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil && s.config.Dialect.Fault(err) == FaultLost
}

// away names the fault of a read that failed for its connection.
func (s *Store) away(ctx context.Context, err error) error {
	if s.lost(ctx, err) {
		err = fmt.Errorf("%w: %w", fleet.ErrUnavailable, err)
	}
	return err
}

func (s *Store) rowsOnce(ctx context.Context, f func(row) error, query string, args []any) (n int, err error) {
	st, err := s.reader(ctx, query)
	if err != nil {
		return 0, err
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for ; rows.Next(); n++ {
		if err := f(rows); err != nil {
			return n + 1, err
		}
	}
	return n, rows.Err()
}

// failedRow is a row that could not be asked for.
type failedRow struct{ err error }

func (r failedRow) Scan(...any) error { return r.err }

func notFound(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), fleet.ErrNotFound)
}
