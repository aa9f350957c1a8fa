package signing

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// RootSpec says which keys count for what. One key may be both a root and a
// targets key; an online key may be neither.
type RootSpec struct {
	RootKeys, TargetsKeys           []PublicKey
	RootThreshold, TargetsThreshold int
	Snapshot, Timestamp             PublicKey
	Expires                         time.Time
	// Issued is when the root is made; optional. A root that rotates the online
	// keys resets the devices' clock floor to it.
	Issued time.Time
}

// NewRoot returns version 1 of the root metadata, signed by the given keys of
// spec.RootKeys: all that the threshold needs, or some, with CoSign adding the
// rest. It fails with ErrInvalid when a threshold is below 1 or above the
// number of keys, a key is given twice, a key is both offline and online, or a
// signer is none of the root keys.
func NewRoot(spec RootSpec, signers ...RootKey) ([]byte, error) {
	return writeRoot(spec, 1, spec.RootKeys, signers)
}

// NextRoot returns the version after current, with the keys of spec. It must
// end up signed by the root threshold of current and by its own; signers may
// belong to either. It fails as NewRoot does.
func NextRoot(current []byte, spec RootSpec, signers ...RootKey) ([]byte, error) {
	cur, err := decode[metadata.RootType](current)
	if err != nil {
		return nil, err
	}
	version, err := next(cur.Signed.Version)
	if err != nil {
		return nil, err
	}
	allowed := append(roleKeys(cur, RoleRoot), spec.RootKeys...)
	return writeRoot(spec, version, allowed, signers)
}

// VerifyRoot checks a first root: version 1, signed to its own threshold, no
// key both offline and online. Expiry is not looked at. It fails with
// ErrTooLarge, ErrFormat, ErrRollback (another version) or ErrSignature.
func VerifyRoot(root []byte) error {
	m, err := openRoot(root)
	if err != nil {
		return err
	}
	if m.Signed.Version != 1 {
		return fmt.Errorf("%w: first root has version %d, want 1", ErrRollback, m.Signed.Version)
	}
	return checkSeparation(m)
}

// VerifyNextRoot checks that next may replace current: version + 1, signed by
// the thresholds of both, no key both offline and online.
func VerifyNextRoot(current, next []byte) error {
	t, err := NewTrust(current, time.Time{})
	if err != nil {
		return err
	}
	if err := t.UpdateRoot(next); err != nil {
		return err
	}
	return checkSeparation(t.root)
}

// RootOnlineKeys returns the public keys that may sign snapshot and timestamp,
// after checking that root is signed to its own threshold.
func RootOnlineKeys(root []byte) (snapshot, timestamp []PublicKey, err error) {
	m, err := openRoot(root)
	if err != nil {
		return nil, nil, err
	}
	return roleKeys(m, RoleSnapshot), roleKeys(m, RoleTimestamp), nil
}

// RootDigest is the SHA-256 of the exact bytes of a root file, as enrollment
// tokens pin it.
func RootDigest(root []byte) [sha256.Size]byte { return sha256.Sum256(root) }

// openRoot reads a root and checks its own signatures.
func openRoot(b []byte) (*metadata.Metadata[metadata.RootType], error) {
	m, err := decode[metadata.RootType](b)
	if err != nil {
		return nil, err
	}
	if err := verify(m, m); err != nil {
		return nil, fmt.Errorf("root version %d: %w", m.Signed.Version, err)
	}
	return m, nil
}

func writeRoot(spec RootSpec, version int64, allowed []PublicKey, signers []RootKey) ([]byte, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	m := &metadata.Metadata[metadata.RootType]{Signatures: []metadata.Signature{}, Signed: metadata.RootType{
		Type: RoleRoot, SpecVersion: metadata.SPECIFICATION_VERSION, ConsistentSnapshot: true,
		Version: version, Expires: date(spec.Expires),
		Keys: map[string]*metadata.Key{}, Roles: map[string]*metadata.Role{},
	}}
	if !spec.Issued.IsZero() {
		m.Signed.UnrecognizedFields = issuedAt(spec.Issued)
	}
	addRole(m, RoleRoot, spec.RootThreshold, spec.RootKeys...)
	addRole(m, RoleTargets, spec.TargetsThreshold, spec.TargetsKeys...)
	addRole(m, RoleSnapshot, 1, spec.Snapshot)
	addRole(m, RoleTimestamp, 1, spec.Timestamp)
	for _, s := range signers {
		if s.Signer == nil || !slices.Contains(allowed, s.Public()) {
			return nil, fmt.Errorf("%w signer: not one of the root keys", ErrInvalid)
		}
		if err := sign(m, s); err != nil {
			return nil, err
		}
	}
	return encode(m)
}

func (s RootSpec) check() error {
	if err := checkThreshold(RoleRoot, s.RootKeys, s.RootThreshold); err != nil {
		return err
	}
	if err := checkThreshold(RoleTargets, s.TargetsKeys, s.TargetsThreshold); err != nil {
		return err
	}
	offline := append(slices.Clone(s.RootKeys), s.TargetsKeys...)
	for _, p := range []PublicKey{s.Snapshot, s.Timestamp} {
		if p.isZero() || slices.Contains(offline, p) {
			return fmt.Errorf("%w online key: missing, or also a root or targets key: make a key of its own", ErrInvalid)
		}
	}
	if s.Expires.IsZero() || s.Issued.After(s.Expires) {
		return fmt.Errorf("%w root expiry: give a date after its issue", ErrInvalid)
	}
	return nil
}

func checkThreshold(role string, keys []PublicKey, threshold int) error {
	for i, p := range keys {
		if p.isZero() || slices.Contains(keys[:i], p) {
			return fmt.Errorf("%w %s keys: key %d is empty or given twice", ErrInvalid, role, i+1)
		}
	}
	if threshold < 1 || threshold > len(keys) {
		return fmt.Errorf("%w %s threshold: %d of %d keys, choose from 1 to %d", ErrInvalid, role, threshold, len(keys), len(keys))
	}
	return nil
}

// checkSeparation refuses a root that trusts one key both offline and online:
// whoever holds the server would then sign firmware.
func checkSeparation(m *metadata.Metadata[metadata.RootType]) error {
	online := append(roleKeys(m, RoleSnapshot), roleKeys(m, RoleTimestamp)...)
	for _, p := range append(roleKeys(m, RoleRoot), roleKeys(m, RoleTargets)...) {
		if slices.Contains(online, p) {
			return fmt.Errorf("%w root: key %s is both offline and online", ErrInvalid, p)
		}
	}
	return nil
}

func addRole(m *metadata.Metadata[metadata.RootType], role string, threshold int, keys ...PublicKey) {
	r := &metadata.Role{Threshold: threshold}
	for _, p := range keys {
		m.Signed.Keys[p.ID()] = p.tuf()
		r.KeyIDs = append(r.KeyIDs, p.ID())
	}
	slices.Sort(r.KeyIDs)
	m.Signed.Roles[role] = r
}

// roleKeys returns the keys of a role of a decoded root, in the root's order.
func roleKeys(m *metadata.Metadata[metadata.RootType], role string) []PublicKey {
	var keys []PublicKey
	for _, id := range m.Signed.Roles[role].KeyIDs {
		if p, err := publicOf(m.Signed.Keys[id]); err == nil { // decode has checked it
			keys = append(keys, p)
		}
	}
	return keys
}

func issuedAt(t time.Time) map[string]any {
	return map[string]any{issuedField: date(t).Format(time.RFC3339)}
}
