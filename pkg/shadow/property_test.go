package shadow

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// Few keys and values, so that patches meet what they patch.
var (
	keys    = rapid.SampledFrom([]string{"a", "b", "c", "timestamp", "é\"\n"})
	scalars = rapid.OneOf(
		rapid.Just(any(true)), rapid.Just(any(false)),
		rapid.SampledFrom([]any{"", "x", "\u0001\\", "😀", json.Number("1"), json.Number("1.0"), json.Number("-0"),
			json.Number("0.10e1"), json.Number("1E400"), json.Number("9007199254740993")}),
	)
)

func arrays(depth int) *rapid.Generator[any] {
	return rapid.Map(rapid.SliceOfN(values(depth-1, false), 0, 3), func(a []any) any {
		return append([]any{}, a...)
	})
}

// values generates JSON values, with nulls when they are patches.
func values(depth int, nulls bool) *rapid.Generator[any] {
	kinds := []*rapid.Generator[any]{scalars}
	if nulls {
		kinds = append(kinds, rapid.Just[any](nil))
	}
	if depth > 0 {
		kinds = append(kinds, rapid.Map(objects(depth-1, nulls), func(m map[string]any) any { return m }), arrays(depth))
	}
	return rapid.OneOf(kinds...)
}

func objects(depth int, nulls bool) *rapid.Generator[map[string]any] {
	return rapid.MapOfN(keys, values(depth, nulls), 0, 4)
}

func patches() *rapid.Generator[Patch] {
	return rapid.Custom(func(t *rapid.T) Patch {
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			return Patch{}
		case 1:
			return Patch{Set: true}
		}
		return Patch{Set: true, Object: objects(3, true).Draw(t, "object")}
	})
}

func updates() *rapid.Generator[Update] {
	return rapid.Custom(func(t *rapid.T) Update {
		return Update{Desired: patches().Draw(t, "desired"), Reported: patches().Draw(t, "reported"), ClientToken: "t"}
	})
}

func TestDeltaClosesTheGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		desired := objects(3, false).Draw(t, "desired")
		reported := objects(3, false).Draw(t, "reported")
		delta := Delta(desired, reported)
		if rest := Delta(desired, Merge(reported, delta)); rest != nil {
			t.Fatalf("delta %s leaves %s", text(delta), text(rest))
		}
		if delta != nil && len(delta) == 0 {
			t.Fatal("an empty delta must be nil")
		}
	})
}

// TestApplySequence applies many updates in a row and holds every invariant
// of a document after each.
func TestApplySequence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var d Document
		now := t0
		for _, u := range rapid.SliceOfN(updates(), 1, 6).Draw(t, "updates") {
			before, request := storedText(t, d), text(u.Desired.Object)+text(u.Reported.Object)
			now = now.Add(1e9)
			r, err := Apply(d, u, now)
			if err != nil {
				t.Fatalf("apply: %v", err)
			}
			if storedText(t, d) != before || text(u.Desired.Object)+text(u.Reported.Object) != request {
				t.Fatal("apply changed its arguments")
			}
			checkResult(t, d, u, r)
			checkTimes(t, d, r.Document, u.Reported, Stamp(now.Unix()))
			d = r.Document
		}
	})
}

func storedText(t *rapid.T, d Document) string {
	b, err := d.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func checkResult(t *rapid.T, before Document, u Update, r Result) {
	d := r.Document
	if d.Version != before.Version+1 {
		t.Fatalf("version %d after %d", d.Version, before.Version)
	}
	checkMirror(t, d.Desired, d.DesiredMeta)
	checkMirror(t, d.Reported, d.ReportedMeta)
	same := equalObjects(before.Desired, d.Desired) && equalObjects(before.Reported, d.Reported) && before.Exists()
	if r.Changed == same {
		t.Fatalf("changed %v, but same values %v", r.Changed, same)
	}
	if again, err := Apply(d, u, t0); err != nil || again.Changed {
		t.Fatalf("applying the same update again changes %s: %v", storedText(t, again.Document), err)
	}
	if want := stateSizeByText(d); stateSize(d) != want {
		t.Fatalf("size %d, want %d", stateSize(d), want)
	}
	var back Document
	if err := back.UnmarshalJSON([]byte(storedText(t, d))); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, back); diff != "" {
		t.Fatalf("stored form:\n%s", diff)
	}
	for _, p := range [][]byte{r.AcceptedPayload(), r.DocumentsPayload(), d.GetAccepted("x", t0)} {
		if !json.Valid(p) {
			t.Fatalf("not JSON: %s", p)
		}
	}
	if r.DeltaPayload() == nil != (d.Delta() == nil) || r.DeltaPayload() != nil && !json.Valid(r.DeltaPayload()) {
		t.Fatalf("delta payload %s of %s", r.DeltaPayload(), text(d.Delta()))
	}
}

// leafTimes is when each leaf was written, by its path.
func leafTimes(state map[string]any, meta any, path string, into map[string]Stamp) map[string]Stamp {
	for k, v := range state {
		at := path + "\x00" + k
		if m, ok := v.(map[string]any); ok {
			leafTimes(m, metaBelow(meta, k), at, into)
			continue
		}
		into[at], _ = metaBelow(meta, k).(Stamp)
	}
	return into
}

// checkTimes fails unless exactly the leaves that the patch wrote are new.
func checkTimes(t *rapid.T, before, after Document, p Patch, now Stamp) {
	got := leafTimes(after.Reported, after.ReportedMeta, "", map[string]Stamp{})
	want := leafTimes(before.Reported, before.ReportedMeta, "", map[string]Stamp{})
	for path := range leafTimes(p.Object, nil, "", map[string]Stamp{}) {
		want[path] = now
	}
	for path, at := range got {
		if at != want[path] {
			t.Fatalf("%q was written at %d, metadata says %d", path, want[path], at)
		}
	}
}

func stateSizeByText(d Document) int {
	n := 0
	for _, m := range []map[string]any{d.Desired, d.Reported} {
		if m != nil {
			n += len(text(m))
		}
	}
	return n
}

// checkMirror fails unless meta tells of every leaf of state and of nothing
// else, as shortly as it can, and state has neither nulls nor empty objects.
func checkMirror(t *rapid.T, state map[string]any, meta any) {
	if (state == nil) != (meta == nil) || state != nil && len(state) == 0 {
		t.Fatalf("state %s, metadata %v", text(state), meta)
	}
	if m, ok := meta.(map[string]any); ok {
		if _, short := folded(m).(map[string]any); !short || len(m) != len(state) {
			t.Fatalf("state %s, metadata %v", text(state), meta)
		}
	}
	for k, v := range state {
		switch v := v.(type) {
		case nil:
			t.Fatalf("null at %q", k)
		case map[string]any:
			if len(v) == 0 {
				t.Fatalf("empty object at %q", k)
			}
			checkMirror(t, v, metaBelow(meta, k))
		default:
			if _, ok := metaBelow(meta, k).(Stamp); !ok {
				t.Fatalf("metadata of %q: %T", k, metaBelow(meta, k))
			}
		}
	}
}

func TestNumbersCompareByValue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.Int32().Draw(t, "a")
		b := rapid.SampledFrom([]int32{a, -a, a / 10, 0}).Draw(t, "b")
		forms := func(n int32) []string {
			s := strconv.Itoa(int(n))
			return []string{s, s + ".0", s + "e0", s + "0E-1", s + ".00e+00"}
		}
		for _, x := range forms(a) {
			for _, y := range forms(b) {
				if equalNumbers(x, y) != (a == b) {
					t.Fatalf("%s and %s: got equal %v", x, y, a != b)
				}
			}
		}
	})
	if equalNumbers("1e99999999999", "2e99999999999") || !equalNumbers("0e99", "-0") || equalNumbers("1e-400", "0") {
		t.Error("exponents beyond float64 must count")
	}
}

// FuzzParseJSON holds our parser against the standard one.
func FuzzParseJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.5e+3,true,false,null,"x\u00e9\ud83d\ude00\ud800\n"]}`, `[01]`, `{"a":1,}`, `{,}`, `[1 2]`, ` "" `,
		`1.`, `-`, `.5`, `1e`, `"\x"`, "\"\t\"", `{"a":1,"a":{}}`, `nul`, "\ufeff{}", `"\ud800\u0041"`, `"\udc00\ud800\udc00"`, `{"a"}`, `[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !utf8.Valid(b) {
			return
		}
		got, err := parseJSON(string(b))
		if err == errNesting {
			return
		}
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		var want any
		wantErr := dec.Decode(&want)
		if _, more := dec.Token(); wantErr == nil && more != io.EOF {
			wantErr = more
			if more == nil {
				wantErr = errSyntax
			}
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: got error %v, want %v", b, err, wantErr)
		}
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			t.Fatalf("%q (-want +got):\n%s", b, diff)
		}
	})
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"version":0}`))
	f.Add([]byte(`{"desired":{"a":[{"timestamp":1}],"b":{}},"desiredMeta":{"a":[{"timestamp":5}]},"updatedAt":1772366400123,"version":3}`))
	f.Add([]byte(`{"reported":{"<":"\u2028"},"reportedMeta":{"x":1,"y":[[2]]},"updatedAt":-1,"version":-9}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Document
		if d.UnmarshalJSON(b) != nil {
			return
		}
		once, err := d.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		twice, err := restored(t, d).MarshalJSON()
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s then %s: %v", once, twice, err)
		}
		_ = d.GetAccepted("", t0)
		if r, err := Apply(d, NewUpdate(map[string]any{"a": map[string]any{"b": 1}}, d.Desired), t1); err == nil {
			_ = r.DocumentsPayload()
		}
	})
}

func FuzzUpdate(f *testing.F) {
	for _, s := range []string{`{"state":{"desired":{"a":{"b":null}},"reported":null},"version":1,"clientToken":"x"}`, `{"state":null}`,
		`{"state":{"desired":{"a":{},"b":[{},[]]}}}`, `{"state":{"reported":{"a":1e999999}}}`} {
		f.Add([]byte(`{"state":{"desired":{"a":{"b":1,"c":[1]},"d":2},"reported":{"a":{"b":1.0}}}}`), []byte(s))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var d Document
		for i, b := range [][]byte{first, second, first} {
			u, err := ParseUpdate(b)
			if err != nil {
				if _, ok := err.(*Error); !ok {
					t.Fatalf("%q: error %T", b, err)
				}
				continue
			}
			if got := ClientToken(b); got != u.ClientToken {
				t.Fatalf("token %q, want %q", got, u.ClientToken)
			}
			r, err := Apply(d, u, t0)
			if err != nil {
				continue
			}
			if rest := Delta(r.Document.Desired, Merge(r.Document.Reported, r.Document.Delta())); rest != nil {
				t.Fatalf("step %d: the delta leaves %s", i, text(rest))
			}
			for _, p := range [][]byte{r.AcceptedPayload(), r.DocumentsPayload(), r.Document.GetAccepted(u.ClientToken, t1)} {
				if !json.Valid(p) {
					t.Fatalf("not JSON: %s", p)
				}
			}
			if diff := cmp.Diff(r.Document, restored(t, r.Document)); diff != "" {
				t.Fatalf("stored form:\n%s", diff)
			}
			d = r.Document
		}
	})
}
