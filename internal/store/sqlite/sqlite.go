// Package sqlite keeps everything in one SQLite file: the embedded store. It is
// sqlstore with SQLite's dialect, its migrations and its settings: a
// write-ahead log that is synced on every commit, so an acknowledged write
// outlives a power cut; one writing connection with group commit; and readers
// that never wait for it.
//
// One process uses a file at a time. Beside NAME stand NAME-wal and NAME-shm,
// which belong to it, and NAME.lock.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/pressly/goose/v3/database"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/otad/otad/internal/store/sqlstore"
)

// minReaders is how many reading connections there are at least.
const minReaders = 4

// Settings of every connection, in SQLite's words. cache_size is in KiB when
// negative. The log is checkpointed in larger steps than by default, for fewer
// syncs of the main file, and cut back when a great one has grown it.
var (
	writerPragmas = []string{
		"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "cache_size(-32000)",
		"wal_autocheckpoint(4000)", "journal_size_limit(67108864)",
	}
	readerPragmas = []string{"busy_timeout(5000)", "query_only(1)", "cache_size(-4000)"}
)

// Open opens the store in the file at path and creates it, readable by its
// owner only, when it does not exist. It fails when another process has it open.
func Open(ctx context.Context, path string) (_ *sqlstore.Store, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	lock, err := acquire(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if err := createFile(path); err != nil {
		return nil, err
	}
	writer, reader, err := handles(path)
	if err != nil {
		return nil, err
	}
	s, err := sqlstore.Open(ctx, sqlstore.Config{
		Dialect: dialect(), Writer: writer, Reader: reader,
		Cleanup: func(db *sql.DB) error {
			return errors.Join(checkpoint(db), lock.Close())
		},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), reader.Close(), writer.Close())
	}
	return s, nil
}

// acquire locks the file beside path that says the store is in use.
func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock store: %w", err)
	}
	if err := lock(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s is in use by another otad (%w): stop it, or give this one a data directory of its own", path, err)
	}
	return f, nil
}

// createFile makes the file before SQLite does, for its permissions; the files
// beside it inherit them.
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	return f.Close()
}

func handles(path string) (writer, reader *sql.DB, err error) {
	w, err := sqlite.NewConnector(dsn(path, url.Values{"_pragma": writerPragmas}))
	if err != nil {
		return nil, nil, err
	}
	r, err := sqlite.NewConnector(dsn(path, url.Values{"_pragma": readerPragmas, "mode": {"ro"}}))
	if err != nil {
		return nil, nil, err
	}
	writer, reader = sql.OpenDB(w), sql.OpenDB(r)
	writer.SetMaxOpenConns(1)
	n := max(minReaders, runtime.GOMAXPROCS(0))
	reader.SetMaxOpenConns(n)
	reader.SetMaxIdleConns(n)
	return writer, reader, nil
}

func dsn(path string, q url.Values) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: q.Encode()}
	return u.String()
}

// checkpoint moves the log into the file, so that the file alone is the store.
func checkpoint(db *sql.DB) error {
	if _, err := db.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return fmt.Errorf("checkpoint store: %w", err)
	}
	return nil
}

// rowChunks are how many rows one statement writes: prepared once each.
var rowChunks = []int{500, 100, 20, 5, 1}

func dialect() sqlstore.Dialect {
	return sqlstore.Dialect{
		Goose:     database.DialectSQLite3,
		Words:     sqlstore.Words{Text: "TEXT", Int: "INTEGER", Bytes: "BLOB", WithoutRowID: "WITHOUT ROWID"},
		Begin:     "BEGIN IMMEDIATE",
		Rebind:    func(query string) string { return query },
		Rows:      rows,
		Chunks:    rowChunks,
		Found:     found,
		JSON:      jsonText{},
		Indexes:   indexes,
		ForUpdate: func(string) string { return "" },
		Fault:     fault,
		Integrity: integrity,
	}
}

func found(query string) string {
	return "(rollout_id, device_id, attempt) IN (SELECT rollout_id, device_id, attempt" + query + ")"
}

// rows is a table of placeholders. SQLite calls the columns of VALUES column1
// and so on.
func rows(columns []sqlstore.Column, n int) string {
	names, marks := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		names[i], marks[i] = fmt.Sprintf("column%d AS %s", i+1, c.Name), "?"
	}
	row := "(" + strings.Join(marks, ", ") + ")"
	return fmt.Sprintf("(SELECT %s FROM (VALUES %s)) AS v", strings.Join(names, ", "), row+strings.Repeat(", "+row, n-1))
}

func fault(err error) sqlstore.Fault {
	var e *sqlite.Error
	if errors.As(err, &e) && e.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY {
		return sqlstore.FaultReference
	}
	return sqlstore.FaultOther
}

// integrity asks SQLite about its own file.
func integrity(ctx context.Context, tx *sql.Tx) ([]string, error) {
	rows, err := tx.QueryContext(ctx, "PRAGMA integrity_check")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var faults []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		if text != "ok" {
			faults = append(faults, "database file: "+text)
		}
	}
	return faults, rows.Err()
}
