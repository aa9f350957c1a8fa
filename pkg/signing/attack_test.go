package signing

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The tests here are named after the attacks of the threat model.

func TestArbitrarySoftwareIsRefused(t *testing.T) {
	r := newRepo(t)
	d := r.device(t, day0)
	v := must(d.Target("lamp/1.0.0.idx"))(t)
	got := must(v.Check(indexV1))(t)
	if !bytes.Equal(got.Bytes(), indexV1) {
		t.Error("verified bytes differ")
	}
	for i := range indexV1 {
		bad := bytes.Clone(indexV1)
		bad[i] ^= 1
		_, err := v.Check(bad)
		wantErr(t, "flipped byte", err, ErrMismatch)
	}
	_, err := v.Check(append(bytes.Clone(indexV1), 0))
	wantErr(t, "one byte more", err, ErrMismatch)
	_, err = d.Target("lamp/6.6.6.idx")
	wantErr(t, "unsigned path", err, ErrUnknownTarget)
	_, err = VerifiedTarget{}.Check(nil)
	wantErr(t, "a VerifiedTarget not made by Trust", err, ErrMismatch)
}

func TestVerifiedBytesDoNotFollowTheCallersBuffer(t *testing.T) {
	r := newRepo(t)
	v := must(r.device(t, day0).Target("lamp/1.0.0.idx"))(t)
	buf := bytes.Clone(indexV1)
	got := must(v.Check(buf))(t)
	buf[0] ^= 1
	if !bytes.Equal(got.Bytes(), indexV1) {
		t.Error("content changed after it was verified")
	}
}

func TestStolenServerCannotSignFirmware(t *testing.T) {
	r := newRepo(t)
	evil := target("lamp/1.0.0.idx", []byte("evil"))
	for _, signers := range [][]TargetsKey{
		{},
		{TargetsKey{r.online.Snapshot}, TargetsKey{r.online.Timestamp}},
		{TargetsKey{r.targetsKeys[0]}}, // one operator of two
		{TargetsKey{r.targetsKeys[0]}, TargetsKey{r.online.Snapshot}},
	} {
		fake := must(NewTargets(day0.Add(year), signers...))(t)
		fake = must(AddTarget(fake, evil, day0.Add(year), signers...))(t)
		for range 2 {
			fake = must(AddTarget(fake, evil, day0.Add(year), signers...))(t)
		}
		s, ts, err := r.online.Publish(r.snapshot, r.timestamp, fake, day0)
		noErr(t, err)
		d := r.device(t, day0)
		noErr(t, d.UpdateTimestamp(ts, day0))
		noErr(t, d.UpdateSnapshot(s, day0))
		wantErr(t, "targets by the server", d.UpdateTargets(fake, day0), ErrSignature)
		_, err = d.Target("lamp/1.0.0.idx")
		wantErr(t, "target while the chain is broken", err, ErrIncomplete)
	}
}

func TestFlippedBitAnywhereIsRefused(t *testing.T) {
	r := newRepo(t)
	base := must(NewTrust(r.root, time.Time{}))(t)
	accept := map[string]func([]byte) error{
		"root":      func(b []byte) error { _, err := NewTrust(b, time.Time{}); return err },
		"timestamp": func(b []byte) error { d := *base; return d.UpdateTimestamp(b, day0) },
		"targets": func(b []byte) error {
			d := *base
			return errors.Join(d.Restore(nil, nil, b), d.Dropped())
		},
	}
	first := must(NewTargets(day0.Add(year), r.targetsSigners()...))(t)
	docs := map[string][]byte{"root": r.root, "timestamp": r.timestamp, "targets": first}
	const caseBit = 5 // turns the case of a letter
	for name, doc := range docs {
		noErr(t, accept[name](doc))
		for i := 0; i < len(doc); i += stride {
			for bit := range 8 {
				if name == "root" && bit != i%32 || name == "targets" && bit != i%8 && bit != caseBit {
					continue
				}
				bad := bytes.Clone(doc)
				bad[i] ^= 1 << bit
				if accept[name](bad) == nil {
					t.Fatalf("%s: %s was accepted", name, flipName(i, bit, doc))
				}
			}
			if i%8 == 0 && accept[name](doc[:i]) == nil {
				t.Fatalf("%s: cut to %d bytes was accepted", name, i)
			}
		}
	}
}

func TestUnsignedTextBesideTheSignedPartIsRefused(t *testing.T) {
	r := newRepo(t)
	doc := string(r.timestamp)
	for name, bad := range map[string]string{
		"field at the top":        strings.Replace(doc, `{"signatures"`, `{"note":1,"signatures"`, 1),
		"field in a signature":    strings.Replace(doc, `"sig":`, `"note":1,"sig":`, 1),
		"case of a field name":    strings.Replace(doc, `"version":1,"x-`, `"Version":1,"x-`, 1),
		"duplicate field":         strings.Replace(doc, `"signed":{`, `"signed":{"version":9,`, 1),
		"duplicate at the top":    strings.Replace(doc, `{"signatures"`, `{"signed":{},"signatures"`, 1),
		"bytes after":             doc + "{}",
		"offset instead of Z":     strings.Replace(doc, `00Z"`, `00+00:00"`, 1),
		"not UTF-8":               strings.Replace(doc, `"signed":{`, "\"signed\":{\"\xff\":1,", 1),
		"nested deeper than 32":   strings.Replace(doc, `"signed":{`, `"signed":{"a":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,`, 1),
		"nested to exhaust stack": strings.Repeat("[", 16000),
	} {
		if bad == doc {
			t.Fatalf("%s: the test edits nothing", name)
		}
		wantErr(t, name, must(NewTrust(r.root, time.Time{}))(t).UpdateTimestamp([]byte(bad), day0), ErrFormat)
	}
	spaced := strings.Replace(doc, `"signed":{`, "\"signed\" : {\n ", 1) + "\n"
	noErr(t, must(NewTrust(r.root, time.Time{}))(t).UpdateTimestamp([]byte(spaced), day0))
}

func TestRollbackOfMetadataIsRefused(t *testing.T) {
	r := newRepo(t)
	old := *r
	r.add(t, "lamp/2.0.0.idx", indexV2)
	r.publish(t, day0.Add(time.Hour))
	d := r.device(t, day0.Add(time.Hour))
	wantErr(t, "old timestamp", d.UpdateTimestamp(old.timestamp, day0.Add(time.Hour)), ErrRollback)
	must(d.Target("lamp/2.0.0.idx"))(t) // the refusal changed nothing

	// The server's keys re-sign an old snapshot, and an old targets file.
	back := must(old.online.Refresh(nil, old.snapshot, day0.Add(time.Hour)))(t)
	back = forge(t, back, setVersion(9), r.online.Timestamp)
	wantErr(t, "new timestamp names the old snapshot", d.UpdateTimestamp(back, day0.Add(time.Hour)), ErrRollback)
	s := forge(t, old.snapshot, setVersion(9), r.online.Snapshot)
	ts := must(r.online.Refresh(r.timestamp, s, day0.Add(time.Hour)))(t)
	noErr(t, d.UpdateTimestamp(ts, day0.Add(time.Hour)))
	wantErr(t, "new snapshot names the old targets", d.UpdateSnapshot(s, day0.Add(time.Hour)), ErrRollback)
	s = forge(t, r.snapshot, func(m map[string]any) {
		m["version"] = 10
		m["meta"].(map[string]any)["other.json"] = map[string]any{"version": 1}
	}, r.online.Snapshot)
	ts = must(r.online.Refresh(ts, s, day0.Add(time.Hour)))(t)
	noErr(t, d.UpdateTimestamp(ts, day0.Add(time.Hour)))
	noErr(t, d.UpdateSnapshot(s, day0.Add(time.Hour)))
	gone := forge(t, r.snapshot, setVersion(11), r.online.Snapshot)
	noErr(t, d.UpdateTimestamp(must(r.online.Refresh(ts, gone, day0.Add(time.Hour)))(t), day0.Add(time.Hour)))
	wantErr(t, "snapshot lost a role", d.UpdateSnapshot(gone, day0.Add(time.Hour)), ErrRollback)
}

func TestReplayOfAWholeOldRepositoryAfterRestartIsRefused(t *testing.T) {
	r := newRepo(t)
	old := *r
	r.add(t, "lamp/2.0.0.idx", indexV2)
	r.publish(t, day0.Add(time.Hour))
	late := day0.Add(40 * 24 * time.Hour) // everything online has expired meanwhile
	for _, now := range []time.Time{day0, late, {}} {
		d := must(NewTrust(r.root, time.Time{}))(t)
		noErr(t, d.Restore(r.timestamp, r.snapshot, r.targets))
		noErr(t, d.Dropped())
		_, err := d.Target("lamp/2.0.0.idx")
		wantErr(t, "target from restored files alone", err, ErrIncomplete)
		wantErr(t, "replay", d.UpdateTimestamp(old.timestamp, now), ErrRollback)
		fresh := must(r.online.Refresh(r.timestamp, r.snapshot, late))(t)
		noErr(t, d.UpdateTimestamp(fresh, now))
	}
}

func TestSameTimestampAgainIsNoError(t *testing.T) {
	r := newRepo(t)
	d := r.device(t, day0)
	noErr(t, d.UpdateTimestamp(r.timestamp, day0.Add(time.Hour)))
	if !d.SnapshotCurrent() || !d.TargetsCurrent() {
		t.Error("an unchanged timestamp made the caller fetch again")
	}
	noErr(t, r.refresh(d, day0.Add(2*time.Hour)))
	must(d.Target("lamp/1.0.0.idx"))(t)
	twin := forge(t, r.timestamp, func(s map[string]any) { s["expires"] = "2027-01-01T00:00:00Z" }, r.online.Timestamp)
	noErr(t, d.UpdateTimestamp(twin, day0.Add(2*time.Hour)))
	wantErr(t, "the first of two twins still counts", d.UpdateTimestamp(twin, day0.Add(25*time.Hour)), ErrExpired)
}

func TestFastForwardIsRefusedAndRecoverable(t *testing.T) {
	r := newRepo(t)
	for _, v := range []int64{2 + MaxVersionJump, 1 << 40} {
		d := r.device(t, day0)
		wantErr(t, "timestamp", d.UpdateTimestamp(forge(t, r.timestamp, setVersion(v), r.online.Timestamp), day0), ErrVersionJump)
		s := forge(t, r.snapshot, setVersion(v), r.online.Snapshot)
		ts := must(r.online.Refresh(r.timestamp, s, day0))(t)
		wantErr(t, "snapshot", d.UpdateTimestamp(ts, day0), ErrVersionJump)
		s = forge(t, r.snapshot, func(m map[string]any) {
			m["version"] = 2
			m["meta"].(map[string]any)["targets.json"] = map[string]any{"version": v + 1}
		}, r.online.Snapshot)
		noErr(t, d.UpdateTimestamp(must(r.online.Refresh(r.timestamp, s, day0))(t), day0))
		wantErr(t, "targets", d.UpdateSnapshot(s, day0), ErrVersionJump)
	}
	d := r.device(t, day0)
	noErr(t, d.UpdateTimestamp(forge(t, r.timestamp, setVersion(1+MaxVersionJump), r.online.Timestamp), day0))

	// A device that knew no version before swallowed 2^40; a root that rotates
	// the online keys frees it, in the same life and after a restart.
	far := forge(t, r.timestamp, setVersion(1<<40), r.online.Timestamp)
	for _, restart := range []bool{false, true} {
		r := *r
		d := must(NewTrust(r.root, time.Time{}))(t)
		noErr(t, d.UpdateTimestamp(far, day0))
		noErr(t, d.UpdateSnapshot(r.snapshot, day0))
		root2 := r.rotateOnline(t, day0)
		if restart {
			d = must(NewTrust(root2, d.ClockFloor()))(t)
			noErr(t, d.Restore(far, nil, r.targets))
			wantErr(t, "what was dropped", d.Dropped(), ErrSignature)
		} else {
			noErr(t, d.UpdateRoot(root2))
		}
		noErr(t, r.refresh(d, day0))
		must(d.Target("lamp/1.0.0.idx"))(t)
	}
}

func TestRotationOfOneOnlineKeyDropsBothCaches(t *testing.T) {
	r := newRepo(t)
	d := r.device(t, day0)
	r.spec.Snapshot = keys(t, 1)[0].Public()
	noErr(t, d.UpdateRoot(must(NextRoot(r.root, r.spec, RootKey{r.rootKeys[0]}, RootKey{r.rootKeys[1]}))(t)))
	if d.SnapshotVersion() != 0 || d.TargetsVersion() != 0 {
		t.Errorf("versions %d and %d survive the rotation", d.SnapshotVersion(), d.TargetsVersion())
	}
}

func TestRotationOfTargetsKeysDropsTargets(t *testing.T) {
	r := newRepo(t)
	d := r.device(t, day0)
	r.targetsKeys = keys(t, 2)
	r.spec.TargetsKeys = publics(r.targetsKeys)
	noErr(t, d.UpdateRoot(must(NextRoot(r.root, r.spec, RootKey{r.rootKeys[0]}, RootKey{r.rootKeys[1]}))(t)))
	wantErr(t, "snapshot between root and timestamp", d.UpdateSnapshot(r.snapshot, day0), ErrIncomplete)
	noErr(t, d.UpdateTimestamp(r.timestamp, day0))
	if !d.SnapshotCurrent() || d.TargetsCurrent() {
		t.Error("targets of replaced keys are still trusted")
	}
	wantErr(t, "targets of replaced keys", d.UpdateTargets(r.targets, day0), ErrSignature)
}

func TestIndefiniteFreezeIsNoticed(t *testing.T) {
	r := newRepo(t)
	noErr(t, r.refresh(must(NewTrust(r.root, time.Time{}))(t), day0.Add(23*time.Hour)))
	d := r.device(t, day0)
	late := day0.Add(25 * time.Hour)
	wantErr(t, "timestamp after 25 h", d.UpdateTimestamp(r.timestamp, late), ErrExpired)
	wantErr(t, "snapshot under it", d.UpdateSnapshot(r.snapshot, late), ErrExpired)
	wantErr(t, "targets under it", d.UpdateTargets(r.targets, late), ErrExpired)

	week := day0.Add(SnapshotLife + time.Hour)
	r.timestamp = must(r.online.Refresh(r.timestamp, r.snapshot, week))(t)
	noErr(t, d.UpdateTimestamp(r.timestamp, week))
	if d.SnapshotCurrent() || d.TargetsCurrent() {
		t.Error("an expired snapshot counts as current")
	}
	wantErr(t, "snapshot after its week", d.UpdateSnapshot(r.snapshot, week), ErrExpired)
	_, err := d.Target("lamp/1.0.0.idx")
	wantErr(t, "target under an expired snapshot", err, ErrIncomplete)

	r.publish(t, day0.Add(year/2+time.Hour))
	noErr(t, d.UpdateTimestamp(r.timestamp, day0.Add(year/2+time.Hour)))
	noErr(t, d.UpdateSnapshot(r.snapshot, day0.Add(year/2+time.Hour)))
	wantErr(t, "targets after half a year", d.UpdateTargets(r.targets, day0.Add(year/2+time.Hour)), ErrExpired)
	r.publish(t, day0.Add(year+time.Hour))
	wantErr(t, "root after a year", d.UpdateTimestamp(r.timestamp, day0.Add(year+time.Hour)), ErrExpired)
}

func TestWrongClockDoesNotReviveOldMetadata(t *testing.T) {
	r := newRepo(t)
	old := *r
	r.publish(t, day0.Add(48*time.Hour))
	epoch := time.Unix(0, 0)

	d := must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, r.refresh(d, epoch)) // a clock at 1970 learns the date
	if want := day0.Add(48 * time.Hour); !d.ClockFloor().Equal(want) {
		t.Errorf("clock floor %s, want %s", d.ClockFloor(), want)
	}
	fresh := must(NewTrust(r.root, d.ClockFloor()))(t) // files lost, floor kept
	wantErr(t, "old timestamp at 1970", fresh.UpdateTimestamp(old.timestamp, epoch), ErrExpired)
	built := must(NewTrust(r.root, day0.Add(30*time.Hour)))(t)
	wantErr(t, "timestamp older than the build", built.UpdateTimestamp(old.timestamp, epoch), ErrExpired)
	restored := must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, restored.Restore(r.timestamp, nil, nil))
	if !restored.ClockFloor().Equal(d.ClockFloor()) {
		t.Error("restored files do not set the clock floor")
	}
}

func TestStolenTimestampKeyCannotSpoilTheClockForEver(t *testing.T) {
	r := newRepo(t)
	d := r.device(t, day0)
	issue := func(v int64, issued, expires string) []byte {
		return forge(t, r.timestamp, func(s map[string]any) {
			s["version"], s[issuedField], s["expires"] = v, issued, expires
		}, r.online.Timestamp)
	}
	wantErr(t, "issued after its end", d.UpdateTimestamp(issue(2, "2099-01-02T00:00:00Z", "2099-01-01T00:00:00Z"), day0), ErrFormat)
	wantErr(t, "issued after the root's end", d.UpdateTimestamp(issue(2, "2099-01-01T00:00:00Z", "2099-01-02T00:00:00Z"), day0), ErrExpired)
	restored := must(NewTrust(r.root, day0))(t)
	noErr(t, restored.Restore(issue(2, "2099-01-01T00:00:00Z", "2099-01-02T00:00:00Z"), nil, nil))
	if !restored.ClockFloor().Equal(day0) {
		t.Errorf("a stored document moved the clock floor to %s", restored.ClockFloor())
	}
	if d.ClockFloor().After(day0) {
		t.Fatalf("a refused document moved the clock floor to %s", d.ClockFloor())
	}
	noErr(t, d.UpdateTimestamp(issue(2, "2027-02-01T00:00:00Z", "2099-01-02T00:00:00Z"), day0))
	root2 := r.rotateOnline(t, day0)
	noErr(t, d.UpdateRoot(root2))
	noErr(t, r.refresh(d, day0))
	must(d.Target("lamp/1.0.0.idx"))(t)
}

func TestEndlessDataIsRefusedBeforeParsing(t *testing.T) {
	r := newRepo(t)
	d := r.device(t, day0)
	for name, c := range map[string]struct {
		limit  int
		update func([]byte) error
	}{
		"root":         {MaxRootBytes, d.UpdateRoot},
		"first root":   {MaxRootBytes, func(b []byte) error { _, err := NewTrust(b, day0); return err }},
		"timestamp":    {MaxTimestampBytes, func(b []byte) error { return d.UpdateTimestamp(b, day0) }},
		"snapshot":     {MaxSnapshotBytes, func(b []byte) error { return d.UpdateSnapshot(b, day0) }},
		"targets":      {MaxTargetsBytes, func(b []byte) error { return d.UpdateTargets(b, day0) }},
		"targets list": {MaxTargetsBytes, func(b []byte) error { _, err := Targets(b); return err }},
		"version":      {MaxTargetsBytes, func(b []byte) error { _, err := Version(b); return err }},
		"sealed key":   {MaxSealedBytes, func(b []byte) error { _, err := Open(b, RoleRoot, nil); return err }},
	} {
		wantErr(t, name+" over the cap", c.update(bytes.Repeat([]byte(" "), c.limit+1)), ErrTooLarge)
		if err := c.update(bytes.Repeat([]byte(" "), c.limit)); err == nil || errors.Is(err, ErrTooLarge) {
			t.Errorf("%s at the cap: got error %v, want another than %v", name, err, ErrTooLarge)
		}
	}
	must(d.Target("lamp/1.0.0.idx"))(t)
}

func TestMixAndMatchIsRefused(t *testing.T) {
	r := newRepo(t)
	old := *r
	r.add(t, "lamp/2.0.0.idx", indexV2)
	r.publish(t, day0)
	behind := must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, old.refresh(behind, day0))
	noErr(t, behind.UpdateTimestamp(r.timestamp, day0))
	wantErr(t, "new targets under the old snapshot", behind.UpdateTargets(r.targets, day0), ErrIncomplete)
	wantErr(t, "old targets under the old snapshot", behind.UpdateTargets(old.targets, day0), ErrIncomplete)
	if behind.TargetsVersion() != 0 || behind.SnapshotVersion() != 2 {
		t.Errorf("next files are %d.snapshot and %d.targets", behind.SnapshotVersion(), behind.TargetsVersion())
	}
	d := must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, d.UpdateTimestamp(r.timestamp, day0))
	wantErr(t, "targets before the snapshot", d.UpdateTargets(r.targets, day0), ErrIncomplete)
	wantErr(t, "old snapshot under the new name", d.UpdateSnapshot(old.snapshot, day0), ErrMismatch)
	twin := forge(t, r.snapshot, func(s map[string]any) { s["expires"] = "2026-04-01T00:00:00Z" }, r.online.Snapshot)
	wantErr(t, "another snapshot of the same version", d.UpdateSnapshot(twin, day0), ErrMismatch)
	noErr(t, d.UpdateSnapshot(r.snapshot, day0))
	wantErr(t, "old targets under the new name", d.UpdateTargets(old.targets, day0), ErrMismatch)

	// The same without digests in the parent: versions alone must hold.
	bare := func(doc []byte, file string, version int64, k Signer) []byte {
		return forge(t, doc, func(s map[string]any) {
			s["meta"] = map[string]any{file: map[string]any{"version": version}}
		}, k)
	}
	s := bare(r.snapshot, targetsFile, 3, r.online.Snapshot)
	ts := bare(r.timestamp, snapshotFile, 2, r.online.Timestamp)
	d = must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, d.UpdateTimestamp(ts, day0))
	wantErr(t, "old snapshot", d.UpdateSnapshot(old.snapshot, day0), ErrRollback)
	noErr(t, d.UpdateSnapshot(s, day0))
	wantErr(t, "old targets", d.UpdateTargets(old.targets, day0), ErrRollback)
	noErr(t, d.UpdateTargets(r.targets, day0))
}

func TestDocumentOfAnotherKindIsRefused(t *testing.T) {
	r := newRepo(t)
	docs := map[string][]byte{"root": r.root, "timestamp": r.timestamp, "snapshot": r.snapshot, "targets": r.targets}
	for name, doc := range docs {
		d := r.device(t, day0)
		for role, update := range map[string]func([]byte) error{
			"root":      d.UpdateRoot,
			"timestamp": func(b []byte) error { return d.UpdateTimestamp(b, day0) },
			"snapshot":  func(b []byte) error { return d.UpdateSnapshot(b, day0) },
			"targets":   func(b []byte) error { return d.UpdateTargets(b, day0) },
		} {
			if err := update(doc); err == nil && role != name {
				t.Errorf("%s was taken as %s", name, role)
			}
		}
	}
}

func TestKeyCompromiseOneOfTwoOldSignaturesIsRefused(t *testing.T) {
	r := newRepo(t)
	fresh := keys(t, 3)
	spec := r.spec
	spec.RootKeys = publics(fresh)
	sign := func(k ...Key) []byte {
		b := must(NextRoot(r.root, spec))(t)
		for _, k := range k {
			b = must(CoSign(b, k))(t)
		}
		return b
	}
	for name, c := range map[string]struct {
		signers []Key
		want    error
	}{
		"nobody":                   {nil, ErrSignature},
		"one of the old, all new":  {[]Key{r.rootKeys[0], fresh[0], fresh[1], fresh[2]}, ErrSignature},
		"all old, one of the new":  {[]Key{r.rootKeys[0], r.rootKeys[1], r.rootKeys[2], fresh[0]}, ErrSignature},
		"strangers":                {append(keys(t, 2), fresh...), ErrSignature},
		"two of three on each":     {[]Key{r.rootKeys[0], r.rootKeys[2], fresh[1], fresh[2]}, nil},
		"the same key signs twice": {[]Key{r.rootKeys[0], r.rootKeys[0], fresh[0], fresh[0]}, ErrSignature},
	} {
		d := r.device(t, day0)
		next := sign(c.signers...)
		err := d.UpdateRoot(next)
		if c.want == nil {
			noErr(t, err)
			noErr(t, VerifyNextRoot(r.root, next))
			noErr(t, r.refresh(d, day0))
			continue
		}
		wantErr(t, name, err, c.want)
		wantErr(t, name, VerifyNextRoot(r.root, next), c.want)
		if d.RootVersion() != 1 {
			t.Errorf("%s: root version %d", name, d.RootVersion())
		}
	}
}

func TestRootVersionsFollowOneByOne(t *testing.T) {
	r := newRepo(t)
	sign := func(v int64) []byte { return forge(t, r.root, setVersion(v), r.rootKeys[0], r.rootKeys[1]) }
	for _, v := range []int64{1, 3, 1 << 40} {
		wantErr(t, fmt.Sprint("version ", v), must(NewTrust(r.root, time.Time{}))(t).UpdateRoot(sign(v)), ErrRollback)
	}
	// Factory-root restart: a device that stored version 3 starts from it, so
	// a branch off an older root leads nowhere.
	d := must(NewTrust(sign(3), time.Time{}))(t)
	wantErr(t, "2.root.json again", d.UpdateRoot(sign(2)), ErrRollback)
	if d.RootVersion() != 3 {
		t.Errorf("root version %d", d.RootVersion())
	}
	wantErr(t, "first root of version 3", VerifyRoot(sign(3)), ErrRollback)
	noErr(t, VerifyRoot(r.root))
}

// badRoots are well-signed roots that no verifier may take.
func badRoots(t testing.TB, r *repo) map[string][]byte {
	t.Helper()
	all := []Signer{r.rootKeys[0], r.rootKeys[1], r.rootKeys[2]}
	edit := func(f func(keys, roles map[string]any)) []byte {
		return forge(t, r.root, func(s map[string]any) {
			s["version"] = 2
			f(s["keys"].(map[string]any), s["roles"].(map[string]any))
		}, all...)
	}
	role := func(roles map[string]any, name string) map[string]any { return roles[name].(map[string]any) }
	bad := map[string][]byte{
		"same key under two ids": edit(func(keys, roles map[string]any) {
			first := r.targetsKeys[0].Public().ID()
			keys["feed"] = keys[first]
			role(roles, "targets")["keyids"] = []any{first, "feed"}
		}),
		"same id listed twice": edit(func(_, roles map[string]any) {
			first := r.targetsKeys[0].Public().ID()
			role(roles, "targets")["keyids"] = []any{first, first}
		}),
		"unknown key id": edit(func(_, roles map[string]any) {
			role(roles, "targets")["keyids"] = []any{"00", "11"}
		}),
		"ecdsa key": edit(func(keys, _ map[string]any) {
			keys["aa"] = map[string]any{"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": map[string]any{"public": "x"}}
		}),
		"ed25519 under another type": edit(func(keys, _ map[string]any) {
			keys["aa"] = map[string]any{"keytype": "rsa", "scheme": "ed25519", "keyval": map[string]any{"public": strings.Repeat("ab", 32)}}
		}),
		"short key": edit(func(keys, _ map[string]any) {
			keys["aa"] = map[string]any{"keytype": "ed25519", "scheme": "ed25519", "keyval": map[string]any{"public": "ab"}}
		}),
		"all-zero key": edit(func(keys, _ map[string]any) {
			keys["aa"] = map[string]any{"keytype": "ed25519", "scheme": "ed25519", "keyval": map[string]any{"public": hex.EncodeToString(make([]byte, 32))}}
		}),
		"null key":     edit(func(keys, _ map[string]any) { keys["aa"] = nil }),
		"missing role": edit(func(_, roles map[string]any) { delete(roles, "timestamp") }),
		"null role":    edit(func(_, roles map[string]any) { roles["targets"] = nil }),
		"extra role":   edit(func(_, roles map[string]any) { roles["mirrors"] = roles["targets"] }),
	}
	for _, n := range []int{0, -1, 3, -1 << 40} {
		for _, name := range []string{"root", "targets", "snapshot", "timestamp"} {
			if n == 3 && name == "root" {
				continue
			}
			bad[fmt.Sprintf("threshold %d of %s", n, name)] = edit(func(_, roles map[string]any) { role(roles, name)["threshold"] = n })
		}
	}
	return bad
}

func TestThresholdsBelowOneAndKeysCountedTwiceAreRefused(t *testing.T) {
	r := newRepo(t)
	for name, root := range badRoots(t, r) {
		wantErr(t, name, r.device(t, day0).UpdateRoot(root), ErrFormat)
		_, err := NewTrust(root, time.Time{})
		wantErr(t, name, err, ErrFormat)
		_, err = VerifyTargets(root, nil, r.targets, day0)
		wantErr(t, name, err, ErrFormat)
	}
	one := must(NewTargets(day0.Add(year), TargetsKey{r.targetsKeys[0]}))(t)
	twice := strings.Replace(string(one), `{"signatures":[`, `{"signatures":[`+signatureOf(one)+`,`, 1)
	_, err := VerifyTargets(r.root, nil, []byte(twice), day0)
	wantErr(t, "one signature twice", err, ErrFormat)
}

// signatureOf is the text of the only signature of a document.
func signatureOf(doc []byte) string {
	s := string(doc)
	from, to := strings.Index(s, "[")+1, strings.Index(s, "]")
	return s[from:to]
}

func TestTornStoredFilesAreDroppedNotFatal(t *testing.T) {
	r := newRepo(t)
	for cut := 0; cut < len(r.timestamp); cut += 29 {
		d := must(NewTrust(r.root, time.Time{}))(t)
		noErr(t, d.Restore(r.timestamp[:cut], r.snapshot[:min(cut, len(r.snapshot)-1)], r.targets[:cut]))
		if d.Dropped() == nil {
			t.Fatalf("torn at %d: nothing was dropped", cut)
		}
		noErr(t, r.refresh(d, day0))
	}
	d := must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, d.Restore(nil, []byte("\x00\x00"), r.targets))
	noErr(t, r.refresh(d, day0))
	wantErr(t, "restore after an update", d.Restore(r.timestamp, nil, nil), ErrIncomplete)
	for cut := 0; cut < len(r.root); cut += 101 {
		if _, err := NewTrust(r.root[:cut], time.Time{}); err == nil {
			t.Errorf("root cut to %d bytes was taken", cut)
		}
	}
}

func TestRestoredFilesNeedNoSecondFetch(t *testing.T) {
	r := newRepo(t)
	d := must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, d.Restore(r.timestamp, r.snapshot, r.targets))
	noErr(t, d.UpdateTimestamp(must(r.online.Refresh(r.timestamp, r.snapshot, day0.Add(48*time.Hour)))(t), day0.Add(48*time.Hour)))
	if !d.SnapshotCurrent() || !d.TargetsCurrent() || d.SnapshotVersion() != 1 || d.TargetsVersion() != 2 {
		t.Error("stored files are not used")
	}
	must(d.Target("lamp/1.0.0.idx"))(t)

	twin := forge(t, r.snapshot, func(s map[string]any) { s["expires"] = "2026-03-07T00:00:00Z" }, r.online.Snapshot)
	d = must(NewTrust(r.root, time.Time{}))(t)
	noErr(t, d.Restore(r.timestamp, twin, r.targets))
	noErr(t, d.UpdateTimestamp(r.timestamp, day0))
	if d.SnapshotCurrent() {
		t.Error("another snapshot of the same version passes for the one named")
	}
	noErr(t, r.refresh(d, day0))
}

func TestExpiresIsTheEarliestOfTheChain(t *testing.T) {
	r := newRepo(t)
	d := must(NewTrust(r.root, time.Time{}))(t)
	expires := func(what string, want time.Time) {
		t.Helper()
		if got := d.Expires(); !got.Equal(want) {
			t.Errorf("%s: expires %s, want %s", what, got, want)
		}
	}
	expires("no timestamp", time.Time{})
	noErr(t, d.UpdateTimestamp(r.timestamp, day0))
	expires("timestamp alone", day0.Add(TimestampLife))
	noErr(t, r.refresh(d, day0))
	expires("the timestamp is first", day0.Add(TimestampLife))
	wantErr(t, "frozen", d.UpdateTimestamp(r.timestamp, day0.Add(25*time.Hour)), ErrExpired)
	expires("a refused update changes nothing", day0.Add(TimestampLife))

	week := day0.Add(SnapshotLife - time.Hour)
	r.timestamp = must(r.online.Refresh(r.timestamp, r.snapshot, week))(t)
	noErr(t, d.UpdateTimestamp(r.timestamp, week))
	expires("the snapshot is first", day0.Add(SnapshotLife))
	r.publish(t, day0.Add(year/2-time.Hour))
	noErr(t, r.refresh(d, day0.Add(year/2-time.Hour)))
	expires("the targets are first", day0.Add(year/2))
	r.targets = must(AddTarget(r.targets, target("lamp/3.0.0.idx", indexV2), day0.Add(2*year), r.targetsSigners()...))(t)
	r.publish(t, day0.Add(year-time.Hour))
	noErr(t, r.refresh(d, day0.Add(year-time.Hour)))
	expires("the root is first", day0.Add(year))
}
