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

// overBoth serves h in a bubble, over HTTP/2 and over HTTP/1.1, where limits of time
// pass at once.
func overBoth(t *testing.T, h http.HandlerFunc, test func(t *testing.T, client *http.Client, url string)) {
	t.Helper()
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pipe := testserver.NewPipe()
				s := &httptest.Server{Listener: pipe, Config: &http.Server{Handler: deviceapi.Timed(h, limit, limit)}, EnableHTTP2: http2}
				s.StartTLS()
				defer s.Close()
				client := s.Client()
				client.Transport.(*http.Transport).DialContext = pipe.Dial
				test(t, client, s.URL)
			})
		})
	}
}

const limit = time.Minute

// within waits unless the request ends before.
func within(r *http.Request, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-r.Context().Done():
		return false
	}
}

func answer(t *testing.T, res *http.Response, err error, want string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if _ = res.Body.Close(); err != nil || string(b) != want {
		t.Fatalf("%s: %q, %v; want %q", res.Proto, b, err, want)
	}
}

// TestALongAnswerIsNotCut: the limits are for each piece, a body's is over when the
// body is, and what the server does between two pieces has none.
func TestALongAnswerIsNotCut(t *testing.T) {
	const pieces = 5
	overBoth(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for range pieces {
			if !within(r, 2*limit) {
				return
			}
			_, _ = io.WriteString(w, "piece ")
			_ = http.NewResponseController(w).Flush()
		}
	}, func(t *testing.T, client *http.Client, url string) {
		for range 2 { // the second on the connection of the first
			began := time.Now()
			res, err := client.Post(url, "", strings.NewReader("body"))
			answer(t, res, err, strings.Repeat("piece ", pieces))
			if took := time.Since(began); took < 2*pieces*limit {
				t.Errorf("%s: it took %s", res.Proto, took)
			}
		}
	})
}

// slow is a body that has 100 bytes in each half of the limit.
type slow struct{ io.Reader }

func (s slow) Read(p []byte) (int, error) {
	<-time.After(limit / 2)
	return s.Reader.Read(p[:min(len(p), 100)])
}

// TestALongUploadIsNotCut: it takes longer than its answer may, which begins when it
// is there; and what the server then does with it has no limit either.
func TestALongUploadIsNotCut(t *testing.T) {
	overBoth(t, func(w http.ResponseWriter, r *http.Request) {
		body := deviceapi.PatientBody(w, r, limit)
		n, err := io.Copy(io.Discard, body)
		for range 2 { // some readers ask again
			_, _ = body.Read(make([]byte, 1))
		}
		if within(r, 3*limit) {
			_, _ = fmt.Fprint(w, n, err)
		}
	}, func(t *testing.T, client *http.Client, url string) {
		res, err := client.Post(url, "", slow{strings.NewReader(strings.Repeat("x", 1000))})
		answer(t, res, err, "1000 <nil>")
	})
}

// TestASlowDownloadIsNotCut, though another one on its connection, of which the device
// takes nothing, is.
func TestASlowDownloadIsNotCut(t *testing.T) {
	const pieces = 16 // of 1 MiB: more than a client's windows
	ended := make(chan string, 10)
	overBoth(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(w, io.LimitReader(zeros{}, pieces<<20))
		ended <- fmt.Sprintf("%s %v", r.URL.Path, err == nil)
	}, func(t *testing.T, client *http.Client, url string) {
		paused, err := client.Get(url + "/paused")
		if err != nil {
			t.Fatal(err)
		}
		defer paused.Body.Close()
		res, err := client.Get(url + "/slow")
		if err != nil {
			t.Fatal(err)
		}
		for i := range pieces {
			<-time.After(limit / 2)
			if n, err := io.CopyN(io.Discard, res.Body, 1<<20); err != nil {
				t.Fatalf("%s: %d bytes of piece %d, %v", res.Proto, n, i, err)
			}
		}
		_ = res.Body.Close()
		if first, second := <-ended, <-ended; first != "/paused false" || second != "/slow true" {
			t.Errorf("%s: %s, %s", res.Proto, first, second)
		}
	})
}

// TestTheEndOfAnAnswerHasALimitToo: what is in buffers when the handler has returned.
func TestTheEndOfAnAnswerHasALimitToo(t *testing.T) {
	overBoth(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 4<<20)) // all that the client's window over HTTP/2 takes
		_, _ = io.WriteString(w, "end")
	}, func(t *testing.T, client *http.Client, url string) {
		res, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * limit)
		if n, err := io.Copy(io.Discard, res.Body); err == nil {
			t.Errorf("%s: %d bytes came to a client that had taken nothing", res.Proto, n)
		}
		_ = res.Body.Close()
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
