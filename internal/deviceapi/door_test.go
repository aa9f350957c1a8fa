package deviceapi_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/identity"
)

// doors are one request for each that needs a certificate.
var doors = []struct{ method, path string }{
	{"GET", "/metadata/timestamp.json"},
	{"GET", "/metadata/1.root.json"},
	{"GET", "/targets/gw/" + strings.Repeat("ab", 32) + ".1.0.idx"},
	{"GET", "/images/" + strings.Repeat("ab", 32)},
	{"HEAD", "/images/" + strings.Repeat("ab", 32)},
	{"POST", "/renew"},
}

func TestEveryDoorNeedsACertificate(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	for _, d := range doors {
		r := p.do(p.client(), d.method, d.path, "")
		if r.status != http.StatusUnauthorized || d.method != "HEAD" && r.code(t) != "denied" {
			t.Errorf("%s %s: %d %s", d.method, d.path, r.status, r.body)
		}
	}
}

func TestForeignCertificatesAreRefused(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	p.enrolled("gw-1")
	other, err := identity.Open(t.TempDir(), time.Now())
	p.ok(err)
	if res, err := p.client(issued(t, other, "gw-1")).Get(p.url + "/metadata/timestamp.json"); err == nil {
		res.Body.Close()
		t.Errorf("a certificate of another CA: %d", res.StatusCode)
	}
	// otad's own identity at an external broker is not a device's.
	own, err := p.ca.Client("gw-1", time.Now).GetClientCertificate(&tls.CertificateRequestInfo{})
	p.ok(err)
	if res, err := p.client(*own).Get(p.url + "/metadata/timestamp.json"); err == nil {
		res.Body.Close()
		t.Errorf("a certificate of the root itself: %d", res.StatusCode)
	}
}

func TestWhoIsNotAdmitted(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	revoked, _ := p.enrolled("gw-1")
	p.enrolled("gw-2")
	if r := p.do(revoked, "GET", "/metadata/timestamp.json", ""); r.status != http.StatusOK {
		t.Fatalf("before: %d", r.status)
	}
	_, err := p.fleet.RevokeDevice(t.Context(), "gw-1")
	p.ok(err)
	for name, client := range map[string]*http.Client{
		"revoked, on the connection it had": revoked,
		"unknown":                           p.client(issued(t, p.ca, "nobody")),
		"another key":                       p.client(issued(t, p.ca, "gw-2")),
	} {
		for _, d := range doors {
			r := p.do(client, d.method, d.path, "")
			if r.status != http.StatusForbidden || d.method != "HEAD" && r.code(t) != "denied" {
				t.Errorf("%s: %s %s: %d %s", name, d.method, d.path, r.status, r.body)
			}
		}
	}
}
