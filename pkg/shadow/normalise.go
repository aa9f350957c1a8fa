package shadow

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// NewUpdate returns an update made by the server: nil leaves a section alone.
// Go numbers, strings, slices and maps with string keys become their JSON
// values; Apply reports a value that has none.
func NewUpdate(desired, reported map[string]any) Update {
	var u Update
	u.Desired = u.patch(desired)
	u.Reported = u.patch(reported)
	return u
}

func (u *Update) patch(m map[string]any) Patch {
	if m == nil {
		return Patch{}
	}
	o, err := NewObject(m)
	if err == nil {
		err = check(o, 1)
	}
	if err != nil && u.fault == nil {
		u.fault = err
	}
	return Patch{Set: true, Object: o}
}

// NewObject returns m as an Object, nil for nil. Go numbers, strings, slices and maps
// with string keys become their JSON values. The error is an *Error.
func NewObject(m map[string]any) (Object, error) {
	if m == nil {
		return nil, nil
	}
	v, err := valueOf(m, 1)
	return v.members, err
}

// valueOf returns the Go value v as JSON. level bounds the recursion, for a value may
// contain itself.
func valueOf(v any, level int) (Value, error) {
	if level > maxNesting {
		return Value{}, tooDeep()
	}
	switch v := v.(type) {
	case nil:
		return Value{}, nil
	case json.Number:
		return numberOf(string(v))
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Bool:
		return Value{kind: kindBool, text: strconv.FormatBool(rv.Bool())}, nil
	case reflect.String:
		return textOf(rv.String())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return Value{kind: kindNumber, text: strconv.FormatInt(rv.Int(), 10)}, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return Value{kind: kindNumber, text: strconv.FormatUint(rv.Uint(), 10)}, nil
	case reflect.Float32, reflect.Float64:
		return floatOf(rv.Float(), rv.Type().Bits())
	case reflect.Slice, reflect.Array:
		return arrayOf(rv, level)
	case reflect.Map:
		return objectOf(rv, level)
	}
	return Value{}, invalid(fmt.Sprintf("State contains a value of type %T, which JSON does not have", v))
}

func textOf(s string) (Value, error) {
	if !utf8.ValidString(s) {
		return Value{}, ErrEncoding
	}
	return Value{kind: kindText, text: string(appendString(nil, s))}, nil
}

func numberOf(s string) (Value, error) {
	v, err := parseJSON(strings.TrimSpace(s))
	if err != nil || v.kind != kindNumber {
		return Value{}, invalid("State contains an invalid number")
	}
	return v, nil
}

func floatOf(f float64, bits int) (Value, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return Value{}, invalid("State contains a number that JSON does not have")
	}
	return Value{kind: kindNumber, text: strconv.FormatFloat(f, 'g', -1, bits)}, nil
}

func arrayOf(rv reflect.Value, level int) (Value, error) {
	v := Value{kind: kindArray}
	e := encoder{buf: []byte{'['}}
	for i := range rv.Len() {
		c, err := valueOf(rv.Index(i).Interface(), level+1)
		if err != nil {
			return Value{}, err
		}
		if i > 0 {
			e.buf = append(e.buf, ',')
		}
		e.value(c)
		v.contains(c)
	}
	v.text = string(append(e.buf, ']'))
	return v, nil
}

func objectOf(rv reflect.Value, level int) (Value, error) {
	if rv.Type().Key().Kind() != reflect.String {
		return Value{}, invalid("State contains a map whose keys are not strings")
	}
	members := make(Object, 0, rv.Len())
	for it := rv.MapRange(); it.Next(); {
		k := it.Key().String()
		if !utf8.ValidString(k) {
			return Value{}, ErrEncoding
		}
		v, err := valueOf(it.Value().Interface(), level+1)
		if err != nil {
			return Value{}, err
		}
		members = append(members, Member{k, v})
	}
	return Value{kind: kindObject, members: lastOfEach(members)}, nil
}
