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

// Patch is what an update says about one section: the zero value leaves the
// section alone, Set without an Object drops it, and an Object is merged into
// it, where null removes a key.
type Patch struct {
	Set    bool
	Object map[string]any // ignored unless Set

	checked bool // Object obeys the rules of a request already
}

// Update is one update request. Apply checks what ParseUpdate or NewUpdate has
// not, so an Update may be built by hand too.
type Update struct {
	Desired, Reported Patch
	// Version, when not nil, must equal the version of the stored document.
	Version *int64
	// ClientToken comes back in every answer; at most MaxClientTokenBytes.
	ClientToken string
}

// ParseUpdate reads the payload of an update request:
//
//	{"state":{"desired":{..}|null,"reported":{..}|null},"version":7,"clientToken":".."}
//
// The state is required; null there drops both sections. Unknown members
// beside it are passed over, and of a repeated key the last one counts. Every
// error is an *Error with the code and text of the AWS service.
func ParseUpdate(payload []byte) (Update, error) {
	if len(payload) > MaxUpdateBytes {
		return Update{}, ErrTooLarge
	}
	if !utf8.Valid(payload) {
		return Update{}, ErrEncoding
	}
	p := parser{s: string(payload), clone: true}
	v, err := p.document()
	if err == errNesting {
		return Update{}, tooDeep()
	}
	top, ok := v.(map[string]any)
	if err != nil || !ok {
		return Update{}, invalid("Invalid JSON")
	}
	var u Update
	if u.Version, err = versionOf(top["version"]); err != nil {
		return Update{}, err
	}
	if u.ClientToken, err = tokenOf(top["clientToken"]); err != nil {
		return Update{}, err
	}
	state, ok := top["state"]
	if !ok {
		return Update{}, invalid("Missing required node: state")
	}
	if err := u.readState(state); err != nil {
		return Update{}, err
	}
	return u, nil
}

// readState fills in the two patches from the state of a request.
func (u *Update) readState(v any) (err error) {
	if v == nil {
		u.Desired, u.Reported = Patch{Set: true, checked: true}, Patch{Set: true, checked: true}
		return nil
	}
	state, ok := v.(map[string]any)
	if !ok {
		return invalid("State node must be an object")
	}
	for k := range state {
		if k != "desired" && k != "reported" && k != "delta" { // a client's delta is ignored
			return invalid("State contains an invalid node")
		}
	}
	if u.Desired, err = patchOf(state, "desired", "Desired node must be an object"); err != nil {
		return err
	}
	u.Reported, err = patchOf(state, "reported", "Reported node must be an object")
	return err
}

func patchOf(state map[string]any, section, fault string) (Patch, error) {
	v, ok := state[section]
	if !ok {
		return Patch{}, nil
	}
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		return Patch{}, invalid(fault)
	}
	if err := checkObject(m, 1); err != nil {
		return Patch{}, err
	}
	return Patch{Set: true, Object: m, checked: true}, nil
}

func versionOf(v any) (*int64, error) {
	if v == nil {
		return nil, nil
	}
	n, ok := integer(v)
	if !ok || n < 1 {
		return nil, invalid("Invalid version")
	}
	return &n, nil
}

func tokenOf(v any) (string, error) {
	if v == nil {
		return "", nil
	}
	s, ok := v.(string)
	if !ok || len(s) > MaxClientTokenBytes {
		return "", invalid("Invalid clientToken")
	}
	return s, nil
}

// integer returns the value of a json.Number that is a plain integer.
func integer(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	return i, err == nil
}

// checkObject checks the values of m, which are level levels below a section.
func checkObject(m map[string]any, level int) error {
	for _, v := range m {
		if level > MaxDepth {
			return tooDeep()
		}
		if err := checkValue(v, level); err != nil {
			return err
		}
	}
	return nil
}

func checkValue(v any, level int) error {
	switch v := v.(type) {
	case map[string]any:
		return checkObject(v, level+1)
	case []any:
		return checkArray(v, level+1)
	}
	return nil
}

func checkArray(a []any, level int) error {
	for _, v := range a {
		if level > MaxDepth {
			return tooDeep()
		}
		if v == nil || hasNull(v) {
			return invalid("State contains an invalid node")
		}
		if err := checkValue(v, level); err != nil {
			return err
		}
	}
	return nil
}

// hasNull reports whether there is a null anywhere below v.
func hasNull(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, c := range v {
			if c == nil || hasNull(c) {
				return true
			}
		}
	case []any:
		for _, c := range v {
			if c == nil || hasNull(c) {
				return true
			}
		}
	}
	return false
}

// ClientToken returns the clientToken of a get, delete or update request, and
// "" when there is none or the payload is not well formed. It serves the
// answers to requests that ParseUpdate rejects.
func ClientToken(payload []byte) string {
	if len(payload) == 0 || len(payload) > MaxUpdateBytes || !utf8.Valid(payload) {
		return ""
	}
	p := parser{s: string(payload), clone: true}
	v, _ := p.document()
	top, _ := v.(map[string]any)
	token, _ := tokenOf(top["clientToken"])
	return token
}

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
