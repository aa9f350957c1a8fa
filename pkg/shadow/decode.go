package shadow

import (
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxNesting bounds the recursion of the parser. It leaves room around
// MaxDepth for the levels above a section and for foreign members.
const maxNesting = 64

var (
	errSyntax  = errors.New("invalid JSON")
	errNesting = errors.New("JSON nested too deeply: flatten the document")
)

// parseJSON reads one JSON text (RFC 8259), which must be valid UTF-8, into
// the types that Document lists, and nil for null. Of a repeated key the last
// one counts.
func parseJSON(s string) (any, error) {
	if !utf8.ValidString(s) {
		return nil, errSyntax
	}
	p := parser{s: s}
	return p.document()
}

// parser is a recursive descent parser. It exists because the standard
// decoder spends most of an update's time on reflection and on scanning twice.
type parser struct {
	s     string
	i     int
	depth int
}

// document reads a whole text.
func (p *parser) document() (any, error) {
	v, err := p.value()
	if err != nil {
		return nil, err
	}
	if p.space(); p.i != len(p.s) {
		return nil, errSyntax
	}
	return v, nil
}

func (p *parser) space() {
	for p.i < len(p.s) {
		switch p.s[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

// peek skips white space and returns the next byte, 0 at the end.
func (p *parser) peek() byte {
	p.space()
	if p.i == len(p.s) {
		return 0
	}
	return p.s[p.i]
}

// take skips white space and one byte c.
func (p *parser) take(c byte) bool {
	if p.peek() != c {
		return false
	}
	p.i++
	return true
}

func (p *parser) value() (any, error) {
	switch c := p.peek(); {
	case c == '{':
		return p.object()
	case c == '[':
		return p.array()
	case c == '"':
		return p.str()
	case c == 't':
		return true, p.word("true")
	case c == 'f':
		return false, p.word("false")
	case c == 'n':
		return nil, p.word("null")
	}
	return p.number()
}

func (p *parser) word(w string) error {
	if !strings.HasPrefix(p.s[p.i:], w) {
		return errSyntax
	}
	p.i += len(w)
	return nil
}

func (p *parser) enter() error {
	p.i++
	if p.depth++; p.depth > maxNesting {
		return errNesting
	}
	return nil
}

func (p *parser) object() (any, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	m := make(map[string]any)
	for !p.take('}') {
		if len(m) > 0 && !p.take(',') {
			return nil, errSyntax
		}
		k, v, err := p.pair()
		if err != nil {
			return nil, err
		}
		m[k] = v
	}
	p.depth--
	return m, nil
}

func (p *parser) pair() (string, any, error) {
	if p.peek() != '"' {
		return "", nil, errSyntax
	}
	k, err := p.str()
	if err != nil {
		return "", nil, err
	}
	if !p.take(':') {
		return "", nil, errSyntax
	}
	v, err := p.value()
	return k, v, err
}

func (p *parser) array() (any, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	a := []any{}
	for !p.take(']') {
		if len(a) > 0 && !p.take(',') {
			return nil, errSyntax
		}
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		a = append(a, v)
	}
	p.depth--
	return a, nil
}

// str reads a string; p is at its opening quote.
func (p *parser) str() (string, error) {
	p.i++
	start := p.i
	for ; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; {
		case c == '"':
			p.i++
			return p.s[start : p.i-1], nil
		case c == '\\':
			return p.escaped(start)
		case c < ' ':
			return "", errSyntax
		}
	}
	return "", errSyntax
}

// escaped reads the rest of a string that began at start and has an escape.
func (p *parser) escaped(start int) (string, error) {
	b := []byte(p.s[start:p.i])
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			return string(b), nil
		case c < ' ':
			return "", errSyntax
		case c != '\\':
			b = append(b, c)
		default:
			var err error
			if b, err = p.escape(b); err != nil {
				return "", err
			}
		}
	}
	return "", errSyntax
}

// escape appends what the escape after a backslash stands for.
func (p *parser) escape(b []byte) ([]byte, error) {
	if p.i == len(p.s) {
		return nil, errSyntax
	}
	c := p.s[p.i]
	p.i++
	switch c {
	case '"', '\\', '/':
		return append(b, c), nil
	case 'b':
		return append(b, '\b'), nil
	case 'f':
		return append(b, '\f'), nil
	case 'n':
		return append(b, '\n'), nil
	case 'r':
		return append(b, '\r'), nil
	case 't':
		return append(b, '\t'), nil
	case 'u':
		r, ok := p.hex4()
		if !ok {
			return nil, errSyntax
		}
		return utf8.AppendRune(b, p.surrogate(r)), nil
	}
	return nil, errSyntax
}

// surrogate completes r with a second escape when r is the first half of a
// pair. A lone half becomes U+FFFD.
func (p *parser) surrogate(r rune) rune {
	if !utf16.IsSurrogate(r) {
		return r
	}
	if strings.HasPrefix(p.s[p.i:], `\u`) {
		at := p.i
		p.i += 2
		if low, ok := p.hex4(); ok {
			if full := utf16.DecodeRune(r, low); full != utf8.RuneError {
				return full
			}
		}
		p.i = at
	}
	return utf8.RuneError
}

func (p *parser) hex4() (rune, bool) {
	if len(p.s)-p.i < 4 {
		return 0, false
	}
	var r rune
	for _, c := range []byte(p.s[p.i : p.i+4]) {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	p.i += 4
	return r, true
}

// number reads a number and keeps its text.
func (p *parser) number() (any, error) {
	start := p.i
	p.skip('-')
	if !p.skip('0') && !p.digits() {
		return nil, errSyntax
	}
	if p.skip('.') && !p.digits() {
		return nil, errSyntax
	}
	if p.skip('e') || p.skip('E') {
		if !p.skip('+') {
			p.skip('-')
		}
		if !p.digits() {
			return nil, errSyntax
		}
	}
	return json.Number(p.s[start:p.i]), nil
}

func (p *parser) skip(c byte) bool {
	if p.i < len(p.s) && p.s[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *parser) digits() bool {
	start := p.i
	for p.i < len(p.s) && '0' <= p.s[p.i] && p.s[p.i] <= '9' {
		p.i++
	}
	return p.i > start
}
