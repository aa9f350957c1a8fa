package signing

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
)

// day0 is when every test repository is set up.
var day0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const year = 365 * 24 * time.Hour

// repo is a whole repository: three root keys (two needed), two targets keys
// (both needed), two online keys, and the newest file of each role.
type repo struct {
	rootKeys    []Key
	targetsKeys []Key
	online      Online
	spec        RootSpec

	root, targets, snapshot, timestamp []byte
}

var (
	indexV1 = []byte("index of lamp 1.0.0")
	indexV2 = []byte("index of lamp 2.0.0")
)

// newRepo makes a repository with keys that are the same in every process:
// fuzz workers share a corpus.
func newRepo(t testing.TB) *repo {
	t.Helper()
	r := &repo{rootKeys: fixedKeys(1, 2, 3), targetsKeys: fixedKeys(4, 5)}
	k := fixedKeys(6, 7)
	r.online = Online{Snapshot: OnlineKey{k[0]}, Timestamp: OnlineKey{k[1]}}
	r.spec = RootSpec{
		RootKeys: publics(r.rootKeys), TargetsKeys: publics(r.targetsKeys), RootThreshold: 2, TargetsThreshold: 2,
		Snapshot: r.online.Snapshot.Public(), Timestamp: r.online.Timestamp.Public(), Expires: day0.Add(year),
	}
	r.root = must(NewRoot(r.spec, RootKey{r.rootKeys[0]}, RootKey{r.rootKeys[1]}))(t)
	r.targets = must(NewTargets(day0.Add(year/2), r.targetsSigners()...))(t)
	r.add(t, "lamp/1.0.0.idx", indexV1)
	r.publish(t, day0)
	return r
}

func (r *repo) targetsSigners() []TargetsKey {
	var s []TargetsKey
	for _, k := range r.targetsKeys {
		s = append(s, TargetsKey{k})
	}
	return s
}

func (r *repo) add(t testing.TB, path string, content []byte) {
	t.Helper()
	r.targets = must(AddTarget(r.targets, target(path, content), day0.Add(year/2), r.targetsSigners()...))(t)
}

func (r *repo) publish(t testing.TB, now time.Time) {
	t.Helper()
	var err error
	r.snapshot, r.timestamp, err = r.online.Publish(r.snapshot, r.timestamp, r.targets, now)
	noErr(t, err)
}

// rotateOnline publishes a next root with other online keys and starts their files
// again from version 1.
func (r *repo) rotateOnline(t testing.TB, now time.Time) (root []byte) {
	t.Helper()
	k := keys(t, 2)
	r.online = Online{Snapshot: OnlineKey{k[0]}, Timestamp: OnlineKey{k[1]}}
	r.spec.Snapshot, r.spec.Timestamp = r.online.Snapshot.Public(), r.online.Timestamp.Public()
	r.root = must(NextRoot(r.root, r.spec, RootKey{r.rootKeys[1]}, RootKey{r.rootKeys[2]}))(t)
	r.snapshot, r.timestamp = nil, nil
	r.publish(t, now)
	return r.root
}

// device is a Trust that has refreshed from r at now.
func (r *repo) device(t testing.TB, now time.Time) *Trust {
	t.Helper()
	d := must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, r.refresh(d, now))
	return d
}

func (r *repo) refresh(d *Trust, now time.Time) error {
	if err := d.UpdateTimestamp(r.timestamp, now); err != nil {
		return err
	}
	if err := d.UpdateSnapshot(r.snapshot, now); err != nil {
		return err
	}
	return d.UpdateTargets(r.targets, now)
}

func target(path string, content []byte) Target {
	return Target{
		Path: path, Length: int64(len(content)), SHA256: sha256.Sum256(content),
		Custom: json.RawMessage(`{"hardwareIds":["lamp-a"],"securityVersion":3}`),
	}
}

// forge edits the signed part of a document and signs the result with exactly
// the given keys, past every check of the package.
func forge(t testing.TB, doc []byte, edit func(signed map[string]any), signers ...Signer) []byte {
	t.Helper()
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	noErr(t, d.Decode(&m))
	edit(m["signed"].(map[string]any))
	return signRaw(t, m["signed"], signers...)
}

func signRaw(t testing.TB, signed any, signers ...Signer) []byte {
	t.Helper()
	payload, err := cjson.EncodeCanonical(signed)
	if err != nil {
		return nil // numbers that have no canonical form
	}
	sigs := []any{}
	for _, s := range signers {
		sig := must(s.Sign(payload))(t)
		sigs = append(sigs, map[string]any{"keyid": s.Public().ID(), "sig": hex.EncodeToString(sig)})
	}
	return must(json.Marshal(map[string]any{"signed": signed, "signatures": sigs}))(t)
}

func setVersion(v int64) func(map[string]any) {
	return func(s map[string]any) { s["version"] = v }
}

func keys(t testing.TB, n int) []Key {
	t.Helper()
	var list []Key
	for range n {
		list = append(list, must(NewKey())(t))
	}
	return list
}

func fixedKeys(seeds ...byte) []Key {
	var list []Key
	for _, b := range seeds {
		list = append(list, keyOf([32]byte{b}))
	}
	return list
}

func publics(list []Key) []PublicKey {
	var p []PublicKey
	for _, k := range list {
		p = append(p, k.Public())
	}
	return p
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		noErr(t, err)
		return v
	}
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

func flipName(i, bit int, b []byte) string {
	return fmt.Sprintf("bit %d of byte %d (%q)", bit, i, b[max(0, i-8):min(len(b), i+8)])
}
