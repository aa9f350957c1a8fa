package shadow

import (
	"strconv"
	"unicode/utf8"
)

// encoder writes compact JSON with keys in order of their bytes.
type encoder struct {
	buf []byte
	// at is the timestamp that the encoder wrote last, for a client; it stands in
	// buf[from:to]. Most leaves of a document have the same.
	at       int64
	from, to int
}

// member writes the name of a member, and a comma unless it is the first.
func (e *encoder) member(name string) {
	if e.buf[len(e.buf)-1] != '{' {
		e.buf = append(e.buf, ',')
	}
	e.buf = append(appendString(e.buf, name), ':')
}

func (e *encoder) int(name string, n int64) {
	e.member(name)
	e.buf = strconv.AppendInt(e.buf, n, 10)
}

func (e *encoder) open(name string) {
	e.member(name)
	e.buf = append(e.buf, '{')
}

func (e *encoder) close() { e.buf = append(e.buf, '}') }

// section writes the member unless o is empty.
func (e *encoder) section(name string, o Object) {
	if len(o) > 0 {
		e.member(name)
		e.object(o)
	}
}

func (e *encoder) object(o Object) {
	e.buf = append(e.buf, '{')
	for i := range o {
		e.member(o[i].Key)
		e.value(o[i].Value)
	}
	e.close()
}

func (e *encoder) value(v Value) {
	switch v.kind {
	case kindNull:
		e.buf = append(e.buf, "null"...)
	case kindObject:
		e.object(v.members)
	default:
		e.buf = append(e.buf, v.text...)
	}
}

const hex = "0123456789abcdef"

// appendString appends s quoted, with as few escapes as JSON allows; bytes
// that are not UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := plainASCII(s); i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				b = append(append(b, s[from:i]...), "\uFFFD"...)
				from = i + 1
			}
			i += n
			continue
		}
		if c < ' ' || c == '"' || c == '\\' {
			b = appendEscape(append(b, s[from:i]...), c)
			from = i + 1
		}
		i++
	}
	return append(append(b, s[from:]...), '"')
}

// plainASCII is how many bytes at the beginning of s are ASCII that is its own text.
func plainASCII(s string) int {
	for i := range len(s) {
		if c := s[i]; c >= utf8.RuneSelf || special[c] {
			return i
		}
	}
	return len(s)
}

func appendEscape(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	return append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
}

// size returns the bytes that encoder.object writes, without writing.
func (o Object) size() int {
	n := len("{}") + max(len(o)-1, 0)
	for i := range o {
		n += sizeOfString(o[i].Key) + len(":") + o[i].size()
	}
	return n
}

func (v *Value) size() int {
	switch v.kind {
	case kindNull:
		return len("null")
	case kindObject:
		return v.members.size()
	}
	return len(v.text)
}

func sizeOfString(s string) int {
	n := len(s) + len(`""`)
	for i := range len(s) {
		switch c := s[i]; {
		case !special[c]:
		case c == '"' || c == '\\' || c == '\n' || c == '\r' || c == '\t':
			n++
		default:
			n += len(`\u0000`) - 1
		}
	}
	return n
}
