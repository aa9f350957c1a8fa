package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/otad/otad/pkg/shadow"
)

func TestParseChanges(t *testing.T) {
	for _, test := range []struct {
		words, want string
	}{
		{"a=1", `{"a":1}`},
		{"a=01", `{"a":"01"}`},
		{"a=1e3", `{"a":1e3}`},
		{"a=12345678901234567890", `{"a":12345678901234567890}`},
		{"a=true b=null c=on", `{"a":true,"b":null,"c":"on"}`},
		{`a="1"`, `{"a":"1"}`},
		{`a={"x":[1]}`, `{"a":{"x":[1]}}`},
		{"a=", `{"a":""}`},
		{"a=b=c", `{"a":"b=c"}`},
		{"a.b=1 a.c=2", `{"a":{"b":1,"c":2}}`},
		{"a- b.c-", `{"a":null,"b":{"c":null}}`},
		{"a=-", `{"a":"-"}`},
		{"a-=1", `{"a-":1}`},
		{`a={"x":1} a.y=2`, `{"a":{"x":1,"y":2}}`},
		{"a=1 2", ""},
		{"=1", ""},
		{"-", ""},
		{"a..b=1", ""},
		{"a", ""},
		{"a=1 a=2", ""},
		{"a.b=1 a=2", ""},
		{"a=1 a.b=2", ""},
	} {
		patch, err := parseChanges(strings.Split(test.words, " "))
		if test.want == "" {
			if err == nil || classify(err).status != exitUsage {
				t.Errorf("%s: got %v, %v, want a usage error", test.words, patch, err)
			}
			continue
		}
		raw, _ := json.Marshal(patch)
		if err != nil || string(raw) != test.want {
			t.Errorf("%s: got %s, %v, want %s", test.words, raw, err, test.want)
		}
	}
}

func FuzzParseChanges(f *testing.F) {
	for _, s := range []string{"a=1", "a.b={}", "x-", "=", "a={\"b\":[1,null]}", "a=1 2", strings.Repeat("a.", 50) + "b=1"} {
		f.Add(s, "k=v")
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		patch, err := parseChanges([]string{one, two})
		if err != nil {
			return
		}
		if _, err := json.Marshal(patch); err != nil || len(patch) == 0 {
			t.Fatalf("%q %q made %v: %v", one, two, patch, err)
		}
	})
}

// Merging the patch that replace makes turns any object into any other.
func TestReplaceThenMergeIsTheWantedObject(t *testing.T) {
	leaf := rapid.OneOf(rapid.Just(any("x")), rapid.Just(any(true)), rapid.Just(any(json.Number("7"))), rapid.Just(any([]any{json.Number("1")})))
	key := rapid.SampledFrom([]string{"a", "b", "c", "d"})
	inner := rapid.MapOfN(key, leaf, 1, 3)
	object := rapid.MapOfN(key, rapid.OneOf(leaf, rapid.Map(inner, func(m map[string]any) any { return maps.Clone(m) })), 0, 4)
	rapid.Check(t, func(t *rapid.T) {
		old, wanted := object.Draw(t, "old"), object.Draw(t, "wanted")
		base, err := shadow.NewObject(old)
		if err != nil {
			t.Fatal(err)
		}
		patch, err := shadow.NewObject(replace(old, wanted))
		if err != nil {
			t.Fatal(err)
		}
		got := shadow.Merge(base, patch).Plain()
		if diff := cmp.Diff(wanted, got); diff != "" && len(wanted)+len(got) > 0 {
			t.Fatalf("(-wanted +got)\n%s", diff)
		}
	})
}

func TestShadowUpdateCarriesTheVersionOnlyWhenAsked(t *testing.T) {
	patch := map[string]any{"a": nil}
	if got, want := string(shadowUpdate(patch, 0)), `{"state":{"desired":{"a":null}}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := string(shadowUpdate(patch, 7)), `{"state":{"desired":{"a":null}},"version":7}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestShadowChanges(t *testing.T) {
	doc := func(s string) shadowDoc {
		d, err := parseShadow([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	before := doc(`{"state":{"desired":{"a":1,"o":{"x":1}},"reported":{"a":1}},"version":1}`)
	after := doc(`{"state":{"desired":{"a":2,"o":{}},"reported":{"a":1,"b":"t"}},"version":2}`)
	want := []string{`desired.a 1 -> 2`, `desired.o = {}`, `reported.b = "t"`, `desired.o.x removed`}
	if diff := cmp.Diff(want, shadowChanges(before, after)); diff != "" {
		t.Error(diff)
	}
	if got := shadowChanges(after, after); got != nil {
		t.Errorf("no change is %q", got)
	}
}

// TestShadowRowsTellKeysApart: a control character does not reach the terminal, and a key
// that holds one does not look like the key without.
func TestShadowRowsTellKeysApart(t *testing.T) {
	var doc shadowDoc
	doc.State.Reported = map[string]any{"a": 1.0, "a\x00": 2.0, "b\x1b[2J": map[string]any{"c": 3.0}}
	var paths []string
	for _, row := range shadowRows(doc) {
		paths = append(paths, row[0])
	}
	if want := []string{`"a\x00"`, `"b\x1b[2J".c`, "a"}; !slices.Equal(paths, want) {
		t.Errorf("paths %q, want %q", paths, want)
	}
}
