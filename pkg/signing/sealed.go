package signing

import (
	"bytes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"
)

// A sealed key file is PEM-armored text:
//
//	-----BEGIN OTAD SEALED KEY-----
//	Kdf: scrypt N=32768 r=8 p=1
//	Public: ed25519:...
//	Role: targets
//	Version: 1
//
//	base64(salt[16] nonce[12] chacha20poly1305(seed[32]) tag[16])
//	-----END OTAD SEALED KEY-----
//
// The four headers, in this order, are the additional data of the AEAD: none
// can be changed without the passphrase.
const (
	sealedType    = "OTAD SEALED KEY"
	sealedVersion = "1"
	saltSize      = 16
	sealedSize    = saltSize + chacha20poly1305.NonceSize + ed25519.SeedSize + chacha20poly1305.Overhead

	// MaxSealedBytes caps a sealed key file before it is parsed.
	MaxSealedBytes = 4 << 10
	// MaxScryptN, MaxScryptR and MaxScryptP bound what a sealed file may ask of
	// the machine that opens it: 128 MiB and a few seconds.
	MaxScryptN = 1 << 17
	MaxScryptR = 8
	MaxScryptP = 4
)

// kdf is the cost of turning a passphrase into a key (RFC 7914).
type kdf struct{ n, r, p int }

var defaultKDF = kdf{n: 1 << 15, r: 8, p: 1}

func (c kdf) String() string { return fmt.Sprintf("scrypt N=%d r=%d p=%d", c.n, c.r, c.p) }

func parseKDF(s string) (kdf, error) {
	var c kdf
	if _, err := fmt.Sscanf(s, "scrypt N=%d r=%d p=%d", &c.n, &c.r, &c.p); err != nil || c.String() != s {
		return kdf{}, fmt.Errorf("%w key file: key derivation %.60q: write it as %q", ErrFormat, s, defaultKDF)
	}
	if c.n < 2 || c.n&(c.n-1) != 0 || c.r < 1 || c.p < 1 {
		return kdf{}, fmt.Errorf("%w key file: %s: N must be a power of two, r and p at least 1", ErrFormat, c)
	}
	if c.n > MaxScryptN || c.r > MaxScryptR || c.p > MaxScryptP {
		return kdf{}, fmt.Errorf("%w key file: %s: at most N=%d r=%d p=%d, seal the key again with less", ErrFormat, c, MaxScryptN, MaxScryptR, MaxScryptP)
	}
	return c, nil
}

// Seal encrypts k under a passphrase and binds it to role (RoleRoot,
// RoleTargets, RoleSnapshot or RoleTimestamp), so that a file cannot be passed
// off for another. The result is a text of about 350 bytes to store with mode
// 0600. It fails with ErrInvalid for another role, an empty passphrase or the
// zero Key.
func Seal(k Key, role string, passphrase []byte) ([]byte, error) {
	return sealWith(defaultKDF, k, role, passphrase)
}

func sealWith(cost kdf, k Key, role string, passphrase []byte) ([]byte, error) {
	switch {
	case k.seed == nil:
		return nil, fmt.Errorf("%w key: empty, make one with NewKey", ErrInvalid)
	case !knownRole(role):
		return nil, fmt.Errorf("%w role %.40q: root, targets, snapshot or timestamp", ErrInvalid, role)
	case len(passphrase) == 0:
		return nil, fmt.Errorf("%w passphrase: empty, choose one of at least a few words", ErrInvalid)
	}
	body := make([]byte, saltSize+chacha20poly1305.NonceSize, sealedSize)
	if _, err := rand.Read(body); err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	block := sealedBlock(cost, k.Public(), role)
	aead, err := cost.aead(passphrase, body[:saltSize])
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	seed := k.seed()
	block.Bytes = aead.Seal(body, body[saltSize:], seed[:], associated(block))
	return pem.EncodeToMemory(block), nil
}

// Open decrypts a sealed key of the given role. It fails with ErrFormat when
// the text is no sealed key, ErrKeyRole when it was sealed for another role,
// and ErrPassphrase when the passphrase is wrong or any byte was changed.
func Open(sealed []byte, role string, passphrase []byte) (Key, error) {
	f, err := parseSealed(sealed)
	if err != nil {
		return Key{}, err
	}
	if f.role != role {
		return Key{}, fmt.Errorf("%w: the file holds a %s key, a %.40s key is needed", ErrKeyRole, f.role, role)
	}
	body := f.block.Bytes
	aead, err := f.cost.aead(passphrase, body[:saltSize])
	if err != nil {
		return Key{}, fmt.Errorf("%w key file: %w", ErrFormat, err)
	}
	nonce, box := body[saltSize:saltSize+chacha20poly1305.NonceSize], body[saltSize+chacha20poly1305.NonceSize:]
	seed, err := aead.Open(nil, nonce, box, associated(f.block))
	if err != nil {
		return Key{}, fmt.Errorf("open %s key: %w", role, ErrPassphrase)
	}
	k := keyOf([ed25519.SeedSize]byte(seed))
	if k.Public() != f.public {
		return Key{}, fmt.Errorf("%w key file: public key does not belong to the secret", ErrFormat)
	}
	return k, nil
}

// SealedRole returns the role a sealed key was made for, as the file says:
// believed only after Open.
func SealedRole(sealed []byte) (string, error) {
	f, err := parseSealed(sealed)
	return f.role, err
}

// SealedPublic returns the public key of a sealed key, as the file says:
// believed only after Open.
func SealedPublic(sealed []byte) (PublicKey, error) {
	f, err := parseSealed(sealed)
	return f.public, err
}

type sealedFile struct {
	role   string
	public PublicKey
	cost   kdf
	block  *pem.Block
}

// parseSealed accepts exactly what Seal writes; only line ends may differ.
func parseSealed(sealed []byte) (sealedFile, error) {
	if len(sealed) > MaxSealedBytes {
		return sealedFile{}, fmt.Errorf("key file of %d bytes is %w: at most %d, give the sealed key itself", len(sealed), ErrTooLarge, MaxSealedBytes)
	}
	text := bytes.TrimSpace(bytes.ReplaceAll(sealed, []byte("\r\n"), []byte("\n")))
	block, _ := pem.Decode(text)
	if block == nil || block.Type != sealedType {
		return sealedFile{}, fmt.Errorf("%w key file: no %q block", ErrFormat, sealedType)
	}
	if !bytes.Equal(bytes.TrimSpace(pem.EncodeToMemory(block)), text) {
		return sealedFile{}, fmt.Errorf("%w key file: text around or inside the block was changed", ErrFormat)
	}
	f := sealedFile{role: block.Headers["Role"], block: block}
	if block.Headers["Version"] != sealedVersion || !knownRole(f.role) || len(block.Headers) != 4 || len(block.Bytes) != sealedSize {
		return sealedFile{}, fmt.Errorf("%w key file: unknown version, role or size", ErrFormat)
	}
	if err := f.public.UnmarshalText([]byte(block.Headers["Public"])); err != nil {
		return sealedFile{}, fmt.Errorf("key file: %w", err)
	}
	var err error
	f.cost, err = parseKDF(block.Headers["Kdf"])
	if err != nil {
		return sealedFile{}, err
	}
	return f, nil
}

func sealedBlock(cost kdf, public PublicKey, role string) *pem.Block {
	return &pem.Block{Type: sealedType, Headers: map[string]string{
		"Kdf": cost.String(), "Public": public.String(), "Role": role, "Version": sealedVersion,
	}}
}

// associated returns what the AEAD binds besides the secret.
func associated(b *pem.Block) []byte {
	h := b.Headers
	return fmt.Appendf(nil, "%s\nKdf: %s\nPublic: %s\nRole: %s\nVersion: %s\n", b.Type, h["Kdf"], h["Public"], h["Role"], h["Version"])
}

func (c kdf) aead(passphrase, salt []byte) (cipher.AEAD, error) {
	key, err := scrypt.Key(passphrase, salt, c.n, c.r, c.p, chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	return chacha20poly1305.New(key)
}

func knownRole(role string) bool {
	return slices.Contains([]string{RoleRoot, RoleTargets, RoleSnapshot, RoleTimestamp}, role)
}
