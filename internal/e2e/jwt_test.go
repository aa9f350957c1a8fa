package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// withJWT gives the device a key, and returns what signs passwords with it that are
// good until a moment.
func (s *site) withJWT(id string, method jwt.SigningMethod) func(until time.Time) string {
	s.t.Helper()
	var key crypto.Signer
	var err error
	switch method {
	case jwt.SigningMethodES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jwt.SigningMethodRS256:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	file := s.path(id + "-" + method.Alg() + ".pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.must("device", "credential", "add-key", id, "--key-file", file)
	return func(until time.Time) string {
		s.t.Helper()
		text, err := jwt.NewWithClaims(method, jwt.MapClaims{"sub": id, "aud": "otad", "exp": until.Unix()}).SignedString(key)
		if err != nil {
			s.t.Fatal(err)
		}
		return text
	}
}

// jwts lets a device in with JWTs of every algorithm and keeps out what is too old. It
// returns what waits for the end of a session whose JWT runs out.
func (s *site) jwts(t *testing.T, id string, as func(id, password string) []string) (ended func()) {
	t.Helper()
	var sign func(time.Time) string
	for _, method := range []jwt.SigningMethod{jwt.SigningMethodES256, jwt.SigningMethodRS256, jwt.SigningMethodEdDSA} {
		sign = s.withJWT(id, method)
		output(t, append([]string{"mosquitto_pub", "-q", "1", "-t", "sensors/" + id + "/x", "-m", method.Alg()}, as(id, sign(time.Now().Add(time.Hour)))...)...)
		if out, err := try(t, append([]string{"mosquitto_pub", "-q", "1", "-t", "sensors/" + id + "/x", "-m", "late"}, as(id, sign(time.Now().Add(-2*time.Minute)))...)...); err == nil {
			t.Errorf("%s that has run out: taken, says %q", method.Alg(), out)
		}
	}
	// Clocks may be a minute apart, so this one is good for 20 s.
	live := start(t, "mosquitto_sub", s.path(id+".jwt"), nil, append([]string{"stdbuf", "-oL", "mosquitto_sub", "-d", "-t", "sensors/" + id + "/command"}, as(id, sign(time.Now().Add(-40*time.Second)))...)...)
	until(t, "a session by JWT", func() bool { return strings.Contains(live.text(), "CONNACK (0)") })
	return func() {
		t.Helper()
		until(t, "the session to end with its JWT", func() bool { return strings.Contains(live.text(), "CONNACK (5)") })
		live.kill()
	}
}
