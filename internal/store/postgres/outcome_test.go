package postgres

import (
	"database/sql"
	"strconv"
	"testing"

	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/internal/testserver"
)

// TestATransactionThatACrashUndid holds that the id of a transaction whose COMMIT
// was not answered is not enough to know it by: after a crash that left nothing of
// it, the database gives its id to another one, which commits.
func TestATransactionThatACrashUndid(t *testing.T) {
	server := &testserver.Postgres{Durable: true}
	t.Cleanup(server.Stop)
	config := Config{URL: server.Database(t)}
	db := opened(t, config)
	mark := func(c *sqlstore.Commit) *sql.Tx {
		t.Helper()
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.QueryRowContext(t.Context(), rebind(markCommit), c.Writer, c.Token).Scan(&c.ID); err != sql.ErrNoRows {
			t.Fatalf("marked a transaction that wrote nothing: %v", err)
		}
		if _, err := tx.ExecContext(t.Context(), "INSERT INTO commits VALUES ($1, 0, now()) ON CONFLICT (writer) DO UPDATE SET token = 0", c.Writer); err != nil {
			t.Fatal(err)
		}
		if err := tx.QueryRowContext(t.Context(), rebind(markCommit), c.Writer, c.Token).Scan(&c.ID); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	want := func(c sqlstore.Commit, want bool, when string) {
		t.Helper()
		got, err := committed(t.Context(), db, c)
		if err != nil || got != want {
			t.Errorf("%s: committed %t %v, want %t", when, got, err, want)
		}
	}
	kept, undone := sqlstore.Commit{Writer: "a", Token: 1}, sqlstore.Commit{Writer: "b", Token: 1}
	if err := mark(&kept).Commit(); err != nil {
		t.Fatal(err)
	}
	tx := mark(&undone)
	server.Kill()
	server.Restart(t)
	_ = tx.Rollback() // its connection has gone
	want(kept, true, "after the crash")
	want(undone, false, "before anybody has its id")
	for again := (sqlstore.Commit{Writer: "c", Token: 1}); number(t, again.ID) < number(t, undone.ID); {
		if err := mark(&again).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	want(undone, false, "when another one has its id")
	want(kept, true, "at the end")
	forgets(t, db, config)
}

// forgets holds that what writers left that have gone does not stay for ever.
func forgets(t *testing.T, db *sql.DB, config Config) {
	if _, err := db.ExecContext(t.Context(), "DELETE FROM commits; INSERT INTO commits VALUES ('old', 1, now() - INTERVAL '25 hours'), ('new', 1, now() - INTERVAL '23 hours')"); err != nil {
		t.Fatal(err)
	}
	opened(t, config)
	var left string
	if err := db.QueryRowContext(t.Context(), "SELECT string_agg(writer, ' ') FROM commits").Scan(&left); err != nil || left != "new" {
		t.Errorf("left %q %v, want new", left, err)
	}
}

// opened is a database in which a store has been.
func opened(t *testing.T, config Config) *sql.DB {
	t.Helper()
	store, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("pgx", config.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func number(t *testing.T, id string) int64 {
	t.Helper()
	if id == "" {
		return 0
	}
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
