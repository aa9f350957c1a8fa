package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

// Dialect is what the databases do not share.
type Dialect struct {
	Goose      database.Dialect
	Migrations fs.FS // NNNNN_name.sql at its root
	Begin      string
	// Rebind turns the ? of a query into the database's placeholders.
	Rebind func(query string) string
	// ForUpdate is appended to a SELECT of rows of the given table or alias
	// that the transaction is about to change.
	ForUpdate func(table string) string
	// ForeignKey reports whether the statement failed for a row that refers to
	// none.
	ForeignKey func(error) bool
	// Integrity says in words what is wrong with the database's own structures.
	Integrity func(ctx context.Context, tx *sql.Tx) ([]string, error)
}

// migrate brings the tables to the newest version this program knows.
func (d Dialect) migrate(ctx context.Context, db *sql.DB) error {
	p, err := goose.NewProvider(d.Goose, db, d.Migrations, goose.WithDisableGlobalRegistry(true))
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

// errForeignKey stands for a row that would refer to none.
var errForeignKey = errors.New("refers to nothing")
