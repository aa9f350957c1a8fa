package http

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/agent"
)

var content = bytes.Repeat([]byte("signed metadata "), 64) // 1 KiB

func TestSmallFilesComeFromTheirPlaces(t *testing.T) {
	var paths []string
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if cn := r.TLS.PeerCertificates[0].Subject.CommonName; cn != deviceID {
			t.Errorf("client certificate of %s", cn)
		}
		if e := r.Header.Get("Accept-Encoding"); e != "identity" {
			t.Errorf("accepts %q", e)
		}
		paths = append(paths, r.URL.EscapedPath())
		rw.Write(content)
	})
	for _, name := range []string{"timestamp.json", "12.root.json"} {
		if got, err := w.source.Metadata(t.Context(), name, 1<<20); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	sum := [32]byte{0xab, 31: 0xcd}
	if got, err := w.source.Target(t.Context(), "gateway/1.2+x.idx", sum, int64(len(content))); err != nil || !bytes.Equal(got, content) {
		t.Errorf("target: %d bytes, %v", len(got), err)
	}
	want := []string{"/metadata/timestamp.json", "/metadata/12.root.json", "/targets/gateway/ab" + strings.Repeat("00", 30) + "cd.1.2+x.idx"}
	if fmt.Sprint(paths) != fmt.Sprint(want) {
		t.Errorf("asked for %v\nwant %v", paths, want)
	}
}

func TestNamesThatLeaveTheirPlaceAreNotAskedFor(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s", r.URL) })
	for _, name := range []string{"", ".", "..", "../x", "a/b", "/a"} {
		if _, err := w.source.Metadata(t.Context(), name, 10); err == nil {
			t.Errorf("metadata %q accepted", name)
		}
	}
	for _, name := range []string{"", ".", "..", "../x", "a/../b", "/a", "a//b"} {
		if _, err := w.source.Target(t.Context(), name, [32]byte{}, 10); err == nil {
			t.Errorf("target %q accepted", name)
		}
	}
	if _, err := w.source.Image(t.Context(), "../enroll", 0, -1); err == nil {
		t.Error("image digest accepted")
	}
}

// wrongReplies are answers that must never pass for a file. Each would give the
// right bytes, or some bytes, to a careless client.
var wrongReplies = []struct {
	name string
	h    http.HandlerFunc
	want error
}{
	{"403", status(403, ""), ErrDenied},
	{"401 json", status(401, `{"error":{"code":"denied","message":"certificate revoked"}}`), ErrDenied},
	{"404", status(404, "not here"), agent.ErrNoSuchFile},
	{"409", status(409, ""), ErrConflict},
	{"429", status(429, ""), agent.ErrUnreachable},
	{"500", status(500, string(content)), agent.ErrUnreachable},
	{"502 html", status(502, "<html>"), agent.ErrUnreachable},
	{"204", status(204, ""), ErrReply},
	{"205", status(205, ""), ErrReply},
	{"300", status(300, ""), ErrReply},
	{"304", status(304, ""), ErrReply},
	{"416", status(416, ""), ErrReply},
	{"418 with the content", status(418, string(content)), ErrReply},
	{"200 html", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(content)
	}, ErrReply},
	{"200 multipart", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
		w.Write(content)
	}, ErrReply},
	{"gzip nobody asked for", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		z.Write(content)
		z.Close()
	}, ErrReply},
	{"truncated", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1024")
		w.Write(content[:1000])
	}, agent.ErrUnreachable},
	{"truncated chunks", func(w http.ResponseWriter, _ *http.Request) {
		w.Write(content[:1000])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}, agent.ErrUnreachable},
	{"no length and no end", raw("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + string(content)), ErrReply},
	{"http/1.0 without length", raw("HTTP/1.0 200 OK\r\n\r\n" + string(content)), ErrReply},
	{"not http", raw("220 mail.example ESMTP\r\n"), agent.ErrUnreachable},
	{"empty", raw(""), agent.ErrUnreachable},
	{"two lengths", raw("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"), agent.ErrUnreachable},
	{"endless header", raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n"), agent.ErrUnreachable},
}

func status(code int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if strings.HasPrefix(text, "{") {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(code)
		if code != 204 && code != 304 {
			io.WriteString(w, text)
		}
	}
}

// raw answers with these bytes and hangs up.
func raw(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		line := c.(*tls.Conn).NetConn() // no farewells over it: a pipe would wait for them
		var drained sync.WaitGroup
		drained.Go(func() { io.Copy(io.Discard, line) })
		io.WriteString(c, text)
		line.Close()
		drained.Wait()
	}
}

func TestWrongRepliesAreNeverAFile(t *testing.T) {
	for _, tc := range wrongReplies {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.h)
			got, err := w.source.Metadata(t.Context(), "timestamp.json", 4096)
			if err == nil || got != nil {
				t.Fatalf("accepted %d bytes", len(got))
			}
			if !errors.Is(err, tc.want) {
				t.Fatalf("%v\nwant %v", err, tc.want)
			}
		})
	}
}

func TestErrorCarriesTheServersWords(t *testing.T) {
	w := newWorld(t, status(403, `{"error":{"code":"denied","message":"device gw-1 is\u001b[31m revoked"}}`))
	_, err := w.source.Metadata(t.Context(), "timestamp.json", 4096)
	if err == nil || !strings.Contains(err.Error(), "device gw-1 is [31m revoked (denied)") {
		t.Errorf("%v", err)
	}
}

func TestMetadataIsNotRedirected(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		asked := 0
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			if asked++; asked > 1 {
				rw.Write(content)
				return
			}
			http.Redirect(rw, r, "/elsewhere", code)
		})
		if got, err := w.source.Metadata(t.Context(), "timestamp.json", 4096); !errors.Is(err, ErrReply) || got != nil || asked != 1 {
			t.Errorf("%d: %d bytes, %v, %d requests", code, len(got), err, asked)
		}
	}
}

// A body longer than the limit is refused whether it says so or not, and what
// is taken from it stays within the limit.
func TestSizeLimit(t *testing.T) {
	for _, tc := range []struct {
		name    string
		size    int
		chunked bool
		limit   int64
		ok      bool
	}{
		{"at the limit", 5000, false, 5000, true},
		{"at the limit, chunked", 5000, true, 5000, true},
		{"one over", 5001, false, 5000, false},
		{"one over, chunked", 5001, true, 5000, false},
		{"empty, limit 0", 0, false, 0, true},
		{"one, limit 0", 1, true, 0, false},
		{"far over, chunked", 1 << 20, true, 5000, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
				if tc.chunked {
					rw.(http.Flusher).Flush()
				}
				rw.Write(make([]byte, tc.size))
			})
			got, err := w.source.Metadata(t.Context(), "1.root.json", tc.limit)
			if tc.ok != (err == nil) || (tc.ok && len(got) != tc.size) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if int64(cap(got)) > tc.limit {
				t.Errorf("holds %d bytes for a limit of %d", cap(got), tc.limit)
			}
			if !tc.ok && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"17":                            17 * time.Second,
		"-3":                            0,
		"99999999":                      MaxRetryAfter,
		"soon":                          0,
		"Tue, 01 Jan 2030 00:00:40 GMT": 40 * time.Second,
		"Mon, 31 Dec 2029 00:00:00 GMT": 0,
	} {
		if got := retryAfter(value, at); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
	w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Retry-After", "33")
		rw.WriteHeader(503)
	})
	_, err := w.source.Metadata(t.Context(), "timestamp.json", 10)
	var wait *RetryError
	if !errors.As(err, &wait) || wait.After != 33*time.Second || !errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

func TestUnreachable(t *testing.T) {
	w := newWorld(t, status(200, "x"))
	delete(w.net.hosts, serverHost+":443")
	if _, err := w.source.Metadata(t.Context(), "timestamp.json", 10); !errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.source.Metadata(ctx, "timestamp.json", 10); !errors.Is(err, context.Canceled) || errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("cancelled: %v", err)
	}
}

// A server with a certificate of another CA is not otad, even if the system
// would trust it.
func TestOtherCAIsRefused(t *testing.T) {
	w := newWorld(t, status(200, "x"))
	other := newCA(t, "another root")
	s, err := New(Config{ServerURL: "https://" + serverHost, CA: other.cert, Certificate: w.source.cfg.Certificate, Dial: w.net.dial})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := s.Metadata(t.Context(), "timestamp.json", 10); !errors.Is(err, agent.ErrUnreachable) || got != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestServerAddress(t *testing.T) {
	for _, bad := range []string{"", "otad.example", "http://otad.example", "https://", "https://u:p@otad.example", "https://otad.example?x=1", "mqtts://x"} {
		if _, err := parseServerURL(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

// Each of these keeps a careless client waiting for ever; ours is done in
// bounded time, for metadata and for images.
func TestSlowServers(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	drip := func(bytesPerSecond int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for left := 1000000; left > 0; left -= bytesPerSecond {
				select {
				case <-r.Context().Done():
					return
				case <-tick.C:
					if _, err := w.Write(make([]byte, min(left, bytesPerSecond))); err != nil {
						return
					}
					w.(http.Flusher).Flush()
				}
			}
		}
	}
	for _, tc := range []struct {
		name   string
		h      http.HandlerFunc
		want   error
		within time.Duration
	}{
		{"no answer", hang, agent.ErrUnreachable, requestTimeout},
		{"header, then nothing", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, agent.ErrSlow, RateWindow},
		{"one byte a second", drip(1), agent.ErrSlow, RateWindow + time.Second},
		{"just under the rate", drip(MinRate - 20), agent.ErrSlow, RateWindow + time.Second},
		{"just over the rate", drip(MinRate + 40), nil, 1000 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tc.h)
				start := time.Now()
				got, err := w.source.Metadata(t.Context(), "9.targets.json", 1<<20)
				if tc.want != nil && (!errors.Is(err, tc.want) || got != nil) || tc.want == nil && (err != nil || len(got) != 1000000) {
					t.Errorf("metadata: %d bytes, %v", len(got), err)
				}
				if d := time.Since(start); d > tc.within {
					t.Errorf("metadata: took %s", d)
				}
				start = time.Now()
				r, err := w.source.Image(t.Context(), digest, 0, -1)
				if err == nil {
					_, err = io.Copy(io.Discard, r)
					r.Close()
				}
				if !errors.Is(err, tc.want) {
					t.Errorf("image: %v", err)
				}
				if d := time.Since(start); d > tc.within {
					t.Errorf("image: took %s", d)
				}
			})
		})
	}
}

// The time our side takes is not the peer's fault.
func TestSlowReaderIsNotASlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "100000")
			rw.Write(make([]byte, 100_000))
		})
		r, err := w.source.Image(t.Context(), digest, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		total, buf := 0, make([]byte, 1000)
		for {
			n, err := r.Read(buf)
			total += n
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("after %d bytes: %v", total, err)
			}
			<-time.After(90 * time.Second)
		}
		if total != 100_000 {
			t.Errorf("%d bytes", total)
		}
	})
}

func TestCancelEndsABlockedRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", "1000")
			rw.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		ctx, cancel := context.WithCancel(t.Context())
		r, err := w.source.Image(ctx, digest, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		time.AfterFunc(5*time.Second, cancel)
		start := time.Now()
		_, err = io.ReadAll(r)
		if !errors.Is(err, context.Canceled) || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}
