package postgres

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/selector"
)

// jsonText is PostgreSQL's way into JSON text: as jsonb, whose numbers are exact.
// A string with a zero byte and a number beyond numeric are an error there, which
// would end the whole query, so rows with one are left out. See Opaque.
type jsonText struct{}

// nul is how a zero byte stands in JSON text.
const nul = `'\u0000'`

// readable is where the column can be read as jsonb.
func readable(column string) string {
	if table, ok := strings.CutSuffix(column, "document"); ok {
		return table + "deleted_at IS NULL AND " + table + "opaque = 0"
	}
	return "strpos(" + column + ", " + nul + ") = 0"
}

// maybeNumber reports whether PostgreSQL may take the key for a number.
func maybeNumber(key string) bool { return !strings.ContainsFunc(key, unicode.IsLetter) }

// At implements sqlstore.JSON. The text is read through to the value at the path,
// and only that becomes jsonb, for half of what the whole document costs. Of a
// whole path PostgreSQL takes digits for the place in an array, so where a key
// may be some, each is asked for by itself.
func (j jsonText) At(column string, keys []string, indexed bool) sqlstore.JSONValue {
	if indexed {
		return value{Condition: sqlstore.Condition{SQL: j.Index(column, keys)}}
	}
	if len(keys) > 0 && !slices.ContainsFunc(keys, maybeNumber) {
		return value{sqlstore.Say("(CASE WHEN "+readable(column)+" THEN CAST(CAST("+column+" AS json) #> CAST(? AS text[]) AS jsonb) END)", keys), column, keys}
	}
	v := sqlstore.Condition{SQL: "(CASE WHEN " + readable(column) + " THEN CAST(" + column + " AS jsonb) END)"}
	for _, k := range keys {
		v = sqlstore.Say("(? -> CAST(? AS text))", v, k)
	}
	return value{v, column, keys}
}

// maxIndexed is the longest text that an index holds: a row of an index has to
// fit on a third of a page.
const maxIndexed = 500

// Index implements sqlstore.JSON, by a function of the migrations that reads the
// JSON once. It is NULL for what is no scalar, and for long texts.
func (jsonText) Index(column string, keys []string) string {
	path := make([]string, len(keys))
	for i, k := range keys {
		path[i] = "'" + strings.ReplaceAll(k, "'", "''") + "'"
	}
	return "(CASE WHEN " + readable(column) + " THEN otad_scalar(" + column + ", " + strings.Join(path, ", ") + ") END)"
}

// Opaque implements sqlstore.JSON.
func (jsonText) Opaque(column string) sqlstore.Condition {
	if column == "s.document" {
		return sqlstore.Condition{SQL: "(s.opaque = 1 AND s.deleted_at IS NULL)"}
	}
	return sqlstore.Condition{SQL: "(d.opaque = 1)"}
}

// Holds implements sqlstore.JSON.
func (jsonText) Holds(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// Contains implements sqlstore.JSON.
func (jsonText) Contains(text sqlstore.Condition, part string) sqlstore.Condition {
	return sqlstore.Say("(strpos(?, CAST(? AS text)) > 0)", text, part)
}

// HasSuffix implements sqlstore.JSON.
func (jsonText) HasSuffix(text sqlstore.Condition, part string) sqlstore.Condition {
	return sqlstore.Say("(right(?, CAST(? AS int)) = CAST(? AS text))", text, utf8.RuneCountInString(part), part)
}

// Mentions implements sqlstore.JSON: looking for some bytes costs a fraction of
// reading the document.
func (jsonText) Mentions(column, literal string) sqlstore.Condition {
	return sqlstore.Say("(strpos("+column+", CAST(? AS text)) > 0)", literal)
}

// value is an expression of type jsonb, and where it stands when that is a path
// in a column.
type value struct {
	sqlstore.Condition
	column string
	path   []string
}

var kinds = map[sqlstore.JSONKind]string{
	sqlstore.JSONAny: "jsonb_typeof(?) <> 'null'", sqlstore.JSONText: "jsonb_typeof(?) = 'string'", sqlstore.JSONNumber: "jsonb_typeof(?) = 'number'",
	sqlstore.JSONTrue: "? = CAST('true' AS jsonb)", sqlstore.JSONFalse: "? = CAST('false' AS jsonb)",
	sqlstore.JSONObject: "jsonb_typeof(?) = 'object'", sqlstore.JSONArray: "jsonb_typeof(?) = 'array'",
}

// Is implements sqlstore.JSONValue.
func (v value) Is(k sqlstore.JSONKind) sqlstore.Condition {
	return sqlstore.Say("("+kinds[k]+")", v.Condition)
}

// Text implements sqlstore.JSONValue.
func (v value) Text() sqlstore.Condition {
	return sqlstore.Say(`((? #>> '{}') COLLATE "C")`, v.Condition)
}

// Number implements sqlstore.JSONValue. The comparison comes first, as it is
// what few rows pass; it says nothing about other types. Before it, where that can
// be, comes a glance at the text.
func (v value) Number(op selector.Operator, literal string) sqlstore.Bounds {
	compared := sqlstore.Say("? "+spelling(op)+" CAST(CAST(? AS text) AS jsonb)", v.Condition, literal)
	if v.column == "s.document" && len(v.path) > 1 && glanceable(v.path) {
		compared = sqlstore.Say("CASE WHEN "+readable(v.column)+" THEN CASE WHEN ? THEN ? END END", mayCompare(v.column, v.path, op, literal), compared)
	}
	return sqlstore.Exactly(sqlstore.Say("CASE WHEN ? THEN ? END", compared, v.Is(sqlstore.JSONNumber)))
}

func spelling(op selector.Operator) string {
	if op == selector.NotEqual {
		return "<>"
	}
	return string(op)
}

// Key implements sqlstore.JSONValue.
func (v value) Key(key string) sqlstore.Condition {
	return sqlstore.Say("jsonb_exists(?, CAST(? AS text))", v.Condition, key)
}

// Any implements sqlstore.JSONValue.
func (v value) Any(f func(sqlstore.JSONValue) sqlstore.Bounds) sqlstore.Bounds {
	exists := func(c sqlstore.Condition) sqlstore.Condition {
		return sqlstore.Say("EXISTS (SELECT 1 FROM jsonb_array_elements(CASE WHEN ? THEN ? END) AS e(v) WHERE ?)", v.Is(sqlstore.JSONArray), v.Condition, c)
	}
	b := f(value{Condition: sqlstore.Condition{SQL: "e.v"}})
	return sqlstore.Bounds{Upper: exists(b.Upper), Lower: exists(b.Lower)}
}

// Seek implements sqlstore.JSONValue. Numbers lie together in the order of
// jsonb, after all texts; texts lie in the order of the database's language, not
// of their bytes, so only one text can be looked up.
func (v value) Seek(op selector.Operator, l selector.Literal) sqlstore.Lookup {
	if l.Kind == selector.Number {
		switch op {
		case selector.Equal, selector.Less, selector.LessEqual, selector.Greater, selector.GreaterEqual:
			c := sqlstore.Say("(? "+string(op)+" CAST(CAST(? AS text) AS jsonb))", v.Condition, l.Text)
			return sqlstore.Lookup{Condition: c, Ordered: op == selector.Equal, Exact: op == selector.Equal}
		}
		return sqlstore.Lookup{}
	}
	if op != selector.Equal || len(l.Text) > maxIndexed {
		return sqlstore.Lookup{}
	}
	return sqlstore.Lookup{Condition: sqlstore.Say("(? = to_jsonb(CAST(? AS text)))", v.Condition, l.Text), Ordered: true, Exact: true}
}

// indexes implements sqlstore.Dialect. One that another otad is just making
// counts as whole.
func indexes(ctx context.Context, db *sql.DB, prefix string) (map[string]bool, error) {
	return sqlstore.NamedIndexes(ctx, db, `SELECT c.relname, i.indisvalid OR EXISTS
		(SELECT 1 FROM pg_stat_progress_create_index p WHERE p.index_relid = c.oid)
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
		WHERE t.relnamespace = CAST(current_schema() AS regnamespace) AND starts_with(CAST(c.relname AS text), $1)`, prefix)
}
