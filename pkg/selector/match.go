package selector

import (
	"encoding/json"
	"strings"
)

// node is one part of a compiled expression.
type node interface{ match(f Facts) bool }

type (
	and struct{ left, right node }
	or  struct{ left, right node }
	not struct{ of node }
)

func (n and) match(f Facts) bool { return n.left.match(f) && n.right.match(f) }
func (n or) match(f Facts) bool  { return n.left.match(f) || n.right.match(f) }
func (n not) match(f Facts) bool { return !n.of.match(f) }

// source is where the value of a field comes from.
type source string

const (
	id       source = "id"
	hardware source = "hardware"
	tags     source = "tags"
	reported source = "shadow.reported"
	desired  source = "shadow.desired"
)

// field is the left side of a comparison.
type field struct {
	source source
	path   []string
}

// isMap reports whether f is tags or a section of the shadow as a whole.
func (f field) isMap() bool { return len(f.path) == 0 && f.source != id && f.source != hardware }

// isText reports whether f is text whenever it is there.
func (f field) isText() bool {
	return f.source == id || f.source == hardware || f.source == tags && len(f.path) > 0
}

// kind is the type of a literal.
type kind int

const (
	text   kind = iota // in quotes
	word               // without quotes; true and false are of this kind
	number             // with s its decimal text
)

// literal is the right side of a comparison.
type literal struct {
	kind kind
	s    string
	d    decimal // of a number
}

func numberLiteral(s string) literal {
	d, _ := decimalOf(s)
	return literal{kind: number, s: s, d: d}
}

type operator string

const (
	opEqual        operator = "="
	opNotEqual     operator = "!="
	opLess         operator = "<"
	opLessEqual    operator = "<="
	opGreater      operator = ">"
	opGreaterEqual operator = ">="
	opHas          operator = ":"
)

// holds reports whether an order of -1, 0 or 1 satisfies the operator.
func (op operator) holds(order int) bool {
	switch op {
	case opEqual, opHas:
		return order == 0
	case opNotEqual:
		return order != 0
	case opLess:
		return order < 0
	case opLessEqual:
		return order <= 0
	case opGreater:
		return order > 0
	case opGreaterEqual:
		return order >= 0
	}
	return false
}

type comparison struct {
	field field
	op    operator
	value literal
}

func (c comparison) match(f Facts) bool {
	switch c.field.source {
	case id:
		return c.matchText(f.ID())
	case hardware:
		return c.matchText(f.Hardware())
	case tags:
		return c.matchTags(f.Tags())
	case reported:
		return c.matchAt(f.Reported())
	case desired:
		return c.matchAt(f.Desired())
	}
	return false
}

func (c comparison) matchTags(m map[string]string) bool {
	if len(c.field.path) > 0 {
		s, ok := m[c.field.path[0]]
		return ok && c.matchText(s)
	}
	if c.anything() {
		return len(m) > 0
	}
	_, ok := m[c.value.s]
	return ok
}

// matchAt compares what is at the field's path below m.
func (c comparison) matchAt(m map[string]any) bool {
	path := c.field.path
	if len(path) == 0 {
		return len(m) > 0 && c.matchObject(m)
	}
	last := len(path) - 1
	for _, k := range path[:last] {
		m, _ = m[k].(map[string]any)
	}
	v, ok := m[path[last]]
	return ok && c.matchValue(v)
}

// anything reports whether c is field:*.
func (c comparison) anything() bool { return c.op == opHas && c.value.s == "*" }

func (c comparison) matchValue(v any) bool {
	if c.anything() {
		return v != nil
	}
	switch v := v.(type) {
	case string:
		return c.matchText(v)
	case json.Number:
		return c.matchNumber(string(v))
	case bool:
		return c.matchBool(v)
	case map[string]any:
		return c.matchObject(v)
	case []any:
		return c.matchArray(v)
	}
	return false
}

func (c comparison) matchText(s string) bool {
	if c.value.kind == number {
		return false
	}
	switch c.op {
	case opHas:
		return c.anything() || strings.Contains(s, c.value.s)
	case opEqual:
		return matchWild(c.value.s, s)
	case opNotEqual:
		return !matchWild(c.value.s, s)
	}
	return c.op.holds(strings.Compare(s, c.value.s))
}

// matchWild compares s with a pattern that may begin and end with *.
func matchWild(pattern, s string) bool {
	rest, open := strings.CutPrefix(pattern, "*")
	middle, openEnd := strings.CutSuffix(rest, "*")
	switch {
	case open && openEnd:
		return strings.Contains(s, middle)
	case open:
		return strings.HasSuffix(s, rest)
	case openEnd:
		return strings.HasPrefix(s, middle)
	}
	return s == pattern
}

func (c comparison) matchNumber(s string) bool {
	if c.value.kind != number {
		return false
	}
	d, ok := decimalOf(s)
	return ok && c.op.holds(compareDecimals(d, c.value.d))
}

// matchBool compares with true and false. After : the parser no longer tells
// quotes, so there both kinds of text count.
func (c comparison) matchBool(b bool) bool {
	if c.value.kind == number || c.value.kind == text && c.op != opHas {
		return false
	}
	if c.value.s != "true" && c.value.s != "false" {
		return false
	}
	same := (c.value.s == "true") == b
	switch c.op {
	case opEqual, opHas:
		return same
	case opNotEqual:
		return !same
	}
	return false
}

func (c comparison) matchObject(m map[string]any) bool {
	if c.op != opHas {
		return false
	}
	if c.value.s == "*" {
		return true
	}
	_, ok := m[c.value.s]
	return ok
}

// matchArray looks for an element that equals the value.
func (c comparison) matchArray(a []any) bool {
	if c.op != opHas {
		return false
	}
	element := comparison{op: opEqual, value: c.value}
	if element.value.kind == text {
		element.value.kind = word
	}
	for _, v := range a {
		if element.matchValue(v) {
			return true
		}
	}
	return false
}
