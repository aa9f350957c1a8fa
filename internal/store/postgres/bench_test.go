package postgres_test

import (
	"database/sql"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/store/storetest"
	"github.com/otad/otad/internal/testserver"
	"github.com/otad/otad/pkg/shadow"
)

// durable waits for the disk, as a server in use does.
var durable = testserver.Postgres{Durable: true}

// bench is the fleet that every run uses.
var bench struct {
	mu  sync.Mutex
	url string
}

func benchURL(b *testing.B) string {
	b.Helper()
	bench.mu.Lock()
	defer bench.mu.Unlock()
	if bench.url == "" {
		bench.url = durable.Database(b)
	}
	return bench.url
}

func onBench(b *testing.B) storetest.Bench {
	b.Helper()
	url := benchURL(b)
	return storetest.Bench{Store: open(b, url), Exec: func(statement string) error { return run(url, statement) }, Database: durable.CPU}
}

func BenchmarkShadowUpdate(b *testing.B) { storetest.BenchUpdates(b, onBench(b)) }

func BenchmarkShadowRead(b *testing.B) { storetest.BenchReads(b, onBench(b)) }

func BenchmarkGroupReflects(b *testing.B) { storetest.BenchGroupReflects(b, onBench(b)) }

// BenchmarkCancel cancels executions that wait.
func BenchmarkCancel(b *testing.B) {
	b.Run("100k", func(b *testing.B) { benchCancel(b, 100_000) })
	b.Run("300k", func(b *testing.B) { benchCancel(b, 300_000) })
	b.Run("1M", func(b *testing.B) { benchCancel(b, 1_000_000) })
}

func benchCancel(b *testing.B, n int) {
	url := durable.Database(b)
	storetest.BenchCancel(b, storetest.Bench{Store: open(b, url), Exec: func(statement string) error { return run(url, statement) }, Database: durable.CPU}, n)
}

// naiveConnections is how many the naive form has; more of them are slower.
const naiveConnections = 16

// BenchmarkShadowUpdateNaive is what the store is measured against: the same
// work in one transaction for each update.
func BenchmarkShadowUpdateNaive(b *testing.B) {
	on := onBench(b)
	db, err := sql.Open("pgx", benchURL(b))
	must(b, err)
	defer db.Close()
	db.SetMaxOpenConns(naiveConnections)
	db.SetMaxIdleConns(naiveConnections)
	storetest.BenchNaive(b, on, func(id string, u shadow.Update) error { return naiveUpdate(db, id, u) })
}

func naiveUpdate(db *sql.DB, id string, u shadow.Update) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	var text string
	if err := tx.QueryRow(`SELECT document FROM shadows WHERE device_id = $1 AND name = '' FOR UPDATE`, id).Scan(&text); err != nil {
		return err
	}
	doc, err := shadow.ParseDocument(text)
	if err != nil {
		return err
	}
	r, err := shadow.Apply(doc, u, time.Now())
	if err != nil {
		return err
	}
	_, err = tx.Exec(`UPDATE shadows SET version = $1, document = $2 WHERE device_id = $3 AND name = ''`, r.Document.Version, string(r.Document.Append(nil)), id)
	if err != nil {
		return err
	}
	return tx.Commit()
}
