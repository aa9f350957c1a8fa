package selector

import (
	"slices"
	"time"
)

// Node is a part of a parsed expression: And, Or, Not or Comparison. It is
// there for those who turn a selector into a query of their own; Match decides.
type Node interface{ match(f Facts) bool }

// And and Or join two parts, Not turns one around.
type (
	And struct{ Left, Right Node }
	Or  struct{ Left, Right Node }
	Not struct{ Of Node }
)

func (n And) match(f Facts) bool { return n.Left.match(f) && n.Right.match(f) }
func (n Or) match(f Facts) bool  { return n.Left.match(f) || n.Right.match(f) }
func (n Not) match(f Facts) bool { return !n.Of.match(f) }

// Root returns the expression as a tree, nil when it has no condition.
func (s Selector) Root() Node { return s.root }

// Not returns the selector of all other devices. Its text may be longer than
// MaxBytes.
func (s Selector) Not() Selector {
	if s.All() {
		return Selector{expr: "-id:*", root: Not{Comparison{Field: Field{Source: ID}, Op: Has, Value: Literal{Kind: Word, Text: "*"}}}}
	}
	return Selector{expr: "NOT (" + s.expr + ")", root: Not{s.root}}
}

// Reporting returns the selector of those of its devices that have something at a path
// of the reported section. Its text may be longer than MaxBytes.
func (s Selector) Reporting(path []string) Selector {
	c := Comparison{Field: Field{Source: Reported, Path: path}, Op: Has, Value: Literal{Kind: Word, Text: "*"}}
	expr := c.Field.String() + ":*"
	if s.All() {
		return Selector{expr: expr, root: c}
	}
	return Selector{expr: "(" + s.expr + ") AND " + expr, root: And{s.root, c}}
}

// Asks reports whether the selector asks for a field of the source.
func (s Selector) Asks(source Source) bool {
	return slices.ContainsFunc(s.Fields(), func(f Field) bool { return f.Source == source })
}

// Fields returns every field that the expression names, each once.
func (s Selector) Fields() []Field {
	var list []Field
	seen := map[string]bool{}
	var walk func(Node)
	walk = func(n Node) {
		switch n := n.(type) {
		case And:
			walk(n.Left)
			walk(n.Right)
		case Or:
			walk(n.Left)
			walk(n.Right)
		case Not:
			walk(n.Of)
		case Comparison:
			if key := n.Field.Key(); !seen[key] {
				seen[key] = true
				list = append(list, n.Field)
			}
		}
	}
	walk(s.root)
	return list
}

// Source is where the value of a field comes from.
type Source string

// The sources.
const (
	ID       Source = "id"
	Hardware Source = "hardware"
	Tags     Source = "tags"
	Groups   Source = "groups"
	Online   Source = "online"
	LastSeen Source = "lastSeen"
	Reported Source = "shadow.reported"
	Desired  Source = "shadow.desired"
)

// Field is the left side of a comparison. Path is empty for ID, Hardware, Groups, Online and LastSeen; it
// has at most one element for Tags, and any number for a section of the shadow.
type Field struct {
	Source Source
	Path   []string
}

// IsMap reports whether f is groups, tags or a section of the shadow as a whole.
func (f Field) IsMap() bool {
	return len(f.Path) == 0 && f.Source != ID && f.Source != Hardware && f.Source != Online && f.Source != LastSeen
}

// IsText reports whether f is text whenever it is there.
func (f Field) IsText() bool {
	return f.Source == ID || f.Source == Hardware || f.Source == Tags && len(f.Path) > 0
}

// Kind is the type of a literal.
type Kind int

// The kinds. True and false are of the kind Word.
const (
	Text   Kind = iota // in quotes
	Word               // without quotes
	Number             // with Text its decimal text, which a float64 or an int64 holds
)

// Literal is the right side of a comparison.
type Literal struct {
	Kind Kind
	Text string
	d    decimal   // of a number
	at   time.Time // of what is compared with LastSeen
}

// Time returns the moment that LastSeen is compared with, to the microsecond.
func (l Literal) Time() time.Time { return l.at }

func numberLiteral(s string) Literal {
	d, _ := decimalOf(s)
	return Literal{Kind: Number, Text: s, d: d}
}

// Operator compares.
type Operator string

// The operators.
const (
	Equal        Operator = "="
	NotEqual     Operator = "!="
	Less         Operator = "<"
	LessEqual    Operator = "<="
	Greater      Operator = ">"
	GreaterEqual Operator = ">="
	Has          Operator = ":"
)

// holds reports whether an order of -1, 0 or 1 satisfies the operator.
func (op Operator) holds(order int) bool {
	switch op {
	case Equal, Has:
		return order == 0
	case NotEqual:
		return order != 0
	case Less:
		return order < 0
	case LessEqual:
		return order <= 0
	case Greater:
		return order > 0
	case GreaterEqual:
		return order >= 0
	}
	return false
}

// Comparison compares one field with one value.
type Comparison struct {
	Field Field
	Op    Operator
	Value Literal
}

// Anything reports whether c is field:*, which asks whether the field is there.
func (c Comparison) Anything() bool { return c.Op == Has && c.Value.Text == "*" }

// Wildcard splits the value of = and != at the * at its ends: text matches that
// has the part in the middle, at the start unless openStart and at the end
// unless openEnd.
func (c Comparison) Wildcard() (part string, openStart, openEnd bool) {
	return wildcard(c.Value.Text)
}
