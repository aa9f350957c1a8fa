package shadow

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	t0 = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
	t1 = t0.Add(100 * time.Second)
	t2 = t1.Add(100 * time.Second)
)

// object parses a JSON object, "" being nil.
func object(t testing.TB, s string) Object {
	t.Helper()
	if s == "" {
		return nil
	}
	v, err := parseJSON(s)
	if err != nil || v.kind != kindObject {
		t.Fatalf("%s: %v", s, err)
	}
	return v.members
}

func storedText(d Document) string { return string(d.Append(nil)) }

// apply runs one request at now and fails the test when it is rejected.
func apply(t testing.TB, d Document, now time.Time, request string) Result {
	t.Helper()
	u, err := ParseUpdate([]byte(request))
	if err != nil {
		t.Fatalf("parse %s: %v", request, err)
	}
	r, err := Apply(d, u, now)
	if err != nil {
		t.Fatalf("apply %s: %v", request, err)
	}
	return r
}

func wantJSON(t testing.TB, what string, got []byte, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.NewReplacer("\n", "", "\t", "").Replace(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestMerge(t *testing.T) {
	tests := []struct{ name, base, patch, want string }{
		{"new key", `{"a":1}`, `{"b":2}`, `{"a":1,"b":2}`},
		{"scalar replaces", `{"a":1}`, `{"a":2}`, `{"a":2}`},
		{"objects recurse", `{"a":{"b":1,"c":2}}`, `{"a":{"c":3}}`, `{"a":{"b":1,"c":3}}`},
		{"arrays replace whole", `{"a":[1,2,3]}`, `{"a":[4]}`, `{"a":[4]}`},
		{"null removes", `{"a":1,"b":2}`, `{"a":null}`, `{"b":2}`},
		{"null removes deep", `{"a":{"b":1,"c":2}}`, `{"a":{"b":null}}`, `{"a":{"c":2}}`},
		{"null removes a subtree", `{"a":{"b":1},"c":2}`, `{"a":null}`, `{"c":2}`},
		{"null of a missing key", `{"a":1}`, `{"b":null}`, `{"a":1}`},
		{"object emptied by null goes", `{"a":{"b":1},"c":2}`, `{"a":{"b":null}}`, `{"c":2}`},
		{"new object of nulls is not stored", `{"a":1}`, `{"b":{"c":null}}`, `{"a":1}`},
		{"empty object is missing", `{"a":1}`, `{"b":{}}`, `{"a":1}`},
		{"empty object leaves an object alone", `{"a":{"b":1}}`, `{"a":{}}`, `{"a":{"b":1}}`},
		{"empty object replaces a scalar: missing", `{"a":1,"b":2}`, `{"a":{}}`, `{"b":2}`},
		{"scalar to object", `{"a":1}`, `{"a":{"b":1,"c":null}}`, `{"a":{"b":1}}`},
		{"object to scalar", `{"a":{"b":1}}`, `{"a":false}`, `{"a":false}`},
		{"object to array", `{"a":{"b":1}}`, `{"a":[{"b":1}]}`, `{"a":[{"b":1}]}`},
		{"empty array is a value", `{"a":[1]}`, `{"a":[]}`, `{"a":[]}`},
		{"nothing left", `{"a":1}`, `{"a":null}`, `{}`},
		{"nil base", ``, `{"a":{"b":null,"c":"x"}}`, `{"a":{"c":"x"}}`},
		{"nil patch", `{"a":1}`, ``, `{"a":1}`},
		{"number keeps its text", `{"a":1}`, `{"a":1.0}`, `{"a":1.0}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base, patch := object(t, tt.base), object(t, tt.patch)
			if got := Merge(base, patch).String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if want := object(t, tt.base); base.String() != want.String() {
				t.Errorf("base was changed: %s", base)
			}
		})
	}
}

func TestDelta(t *testing.T) {
	tests := []struct{ name, desired, reported, want string }{
		{"equal", `{"a":1}`, `{"a":1}`, ``},
		{"absent in reported", `{"a":1,"b":2}`, `{"a":1}`, `{"b":2}`},
		{"different", `{"a":1}`, `{"a":2}`, `{"a":1}`},
		{"only in reported", `{"a":1}`, `{"a":1,"b":2}`, ``},
		{"path from the root", `{"a":{"b":{"c":1,"d":2}}}`, `{"a":{"b":{"c":1,"d":3}}}`, `{"a":{"b":{"d":2}}}`},
		{"all differing keys", `{"a":1,"b":2,"c":3}`, `{"b":2}`, `{"a":1,"c":3}`},
		{"array whole", `{"a":[1,2]}`, `{"a":[1]}`, `{"a":[1,2]}`},
		{"array order counts", `{"a":[1,2]}`, `{"a":[2,1]}`, `{"a":[1,2]}`},
		{"array of objects", `{"a":[{"x":1,"y":2}]}`, `{"a":[{"y":2.0,"x":1e0}]}`, ``},
		{"numbers by value", `{"a":1,"b":100,"c":0,"d":0.5}`, `{"a":1.0,"b":1e2,"c":-0,"d":5E-1}`, ``},
		{"big numbers exactly", `{"a":9007199254740993}`, `{"a":9007199254740992}`, `{"a":9007199254740993}`},
		{"number and string differ", `{"a":1}`, `{"a":"1"}`, `{"a":1}`},
		{"false is a value", `{"a":false}`, ``, `{"a":false}`},
		{"type change", `{"a":{"b":1}}`, `{"a":5}`, `{"a":{"b":1}}`},
		{"empty object is absent", `{"a":{}}`, ``, ``},
		{"hollow object is absent", `{"a":{"b":{}},"c":1}`, ``, `{"c":1}`},
		{"hollow part is left out", `{"a":{"b":{},"c":1}}`, `{"a":1}`, `{"a":{"c":1}}`},
		{"no desired", ``, `{"a":1}`, ``},
		{"no reported", `{"a":1}`, ``, `{"a":1}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Delta(object(t, tt.desired), object(t, tt.reported))
			if tt.want == "" {
				if got != nil {
					t.Errorf("got %s, want none", got)
				}
				return
			}
			if s := got.String(); s != tt.want {
				t.Errorf("got %s, want %s", s, tt.want)
			}
		})
	}
}

func TestPayloads(t *testing.T) {
	r := apply(t, Document{}, t0, `{"state":{"desired":{"led":"on","net":{"dns":["a","b"]}},"reported":{"led":"off"}},"clientToken":"c1","version":1,"thingName":"x"}`)
	wantJSON(t, "accepted", r.AcceptedPayload(), `{"state":{"desired":{"led":"on","net":{"dns":["a","b"]}},"reported":{"led":"off"}},
		"metadata":{"desired":{"led":{"timestamp":1772366400},"net":{"dns":[{"timestamp":1772366400},{"timestamp":1772366400}]}},"reported":{"led":{"timestamp":1772366400}}},
		"version":1,"timestamp":1772366400,"clientToken":"c1"}`)
	wantJSON(t, "documents on create", r.DocumentsPayload(), `{"previous":null,"current":{"state":{"desired":{"led":"on","net":{"dns":["a","b"]}},"reported":{"led":"off"}},
		"metadata":{"desired":{"led":{"timestamp":1772366400},"net":{"dns":[{"timestamp":1772366400},{"timestamp":1772366400}]}},"reported":{"led":{"timestamp":1772366400}}},"version":1},
		"timestamp":1772366400,"clientToken":"c1"}`)

	// The delta repeats what an update did not touch, with desired's old stamps.
	r = apply(t, r.Document, t1, `{"state":{"reported":{"led":null,"up":true}},"clientToken":"c2"}`)
	wantJSON(t, "accepted keeps nulls", r.AcceptedPayload(), `{"state":{"reported":{"led":null,"up":true}},
		"metadata":{"reported":{"led":{"timestamp":1772366500},"up":{"timestamp":1772366500}}},"version":2,"timestamp":1772366500,"clientToken":"c2"}`)
	wantJSON(t, "delta", r.DeltaPayload(), `{"version":2,"state":{"led":"on","net":{"dns":["a","b"]}},
		"metadata":{"led":{"timestamp":1772366400},"net":{"dns":[{"timestamp":1772366400},{"timestamp":1772366400}]}},"timestamp":1772366500,"clientToken":"c2"}`)
	wantJSON(t, "get", r.Document.GetAccepted("g", t1), `{"state":{"desired":{"led":"on","net":{"dns":["a","b"]}},"reported":{"up":true},"delta":{"led":"on","net":{"dns":["a","b"]}}},
		"metadata":{"desired":{"led":{"timestamp":1772366400},"net":{"dns":[{"timestamp":1772366400},{"timestamp":1772366400}]}},"reported":{"up":{"timestamp":1772366500}}},
		"version":2,"timestamp":1772366500,"clientToken":"g"}`)

	// Only the differing leaf of an object, with only its stamp.
	r = apply(t, r.Document, t1, `{"state":{"desired":{"led":null,"net":{"mtu":1500}},"reported":{"net":{"dns":["a","b"]}}}}`)
	wantJSON(t, "delta of a leaf", r.DeltaPayload(), `{"version":3,"state":{"net":{"mtu":1500}},"metadata":{"net":{"mtu":{"timestamp":1772366500}}},"timestamp":1772366500}`)

	r = apply(t, r.Document, t1, `{"state":{"desired":null}}`)
	if r.DeltaPayload() != nil || r.Document.Desired != nil {
		t.Errorf("after desired:null: delta %s, desired %s", r.DeltaPayload(), r.Document.Desired)
	}
	wantJSON(t, "accepted of a dropped section", r.AcceptedPayload(), `{"state":{"desired":null},"metadata":{},"version":4,"timestamp":1772366500}`)
	wantJSON(t, "deleted", DeleteAccepted(r.Document, "d", t1), `{"version":4,"timestamp":1772366500,"clientToken":"d"}`)
	wantJSON(t, "rejected", ErrVersionConflict.Payload("x\"y", t1), `{"code":409,"message":"Version conflict","timestamp":1772366500,"clientToken":"x\"y"}`)
}

// A token that came another way than by a request may be no UTF-8; what goes out is.
func TestPayloadIsUTF8(t *testing.T) {
	got := string(Document{}.GetAccepted("a\xff\"é\n", t0))
	if want := `"clientToken":"a` + "\uFFFD" + `\"é\n"}`; !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want it to end in %s", got, want)
	}
}

func TestUserTimestampIsNoStamp(t *testing.T) {
	r := apply(t, Document{}, t0, `{"state":{"desired":{"a":{"timestamp":1}}}}`)
	wantJSON(t, "delta", r.DeltaPayload(), `{"version":1,"state":{"a":{"timestamp":1}},"metadata":{"a":{"timestamp":{"timestamp":1772366400}}},"timestamp":1772366400}`)
	r = apply(t, restored(t, r.Document), t1, `{"state":{"desired":{"a":{"b":2}}}}`)
	wantJSON(t, "delta", r.DeltaPayload(), `{"version":2,"state":{"a":{"b":2,"timestamp":1}},"metadata":{"a":{"b":{"timestamp":1772366500},"timestamp":{"timestamp":1772366400}}},"timestamp":1772366500}`)
}

// restored takes d through its stored form.
func restored(t testing.TB, d Document) Document {
	t.Helper()
	out, err := ParseDocument(storedText(d))
	if err != nil {
		t.Fatalf("%s: %v", storedText(d), err)
	}
	return out
}

func TestStateNullKeepsShadow(t *testing.T) {
	d := apply(t, Document{}, t0, `{"state":{"desired":{"a":1},"reported":{"b":2}}}`).Document
	r := apply(t, d, t1, `{"state":null}`)
	if r.Document.Desired != nil || r.Document.Reported != nil || r.Document.Version != 2 {
		t.Errorf("got %+v, want both sections gone at version 2", r.Document)
	}
	if !r.Document.Exists() || !restored(t, r.Document).Exists() {
		t.Error("the shadow must still exist")
	}
	if !r.Changed {
		t.Error("want changed")
	}
}

func TestVersions(t *testing.T) {
	never := Document{}
	live := apply(t, apply(t, never, t0, `{"state":{}}`).Document, t0, `{"state":{}}`).Document // 2
	tests := []struct {
		name    string
		doc     Document
		version string
		want    error
		next    int64
	}{
		{"absent on new", never, "", nil, 1},
		{"1 on new", never, `,"version":1`, nil, 1},
		{"null is absent", never, `,"version":null`, nil, 1},
		{"2 on new", never, `,"version":2`, ErrInvalid, 0},
		{"absent", live, "", nil, 3},
		{"equal", live, `,"version":2`, nil, 3},
		{"behind", live, `,"version":1`, ErrVersionConflict, 0},
		{"ahead", live, `,"version":3`, ErrVersionConflict, 0},
		{"absent after delete", live.Deleted(), "", nil, 3},
		{"last seen after delete", live.Deleted(), `,"version":2`, nil, 3},
		{"1 after delete", live.Deleted(), `,"version":1`, ErrVersionConflict, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := ParseUpdate([]byte(`{"state":{"reported":{"a":1}}` + tt.version + `}`))
			if err != nil {
				t.Fatal(err)
			}
			r, err := Apply(tt.doc, u, t1)
			if !errors.Is(err, tt.want) || r.Document.Version != tt.next {
				t.Errorf("got version %d, %v, want %d, %v", r.Document.Version, err, tt.next, tt.want)
			}
		})
	}
}

func TestDeletedExistsNot(t *testing.T) {
	d := apply(t, Document{}, t0, `{"state":{"desired":{"a":1}}}`).Document
	gone := restored(t, d.Deleted())
	if gone.Exists() || (Document{}).Exists() || !d.Exists() {
		t.Error("Exists: want false for a tombstone and for the zero value, true for a live one")
	}
	r := apply(t, gone, t1, `{"state":{"reported":{"a":1}}}`)
	if !strings.HasPrefix(string(r.DocumentsPayload()), `{"previous":null,`) || !r.Changed || r.Document.Version != 2 {
		t.Errorf("after delete: %s", r.DocumentsPayload())
	}
}

func TestChanged(t *testing.T) {
	d := apply(t, Document{}, t0, `{"state":{"desired":{"a":1,"o":{"x":[1,2]}},"reported":{"b":true}}}`).Document
	tests := []struct {
		state string
		want  bool
	}{
		{`{}`, false},
		{`{"desired":{}}`, false},
		{`{"desired":{"a":1}}`, false},
		{`{"desired":{"a":1.0}}`, false},
		{`{"desired":{"o":{"x":[1,2.0]}}}`, false},
		{`{"desired":{"z":null,"y":{},"o":{}}}`, false},
		{`{"desired":{"a":2}}`, true},
		{`{"desired":{"a":null}}`, true},
		{`{"desired":{"a":{}}}`, true},
		{`{"desired":{"o":{"x":null}}}`, true},
		{`{"desired":{"o":1}}`, true},
		{`{"reported":null}`, true},
		{`{"reported":{"c":0}}`, true},
	}
	for _, tt := range tests {
		r := apply(t, d, t1, `{"state":`+tt.state+`}`)
		if r.Changed != tt.want || r.Document.Version != 2 {
			t.Errorf("%s: changed %v version %d, want %v 2", tt.state, r.Changed, r.Document.Version, tt.want)
		}
	}
	if !apply(t, Document{}, t0, `{"state":{}}`).Changed {
		t.Error("creation is a change")
	}
}

func TestMetadataFollowsValues(t *testing.T) {
	d := apply(t, Document{}, t0, `{"state":{"reported":{"keep":1,"touch":1,"o":{"p":1,"q":2},"arr":[1,{"k":[2]}],"toscalar":{"x":1},"toobject":1}}}`).Document
	d = apply(t, d, t1, `{"state":{"reported":{"touch":1,"o":{"p":null},"arr":[],"toscalar":2,"toobject":{"y":1,"z":{}}}}}`).Document
	wantJSON(t, "stored", d.Append(nil), `{"reported":{"arr":[],"keep":1,"o":{"q":2},"toobject":{"y":1},"toscalar":2,"touch":1},
		"reportedMeta":{"arr":1772366500,"keep":1772366400,"o":1772366400,"toobject":1772366500,"toscalar":1772366500,"touch":1772366500},
		"updatedAt":1772366500123,"version":2}`)
	whole := apply(t, d, t2, `{"state":{"reported":{"keep":1,"touch":1,"o":{"q":2},"arr":[],"toscalar":2,"toobject":{"y":1}}}}`).Document
	if !strings.Contains(storedText(whole), `,"reportedMeta":1772366600,`) {
		t.Errorf("all was written at once: %s", storedText(whole))
	}
	if a, b := storedText(d), storedText(restored(t, d)); a != b {
		t.Errorf("stored form:\n%s\n%s", a, b)
	}
}

// What nothing says of when it was written has no timestamp, and is read all the same.
func TestMissingMetadata(t *testing.T) {
	const stored = `{"desired":{"a":1,"b":{"c":2,"d":[3]}},"reported":{"x":1},"desiredMeta":{"b":{"c":5},"gone":7},"updatedAt":1000,"version":3}`
	d, err := ParseDocument(stored)
	if err != nil {
		t.Fatal(err)
	}
	wantJSON(t, "get", d.GetAccepted("", t0), `{"state":{"desired":{"a":1,"b":{"c":2,"d":[3]}},"reported":{"x":1},"delta":{"a":1,"b":{"c":2,"d":[3]}}},
		"metadata":{"desired":{"b":{"c":{"timestamp":5}}}},"version":3,"timestamp":1772366400}`)
	wantJSON(t, "stored", d.Append(nil), strings.Replace(stored, `,"gone":7`, "", 1))
}

func TestStoredForm(t *testing.T) {
	d := apply(t, Document{}, t0, `{"state":{"desired":{"b":1.50,"a":["<é\u0001\n\"\\"]},"reported":{}}}`).Document
	wantJSON(t, "stored", d.Append(nil), `{"desired":{"a":["<é\u0001\n\"\\"],"b":1.50},"desiredMeta":1772366400,"updatedAt":1772366400123,"version":1}`)
	if got := restored(t, d); !got.UpdatedAt.Equal(d.UpdatedAt) {
		t.Errorf("updated at %v, want %v", got.UpdatedAt, d.UpdatedAt)
	}
	if s := storedText(Document{}); s != `{"version":0}` {
		t.Errorf("zero document: %s", s)
	}
	for _, bad := range []string{``, `[]`, `{"version":"1"}`, `{"version":1.5}`, `{"desired":[]}`, `{"desired":{"a":null}}`,
		`{"desired":{"a":1},"desiredMeta":{"a":"x"}}`, `{"desired":{"a":1},"desiredMeta":{"a":{}}}`, `{"desired":{"a":{"b":1}},"desiredMeta":1.5}`, `{"updatedAt":"now"}`, `{"version":1}x`, "{\"a\":\"\xff\"}"} {
		if _, err := ParseDocument(bad); err == nil {
			t.Errorf("%s: want an error", bad)
		}
	}
}
