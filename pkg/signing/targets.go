package signing

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Target is one signed file: what its content is and what the operators say
// about it.
type Target struct {
	Path   string // segments of a-z A-Z 0-9 . _ + ~ - between slashes
	Length int64  // bytes
	SHA256 [sha256.Size]byte
	Custom json.RawMessage // a JSON object without fractions; nil when there is none
}

// NewTargets returns version 1 of the targets metadata, with no target.
// Signers may be some of those the threshold needs: CoSign adds the rest.
func NewTargets(expires time.Time, signers ...TargetsKey) ([]byte, error) {
	m := &metadata.Metadata[metadata.TargetsType]{Signed: metadata.TargetsType{
		Type: RoleTargets, SpecVersion: metadata.SPECIFICATION_VERSION,
		Version: 1, Targets: map[string]*metadata.TargetFiles{},
	}}
	return writeTargets(m, expires, signers)
}

// AddTarget returns the version after current with t among the others, and
// only the signatures given now. A path that is already there must hold the
// same length, digest and custom data, else ErrConflict. It fails with
// ErrInvalid for a path, length or custom data outside the rules and with
// ErrTooLarge when the file would exceed MaxTargetsBytes.
func AddTarget(current []byte, t Target, expires time.Time, signers ...TargetsKey) ([]byte, error) {
	return NextTargets(current, []Target{t}, nil, expires, signers...)
}

// RemoveTarget returns the version after current without path, and only the
// signatures given now. It fails with ErrUnknownTarget when path is not there.
func RemoveTarget(current []byte, path string, expires time.Time, signers ...TargetsKey) ([]byte, error) {
	return NextTargets(current, nil, []string{path}, expires, signers...)
}

// NextTargets is AddTarget for several, and RemoveTarget for several, in one version.
func NextTargets(current []byte, add []Target, remove []string, expires time.Time, signers ...TargetsKey) ([]byte, error) {
	for _, t := range add {
		if err := t.check(); err != nil {
			return nil, err
		}
	}
	m, err := nextTargets(current)
	if err != nil {
		return nil, err
	}
	for _, path := range remove {
		if _, ok := m.Signed.Targets[path]; !ok {
			return nil, fmt.Errorf("remove %.*q: %w", MaxPathBytes, path, ErrUnknownTarget)
		}
		delete(m.Signed.Targets, path)
	}
	for _, t := range add {
		if old, ok := m.Signed.Targets[t.Path]; ok && !sameTarget(targetOf(t.Path, old), t) {
			return nil, fmt.Errorf("target %s: %w: use a new version, or remove it first", t.Path, ErrConflict)
		}
		m.Signed.Targets[t.Path] = t.tuf()
	}
	return writeTargets(m, expires, signers)
}

// Targets lists what a targets file says, sorted by path. Nothing is verified:
// it is for showing and comparing, never for deciding what may run.
func Targets(meta []byte) ([]Target, error) {
	m, err := decode[metadata.TargetsType](meta)
	if err != nil {
		return nil, err
	}
	return listTargets(m), nil
}

// VerifyTargets checks that next may be published after current (nil when there
// is none yet) and returns next's targets, sorted by path. Next must be signed
// to root's targets threshold, be version current + 1 (1 when there is none)
// and unexpired at now, and may not give a path of current other content. It
// fails with ErrSignature, ErrRollback, ErrExpired (root's too), ErrConflict,
// ErrInvalid, ErrFormat or ErrTooLarge.
func VerifyTargets(root, current, next []byte, now time.Time) ([]Target, error) {
	r, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	m, err := decode[metadata.TargetsType](next)
	if err != nil {
		return nil, err
	}
	if err := verify(r, m); err != nil {
		return nil, fmt.Errorf("targets version %d: %w", m.Signed.Version, err)
	}
	if r.Signed.IsExpired(now) || m.Signed.IsExpired(now) {
		return nil, fmt.Errorf("root (until %s) or targets (until %s) %w: sign them again", r.Signed.Expires, m.Signed.Expires, ErrExpired)
	}
	list := listTargets(m)
	for _, t := range list {
		if err := t.check(); err != nil {
			return nil, err
		}
	}
	return list, checkSuccession(current, m)
}

// CoSign returns metadata with the signature of one more key, or a fresh one in
// place of that key's older signature: how several holders of offline keys
// reach a threshold by passing a file on. Only root and targets metadata are
// signed this way. Whether the key counts is for the verifier to say.
func CoSign(document []byte, signer Signer) ([]byte, error) {
	role, err := roleOf(document)
	if err != nil {
		return nil, err
	}
	switch role {
	case RoleRoot:
		return coSign[metadata.RootType](document, signer)
	case RoleTargets:
		return coSign[metadata.TargetsType](document, signer)
	}
	return nil, fmt.Errorf("%w: %.40q metadata is not signed offline", ErrInvalid, role)
}

// Version returns the version of a metadata file of any kind, unverified.
func Version(meta []byte) (int64, error) {
	role, err := roleOf(meta)
	if err != nil {
		return 0, err
	}
	switch role {
	case RoleRoot:
		return versionOf[metadata.RootType](meta)
	case RoleTimestamp:
		return versionOf[metadata.TimestampType](meta)
	case RoleSnapshot:
		return versionOf[metadata.SnapshotType](meta)
	case RoleTargets:
		return versionOf[metadata.TargetsType](meta)
	}
	return 0, fmt.Errorf("%w: unknown kind of metadata %.40q", ErrFormat, role)
}

func nextTargets(current []byte) (*metadata.Metadata[metadata.TargetsType], error) {
	m, err := decode[metadata.TargetsType](current)
	if err != nil {
		return nil, err
	}
	m.Signed.Version, err = next(m.Signed.Version)
	return m, err
}

func writeTargets(m *metadata.Metadata[metadata.TargetsType], expires time.Time, signers []TargetsKey) ([]byte, error) {
	if expires.IsZero() {
		return nil, fmt.Errorf("%w targets expiry: give a date", ErrInvalid)
	}
	m.Signed.Expires = date(expires)
	m.Signatures = []metadata.Signature{}
	for _, s := range signers {
		if err := sign(m, s.Signer); err != nil {
			return nil, err
		}
	}
	return encode(m)
}

// checkSuccession compares next with what is published now.
func checkSuccession(current []byte, next *metadata.Metadata[metadata.TargetsType]) error {
	want, old := int64(1), map[string]*metadata.TargetFiles{}
	if current != nil {
		cur, err := decode[metadata.TargetsType](current)
		if err != nil {
			return err
		}
		want, old = cur.Signed.Version+1, cur.Signed.Targets
	}
	if next.Signed.Version != want {
		return fmt.Errorf("%w: targets version %d, want %d: take the published file and sign again", ErrRollback, next.Signed.Version, want)
	}
	for path, f := range next.Signed.Targets {
		if o, ok := old[path]; ok && !sameTarget(targetOf(path, o), targetOf(path, f)) {
			return fmt.Errorf("target %s: %w", path, ErrConflict)
		}
	}
	return nil
}

func (t Target) check() error {
	if err := checkPath(t.Path); err != nil {
		return err
	}
	if t.Length < 0 || t.Length > MaxVersion || t.SHA256 == ([sha256.Size]byte{}) {
		return fmt.Errorf("%w target %s: no length or digest", ErrInvalid, t.Path)
	}
	if t.Custom == nil {
		return nil
	}
	if err := checkJSON(t.Custom); err != nil || !bytes.HasPrefix(bytes.TrimSpace(t.Custom), []byte("{")) {
		return fmt.Errorf("%w target %s: custom data must be a JSON object without duplicate keys", ErrInvalid, t.Path)
	}
	if _, err := cjson.EncodeCanonical(t.Custom); err != nil {
		return fmt.Errorf("%w target %s: custom data: %w: write fractions as text", ErrInvalid, t.Path, err)
	}
	return nil
}

func (t Target) tuf() *metadata.TargetFiles {
	f := &metadata.TargetFiles{Length: t.Length, Hashes: metadata.Hashes{sha256Name: t.SHA256[:]}}
	if t.Custom != nil {
		custom := bytes.Clone(t.Custom)
		f.Custom = (*json.RawMessage)(&custom)
	}
	return f
}

// targetOf converts an entry that checkTargets has passed.
func targetOf(path string, f *metadata.TargetFiles) Target {
	t := Target{Path: path, Length: f.Length}
	copy(t.SHA256[:], f.Hashes[sha256Name])
	if f.Custom != nil {
		t.Custom = bytes.Clone(*f.Custom)
	}
	return t
}

func listTargets(m *metadata.Metadata[metadata.TargetsType]) []Target {
	list := make([]Target, 0, len(m.Signed.Targets))
	for _, path := range slices.Sorted(maps.Keys(m.Signed.Targets)) {
		list = append(list, targetOf(path, m.Signed.Targets[path]))
	}
	return list
}

// sameTarget compares content and meaning; the spelling of custom data (space,
// order of keys) does not count.
func sameTarget(a, b Target) bool {
	if a.Length != b.Length || a.SHA256 != b.SHA256 || (a.Custom == nil) != (b.Custom == nil) {
		return false
	}
	if a.Custom == nil {
		return true
	}
	x, errX := cjson.EncodeCanonical(a.Custom)
	y, errY := cjson.EncodeCanonical(b.Custom)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func coSign[T metadata.Roles](b []byte, s Signer) ([]byte, error) {
	m, err := decode[T](b)
	if err != nil {
		return nil, err
	}
	if err := sign(m, s); err != nil {
		return nil, err
	}
	return encode(m)
}

func versionOf[T metadata.Roles](b []byte) (int64, error) {
	m, err := decode[T](b)
	if err != nil {
		return 0, err
	}
	return headerOf(m).version, nil
}

// roleOf peeks at the kind of a document that is not checked yet.
func roleOf(b []byte) (string, error) {
	if len(b) > MaxTargetsBytes {
		return "", fmt.Errorf("metadata of %d bytes is %w: at most %d", len(b), ErrTooLarge, MaxTargetsBytes)
	}
	var doc struct {
		Signed struct {
			Type string `json:"_type"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return "", fmt.Errorf("%w metadata: %w", ErrFormat, err)
	}
	return doc.Signed.Type, nil
}
