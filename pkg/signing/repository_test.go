package signing

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestNewRootRefusesUnsafeSpecs(t *testing.T) {
	r := newRepo(t)
	for name, edit := range map[string]func(*RootSpec){
		"root threshold 0":            func(s *RootSpec) { s.RootThreshold = 0 },
		"root threshold 4 of 3":       func(s *RootSpec) { s.RootThreshold = 4 },
		"targets threshold -1":        func(s *RootSpec) { s.TargetsThreshold = -1 },
		"targets threshold 3 of 2":    func(s *RootSpec) { s.TargetsThreshold = 3 },
		"no root keys":                func(s *RootSpec) { s.RootKeys = nil },
		"root key twice":              func(s *RootSpec) { s.RootKeys[1] = s.RootKeys[0] },
		"targets key twice":           func(s *RootSpec) { s.TargetsKeys[1] = s.TargetsKeys[0] },
		"empty key":                   func(s *RootSpec) { s.TargetsKeys[1] = PublicKey{} },
		"online key is a root key":    func(s *RootSpec) { s.Snapshot = s.RootKeys[2] },
		"online key is a targets key": func(s *RootSpec) { s.Timestamp = s.TargetsKeys[0] },
		"no timestamp key":            func(s *RootSpec) { s.Timestamp = PublicKey{} },
		"no expiry":                   func(s *RootSpec) { s.Expires = time.Time{} },
	} {
		spec := r.spec
		spec.RootKeys, spec.TargetsKeys = slices.Clone(spec.RootKeys), slices.Clone(spec.TargetsKeys)
		edit(&spec)
		_, err := NewRoot(spec)
		wantErr(t, name, err, ErrInvalid)
		_, err = NextRoot(r.root, spec)
		wantErr(t, name, err, ErrInvalid)
	}
	_, err := NewRoot(r.spec, RootKey{r.targetsKeys[0]})
	wantErr(t, "signer that is no root key", err, ErrInvalid)
	_, err = NewRoot(r.spec, RootKey{})
	wantErr(t, "empty signer", err, ErrInvalid)
	_, err = NewTargets(day0, TargetsKey{})
	wantErr(t, "empty signer", err, ErrInvalid)
	wantErr(t, "root below its threshold", VerifyRoot(must(NewRoot(r.spec, RootKey{r.rootKeys[0]}))(t)), ErrSignature)
}

func TestVerifyRootRefusesOneKeyOfflineAndOnline(t *testing.T) {
	r := newRepo(t)
	mixed := forge(t, r.root, func(s map[string]any) {
		roles := s["roles"].(map[string]any)
		roles["timestamp"] = map[string]any{"keyids": []any{r.targetsKeys[0].Public().ID()}, "threshold": 1}
	}, r.rootKeys[0], r.rootKeys[1])
	wantErr(t, "mixed root", VerifyRoot(mixed), ErrInvalid)
}

func TestRootOnlineKeys(t *testing.T) {
	r := newRepo(t)
	s, ts, err := RootOnlineKeys(r.root)
	noErr(t, err)
	if !slices.Equal(s, []PublicKey{r.spec.Snapshot}) || !slices.Equal(ts, []PublicKey{r.spec.Timestamp}) {
		t.Errorf("online keys %v, %v", s, ts)
	}
	_, _, err = RootOnlineKeys(must(NewRoot(r.spec))(t))
	wantErr(t, "unsigned root", err, ErrSignature)
}

type brokenSigner struct{ Key }

func (brokenSigner) Sign([]byte) ([]byte, error) { return make([]byte, 64), nil }

func TestFaultySignerIsFoundAtOnce(t *testing.T) {
	r := newRepo(t)
	_, err := CoSign(r.targets, brokenSigner{r.targetsKeys[0]})
	wantErr(t, "faulty signer", err, ErrSignature)
}

func TestCoSignReachesTheThresholdByFile(t *testing.T) {
	r := newRepo(t)
	draft := must(AddTarget(r.targets, target("lamp/2.0.0.idx", indexV2), day0.Add(year)))(t)
	for i, k := range []Key{r.targetsKeys[0], r.targetsKeys[0], keys(t, 1)[0]} {
		draft = must(CoSign(draft, k))(t)
		_, err := VerifyTargets(r.root, r.targets, draft, day0)
		wantErr(t, fmt.Sprint("after signature ", i+1), err, ErrSignature)
	}
	draft = must(CoSign(draft, r.targetsKeys[1]))(t)
	if n := strings.Count(string(draft), `"keyid"`); n != 3 {
		t.Errorf("%d signatures, want 3: signing again replaces", n)
	}
	must(VerifyTargets(r.root, r.targets, draft, day0))(t)
	_, err := CoSign(r.timestamp, r.targetsKeys[0])
	wantErr(t, "cosigned timestamp", err, ErrInvalid)
}

func TestAddTargetKeepsOthersAndRefusesOtherContent(t *testing.T) {
	r := newRepo(t)
	signers := r.targetsSigners()
	again := must(AddTarget(r.targets, target("lamp/1.0.0.idx", indexV1), day0.Add(year), signers...))(t)
	if must(Version(again))(t) != must(Version(r.targets))(t)+1 {
		t.Error("version did not rise by one")
	}
	_, err := AddTarget(r.targets, target("lamp/1.0.0.idx", indexV2), day0.Add(year), signers...)
	wantErr(t, "other content", err, ErrConflict)
	other := target("lamp/1.0.0.idx", indexV1)
	other.Custom = json.RawMessage(`{"hardwareIds":["lamp-a","lamp-b"],"securityVersion":3}`)
	_, err = AddTarget(r.targets, other, day0.Add(year), signers...)
	wantErr(t, "other custom data", err, ErrConflict)
	other.Custom = json.RawMessage(`{ "securityVersion": 3, "hardwareIds": ["lamp-a"] }`)
	must(AddTarget(r.targets, other, day0.Add(year), signers...))(t)

	two := must(AddTarget(r.targets, target("lamp/2.0.0.idx", indexV2), day0.Add(year), signers...))(t)
	want := []Target{target("lamp/1.0.0.idx", indexV1), target("lamp/2.0.0.idx", indexV2)}
	if diff := cmp.Diff(want, must(Targets(two))(t)); diff != "" {
		t.Error(diff)
	}
	less := must(RemoveTarget(two, "lamp/1.0.0.idx", day0.Add(year), signers...))(t)
	if diff := cmp.Diff(want[1:], must(VerifyTargets(r.root, two, less, day0))(t)); diff != "" {
		t.Error(diff)
	}
	_, err = RemoveTarget(less, "lamp/1.0.0.idx", day0.Add(year), signers...)
	wantErr(t, "removed twice", err, ErrUnknownTarget)
}

func TestAddTargetRefusesWhatNoDeviceCouldUse(t *testing.T) {
	r := newRepo(t)
	add := func(edit func(*Target)) error {
		tg := target("lamp/2.0.0.idx", indexV2)
		edit(&tg)
		_, err := AddTarget(r.targets, tg, day0.Add(year))
		return err
	}
	for _, path := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", "a/..b", "a/./b", ".", "a b", "a\\b", "a\x00", "ä", strings.Repeat("a", MaxPathBytes+1)} {
		wantErr(t, fmt.Sprintf("path %q", path), add(func(g *Target) { g.Path = path }), ErrInvalid)
	}
	noErr(t, add(func(g *Target) { g.Path = "lamp_pro/1.0.0-rc.1+b~2.idx" }))
	noErr(t, add(func(g *Target) { g.Path = strings.Repeat("a", MaxPathBytes) }))
	noErr(t, add(func(g *Target) { g.Custom = nil }))
	wantErr(t, "length", add(func(g *Target) { g.Length = -1 }), ErrInvalid)
	wantErr(t, "digest", add(func(g *Target) { g.SHA256 = [32]byte{} }), ErrInvalid)
	for _, custom := range []string{``, `[]`, `1`, `{"a":1,"a":2}`, `{"a":1.5}`, `{"a":1e400}`, `{}x`, "{\"\xff\":1}"} {
		wantErr(t, "custom "+custom, add(func(g *Target) { g.Custom = json.RawMessage(custom) }), ErrInvalid)
	}
	wantErr(t, "too large", add(func(g *Target) {
		g.Custom = json.RawMessage(`{"a":"` + strings.Repeat("x", MaxTargetsBytes) + `"}`)
	}), ErrTooLarge)
}

func TestVerifyTargetsTakesOnlyTheNextVersion(t *testing.T) {
	r := newRepo(t)
	signers := []Signer{r.targetsKeys[0], r.targetsKeys[1]}
	for _, v := range []int64{1, 2, 4, 1 << 40} {
		_, err := VerifyTargets(r.root, r.targets, forge(t, r.targets, setVersion(v), signers...), day0)
		wantErr(t, fmt.Sprint("version ", v, " after 2"), err, ErrRollback)
	}
	next := forge(t, r.targets, setVersion(3), signers...)
	must(VerifyTargets(r.root, r.targets, next, day0))(t)
	_, err := VerifyTargets(r.root, nil, next, day0)
	wantErr(t, "first version is 3", err, ErrRollback)
	_, err = VerifyTargets(r.root, r.targets, next, day0.Add(year/2+time.Second))
	wantErr(t, "expired", err, ErrExpired)
	long := forge(t, next, func(s map[string]any) { s["expires"] = "2030-01-01T00:00:00Z" }, signers...)
	_, err = VerifyTargets(r.root, r.targets, long, day0.Add(year+time.Second))
	wantErr(t, "under an expired root", err, ErrExpired)
	swapped := forge(t, next, func(s map[string]any) {
		s["targets"].(map[string]any)["lamp/1.0.0.idx"].(map[string]any)["length"] = 1
	}, signers...)
	_, err = VerifyTargets(r.root, r.targets, swapped, day0)
	wantErr(t, "content swapped under its path", err, ErrConflict)
	path := forge(t, next, func(s map[string]any) {
		m := s["targets"].(map[string]any)
		m["../etc/passwd"] = m["lamp/1.0.0.idx"]
	}, signers...)
	_, err = VerifyTargets(r.root, r.targets, path, day0)
	wantErr(t, "path that leaves its folder", err, ErrInvalid)
}

func TestPublishRefusesToGoBack(t *testing.T) {
	r := newRepo(t)
	old := *r
	r.add(t, "lamp/2.0.0.idx", indexV2)
	r.publish(t, day0)
	_, _, err := r.online.Publish(r.snapshot, r.timestamp, old.targets, day0)
	wantErr(t, "older targets", err, ErrRollback)
	_, err = r.online.Refresh(r.timestamp, old.snapshot, day0)
	wantErr(t, "older snapshot", err, ErrRollback)
	last := forge(t, r.timestamp, setVersion(MaxVersion), r.online.Timestamp)
	_, err = r.online.Refresh(last, r.snapshot, day0)
	wantErr(t, "version after the last", err, ErrInvalid)
	_, _, err = Online{}.Publish(nil, nil, r.targets, day0)
	wantErr(t, "no keys", err, ErrInvalid)
}

// TestAnyOrderOfAnyOldFiles feeds a device files of a history in any order and
// at any time, with restarts: what it trusts never goes back, and a target is
// only ever one of the newest state its timestamp names.
func TestAnyOrderOfAnyOldFiles(t *testing.T) {
	r := newRepo(t)
	history := []repo{*r}
	for i := range 4 {
		r.add(t, fmt.Sprintf("lamp/2.0.%d.idx", i), indexV2)
		r.publish(t, day0.Add(time.Duration(i)*10*time.Hour))
		history = append(history, *r)
	}
	rapid.Check(t, func(rt *rapid.T) {
		d, err := NewTrust(r.root, time.Time{})
		if err != nil {
			rt.Fatal(err)
		}
		var stored [3][]byte
		var snapshot, timestamp int64
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			h := history[rapid.IntRange(0, len(history)-1).Draw(rt, "state")]
			now := day0.Add(time.Duration(rapid.IntRange(-50, 80).Draw(rt, "hours")) * time.Hour)
			floor := d.ClockFloor()
			switch rapid.IntRange(0, 3).Draw(rt, "kind") {
			case 0:
				if err = d.UpdateTimestamp(h.timestamp, now); err == nil {
					stored[0] = h.timestamp
					v := d.timestamp.Signed.Version
					if v < timestamp || d.SnapshotVersion() < snapshot {
						rt.Fatalf("timestamp %d after %d", v, timestamp)
					}
					timestamp, snapshot = v, d.SnapshotVersion()
				}
			case 1:
				if err = d.UpdateSnapshot(h.snapshot, now); err == nil {
					stored[1] = h.snapshot
				}
			case 2:
				if err = d.UpdateTargets(h.targets, now); err == nil {
					stored[2] = h.targets
				}
			case 3:
				if d, err = NewTrust(r.root, floor); err == nil {
					err = errors.Join(d.Restore(stored[0], stored[1], stored[2]), d.Dropped())
				}
				if err != nil {
					rt.Fatal(err)
				}
			}
			if d.ClockFloor().Before(floor) {
				rt.Fatal("the clock floor went back")
			}
			for i := range 4 {
				_, err := d.Target(fmt.Sprintf("lamp/2.0.%d.idx", i))
				if known := int64(i+2) <= d.SnapshotVersion(); err == nil && !known || errors.Is(err, ErrUnknownTarget) && known {
					rt.Fatalf("target %d at snapshot %d: %v", i, d.SnapshotVersion(), err)
				}
			}
		}
	})
}
