package http

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/agent"
	"pgregory.net/rapid"
)

const digest = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

var object = func() []byte {
	b := make([]byte, 100_000)
	for i := range b {
		b[i] = byte(i * 7 / 3)
	}
	return b
}()

func serveObject(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(object))
}

func readImage(w *world, t *testing.T, offset, length int64) ([]byte, error) {
	r, err := w.source.Image(t.Context(), digest, offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestImageRanges(t *testing.T) {
	w := newWorld(t, serveObject)
	size := int64(len(object))
	for _, s := range []span{{0, -1}, {0, size}, {0, 1}, {size - 1, 1}, {size - 1, -1}, {500, 0}, {17, 65536}} {
		end := s.offset + s.length
		if s.length < 0 {
			end = size
		}
		got, err := readImage(w, t, s.offset, s.length)
		if err != nil || !bytes.Equal(got, object[s.offset:end]) {
			t.Errorf("%+v: %d bytes, %v", s, len(got), err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		offset := rapid.Int64Range(0, size-1).Draw(rt, "offset")
		length := rapid.Int64Range(1, size-offset).Draw(rt, "length")
		got, err := readImage(w, t, offset, length)
		if err != nil || !bytes.Equal(got, object[offset:offset+length]) {
			rt.Fatalf("%d bytes, %v", len(got), err)
		}
	})
	for _, s := range []span{{size, 1}, {size + 5, -1}, {size - 1, 2}, {0, size + 1}, {-1, 5}, {1, 1<<63 - 1}} {
		if got, err := readImage(w, t, s.offset, s.length); err == nil {
			t.Errorf("%+v: accepted %d bytes", s, len(got))
		}
	}
}

// partial answers with this Content-Range and these bytes.
func partial(contentRange string, b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", contentRange)
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.WriteHeader(206)
		w.Write(b)
	}
}

func TestWrongRangesAreNeverAnImage(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"whole object":     func(w http.ResponseWriter, _ *http.Request) { w.Write(object[:2000]) },
		"no content range": partial("", object[100:200]),
		"other offset":     partial("bytes 0-99/100000", object[:100]),
		"shorter":          partial("bytes 100-198/100000", object[100:199]),
		"longer":           partial("bytes 100-200/100000", object[100:201]),
		"length differs":   partial("bytes 100-199/100000", object[100:150]),
		"outside its size": partial("bytes 100-199/150", object[100:200]),
		"reversed":         partial("bytes 199-100/100000", object[100:200]),
		"other unit":       partial("items 100-199/100000", object[100:200]),
		"two ranges":       partial("bytes 100-199,300-399/100000", object[100:200]),
		"negative":         partial("bytes -100-199/100000", object[100:200]),
		"past 64 bits":     partial("bytes 100-99999999999999999999/*", object[100:200]),
		"416":              status(416, ""),
		"html as a range": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			partial("bytes 100-199/100000", object[100:200])(w, r)
		},
		"gzip as a range": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			partial("bytes 100-199/100000", object[100:200])(w, r)
		},
		"truncated range": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 100-199/100000")
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(206)
			w.Write(object[100:150])
		},
		"chunked range": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 100-199/100000")
			w.WriteHeader(206)
			w.(http.Flusher).Flush()
			w.Write(object[100:200])
		},
		"redirect nowhere": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(307) },
		"redirect to a file": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(307)
		},
		"redirect with a user": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://a:b@store.example/x")
			w.WriteHeader(307)
		},
		"redirect too long": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://store.example/"+strings.Repeat("x", maxLocation))
			w.WriteHeader(307)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, h)
			if got, err := readImage(w, t, 100, 100); err == nil {
				t.Errorf("accepted %d bytes", len(got))
			}
		})
	}
	for _, tc := range wrongReplies {
		t.Run("whole: "+tc.name, func(t *testing.T) {
			w := newWorld(t, tc.h)
			if got, err := readImage(w, t, 0, -1); !errors.Is(err, tc.want) && !errors.Is(err, ErrReply) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	w := newWorld(t, partial("bytes 0-99/100", object[:100]))
	if got, err := readImage(w, t, 0, -1); !errors.Is(err, ErrReply) {
		t.Errorf("a part for the whole: %d bytes, %v", len(got), err)
	}
}

// An endless body can not go past what was asked for.
func TestEndlessBodyEndsAtTheRange(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", "1000000000000")
		for {
			if _, err := rw.Write(object); err != nil {
				return
			}
		}
	})
	if got, err := readImage(w, t, 0, 1000); err != nil || !bytes.Equal(got, object[:1000]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// stored is otad redirecting to a store.
func stored(t *testing.T, store http.HandlerFunc) (w *world, asked *int) {
	t.Helper()
	asked = new(int)
	w = newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		*asked++
		http.Redirect(rw, r, fmt.Sprintf("https://%s/bucket/x?X-Signature=s%d", storeHost, *asked), http.StatusTemporaryRedirect)
	})
	w.net.serve(t, storeHost+":443", &tls.Config{
		Certificates: []tls.Certificate{w.ca.server(t, storeHost)},
		ClientAuth:   tls.RequestClientCert,
	}, store)
	return w, asked
}

func TestStoreNeverSeesTheClientCertificate(t *testing.T) {
	w, asked := stored(t, func(rw http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 {
			t.Error("the store saw the client certificate")
		}
		serveObject(rw, r)
	})
	for range 3 {
		if got, err := readImage(w, t, 1000, 5000); err != nil || !bytes.Equal(got, object[1000:6000]) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if *asked != 1 {
		t.Errorf("otad was asked %d times for one address", *asked)
	}
}

func TestPlainStoreIsGoodEnough(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "http://"+storeHost+"/x", http.StatusFound)
	})
	w.net.serve(t, storeHost+":80", nil, http.HandlerFunc(serveObject))
	if got, err := readImage(w, t, 0, -1); err != nil || !bytes.Equal(got, object) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestExpiredAddressIsAskedForAgain(t *testing.T) {
	good := "s1"
	w, asked := stored(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("X-Signature") != good {
			status(403, "<Error><Code>AccessDenied</Code></Error>")(rw, r)
			return
		}
		serveObject(rw, r)
	})
	for range 2 {
		if _, err := readImage(w, t, 0, 10); err != nil {
			t.Fatal(err)
		}
	}
	good = "s2" // s1 has expired
	if got, err := readImage(w, t, 10, 10); err != nil || !bytes.Equal(got, object[10:20]) || *asked != 2 {
		t.Errorf("%d bytes, %v, otad asked %d times", len(got), err, *asked)
	}
	good = "none" // nothing that otad gives is good: one question, no loop
	_, err := readImage(w, t, 0, 10)
	if !errors.Is(err, ErrDenied) || *asked != 3 {
		t.Errorf("%v, otad asked %d times", err, *asked)
	}
	if strings.Contains(fmt.Sprint(err), "Signature") {
		t.Errorf("the error shows a signed address: %v", err)
	}
}

func TestRedirectLoopsEnd(t *testing.T) {
	hops := 0
	var w *world
	w, asked := stored(t, func(rw http.ResponseWriter, r *http.Request) {
		hops++
		http.Redirect(rw, r, fmt.Sprintf("/hop%d", hops), http.StatusFound)
	})
	if _, err := readImage(w, t, 0, -1); !errors.Is(err, ErrReply) || hops != maxRedirects || *asked != 1 {
		t.Errorf("%v after %d hops, otad asked %d times", err, hops, *asked)
	}
	hops = 0 // back to otad, which wants a certificate that is not shown any more
	w2 := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		hops++
		http.Redirect(rw, r, r.URL.Path, http.StatusFound)
	})
	if _, err := readImage(w2, t, 0, -1); err == nil || hops > maxRedirects+1 {
		t.Errorf("%v after %d hops", err, hops)
	}
}

func TestStoreOutageIsUnreachable(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "https://nowhere.example/x?X-Signature=secret", http.StatusTemporaryRedirect)
	})
	_, err := readImage(w, t, 0, -1)
	if !errors.Is(err, agent.ErrUnreachable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

// Whoever frames the body, fewer bytes than promised never end in io.EOF.
func TestExactNeverEndsEarly(t *testing.T) {
	for size := range 10 {
		e := &exact{ReadCloser: io.NopCloser(bytes.NewReader(object[:size])), left: 5, url: new(url.URL)}
		got, err := io.ReadAll(e)
		if size < 5 && !errors.Is(err, io.ErrUnexpectedEOF) || size >= 5 && (err != nil || len(got) != 5) {
			t.Errorf("of %d bytes: %d, %v", size, len(got), err)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/100")
	f.Add("bytes 5-5/*")
	f.Add("bytes */100")
	f.Add("bytes 9-1/5")
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := parseContentRange(s)
		if err != nil {
			return
		}
		if first < 0 || last < first || (total >= 0 && last >= total) {
			t.Fatalf("%q gives %d-%d/%d", s, first, last, total)
		}
	})
}
