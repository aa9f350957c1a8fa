package shadow

import (
	"encoding/json"
	"slices"
	"strconv"
	"unicode/utf8"
)

// encoder writes compact JSON with keys in order of their bytes.
type encoder struct {
	buf     []byte
	keys    []string // a stack: the keys of the objects being written
	foreign any      // a value that is not JSON, written as null
}

// keysGuess is a first guess of how many keys there are on a path of a document.
const keysGuess = 32

func newEncoder(size int) *encoder {
	return &encoder{buf: make([]byte, 0, size), keys: make([]string, 0, keysGuess)}
}

// member writes the name of a member, and a comma unless it is the first.
func (e *encoder) member(name string) {
	if e.buf[len(e.buf)-1] != '{' {
		e.buf = append(e.buf, ',')
	}
	e.buf = append(appendString(e.buf, name), ':')
}

// section writes the member unless m is empty.
func (e *encoder) section(name string, m map[string]any) {
	if len(m) > 0 {
		e.member(name)
		e.object(m)
	}
}

// sorted pushes the keys of m and returns where they start and end. pop takes
// them off again. The caller indexes e.keys, which may move meanwhile.
func (e *encoder) sorted(m map[string]any) (start, end int) {
	start = len(e.keys)
	for k := range m {
		e.keys = append(e.keys, k)
	}
	end = len(e.keys)
	slices.Sort(e.keys[start:end])
	return start, end
}

func (e *encoder) pop(start int) { e.keys = e.keys[:start] }

func (e *encoder) object(m map[string]any) {
	e.buf = append(e.buf, '{')
	start, end := e.sorted(m)
	for i := start; i < end; i++ {
		k := e.keys[i]
		e.member(k)
		e.value(m[k])
	}
	e.pop(start)
	e.buf = append(e.buf, '}')
}

func (e *encoder) array(a []any) {
	e.buf = append(e.buf, '[')
	for i, v := range a {
		if i > 0 {
			e.buf = append(e.buf, ',')
		}
		e.value(v)
	}
	e.buf = append(e.buf, ']')
}

func (e *encoder) value(v any) {
	switch v := v.(type) {
	case nil:
		e.buf = append(e.buf, "null"...)
	case bool:
		e.buf = strconv.AppendBool(e.buf, v)
	case json.Number:
		e.buf = append(e.buf, v...)
	case string:
		e.buf = appendString(e.buf, v)
	case Stamp:
		e.buf = strconv.AppendInt(e.buf, int64(v), 10)
	case []any:
		e.array(v)
	case map[string]any:
		e.object(v)
	default:
		e.foreign = v
		e.buf = append(e.buf, "null"...)
	}
}

const hex = "0123456789abcdef"

// appendString appends s quoted, with as few escapes as JSON allows; bytes
// that are not UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
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

// sizeOf returns the bytes that encoder.value writes for v, without writing.
func sizeOf(v any) int {
	switch v := v.(type) {
	case bool:
		if !v {
			return len("false")
		}
	case json.Number:
		return len(v)
	case string:
		return sizeOfString(v)
	case []any:
		n := len("[]") + max(len(v)-1, 0)
		for _, c := range v {
			n += sizeOf(c)
		}
		return n
	case map[string]any:
		n := len("{}") + max(len(v)-1, 0)
		for k, c := range v {
			n += sizeOfString(k) + len(":") + sizeOf(c)
		}
		return n
	}
	return len("null") // as long as true
}

func sizeOfString(s string) int {
	n := len(s) + len(`""`)
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\' || c == '\n' || c == '\r' || c == '\t':
			n++
		case c < ' ':
			n += len(`\u0000`) - 1
		}
	}
	return n
}
