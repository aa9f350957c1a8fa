package selector

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.einride.tech/aip/filtering"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
)

// allowed lists the fields, for errors.
const allowed = "id, hardware, online, lastSeen, groups, tags.KEY, shadow.reported.PATH and shadow.desired.PATH"

// compiler turns the parser's tree into nodes. The checker of the library is
// of no use here, as it wants every path of a shadow declared with its type.
type compiler struct {
	expr      string
	lead      int             // bytes of white space before the parsed text
	positions map[int64]int32 // offsets of the parser's nodes
}

func (c *compiler) errorf(at *expr.Expr, format string, args ...any) error {
	return syntaxError(c.expr, c.lead+int(c.positions[at.GetId()]), format, args...)
}

func (c *compiler) node(e *expr.Expr) (Node, error) {
	call := e.GetCallExpr()
	if call == nil {
		return nil, c.bare(e)
	}
	args := call.GetArgs()
	switch name := call.GetFunction(); {
	case name == filtering.FunctionNot && len(args) == 1:
		n, err := c.node(args[0])
		return Not{n}, err
	case (name == filtering.FunctionAnd || name == filtering.FunctionFuzzyAnd) && len(args) == 2:
		l, r, err := c.pair(args)
		return And{l, r}, err
	case name == filtering.FunctionOr && len(args) == 2:
		l, r, err := c.pair(args)
		return Or{l, r}, err
	case filtering.TokenType(name).IsComparator() && len(args) == 2:
		return c.comparison(Operator(name), args[0], args[1])
	default:
		return nil, c.errorf(e, "there is no function %s: a selector compares fields with values", name)
	}
}

func (c *compiler) pair(args []*expr.Expr) (l, r Node, err error) {
	if l, err = c.node(args[0]); err != nil {
		return nil, nil, err
	}
	r, err = c.node(args[1])
	return l, r, err
}

// bare explains a name or value that is not compared with anything.
func (c *compiler) bare(e *expr.Expr) error {
	name, ok := dotted(e)
	if !ok {
		return c.errorf(e, "a value alone selects nothing: write a comparison, as in hardware = \"rpi4\"")
	}
	word := name[0]
	if upper := strings.ToUpper(word); len(name) == 1 && filtering.TokenType(upper).IsKeyword() {
		return c.errorf(e, "%s must be in capitals: %s", word, upper)
	}
	return c.errorf(e, "%s is not compared with anything: write a comparison, or %[1]s:* to ask whether it is there", strings.Join(name, "."))
}

func (c *compiler) comparison(op Operator, left, right *expr.Expr) (Node, error) {
	f, err := c.field(left)
	if err != nil {
		return nil, err
	}
	v, err := c.literal(right)
	if err != nil {
		return nil, err
	}
	if f.Source == Groups && op != Has {
		return nil, c.errorf(left, "groups is a set of names: write groups:\"canary\" to ask whether a device is in one")
	}
	if f.Source == Online && !truth(op, v) {
		return nil, c.errorf(left, "online is true or false: write online = true, or online:* to ask whether anything was heard of a device")
	}
	if f.Source == LastSeen && !(Comparison{Field: f, Op: op, Value: v}).Anything() {
		var ok bool
		if v.at, ok = moment(v); !ok {
			return nil, c.errorf(right, "lastSeen is a moment: write it in quotes as in lastSeen < \"2026-11-01T00:00:00Z\", to the microsecond at the finest, or lastSeen:* to ask whether a device was ever heard of")
		}
	}
	if f.IsMap() && op != Has {
		return nil, c.errorf(left, "%s is not one value: name a key of it, as in %[1]s.site, or use %[1]s:site to ask for the key", f)
	}
	if f.IsText() && v.Kind == Number {
		return nil, c.errorf(right, "%s is text, which no number equals: put the value in quotes", f)
	}
	return Comparison{Field: f, Op: op, Value: v}, nil
}

// moment reads a moment as RFC 3339 writes it, of at most microseconds, which is how
// finely a device is known to have been heard of.
func moment(v Literal) (at time.Time, ok bool) {
	at, err := time.Parse(time.RFC3339Nano, v.Text)
	return at.UTC(), err == nil && v.Kind == Text && at.Nanosecond()%1000 == 0 && !at.IsZero()
}

// truth reports whether a comparison can be made with what is true or false.
func truth(op Operator, v Literal) bool {
	if op == Has && v.Text == "*" {
		return true
	}
	return (op == Equal || op == NotEqual || op == Has) && v.Kind != Number && (v.Kind == Word || op == Has) && (v.Text == "true" || v.Text == "false")
}

// dotted returns the parts of a name such as tags.site.
func dotted(e *expr.Expr) ([]string, bool) {
	var parts []string
	for {
		if s := e.GetSelectExpr(); s != nil {
			parts = append(parts, s.GetField())
			e = s.GetOperand()
			continue
		}
		id := e.GetIdentExpr()
		if id == nil {
			return nil, false
		}
		parts = append(parts, id.GetName())
		break
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return parts, true
}

func (c *compiler) field(e *expr.Expr) (Field, error) {
	parts, ok := dotted(e)
	if !ok {
		return Field{}, c.errorf(e, "expected a field on the left side: one of %s", allowed)
	}
	rest := parts[1:]
	switch parts[0] {
	case "id", "hardware", "online", "lastSeen":
		if len(rest) > 0 {
			return Field{}, c.errorf(e, "%s has no parts", parts[0])
		}
		return Field{Source: Source(parts[0])}, nil
	case "groups":
		if len(rest) > 0 {
			return Field{}, c.errorf(e, "groups has no parts: write groups:%q", strings.Join(rest, "."))
		}
		return Field{Source: Groups}, nil
	case "tags":
		if len(rest) > 1 {
			return Field{}, c.errorf(e, "a tag has no parts: write tags.%q when the key has dots", strings.Join(rest, "."))
		}
		return Field{Source: Tags, Path: rest}, nil
	case "shadow":
		if len(rest) > 0 && (rest[0] == "desired" || rest[0] == "reported") {
			return Field{Source: Source("shadow." + rest[0]), Path: rest[1:]}, nil
		}
		return Field{}, c.errorf(e, "a shadow has shadow.reported and shadow.desired, not %s", strings.Join(parts, "."))
	}
	return Field{}, c.errorf(e, "there is no field %s: the fields are %s", strings.Join(parts, "."), allowed)
}

func (c *compiler) literal(e *expr.Expr) (Literal, error) {
	switch k := e.GetConstExpr().GetConstantKind().(type) {
	case *expr.Constant_StringValue:
		return Literal{Kind: Text, Text: k.StringValue}, nil
	case *expr.Constant_Int64Value:
		return numberLiteral(strconv.FormatInt(k.Int64Value, 10)), nil
	case *expr.Constant_DoubleValue:
		return numberLiteral(strconv.FormatFloat(k.DoubleValue, 'f', -1, 64)), nil
	}
	if id := e.GetIdentExpr(); id != nil {
		return Literal{Kind: Word, Text: id.GetName()}, nil
	}
	return Literal{}, c.errorf(e, "expected a value on the right side: text in quotes, a number, true or false")
}

// String returns the field as an expression names it, for errors.
func (f Field) String() string {
	return fmt.Sprint(strings.Join(append([]string{string(f.Source)}, f.Path...), "."))
}
