package signing

import (
	"crypto/ed25519"
	"fmt"
)

// Seed returns a copy of the secret itself, 32 bytes, for a server that must use
// a key unattended and keeps it in a private file; nil for the zero Key.
// Operators' keys are sealed instead (Seal).
func (k Key) Seed() []byte {
	if k.seed == nil {
		return nil
	}
	seed := k.seed()
	return seed[:]
}

// KeyFromSeed is the inverse of Key.Seed; it keeps no reference to seed. It
// fails with ErrFormat for another length, and for zeros alone, which a damaged
// file holds and anybody can guess.
func KeyFromSeed(seed []byte) (Key, error) {
	if len(seed) != ed25519.SeedSize {
		return Key{}, fmt.Errorf("%w: a key seed has %d bytes, not %d", ErrFormat, ed25519.SeedSize, len(seed))
	}
	own := [ed25519.SeedSize]byte(seed)
	if own == [ed25519.SeedSize]byte{} {
		return Key{}, fmt.Errorf("%w: a key seed of zeros alone is no secret: restore the file from a backup or make a new key", ErrFormat)
	}
	return keyOf(own), nil
}
