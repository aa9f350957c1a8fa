package sqlstore

import (
	"slices"
	"strings"
	"time"
)

// Column is one column of rows that are written together.
type Column struct {
	Name string
	Type string          // in PostgreSQL's words
	list any             // all values, a slice
	at   func(i int) any // one value
}

func texts(name string, list []string) Column {
	return Column{name, "text", list, func(i int) any { return list[i] }}
}

func integers(name string, list []int64) Column {
	return Column{name, "bigint", list, func(i int) any { return list[i] }}
}

func blobs(name string, list [][]byte) Column {
	return Column{name, "bytea", list, func(i int) any { return list[i] }}
}

// times keeps what micros keeps.
func times(name string, list []time.Time) Column {
	kept := make([]*int64, len(list))
	for i, t := range list {
		if !t.IsZero() {
			n := t.UnixMicro()
			kept[i] = &n
		}
	}
	return Column{name, "bigint", kept, func(i int) any { return micros(list[i]) }}
}

// rowsHere stands in a statement where a FROM names its rows.
const rowsHere = "{rows}"

// bulk runs a statement over n rows, {rows} in it, in as few steps as the
// database can, and returns how many rows were changed. args are those of the
// placeholders before the rows. run is t.exec or t.write.
func (t *tx) bulk(run func(string, ...any) (int64, error), statement string, n int, args []any, columns ...Column) (changed int64, err error) {
	err = t.chunks(statement, n, args, columns, func(text string, args []any) error {
		k, err := run(text, args...)
		changed += k
		return err
	})
	return changed, err
}

// bulkWith is bulk with arguments of placeholders behind the rows.
func (t *tx) bulkWith(run func(string, ...any) (int64, error), statement string, n int, after []any, columns ...Column) (changed int64, err error) {
	err = t.chunks(statement, n, nil, columns, func(text string, args []any) error {
		k, err := run(text, append(slices.Clip(args), after...)...)
		changed += k
		return err
	})
	return changed, err
}

// lookWith is look with arguments of placeholders behind the rows.
func (t *tx) lookWith(f func(row) error, query string, n int, after []any, columns ...Column) error {
	return t.chunks(query, n, nil, columns, func(text string, args []any) error {
		return t.rows(f, text, append(slices.Clip(args), after...)...)
	})
}

// look calls f for each row that a query over n rows finds.
func (t *tx) look(f func(row) error, query string, n int, columns ...Column) error {
	return t.chunks(query, n, nil, columns, func(text string, args []any) error { return t.rows(f, text, args...) })
}

// chunks calls f with the statement and its arguments for as many rows as the
// database takes at a time.
func (t *tx) chunks(statement string, n int, args []any, columns []Column, f func(text string, args []any) error) error {
	sizes := t.w.dialect.Chunks
	if sizes == nil && n > 0 {
		for _, c := range columns {
			args = append(args, c.list)
		}
		return f(t.w.overRows(statement, columns, n), args)
	}
	shared := len(args)
	for done := 0; done < n; {
		size := chunkOf(sizes, n-done)
		args = args[:shared]
		for i := done; i < done+size; i++ {
			for _, c := range columns {
				args = append(args, c.at(i))
			}
		}
		if err := f(t.w.overRows(statement, columns, size), args); err != nil {
			return err
		}
		done += size
	}
	return nil
}

// chunkOf is the largest chunk that left rows fill.
func chunkOf(chunks []int, left int) int {
	for _, size := range chunks {
		if size <= left {
			return size
		}
	}
	return 1
}

// overRows returns the statement with its rows written out, made once.
func (w *writer) overRows(statement string, columns []Column, n int) string {
	if w.dialect.Chunks == nil {
		n = 0 // the same text for any number
	}
	key := overKey{statement, n}
	text, ok := w.over[key]
	if !ok {
		text = w.dialect.over(statement, columns, n)
		if w.over == nil {
			w.over = map[overKey]string{}
		}
		w.over[key] = text
	}
	return text
}

// over is the statement with n rows written out.
func (d Dialect) over(statement string, columns []Column, n int) string {
	return strings.Replace(statement, rowsHere, d.Rows(columns, n), 1)
}

type overKey struct {
	statement string
	rows      int
}
