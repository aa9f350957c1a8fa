package signing

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"
)

// variants returns doc's signed part with every node in turn replaced by values
// of other kinds, or left out, and well signed again: what a stolen key could
// make to crash a reader.
func variants(t testing.TB, doc []byte, signers ...Signer) [][]byte {
	t.Helper()
	values := []any{nil, true, "", "x", json.Number("-1"), json.Number("0"), json.Number("9223372036854775807"), json.Number("99999999999999999999"), []any{}, []any{nil}, map[string]any{}, map[string]any{"": nil}}
	var all [][]byte
	for i := 0; ; i++ {
		for j, v := range append(values, deleted{}) {
			if (i+j)%stride != 0 {
				continue
			}
			found := false
			bad := forge(t, doc, func(s map[string]any) { n := i; found = replaceNth(s, &n, v) }, signers...)
			if !found {
				return all
			}
			if bad != nil {
				all = append(all, bad)
			}
		}
	}
}

type deleted struct{}

// replaceNth replaces the n-th node below v, in a fixed order.
func replaceNth(v any, n *int, with any) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range sortedKeys(v) {
			if *n == 0 {
				v[k] = with
				if with == (any)(deleted{}) {
					delete(v, k)
				}
				return true
			}
			*n--
			if replaceNth(v[k], n, with) {
				return true
			}
		}
	case []any:
		for i := range v {
			if *n == 0 {
				v[i] = with
				if with == (any)(deleted{}) {
					v[i] = "deleted"
				}
				return true
			}
			*n--
			if replaceNth(v[i], n, with) {
				return true
			}
		}
	}
	return false
}

func TestParserCrashByStructuralVariants(t *testing.T) {
	r := newRepo(t)
	online := []Signer{r.online.Snapshot, r.online.Timestamp}
	offline := []Signer{r.rootKeys[0], r.rootKeys[1], r.targetsKeys[0], r.targetsKeys[1]}
	total, taken := 0, 0
	count := func(err error) {
		total++
		if err == nil {
			taken++
		}
	}
	base := must(NewTrust(r.root, time.Time{}))(t)
	for i, b := range variants(t, r.root, offline...) {
		d, err := NewTrust(b, time.Time{})
		count(err)
		if err == nil {
			_ = r.refresh(d, day0)
		}
		if d := *base; i%4 == 0 {
			_ = d.UpdateRoot(b)
		}
	}
	for _, b := range variants(t, r.timestamp, online...) {
		d := *base
		noErr(t, d.Restore(b, r.snapshot, r.targets))
		count(d.UpdateTimestamp(b, day0))
		_ = d.UpdateSnapshot(r.snapshot, day0)
	}
	for _, b := range variants(t, r.snapshot, online...) {
		d := *base
		noErr(t, d.Restore(r.timestamp, b, r.targets))
		ts, err := r.online.Refresh(r.timestamp, b, day0)
		if err == nil {
			err = d.UpdateTimestamp(ts, day0)
		}
		if err == nil {
			err = d.UpdateSnapshot(b, day0)
		}
		count(err)
		_ = d.UpdateTargets(r.targets, day0)
	}
	for _, b := range variants(t, r.targets, offline...) {
		_, err := VerifyTargets(r.root, nil, b, day0)
		count(err)
		s, ts, err := r.online.Publish(nil, nil, b, day0)
		if err != nil {
			continue
		}
		d := *base
		noErr(t, d.UpdateTimestamp(ts, day0))
		noErr(t, d.UpdateSnapshot(s, day0))
		if d.UpdateTargets(b, day0) == nil {
			_, _ = d.Target("lamp/1.0.0.idx")
		}
	}
	if total < 1000/stride {
		t.Errorf("only %d variants", total)
	}
	t.Logf("%d variants, %d harmless ones taken, no panic", total, taken)
}

// FuzzTrust feeds one file of each kind to a device: none may crash it, and
// nothing counts that was not signed.
func FuzzTrust(f *testing.F) {
	r := newRepo(f)
	for _, doc := range [][]byte{r.root, r.timestamp, r.snapshot, r.targets, []byte(`{"signed":{"_type":"targets","targets":{"a":null}},"signatures":[null]}`)} {
		f.Add(doc)
		f.Add(doc[:len(doc)/2])
		f.Add(bytes.ReplaceAll(doc, []byte(`1`), []byte(`null`)))
	}
	same := func(t *testing.T, b, doc []byte) {
		var x, y struct{ Signed any }
		if json.Unmarshal(b, &x) != nil || json.Unmarshal(doc, &y) != nil {
			t.Fatal("accepted what is no JSON")
		}
		bx, by := must(json.Marshal(x))(t), must(json.Marshal(y))(t)
		if !bytes.Equal(bx, by) {
			t.Fatalf("accepted %s", bx)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = NewTrust(b, day0)
		d := must(NewTrust(r.root, time.Time{}))(t)
		if d.UpdateRoot(b) == nil {
			t.Fatal("accepted a root nobody signed")
		}
		noErr(t, d.Restore(b, b, b))
		if d.UpdateTimestamp(b, day0) == nil {
			same(t, b, r.timestamp)
		}
		d = must(NewTrust(r.root, time.Time{}))(t)
		noErr(t, d.UpdateTimestamp(r.timestamp, day0))
		if d.UpdateSnapshot(b, day0) == nil {
			same(t, b, r.snapshot)
		}
		noErr(t, d.UpdateSnapshot(r.snapshot, day0))
		if d.UpdateTargets(b, day0) == nil {
			same(t, b, r.targets)
		}
		if _, err := VerifyTargets(r.root, nil, b, day0); err == nil {
			t.Fatal("accepted targets out of order")
		}
	})
}

// FuzzTargets: what lists also encodes to the same list.
func FuzzTargets(f *testing.F) {
	r := newRepo(f)
	f.Add(r.targets)
	f.Add(r.root)
	f.Add([]byte(`{"signed":{"_type":"targets","targets":{"a":null}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = Version(b)
		list, err := Targets(b)
		if err != nil {
			return
		}
		next, err := CoSign(b, r.targetsKeys[0])
		if err != nil {
			t.Fatal(err)
		}
		if again := must(Targets(next))(t); len(again) != len(list) {
			t.Fatalf("%d targets became %d", len(list), len(again))
		}
	})
}

// FuzzOpen: no text but the sealed one opens, and none costs much to refuse.
func FuzzOpen(f *testing.F) {
	k := fixedKeys(1)[0]
	sealed := must(sealWith(cheap, k, RoleRoot, []byte("pass")))(f)
	f.Add(sealed)
	f.Add(sealed[:len(sealed)/2])
	f.Add([]byte("-----BEGIN OTAD SEALED KEY-----\nKdf: scrypt N=2 r=1 p=1\n\n-----END OTAD SEALED KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Open(b, RoleRoot, []byte("pass"))
		if err == nil && got.Public() != k.Public() {
			t.Fatal("opened a key that was never sealed")
		}
	})
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
