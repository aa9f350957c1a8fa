package deviceapi_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/deviceapi"
)

// short is what the limits are in these tests; long is what they are not
// allowed to take.
const (
	short = 100 * time.Millisecond
	long  = 20 * time.Second
)

// dial opens a connection of HTTP/1.1 by hand.
func (p *plane) dial(url string) *tls.Conn {
	p.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.ca.RootPEM())
	c, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
	p.ok(err)
	p.Cleanup(func() { _ = c.Close() })
	p.ok(c.SetDeadline(time.Now().Add(long)))
	return c
}

// TestABodyThatStallsEnds, be it read by a handler or not.
func TestABodyThatStallsEnds(t *testing.T) {
	p := newPlane(t)
	for name, h := range map[string]http.HandlerFunc{
		"read":   func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
		"unread": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
	} {
		c := p.dial(p.serve(deviceapi.Timed(h, short, long)))
		_, err := fmt.Fprintf(c, "POST /enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nonly this")
		p.ok(err)
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("%s: the connection did not end: %v", name, err)
		}
	}
}

// TestADeviceThatTakesNothingEnds: its download ends, and a slow one does not.
func TestADeviceThatTakesNothingEnds(t *testing.T) {
	p := newPlane(t)
	large := bytes.NewReader(make([]byte, 64<<20)) // more than sockets buffer
	ended := make(chan error, 1)
	url := p.serve(deviceapi.Timed(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.Copy(w, large)
		ended <- err
	}), long, short))
	c := p.dial(url)
	_, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	p.ok(err)
	select {
	case err := <-ended:
		var timeout interface{ Timeout() bool }
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatalf("it ended with %v", err)
		}
	case <-time.After(long):
		t.Fatal("the download goes on for a device that takes nothing")
	}
}

// TestALongAnswerIsNotCut: the limits are for each piece, and a body's is over
// when the body is.
func TestALongAnswerIsNotCut(t *testing.T) {
	p := newPlane(t)
	url := p.serve(deviceapi.Timed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for range 5 {
			select {
			case <-time.After(short / 2):
			case <-r.Context().Done():
				return
			}
			_, _ = io.WriteString(w, "piece ")
			_ = http.NewResponseController(w).Flush()
		}
	}), short, short))
	for range 2 { // the second on the connection of the first
		req, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader("body"))
		p.ok(err)
		res, err := p.client().Do(req)
		p.ok(err)
		b, err := io.ReadAll(res.Body)
		if _ = res.Body.Close(); err != nil || string(b) != strings.Repeat("piece ", 5) {
			t.Fatalf("%q, %v", b, err)
		}
	}
}
