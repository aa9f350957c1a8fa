package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/identity"
)

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string) *identity.CA {
	t.Helper()
	ca, err := identity.Open(dir, start)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func request(t *testing.T, cn string) *x509.CertificateRequest {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: cn}, DNSNames: []string{"evil.example"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func leafOf(t *testing.T, chain []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(chain)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if next, _ := pem.Decode(rest); next == nil {
		t.Fatal("the chain lacks the issuing certificate")
	}
	return cert
}

func TestIssueIsAClientCertificateOnly(t *testing.T) {
	ca := open(t, t.TempDir())
	chain, err := ca.Issue(request(t, "whatever"), "gw-1", start)
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, chain)
	if leaf.Subject.CommonName != "gw-1" || len(leaf.DNSNames) != 0 || leaf.IsCA {
		t.Fatalf("took more than the key from the request: CN %q, names %v, CA %v", leaf.Subject.CommonName, leaf.DNSNames, leaf.IsCA)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	between := x509.NewCertPool()
	between.AppendCertsFromPEM(chain)
	verify := func(at time.Time, usage x509.ExtKeyUsage) error {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	if err := verify(start, x509.ExtKeyUsageClientAuth); err != nil {
		t.Fatalf("client certificate does not verify: %v", err)
	}
	if err := verify(start, x509.ExtKeyUsageServerAuth); err == nil {
		t.Fatal("a device certificate passes as a server's")
	}
	if err := verify(start.Add(identity.DeviceLife+time.Minute), x509.ExtKeyUsageClientAuth); err == nil {
		t.Fatal("certificate outlives 90 days")
	}
}

func TestOpenAgainIsTheSameCA(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	if !bytes.Equal(a.RootPEM(), b.RootPEM()) {
		t.Fatal("a second start made another CA")
	}
	if c := open(t, t.TempDir()); c.RootSHA256() == a.RootSHA256() {
		t.Fatal("two installs share a root")
	}
	for _, f := range []string{"root.key", "devices.key"} {
		info, err := os.Stat(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, info.Mode())
		}
	}
}

func TestOpenRefusesAMixedDirectory(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	other := t.TempDir()
	open(t, other)
	for _, f := range []string{"root.pem", "root.key"} {
		b, err := os.ReadFile(filepath.Join(other, f))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := identity.Open(dir, start); err == nil || !strings.Contains(err.Error(), "not issued by") {
		t.Fatalf("mixed CA accepted: %v", err)
	}
}

// TestOpenNeverReplacesWhatIsLeft: a new root would lock out every device, and
// the old key would be gone.
func TestOpenNeverReplacesWhatIsLeft(t *testing.T) {
	for _, lost := range []string{"root.pem", "root.key", "devices.pem", "devices.key"} {
		dir := filepath.Join(t.TempDir(), "ca")
		open(t, dir)
		before := files(t, dir)
		if err := os.Remove(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
		delete(before, lost)
		if _, err := identity.Open(dir, start); err == nil || !strings.Contains(err.Error(), lost) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("without %s: %v", lost, err)
		}
		if after := files(t, dir); !maps.Equal(before, after) {
			t.Errorf("without %s the rest was touched", lost)
		}
	}
}

func TestOpenLeavesNothingBeside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "ca")
	open(t, dir)
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

func TestOwnCertificatesAreRenewedAtTwoThirds(t *testing.T) {
	ca := open(t, t.TempDir())
	now := start
	clock := func() time.Time { return now }
	server, client := ca.Server([]string{"localhost", "127.0.0.1"}, clock), ca.Client("otad-2", clock)
	for name, current := range map[string]func() (*tls.Certificate, error){
		"otad":   func() (*tls.Certificate, error) { return server.GetCertificate(&tls.ClientHelloInfo{}) },
		"otad-2": func() (*tls.Certificate, error) { return client.GetClientCertificate(&tls.CertificateRequestInfo{}) },
	} {
		get := func() *x509.Certificate {
			c, err := current()
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(c.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			return leaf
		}
		now = start
		first := get()
		if first.Subject.CommonName != name || name == "otad" && first.VerifyHostname("127.0.0.1") != nil {
			t.Fatalf("%s: certificate of %q for %v %v", name, first.Subject.CommonName, first.DNSNames, first.IPAddresses)
		}
		if now = start.Add(identity.ServerLife / 2); !get().Equal(first) {
			t.Errorf("%s: renewed too early", name)
		}
		if now = start.Add(identity.ServerLife * 3 / 4); get().Equal(first) {
			t.Errorf("%s: not renewed before it expires", name)
		}
	}
}
