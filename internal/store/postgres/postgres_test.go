package postgres_test

import (
	"context"
	"database/sql"
	"os"
	"strings"
	"sync"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/postgres"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/internal/store/storetest"
	"github.com/otad/otad/internal/testserver"
)

var server testserver.Postgres

func TestMain(m *testing.M) {
	code := m.Run()
	server.Stop()
	durable.Stop()
	os.Exit(code)
}

func TestStore(t *testing.T) {
	p := &pool{t: t}
	storetest.Run(t, func(tb testing.TB) fleet.Store {
		s := p.take()
		tb.Cleanup(func() { _ = s.Close() })
		return s
	})
}

// pool lends stores to one test after the other, emptied in between: opening
// one takes much longer than what most tests do with it.
type pool struct {
	t    *testing.T
	mu   sync.Mutex
	idle []*lent
}

// lent is a store that goes back when it is closed.
type lent struct {
	*sqlstore.Store
	pool *pool
	url  string
	back bool // guarded by pool.mu
}

func (p *pool) take() *lent {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		s := p.idle[n-1]
		p.idle = p.idle[:n-1]
		s.back = false
		empty(p.t, s.url)
		return s
	}
	url := server.Schema(p.t)
	return &lent{Store: open(p.t, url), pool: p, url: url}
}

// Close implements fleet.Store.
func (s *lent) Close() error {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if s.back {
		return nil
	}
	s.back = true
	s.pool.idle = append(s.pool.idle, s)
	return nil
}

// empty deletes everything, whatever refers to what.
func empty(t *testing.T, url string) {
	t.Helper()
	tamper(t, url, `DO $$ DECLARE t TEXT; BEGIN
		SET LOCAL session_replication_role = replica;
		FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename NOT IN ('goose_db_version', 'group_generation') LOOP
			EXECUTE 'DELETE FROM ' || t;
		END LOOP;
		UPDATE group_generation SET generation = generation + 1; -- so that no writer goes on with groups of before
	END $$`)
}

// tamper runs statements behind the store's back.
func tamper(t testing.TB, url, statements string) {
	t.Helper()
	must(t, run(url, statements))
}

func run(url, statements string) error {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.Exec(statements)
	return err
}

func open(t testing.TB, url string) *sqlstore.Store {
	t.Helper()
	s, err := postgres.Open(context.Background(), postgres.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	url := server.Database(t)
	for _, c := range []struct{ url, words string }{
		{"mysql://db/otad", "want a URL such as postgres://"},
		{"host=db password=x", "want a URL such as postgres://"},
		{"postgres://u@h:99999/x", "cannot parse"},
		{strings.Replace(url, "@", "x@", 1), "password authentication failed"},
		{strings.Replace(url, "?", "none?", 1), "does not exist"},
		{url + "&options=-c%20synchronous_commit%3Doff", "acknowledged write has to be durable"},
		{url + "&options=-c%20default_transaction_read_only%3Don", "want a primary"},
	} {
		s, err := postgres.Open(t.Context(), postgres.Config{URL: c.url})
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", c.words, err, c.words)
		}
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	url := server.Schema(t)
	must(t, open(t, url).Close())
	tamper(t, url, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true)`)
	if _, err := postgres.Open(t.Context(), postgres.Config{URL: url}); err == nil || !strings.Contains(err.Error(), "schema version 99") {
		t.Fatalf("opened a database of the future: %v", err)
	}
}

// TestReplicasStartAtOnce: one migrates, the others wait for it.
func TestReplicasStartAtOnce(t *testing.T) {
	url := server.Schema(t)
	errs := make(chan error)
	const n = 8
	for range n {
		go func() {
			s, err := postgres.Open(context.Background(), postgres.Config{URL: url})
			if err == nil {
				err = s.Close()
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestThePasswordMayComeByItself, from where no command line shows it.
func TestThePasswordMayComeByItself(t *testing.T) {
	url := server.Database(t)
	_, rest, _ := strings.Cut(url, "://postgres:")
	password, rest, _ := strings.Cut(rest, "@")
	s, err := postgres.Open(t.Context(), postgres.Config{URL: "postgres://postgres@" + rest, Password: password})
	must(t, err)
	must(t, s.Close())
	for url, want := range map[string]bool{
		"postgres://u@h/d": false, "postgres://u:p@h/d": true, "postgres://u@h/d?password=p": true, "postgres://h/d?sslmode=disable": false,
	} {
		if got := postgres.HasPassword(url); got != want {
			t.Errorf("%s: %v", url, got)
		}
	}
}
