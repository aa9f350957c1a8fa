package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/selector"
)

// jsonText is SQLite's way into JSON text. Only numbers are not exact: SQLite
// reads those that are no 64-bit integers as floats. See numbers.
type jsonText struct{}

// path is a JSON path of SQLite. Its keys are JSON strings, so no key can end
// it.
func path(keys []string) string {
	var b strings.Builder
	b.WriteByte('$')
	for _, k := range keys {
		quoted, _ := json.Marshal(k)
		b.WriteByte('.')
		b.Write(quoted)
	}
	return b.String()
}

// visible is the column where it holds JSON: the document of a deleted shadow is
// empty.
func visible(column string) string {
	if table, ok := strings.CutSuffix(column, "document"); ok {
		return "CASE WHEN " + table + "deleted_at IS NULL THEN " + column + " END"
	}
	return column
}

// At implements sqlstore.JSON.
func (j jsonText) At(column string, keys []string, indexed bool) sqlstore.JSONValue {
	p := path(keys)
	at := func(function string) sqlstore.Condition {
		return sqlstore.Condition{SQL: function + "(" + visible(column) + ", ?)", Args: []any{p}}
	}
	v := value{kind: at("json_type"), value: at("json_extract"),
		raw:   sqlstore.Condition{SQL: "((" + visible(column) + ") -> ?)", Args: []any{p}},
		array: at("json_each"), column: column, path: keys}
	if indexed {
		v.value = sqlstore.Condition{SQL: j.Index(column, keys)}
	}
	return v
}

// Index implements sqlstore.JSON.
func (jsonText) Index(column string, keys []string) string {
	return "json_extract(" + visible(column) + ", '" + strings.ReplaceAll(path(keys), "'", "''") + "')"
}

// Opaque implements sqlstore.JSON: SQLite reads all that pkg/shadow writes.
func (jsonText) Opaque(string) sqlstore.Condition { return sqlstore.Condition{} }

// Holds implements sqlstore.JSON.
func (jsonText) Holds(s string) bool { return utf8.ValidString(s) }

// Mentions implements sqlstore.JSON.
func (jsonText) Mentions(string, string) sqlstore.Condition { return sqlstore.Condition{} }

// Contains implements sqlstore.JSON. As a BLOB the text is searched byte by
// byte, NUL included.
func (jsonText) Contains(text sqlstore.Condition, part string) sqlstore.Condition {
	return sqlstore.Say("(instr(CAST(? AS BLOB), ?) > 0)", text, []byte(part))
}

// HasSuffix implements sqlstore.JSON.
func (jsonText) HasSuffix(text sqlstore.Condition, part string) sqlstore.Condition {
	n := strconv.Itoa(len(part))
	return sqlstore.Say("(substr(CAST(? AS BLOB), -"+n+", "+n+") = ?)", text, []byte(part))
}

// value is one JSON value as four expressions: the name of its type, itself as
// SQLite has it, its JSON text, and its elements as a table.
type value struct {
	kind, value, raw, array sqlstore.Condition
	column                  string
	path                    []string
}

var kinds = map[sqlstore.JSONKind]string{
	sqlstore.JSONAny: " <> 'null'", sqlstore.JSONText: " = 'text'", sqlstore.JSONNumber: " IN ('integer', 'real')",
	sqlstore.JSONTrue: " = 'true'", sqlstore.JSONFalse: " = 'false'", sqlstore.JSONObject: " = 'object'", sqlstore.JSONArray: " = 'array'",
}

// Is implements sqlstore.JSONValue.
func (v value) Is(k sqlstore.JSONKind) sqlstore.Condition {
	return sqlstore.Say("(?"+kinds[k]+")", v.kind)
}

// Text implements sqlstore.JSONValue.
func (v value) Text() sqlstore.Condition { return v.value }

// Key implements sqlstore.JSONValue.
func (v value) Key(key string) sqlstore.Condition {
	if v.column == "" {
		panic("an element of an array is asked for a key")
	}
	return sqlstore.Say("(? IS NOT NULL)", jsonText{}.At(v.column, append(v.path[:len(v.path):len(v.path)], key), false).(value).kind)
}

// Any implements sqlstore.JSONValue.
func (v value) Any(f func(sqlstore.JSONValue) sqlstore.Bounds) sqlstore.Bounds {
	element := value{
		kind: sqlstore.Condition{SQL: "e.type"}, value: sqlstore.Condition{SQL: "e.value"},
		raw: sqlstore.Condition{SQL: "(e.json -> e.fullkey)"},
	}
	exists := func(c sqlstore.Condition) sqlstore.Condition {
		return sqlstore.Say("EXISTS (SELECT 1 FROM ? AS e WHERE ?)", v.array, c)
	}
	b := f(element)
	return sqlstore.Bounds{Upper: exists(b.Upper), Lower: exists(b.Lower)}
}

// exactDigits is how many characters a number may have to be told from every
// other such number by its nearest float.
const exactDigits = 15

// Number implements sqlstore.JSONValue.
//
// SQLite has integers of 64 bits exactly and all else as the nearest float.
// Rounding never turns an order around, so where the floats differ the numbers
// do, in the same direction. Where they are the same, the numbers are when they
// are short; longer ones are in doubt, and so are those with an exponent, which
// may be beyond what a float or a selector holds.
func (v value) Number(op selector.Operator, literal string) sqlstore.Bounds {
	low, high := around(literal)
	if low != high {
		return v.largeNumber(op, literal, low, high)
	}
	doubt := sqlstore.Say("(? LIKE '%e%' OR (? = ? AND length(?) > "+strconv.Itoa(exactDigits)+"))", v.raw, v.value, low, v.raw)
	compared := sqlstore.Say("(? "+string(op)+" ?)", v.value, low)
	return sqlstore.Bounds{
		Upper: sqlstore.Say("(? AND (? OR ?))", v.Is(sqlstore.JSONNumber), compared, doubt),
		Lower: sqlstore.Say("(? AND ? AND NOT ?)", v.Is(sqlstore.JSONNumber), compared, doubt),
	}
}

// largeNumber compares with an integer that no float holds: integers are
// compared exactly, the others are in doubt.
func (v value) largeNumber(op selector.Operator, literal string, low, high any) sqlstore.Bounds {
	n, _ := strconv.ParseInt(literal, 10, 64)
	exact := sqlstore.Say("(typeof(?) = 'integer' AND ? "+string(op)+" ?)", v.value, v.value, n)
	return sqlstore.Bounds{
		Upper: sqlstore.Say("(? OR (typeof(?) = 'real' AND ?))", exact, v.value, v.Is(sqlstore.JSONNumber)),
		Lower: sqlstore.Say("(? AND ?)", v.Is(sqlstore.JSONNumber), exact),
	}
}

// around returns the literal as SQLite compares it. When no float equals it,
// low and high are two different numbers with the literal and every float that a
// number equal to it may be read as between them.
func around(literal string) (low, high any) {
	f, _ := strconv.ParseFloat(literal, 64)
	n, err := strconv.ParseInt(literal, 10, 64)
	if err != nil {
		return f, f
	}
	switch new(big.Float).SetFloat64(f).Cmp(new(big.Float).SetPrec(64).SetInt64(n)) {
	case -1:
		return f, n
	case 1:
		return n, f
	}
	return n, n
}

// Seek implements sqlstore.JSONValue.
func (v value) Seek(op selector.Operator, l selector.Literal) sqlstore.Lookup {
	low, high := any(l.Text), any(l.Text)
	if l.Kind == selector.Number {
		low, high = around(l.Text)
	}
	switch op {
	case selector.Equal:
		if low != high {
			return sqlstore.Lookup{Condition: sqlstore.Say("(? BETWEEN ? AND ?)", v.value, low, high)}
		}
		// The text of an object or array begins as these do.
		exact := l.Kind != selector.Number && !strings.HasPrefix(l.Text, "{") && !strings.HasPrefix(l.Text, "[")
		return sqlstore.Lookup{Condition: sqlstore.Say("(? = ?)", v.value, low), Ordered: true, Exact: exact}
	case selector.Less, selector.LessEqual:
		return sqlstore.Lookup{Condition: sqlstore.Say("(? <= ?)", v.value, high)}
	case selector.Greater, selector.GreaterEqual:
		return sqlstore.Lookup{Condition: sqlstore.Say("(? >= ?)", v.value, low)}
	}
	return sqlstore.Lookup{}
}

// indexes implements sqlstore.Dialect: SQLite makes an index whole or not at all.
func indexes(ctx context.Context, db *sql.DB, prefix string) (map[string]bool, error) {
	return sqlstore.NamedIndexes(ctx, db, `SELECT name, 1 FROM sqlite_master WHERE type = 'index' AND substr(name, 1, ?) = ?`, len(prefix), prefix)
}
