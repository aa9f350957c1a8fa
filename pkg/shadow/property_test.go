package shadow

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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

func newObject(t *rapid.T, m map[string]any) Object {
	o, err := NewObject(m)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func drawPatch(t *rapid.T) Patch {
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0:
		return Patch{}
	case 1:
		return Patch{Set: true}
	}
	return Patch{Set: true, Object: newObject(t, objects(3, true).Draw(t, "object"))}
}

func updates() *rapid.Generator[Update] {
	return rapid.Custom(func(t *rapid.T) Update {
		return Update{Desired: drawPatch(t), Reported: drawPatch(t), ClientToken: "t"}
	})
}

// The rules once more, over Go maps and as short as can be: the model of Merge and Delta.

func modelMerge(base, patch map[string]any) map[string]any {
	out := map[string]any{}
	maps.Copy(out, base)
	for k, p := range patch {
		if m, ok := p.(map[string]any); ok {
			old, isMap := base[k].(map[string]any)
			if p = modelMerge(old, m); isMap && len(m) == 0 {
				p = old
			}
			if len(p.(map[string]any)) == 0 {
				p = nil
			}
		}
		if out[k] = p; p == nil {
			delete(out, k)
		}
	}
	return out
}

func modelDelta(desired, reported map[string]any) map[string]any {
	out := map[string]any{}
	for k, want := range desired {
		m, ok := want.(map[string]any)
		have, _ := reported[k].(map[string]any)
		if d := modelDelta(m, have); ok && len(d) > 0 {
			out[k] = d
		} else if !ok && !modelEqual(want, reported[k]) {
			out[k] = want
		}
	}
	return out
}

func modelEqual(a, b any) bool {
	x, isNumber := a.(json.Number)
	y, areNumbers := b.(json.Number)
	if isNumber && areNumbers {
		return equalNumbers(string(x), string(y))
	}
	list, isList := a.([]any)
	other, areLists := b.([]any)
	if isList && areLists {
		return slices.EqualFunc(list, other, modelEqual)
	}
	m, isMap := a.(map[string]any)
	n, areMaps := b.(map[string]any)
	if isMap && areMaps {
		return maps.EqualFunc(m, n, modelEqual)
	}
	return reflect.DeepEqual(a, b)
}

func TestMergeAndDeltaAsInTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base, patch := objects(3, false).Draw(t, "base"), objects(3, true).Draw(t, "patch")
		b, p := newObject(t, base), newObject(t, patch)
		if diff := cmp.Diff(modelMerge(base, patch), Merge(b, p).Plain(), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("merge of %s and %s (-model +got):\n%s", b, p, diff)
		}
		other := objects(3, false).Draw(t, "other")
		if diff := cmp.Diff(modelDelta(base, other), Delta(b, newObject(t, other)).Plain(), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("delta of %s (-model +got):\n%s", b, diff)
		}
		if diff := cmp.Diff(base, b.Plain(), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("an object is not what it was made of (-want +got):\n%s", diff)
		}
		if got := b.Equal(newObject(t, other)); got != modelEqual(base, other) {
			t.Fatalf("%s equal to %v: %v", b, other, got)
		}
	})
}

func TestDeltaClosesTheGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		desired := newObject(t, objects(3, false).Draw(t, "desired"))
		reported := newObject(t, objects(3, false).Draw(t, "reported"))
		delta := Delta(desired, reported)
		if rest := Delta(desired, Merge(reported, delta)); rest != nil {
			t.Fatalf("delta %s leaves %s", delta, rest)
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
			before, request := storedText(d), u.Desired.Object.String()+u.Reported.Object.String()
			now = now.Add(1e9)
			r, err := Apply(d, u, now)
			if err != nil {
				t.Fatalf("apply: %v", err)
			}
			if storedText(d) != before || u.Desired.Object.String()+u.Reported.Object.String() != request {
				t.Fatal("apply changed its arguments")
			}
			checkResult(t, d, u, r)
			checkTimes(t, d, r.Document, u.Reported, now.Unix())
			d = r.Document
		}
	})
}

func checkResult(t *rapid.T, before Document, u Update, r Result) {
	d := r.Document
	if d.Version != before.Version+1 {
		t.Fatalf("version %d after %d", d.Version, before.Version)
	}
	checkOrder(t, d.Desired)
	checkOrder(t, d.Reported)
	same := before.Desired.Equal(d.Desired) && before.Reported.Equal(d.Reported) && before.Exists()
	if r.Changed == same {
		t.Fatalf("changed %v, but same values %v", r.Changed, same)
	}
	if again, err := Apply(d, u, t0); err != nil || again.Changed {
		t.Fatalf("applying the same update again changes %s: %v", storedText(again.Document), err)
	}
	if want := sizeByText(d); d.size() != want {
		t.Fatalf("size %d, want %d", d.size(), want)
	}
	back, err := ParseDocument(storedText(d))
	if err != nil {
		t.Fatal(err)
	}
	if storedText(back) != storedText(d) || !back.Desired.Equal(d.Desired) || !back.Reported.Equal(d.Reported) || !maps.Equal(reportedTimes(back), reportedTimes(d)) {
		t.Fatalf("%s is stored as %s", storedText(back), storedText(d))
	}
	for _, p := range [][]byte{r.AcceptedPayload(), r.DocumentsPayload(), d.GetAccepted("x", t0)} {
		if !json.Valid(p) {
			t.Fatalf("not JSON: %s", p)
		}
	}
	if r.DeltaPayload() == nil != (d.Delta() == nil) || r.DeltaPayload() != nil && !json.Valid(r.DeltaPayload()) {
		t.Fatalf("delta payload %s of %s", r.DeltaPayload(), d.Delta())
	}
}

// leafTimes is when each leaf was written, by its path.
func leafTimes(o Object, given int64, path string, into map[string]int64) map[string]int64 {
	for _, m := range o {
		at := path + "\x00" + m.Key
		if m.kind == kindObject {
			leafTimes(m.members, given, at, into)
			continue
		}
		into[at] = m.written
		if m.written == 0 {
			into[at] = given
		}
	}
	return into
}

func reportedTimes(d Document) map[string]int64 {
	return leafTimes(d.Reported, d.ReportedAt, "", map[string]int64{})
}

// checkTimes fails unless exactly the leaves that the patch wrote are new.
func checkTimes(t *rapid.T, before, after Document, p Patch, now int64) {
	got, want := reportedTimes(after), reportedTimes(before)
	for path := range leafTimes(p.Object, 0, "", map[string]int64{}) {
		want[path] = now
	}
	for path, at := range got {
		if at != want[path] {
			t.Fatalf("%q was written at %d, metadata says %d", path, want[path], at)
		}
	}
}

func sizeByText(d Document) int {
	n := 0
	for _, o := range []Object{d.Desired, d.Reported} {
		if o != nil {
			n += len(o.String())
		}
	}
	return n
}

// checkOrder fails unless keys are in order, each once, and there are neither nulls
// nor empty objects.
func checkOrder(t *rapid.T, o Object) {
	if o != nil && len(o) == 0 {
		t.Fatal("an empty object")
	}
	for i, m := range o {
		if i > 0 && o[i-1].Key >= m.Key {
			t.Fatalf("%q comes before %q", o[i-1].Key, m.Key)
		}
		switch {
		case m.IsNull():
			t.Fatalf("null at %q", m.Key)
		case m.kind == kindObject:
			checkOrder(t, append(Object{}, m.members...))
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
		if diff := cmp.Diff(want, got.Plain()); err == nil && diff != "" {
			t.Fatalf("%q (-want +got):\n%s", b, diff)
		}
		if again, err := parseJSON(string(got.JSON())); err == nil && !got.Equal(again) {
			t.Fatalf("%q becomes %s", b, got.JSON())
		}
	})
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"version":0}`))
	f.Add([]byte(`{"desired":{"a":[{"timestamp":1}],"b":{}},"desiredMeta":{"a":[{"timestamp":5}]},"updatedAt":1772366400123,"version":3}`))
	f.Add([]byte(`{"reported":{"<":"\u2028"},"reportedMeta":{"x":1,"y":[[2]]},"updatedAt":-1,"version":-9}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDocument(string(b))
		if err != nil {
			return
		}
		if once, twice := storedText(d), storedText(restored(t, d)); once != twice {
			t.Fatalf("%s then %s", once, twice)
		}
		u := NewUpdate(map[string]any{"a": map[string]any{"b": 1}}, nil)
		u.Reported = Patch{Set: true, Object: d.Desired}
		r, err := Apply(d, u, t1)
		if err != nil {
			return
		}
		for _, p := range [][]byte{d.GetAccepted("", t0), r.AcceptedPayload(), r.DeltaPayload(), r.DocumentsPayload()} {
			if p != nil && !json.Valid(p) {
				t.Fatalf("not JSON: %s", p)
			}
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
				t.Fatalf("step %d: the delta leaves %s", i, rest)
			}
			for _, p := range [][]byte{r.AcceptedPayload(), r.DocumentsPayload(), r.Document.GetAccepted(u.ClientToken, t1)} {
				if !json.Valid(p) {
					t.Fatalf("not JSON: %s", p)
				}
			}
			if a, b := storedText(r.Document), storedText(restored(t, r.Document)); a != b {
				t.Fatalf("%s is stored as %s", b, a)
			}
			d = r.Document
		}
	})
}
