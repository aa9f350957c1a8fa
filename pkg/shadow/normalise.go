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
	if desired != nil {
		u.Desired = Patch{Set: true, Object: desired}.normalised()
	}
	if reported != nil {
		u.Reported = Patch{Set: true, Object: reported}.normalised()
	}
	return u
}

// normalised returns p with checked and plain values when it can have them,
// and else p itself, for check to report.
func (p Patch) normalised() Patch {
	if q, err := p.check(); err == nil {
		return q
	}
	return p
}

// check returns p with plain JSON values that obey the rules of a request.
func (p Patch) check() (Patch, error) {
	if p.checked || !p.Set || p.Object == nil {
		return p, nil
	}
	v, err := plain(p.Object, 1)
	if err != nil {
		return Patch{}, err
	}
	m := v.(map[string]any)
	if err := checkObject(m, 1); err != nil {
		return Patch{}, err
	}
	return Patch{Set: true, Object: m, checked: true}, nil
}

// plain returns a copy of the Go value v in the types that Document lists.
// level bounds the recursion, for a value may contain itself.
func plain(v any, level int) (any, error) {
	if level > maxNesting {
		return nil, tooDeep()
	}
	switch v := v.(type) {
	case nil, bool:
		return v, nil
	case string:
		if !utf8.ValidString(v) {
			return nil, ErrEncoding
		}
		return v, nil
	case json.Number:
		return plainNumber(string(v))
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Bool:
		return rv.Bool(), nil
	case reflect.String:
		return plain(rv.String(), level)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return json.Number(strconv.FormatInt(rv.Int(), 10)), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return json.Number(strconv.FormatUint(rv.Uint(), 10)), nil
	case reflect.Float32, reflect.Float64:
		return plainFloat(rv.Float(), rv.Type().Bits())
	case reflect.Slice, reflect.Array:
		return plainArray(rv, level)
	case reflect.Map:
		return plainObject(rv, level)
	}
	return nil, invalid(fmt.Sprintf("State contains a value of type %T, which JSON does not have", v))
}

func plainNumber(s string) (any, error) {
	p := parser{s: s}
	if v, err := p.document(); err == nil {
		if n, ok := v.(json.Number); ok {
			return json.Number(strings.TrimSpace(string(n))), nil
		}
	}
	return nil, invalid("State contains an invalid number")
}

func plainFloat(f float64, bits int) (any, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, invalid("State contains a number that JSON does not have")
	}
	return json.Number(strconv.FormatFloat(f, 'g', -1, bits)), nil
}

func plainArray(rv reflect.Value, level int) (any, error) {
	out := make([]any, rv.Len())
	for i := range out {
		v, err := plain(rv.Index(i).Interface(), level+1)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

func plainObject(rv reflect.Value, level int) (any, error) {
	if rv.Type().Key().Kind() != reflect.String {
		return nil, invalid("State contains a map whose keys are not strings")
	}
	out := make(map[string]any, rv.Len())
	for it := rv.MapRange(); it.Next(); {
		k := it.Key().String()
		if !utf8.ValidString(k) {
			return nil, ErrEncoding
		}
		v, err := plain(it.Value().Interface(), level+1)
		if err != nil {
			return nil, err
		}
		out[k] = v
	}
	return out, nil
}
