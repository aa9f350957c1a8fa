package signing

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// MaxVersionJump is how far a version may be ahead of the one trusted before it.
const MaxVersionJump = 10_000

// Trust is the device's view of what the operators and the server signed: the
// client workflow of TUF 1.0, section 5, as a state machine without input or
// output. An Update that fails leaves it as it was. Not for concurrent use.
//
// A life of the agent: NewTrust with the newest stored root, Restore with what
// else is stored, then for each refresh UpdateRoot with RootVersion()+1 until
// there is none, UpdateTimestamp, UpdateSnapshot and UpdateTargets (each may be
// left out when SnapshotCurrent or TargetsCurrent says so), storing the bytes
// each accepted; then Target. After a failed refresh the caller may try again
// at any step.
type Trust struct {
	root      *metadata.Metadata[metadata.RootType]
	timestamp *metadata.Metadata[metadata.TimestampType]
	snapshot  *held[metadata.SnapshotType]
	targets   *held[metadata.TargetsType]

	floor   time.Time // dates of verified documents never lie in the future of a right clock
	at      time.Time // the time of the last Update, raised to the floor
	fresh   bool      // timestamp was accepted by UpdateTimestamp under this root
	started bool      // an Update was accepted: too late for Restore
	dropped []error
}

// held is a trusted document with what a parent says of its bytes.
type held[T metadata.Roles] struct {
	*metadata.Metadata[T]
	length int64
	sum    [sha256.Size]byte
}

func hold[T metadata.Roles](m *metadata.Metadata[T], b []byte) *held[T] {
	return &held[T]{Metadata: m, length: int64(len(b)), sum: sha256.Sum256(b)}
}

// is reports whether h is the very file that a parent names.
func (h *held[T]) is(named *metadata.MetaFiles) bool {
	sum, hashed := named.Hashes[sha256Name]
	return headerOf(h.Metadata).version == named.Version &&
		(named.Length == 0 || named.Length == h.length) &&
		(!hashed || slices.Equal(sum, h.sum[:]))
}

// NewTrust starts from a root the caller trusts: the newest one it ever stored,
// or the one it was enrolled with. ClockFloor is the newest of the build date
// and the ClockFloor of earlier lives. It fails with ErrTooLarge, ErrFormat or
// ErrSignature (root does not meet its own threshold); an expired root is taken,
// since a newer one may follow.
func NewTrust(root []byte, clockFloor time.Time) (*Trust, error) {
	m, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	t := &Trust{root: m, floor: clockFloor}
	t.raise(headerOf(m))
	return t, nil
}

// Restore brings back what earlier Updates accepted; nil stands for a file that
// is missing. Signatures are checked, dates are not: an expired file still
// guards against older ones, but no Target comes from it before UpdateTimestamp.
// A file that does not parse or verify is dropped, so that it can be fetched
// again, and Dropped tells of it. The one error is ErrIncomplete, when an
// Update was accepted before.
func (t *Trust) Restore(timestamp, snapshot, targets []byte) error {
	if t.started {
		return fmt.Errorf("%w: restore comes before the first update", ErrIncomplete)
	}
	t.timestamp, t.snapshot, t.targets, t.dropped = nil, nil, nil, nil
	if m := restore[metadata.TimestampType](t, timestamp); m != nil {
		t.timestamp = m
	}
	if m := restore[metadata.SnapshotType](t, snapshot); m != nil {
		t.snapshot = hold(m, snapshot)
	}
	if m := restore[metadata.TargetsType](t, targets); m != nil {
		t.targets = hold(m, targets)
	}
	return nil
}

func restore[T metadata.Roles](t *Trust, b []byte) *metadata.Metadata[T] {
	if b == nil {
		return nil
	}
	m, err := decode[T](b)
	if err == nil {
		err = verify(t.root, m)
	}
	if err != nil {
		t.dropped = append(t.dropped, err)
		return nil
	}
	t.raise(headerOf(m))
	return m
}

// Dropped says why Restore left files out, nil when it kept all. Signatures
// that no longer count after a key rotation are such a reason: a note for the
// log, not a fault.
func (t *Trust) Dropped() error { return errors.Join(t.dropped...) }

// UpdateRoot takes the next root: version exactly one higher, signed to the
// threshold of the trusted root and to its own. Expiry is not looked at here,
// since a newer root may follow. When the keys of snapshot or timestamp change,
// what they signed is forgotten with the versions and clock floor it set: the
// way out of a fast-forward attack. SnapshotVersion is 0 then: delete the stored
// timestamp and snapshot, and store ClockFloor, before the root's bytes. What is
// from before the rotation, given to the next NewTrust or Restore, would hold on.
// Fails with ErrTooLarge, ErrFormat, ErrSignature or ErrRollback.
func (t *Trust) UpdateRoot(b []byte) error {
	m, err := decode[metadata.RootType](b)
	if err != nil {
		return err
	}
	lib := t.library(t.floor)
	if err := guard(func() error { _, err := lib.UpdateRoot(b); return translate(err) }); err != nil {
		return fmt.Errorf("root version %d after %d: %w", m.Signed.Version, t.root.Signed.Version, err)
	}
	old := t.root
	t.root, t.fresh, t.started = m, false, true
	if !sameRole(old, m, RoleTimestamp) || !sameRole(old, m, RoleSnapshot) {
		t.timestamp, t.snapshot, t.targets = nil, nil, nil
		t.floor, t.at = time.Time{}, time.Time{}
	}
	if t.targets != nil && verify(m, t.targets.Metadata) != nil {
		t.targets = nil
	}
	t.raise(headerOf(m))
	return nil
}

// UpdateTimestamp takes a timestamp that is as new as the trusted one or newer;
// the same version again changes nothing. Now below the clock floor counts as
// the floor. Fails with ErrTooLarge, ErrFormat, ErrSignature, ErrRollback,
// ErrVersionJump or ErrExpired (also when the root is: fetch a newer one).
func (t *Trust) UpdateTimestamp(b []byte, now time.Time) error {
	m, err := decode[metadata.TimestampType](b)
	if err != nil {
		return err
	}
	at := t.effective(now)
	lib := t.library(at)
	lib.Timestamp = t.timestamp
	err = guard(func() error { _, err := lib.UpdateTimestamp(b); return err })
	if errors.Is(err, &metadata.ErrEqualVersionNumber{}) {
		m, err = t.timestamp, nil
	}
	if err != nil {
		return fmt.Errorf("timestamp version %d: %w", m.Signed.Version, translate(err))
	}
	if t.timestamp != nil {
		if err := checkJump(RoleTimestamp, t.timestamp.Signed.Version, m.Signed.Version); err != nil {
			return err
		}
		if err := checkJump(RoleSnapshot, t.timestamp.Signed.Meta[snapshotFile].Version, m.Signed.Meta[snapshotFile].Version); err != nil {
			return err
		}
	}
	if at, err = t.live(at, headerOf(m)); err != nil {
		return err
	}
	t.timestamp, t.fresh = m, true
	t.accept(at, headerOf(m))
	return nil
}

// UpdateSnapshot takes the snapshot that the trusted timestamp names, with the
// version, and the length and digest if given, that it says. No role listed in
// the trusted snapshot may vanish or go back. Fails as UpdateTimestamp does,
// and with ErrMismatch, and with ErrIncomplete before UpdateTimestamp.
func (t *Trust) UpdateSnapshot(b []byte, now time.Time) error {
	if !t.fresh {
		return fmt.Errorf("%w: a snapshot comes after a timestamp", ErrIncomplete)
	}
	m, err := decodeNamed[metadata.SnapshotType](b, t.timestamp.Signed.Meta[snapshotFile])
	if err != nil {
		return err
	}
	at := t.effective(now)
	lib := t.library(at)
	lib.Timestamp = t.timestamp
	if t.snapshot != nil {
		lib.Snapshot = t.snapshot.Metadata
	}
	if err := guard(func() error { _, err := lib.UpdateSnapshot(b, false); return translate(err) }); err != nil {
		return fmt.Errorf("snapshot version %d: %w", m.Signed.Version, err)
	}
	if t.snapshot != nil {
		for name, old := range t.snapshot.Signed.Meta {
			if err := checkJump(name, old.Version, m.Signed.Meta[name].Version); err != nil {
				return err
			}
		}
	}
	if at, err = t.live(at, headerOf(m)); err != nil {
		return err
	}
	t.snapshot = hold(m, b)
	t.accept(at, headerOf(m))
	return nil
}

// UpdateTargets takes the targets metadata that the trusted snapshot names.
// Fails as UpdateSnapshot does.
func (t *Trust) UpdateTargets(b []byte, now time.Time) error {
	at := t.effective(now)
	if !t.fresh || !t.snapshotNamed() {
		return fmt.Errorf("%w: targets come after the snapshot of the newest timestamp", ErrIncomplete)
	}
	if t.timestamp.Signed.IsExpired(at) {
		return fmt.Errorf("timestamp version %d: %w", t.timestamp.Signed.Version, ErrExpired)
	}
	m, err := decodeNamed[metadata.TargetsType](b, t.snapshot.Signed.Meta[targetsFile])
	if err != nil {
		return err
	}
	lib := t.library(at)
	lib.Timestamp, lib.Snapshot = t.timestamp, t.snapshot.Metadata
	if err := guard(func() error { _, err := lib.UpdateTargets(b); return translate(err) }); err != nil {
		return fmt.Errorf("targets version %d: %w", m.Signed.Version, err)
	}
	if at, err = t.live(at, headerOf(m)); err != nil {
		return err
	}
	t.targets = hold(m, b)
	t.accept(at, headerOf(m))
	return nil
}

// RootVersion is the version of the trusted root; fetch the one after it.
func (t *Trust) RootVersion() int64 { return t.root.Signed.Version }

// SnapshotVersion is the version of the snapshot that the trusted timestamp
// names, 0 when there is no timestamp.
func (t *Trust) SnapshotVersion() int64 {
	if t.timestamp == nil {
		return 0
	}
	return t.timestamp.Signed.Meta[snapshotFile].Version
}

// TargetsVersion is the version of the targets metadata that the snapshot of
// the trusted timestamp names, 0 when that snapshot is not there yet.
func (t *Trust) TargetsVersion() int64 {
	if !t.snapshotNamed() {
		return 0
	}
	return t.snapshot.Signed.Meta[targetsFile].Version
}

// SnapshotCurrent reports that the snapshot held is the one the newest
// timestamp names and was alive at the last Update: no need to fetch it.
func (t *Trust) SnapshotCurrent() bool {
	return t.fresh && t.snapshotNamed() && !t.snapshot.Signed.IsExpired(t.at)
}

// TargetsCurrent reports that the whole chain is current: Target answers.
func (t *Trust) TargetsCurrent() bool {
	return t.SnapshotCurrent() && !t.timestamp.Signed.IsExpired(t.at) && !t.root.Signed.IsExpired(t.at) &&
		t.targets != nil && t.targets.is(t.snapshot.Signed.Meta[targetsFile]) && !t.targets.Signed.IsExpired(t.at)
}

// Expires is when the chain is over unless something newer is fetched: the
// earliest expiry of the root and of the timestamp, snapshot and targets that
// are held. Zero while no timestamp is. A time that has passed while refreshes
// fail is the mark of a freeze attack.
func (t *Trust) Expires() time.Time {
	if t.timestamp == nil {
		return time.Time{}
	}
	end := t.root.Signed.Expires
	for _, at := range []time.Time{t.timestamp.Signed.Expires, expiryOf(t.snapshot), expiryOf(t.targets)} {
		if !at.IsZero() && at.Before(end) {
			end = at
		}
	}
	return end
}

func expiryOf[T metadata.Roles](h *held[T]) time.Time {
	if h == nil {
		return time.Time{}
	}
	return headerOf(h.Metadata).expires
}

// ClockFloor is the newest date of issue in any verified document, or the floor
// given to NewTrust: no right clock shows less. Store it after each Update.
func (t *Trust) ClockFloor() time.Time { return t.floor }

func (t *Trust) snapshotNamed() bool {
	return t.timestamp != nil && t.snapshot != nil && t.snapshot.is(t.timestamp.Signed.Meta[snapshotFile])
}

// library returns go-tuf's state machine at the trusted root; the caller adds
// the documents its step needs. A fresh one for each step, because it goes only
// forward and keeps what failed.
func (t *Trust) library(at time.Time) *trustedmetadata.TrustedMetadata {
	return &trustedmetadata.TrustedMetadata{
		Root:    t.root,
		Targets: map[string]*metadata.Metadata[metadata.TargetsType]{},
		RefTime: at,
	}
}

// decodeNamed decodes a document after comparing its bytes with what the
// trusted parent says of them, so that little is parsed that nobody signed.
func decodeNamed[T metadata.Roles](b []byte, named *metadata.MetaFiles) (*metadata.Metadata[T], error) {
	if err := checkSize[T](b); err != nil {
		return nil, err
	}
	if err := named.VerifyLengthHashes(b); err != nil {
		role, _ := kindOf[T]()
		return nil, fmt.Errorf("%s: %w", role, translate(err))
	}
	return decode[T](b)
}

func (t *Trust) effective(now time.Time) time.Time {
	if now.Before(t.floor) {
		return t.floor
	}
	return now
}

// live returns at raised to the document's date of issue, or ErrExpired when
// the document or the root is over by then. A date of issue beyond the root's
// life is thus refused before it can spoil the clock floor.
func (t *Trust) live(at time.Time, h header) (time.Time, error) {
	issued, err := h.issued()
	if err != nil {
		return at, err
	}
	if issued.After(at) {
		at = issued
	}
	if at.After(h.expires) {
		return at, fmt.Errorf("%s version %d: %w on %s", h.role, h.version, ErrExpired, h.expires)
	}
	if t.root.Signed.IsExpired(at) {
		return at, fmt.Errorf("root version %d: %w on %s", t.root.Signed.Version, ErrExpired, t.root.Signed.Expires)
	}
	return at, nil
}

func (t *Trust) accept(at time.Time, h header) {
	t.at, t.started = at, true
	t.raise(h)
}

// raise lifts the clock floor to a verified document's date of issue, unless
// that lies beyond the root's life.
func (t *Trust) raise(h header) {
	issued, err := h.issued()
	if err == nil && issued.After(t.floor) && !t.root.Signed.IsExpired(issued) {
		t.floor = issued
	}
}

func checkJump(what string, old, version int64) error {
	if version-old > MaxVersionJump {
		return fmt.Errorf("%s version %d after %d: %w: at most %d: rotate the online keys by a new root", what, version, old, ErrVersionJump, MaxVersionJump)
	}
	return nil
}

// sameRole reports whether two roots give a role the same keys and threshold.
func sameRole(a, b *metadata.Metadata[metadata.RootType], role string) bool {
	x, y := roleKeys(a, role), roleKeys(b, role)
	if len(x) != len(y) || a.Signed.Roles[role].Threshold != b.Signed.Roles[role].Threshold {
		return false
	}
	for _, p := range x {
		if !slices.Contains(y, p) {
			return false
		}
	}
	return true
}
