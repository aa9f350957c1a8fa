package shadow

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The life of shadows as request and answers, step by step: what the published
// examples and test vectors of the AWS service and of its edge component show,
// told with data of our own. Every payload is compared whole.

// step is one request at t0 plus at seconds, and what is published for it.
type step struct {
	at        int
	request   string
	accepted  string
	documents string
	delta     string // empty: none
	get       string
}

// in puts the seconds of t0+n in the place of each @n.
func in(s string) string {
	for n := 9; n >= 0; n-- {
		s = strings.ReplaceAll(s, fmt.Sprint("@", n), fmt.Sprint(t0.Unix()+int64(n)))
	}
	return s
}

var lives = []struct {
	name  string
	steps []step
}{
	{"created by the operator, met by the device", []step{
		{
			at: 0, request: `{"state":{"desired":{"lamp":"red","fan":{"speed":3,"on":true}}},"clientToken":"op"}`,
			accepted:  `{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}}},"version":1,"timestamp":@0,"clientToken":"op"}`,
			documents: `{"previous":null,"current":{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}}},"version":1},"timestamp":@0,"clientToken":"op"}`,
			delta:     `{"version":1,"state":{"fan":{"on":true,"speed":3},"lamp":"red"},"metadata":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}},"timestamp":@0,"clientToken":"op"}`,
			get:       `{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"},"delta":{"fan":{"on":true,"speed":3},"lamp":"red"}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}}},"version":1,"timestamp":@0}`,
		},
		{ // part of it is reported: the delta keeps what still differs, with its old stamps
			at: 1, request: `{"state":{"reported":{"lamp":"red","fan":{"speed":1}}},"version":1}`,
			accepted:  `{"state":{"reported":{"fan":{"speed":1},"lamp":"red"}},"metadata":{"reported":{"fan":{"speed":{"timestamp":@1}},"lamp":{"timestamp":@1}}},"version":2,"timestamp":@1}`,
			documents: `{"previous":{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}}},"version":1},"current":{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"},"reported":{"fan":{"speed":1},"lamp":"red"}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}},"reported":{"fan":{"speed":{"timestamp":@1}},"lamp":{"timestamp":@1}}},"version":2},"timestamp":@1}`,
			delta:     `{"version":2,"state":{"fan":{"on":true,"speed":3}},"metadata":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}}},"timestamp":@1}`,
			get:       `{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"},"reported":{"fan":{"speed":1},"lamp":"red"},"delta":{"fan":{"on":true,"speed":3}}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}},"reported":{"fan":{"speed":{"timestamp":@1}},"lamp":{"timestamp":@1}}},"version":2,"timestamp":@1}`,
		},
		{ // all of it: no delta, neither published nor in get; equal by value
			at: 2, request: `{"state":{"reported":{"fan":{"speed":3.0,"on":true}}}}`,
			accepted:  `{"state":{"reported":{"fan":{"on":true,"speed":3.0}}},"metadata":{"reported":{"fan":{"on":{"timestamp":@2},"speed":{"timestamp":@2}}}},"version":3,"timestamp":@2}`,
			documents: `{"previous":{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"},"reported":{"fan":{"speed":1},"lamp":"red"}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}},"reported":{"fan":{"speed":{"timestamp":@1}},"lamp":{"timestamp":@1}}},"version":2},"current":{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"},"reported":{"fan":{"on":true,"speed":3.0},"lamp":"red"}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}},"reported":{"fan":{"on":{"timestamp":@2},"speed":{"timestamp":@2}},"lamp":{"timestamp":@1}}},"version":3},"timestamp":@2}`,
			get:       `{"state":{"desired":{"fan":{"on":true,"speed":3},"lamp":"red"},"reported":{"fan":{"on":true,"speed":3.0},"lamp":"red"}},"metadata":{"desired":{"fan":{"on":{"timestamp":@0},"speed":{"timestamp":@0}},"lamp":{"timestamp":@0}},"reported":{"fan":{"on":{"timestamp":@2},"speed":{"timestamp":@2}},"lamp":{"timestamp":@1}}},"version":3,"timestamp":@2}`,
		},
	}},
	{"a key taken out of reported is wanted again", []step{
		{
			at: 0, request: `{"state":{"desired":{"a":1,"b":2},"reported":{"a":1,"b":2}}}`,
			accepted:  `{"state":{"desired":{"a":1,"b":2},"reported":{"a":1,"b":2}},"metadata":{"desired":{"a":{"timestamp":@0},"b":{"timestamp":@0}},"reported":{"a":{"timestamp":@0},"b":{"timestamp":@0}}},"version":1,"timestamp":@0}`,
			documents: `{"previous":null,"current":{"state":{"desired":{"a":1,"b":2},"reported":{"a":1,"b":2}},"metadata":{"desired":{"a":{"timestamp":@0},"b":{"timestamp":@0}},"reported":{"a":{"timestamp":@0},"b":{"timestamp":@0}}},"version":1},"timestamp":@0}`,
			get:       `{"state":{"desired":{"a":1,"b":2},"reported":{"a":1,"b":2}},"metadata":{"desired":{"a":{"timestamp":@0},"b":{"timestamp":@0}},"reported":{"a":{"timestamp":@0},"b":{"timestamp":@0}}},"version":1,"timestamp":@0}`,
		},
		{ // the null is answered and stamped, but not stored
			at: 3, request: `{"state":{"reported":{"b":null}}}`,
			accepted:  `{"state":{"reported":{"b":null}},"metadata":{"reported":{"b":{"timestamp":@3}}},"version":2,"timestamp":@3}`,
			documents: `{"previous":{"state":{"desired":{"a":1,"b":2},"reported":{"a":1,"b":2}},"metadata":{"desired":{"a":{"timestamp":@0},"b":{"timestamp":@0}},"reported":{"a":{"timestamp":@0},"b":{"timestamp":@0}}},"version":1},"current":{"state":{"desired":{"a":1,"b":2},"reported":{"a":1}},"metadata":{"desired":{"a":{"timestamp":@0},"b":{"timestamp":@0}},"reported":{"a":{"timestamp":@0}}},"version":2},"timestamp":@3}`,
			delta:     `{"version":2,"state":{"b":2},"metadata":{"b":{"timestamp":@0}},"timestamp":@3}`,
			get:       `{"state":{"desired":{"a":1,"b":2},"reported":{"a":1},"delta":{"b":2}},"metadata":{"desired":{"a":{"timestamp":@0},"b":{"timestamp":@0}},"reported":{"a":{"timestamp":@0}}},"version":2,"timestamp":@3}`,
		},
		{ // both sections go, the shadow stays
			at: 4, request: `{"state":null,"clientToken":"n"}`,
			accepted:  `{"state":{"desired":null,"reported":null},"metadata":{},"version":3,"timestamp":@4,"clientToken":"n"}`,
			documents: `{"previous":{"state":{"desired":{"a":1,"b":2},"reported":{"a":1}},"metadata":{"desired":{"a":{"timestamp":@0},"b":{"timestamp":@0}},"reported":{"a":{"timestamp":@0}}},"version":2},"current":{"state":{},"metadata":{},"version":3},"timestamp":@4,"clientToken":"n"}`,
			get:       `{"state":{},"metadata":{},"version":3,"timestamp":@4}`,
		},
	}},
	{"arrays are values, in state, delta and metadata", []step{
		{
			at: 0, request: `{"state":{"desired":{"dns":["10.0.0.1","10.0.0.2"],"rules":[{"port":80},[1,2]]},"reported":{"dns":["10.0.0.1"],"rules":[]}}}`,
			accepted:  `{"state":{"desired":{"dns":["10.0.0.1","10.0.0.2"],"rules":[{"port":80},[1,2]]},"reported":{"dns":["10.0.0.1"],"rules":[]}},"metadata":{"desired":{"dns":[{"timestamp":@0},{"timestamp":@0}],"rules":[{"port":{"timestamp":@0}},[{"timestamp":@0},{"timestamp":@0}]]},"reported":{"dns":[{"timestamp":@0}],"rules":[]}},"version":1,"timestamp":@0}`,
			documents: `{"previous":null,"current":{"state":{"desired":{"dns":["10.0.0.1","10.0.0.2"],"rules":[{"port":80},[1,2]]},"reported":{"dns":["10.0.0.1"],"rules":[]}},"metadata":{"desired":{"dns":[{"timestamp":@0},{"timestamp":@0}],"rules":[{"port":{"timestamp":@0}},[{"timestamp":@0},{"timestamp":@0}]]},"reported":{"dns":[{"timestamp":@0}],"rules":[]}},"version":1},"timestamp":@0}`,
			delta:     `{"version":1,"state":{"dns":["10.0.0.1","10.0.0.2"],"rules":[{"port":80},[1,2]]},"metadata":{"dns":[{"timestamp":@0},{"timestamp":@0}],"rules":[{"port":{"timestamp":@0}},[{"timestamp":@0},{"timestamp":@0}]]},"timestamp":@0}`,
			get:       `{"state":{"desired":{"dns":["10.0.0.1","10.0.0.2"],"rules":[{"port":80},[1,2]]},"reported":{"dns":["10.0.0.1"],"rules":[]},"delta":{"dns":["10.0.0.1","10.0.0.2"],"rules":[{"port":80},[1,2]]}},"metadata":{"desired":{"dns":[{"timestamp":@0},{"timestamp":@0}],"rules":[{"port":{"timestamp":@0}},[{"timestamp":@0},{"timestamp":@0}]]},"reported":{"dns":[{"timestamp":@0}],"rules":[]}},"version":1,"timestamp":@0}`,
		},
		{ // an array replaced by a shorter one, an object in the place of an array
			at: 5, request: `{"state":{"desired":{"dns":["10.0.0.1"],"rules":{"first":{"port":80}}}}}`,
			accepted:  `{"state":{"desired":{"dns":["10.0.0.1"],"rules":{"first":{"port":80}}}},"metadata":{"desired":{"dns":[{"timestamp":@5}],"rules":{"first":{"port":{"timestamp":@5}}}}},"version":2,"timestamp":@5}`,
			documents: `{"previous":{"state":{"desired":{"dns":["10.0.0.1","10.0.0.2"],"rules":[{"port":80},[1,2]]},"reported":{"dns":["10.0.0.1"],"rules":[]}},"metadata":{"desired":{"dns":[{"timestamp":@0},{"timestamp":@0}],"rules":[{"port":{"timestamp":@0}},[{"timestamp":@0},{"timestamp":@0}]]},"reported":{"dns":[{"timestamp":@0}],"rules":[]}},"version":1},"current":{"state":{"desired":{"dns":["10.0.0.1"],"rules":{"first":{"port":80}}},"reported":{"dns":["10.0.0.1"],"rules":[]}},"metadata":{"desired":{"dns":[{"timestamp":@5}],"rules":{"first":{"port":{"timestamp":@5}}}},"reported":{"dns":[{"timestamp":@0}],"rules":[]}},"version":2},"timestamp":@5}`,
			delta:     `{"version":2,"state":{"rules":{"first":{"port":80}}},"metadata":{"rules":{"first":{"port":{"timestamp":@5}}}},"timestamp":@5}`,
			get:       `{"state":{"desired":{"dns":["10.0.0.1"],"rules":{"first":{"port":80}}},"reported":{"dns":["10.0.0.1"],"rules":[]},"delta":{"rules":{"first":{"port":80}}}},"metadata":{"desired":{"dns":[{"timestamp":@5}],"rules":{"first":{"port":{"timestamp":@5}}}},"reported":{"dns":[{"timestamp":@0}],"rules":[]}},"version":2,"timestamp":@5}`,
		},
	}},
	{"new parents of nothing but nulls are not made", []step{
		{
			at: 0, request: `{"state":{"reported":{"keep":1,"gone":{"deep":{"x":null},"y":null},"part":{"a":null,"b":{"c":true}}}}}`,
			accepted:  `{"state":{"reported":{"gone":{"deep":{"x":null},"y":null},"keep":1,"part":{"a":null,"b":{"c":true}}}},"metadata":{"reported":{"gone":{"deep":{"x":{"timestamp":@0}},"y":{"timestamp":@0}},"keep":{"timestamp":@0},"part":{"a":{"timestamp":@0},"b":{"c":{"timestamp":@0}}}}},"version":1,"timestamp":@0}`,
			documents: `{"previous":null,"current":{"state":{"reported":{"keep":1,"part":{"b":{"c":true}}}},"metadata":{"reported":{"keep":{"timestamp":@0},"part":{"b":{"c":{"timestamp":@0}}}}},"version":1},"timestamp":@0}`,
			get:       `{"state":{"reported":{"keep":1,"part":{"b":{"c":true}}}},"metadata":{"reported":{"keep":{"timestamp":@0},"part":{"b":{"c":{"timestamp":@0}}}}},"version":1,"timestamp":@0}`,
		},
		{ // nothing changes, and the version moves all the same
			at: 6, request: `{"state":{}}`,
			accepted:  `{"state":{},"metadata":{},"version":2,"timestamp":@6}`,
			documents: `{"previous":{"state":{"reported":{"keep":1,"part":{"b":{"c":true}}}},"metadata":{"reported":{"keep":{"timestamp":@0},"part":{"b":{"c":{"timestamp":@0}}}}},"version":1},"current":{"state":{"reported":{"keep":1,"part":{"b":{"c":true}}}},"metadata":{"reported":{"keep":{"timestamp":@0},"part":{"b":{"c":{"timestamp":@0}}}}},"version":2},"timestamp":@6}`,
			get:       `{"state":{"reported":{"keep":1,"part":{"b":{"c":true}}}},"metadata":{"reported":{"keep":{"timestamp":@0},"part":{"b":{"c":{"timestamp":@0}}}}},"version":2,"timestamp":@6}`,
		},
	}},
}

func TestLives(t *testing.T) {
	for _, life := range lives {
		t.Run(life.name, func(t *testing.T) {
			var d Document
			for i, s := range life.steps {
				now := t0.Add(time.Duration(s.at) * time.Second)
				r := apply(t, d, now, s.request)
				for _, part := range []struct {
					what string
					got  []byte
					want string
				}{
					{"accepted", r.AcceptedPayload(), s.accepted},
					{"documents", r.DocumentsPayload(), s.documents},
					{"delta", r.DeltaPayload(), s.delta},
					{"get", restored(t, r.Document).GetAccepted("", now), s.get},
				} {
					if string(part.got) != in(part.want) {
						t.Errorf("step %d, %s:\n got %s\nwant %s", i+1, part.what, part.got, in(part.want))
					}
				}
				d = restored(t, r.Document)
			}
		})
	}
}

// A version once given is never given again, over any number of deletes.
func TestVersionsSurviveDeletes(t *testing.T) {
	var d Document
	last := int64(0)
	for range 4 {
		r := apply(t, d, t0, `{"state":{"desired":{"a":1}}}`)
		if r.Document.Version <= last {
			t.Fatalf("version %d after %d", r.Document.Version, last)
		}
		last = r.Document.Version
		d = restored(t, r.Document.Deleted())
		if d.Exists() || d.Version != last || d.Desired != nil {
			t.Fatalf("tombstone %+v", d)
		}
	}
}

func TestParseGet(t *testing.T) {
	long := strings.Repeat("t", MaxClientTokenBytes+1)
	for _, c := range []struct {
		payload, token string
		want           error
		text           string
	}{
		{payload: ``}, {payload: " \n"}, {payload: `{}`}, {payload: `{"thingName":"x","shadowName":"y","state":7}`},
		{payload: `{"clientToken":"a-1"}`, token: "a-1"}, {payload: `{"clientToken":null}`},
		{payload: `{"clientToken":"` + long + `"}`, want: ErrInvalid, text: "Invalid clientToken"},
		{payload: `{"clientToken":[]}`, want: ErrInvalid, text: "Invalid clientToken"},
		{payload: `{`, want: ErrInvalid, text: "Invalid JSON"}, {payload: `[]`, want: ErrInvalid, text: "Invalid JSON"},
		{payload: `null`, want: ErrInvalid, text: "Invalid JSON"}, {payload: `hello`, want: ErrInvalid, text: "Invalid JSON"},
		{payload: "\xff", want: ErrEncoding, text: ErrEncoding.Message},
		{payload: `{}` + strings.Repeat(" ", MaxUpdateBytes), want: ErrTooLarge, text: ErrTooLarge.Message},
	} {
		token, err := ParseGet([]byte(c.payload))
		var fault *Error
		if c.want == nil && err == nil && token == c.token {
			continue
		}
		if c.want == nil || !errors.Is(err, c.want) || !errors.As(err, &fault) || fault.Message != c.text {
			t.Errorf("%.40q: got %q, %v, want %q, %v", c.payload, token, err, c.token, c.want)
		}
	}
}

func TestMaxBytes(t *testing.T) {
	filled := func(n int) Update {
		return NewUpdate(nil, map[string]any{"k": strings.Repeat("x", n-len(`{"k":""}`))})
	}
	for _, c := range []struct{ max, allowed int }{
		{0, MaxStateBytes}, {1 << 10, 1 << 10}, {20 << 10, 20 << 10}, {StateBytesCeiling, StateBytesCeiling}, {1 << 30, StateBytesCeiling},
	} {
		u := filled(c.allowed)
		u.MaxBytes = c.max
		if _, err := Apply(Document{}, u, t0); err != nil {
			t.Errorf("limit %d, %d bytes: %v", c.max, c.allowed, err)
		}
		u = filled(c.allowed + 1)
		u.MaxBytes = c.max
		if _, err := Apply(Document{}, u, t0); !errors.Is(err, ErrTooLarge) {
			t.Errorf("limit %d, %d bytes: got %v, want 413", c.max, c.allowed+1, err)
		}
	}
}
