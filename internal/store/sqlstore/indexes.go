package sqlstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
)

// indexed reports whether there is an index on the field.
func (s *Store) indexed(f selector.Field) bool {
	list := s.indexes.Load()
	return list != nil && slices.ContainsFunc(*list, func(i selector.Field) bool { return i.Key() == f.Key() })
}

// indexPrefix begins the name of every index that is made here.
const indexPrefix = "otad_field_"

// fieldIndex is an index on the value of one field, and on the device after it,
// so that equal values lie in the order in which devices are listed.
type fieldIndex struct{ name, table, columns string }

func (d Dialect) index(f selector.Field) fieldIndex {
	column, path := columnOf(f)
	i := fieldIndex{table: "devices", columns: "(" + d.JSON.Index("tags", path) + "), id"}
	if column == "s.document" {
		i.table, i.columns = "shadows", "("+d.JSON.Index("document", path)+"), device_id"
	}
	sum := sha256.Sum256([]byte(i.table + i.columns))
	i.name = indexPrefix + hex.EncodeToString(sum[:8])
	return i
}

func (i fieldIndex) create(concurrently string) string {
	text := "CREATE INDEX " + concurrently + " IF NOT EXISTS " + i.name + " ON " + i.table + " (" + i.columns + ")"
	if i.table == "shadows" {
		text += " WHERE name = ''"
	}
	return text
}

// IndexFields implements fleet.DeviceStore. The name of an index is made of what
// it is on, so one that is there under its name is the right one.
func (s *Store) IndexFields(ctx context.Context, fields []selector.Field) error {
	if err := fleet.Indexable(fields); err != nil {
		return err
	}
	d := s.config.Dialect
	want := map[string]fieldIndex{}
	for _, f := range fields {
		i := d.index(f)
		want[i.name] = i
	}
	found, err := d.Indexes(ctx, s.config.Reader, indexPrefix)
	if err != nil {
		return fmt.Errorf("read indexes: %w", err)
	}
	s.indexes.Store(nil)
	for name, whole := range found {
		if _, ok := want[name]; ok && whole {
			delete(want, name)
		} else if err := s.define(ctx, "DROP INDEX "+d.Concurrently+" IF EXISTS "+name); err != nil {
			return fmt.Errorf("drop index %s: %w", name, err)
		}
	}
	for name, i := range want {
		if err := s.define(ctx, i.create(d.Concurrently), "ANALYZE "+i.table); err != nil {
			return fmt.Errorf("create index %s on %s: %w", name, i.table, err)
		}
	}
	list := slices.Clone(fields)
	s.indexes.Store(&list)
	return nil
}

// define runs statements that change the tables: where they can be run beside
// writers, outside of any transaction, else as one operation of the writer.
func (s *Store) define(ctx context.Context, statements ...string) error {
	if s.config.Dialect.Concurrently != "" {
		for _, text := range statements {
			if _, err := s.config.Reader.ExecContext(ctx, text); err != nil {
				return err
			}
		}
		return nil
	}
	return s.writer.do(ctx, func(t *tx) error {
		for _, text := range statements {
			if _, err := t.exec(text); err != nil {
				return err
			}
		}
		return nil
	})
}

// NamedIndexes reads the names that a query returns with whether each index is
// whole.
func NamedIndexes(ctx context.Context, db *sql.DB, query string, args ...any) (map[string]bool, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]bool{}
	for rows.Next() {
		var name string
		var whole bool
		if err := rows.Scan(&name, &whole); err != nil {
			return nil, err
		}
		found[name] = whole
	}
	return found, rows.Err()
}
