package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/otad/otad/pkg/ota"
)

// Limits of JWTs.
const (
	MaxJWTBytes = 4096
	// DefaultJWTAudience is who a device's JWT is for, unless set.
	DefaultJWTAudience = "otad"
	// MaxJWTLife is how far ahead exp may lie: who steals a token has it no longer.
	MaxJWTLife = 24 * time.Hour
	// JWTLeeway is how far the clocks of a device and the server may be apart.
	JWTLeeway = time.Minute
)

// looksLikeJWT reports a text of three parts of which the first is base64url of
// a JSON object; no password that the server takes looks so.
func looksLikeJWT(b []byte) bool {
	return bytes.HasPrefix(b, []byte("eyJ")) && bytes.Count(b, []byte(".")) == 2
}

// bearer is what a JWT says.
type bearer struct {
	device  string
	voucher string // of an Issuer, empty: the device signed by itself
	until   time.Time
}

// verifyJWT believes a token (RFC 7519) if a key of the device that sub names
// has signed it, or one of the issuer that iss names and that may vouch for the
// device. aud must name this server and exp lie within MaxJWTLife. The algorithm
// is the key's, whatever the header says. ErrDenied with the reason otherwise.
func (s *Service) verifyJWT(ctx context.Context, text []byte) (bearer, error) {
	if len(text) > MaxJWTBytes {
		return bearer{}, fmt.Errorf("%w: JWT of %d bytes, at most %d", ErrDenied, len(text), MaxJWTBytes)
	}
	now := s.Now()
	var b bearer
	var ours error // a fault that is not the token's
	parser := jwt.NewParser(jwt.WithValidMethods([]string{algEdDSA, algES256, algRS256}), jwt.WithAudience(s.JWTAudience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(JWTLeeway), jwt.WithStrictDecoding(),
		jwt.WithTimeFunc(func() time.Time { return now }))
	claims := new(jwt.RegisteredClaims)
	_, err := parser.ParseWithClaims(string(text), claims, func(t *jwt.Token) (any, error) {
		keys, err := s.jwtKeys(ctx, t, claims, &b)
		if err != nil && !errors.Is(err, ErrDenied) {
			ours = err
		}
		return keys, err
	})
	switch {
	case ours != nil:
		return bearer{}, ours
	case err != nil:
		return bearer{}, fmt.Errorf("%w: JWT: %w", ErrDenied, err)
	}
	if b.until = claims.ExpiresAt.Time; b.until.After(now.Add(MaxJWTLife + JWTLeeway)) {
		return bearer{}, fmt.Errorf("%w: JWT: exp is more than %s ahead; make a new token for each day", ErrDenied, MaxJWTLife)
	}
	return b, nil
}

// jwtKeys returns the keys that may have signed the token. Nothing that it reads
// in the token is believed before one of them has.
func (s *Service) jwtKeys(ctx context.Context, t *jwt.Token, claims *jwt.RegisteredClaims, b *bearer) (any, error) {
	denied := func(why string) (any, error) { return nil, fmt.Errorf("%w: %s", ErrDenied, why) }
	if _, ok := t.Header["crit"]; ok {
		return denied("the header has crit, which this server can not honour") // RFC 7515, 4.1.11
	}
	b.device = claims.Subject
	if ota.ValidateDeviceID(b.device) != nil {
		return denied("sub is no device id")
	}
	keys, err := s.keysOf(ctx, claims.Issuer, b)
	if err != nil {
		return nil, err
	}
	kid, _ := t.Header["kid"].(string)
	var set jwt.VerificationKeySet
	for _, k := range keys {
		key, err := publicKey(k.PEM)
		if err != nil {
			return nil, err
		}
		if algOf(key) == t.Method.Alg() && (k.KeyID == "" || k.KeyID == kid) {
			set.Keys = append(set.Keys, key)
		}
	}
	if len(set.Keys) == 0 {
		return denied(fmt.Sprintf("no key here for alg %s and kid %.140q", t.Method.Alg(), kid))
	}
	return set, nil
}

// keysOf returns the issuer's keys, or the device's where iss is missing or the
// device itself.
func (s *Service) keysOf(ctx context.Context, iss string, b *bearer) ([]IssuerKey, error) {
	if iss != "" && iss != b.device {
		issuer, err := s.issuer(ctx, iss)
		if err != nil {
			return nil, err
		}
		if !issuer.vouches(b.device) {
			return nil, fmt.Errorf("%w: issuer %s may not vouch for device %s", ErrDenied, iss, b.device)
		}
		b.voucher = issuer.voucher()
		return issuer.Keys, nil
	}
	all, err := s.Store.Credentials(ctx, b.device)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	var keys []IssuerKey
	for _, c := range all {
		if c.Kind == CredentialKey {
			keys = append(keys, IssuerKey{KeyID: c.KeyID, PEM: c.Secret})
		}
	}
	return keys, nil
}
