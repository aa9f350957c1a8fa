package deviceapi_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/deviceapi"
	"github.com/otad/otad/internal/testserver"
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
	const limit, pieces = time.Minute, 5
	h := deviceapi.Timed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for range pieces {
			select {
			case <-time.After(limit / 2):
			case <-r.Context().Done():
				return
			}
			_, _ = io.WriteString(w, "piece ")
			_ = http.NewResponseController(w).Flush()
		}
	}), limit, limit)
	for _, http2 := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			pipe := testserver.NewPipe()
			s := &httptest.Server{Listener: pipe, Config: &http.Server{Handler: h}, EnableHTTP2: http2}
			s.StartTLS()
			defer s.Close()
			client := s.Client()
			client.Transport.(*http.Transport).DialContext = pipe.Dial
			for range 2 { // the second on the connection of the first
				began := time.Now()
				res, err := client.Post(s.URL, "", strings.NewReader("body"))
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(res.Body)
				if _ = res.Body.Close(); err != nil || string(b) != strings.Repeat("piece ", pieces) {
					t.Fatalf("%s: %q, %v", res.Proto, b, err)
				}
				if took := time.Since(began); took < 2*limit || (res.ProtoMajor == 2) != http2 {
					t.Errorf("%s: it took %s", res.Proto, took)
				}
			}
		})
	}
}
