package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"go.uber.org/goleak"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/blob/blobtest"
	"github.com/otad/otad/internal/testserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, srv *testserver.S3, change ...func(*Config)) *Store {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	c := Config{
		Endpoint: srv.Endpoint, AccessKey: srv.AccessKey, SecretKey: srv.SecretKey, Region: srv.Region,
		Bucket: bucketName(t), Prefix: "/site-a/", CreateBucket: true, Transport: transport,
	}
	for _, f := range change {
		f(&c)
	}
	s, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bucketName(t *testing.T) string {
	name := strings.ToLower(t.Name())
	return "b-" + strings.Trim(strings.NewReplacer("/", "-", "_", "-").Replace(name[max(0, len(name)-40):]), "-")
}

func TestConformance(t *testing.T) {
	srv := testserver.VersityGW(t)
	blobtest.Run(t, func(t *testing.T) blob.Store {
		s := open(t, srv)
		t.Cleanup(func() { wantNoUploads(t, s) })
		return s
	})
}

// An upload that is not aborted costs its owner money for ever.
func wantNoUploads(t *testing.T, s *Store) {
	t.Helper()
	left, err := s.core.ListMultipartUploads(context.Background(), s.bucket, s.prefix, "", "", "", 10)
	if err != nil || len(left.Uploads) != 0 {
		t.Errorf("uploads left: %v, %v", left.Uploads, err)
	}
}

// The memory of a Put is one part, not the image.
func TestLargeObjectInConstantMemory(t *testing.T) {
	const size, allowed = 70 << 20, 48 << 20
	s := open(t, testserver.VersityGW(t))
	sum := sha256.New()
	body := &peakReader{src: io.TeeReader(blobtest.Body(3, size), sum)}
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	if _, err := s.Put(t.Context(), "image", body, blobtest.Limit); err != nil {
		t.Fatal(err)
	}
	grown := int64(body.peak) - int64(before.HeapInuse)
	t.Logf("peak heap +%d KiB", grown>>10)
	if grown > allowed {
		t.Errorf("heap grew by %d bytes over a put of %d", grown, size)
	}
	st, err := s.core.StatObject(t.Context(), s.bucket, "site-a/image", minio.StatObjectOptions{})
	if err != nil || st.Size != size || !strings.Contains(st.ETag, "-") {
		t.Errorf("size %d, etag %s, %v: want a multipart object of %d", st.Size, st.ETag, err, size)
	}
	r, err := s.Open(t.Context(), "image", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := sha256.New()
	if _, err := io.Copy(got, r); err != nil || !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
		t.Errorf("read back other bytes, %v", err)
	}
	wantNoUploads(t, s)
}

// peakReader samples the heap while it is read.
type peakReader struct {
	src  io.Reader
	peak uint64
	read int
}

func (r *peakReader) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if r.read += n; r.read > 1<<20 {
		r.read = 0
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		r.peak = max(r.peak, m.HeapInuse)
	}
	return n, err
}

// Devices follow the link with plain HTTP and Range, and without credentials.
func TestLinkServesRanges(t *testing.T) {
	s := open(t, testserver.VersityGW(t))
	if _, err := s.Put(t.Context(), "images/ab12", strings.NewReader("0123456789"), 100); err != nil {
		t.Fatal(err)
	}
	link, err := s.Link(t.Context(), "images/ab12", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		header string
		status int
		body   string
	}{
		{"", http.StatusOK, "0123456789"},
		{"bytes=2-5", http.StatusPartialContent, "2345"},
		{"bytes=7-", http.StatusPartialContent, "789"},
	} {
		if status, body := get(t, link, c.header); status != c.status || body != c.body {
			t.Errorf("range %q: %d %q, want %d %q", c.header, status, body, c.status, c.body)
		}
	}
	forged := strings.Replace(link, "ab12", "ab13", 1)
	if status, _ := get(t, forged, ""); status != http.StatusForbidden {
		t.Errorf("a link for another object: %d, want 403", status)
	}
}

func get(t *testing.T, url, header string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	if header != "" {
		req.Header.Set("Range", header)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestLinkLifeIsBounded(t *testing.T) {
	s := open(t, testserver.VersityGW(t))
	for _, ttl := range []time.Duration{0, -time.Second, MinLinkTTL - 1, MaxLinkTTL + 1} {
		if _, err := s.Link(t.Context(), "a", ttl); err == nil || !strings.Contains(err.Error(), "S3 allows 1s to 168h") {
			t.Errorf("life %v: error %v", ttl, err)
		}
	}
	for _, ttl := range []time.Duration{MinLinkTTL, MaxLinkTTL} {
		if _, err := s.Link(t.Context(), "a", ttl); err != nil {
			t.Errorf("life %v: %v", ttl, err)
		}
	}
}

// A part that the server refuses ends the upload and frees the parts before it.
func TestRefusedPartAbortsTheUpload(t *testing.T) {
	srv := testserver.VersityGW(t)
	good := open(t, srv)
	var broken *breakingTransport
	s := open(t, srv, func(c *Config) {
		broken = &breakingTransport{next: c.Transport}
		c.Transport = broken
	})
	_, err := s.Put(t.Context(), "image", blobtest.Body(1, 20<<20), blobtest.Limit)
	if err == nil || !strings.Contains(err.Error(), "part 2: refused by the test") {
		t.Errorf("error %v, want the refusal of part 2", err)
	}
	if broken.hits.Load() == 0 {
		t.Error("part 2 was never sent")
	}
	wantNoUploads(t, good)
	if _, err := good.Stat(t.Context(), "image"); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("stat after a failed put: %v", err)
	}
}

// breakingTransport refuses the second part of every upload.
type breakingTransport struct {
	next http.RoundTripper
	hits atomic.Int32
}

func (b *breakingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("partNumber") == "2" {
		b.hits.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		answer := "<Error><Code>AccessDenied</Code><Message>refused by the test</Message></Error>"
		return &http.Response{StatusCode: http.StatusForbidden, Request: r, Body: io.NopCloser(strings.NewReader(answer))}, nil
	}
	return b.next.RoundTrip(r)
}

func TestNewReportsAMissingBucketAndWrongKeys(t *testing.T) {
	srv := testserver.VersityGW(t)
	for _, c := range []struct {
		name, want string
		change     func(*Config)
	}{
		{"missing bucket", "s3 bucket absent at " + srv.Endpoint + ": does not exist; create it", func(*Config) {}},
		{"wrong secret", "s3 bucket absent at", func(c *Config) { c.SecretKey = "wrong" }},
		{"endpoint with a path", "s3 endpoint", func(c *Config) { c.Endpoint = "http://host/path" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := Config{
				Endpoint: srv.Endpoint, AccessKey: srv.AccessKey, SecretKey: srv.SecretKey,
				Bucket: "absent", Transport: &http.Transport{DisableKeepAlives: true},
			}
			c.change(&conf)
			if _, err := New(t.Context(), conf); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v does not say %q", err, c.want)
			}
		})
	}
}

func TestPartSizeReachesTheLimit(t *testing.T) {
	for _, limit := range []int64{0, 1, PartSize, PartSize * maxParts, PartSize*maxParts + 1, 1 << 42} {
		size := partSize(limit)
		if size < PartSize || size*maxParts < limit {
			t.Errorf("limit %d: parts of %d bytes", limit, size)
		}
	}
}
