package fleet_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/enroll"
)

// door is a service with devices that have no certificate.
type door struct {
	*testing.T
	s     *fleet.Service
	notes *notes
	log   bytes.Buffer
	now   time.Time
}

func newDoor(t *testing.T, devices ...string) *door {
	t.Helper()
	d := &door{T: t, notes: &notes{}, now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	d.s = fleet.New(fleet.Config{Store: memstore.New(), Publisher: d.notes, Now: func() time.Time { return d.now },
		Log: slog.New(slog.NewTextHandler(&d.log, nil))})
	for _, id := range devices {
		_, err := d.s.CreateDevice(t.Context(), fleet.Device{ID: id, Hardware: "esp32"})
		d.must(err)
	}
	return d
}

func (d *door) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *door) password(id string) string {
	d.Helper()
	_, text, err := d.s.SetPassword(d.Context(), id, "")
	d.must(err)
	return text
}

var home = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40000}

func (d *door) login(user, client, password string, from ...net.Addr) (fleet.Admission, error) {
	l := fleet.Login{ClientID: client, Username: user, Password: []byte(password), Remote: home}
	if len(from) > 0 {
		l.Remote = from[0]
	}
	return d.s.Login(d.Context(), l)
}

// in wants the login to be the device; out wants it denied for a reason.
func (d *door) in(want, user, client, password string, from ...net.Addr) {
	d.Helper()
	if a, err := d.login(user, client, password, from...); err != nil || a.Name != want || a.Claim {
		d.Fatalf("login of %s: %+v, %v", user, a, err)
	}
}

func (d *door) out(why, user, client, password string, from ...net.Addr) {
	d.Helper()
	a, err := d.login(user, client, password, from...)
	if !errors.Is(err, fleet.ErrDenied) || !strings.Contains(err.Error(), why) || a != (fleet.Admission{}) {
		d.Fatalf("login of %s: %+v, %v; want denied: %s", user, a, err, why)
	}
	d.now = d.now.Add(fleet.FailureMemory) // this test is not about the waiting
}

func TestPasswords(t *testing.T) {
	d := newDoor(t, "sensor-1", "sensor-2", "bare")
	one, two := d.password("sensor-1"), d.password("sensor-2")
	if !strings.HasPrefix(one, fleet.PasswordPrefix) || len(one) != len(fleet.PasswordPrefix)+43 || one == two {
		t.Fatalf("generated passwords %q and %q", one, two)
	}
	for range 2 { // the second time from memory
		d.in("sensor-1", "sensor-1", "sensor-1", one)
		d.in("sensor-1", "", "sensor-1", one) // without a user name the client id says who
		d.in("sensor-1", "sensor-1", "", one)
	}
	for _, c := range []struct{ why, user, client, password string }{
		{"no credential", "sensor-1", "sensor-1", ""},
		{"wrong password", "sensor-1", "sensor-1", two},
		{"wrong password", "sensor-2", "sensor-1", one}, // another's name with one's own password
		{"wrong password", "sensor-1", "sensor-1", one + "x"},
		{"wrong password", "sensor-1", "sensor-1", one[:len(one)-1]},
		{"wrong password", "bare", "bare", one},
		{"wrong password", "nobody", "nobody", one},
		{"no device id", "", "", one},
		{"no device id", "#", "sensor-1", one},
		{"no device id", "sensor/1", "sensor-1", one},
		{"at most", "sensor-1", "sensor-1", strings.Repeat("x", 5000)},
	} {
		d.out(c.why, c.user, c.client, c.password)
	}
	changed := d.password("sensor-1")
	d.out("wrong password", "sensor-1", "sensor-1", one)
	d.in("sensor-1", "sensor-1", "sensor-1", changed)
	if ended := d.notes.ended(); len(ended) == 0 || ended[len(ended)-1] != "sensor-1" {
		t.Errorf("the session of the old password goes on: %q", ended)
	}
	_, err := d.s.RevokeDevice(t.Context(), "sensor-1")
	d.must(err)
	d.out("is revoked", "sensor-1", "sensor-1", changed)
	list, err := d.s.Store.Credentials(t.Context(), "sensor-2")
	d.must(err)
	d.must(d.s.DeleteCredential(t.Context(), "sensor-2", list[0].ID))
	d.out("wrong password", "sensor-2", "sensor-2", two)
	if strings.Contains(d.log.String(), one) || strings.Contains(d.log.String(), two) || strings.Contains(list[0].Secret, two) {
		t.Error("a password stands in the log or in the store")
	}
}

func TestChosenPasswords(t *testing.T) {
	d := newDoor(t, "d")
	for _, c := range []struct{ password, want string }{
		{"short", "at least 12"}, {strings.Repeat("x", fleet.MaxPasswordBytes+1), "at most 512"}, {"a good password\n", "control character"},
		{"eyJhbGciOi.eyJhIjox.c2ln", "looks like a token"}, {"otae_aaaaaaaaaaaa", "looks like a token"},
	} {
		if _, _, err := d.s.SetPassword(t.Context(), "d", c.password); !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.20q: %v", c.password, err)
		}
	}
	const chosen = "correct horse battery staple"
	c, text, err := d.s.SetPassword(t.Context(), "d", chosen)
	d.must(err)
	if text != "" || !strings.HasPrefix(c.Secret, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Fatalf("%q stored as %q", text, c.Secret)
	}
	d.in("d", "d", "d", chosen)
	d.out("wrong password", "d", "d", chosen+" ")
	if _, _, err := d.s.SetPassword(t.Context(), "nobody", chosen); !errors.Is(err, fleet.ErrNotFound) {
		t.Error(err)
	}
}

// What an AWS SDK sends beside its certificate means nothing.
func TestCertificateDecidesAlone(t *testing.T) {
	w := newWorld(t)
	e, err := w.s.Enroll(w.ctx, fleet.Enrollment{DeviceID: "gw-1", Hardware: "h", Secret: w.token(fleet.EnrollmentToken{Uses: 1}), CSR: csr(t, "gw-1")})
	w.ok(err)
	block, _ := pem.Decode(e.Certificate)
	cert, err := x509.ParseCertificate(block.Bytes)
	w.ok(err)
	for _, l := range []fleet.Login{
		{}, {Username: "?SDK=IoTDeviceSDK/JS&Version=1.28"}, {Username: "other", Password: []byte("other's password")},
	} {
		l.Certificates = []*x509.Certificate{cert}
		if a, err := w.s.Login(w.ctx, l); err != nil || a.Name != "gw-1" {
			t.Errorf("%+v, %v", a, err)
		}
	}
	_, err = w.s.RevokeDevice(w.ctx, "gw-1")
	w.ok(err)
	if _, err := w.s.Login(w.ctx, fleet.Login{Certificates: []*x509.Certificate{cert}}); !errors.Is(err, fleet.ErrDenied) {
		t.Error(err)
	}
}

// A device that was created by hand is nobody's to enroll as.
func TestCreatedDevices(t *testing.T) {
	d := newDoor(t, "here")
	for _, c := range []struct {
		device fleet.Device
		want   error
	}{
		{fleet.Device{ID: "here", Hardware: "esp32"}, fleet.ErrConflict},
		{fleet.Device{ID: "otad", Hardware: "esp32"}, fleet.ErrInvalid},
		{fleet.Device{ID: "otad-2", Hardware: "esp32"}, fleet.ErrInvalid},
		{fleet.Device{ID: "a/b", Hardware: "esp32"}, fleet.ErrInvalid},
		{fleet.Device{ID: "x"}, fleet.ErrInvalid},
		{fleet.Device{ID: "x", Hardware: "esp32", Tags: map[string]string{"k": strings.Repeat("v", 300)}}, fleet.ErrInvalid},
	} {
		if _, err := d.s.CreateDevice(t.Context(), c.device); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c.device, err)
		}
	}
	if _, err := d.s.Admit(t.Context(), "here", ""); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("an empty fingerprint fits the empty one: %v", err)
	}
}

func TestClaims(t *testing.T) {
	d := newDoor(t)
	token, secret, err := d.s.CreateEnrollmentToken(t.Context(), fleet.EnrollmentToken{Uses: 1})
	d.must(err)
	text := func(secret [32]byte) string {
		claim := enroll.Token{Secret: secret}
		for i := range claim.ID {
			_, err := fmt.Sscanf(token.ID[2*i:2*i+2], "%02x", &claim.ID[i])
			d.must(err)
		}
		return claim.String()
	}
	a, err := d.login("any", "any", text(secret))
	if err != nil || a != (fleet.Admission{Name: token.ID, Claim: true}) {
		t.Fatalf("%+v, %v", a, err)
	}
	wrong := secret
	wrong[0] ^= 1
	d.out("unknown enrollment token", "any", "any", text(wrong))
	d.out("invalid enrollment token", "any", "any", enroll.Prefix+"x")
	d.must(d.s.Store.RevokeEnrollmentToken(t.Context(), token.ID, d.now))
	d.out("is revoked", "any", "any", text(secret))
	if strings.Contains(d.log.String(), enroll.Prefix) {
		t.Error("a token stands in the log")
	}
}

// pair is a key and its public half as an operator would give it.
type pair struct {
	method jwt.SigningMethod
	key    crypto.Signer
}

func newPair(t *testing.T, alg string) pair {
	t.Helper()
	var p pair
	var err error
	switch alg {
	case "EdDSA":
		p.method = jwt.SigningMethodEdDSA
		_, p.key, err = ed25519.GenerateKey(rand.Reader)
	case "ES256":
		p.method = jwt.SigningMethodES256
		p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "RS256":
		p.method = jwt.SigningMethodRS256
		p.key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p pair) public(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(p.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func (p pair) sign(t *testing.T, claims jwt.MapClaims, header ...string) string {
	t.Helper()
	token := jwt.NewWithClaims(p.method, claims)
	for i := 0; i+1 < len(header); i += 2 {
		token.Header[header[i]] = header[i+1]
	}
	var key any = p.key
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (d *door) claims(id string) jwt.MapClaims {
	return jwt.MapClaims{"sub": id, "aud": "otad", "iat": d.now.Unix(), "exp": d.now.Add(time.Hour).Unix()}
}

func with(c jwt.MapClaims, k string, v any) jwt.MapClaims {
	out := jwt.MapClaims{}
	for name, value := range c {
		out[name] = value
	}
	if v == nil {
		delete(out, k)
	} else {
		out[k] = v
	}
	return out
}

func TestJWTOfADevice(t *testing.T) {
	for _, alg := range []string{"EdDSA", "ES256", "RS256"} {
		t.Run(alg, func(t *testing.T) {
			d := newDoor(t, "d", "e")
			p, other := newPair(t, alg), newPair(t, alg)
			_, err := d.s.AddKey(t.Context(), "d", p.public(t))
			d.must(err)
			good := d.claims("d")
			d.in("d", "d", "d", p.sign(t, good))
			d.in("d", "unused", "d", p.sign(t, good)) // the user name may be anything
			d.in("d", "", "", p.sign(t, with(good, "aud", []string{"x", "otad"})))
			d.in("d", "", "", p.sign(t, with(good, "iss", "d")))
			d.in("d", "", "", p.sign(t, good, "kid", "whatever"))
			for _, c := range []struct{ why, text string }{
				{"signature is invalid", other.sign(t, good)},
				{"no key here", p.sign(t, with(good, "sub", "e"))}, // a neighbour has no keys
				{"no key here", p.sign(t, with(good, "sub", "nobody"))},
				{"sub is no device id", p.sign(t, with(good, "sub", nil))},
				{"sub is no device id", p.sign(t, with(good, "sub", "#"))},
				{"aud claim is required", p.sign(t, with(good, "aud", nil))},
				{"invalid audience", p.sign(t, with(good, "aud", "another server"))},
				{"exp claim is required", p.sign(t, with(good, "exp", nil))},
				{"token is expired", p.sign(t, with(good, "exp", d.now.Add(-2*time.Minute).Unix()))},
				{"more than 24h0m0s ahead", p.sign(t, with(good, "exp", d.now.Add(25*time.Hour).Unix()))},
				{"not valid yet", p.sign(t, with(good, "nbf", d.now.Add(time.Hour).Unix()))},
				{"used before issued", p.sign(t, with(good, "iat", d.now.Add(time.Hour).Unix()))},
				{"issuer \"x\" is not known", p.sign(t, with(good, "iss", "x"))},
				{"crit", p.sign(t, good, "crit", "b64")},
			} {
				at := d.now
				d.fresh().out(c.why, "d", "d", c.text)
				d.now = at
			}
		})
	}
}

// fresh forgets the failures of a test that is not about them.
func (d *door) fresh() *door {
	d.s = fleet.New(d.s.Config)
	return d
}

// A token says itself how it was signed; the key says what that may be.
func TestJWTAlgorithmConfusion(t *testing.T) {
	d := newDoor(t, "d")
	ed, ec, rs := newPair(t, "EdDSA"), newPair(t, "ES256"), newPair(t, "RS256")
	for _, p := range []pair{ed, ec, rs} {
		_, err := d.s.AddKey(t.Context(), "d", p.public(t))
		d.must(err)
	}
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	body := fmt.Sprintf(`{"sub":"d","aud":"otad","exp":%d}`, d.now.Add(time.Hour).Unix())
	none := part(`{"alg":"none"}`) + "." + part(body) + "."
	d.out("signing method none is invalid", "d", "d", none)
	d.fresh().out("signing method", "d", "d", part(`{"alg":"None"}`)+"."+part(body)+".")
	for _, public := range [][]byte{ed.public(t), ec.public(t), rs.public(t)} {
		token := jwt.NewWithClaims(jwt.SigningMethodHS256, d.claims("d"))
		text, err := token.SignedString(public)
		d.must(err)
		d.fresh().out("signing method HS256 is invalid", "d", "d", text)
	}
	ps := pair{jwt.SigningMethodPS256, rs.key}
	d.fresh().out("signing method PS256 is invalid", "d", "d", ps.sign(t, d.claims("d")))
	renamed := strings.Split(ec.sign(t, d.claims("d")), ".")
	renamed[0] = part(`{"alg":"EdDSA","typ":"JWT"}`)
	d.fresh().out("signature is invalid", "d", "d", strings.Join(renamed, "."))
}

func TestJWTIssuers(t *testing.T) {
	d := newDoor(t, "gw-1", "pump-1")
	one, two, stranger := newPair(t, "ES256"), newPair(t, "EdDSA"), newPair(t, "EdDSA")
	const iss = "https://id.example"
	jwks := fmt.Sprintf(`{"keys":[%s,{"kty":"RSA","use":"enc","n":"AQAB","e":"AQAB"}]}`, ecJWK(one, "k1"))
	_, err := d.s.AddIssuer(t.Context(), iss, "gw-*", []byte(jwks))
	d.must(err)
	_, err = d.s.AddIssuer(t.Context(), "plain", "", append(two.public(t), one.public(t)...))
	d.must(err)
	claims := with(d.claims("gw-1"), "iss", iss)
	d.in("gw-1", "", "", one.sign(t, claims, "kid", "k1"))
	d.in("pump-1", "", "", two.sign(t, with(d.claims("pump-1"), "iss", "plain")))
	for _, c := range []struct{ why, text string }{
		{"no key here", one.sign(t, claims)}, // the key has a kid
		{"no key here", one.sign(t, claims, "kid", "k2")},
		{"may not vouch for device pump-1", one.sign(t, with(claims, "sub", "pump-1"), "kid", "k1")},
		{"is not enrolled", one.sign(t, with(claims, "sub", "gw-9"), "kid", "k1")},
		{"no key here", two.sign(t, claims, "kid", "k1")},
		{"signature is invalid", stranger.sign(t, with(claims, "iss", "plain"))},
		{"no key here", one.sign(t, d.claims("gw-1"), "kid", "k1")}, // not the device's own key
	} {
		d.fresh().out(c.why, "", "", c.text)
	}
}

func ecJWK(p pair, kid string) string {
	b, err := p.key.Public().(*ecdsa.PublicKey).Bytes()
	if err != nil {
		panic(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":%q,"alg":"ES256","x":%q,"y":%q}`, kid, enc(b[1:33]), enc(b[33:]))
}

func TestKeysThatAreRefused(t *testing.T) {
	private, err := x509.MarshalPKCS8PrivateKey(newPair(t, "EdDSA").key)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := newPair(t, "EdDSA").public(t)
	for _, c := range []struct {
		keys []byte
		want string
	}{
		{nil, "none found"},
		{[]byte("{}"), "none found"},
		{[]byte("hello"), "neither PEM nor a JWKS"},
		{append(bytes.Clone(good), "tail"...), "neither PEM nor a JWKS"},
		{pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), "this is a private key"},
		{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: private}), "want PUBLIC KEY"},
		{pair{key: p384}.public(t), "want ed25519"},
		{[]byte(`{"keys":[{"kty":"oct","k":"AQAB"}]}`), "private or symmetric"},
		{[]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQAB","d":"AQAB"}]}`), "private or symmetric"},
		{[]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQAB"}]}`), "no ed25519 key"},
		{[]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`), "want ed25519"}, // 24 bits
		{[]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AQAB","y":"AQAB"}]}`), "no point of P-256"},
		{[]byte(`{"keys":[` + strings.Replace(ecJWK(newPair(t, "ES256"), "k"), "ES256", "EdDSA", 1) + `]}`), "want ES256"},
		{bytes.Repeat(good, fleet.MaxIssuerKeys+1), "17 of them, at most 16"},
		{bytes.Repeat([]byte{' '}, fleet.MaxKeysBytes+1), "at most 65536"},
	} {
		if _, err := fleet.ParseKeys(c.keys); !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: %v, want %q", c.keys, err, c.want)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := fleet.ParseKeys(b)
		if err != nil {
			return
		}
		for _, k := range keys {
			if again, err := fleet.ParseKeys([]byte(k.PEM)); err != nil || len(again) != 1 || again[0].PEM != k.PEM {
				t.Fatalf("%q does not come back: %v", k.PEM, err)
			}
		}
	})
}

// No text makes a JWT of a device that nobody signed.
func FuzzLoginJWT(f *testing.F) {
	s := fleet.New(fleet.Config{Store: memstore.New(), Publisher: &notes{}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if _, err := s.CreateDevice(context.Background(), fleet.Device{ID: "d", Hardware: "h"}); err != nil {
		f.Fatal(err)
	}
	public := []byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n")
	if _, err := s.AddKey(context.Background(), "d", public); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJkIiwiYXVkIjoib3RhZCIsImV4cCI6OTk5OTk5OTk5OX0.AAAA"))
	f.Add([]byte("eyJhbGciOiJub25lIn0.eyJzdWIiOiJkIn0."))
	f.Fuzz(func(t *testing.T, password []byte) {
		if a, err := s.Login(t.Context(), fleet.Login{Username: "d", Password: password}); err == nil {
			t.Fatalf("%q is %+v", password, a)
		}
	})
}

// chosen gives the device a password that can be guessed.
func (d *door) chosen(id string) string {
	d.Helper()
	text := "chosen password of " + id
	_, _, err := d.s.SetPassword(d.Context(), id, text)
	d.must(err)
	return text
}

// waits wants the login to be refused unlooked at; wrong, to be looked at.
func (d *door) waits(id, password string) {
	d.Helper()
	if _, err := d.login(id, id, password); !errors.Is(err, fleet.ErrDenied) || !strings.Contains(err.Error(), "too many failed logins") {
		d.Fatalf("login of %s: %v; want it to wait", id, err)
	}
}

func (d *door) wrong(id string, from ...net.Addr) {
	d.Helper()
	if _, err := d.login(id, id, "not the password", from...); !errors.Is(err, fleet.ErrDenied) || !strings.Contains(err.Error(), "wrong password") {
		d.Fatalf("login of %s: %v; want it to be looked at", id, err)
	}
}

func TestGuessingIsSlowedDown(t *testing.T) {
	d := newDoor(t, "d")
	right := d.chosen("d")
	for range fleet.FreeFailures {
		d.wrong("d")
	}
	for wait := time.Second; wait < fleet.MaxFailureWait; wait *= 2 {
		d.now = d.now.Add(min(wait, fleet.MaxFailureWait) - time.Millisecond)
		for range 20 { // none of these is a failure, or makes the wait longer
			d.waits("d", right)
		}
		d.now = d.now.Add(time.Millisecond)
		d.wrong("d")
	}
	d.waits("d", right)
	d.in("d", "d", "d", right, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 1}) // a stranger does not lock out the device
	if n := strings.Count(d.log.String(), "has to wait"); n != 1 {
		t.Errorf("%d lines say that a device waits:\n%s", n, d.log.String())
	}
	if n := strings.Count(d.log.String(), "device login refused"); n != 1 {
		t.Errorf("%d lines in the log for one address:\n%s", n, d.log.String())
	}
	if f := d.s.LoginFigures(); f.Waited < 100 || f.Denied < f.Waited+fleet.FreeFailures {
		t.Errorf("figures %+v", f)
	}
	if strings.Contains(d.log.String(), right) {
		t.Error("the log has a secret")
	}
	for i := range fleet.FreeFailures { // one /64 is one address
		d.wrong("d", &net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("2001:db8::%x", i+1)), Port: 1})
	}
	if _, err := d.login("d", "d", "wrong password", &net.TCPAddr{IP: net.ParseIP("2001:db8::ffff"), Port: 1}); !strings.Contains(err.Error(), "too many") {
		t.Fatal(err)
	}
}

// The wait grows no longer than MaxFailureWait, and FailureMemory without a wrong
// password is a new beginning. Who was let in with a password before never waits.
func TestTheWaitHasItsBounds(t *testing.T) {
	d := newDoor(t, "d")
	right := d.chosen("d")
	d.in("d", "d", "d", right)
	for range fleet.FreeFailures + 7 { // a wait of a second, then 2, 4, 8, 16, 32 and the longest
		d.wrong("d")
		d.now = d.now.Add(fleet.MaxFailureWait)
	}
	for range 5 {
		d.wrong("d")
		d.now = d.now.Add(fleet.MaxFailureWait - time.Millisecond)
		d.waits("d", "not the password")
		d.in("d", "d", "d", right)
		d.now = d.now.Add(time.Millisecond)
	}
	d.wrong("d")
	d.now = d.now.Add(fleet.FailureMemory)
	for range fleet.FreeFailures {
		d.wrong("d")
	}
	d.waits("d", "not the password")
}

// A password that nobody came to look at, for a fault of ours, is no failure.
func TestAFaultIsNoFailure(t *testing.T) {
	d := newDoor(t, "d")
	broken := fleet.Credential{ID: "c", DeviceID: "d", Kind: fleet.CredentialPassword, Secret: "no hash", CreatedAt: d.now}
	d.must(d.s.Store.PutCredential(t.Context(), broken))
	for range fleet.FreeAddressFailures + fleet.FreeFailures {
		if _, err := d.login("d", "d", "x"); err == nil || errors.Is(err, fleet.ErrDenied) {
			t.Fatalf("%v, want a fault of ours", err)
		}
	}
}

// After the wait the right password lets in, however often it was tried during it, and
// the failures are forgotten: else a device that tries every few seconds stays out.
func TestTheRightPasswordGetsIn(t *testing.T) {
	d := newDoor(t, "d")
	right := d.chosen("d")
	for range fleet.FreeFailures {
		d.wrong("d")
	}
	d.now = d.now.Add(time.Second)
	d.wrong("d")
	d.waits("d", right)
	d.now = d.now.Add(1999 * time.Millisecond)
	d.waits("d", right)
	d.now = d.now.Add(time.Millisecond)
	d.in("d", "d", "d", right)
	d.chosen("d") // stored anew: it is not known from before
	for range fleet.FreeFailures {
		d.wrong("d")
	}
	d.waits("d", "not the password")
}

// Whatever others behind the address do: what is certain is let in, and the password
// of another device is looked at, at the latest after AddressFailureInterval.
func TestNeighboursAreNotShutOut(t *testing.T) {
	var ids []string
	for i := range fleet.FreeAddressFailures / fleet.FreeFailures {
		ids = append(ids, fmt.Sprintf("old-%d", i))
	}
	d := newDoor(t, append(ids, "chosen", "made", "key")...)
	chosen, made := d.chosen("chosen"), d.password("made")
	p := newPair(t, "EdDSA")
	_, err := d.s.AddKey(t.Context(), "key", p.public(t))
	d.must(err)
	for i, id := range ids {
		d.chosen(id)
		if i == 1 {
			d.in("chosen", "chosen", "chosen", chosen)
			d.chosen("chosen") // stored anew: it is not known from before
		}
		for range fleet.FreeFailures {
			d.wrong(id)
		}
	}
	d.waits("chosen", chosen)
	d.in("made", "made", "made", made)
	d.in("key", "", "", p.sign(t, d.claims("key")))
	d.now = d.now.Add(fleet.AddressFailureInterval)
	d.in("chosen", "chosen", "chosen", chosen)
}

// Many at once have no more guesses than one after the other.
func TestGuessingAtOnce(t *testing.T) {
	d := newDoor(t, "d")
	d.chosen("d")
	errs := make(chan error)
	for range 5 * fleet.FreeFailures {
		go func() {
			_, err := d.login("d", "d", "not the password")
			errs <- err
		}()
	}
	looked := 0
	for range 5 * fleet.FreeFailures {
		if strings.Contains((<-errs).Error(), "wrong password") {
			looked++
		}
	}
	if looked != fleet.FreeFailures {
		t.Errorf("%d passwords were looked at, want %d", looked, fleet.FreeFailures)
	}
}

// Sessions end when what they began with ends, on this replica and on another.
func TestEvictions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memstore.New()
		replica := func(n *notes) *fleet.Service {
			return fleet.New(fleet.Config{Store: store, Publisher: n, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		}
		here, there := &notes{}, &notes{}
		a, b := replica(here), replica(there)
		p := newPair(t, "EdDSA")
		for _, id := range []string{"revoked", "deleted", "issued", "kept"} {
			if _, err := a.CreateDevice(t.Context(), fleet.Device{ID: id, Hardware: "h"}); err != nil {
				t.Fatal(err)
			}
		}
		c, _, err := a.SetPassword(t.Context(), "deleted", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.AddIssuer(t.Context(), "iss", "", p.public(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.AddKey(t.Context(), "kept", p.public(t)); err != nil {
			t.Fatal(err)
		}
		in := func(id, iss string, life time.Duration) {
			claims := jwt.MapClaims{"sub": id, "aud": "otad", "exp": time.Now().Add(life).Unix()}
			if iss != "" {
				claims["iss"] = iss
			}
			got, err := b.Login(t.Context(), fleet.Login{Password: []byte(p.sign(t, claims))})
			if err != nil {
				t.Fatal(err)
			}
			if want := time.Now().Truncate(time.Second).Add(life + fleet.JWTLeeway); !got.Until.Equal(want) || !strings.HasSuffix(got.Voucher, iss) || (iss == "") != (got.Voucher == "") {
				t.Errorf("admitted until %s by %q, want %s", got.Until, got.Voucher, want)
			}
		}
		in("issued", "iss", time.Hour)
		in("kept", "", 2*time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.RunEvictions(ctx) }()
		synctest.Wait()
		if _, err := a.RevokeDevice(t.Context(), "revoked"); err != nil {
			t.Fatal(err)
		}
		if err := a.DeleteCredential(t.Context(), "deleted", c.ID); err != nil {
			t.Fatal(err)
		}
		if err := a.DeleteIssuer(t.Context(), "iss"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(fleet.EvictionPoll + time.Millisecond)
		synctest.Wait()
		if got := fmt.Sprint(there.ended()); got != "[deleted revoked iss]" {
			t.Errorf("within %s: %s", fleet.EvictionPoll, got)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		ended := there.ended()
		if got := fmt.Sprint(ended[:3]); got != "[deleted revoked iss]" || slices.Contains(ended[2:], "deleted") || len(ended) > 40 {
			t.Errorf("each once, and the issuer for as long as a login takes: %s", ended)
		}
		if got := fmt.Sprint(here.ended()); got != "[deleted revoked deleted]" {
			t.Errorf("where it was done, with the first password: %s", got)
		}
		cancel()
		<-done
	})
}

// An issuer that is deleted and added again before anybody looks is another one: who
// came by the first goes, on every replica, and who came by the second stays.
func TestEvictionsOfAnIssuerAddedAgain(t *testing.T) {
	first, second := newPair(t, "EdDSA"), newPair(t, "EdDSA")
	for name, again := range map[string]struct {
		key  pair
		glob string
	}{
		"other keys":    {second, "gw-*"},
		"other devices": {first, "gw-2*"},
		"the same":      {first, "gw-*"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := memstore.New()
				var told [2]notes
				var replicas [2]*fleet.Service
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				for i := range replicas {
					replicas[i] = fleet.New(fleet.Config{Store: store, Publisher: &told[i], Now: time.Now, Log: slog.New(slog.DiscardHandler)})
					wg.Go(func() { _ = replicas[i].RunEvictions(ctx) })
				}
				synctest.Wait()
				a := replicas[0]
				ok := func(err error) {
					if err != nil {
						t.Fatal(err)
					}
				}
				for _, id := range []string{"gw-1", "gw-2"} {
					_, err := a.CreateDevice(t.Context(), fleet.Device{ID: id, Hardware: "h"})
					ok(err)
				}
				in := func(id string, p pair) [2]fleet.Admission {
					var got [2]fleet.Admission
					for i, s := range replicas {
						claims := jwt.MapClaims{"iss": "iss", "sub": id, "aud": "otad", "exp": time.Now().Add(time.Hour).Unix()}
						var err error
						got[i], err = s.Login(t.Context(), fleet.Login{Password: []byte(p.sign(t, claims))})
						ok(err)
					}
					return got
				}
				_, err := a.AddIssuer(t.Context(), "iss", "gw-*", first.public(t))
				ok(err)
				before := in("gw-1", first)
				time.Sleep(time.Millisecond)
				ok(a.DeleteIssuer(t.Context(), "iss"))
				_, err = a.AddIssuer(t.Context(), "iss", again.glob, again.key.public(t))
				ok(err)
				after := in("gw-2", again.key)
				time.Sleep(fleet.EvictionPoll)
				synctest.Wait()
				for i := range replicas {
					ended := func(voucher string) bool {
						return slices.ContainsFunc(told[i].evictions, func(e fleet.Eviction) bool { return e.Voucher == voucher })
					}
					if !ended(before[i].Voucher) || ended(after[i].Voucher) {
						t.Errorf("replica %d: who came before ended: %t, after: %t", i, ended(before[i].Voucher), ended(after[i].Voucher))
					}
				}
				cancel()
				wg.Wait()
			})
		})
	}
}

// An eviction that was carried out at once is looked at again, for the sake of logins
// that were under way; whoever has come since is not meant by it.
func TestEvictionsMeanWhoWasThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &notes{}
		s := fleet.New(fleet.Config{Store: memstore.New(), Publisher: n, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.RunEvictions(ctx) }()
		synctest.Wait()
		ok := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		create := func(id string) {
			_, err := s.CreateDevice(t.Context(), fleet.Device{ID: id, Hardware: "h"})
			ok(err)
			_, _, err = s.SetPassword(t.Context(), id, "")
			ok(err)
		}
		create("again")
		create("changed")
		time.Sleep(time.Second)
		began := time.Now()
		_, _, err := s.SetPassword(t.Context(), "changed", "")
		ok(err)
		ok(s.DeleteDevice(t.Context(), fleet.Deletion{DeviceID: "again"}))
		create("again")
		time.Sleep(time.Millisecond)
		came := time.Now()
		time.Sleep(3 * fleet.EvictionPoll)
		synctest.Wait()
		reasons := map[string]int{}
		for _, e := range n.evictions {
			if e.At.Before(began) {
				continue // of the first passwords
			}
			reasons[e.DeviceID+" "+e.Reason]++
			if !came.After(e.At) {
				t.Errorf("%+v ends who came %s later", e, came.Sub(began))
			}
		}
		if reasons["again "+fleet.EvictedDeleted] != 2 || reasons["changed "+fleet.EvictedCredential] != 2 {
			t.Errorf("want each at once and once again: %v", reasons)
		}
		cancel()
		<-done
	})
}
