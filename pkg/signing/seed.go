package signing

import (
	"crypto/ed25519"
	"fmt"
)

// Seed returns the secret itself, 32 bytes, for a server that must use a key
// unattended and keeps it in a private file. Operators' keys are sealed instead.
func (k Key) Seed() []byte {
	if k.seed == nil {
		return nil
	}
	seed := k.seed()
	return seed[:]
}

// KeyFromSeed is the inverse of Key.Seed. ErrFormat for another length.
func KeyFromSeed(seed []byte) (Key, error) {
	if len(seed) != ed25519.SeedSize {
		return Key{}, fmt.Errorf("%w: a key seed has %d bytes, not %d", ErrFormat, ed25519.SeedSize, len(seed))
	}
	return keyOf([ed25519.SeedSize]byte(seed)), nil
}
