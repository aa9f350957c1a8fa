package fleet_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/enroll"
)

// keyRequest is a request for a key of its own, under a name that counts for
// nothing.
func (w *world) keyRequest() []byte {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.ok(err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "AWS IoT Certificate"}}, key)
	w.ok(err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func (w *world) certificate(b []byte) *x509.Certificate {
	w.t.Helper()
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	w.ok(err)
	return cert
}

// claimOf makes a token with its claim certificate.
func (w *world) claimOf(t fleet.EnrollmentToken) (token fleet.EnrollmentToken, secret [32]byte, cert *x509.Certificate) {
	w.t.Helper()
	token, secret, chain, err := w.s.CreateClaim(w.ctx, t, w.keyRequest())
	w.ok(err)
	return token, secret, w.certificate(chain)
}

func (w *world) candidate(claim string) fleet.Candidate {
	w.t.Helper()
	c, err := w.s.CertificateFromCSR(w.ctx, claim, w.keyRequest())
	w.ok(err)
	return c
}

func serial(claim, ownership, id string) fleet.Provisioning {
	return fleet.Provisioning{Claim: claim, Template: fleet.ProvisionTemplate, Ownership: ownership, Parameters: map[string]string{"SerialNumber": id}}
}

func (w *world) wantErr(err, want error) {
	w.t.Helper()
	if !errors.Is(err, want) {
		w.t.Fatalf("got %v, want %v", err, want)
	}
}

func TestProvisioningMakesADevice(t *testing.T) {
	w := newWorld(t)
	token, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 1, Hardware: "rpi4", Tags: map[string]string{"site": "paris"}})
	c := w.candidate(token.ID)
	cert := w.certificate(c.PEM)
	_, err := w.s.AdmitCertificate(w.ctx, cert)
	w.wantErr(err, fleet.ErrDenied) // inactive until its device is named
	d, err := w.s.Provision(w.ctx, serial(token.ID, c.Ownership, "sn-1"))
	w.ok(err)
	got, err := w.s.AdmitCertificate(w.ctx, cert)
	w.ok(err)
	if d.ID != "sn-1" || d.Hardware != "rpi4" || d.Tags["site"] != "paris" || got.ID != "sn-1" {
		t.Fatalf("%+v, admitted as %+v", d, got)
	}
	again, err := w.s.Provision(w.ctx, serial(token.ID, c.Ownership, "sn-1")) // its answer was lost; the token is used up
	w.ok(err)
	if again.ID != d.ID {
		t.Fatalf("%+v", again)
	}
	_, err = w.s.RevokeDevice(w.ctx, "sn-1")
	w.ok(err)
	_, err = w.s.AdmitCertificate(w.ctx, cert)
	w.wantErr(err, fleet.ErrDenied)
	_, err = w.s.Provision(w.ctx, serial(token.ID, c.Ownership, "sn-1"))
	w.wantErr(err, fleet.ErrDenied)
}

func TestOwnershipIsOfOneClaimOneDeviceOneHour(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	w.s.Now = func() time.Time { return now }
	token, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 9})
	other, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 9})
	c := w.candidate(token.ID)
	_, err := w.s.Provision(w.ctx, serial(other.ID, c.Ownership, "sn-1"))
	w.wantErr(err, fleet.ErrOwnership)
	raw, err := base64.RawURLEncoding.DecodeString(c.Ownership)
	w.ok(err)
	for i := range raw {
		raw[i] ^= 1
		_, err := w.s.Provision(w.ctx, serial(token.ID, base64.RawURLEncoding.EncodeToString(raw), "sn-1"))
		raw[i] ^= 1
		w.wantErr(err, fleet.ErrOwnership)
	}
	for _, bad := range []string{"", "x", c.Ownership + "A", strings.Repeat("A", 10_000)} {
		_, err := w.s.Provision(w.ctx, serial(token.ID, bad, "sn-1"))
		w.wantErr(err, fleet.ErrOwnership)
	}
	_, err = w.s.Provision(w.ctx, serial(token.ID, c.Ownership, "sn-1"))
	w.ok(err)
	_, err = w.s.Provision(w.ctx, serial(token.ID, c.Ownership, "sn-2"))
	w.wantErr(err, fleet.ErrDenied)
	late := w.candidate(token.ID)
	now = now.Add(fleet.ProvisionLife)
	_, err = w.s.Provision(w.ctx, serial(token.ID, late.Ownership, "sn-3"))
	w.wantErr(err, fleet.ErrOwnership)
	if _, err := w.s.Device(w.ctx, "sn-3"); !errors.Is(err, fleet.ErrNotFound) {
		t.Error("a late token made a device")
	}
}

// A restart, or another replica, has the keys and the store, and nothing else.
func TestOwnershipOutlivesARestart(t *testing.T) {
	w := newWorld(t)
	token, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 1})
	c := w.candidate(token.ID)
	again := fleet.New(w.s.Config)
	_, err := again.Provision(w.ctx, serial(token.ID, c.Ownership, "sn-1"))
	w.ok(err)
	_, err = again.AdmitCertificate(w.ctx, w.certificate(c.PEM))
	w.ok(err)
}

func TestProvisioningKeepsTheTokensRules(t *testing.T) {
	w := newWorld(t)
	token, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 1, Hardware: "rpi4", DeviceGlob: "sn-*"})
	for name, c := range map[string]struct {
		parameters map[string]string
		want       error
	}{
		"no id":           {map[string]string{}, fleet.ErrInvalid},
		"an id with dots": {map[string]string{"SerialNumber": "../x"}, fleet.ErrInvalid},
		"an id with #":    {map[string]string{"ThingName": "sn-#"}, fleet.ErrInvalid},
		"otad itself":     {map[string]string{"DeviceId": "otad"}, fleet.ErrInvalid},
		"not its pattern": {map[string]string{"SerialNumber": "gw-1"}, fleet.ErrDenied},
		"not its model":   {map[string]string{"SerialNumber": "sn-1", "Hardware": "esp32"}, fleet.ErrDenied},
		"no model":        {map[string]string{"SerialNumber": "sn-1", "Hardware": "a b"}, fleet.ErrInvalid},
	} {
		p := serial(token.ID, w.candidate(token.ID).Ownership, "")
		p.Parameters = c.parameters
		if _, err := w.s.Provision(w.ctx, p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	p := serial(token.ID, w.candidate(token.ID).Ownership, "sn-1")
	p.Template = "another"
	_, err := w.s.Provision(w.ctx, p)
	w.wantErr(err, fleet.ErrNotFound)
	p.Template = token.ID
	_, err = w.s.Provision(w.ctx, p)
	w.ok(err)
	second, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 1})
	_, err = w.s.Provision(w.ctx, serial(second.ID, w.candidate(second.ID).Ownership, "sn-1"))
	w.wantErr(err, fleet.ErrConflict) // the id with another key
	if _, err := w.s.CertificateFromCSR(w.ctx, token.ID, w.keyRequest()); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a token that is used up: %v", err)
	}
	left := w.candidate(second.ID)
	w.ok(w.store.RevokeEnrollmentToken(w.ctx, second.ID, time.Now()))
	_, err = w.s.Provision(w.ctx, serial(second.ID, left.Ownership, "sn-2"))
	w.wantErr(err, fleet.ErrDenied)
}

func TestOnlyGoodKeysAreCertified(t *testing.T) {
	w := newWorld(t)
	token, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 1})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	w.ok(err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	w.ok(err)
	good, _ := pem.Decode(w.keyRequest())
	forged := bytes.Clone(good.Bytes)
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string][]byte{
		"RSA": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), "none": nil, "text": []byte("x"),
		"forged": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}),
		"long":   bytes.Repeat([]byte("x"), fleet.MaxCSRBytes+1),
	} {
		if _, err := w.s.CertificateFromCSR(w.ctx, token.ID, csr); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, _, err := w.s.CreateClaim(w.ctx, fleet.EnrollmentToken{}, csr); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s as a claim: %v", name, err)
		}
	}
}

func TestAClaimIsNeverADevice(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	token, secret, cert := w.claimOf(fleet.EnrollmentToken{Uses: 1, ExpiresAt: now.Add(300 * 24 * time.Hour)})
	_, err := w.s.AdmitCertificate(w.ctx, cert)
	w.wantErr(err, fleet.ErrDenied)
	if cert.NotAfter.Before(token.ExpiresAt.Add(-time.Minute)) || cert.NotAfter.After(token.ExpiresAt.Add(time.Minute)) {
		t.Errorf("the claim certificate ends %s, its token %s", cert.NotAfter, token.ExpiresAt)
	}
	text := enroll.Token{Secret: secret}.String()
	encoded := base64.RawURLEncoding.EncodeToString(secret[:])
	device := w.certificate(w.candidate(token.ID).PEM)
	for name, c := range map[string]struct {
		cert           *x509.Certificate
		user, password string
		claim          bool
	}{
		"certificate":                  {cert, "", "", true},
		"secret":                       {nil, token.ID, encoded, true},
		"text":                         {nil, token.ID, text, true},
		"another secret":               {nil, token.ID, base64.RawURLEncoding.EncodeToString(make([]byte, 32)), false},
		"no password":                  {nil, token.ID, "", false},
		"no user":                      {nil, "", encoded, false},
		"another user":                 {nil, "0123456789abcdef", encoded, false},
		"a device, whatever it says":   {device, token.ID, encoded, false},
		"a device's password":          {nil, "gw-1", "correct horse", false},
		"nobody":                       {nil, "", "", false},
		"the hash instead of a secret": {nil, token.ID, base64.RawURLEncoding.EncodeToString(token.SecretHash[:]), false},
	} {
		var certs []*x509.Certificate
		if c.cert != nil {
			certs = append(certs, c.cert)
		}
		id, claim, err := w.s.Claim(w.ctx, certs, c.user, []byte(c.password))
		if err != nil || claim != c.claim || claim && id != token.ID {
			t.Errorf("%s: %q, %v, %v", name, id, claim, err)
		}
	}
	w.ok(w.store.RevokeEnrollmentToken(w.ctx, token.ID, now))
	for _, c := range [][]*x509.Certificate{{cert}, nil} {
		if _, claim, err := w.s.Claim(w.ctx, c, token.ID, []byte(encoded)); !claim || !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("a revoked token: %v, %v", claim, err)
		}
	}
}

func TestClaimsAreLimited(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	w.s.Now = func() time.Time { return now }
	token, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 1})
	other, _, _ := w.claimOf(fleet.EnrollmentToken{Uses: 1})
	for range fleet.MaxClaimRequests {
		if _, err := w.s.Provision(w.ctx, serial(token.ID, "x", "d")); errors.Is(err, fleet.ErrBusy) {
			t.Fatal(err)
		}
	}
	_, err := w.s.CertificateFromCSR(w.ctx, token.ID, w.keyRequest())
	w.wantErr(err, fleet.ErrBusy)
	w.candidate(other.ID)
	now = now.Add(fleet.ClaimWindow)
	w.candidate(token.ID)
}
