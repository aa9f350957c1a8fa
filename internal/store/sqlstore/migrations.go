package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"text/template"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Words are what the migrations, which are templates, spell differently for
// each database. Where a statement differs altogether, they ask {{if .Postgres}}.
type Words struct {
	Text         string // text that is compared byte by byte
	Int          string // a signed 64-bit integer
	Bytes        string
	WithoutRowID string // a table whose rows lie in its primary key
	Postgres     bool
}

// migrate brings the tables to the newest version this program knows. Other
// processes that start on the same database at once wait for it.
func (d Dialect) migrate(ctx context.Context, db *sql.DB) (err error) {
	unlock, err := d.lock(ctx, db)
	if err != nil {
		return fmt.Errorf("wait for the migrations of another otad: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(d.Goose, db, spelt{files, d.Words}, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if current > target {
		return fmt.Errorf("the database has schema version %d, this otad knows up to %d: run the otad that wrote it, or a newer one", current, target)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate database: %w", err)
	}
	return nil
}

func (d Dialect) lock(ctx context.Context, db *sql.DB) (unlock func() error, err error) {
	if d.Lock == nil {
		return func() error { return nil }, nil
	}
	return d.Lock(ctx, db)
}

// spelt is the folder of migrations in the words of one database.
type spelt struct {
	fs.FS
	words Words
}

// Open implements fs.FS.
func (s spelt) Open(name string) (fs.File, error) {
	if path.Ext(name) != ".sql" {
		return s.FS.Open(name)
	}
	t, err := template.ParseFS(s.FS, name)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := t.Execute(&text, s.words); err != nil {
		return nil, err
	}
	info, err := fs.Stat(s.FS, name)
	if err != nil {
		return nil, err
	}
	return speltFile{bytes.NewReader(text.Bytes()), info}, nil
}

type speltFile struct {
	*bytes.Reader
	info fs.FileInfo
}

// Stat implements fs.File. The size is that of the template.
func (f speltFile) Stat() (fs.FileInfo, error) { return f.info, nil }

// Close implements fs.File.
func (speltFile) Close() error { return nil }
