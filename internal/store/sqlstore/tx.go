package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
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
	// executions are read and written together too.
	executions executions
	// state is what the batch is going to store for the broker, written once at
	// its end too; nil deletes the key.
	state map[string][]byte
	// enrolled are the devices that the batch created, retagged those whose tags it
	// changed as they stood before.
	enrolled []fleet.Device
	retagged map[string]fleet.Device
	// marked are the devices to be looked at again.
	marked map[string]anyMark
	// remembered are the changes of static groups.
	remembered []memberChange
	// groups are the dynamic groups as the transaction sees them, once they were
	// asked for; regrouped says that it changed them itself, filled are those that it
	// held devices against.
	groups    *groupSet
	regrouped bool
	filled    map[string]bool
	// counts is what the batch did to the counts of executions, written once at its
	// end, counting what the running operation does to them. armed is read once.
	counts, counting countChanges
	armed            map[string]time.Time
	// told are the events of the batch, written at its end, telling those of the
	// running operation.
	told, telling []ota.Event
}

// run runs one operation; if it fails, what it wrote is taken back.
func (t *tx) run(o *operation) error {
	if !o.reads.keepsExecutions() {
		t.forgetExecutions()
	}
	t.saved, t.counting, t.telling = false, countChanges{}, nil
	err := o.run(t)
	if err == nil {
		t.counts.merge(t.counting)
		for _, e := range ota.InOrder(t.telling) {
			t.told = append(t.told, fleet.Told(e))
		}
	}
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

// flush writes what the batch gathered.
func (t *tx) flush() error {
	if t.forgetExecutions(); t.broken != nil {
		return t.broken
	}
	if err := t.flushShadows(); err != nil {
		return err
	}
	if err := t.flushGroups(); err != nil {
		return err
	}
	if err := t.flushMembers(); err != nil {
		return err
	}
	if err := t.flushMarks(); err != nil {
		return err
	}
	if err := t.flushState(); err != nil {
		return err
	}
	if err := t.flushCounts(); err != nil {
		return err
	}
	return t.flushFeed()
}

// exec writes, behind the operation's savepoint, and returns how many rows it
// changed. It fails with errForeignKey when a row would refer to none, and with
// fleet.ErrInvalid when the database can not hold a value; the operation has to
// end then.
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
	ctx, cancel := t.w.statement()
	defer cancel()
	result, err := st.ExecContext(ctx, args...)
	if err == nil {
		return result.RowsAffected()
	}
	switch t.w.dialect.Fault(err) {
	case FaultReference:
		return 0, errForeignKey
	case FaultValue:
		return 0, fmt.Errorf("%w: the database can not store it: %w", fleet.ErrInvalid, err)
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
	ctx, cancel := t.w.statement()
	return txRow{t, st.QueryRowContext(ctx, args...), cancel}
}

// txRow notes a database that fails under a read.
type txRow struct {
	t   *tx
	r   *sql.Row
	end context.CancelFunc
}

func (r txRow) Scan(dest ...any) error {
	defer r.end()
	err := r.r.Scan(dest...)
	if err == nil || errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return r.t.fail(err)
}

// returning is exec for a statement that returns the rows it changed.
func (t *tx) returning(f func(row) error, query string, args ...any) error {
	if !t.saved {
		t.control("SAVEPOINT operation")
		t.saved = true
	}
	return t.rows(f, query, args...)
}

// rows calls f for each row.
func (t *tx) rows(f func(row) error, query string, args ...any) error {
	if t.broken != nil {
		return t.broken
	}
	st, err := t.w.prepare(query)
	if err != nil {
		return t.fail(err)
	}
	ctx, cancel := t.w.statement()
	defer cancel()
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return t.fail(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return t.fail(err)
		}
	}
	if err := rows.Err(); err != nil {
		return t.fail(err)
	}
	return nil
}

func (t *tx) fail(err error) error {
	t.broken = fmt.Errorf("database: %w", err)
	return t.broken
}

// keepOut waits for others by a statement of the dialect, and keeps them waiting
// until the transaction ends.
func (t *tx) keepOut(statement string, args ...any) error {
	if statement == "" {
		return nil
	}
	return t.rows(func(row) error { return nil }, statement, args...)
}

// beginMaking begins what makes executions of a rollout: nobody revokes a device, or makes
// executions of the same firmware, before the transaction ends.
func (t *tx) beginMaking(r ota.Rollout) error {
	if r.Release.Name != "" {
		if err := t.keepOut(t.w.dialect.Give, r.Release.Name); err != nil {
			return err
		}
	}
	return t.keepOut(t.w.dialect.Reach)
}

func (t *tx) forUpdate(table string) string { return t.w.dialect.ForUpdate(table) }
