package deviceapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/deviceapi"
	"github.com/otad/otad/internal/fleet"
)

func TestMetadataNames(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	c, _ := p.enrolled("gw-1")
	for name, role := range map[string]fleet.Role{
		"timestamp.json": fleet.RoleTimestamp, "1.root.json": fleet.RoleRoot, "1.targets.json": fleet.RoleTargets, "1.snapshot.json": fleet.RoleSnapshot,
	} {
		want, err := p.fleet.MetadataFile(t.Context(), role, 1)
		p.ok(err)
		r := p.do(c, "GET", "/metadata/"+name, "")
		if r.status != http.StatusOK || !bytes.Equal(r.body, want) || r.header.Get("Content-Length") != fmt.Sprint(len(want)) {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	for _, name := range []string{
		"2.root.json", "0.root.json", "-1.root.json", "+1.root.json", "01.root.json", "1.timestamp.json", "root.json", "snapshot.json",
		"1.root", "1.root.json.json", "1.admin.json", "1..json", ".json", "json", "1.root.json%00", "99999999999999999999.root.json", "1e0.root.json",
		"..%2f..%2fadmin.token", "..%2froot.json", "%2e%2e%2f1.root.json", "%2fetc%2fpasswd", "1.%2e%2e%2froot.json", "1.root.json%2f..", "1.root%5c.json",
		strings.Repeat("1", 5000) + ".root.json",
	} {
		if r := p.do(c, "GET", "/metadata/"+name, ""); r.status != http.StatusNotFound || r.code(t) != "not_found" {
			t.Errorf("%.60s: %d %.200s", name, r.status, r.body)
		}
	}
	for _, path := range []string{"/", "/metadata/", "/metadata/1.root.json/", "/metadata/x/1.root.json", "/images/", "/healthz", "/metrics", "/v1/images/x"} {
		if r := p.do(c, "GET", path, ""); r.status != http.StatusNotFound {
			t.Errorf("%s: %d %.200s", path, r.status, r.body)
		}
	}
}

func TestTargets(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	c, _ := p.enrolled("gw-1")
	_, _, index := p.release([]byte("firmware"))
	digest := digestOf(index)
	if r := p.do(c, "GET", "/targets/gw/"+digest+".1.0.idx", ""); r.status != http.StatusOK || !bytes.Equal(r.body, index) {
		t.Fatalf("%d, %d bytes", r.status, len(r.body))
	}
	for _, path := range []string{
		"gw/" + strings.Repeat("0", 64) + ".1.0.idx", "gw/" + strings.ToUpper(digest) + ".1.0.idx", "gw/" + digest + ".1.0", "gw/" + digest,
		"gw/" + digest + "..idx", "gw/" + digest[1:] + ".1.0.idx", "gw/.1.0.idx", "gw/..%2f" + digest + ".1.0.idx", "..%2findexes/" + digest + ".1.0.idx",
		"%2e%2e/" + digest + ".1.0.idx", "gw/" + digest + ".1%2f0.idx", "gw%20/" + digest + ".1.0.idx", "gw/x/" + digest + ".1.0.idx",
	} {
		if r := p.do(c, "GET", "/targets/"+path, ""); r.status != http.StatusNotFound {
			t.Errorf("%s: %d %.200s", path, r.status, r.body)
		}
	}
}

func TestImageRanges(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	c, _ := p.enrolled("gw-1")
	raw := make([]byte, 300_000)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(raw)
	r, object, _ := p.release(raw)
	path, n := "/images/"+r.ImageDigest, len(object)

	whole := p.do(c, "GET", path, "")
	etag := whole.header.Get("ETag")
	if whole.status != http.StatusOK || !bytes.Equal(whole.body, object) || etag == "" || whole.header.Get("Accept-Ranges") != "bytes" {
		t.Fatalf("%d, %d bytes, %v", whole.status, len(whole.body), whole.header)
	}
	if head := p.do(c, "HEAD", path, ""); head.status != http.StatusOK || len(head.body) > 0 || head.header.Get("Content-Length") != fmt.Sprint(n) || head.header.Get("ETag") != etag {
		t.Errorf("HEAD: %d, %v", head.status, head.header)
	}
	for _, want := range []struct {
		ask        string
		from, size int
	}{
		{"bytes=0-0", 0, 1}, {"bytes=100-199", 100, 100}, {fmt.Sprintf("bytes=%d-", n-7), n - 7, 7}, {"bytes=-9", n - 9, 9},
		{fmt.Sprintf("bytes=%d-%d", n-5, n+1000), n - 5, 5}, {"bytes=40000-200000", 40_000, 160_001},
	} {
		for _, condition := range []string{"", etag} {
			header := []string{"Range", want.ask}
			if condition != "" {
				header = append(header, "If-Range", condition)
			}
			got := p.do(c, "GET", path, "", header...)
			contentRange := fmt.Sprintf("bytes %d-%d/%d", want.from, want.from+want.size-1, n)
			if got.status != http.StatusPartialContent || !bytes.Equal(got.body, object[want.from:want.from+want.size]) || got.header.Get("Content-Range") != contentRange {
				t.Errorf("%s: %d, %d bytes, %q", want.ask, got.status, len(got.body), got.header.Get("Content-Range"))
			}
		}
	}
	if got := p.do(c, "GET", path, "", "Range", "bytes=5-9", "If-Range", `"of-another-object"`); got.status != http.StatusOK || len(got.body) != n {
		t.Errorf("If-Range of another object: %d, %d bytes", got.status, len(got.body))
	}
	if got := p.do(c, "GET", path, "", "If-None-Match", etag); got.status != http.StatusNotModified || len(got.body) > 0 {
		t.Errorf("If-None-Match: %d", got.status)
	}
	for _, ask := range []string{fmt.Sprintf("bytes=%d-", n), "bytes=999999999999-", "bytes=5-2", "bytes=x"} {
		if got := p.do(c, "GET", path, "", "Range", ask); got.status != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("%s: %d", ask, got.status)
		}
	}
	for digest, status := range map[string]int{
		strings.Repeat("0", 64): http.StatusNotFound, "x": http.StatusBadRequest, strings.ToUpper(r.ImageDigest): http.StatusBadRequest,
		"..%2findexes%2f" + r.IndexDigest: http.StatusBadRequest, r.ImageDigest + "0": http.StatusBadRequest,
	} {
		if got := p.do(c, "GET", "/images/"+digest, ""); got.status != status {
			t.Errorf("%s: %d, want %d", digest, got.status, status)
		}
	}
}

// lying says that objects are longer than they are.
type lying struct{ blob.Store }

func (l lying) Stat(ctx context.Context, key string) (blob.Info, error) {
	info, err := l.Store.Stat(ctx, key)
	info.Size += 7
	return info, err
}

// TestACutObjectIsSeen: the device sees a broken transfer, never a false end,
// and the log says why.
func TestACutObjectIsSeen(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	c, _ := p.enrolled("gw-1")
	r, _, _ := p.release([]byte("firmware"))
	url := p.serve(deviceapi.New(deviceapi.Config{Fleet: p.fleet, Blobs: lying{p.fleet.Blobs}, Log: p.fleet.Log, Now: time.Now}))
	res, err := c.Get(url + "/images/" + r.ImageDigest)
	p.ok(err)
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Error("the device took a cut image for whole")
	}
	if s := p.logs.String(); !strings.Contains(s, "image was cut off") || !strings.Contains(s, "device=gw-1") {
		t.Errorf("the log says nothing:\n%s", s)
	}
}

// A broker on another machine has no certificate of a device.
func TestRevocationListsAreForEverybody(t *testing.T) {
	p := newPlane(t)
	c := p.client()
	want, err := p.fleet.RevocationLists(t.Context())
	p.ok(err)
	if r := p.do(c, "GET", "/crl.pem", ""); r.status != http.StatusOK || !bytes.Equal(r.body, want) {
		t.Errorf("%d %s", r.status, r.body)
	}
	for range deviceapi.EnrollBurst {
		p.do(c, "GET", "/crl.pem", "")
	}
	if r := p.do(c, "GET", "/crl.pem", ""); r.status != http.StatusTooManyRequests || r.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.status, r.body)
	}
}
