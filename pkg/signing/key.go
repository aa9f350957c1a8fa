package signing

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// The TUF roles, as sealed files and metadata name them.
const (
	RoleRoot      = metadata.ROOT
	RoleTargets   = metadata.TARGETS
	RoleSnapshot  = metadata.SNAPSHOT
	RoleTimestamp = metadata.TIMESTAMP
)

// publicPrefix starts the text form of a public key.
const publicPrefix = "ed25519:"

// PublicKey is an ed25519 public key. The zero value is no key and is refused
// wherever one is needed. Comparable with ==.
type PublicKey struct {
	raw [ed25519.PublicKeySize]byte
}

// ID returns the TUF key id: the hex SHA-256 of the key's canonical JSON (TUF
// 1.0, section 4.2).
func (p PublicKey) ID() string {
	id, err := p.tuf().ID()
	if err != nil { // three plain strings always encode
		return ""
	}
	return id
}

// String returns the text form, "ed25519:" and 44 characters of base64.
func (p PublicKey) String() string {
	return publicPrefix + base64.StdEncoding.EncodeToString(p.raw[:])
}

// MarshalText returns the form of String.
func (p PublicKey) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the form of String and nothing else, or fails with
// ErrFormat.
func (p *PublicKey) UnmarshalText(text []byte) error {
	b64, ok := strings.CutPrefix(string(text), publicPrefix)
	raw, err := base64.StdEncoding.Strict().DecodeString(b64)
	if !ok || err != nil || len(raw) != ed25519.PublicKeySize {
		return fmt.Errorf("%w public key %.80q: write it as ed25519:BASE64 of 32 bytes", ErrFormat, text)
	}
	q := PublicKey{raw: [ed25519.PublicKeySize]byte(raw)}
	if q.String() != string(text) || q.isZero() {
		return fmt.Errorf("%w public key %.80q: not the exact form of a key", ErrFormat, text)
	}
	*p = q
	return nil
}

func (p PublicKey) isZero() bool { return p == PublicKey{} }

func (p PublicKey) verify(message, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(p.raw[:], message, sig)
}

func (p PublicKey) tuf() *metadata.Key {
	return &metadata.Key{
		Type:   metadata.KeyTypeEd25519,
		Scheme: metadata.KeySchemeEd25519,
		Value:  metadata.KeyVal{PublicKey: hex.EncodeToString(p.raw[:])},
	}
}

// publicOf reads a key of a metadata document, or fails with ErrFormat.
func publicOf(k *metadata.Key) (PublicKey, error) {
	if k == nil {
		return PublicKey{}, fmt.Errorf("%w key: null", ErrFormat)
	}
	if k.Type != metadata.KeyTypeEd25519 || k.Scheme != metadata.KeySchemeEd25519 {
		return PublicKey{}, fmt.Errorf("%w key: type %.40q, scheme %.40q: only ed25519 is accepted", ErrFormat, k.Type, k.Scheme)
	}
	raw, err := hex.DecodeString(k.Value.PublicKey)
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return PublicKey{}, fmt.Errorf("%w key: not the hex of 32 bytes", ErrFormat)
	}
	p := PublicKey{raw: [ed25519.PublicKeySize]byte(raw)}
	if p.isZero() || hex.EncodeToString(raw) != k.Value.PublicKey {
		return PublicKey{}, fmt.Errorf("%w key: not the exact form of a key", ErrFormat)
	}
	return p, nil
}

// Signer makes ed25519 signatures with one key, from a sealed file or from
// hardware. Sign returns the 64-byte signature of message itself (no prehash)
// by the key of Public; callers check it against Public, so a faulty device is
// found at once.
type Signer interface {
	Public() PublicKey
	Sign(message []byte) ([]byte, error)
}

// RootKey signs root metadata: it says which keys count. Offline.
type RootKey struct{ Signer }

// TargetsKey signs targets metadata: it says what may run. Offline.
type TargetsKey struct{ Signer }

// OnlineKey signs snapshot or timestamp metadata: it says what is newest. The
// server holds it.
type OnlineKey struct{ Signer }

// Key is an ed25519 private key in memory. It implements Signer and no way of
// printing it shows the secret.
type Key struct {
	// A closure, so that fmt shows an address even where it cannot call Format
	// (a Key in an unexported field of another struct) and the verb is wrong
	// for the type, which makes fmt follow a pointer.
	seed func() [ed25519.SeedSize]byte
}

// NewKey makes a key from the system's random source.
func NewKey() (Key, error) {
	var seed [ed25519.SeedSize]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return Key{}, fmt.Errorf("make key: %w", err)
	}
	return keyOf(seed), nil
}

func keyOf(seed [ed25519.SeedSize]byte) Key {
	return Key{seed: func() [ed25519.SeedSize]byte { return seed }}
}

func (k Key) private() ed25519.PrivateKey {
	seed := k.seed()
	return ed25519.NewKeyFromSeed(seed[:])
}

// Public returns the public half; the zero PublicKey for the zero Key.
func (k Key) Public() PublicKey {
	if k.seed == nil {
		return PublicKey{}
	}
	pub := k.private().Public().(ed25519.PublicKey)
	return PublicKey{raw: [ed25519.PublicKeySize]byte(pub)}
}

// Sign returns the ed25519 signature of message. It fails with ErrInvalid on
// the zero Key.
func (k Key) Sign(message []byte) ([]byte, error) {
	if k.seed == nil {
		return nil, fmt.Errorf("%w key: empty, make one with NewKey or Open", ErrInvalid)
	}
	return ed25519.Sign(k.private(), message), nil
}

// String returns the public key, marked as belonging to a private one.
func (k Key) String() string { return "private key of " + k.Public().String() }

// GoString returns the form of String.
func (k Key) GoString() string { return k.String() }

// Format writes the form of String whatever the verb, so that %x and %d do not
// walk into the secret.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// MarshalText returns the form of String, for loggers and encoders.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
