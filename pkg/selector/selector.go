package selector

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.einride.tech/aip/filtering"
)

// Limits of an expression.
const (
	MaxBytes   = 4096
	MaxNesting = 32 // parentheses inside each other
)

// Facts is what a selector may ask about one device. Match calls only the
// methods of the fields that the expression names, so they may load lazily.
// The maps are not changed.
type Facts interface {
	ID() string
	Hardware() string
	Tags() map[string]string
	// Groups are the names of the groups that the device is in.
	Groups() []string
	// Online reports whether the device is connected; known is false when nothing
	// was ever heard of it.
	Online() (online, known bool)
	// LastSeen is when the device was last heard of, to the microsecond; zero: never.
	LastSeen() time.Time
	// Desired and Reported are what is at a path of a section of the classic shadow:
	// bool, json.Number, string, []any or map[string]any; false when there is nothing.
	// An empty path stands for the section, if it has members.
	Desired(path []string) (value any, found bool)
	Reported(path []string) (value any, found bool)
}

// Selector is a parsed expression. The zero value selects every device. A
// Selector is immutable and safe for concurrent use.
type Selector struct {
	expr string
	root Node
}

// Parse reads an expression; one that is empty or blank selects every device.
// Every error is a *SyntaxError.
func Parse(expr string) (Selector, error) {
	if len(expr) > MaxBytes {
		return Selector{}, syntaxError(expr, MaxBytes, "expression of %d bytes: use at most %d", len(expr), MaxBytes)
	}
	trimmed := strings.TrimSpace(expr)
	if trimmed == "" {
		return Selector{}, nil
	}
	lead := strings.Index(expr, trimmed)
	if err := checkTokens(expr, trimmed, lead); err != nil {
		return Selector{}, err
	}
	var p filtering.Parser
	p.Init(trimmed)
	parsed, err := p.Parse()
	if err != nil {
		return Selector{}, translate(expr, lead, err)
	}
	c := compiler{expr: expr, lead: lead, positions: parsed.GetSourceInfo().GetPositions()}
	root, err := c.node(parsed.GetExpr())
	if err != nil {
		return Selector{}, err
	}
	return Selector{expr: trimmed, root: root}, nil
}

// checkTokens refuses what would make the parser recurse deeply, text that is not
// UTF-8, and numbers that the parser has no words for.
func checkTokens(expr, trimmed string, lead int) error {
	if !utf8.ValidString(expr) {
		valid := strings.IndexRune(expr, utf8.RuneError)
		return syntaxError(expr, max(valid, 0), "not UTF-8")
	}
	var l filtering.Lexer
	l.Init(trimmed)
	numbers := numerals{text: trimmed}
	depth := 0
	for range len(trimmed) {
		token, err := l.Lex()
		if isEnd(err) {
			return nil
		}
		if err != nil {
			return translate(expr, lead, err)
		}
		switch token.Type {
		case filtering.TokenTypeLeftParen:
			depth++
		case filtering.TokenTypeRightParen:
			depth--
		}
		if depth > MaxNesting {
			return syntaxError(expr, lead+int(token.Position.Offset), "more than %d parentheses inside each other: split the expression", MaxNesting)
		}
		if why := numbers.refusal(token); why != "" {
			return syntaxError(expr, lead+int(token.Position.Offset), "%s", why)
		}
	}
	return nil
}

// Match reports whether the device with these facts is selected. It never
// fails: what cannot be compared does not match.
func (s Selector) Match(f Facts) bool { return s.root == nil || s.root.match(f) }

// String returns the expression without the white space around it. Parsing it
// again gives the same selector.
func (s Selector) String() string { return s.expr }

// All reports whether s is the selector without a condition.
func (s Selector) All() bool { return s.root == nil }

// printable replaces white space and control characters, so that the columns
// of an expression of several lines can be shown on one.
func printable(expr string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.IsControl(r) {
			return ' '
		}
		return r
	}, expr)
}
