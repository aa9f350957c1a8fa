package shadow

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// nested returns n levels of {"a":..} around 1.
func nested(n int) string {
	return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n)
}

func TestParseUpdateFaults(t *testing.T) {
	const depth = "JSON contains too many levels of nesting; maximum is 6"
	tests := []struct {
		name, payload string
		code          int
		message       string
	}{
		{"empty", ``, 400, "Invalid JSON"},
		{"cut off", `{"state":{"desired":{"a":1}`, 400, "Invalid JSON"},
		{"trailing", `{"state":{}} x`, 400, "Invalid JSON"},
		{"trailing comma", `{"state":{},}`, 400, "Invalid JSON"},
		{"array", `[]`, 400, "Invalid JSON"},
		{"leading zero", `{"state":{"desired":{"a":01}}}`, 400, "Invalid JSON"},
		{"no state", `{"clientToken":"a"}`, 400, "Missing required node: state"},
		{"state text", `{"state":"x"}`, 400, "State node must be an object"},
		{"state array", `{"state":[]}`, 400, "State node must be an object"},
		{"desired number", `{"state":{"desired":1}}`, 400, "Desired node must be an object"},
		{"reported array", `{"state":{"reported":[]}}`, 400, "Reported node must be an object"},
		{"foreign section", `{"state":{"foo":{}}}`, 400, "State contains an invalid node"},
		{"foreign beside desired", `{"state":{"desired":{"a":1},"foo":1}}`, 400, "State contains an invalid node"},
		{"null in array", `{"state":{"desired":{"a":[1,null]}}}`, 400, "State contains an invalid node"},
		{"null deep in array", `{"state":{"desired":{"a":[[{"b":null}]]}}}`, 400, "State contains an invalid node"},
		{"version text", `{"state":{},"version":"1"}`, 400, "Invalid version"},
		{"version fraction", `{"state":{},"version":1.5}`, 400, "Invalid version"},
		{"version zero", `{"state":{},"version":0}`, 400, "Invalid version"},
		{"version negative", `{"state":{},"version":-1}`, 400, "Invalid version"},
		{"version too big", `{"state":{},"version":9223372036854775808}`, 400, "Invalid version"},
		{"token number", `{"state":{},"clientToken":1}`, 400, "Invalid clientToken"},
		{"token too long", `{"state":{},"clientToken":"` + strings.Repeat("t", MaxClientTokenBytes+1) + `"}`, 400, "Invalid clientToken"},
		{"7 levels", `{"state":{"desired":` + nested(MaxDepth+1) + `}}`, 400, depth},
		{"7 levels of arrays", `{"state":{"reported":{"a":[[[[[[1]]]]]]}}}`, 400, depth},
		{"very deep", `{"state":{"desired":` + strings.Repeat(`{"a":`, 10000), 400, depth},
		{"not UTF-8", "{\"state\":{\"desired\":{\"a\":\"\xff\"}}}", 415, "Unsupported documented encoding; supported encoding is UTF-8"},
		{"UTF-16", "{\x00\"\x00\xd8\x00", 415, "Unsupported documented encoding; supported encoding is UTF-8"},
		{"huge", `{"state":{}` + strings.Repeat(" ", MaxUpdateBytes) + `}`, 413, "The payload exceeds the maximum size allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseUpdate([]byte(tt.payload))
			var e *Error
			if !errors.As(err, &e) || e.Code != tt.code || e.Message != tt.message {
				t.Errorf("got %v, want %d %s", err, tt.code, tt.message)
			}
		})
	}
}

func TestParseUpdateAccepts(t *testing.T) {
	token := strings.Repeat("t", MaxClientTokenBytes)
	for _, s := range []string{
		`{"state":{}}`,
		` {"state" : { "desired" : { } } , "version" : 1 } `,
		`{"state":{"desired":` + nested(MaxDepth) + `}}`,
		`{"state":{"reported":{"a":[[[[[1]]]]]}}}`,
		`{"state":{"delta":{"x":1},"desired":{"a":1}}}`,
		`{"state":{},"thingName":"t","shadowName":null,"x":` + nested(20) + `}`,
		`{"state":{},"clientToken":"` + token + `"}`,
		`{"state":{},"clientToken":null}`,
		`{"state":{"desired":{"\u00e9\ud83d\ude00\/":"\b\f\n\r\t\ud800"}}}`,
	} {
		if _, err := ParseUpdate([]byte(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestParseUpdateTellsAbsentNullAndObject(t *testing.T) {
	u, err := ParseUpdate([]byte(`{"state":{"desired":null},"version":7,"clientToken":"c"}`))
	if err != nil {
		t.Fatal(err)
	}
	if !u.Desired.Set || u.Desired.Object != nil || u.Reported.Set || *u.Version != 7 || u.ClientToken != "c" {
		t.Errorf("got %+v", u)
	}
	u, _ = ParseUpdate([]byte(`{"state":{"reported":{}}}`))
	if u.Desired.Set || !u.Reported.Set || u.Reported.Object == nil || u.Version != nil {
		t.Errorf("got %+v", u)
	}
	u, _ = ParseUpdate([]byte(`{"state":{"reported":{"a":1,"a":2}}}`))
	if u.Reported.Object.String() != `{"a":2}` {
		t.Errorf("repeated key: got %s, want the last", u.Reported.Object)
	}
}

func TestParseUpdateKeepsNothingOfThePayload(t *testing.T) {
	payload := []byte(`{"state":{"desired":{"key":"value","n":12}},"clientToken":"token"}`)
	u, err := ParseUpdate(payload)
	if err != nil {
		t.Fatal(err)
	}
	clear(payload)
	if got := u.Desired.Object.String() + u.ClientToken; got != `{"key":"value","n":12}token` {
		t.Errorf("got %s", got)
	}
}

func TestStateLimit(t *testing.T) {
	// {"k":"..."} in each section: 8 bytes around the text.
	fill := func(n int) string { return `{"k":"` + strings.Repeat("x", n-8) + `"}` }
	d := apply(t, Document{}, t0, `{"state":{"desired":`+fill(MaxStateBytes/2)+`,   "reported":`+fill(MaxStateBytes/2)+`}}`).Document
	if d.size() != MaxStateBytes {
		t.Fatalf("size %d, want %d", d.size(), MaxStateBytes)
	}
	for _, s := range []string{
		`{"state":{"desired":{"k":"` + strings.Repeat("x", MaxStateBytes/2-7) + `"}}}`,
		`{"state":{"reported":{"j":1}}}`,
	} {
		u, err := ParseUpdate([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Apply(d, u, t1); !errors.Is(err, ErrTooLarge) {
			t.Errorf("one more: got %v, want 413", err)
		}
	}
	apply(t, d, t1, `{"state":{"desired":{"k":null}}}`) // making room is always possible
}

func TestNewUpdate(t *testing.T) {
	type kind string
	u := NewUpdate(map[string]any{
		"i": 1, "u": uint8(2), "f": 2.5, "big": 1e21, "f32": float32(0.1), "s": kind("x"), "n": json.Number("1.0"), "nil": nil,
		"list": []string{"a"}, "map": map[string]int{"x": 1}, "b": true,
	}, nil)
	r, err := Apply(Document{}, u, t0)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"b":true,"big":1e+21,"f":2.5,"f32":0.1,"i":1,"list":["a"],"map":{"x":1},"n":1.0,"s":"x","u":2}`
	if got := r.Document.Desired.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if u.Reported.Set {
		t.Error("nil must leave a section alone")
	}
}

func TestNewUpdateFaults(t *testing.T) {
	loop := map[string]any{}
	loop["a"], loop["b"] = loop, loop
	tests := []struct {
		name   string
		object map[string]any
		want   error
	}{
		{"NaN", map[string]any{"a": math.NaN()}, ErrInvalid},
		{"number", map[string]any{"a": json.Number("1x")}, ErrInvalid},
		{"not a number", map[string]any{"a": json.Number(`"x"`)}, ErrInvalid},
		{"channel", map[string]any{"a": make(chan int)}, ErrInvalid},
		{"struct", map[string]any{"a": struct{}{}}, ErrInvalid},
		{"keys", map[string]any{"a": map[int]int{1: 1}}, ErrInvalid},
		{"itself", loop, ErrInvalid},
		{"deep", object(t, nested(MaxDepth+1)).Plain(), ErrInvalid},
		{"null in array", map[string]any{"a": []any{nil}}, ErrInvalid},
		{"text", map[string]any{"a": "\xff"}, ErrEncoding},
		{"key", map[string]any{"\xff": 1}, ErrEncoding},
		{"too large", map[string]any{"a": strings.Repeat("x", MaxStateBytes)}, ErrTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Apply(Document{}, NewUpdate(tt.object, nil), t0); !errors.Is(err, tt.want) {
				t.Errorf("desired: got %v, want %v", err, tt.want)
			}
			if _, err := Apply(Document{}, NewUpdate(nil, tt.object), t0); !errors.Is(err, tt.want) {
				t.Errorf("reported: got %v, want %v", err, tt.want)
			}
		})
	}
	u := Update{ClientToken: strings.Repeat("x", MaxClientTokenBytes+1)}
	if _, err := Apply(Document{}, u, t0); !errors.Is(err, ErrInvalid) {
		t.Errorf("long token: got %v", err)
	}
}

func TestClientToken(t *testing.T) {
	tests := []struct{ payload, want string }{
		{``, ``},
		{`{"clientToken":"a-1"}`, `a-1`},
		{`{"thingName":"t","clientToken":"b"}`, `b`},
		{`{"state":5,"clientToken":"c"}`, `c`},
		{`{"clientToken":7}`, ``},
		{`{"clientToken":"` + strings.Repeat("x", MaxClientTokenBytes+1) + `"}`, ``},
		{`{"clientToken":"d"`, ``},
		{`"clientToken"`, ``},
		{"{\"clientToken\":\"\xff\"}", ``},
	}
	for _, tt := range tests {
		if got := ClientToken([]byte(tt.payload)); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.payload, got, tt.want)
		}
	}
}

func TestValidateName(t *testing.T) {
	for _, ok := range []string{"", "a", "config", "A:b_c-9$", strings.Repeat("n", MaxNameBytes)} {
		if err := ValidateName(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"a b", "a/b", "+", "#", "é", "a\x00", strings.Repeat("n", MaxNameBytes+1)} {
		if err := ValidateName(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", bad, err)
		}
	}
}

func TestErrors(t *testing.T) {
	err := fmt.Errorf("device d: %w", NotFound("config"))
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrVersionConflict) {
		t.Error("errors.Is must compare codes")
	}
	var e *Error
	if !errors.As(err, &e) || e.Message != "No shadow exists with name: config" {
		t.Errorf("got %v", e)
	}
	if diff := cmp.Diff("shadow: Version conflict (409)", ErrVersionConflict.Error()); diff != "" {
		t.Error(diff)
	}
}
