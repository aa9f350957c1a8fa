package deviceapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// linkedPlane is a plane whose job documents carry links, with one release, one
// device and the link that this device gets.
func linkedPlane(t *testing.T) (p *plane, raw []byte, link *url.URL) {
	t.Helper()
	p = newPlane(t)
	p.fleet.LinkLife, p.fleet.DeviceURL, p.fleet.Now = time.Hour, p.url, p.clock.now
	p.initTrust()
	p.enrolled("gw-1")
	raw = make([]byte, 300_000)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(raw)
	r, _, _ := p.release(raw)
	d, err := p.fleet.JobDocument(t.Context(), ota.Execution{DeviceID: "gw-1", Release: r.ID(), Attempt: 1})
	p.ok(err)
	if len(d.Files) != 1 || d.PackageName != "gw" || d.JobDocument != ota.NewJobDocument(r.ID(), 1) {
		t.Fatalf("%+v", d)
	}
	f := d.Files[0]
	if f.FileName != "gw" || f.FileSize != int64(len(raw)) || f.Checksum.HashAlgorithm != "sha256" || f.Checksum.Inline.Value != digestOf(raw) {
		t.Fatalf("%+v", f)
	}
	link, err = url.Parse(f.FileSource.URL)
	p.ok(err)
	return p, raw, link
}

func TestLinkedFile(t *testing.T) {
	p, raw, link := linkedPlane(t)
	c := p.client() // without a certificate
	whole := p.do(c, "GET", link.RequestURI(), "")
	if whole.status != http.StatusOK || !bytes.Equal(whole.body, raw) || whole.header.Get("Content-Length") != fmt.Sprint(len(raw)) || whole.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d, %d bytes, %v", whole.status, len(whole.body), whole.header)
	}
	if head := p.do(c, "HEAD", link.RequestURI(), ""); head.status != http.StatusOK || head.header.Get("Content-Length") != fmt.Sprint(len(raw)) {
		t.Errorf("HEAD: %d %v", head.status, head.header)
	}
	for ask, want := range map[string][]byte{
		"bytes=0-0": raw[:1], "bytes=100000-250000": raw[100_000:250_001], "bytes=-9": raw[len(raw)-9:], "bytes=299999-": raw[299_999:],
	} {
		got := p.do(c, "GET", link.RequestURI(), "", "Range", ask)
		if got.status != http.StatusPartialContent || !bytes.Equal(got.body, want) {
			t.Errorf("%s: %d, %d bytes", ask, got.status, len(got.body))
		}
	}
	if strings.Contains(p.logs.String(), link.Query().Get("mac")) {
		t.Error("the link stands in the log")
	}
}

// TestForgedLinks: nothing of a link can be changed, nor its life be stretched.
func TestForgedLinks(t *testing.T) {
	p, raw, link := linkedPlane(t)
	c := p.client()
	other, _, _ := p.releaseAs("gw", "2.0", []byte("another image"))
	p.enrolled("gw-2")
	set := func(key, value string) string {
		q := link.Query()
		q.Set(key, value)
		return link.Path + "?" + q.Encode()
	}
	mac := link.Query().Get("mac")
	for name, path := range map[string]string{
		"no permission":    link.Path,
		"no mac":           set("mac", ""),
		"another mac":      set("mac", strings.Repeat("A", len(mac))),
		"half a mac":       set("mac", mac[:len(mac)/2]),
		"mac with padding": set("mac", mac+"="),
		"longer life":      set("expires", fmt.Sprint(p.clock.now().Add(48*time.Hour).Unix())),
		"no time":          set("expires", "soon"),
		"another device":   set("device", "gw-2"),
		"device and time":  set("device", "gw-1\n9"),
		"another image":    "/files/" + other.ImageDigest + "?" + link.RawQuery,
		"no digest":        "/files/x?" + link.RawQuery,
		"path in digest":   "/files/..%2findexes%2f" + link.Path[len("/files/"):] + "?" + link.RawQuery,
		"as image":         "/images/" + digestOf(raw) + "?" + link.RawQuery,
	} {
		got := p.do(c, "GET", path, "")
		if got.status != http.StatusForbidden && got.status != http.StatusBadRequest && got.status != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, got.status)
		}
		if bytes.Contains(got.body, raw[:16]) || bytes.Contains(got.body, []byte("another image")) {
			t.Errorf("%s: gave bytes away", name)
		}
	}
	p.clock.advance(time.Hour - time.Second)
	if got := p.do(c, "GET", link.RequestURI(), ""); got.status != http.StatusOK {
		t.Errorf("at the end of its life: %d %s", got.status, got.body)
	}
	p.clock.advance(time.Second)
	if got := p.do(c, "GET", link.RequestURI(), ""); got.status != http.StatusForbidden || !strings.Contains(string(got.body), "expired") {
		t.Errorf("after its life: %d %s", got.status, got.body)
	}
}

func TestLinkOfARevokedDevice(t *testing.T) {
	p, _, link := linkedPlane(t)
	_, err := p.fleet.RevokeDevice(t.Context(), "gw-1")
	p.ok(err)
	if got := p.do(p.client(), "GET", link.RequestURI(), ""); got.status != http.StatusForbidden || !strings.Contains(string(got.body), "revoked") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// TestNoLinksByDefault: a job names signed data alone, and no link opens.
func TestNoLinksByDefault(t *testing.T) {
	p, _, link := linkedPlane(t)
	p.fleet.LinkLife = 0
	if got := p.do(p.client(), "GET", link.RequestURI(), ""); got.status != http.StatusForbidden {
		t.Errorf("%d %s", got.status, got.body)
	}
	d, err := p.fleet.JobDocument(t.Context(), ota.Execution{DeviceID: "gw-1", Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Attempt: 2})
	p.ok(err)
	got, err := json.Marshal(d)
	p.ok(err)
	if want := `{"operation":"install","name":"gw","version":"1.0","target":"gw/1.0.idx","attempt":2}`; string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}
