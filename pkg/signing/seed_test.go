package signing

import (
	"bytes"
	"crypto/ed25519"
	"testing"
)

func TestSeedRoundTrip(t *testing.T) {
	k := must(NewKey())(t)
	seed := k.Seed()
	back := must(KeyFromSeed(seed))(t)
	if len(seed) != ed25519.SeedSize || back.Public() != k.Public() || !bytes.Equal(back.Seed(), seed) {
		t.Fatalf("%d bytes, %s comes back as %s", len(seed), k, back)
	}
	sig := must(back.Sign([]byte("m")))(t)
	if !k.Public().verify([]byte("m"), sig) {
		t.Error("the key that came back signs otherwise")
	}
}

// TestSeedIsACopy: neither what went in nor what came out is the key itself.
func TestSeedIsACopy(t *testing.T) {
	in := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	k := must(KeyFromSeed(in))(t)
	public := k.Public()
	clear(in)
	clear(k.Seed())
	if k.Public() != public {
		t.Error("the key changed with the caller's bytes")
	}
}

func TestKeyFromSeedRefusesWhatIsNoSecret(t *testing.T) {
	for name, seed := range map[string][]byte{
		"none":           nil,
		"a byte short":   make([]byte, ed25519.SeedSize-1),
		"a byte long":    bytes.Repeat([]byte{1}, ed25519.SeedSize+1),
		"a private key":  bytes.Repeat([]byte{1}, ed25519.PrivateKeySize),
		"nothing but 0s": make([]byte, ed25519.SeedSize), // a file that a power cut left empty
	} {
		k, err := KeyFromSeed(seed)
		wantErr(t, name, err, ErrFormat)
		if k.Public() != (PublicKey{}) {
			t.Errorf("%s: a key comes with the error", name)
		}
	}
}

func TestSeedOfTheZeroKey(t *testing.T) {
	if seed := (Key{}).Seed(); seed != nil {
		t.Errorf("%d bytes", len(seed))
	}
}
