package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/identity"
)

// OpenSSL, which brokers check certificates with, refuses the one on the list and
// takes the others: a device's, and the server's own.
func TestOpenSSLKnowsWhoIsRevoked(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	ca := open(t, filepath.Join(dir, "ca"))
	file := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	issued := func(id string) []byte {
		t.Helper()
		chain, err := ca.Issue(request(t, id), id, now)
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	revoked, live := issued("gw-1"), issued("gw-2")
	if err := ca.WriteServer(dir, "server", []string{"localhost"}, now); err != nil {
		t.Fatal(err)
	}
	entries := []x509.RevocationListEntry{{SerialNumber: leafOf(t, revoked).SerialNumber, RevocationTime: now}, {SerialNumber: big.NewInt(7), RevocationTime: now}}
	lists, err := ca.RevocationLists(entries, now.Add(-time.Minute), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	root, crl := file("root.pem", ca.RootPEM()), file("crl.pem", lists)
	for path, want := range map[string]string{
		file("revoked.pem", revoked): "certificate revoked", file("live.pem", live): "OK", filepath.Join(dir, "server.pem"): "OK",
	} {
		out, err := exec.Command("openssl", "verify", "-crl_check", "-CAfile", root, "-CRLfile", crl, "-untrusted", path, path).CombinedOutput()
		if !strings.Contains(string(out), want) || (err == nil) != (want == "OK") {
			t.Errorf("%s: want %q: %v\n%s", filepath.Base(path), want, err, out)
		}
	}
}

// A stand-in is taken for the device by whoever trusts the CA, for minutes.
func TestStandIn(t *testing.T) {
	ca, now := open(t, t.TempDir()), time.Now()
	client, err := ca.StandIn("gw-1", now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(client.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if leaf.Subject.CommonName != "gw-1" || leaf.NotAfter.After(now.Add(time.Hour)) {
		t.Errorf("%s until %s", leaf.Subject.CommonName, leaf.NotAfter)
	}
	server := ca.Server([]string{"localhost"}, time.Now)
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, ca.Devices()
	here, there := net.Pipe()
	client.ServerName = "localhost"
	done := make(chan error, 1)
	go func() { done <- tls.Client(here, client).Handshake() }()
	conn := tls.Server(there, server)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if cn := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; cn != "gw-1" {
		t.Errorf("the server sees %q", cn)
	}
}

// What the broker reads may be read by another user.
func TestWritePublicFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crl.pem")
	for _, text := range []string{"first", "second"} {
		if err := identity.WritePublicFile(path, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte(text)})); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
