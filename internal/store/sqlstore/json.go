package sqlstore

import (
	"strings"

	"github.com/otad/otad/pkg/selector"
)

// Condition is a part of a query with the arguments of its placeholders. Where
// it stands for yes or no, NULL is no.
type Condition struct {
	SQL  string
	Args []any
}

// Bounds are two conditions around one that SQL may not be able to say exactly:
// every row that matches satisfies Upper, and every row that satisfies Lower
// matches. Rows between them have to be looked at.
type Bounds struct{ Upper, Lower Condition }

// Exactly is the bounds of a condition that says what is meant.
func Exactly(c Condition) Bounds { return Bounds{c, c} }

// Say makes a condition of SQL text and its arguments, in which each %s stands
// for another condition.
func Say(sql string, parts ...any) Condition {
	var b strings.Builder
	var args []any
	for i, piece := range strings.SplitAfter(sql, "?") {
		if i < len(parts) {
			if c, ok := parts[i].(Condition); ok {
				b.WriteString(strings.TrimSuffix(piece, "?"))
				b.WriteString(c.SQL)
				args = append(args, c.Args...)
				continue
			}
			args = append(args, parts[i])
		}
		b.WriteString(piece)
	}
	return Condition{b.String(), args}
}

var (
	always = Condition{SQL: "TRUE"}
	never  = Condition{SQL: "FALSE"}
)

// either and both join conditions as a balanced tree, so that long lists do not
// nest deeply.
func both(list ...Condition) Condition   { return joined(" AND ", list) }
func either(list ...Condition) Condition { return joined(" OR ", list) }

func joined(by string, list []Condition) Condition {
	switch len(list) {
	case 1:
		return list[0]
	case 2:
		return Condition{
			"(" + list[0].SQL + by + list[1].SQL + ")",
			append(list[0].Args[:len(list[0].Args):len(list[0].Args)], list[1].Args...),
		}
	}
	half := len(list) / 2
	return joined(by, []Condition{joined(by, list[:half]), joined(by, list[half:])})
}

// notTrue is so where c is not, NULL included.
func notTrue(c Condition) Condition {
	return Condition{"((" + c.SQL + ") IS NOT TRUE)", c.Args}
}

// JSONKind is the type of a JSON value.
type JSONKind int

// The kinds. JSONAny is any of them but null.
const (
	JSONAny JSONKind = iota
	JSONText
	JSONNumber
	JSONTrue
	JSONFalse
	JSONObject
	JSONArray
)

// JSON is how a database looks into columns with JSON text.
type JSON interface {
	// At is the value at a path of objects in the column, which is qualified with
	// its table. indexed asks for the expression that Index has, with the path
	// in the SQL itself, where else it is an argument.
	At(column string, path []string, indexed bool) JSONValue
	// Index is that expression for an index on the column's table.
	Index(column string, path []string) string
	// Opaque is so for rows whose column At does not see: it finds nothing in
	// them. Without SQL: there are none.
	Opaque(column string) Condition
	// Holds reports whether the database can take s as text and compare it byte
	// by byte.
	Holds(s string) bool
	// Mentions asks for bytes anywhere in the column. Without SQL: looking into
	// the JSON is as fast.
	Mentions(column, literal string) Condition
	// Contains and HasSuffix ask for a part of a text, which is not empty.
	Contains(text Condition, part string) Condition
	HasSuffix(text Condition, part string) Condition
}

// JSONValue is a value within a column.
type JSONValue interface {
	Is(JSONKind) Condition
	// Text is the text of a value of the kind JSONText.
	Text() Condition
	// Number compares a value of the kind JSONNumber with a decimal literal.
	Number(op selector.Operator, literal string) Bounds
	// Key asks a value of the kind JSONObject for a key.
	Key(key string) Condition
	// Any asks for an element of a value of the kind JSONArray.
	Any(func(element JSONValue) Bounds) Bounds
	// Seek is what an index on the value can be asked for. Without SQL: nothing.
	Seek(op selector.Operator, value selector.Literal) Lookup
}

// Lookup is a condition that an index can serve and that holds wherever a
// comparison does.
type Lookup struct {
	Condition
	Ordered bool // it names one value, so the index has the rows in the order of their device
	Exact   bool // it says the same as the comparison
}
