package packet

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// reader takes fields off the front of a packet's body. After the first fault it
// returns zero values; err holds the fault.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) take(n int, what string) []byte {
	if len(r.b) < n {
		r.fail(malformed("ends within %s", what))
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte(what string) byte {
	if b := r.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16(what string) uint16 {
	if b := r.take(2, what); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32(what string) uint32 {
	if b := r.take(4, what); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) varint(what string) int {
	v, n, err := varint(r.b)
	switch {
	case err != nil:
		r.fail(err)
		return 0
	case n == 0:
		r.fail(malformed("ends within %s", what))
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) binary(what string) []byte {
	return r.take(int(r.uint16(what)), what)
}

// text reads a UTF-8 string (1.5.4) without a copy.
func (r *reader) text(what string) []byte {
	b := r.binary(what)
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
		r.fail(malformed("%s is not UTF-8 text without U+0000", what)) // 1.5.4-1, 1.5.4-2
		return nil
	}
	return b
}

func (r *reader) id() uint16 {
	id := r.uint16("the packet identifier")
	if r.err == nil && id == 0 {
		r.fail(violation("packet identifier 0")) // 2.2.1-3
	}
	return id
}

func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail(malformed("%d bytes after its end", len(r.b)))
	}
	return r.err
}

// ValidTopicName reports whether s can be published to (4.7.1, 4.7.3).
func ValidTopicName(s string) bool {
	return s != "" && !strings.ContainsAny(s, "+#\x00") && utf8.ValidString(s)
}

// ValidFilter reports whether s is a topic filter, not that of a shared
// subscription (4.7.1).
func ValidFilter(s string) bool {
	if s == "" || strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
		return false
	}
	for {
		level, rest, more := strings.Cut(s, "/")
		if level != "+" && level != "#" && strings.ContainsAny(level, "+#") {
			return false
		}
		if !more {
			return true
		}
		if level == "#" {
			return false
		}
		s = rest
	}
}
