package fleet

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/crypto/argon2"
)

// cost is what argon2id (RFC 9106) spends on one password.
type cost struct {
	Memory  uint32 // KiB
	Passes  uint32
	Threads uint8
}

var (
	// costChosen is for passwords that people choose and others may guess: 19 MiB
	// and two passes, the smallest that OWASP names for argon2id.
	costChosen = cost{Memory: 19 << 10, Passes: 2, Threads: 1}
	// costGenerated is for the server's own passwords. Nobody guesses 256 random
	// bits however fast they try, and after a restart the whole fleet comes back
	// at once.
	costGenerated = cost{Memory: 64, Passes: 1, Threads: 1}
	// costMost bounds what a stored hash may ask for.
	costMost = cost{Memory: 64 << 10, Passes: 8, Threads: 4}
)

// Limits of password checks.
const (
	// MaxHashing is how many passwords are hashed at once; the others wait. It
	// bounds the memory that a flood of connects takes: two times 19 MiB.
	MaxHashing = 2
	// MaxVerified is how many logins are remembered, 16 bytes each.
	MaxVerified = 200_000
	saltBytes   = 16
	hashBytes   = 32
)

// passwords hashes and checks passwords, a few at a time, and remembers by a
// keyed hash which ones were right, so that reconnects are cheap. The key lives
// as long as the process, and what is remembered holds the stored hash: a
// changed password is another entry.
type passwords struct {
	slots    chan struct{}
	key      [32]byte
	mu       sync.Mutex
	verified map[[16]byte]struct{}
}

func newPasswords() *passwords {
	p := &passwords{slots: make(chan struct{}, MaxHashing), verified: map[[16]byte]struct{}{}}
	_, _ = rand.Read(p.key[:])
	return p
}

// hash returns the PHC text of a password.
func (p *passwords) hash(ctx context.Context, password []byte, c cost) (string, error) {
	var salt [saltBytes]byte
	_, _ = rand.Read(salt[:])
	sum, err := p.derive(ctx, password, salt[:], c)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, c.Memory, c.Passes, c.Threads,
		b64.EncodeToString(salt[:]), b64.EncodeToString(sum)), nil
}

// derive waits for its turn.
func (p *passwords) derive(ctx context.Context, password, salt []byte, c cost) ([]byte, error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: too many passwords to check, try again in a moment: %w", ErrBusy, ctx.Err())
	}
	return argon2.IDKey(password, salt, c.Passes, c.Memory, c.Threads, hashBytes), nil
}

// cheap reports a stored hash of a password that the server made: it is looked at in
// a fraction of a millisecond, and nobody guesses it.
func cheap(stored string) bool {
	c, _, _, err := parsePHC(stored)
	return err == nil && c == costGenerated
}

// known reports whether check has seen this password be right.
func (p *passwords) known(deviceID, stored string, password []byte) bool {
	k := p.mark(deviceID, stored, password)
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.verified[k]
	return ok
}

// check reports whether the password is the one that was stored.
func (p *passwords) check(ctx context.Context, deviceID, stored string, password []byte) (bool, error) {
	c, salt, want, err := parsePHC(stored)
	if err != nil {
		return false, fmt.Errorf("password of device %s: %w", deviceID, err)
	}
	got, err := p.derive(ctx, password, salt, c)
	if err != nil || subtle.ConstantTimeCompare(got, want) != 1 {
		return false, err
	}
	k := p.mark(deviceID, stored, password)
	p.mu.Lock()
	defer p.mu.Unlock()
	for old := range p.verified {
		if len(p.verified) < MaxVerified {
			break
		}
		delete(p.verified, old) // any one: it is only hashed again
	}
	p.verified[k] = struct{}{}
	return true, nil
}

// mark is what is remembered of a login.
func (p *passwords) mark(deviceID, stored string, password []byte) (k [16]byte) {
	h := hmac.New(sha256.New, p.key[:])
	for _, part := range [][]byte{[]byte(deviceID), []byte(stored), password} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	copy(k[:], h.Sum(nil))
	return k
}

// parsePHC reads what hash wrote.
func parsePHC(s string) (c cost, salt, sum []byte, err error) {
	bad := func(why string) (cost, []byte, []byte, error) {
		return cost{}, nil, nil, fmt.Errorf("stored hash: %s", why)
	}
	part := strings.Split(s, "$")
	if len(part) != 6 || part[0] != "" || part[1] != "argon2id" || part[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return bad("not argon2id in PHC form")
	}
	if _, err := fmt.Sscanf(part[3], "m=%d,t=%d,p=%d", &c.Memory, &c.Passes, &c.Threads); err != nil ||
		part[3] != fmt.Sprintf("m=%d,t=%d,p=%d", c.Memory, c.Passes, c.Threads) {
		return bad("parameters that are none")
	}
	if c.Memory < 8 || c.Memory > costMost.Memory || c.Passes < 1 || c.Passes > costMost.Passes || c.Threads < 1 || c.Threads > costMost.Threads {
		return bad("parameters out of bounds")
	}
	b64 := base64.RawStdEncoding.Strict()
	if salt, err = b64.DecodeString(part[4]); err != nil || len(salt) != saltBytes {
		return bad("no salt")
	}
	if sum, err = b64.DecodeString(part[5]); err != nil || len(sum) != hashBytes {
		return bad("no sum")
	}
	return c, salt, sum, nil
}
