package shadow

import (
	"cmp"
	"encoding/json"
	"iter"
	"slices"
)

// Object is a JSON object: its members in the order of the bytes of their keys, each
// key once. It is parsed, made by Apply or taken from another; nil and empty say the
// same but in a Patch.
type Object []Member

// Member is a key of an object with its value.
type Member struct {
	Key string // as it is, without quotes and escapes
	Value
}

// Value is a JSON value; the zero value is null. All but objects are held as their
// JSON text, which most of the time is a part of the text that was parsed: a shadow is
// read, merged, compared and written as often as not without looking into a value.
type Value struct {
	kind    kind
	nulls   bool   // of an array: there is a null somewhere in it
	levels  uint8  // of an array: levels of arrays and objects that have something in them, its own included
	text    string // JSON in its stored form, see Document.Append; empty for null and objects
	members Object // of an object
	written int64  // when a leaf was last written, in Unix seconds; 0: what is around it says so
}

type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindText
	kindArray
	kindObject
)

// Get returns the value of a key; false: there is none.
func (o Object) Get(key string) (Value, bool) {
	if i := o.index(key); i < len(o) && o[i].Key == key {
		return o[i].Value, true
	}
	return Value{}, false
}

// index is where the key stands, or would.
func (o Object) index(key string) int {
	from, to := 0, len(o)
	for from < to {
		if middle := (from + to) / 2; o[middle].Key < key {
			from = middle + 1
		} else {
			to = middle
		}
	}
	return from
}

// At follows a path of keys through objects. An empty path leads to o itself, if it
// has members.
func (o Object) At(path ...string) (Value, bool) {
	v := *o.value()
	if len(path) == 0 {
		return v, len(o) > 0
	}
	for _, key := range path {
		var ok bool
		if v, ok = v.members.Get(key); !ok {
			return Value{}, false
		}
	}
	return v, true
}

func (o Object) value() *Value { return &Value{kind: kindObject, members: o} }

// Plain returns o as map[string]any, see Value.Plain; nil for nil.
func (o Object) Plain() map[string]any {
	if o == nil {
		return nil
	}
	m := make(map[string]any, len(o))
	for _, c := range o {
		m[c.Key] = c.Plain()
	}
	return m
}

// Written says when a leaf was last written, in Unix seconds: what it knows itself, else
// the given time, that of its section.
func (v Value) Written(given int64) int64 { return cmp.Or(v.written, given) }

// IsNull reports whether v is null.
func (v Value) IsNull() bool { return v.kind == kindNull }

// Object returns the members of an object, and nil for every other value.
func (v Value) Object() Object { return v.members }

// Text returns the content of a string; false: v is none.
func (v Value) Text() (string, bool) {
	if v.kind != kindText {
		return "", false
	}
	return unquoted(v.text), true
}

// Number returns a number; false: v is none.
func (v Value) Number() (json.Number, bool) {
	if v.kind != kindNumber {
		return "", false
	}
	return json.Number(v.text), true
}

// JSON returns v as JSON in its stored form, see Document.Append.
func (v Value) JSON() []byte {
	var e encoder
	e.value(v)
	return e.buf
}

// String returns what JSON does.
func (v Value) String() string { return string(v.JSON()) }

// String returns o as JSON in its stored form, see Document.Append.
func (o Object) String() string { return o.value().String() }

// Plain returns v as nil, bool, json.Number, string, []any or map[string]any.
func (v Value) Plain() any {
	switch v.kind {
	case kindBool:
		return v.text == "true"
	case kindNumber:
		return json.Number(v.text)
	case kindText:
		return unquoted(v.text)
	case kindArray:
		list := []any{}
		for e := range v.elements() {
			list = append(list, e.Plain())
		}
		return list
	case kindObject:
		return v.members.Plain()
	}
	return nil
}

// elements goes through an array, which is read for it.
func (v Value) elements() iter.Seq[Value] {
	return func(yield func(Value) bool) {
		p := parser{s: v.text, i: 1}
		for p.peek() != ']' {
			p.take(',')
			e, err := p.value()
			if err != nil || !yield(e) { // err: it was read before
				return
			}
		}
	}
}

// inside says what is in an array or object: levels of them that have something in
// them, its own included, and whether there is a null at any.
func (v Value) inside() (levels uint8, nulls bool) {
	for _, m := range v.members {
		below, null := m.inside()
		levels, nulls = max(levels, below+1), nulls || null
	}
	if v.kind == kindArray {
		levels, nulls = v.levels, v.nulls
	}
	return levels, nulls || v.kind == kindNull
}

// Equal compares JSON values: 1 equals 1.0, and the order of keys is nothing. When
// they were written does not count.
func (v Value) Equal(w Value) bool {
	switch {
	case v.kind != w.kind:
		return false
	case v.kind == kindObject:
		return v.members.Equal(w.members)
	case v.text == w.text:
		return true
	case v.kind == kindNumber:
		return equalNumbers(v.text, w.text)
	case v.kind == kindArray:
		return slices.EqualFunc(slices.Collect(v.elements()), slices.Collect(w.elements()), Value.Equal)
	}
	return false
}

// Equal compares as Value.Equal does.
func (o Object) Equal(other Object) bool {
	return o.Same(other) || slices.EqualFunc(o, other, func(a, b Member) bool { return a.Key == b.Key && a.Value.Equal(b.Value) })
}

// Same reports whether both are objects with the very same members, see Object.Same.
func (v Value) Same(w Value) bool {
	return v.kind == kindObject && w.kind == kindObject && v.members.Same(w.members)
}

// Same reports whether both are the very same members, or none. What an update leaves
// alone stays the same, which costs nothing to see.
func (o Object) Same(other Object) bool {
	return len(o) == len(other) && (len(o) == 0 || &o[0] == &other[0])
}
