package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// world is an operator with keys and a server that was initialised with them.
type world struct {
	app   *app
	keys  keyDir
	key   signing.Key // targets
	local []byte      // root
	trust *otadv1.GetTrustResponse
	files map[string][]byte // of keys, as they were made
}

// firstWorld is made once, since sealing keys takes its time; tests get copies.
var firstWorld = sync.OnceValues(func() (w *world, err error) {
	dir, err := os.MkdirTemp("", "otactl-world-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return makeWorld(dir)
})

func makeWorld(dir string) (*world, error) {
	a, _, _ := testApp()
	a.env = func(name string) string { return map[string]string{"OTACTL_PASSPHRASE": "correct horse"}[name] }
	snapshot, errS := signing.NewKey()
	timestamp, errT := signing.NewKey()
	w := &world{app: a, keys: keyDir{dir}, trust: &otadv1.GetTrustResponse{
		SnapshotKey: snapshot.Public().String(), TimestampKey: timestamp.Public().String(),
	}}
	var errM, errK error
	w.local, w.trust.Targets, errM = a.makeTrust(w.keys, w.trust)
	w.trust.Root, w.trust.FirstRoot = w.local, w.local
	if errM == nil {
		w.key, errK = a.openKey(w.keys.file(targetsKeyFile), signing.RoleTargets)
	}
	w.files = map[string][]byte{}
	for _, name := range []string{rootKeyFile, targetsKeyFile, rootFile, firstTargets} {
		raw, err := os.ReadFile(w.keys.file(name))
		w.files[name], errM = raw, errors.Join(errM, err)
	}
	return w, errors.Join(errS, errT, errM, errK)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	first, err := firstWorld()
	if err != nil {
		t.Fatal(err)
	}
	w := *first
	w.keys = keyDir{t.TempDir()}
	w.app, _, _ = testApp()
	w.app.env = first.app.env
	w.trust = &otadv1.GetTrustResponse{
		Root: w.local, FirstRoot: w.local, Targets: first.trust.Targets,
		SnapshotKey: first.trust.SnapshotKey, TimestampKey: first.trust.TimestampKey,
	}
	for name, raw := range w.files {
		if err := writeNewFile(w.keys.file(name), raw); err != nil {
			t.Fatal(err)
		}
	}
	return &w
}

// newStranger is a world with keys of its own.
func newStranger(t *testing.T) *world {
	t.Helper()
	w, err := makeWorld(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func newKey(t *testing.T) signing.Key {
	t.Helper()
	k, err := signing.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (w *world) signer() signer { return signer{app: w.app, keys: w.keys, key: w.key} }

// newTestContent makes a release of a small image.
func newTestContent(t *testing.T, version, raw string) content {
	t.Helper()
	var object bytes.Buffer
	ix, err := image.Encode(t.Context(), &object, strings.NewReader(raw), image.EncodeOptions{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := ix.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal(ota.Manifest{
		Name: "gateway", Version: version, HardwareIDs: []string{"rpi4"}, Installer: ota.InstallImage,
		ImageDigest: hex.EncodeToString(ix.RawDigest[:]), ImageSize: ix.RawSize, ObjectSize: ix.ObjectSize(),
		Health: json.RawMessage(`{"hold":"1s","checks":[{"running":{}}]}`), Run: []string{"<a&b>"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := newContent(manifest, encoded)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// publish signs a release as the server would store it.
func (w *world) publish(t *testing.T, c content) {
	t.Helper()
	now, err := checkTrust("server", w.local, w.trust, 0)
	if err != nil {
		t.Fatal(err)
	}
	next, _, err := w.signer().extend(now, []content{c}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.trust.Targets = next
}

func TestAReleaseIsSignedAndJudgedUnderTheLocalRoot(t *testing.T) {
	w := newWorld(t)
	one, two := newTestContent(t, "1", "image one"), newTestContent(t, "2", "image two")
	w.publish(t, one)
	now, err := checkTrust("server", w.local, w.trust, 2)
	if err != nil || now.version != 2 {
		t.Fatalf("version %d, %v", now.version, err)
	}
	if err := judge(now, one, w.app.now()); err != nil {
		t.Error(err)
	}
	if err := judge(now, two, w.app.now()); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("an unsigned release passed: %v", err)
	}
	if err := judge(now, newTestContent(t, "1", "other"), w.app.now()); classify(err).status != exitDenied {
		t.Errorf("other content under a signed name passed: %v", err)
	}
	otherHardware := one
	otherHardware.raw = bytes.Replace(one.raw, []byte("rpi4"), []byte("rpi5"), 1)
	if err := judge(now, otherHardware, w.app.now()); classify(err).status != exitDenied {
		t.Errorf("another manifest around the signed index passed: %v", err)
	}
	if err := judge(now, one, w.app.now().Add(targetsLife+time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired targets passed: %v", err)
	}
	if _, _, err := w.signer().extend(now, []content{newTestContent(t, "1", "other")}, nil); classify(err).status != exitConflict {
		t.Errorf("a signed version could be replaced: %v", err)
	}
}

// TestAHostileServerIsNotBelieved: what a server may send in the hope that an
// operator signs or trusts on top of it.
func TestAHostileServerIsNotBelieved(t *testing.T) {
	honest, stranger := newWorld(t), newStranger(t)
	evil := newTestContent(t, "6.6.6", "evil image")
	stranger.publish(t, evil)
	for name, attack := range map[string]struct {
		change func(*otadv1.GetTrustResponse)
		last   int64
		status int
	}{
		"its own root and targets": {func(r *otadv1.GetTrustResponse) {
			r.Root, r.FirstRoot, r.Targets = stranger.trust.Root, stranger.trust.FirstRoot, stranger.trust.Targets
		}, 0, exitConflict},
		"its own root beside the true first one": {func(r *otadv1.GetTrustResponse) {
			r.Root, r.Targets = stranger.trust.Root, stranger.trust.Targets
		}, 0, exitDenied},
		"targets of other keys": {func(r *otadv1.GetTrustResponse) { r.Targets = stranger.trust.Targets }, 0, exitDenied},
		"targets with a release slipped in": {func(r *otadv1.GetTrustResponse) {
			r.Targets = bytes.Replace(r.Targets, []byte(`"targets":{}`), []byte(`"targets":{"evil/1.idx":{"length":1,"hashes":{"sha256":"`+strings.Repeat("0", 64)+`"}}}`), 1)
		}, 0, exitDenied},
		"targets older than published from here": {func(*otadv1.GetTrustResponse) {}, 5, exitDenied},
		"no targets":                             {func(r *otadv1.GetTrustResponse) { r.Targets = nil }, 0, exitFailed},
		"no JSON":                                {func(r *otadv1.GetTrustResponse) { r.Targets = []byte("null") }, 0, exitDenied},
	} {
		r := &otadv1.GetTrustResponse{Root: honest.trust.Root, FirstRoot: honest.trust.FirstRoot, Targets: bytes.Clone(honest.trust.Targets)}
		attack.change(r)
		if name == "targets with a release slipped in" && bytes.Equal(r.Targets, honest.trust.Targets) {
			t.Fatal("the attack changed nothing")
		}
		if _, err := checkTrust("server", honest.local, r, attack.last); err == nil || classify(err).status != attack.status {
			t.Errorf("%s: %v, want status %d", name, err, attack.status)
		}
	}
}

// TestAServerCanNotSwapWhatIsSigned: a release whose parts do not belong
// together is not signed.
func TestAServerCanNotSwapWhatIsSigned(t *testing.T) {
	one, two := newTestContent(t, "1", "image one"), newTestContent(t, "2", "image two and more")
	id := ota.ReleaseID{Name: "gateway", Version: "1"}
	answer := func(manifest, index []byte) *otadv1.GetReleaseResponse {
		sum := sha256.Sum256(index)
		return &otadv1.GetReleaseResponse{Release: &otadv1.Release{Manifest: manifest, IndexSha256: hex.EncodeToString(sum[:])}, Index: index}
	}
	if _, err := releaseContent(id, answer(one.raw, one.encoded)); err != nil {
		t.Fatal(err)
	}
	wrongDigest := answer(one.raw, one.encoded)
	wrongDigest.Release.IndexSha256 = strings.Repeat("0", 64)
	for name, resp := range map[string]*otadv1.GetReleaseResponse{
		"the index of another image":  answer(one.raw, two.encoded),
		"another release":             answer(two.raw, two.encoded),
		"an index that is none":       answer(one.raw, one.encoded[:len(one.encoded)-1]),
		"a field nobody would see":    answer(bytes.Replace(one.raw, []byte(`{"name"`), []byte(`{"extra":1,"name"`), 1), one.encoded),
		"a size that is not the file": answer(bytes.Replace(one.raw, []byte(`"imageSize":9`), []byte(`"imageSize":8`), 1), one.encoded),
		"a digest that is not its":    wrongDigest,
	} {
		if _, err := releaseContent(id, resp); err == nil {
			t.Errorf("%s passed", name)
		}
	}
}

func TestMatchImage(t *testing.T) {
	raw := strings.Repeat("0123456789abcdef", 4096)
	c := newTestContent(t, "1", raw)
	ignore := func(int64) {}
	if err := matchImage(c.index, strings.NewReader(raw), ignore); err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]string{
		"one bit": "1" + raw[1:], "shorter": raw[:len(raw)-1], "longer": raw + "x", "nothing": "",
	} {
		if err := matchImage(c.index, strings.NewReader(other), ignore); err == nil {
			t.Errorf("%s passed", name)
		}
	}
	forged := *c.index
	forged.RawDigest[0] ^= 1
	if err := matchImage(&forged, strings.NewReader(raw), ignore); err == nil {
		t.Error("an index with another whole digest passed")
	}
}

func TestDiffSaysWhatIsAddedAndRemoved(t *testing.T) {
	a, b := newTestContent(t, "1", "one").target(), newTestContent(t, "2", "two").target()
	lines := diffTargets([]signing.Target{a}, []signing.Target{b})
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "+ gateway@2  for rpi4  image sha256:") || !strings.HasPrefix(lines[1], "- gateway@1 ") {
		t.Errorf("got %q", lines)
	}
	for _, word := range []string{"health {", `run ["<a&b>"]`, "security version 0"} {
		if !strings.Contains(lines[0], word) {
			t.Errorf("%q is not shown: %s", word, lines[0])
		}
	}
	if got := diffTargets([]signing.Target{a}, []signing.Target{a}); len(got) != 1 || got[0] != "no release added or removed" {
		t.Errorf("got %q", got)
	}
}

// TestKeyInitGoesOnAfterACrash takes away what a crash at each step would not
// have written, and runs it again: keys and root are those of the first run.
func TestKeyInitGoesOnAfterACrash(t *testing.T) {
	for _, missing := range [][]string{
		{}, {firstTargets}, {firstTargets, rootFile}, {firstTargets, rootFile, targetsKeyFile},
	} {
		w := newWorld(t)
		before, err := os.ReadFile(w.keys.file(rootKeyFile))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range missing {
			if err := os.Remove(w.keys.file(name)); err != nil {
				t.Fatal(err)
			}
		}
		root, targets, err := w.app.makeTrust(w.keys, w.trust)
		if err != nil {
			t.Fatalf("without %v: %v", missing, err)
		}
		after, _ := os.ReadFile(w.keys.file(rootKeyFile))
		if !bytes.Equal(before, after) {
			t.Errorf("without %v: the root key was made anew", missing)
		}
		if len(missing) < 2 && !bytes.Equal(root, w.local) {
			t.Errorf("without %v: the root was made anew", missing)
		}
		if err := errors.Join(signing.VerifyRoot(root), signedBy(root, targets)); err != nil {
			t.Errorf("without %v: %v", missing, err)
		}
	}
}

func TestKeyInitRefusesWhatItWouldOverwrite(t *testing.T) {
	w := newWorld(t)
	if err := errors.Join(os.Remove(w.keys.file(rootFile)), os.Remove(w.keys.file(firstTargets))); err != nil {
		t.Fatal(err)
	}
	w.app.env = func(string) string { return "another passphrase" }
	if _, _, err := w.app.makeTrust(w.keys, w.trust); classify(err).status != exitDenied {
		t.Errorf("a wrong passphrase for the keys that are there: %v", err)
	}

	w = newWorld(t)
	other := &otadv1.GetTrustResponse{SnapshotKey: newKey(t).Public().String(), TimestampKey: newKey(t).Public().String()}
	if _, _, err := w.app.makeTrust(w.keys, other); classify(err).status != exitConflict {
		t.Errorf("keys of one server for another: %v", err)
	}

	if err := os.WriteFile(w.keys.file(rootFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.app.makeTrust(w.keys, w.trust); err == nil {
		t.Error("a damaged root was passed over")
	}

	a, _, _ := testApp()
	a.env = func(string) string { return "short" }
	if _, _, err := a.makeTrust(keyDir{t.TempDir()}, w.trust); classify(err).status != exitUsage {
		t.Errorf("a short passphrase: %v", err)
	}
}

func TestNewPassphraseIsAskedForTwice(t *testing.T) {
	for _, test := range []struct {
		answers []string
		ok      bool
	}{{[]string{"long enough", "long enough"}, true}, {[]string{"long enough", "long enouhg"}, false}} {
		a, _, _ := testApp()
		a.terminal = func(any) bool { return true }
		a.readSecret = func() ([]byte, error) {
			answer := test.answers[0]
			test.answers = test.answers[1:]
			return []byte(answer), nil
		}
		if _, err := a.newPassphrase(); (err == nil) != test.ok || len(test.answers) != 0 {
			t.Errorf("ok %v: %v, %d answers left", test.ok, err, len(test.answers))
		}
	}
}

func TestATokenPinsTheLocalRootOnly(t *testing.T) {
	ca := sha256.Sum256([]byte("ca"))
	trust := &otadv1.GetTrustResponse{FirstRoot: []byte("root"), CaSha256: ca[:]}
	for _, local := range [][]byte{[]byte("root"), nil} {
		if p, err := newPins("server", local, trust); err != nil || p != (pins{ca: ca, root: sha256.Sum256([]byte("root"))}) {
			t.Errorf("%q: %v", local, err)
		}
	}
	if _, err := newPins("server", []byte("another root"), trust); classify(err).status != exitConflict {
		t.Errorf("the server chose the root: %v", err)
	}
	for _, bad := range []*otadv1.GetTrustResponse{{CaSha256: ca[:]}, {FirstRoot: []byte("root"), CaSha256: ca[1:]}} {
		if _, err := newPins("server", nil, bad); err == nil {
			t.Errorf("passed: %v", bad)
		}
	}
}

func TestTokenHoldsSecretAndPins(t *testing.T) {
	p := pins{ca: sha256.Sum256([]byte("ca")), root: sha256.Sum256([]byte("root"))}
	secret := bytes.Repeat([]byte{7}, 32)
	answer := func(id string, secret []byte) *otadv1.CreateEnrollmentTokenResponse {
		return &otadv1.CreateEnrollmentTokenResponse{Token: &otadv1.EnrollmentToken{Id: id}, Secret: secret}
	}
	text, err := p.token(answer("0102030405060708", secret))
	if err != nil {
		t.Fatal(err)
	}
	got, err := enroll.Parse(text)
	if err != nil || got.IDHex() != "0102030405060708" || got.CASHA256 != p.ca || got.RootSHA256 != p.root || !bytes.Equal(got.Secret[:], secret) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []*otadv1.CreateEnrollmentTokenResponse{
		answer("01", secret), answer("zz02030405060708", secret), answer("0102030405060708", secret[1:]), {},
	} {
		if text, err := p.token(bad); err == nil {
			t.Errorf("made %q", text)
		}
	}
}
