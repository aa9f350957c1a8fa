package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	_ "modernc.org/sqlite"
)

// testWriter is a writer on a database with one table, and a second handle that
// sees only what is committed.
func testWriter(t *testing.T) (*writer, *sql.DB) {
	t.Helper()
	dsn := "file:" + filepath.Join(t.TempDir(), "w.db") + "?_pragma=journal_mode(WAL)&_pragma=busy_timeout(5000)"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	other, err := sql.Open("sqlite", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = db.Close(), other.Close() })
	if _, err := db.Exec(`CREATE TABLE n (n INTEGER PRIMARY KEY)`); err != nil {
		t.Fatal(err)
	}
	return &writer{
		dialect: Dialect{
			Begin: "BEGIN IMMEDIATE", Rebind: func(q string) string { return q }, Chunks: []int{1}, Fault: func(error) Fault { return FaultOther },
		},
		db: db, inbox: newInbox(),
	}, other
}

func insert(n int) func(*tx) error {
	return func(t *tx) error {
		_, err := t.exec(`INSERT INTO n VALUES (?)`, n)
		return err
	}
}

func numbers(t *testing.T, db *sql.DB) (list []int) {
	t.Helper()
	rows, err := db.Query(`SELECT n FROM n ORDER BY n`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			t.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

// batch commits operations together and returns their answers.
func batch(w *writer, fs ...func(*tx) error) []error {
	ops := make([]*operation, len(fs))
	for i, f := range fs {
		ops[i] = &operation{ctx: context.Background(), run: f, done: make(chan error, 1)}
	}
	w.commit(slices.Clone(ops))
	errs := make([]error, len(fs))
	for i, o := range ops {
		errs[i] = <-o.done
	}
	return errs
}

var errRefused = errors.New("refused")

func TestFailedOperationLeavesNoTraceInItsBatch(t *testing.T) {
	w, other := testWriter(t)
	errs := batch(w, insert(1), func(tx *tx) error {
		if err := insert(2)(tx); err != nil {
			return err
		}
		return errRefused
	}, insert(3))
	if errs[0] != nil || !errors.Is(errs[1], errRefused) || errs[2] != nil {
		t.Fatalf("answers %v", errs)
	}
	if got := numbers(t, other); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("stored %v", got)
	}
}

func TestNobodyIsAnsweredBeforeTheCommit(t *testing.T) {
	w, other := testWriter(t)
	first := &operation{ctx: context.Background(), run: insert(1), done: make(chan error, 1)}
	second := &operation{ctx: context.Background(), done: make(chan error, 1), run: func(tx *tx) error {
		if len(first.done) > 0 {
			t.Error("the first was answered while its transaction was open")
		}
		if got := numbers(t, other); len(got) > 0 {
			t.Errorf("visible before the commit: %v", got)
		}
		return insert(2)(tx)
	}}
	w.commit([]*operation{first, second})
	if err := errors.Join(<-first.done, <-second.done); err != nil {
		t.Fatal(err)
	}
}

// TestDatabaseFaultSparesTheOthers: a statement that the database refuses makes
// the batch start again, one by one.
func TestDatabaseFaultSparesTheOthers(t *testing.T) {
	w, other := testWriter(t)
	errs := batch(w, insert(1), insert(2), insert(1), insert(3))
	if errs[0] != nil || errs[1] != nil || errs[2] == nil || errs[3] != nil {
		t.Fatalf("answers %v", errs)
	}
	if got := numbers(t, other); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("stored %v", got)
	}
}

// TestLostTransactionIsNotAnswered: a database that rolls back by itself, as on
// a full disk, must not leave anyone with a promise.
func TestLostTransactionIsNotAnswered(t *testing.T) {
	w, other := testWriter(t)
	lose := func(tx *tx) error {
		_, err := tx.write("ROLLBACK")
		return errors.Join(err, insert(2)(tx))
	}
	errs := batch(w, insert(1), lose)
	if errs[0] != nil || errs[1] == nil {
		t.Fatalf("answers %v", errs)
	}
	if errs = batch(w, insert(3)); errs[0] != nil {
		t.Fatalf("after it: %v", errs)
	}
	got := numbers(t, other)
	if !slices.Contains(got, 1) || !slices.Contains(got, 3) {
		t.Errorf("stored %v", got)
	}
}

func TestOneCommitForAll(t *testing.T) {
	w, other := testWriter(t)
	var fs []func(*tx) error
	seen := map[*tx]bool{}
	for i := range maxBatch {
		fs = append(fs, func(t *tx) error { seen[t] = true; return insert(i)(t) })
	}
	if err := errors.Join(batch(w, fs...)...); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 1 || len(numbers(t, other)) != maxBatch {
		t.Errorf("%d transactions, %d rows", len(seen), len(numbers(t, other)))
	}
}

func TestBatchIsBounded(t *testing.T) {
	w, _ := testWriter(t)
	for range maxBatch {
		w.queue <- &operation{}
	}
	if got := len(w.collect(&operation{})); got != maxBatch {
		t.Errorf("batch of %d, want %d", got, maxBatch)
	}
	if got := len(w.queue); got != 1 {
		t.Errorf("%d left in the queue, want 1", got)
	}
}

func TestGoneCallersAreSkipped(t *testing.T) {
	w, other := testWriter(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	gone := &operation{ctx: ctx, run: insert(1), done: make(chan error, 1)}
	leftAlone := &operation{ctx: context.Background(), run: insert(2), done: make(chan error, 1)}
	leftAlone.state.Store(left)
	stays := &operation{ctx: context.Background(), run: insert(3), done: make(chan error, 1)}
	w.commit([]*operation{gone, leftAlone, stays})
	if err := <-gone.done; !errors.Is(err, context.Canceled) {
		t.Errorf("gone: %v", err)
	}
	if err := <-stays.done; err != nil {
		t.Error(err)
	}
	if got := numbers(t, other); !slices.Equal(got, []int{3}) {
		t.Errorf("stored %v", got)
	}
}

// TestStopCommitsWhatIsQueued: what was asked for before Close is done or
// refused, and nobody waits for ever.
func TestStopCommitsWhatIsQueued(t *testing.T) {
	w, other := testWriter(t)
	go func() {
		w.loop()
		close(w.stopped)
	}()
	const n = 300
	errs := make(chan error, n)
	for i := range n {
		go func() {
			err := w.do(context.Background(), insert(i))
			if err != nil && !errors.Is(err, errClosed) {
				err = fmt.Errorf("insert %d: %w", i, err)
			}
			errs <- err
		}()
	}
	w.stop()
	stored := 0
	for range n {
		switch err := <-errs; {
		case err == nil:
			stored++
		case !errors.Is(err, errClosed):
			t.Error(err)
		}
	}
	if got := len(numbers(t, other)); got != stored {
		t.Errorf("%d rows, %d answers", got, stored)
	}
}
