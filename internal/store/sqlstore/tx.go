package sqlstore

import (
	"database/sql"
	"errors"
	"fmt"
)

// tx is the transaction of one batch, as its operations see it.
type tx struct {
	w      *writer
	saved  bool  // a savepoint stands before the running operation
	broken error // the database failed: the batch must be rolled back
	// shadows are read once in a batch and written once at its end. Operations
	// on shadows write nothing else, so an operation that fails leaves none.
	shadows map[shadowKey]*cachedShadow
	dirty   []*cachedShadow
}

// run runs one operation; if it fails, what it wrote is taken back.
func (t *tx) run(f func(*tx) error) error {
	t.saved = false
	err := f(t)
	if t.broken != nil || !t.saved {
		return err
	}
	if err != nil {
		t.control("ROLLBACK TO operation")
	}
	t.control("RELEASE operation")
	return err
}

func (t *tx) control(query string) {
	if t.broken == nil {
		t.broken = t.w.control(query)
	}
}

// exec writes, behind the operation's savepoint, and returns how many rows it
// changed. It fails with errForeignKey when a row would refer to none.
func (t *tx) exec(query string, args ...any) (int64, error) {
	if !t.saved {
		t.control("SAVEPOINT operation")
		t.saved = true
	}
	return t.write(query, args...)
}

func (t *tx) write(query string, args ...any) (int64, error) {
	if t.broken != nil {
		return 0, t.broken
	}
	st, err := t.w.prepare(query)
	if err != nil {
		return 0, t.fail(err)
	}
	result, err := st.Exec(args...)
	switch {
	case err == nil:
		return result.RowsAffected()
	case t.w.dialect.ForeignKey(err):
		return 0, errForeignKey
	}
	return 0, t.fail(err)
}

// row reads at most one row.
func (t *tx) row(query string, args ...any) row {
	if t.broken != nil {
		return failedRow{t.broken}
	}
	st, err := t.w.prepare(query)
	if err != nil {
		return failedRow{t.fail(err)}
	}
	return txRow{t, st.QueryRow(args...)}
}

// txRow notes a database that fails under a read.
type txRow struct {
	t *tx
	r *sql.Row
}

func (r txRow) Scan(dest ...any) error {
	err := r.r.Scan(dest...)
	if err == nil || errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return r.t.fail(err)
}

func (t *tx) fail(err error) error {
	t.broken = fmt.Errorf("database: %w", err)
	return t.broken
}

func (t *tx) forUpdate(table string) string { return t.w.dialect.ForUpdate(table) }
