package shadow

import (
	"errors"
	"slices"
	"strings"
	"sync"
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

// parseJSON reads one JSON text (RFC 8259), which must be valid UTF-8. The values
// hold on to it. Of a repeated key the last one counts.
func parseJSON(s string) (Value, error) {
	if !utf8.ValidString(s) {
		return Value{}, errSyntax
	}
	return parseValid(s)
}

// parseValid is parseJSON of valid UTF-8.
func parseValid(s string) (Value, error) {
	p := parsers.Get().(*parser)
	defer p.release()
	p.s = s
	v, err := p.value()
	if err != nil {
		return Value{}, err
	}
	if p.space(); p.i != len(p.s) {
		return Value{}, errSyntax
	}
	return v, nil
}

const (
	// roomAtOnce is for how many members room is made at once, at most.
	roomAtOnce = 64
	// maxKeptStack is how much of a parser's stack is kept for the next text.
	maxKeptStack = 128
)

// parsers are used again for their stacks, which else take as much as a document.
var parsers = sync.Pool{New: func() any { return new(parser) }}

// release gives p back, and lets go of what it read.
func (p *parser) release() {
	open := p.open[:cap(p.open)]
	if len(open) > maxKeptStack {
		open = nil
	}
	clear(open)
	*p = parser{open: open[:0]}
	parsers.Put(p)
}

// parser is a recursive descent parser. It exists because the standard
// decoder spends most of an update's time on reflection and on scanning twice.
type parser struct {
	s     string
	i     int
	depth int
	open  []Member // a stack: what was read of the objects that are not closed yet
	room  []Member // where the members of closed objects go
	array []byte   // a stack: the text of the arrays that are not closed yet
}

func (p *parser) space() {
	for p.i < len(p.s) && p.s[p.i] <= ' ' {
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

func (p *parser) value() (v Value, err error) {
	switch p.peek() {
	case '{':
		return p.objectValue()
	case '[':
		return p.arrayValue()
	}
	err = p.scalar(&v)
	return v, err
}

// scalar reads into v, which is null, what is neither object nor array. p is at it.
func (p *parser) scalar(v *Value) error {
	switch p.peek() {
	case '"':
		return p.text(v)
	case 't':
		v.kind, v.text = kindBool, "true"
		return p.word("true")
	case 'f':
		v.kind, v.text = kindBool, "false"
		return p.word("false")
	case 'n':
		return p.word("null")
	}
	return p.number(v)
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

func (p *parser) objectValue() (Value, error) {
	if err := p.enter(); err != nil {
		return Value{}, err
	}
	start, sorted := len(p.open), true
	for more := !p.take('}'); more; more = !p.take('}') {
		n := len(p.open)
		if n > start && !p.take(',') {
			return Value{}, errSyntax
		}
		if err := p.member(); err != nil {
			return Value{}, err
		}
		sorted = sorted && (n == start || p.open[n-1].Key < p.open[n].Key)
	}
	p.depth--
	members := p.open[start:]
	if !sorted {
		members = lastOfEach(members)
	}
	p.open = p.open[:start]
	return Value{kind: kindObject, members: p.keep(members)}, nil
}

// fewMembers are sorted faster by putting each in its place.
const fewMembers = 32

// lastOfEach sorts members by key. Of a repeated key the last one stays.
func lastOfEach(members []Member) []Member {
	if len(members) <= fewMembers {
		return inPlace(members)
	}
	slices.SortStableFunc(members, func(a, b Member) int { return strings.Compare(a.Key, b.Key) })
	n := 0
	for i, m := range members {
		if i+1 < len(members) && members[i+1].Key == m.Key {
			continue
		}
		members[n] = m
		n++
	}
	return members[:n]
}

// inPlace is lastOfEach for few members.
func inPlace(members []Member) []Member {
	sorted := members[:0]
	for _, m := range members {
		at := len(sorted)
		for at > 0 && m.Key < sorted[at-1].Key {
			at--
		}
		if at > 0 && sorted[at-1].Key == m.Key {
			sorted[at-1] = m
			continue
		}
		sorted = append(sorted, m)
		if at < len(sorted)-1 {
			copy(sorted[at+1:], sorted[at:])
			sorted[at] = m
		}
	}
	return sorted
}

// keep moves the members of a closed object to where they stay.
func (p *parser) keep(members []Member) Object {
	if len(members) == 0 {
		return Object{}
	}
	if len(p.room) < len(members) {
		p.room = make([]Member, max(len(members), min(roomAtOnce, strings.Count(p.s, ":"))))
	}
	o := p.room[:len(members):len(members)]
	copy(o, members)
	p.room = p.room[len(members):]
	return o
}

// member reads one onto the stack.
func (p *parser) member() (err error) {
	if p.peek() != '"' {
		return errSyntax
	}
	n := len(p.open)
	p.open = append(p.open, Member{})
	m := &p.open[n]
	if m.Key, _, err = p.str(); err != nil {
		return err
	}
	if !p.take(':') {
		return errSyntax
	}
	if c := p.peek(); c != '{' && c != '[' {
		return p.scalar(&m.Value)
	}
	v, err := p.value()
	p.open[n].Value = v // the stack may have moved
	return err
}

// arrayValue reads an array. Its text is the one that was read where that is as short
// as can be, with sorted keys.
func (p *parser) arrayValue() (Value, error) {
	from, start := p.i, len(p.array)
	if err := p.enter(); err != nil {
		return Value{}, err
	}
	v := Value{kind: kindArray}
	e := encoder{buf: append(p.array, '[')}
	for !p.take(']') {
		if v.levels > 0 {
			if !p.take(',') {
				return Value{}, errSyntax
			}
			e.buf = append(e.buf, ',')
		}
		p.array = e.buf
		c, err := p.value()
		if err != nil {
			return Value{}, err
		}
		e.value(c)
		v.contains(c)
	}
	p.depth--
	e.buf = append(e.buf, ']')
	if v.text = p.s[from:p.i]; string(e.buf[start:]) != v.text {
		v.text = string(e.buf[start:])
	}
	p.array = e.buf[:start]
	return v, nil
}

// contains notes an element of the array v.
func (v *Value) contains(c Value) {
	levels, nulls := c.inside()
	v.levels, v.nulls = max(v.levels, levels+1), v.nulls || nulls
}

func (p *parser) text(v *Value) error {
	start := p.i
	content, escaped, err := p.str()
	v.kind, v.text = kindText, p.s[start:p.i]
	if escaped {
		v.text = string(appendString(nil, content))
	}
	return err
}

// unquoted is the content of a string that was read before.
func unquoted(s string) string {
	p := parser{s: s}
	content, _, _ := p.str()
	return content
}

// special are the bytes that a string can not hold as they are.
var special = func() (t [256]bool) {
	for c := range ' ' {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

// plain is how many bytes at the beginning of s a string can hold as they are.
func plain(s string) int {
	for i := range len(s) {
		if special[s[i]] {
			return i
		}
	}
	return len(s)
}

// str reads a string; p is at its opening quote.
func (p *parser) str() (content string, escaped bool, err error) {
	p.i++
	start := p.i
	rest := p.s[start:]
	n := plain(rest)
	switch {
	case n == len(rest):
		return "", false, errSyntax
	case rest[n] == '"':
		p.i += n + 1
		return rest[:n], false, nil
	case rest[n] == '\\':
		p.i += n
		content, err = p.escaped(start)
		return content, true, err
	}
	return "", false, errSyntax
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
func (p *parser) number(v *Value) error {
	start := p.i
	p.skip('-')
	if !p.skip('0') && !p.digits() {
		return errSyntax
	}
	if p.skip('.') && !p.digits() {
		return errSyntax
	}
	if p.skip('e') || p.skip('E') {
		if !p.skip('+') {
			p.skip('-')
		}
		if !p.digits() {
			return errSyntax
		}
	}
	v.kind, v.text = kindNumber, p.s[start:p.i]
	return nil
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
