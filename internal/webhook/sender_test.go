package webhook

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/otad/otad/internal/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSignature holds the signature against the example that the libraries of
// Standard Webhooks are tested with.
func TestSignature(t *testing.T) {
	secret, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	id, at, body := "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 987654321), []byte(`{"test": 2432232314}`)
	const want = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	if got := signature(secret, id, at, body); got != want {
		t.Errorf("signed %s, want %s", got, want)
	}
	if got := signatures([][]byte{[]byte("other"), secret}, id, at, body); !strings.HasSuffix(got, " "+want) || len(strings.Fields(got)) != 2 {
		t.Errorf("signed by two: %s", got)
	}
}

func sender(t *testing.T, allow ...string) *Sender {
	t.Helper()
	allowed, err := ParseAllowed(allow)
	if err != nil {
		t.Fatal(err)
	}
	s := New(allowed, "otad/test")
	t.Cleanup(func() {
		s.secure.CloseIdleConnections()
		s.plain.CloseIdleConnections()
	})
	return s
}

// trust has the sender believe the receiver's certificate.
func (s *Sender) trust(receiver *httptest.Server) {
	pool := x509.NewCertPool()
	pool.AddCert(receiver.Certificate())
	s.secure.Transport.(*http.Transport).TLSClientConfig.RootCAs = pool
}

func message(url string) fleet.WebhookMessage {
	return fleet.WebhookMessage{URL: url, ID: "w-1-7", At: time.Unix(1614265330, 0), Body: []byte(`{"a":"b"}`), Secrets: [][]byte{[]byte("one"), []byte("two")}}
}

// TestSend: a receiver over TLS gets the message with its headers, and its answer
// is told.
func TestSend(t *testing.T) {
	requests := make(chan *http.Request, 10)
	bodies := make(chan string, 10)
	receiver := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		requests <- r
		bodies <- string(b)
		w.Header().Set("Retry-After", "120")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer receiver.Close()
	s := sender(t, "127.0.0.1")
	s.trust(receiver)
	m := message(receiver.URL + "/hook?a=b")
	answer, err := s.Send(t.Context(), m)
	if err != nil || answer.Status != 429 || answer.RetryAfter != 2*time.Minute {
		t.Fatalf("answer %+v, %v", answer, err)
	}
	r, body := <-requests, <-bodies
	for name, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "otad/test", "Webhook-Id": m.ID, "Webhook-Timestamp": "1614265330",
		"Webhook-Signature": signature(m.Secrets[0], m.ID, m.At, m.Body) + " " + signature(m.Secrets[1], m.ID, m.At, m.Body),
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if body != string(m.Body) || r.Method != http.MethodPost || r.RequestURI != "/hook?a=b" {
		t.Errorf("%s %s: %s", r.Method, r.RequestURI, body)
	}
}

// TestBadReceivers: none of them is believed, followed or waited for without a
// bound, and no error repeats the URL.
func TestBadReceivers(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	released := make(chan struct{})
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		case "/endless":
			for i := 0; ; i++ {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
				if i > 100 {
					t.Error("the answer was read to its end")
					return
				}
			}
		case "/headers":
			w.Header().Set("X", strings.Repeat("a", headerBytes+1))
		case "/silent":
			select {
			case <-r.Context().Done():
			case <-released:
			}
		}
	}))
	defer receiver.Close()
	defer close(released)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a certificate of nobody was believed") }))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()

	s := sender(t, "127.0.0.1")
	for path, want := range map[string]int{"/redirect": 307, "/endless": 200} {
		if answer, err := s.Send(t.Context(), message(receiver.URL+path)); err != nil || answer.Status != want {
			t.Errorf("%s: %+v, %v", path, answer, err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for url, ctx := range map[string]context.Context{
		receiver.URL + "/headers?secret": t.Context(), receiver.URL + "/silent?secret": short, secure.URL + "/?secret": t.Context(),
		"http://127.0.0.1:1/?secret": t.Context(), "https://no.such.name.invalid/?secret": t.Context(),
	} {
		if answer, err := s.Send(ctx, message(url)); err == nil || answer.Status != 0 || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %+v, %v", url, answer, err)
		}
	}
}

// TestNoProxy: a proxy of the environment would dial in our place, unchecked.
func TestNoProxy(t *testing.T) {
	for _, c := range []*http.Client{sender(t).secure, sender(t).plain} {
		if c.Transport.(*http.Transport).Proxy != nil {
			t.Error("there is a proxy")
		}
	}
}

// nameserver answers every question for an address with the next of these.
func nameserver(t *testing.T, addresses ...[4]byte) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		b, n := make([]byte, 1500), 0
		for {
			size, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			end := 12 // of the question: the name, its type and class
			for b[end] != 0 {
				end += int(b[end]) + 1
			}
			end += 5
			answers := byte(0)
			reply := append([]byte{}, b[:min(end, size)]...)
			if b[end-3] == 1 { // A
				answers = 1
				reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				reply = append(reply, addresses[min(n, len(addresses)-1)][:]...)
				n++
			}
			copy(reply[2:], []byte{0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0})
			_, _ = conn.WriteTo(reply, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// TestDialledAddress: however this machine is written, by whatever name it is
// found, and even if the name was of another address a moment ago, nobody is
// called who was not allowed by name.
func TestDialledAddress(t *testing.T) {
	var called atomic.Int32
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			called.Add(1)
			_ = c.Close()
		}
	}()
	defer func() { _ = l.Close(); <-done }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	forms := []string{
		"127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "017700000001", "0177.0.0.1", "127.000.000.001", "0", "0.0.0.0", "127.0.0.1.", "localhost", "localhost.", "LOCALHOST",
		"[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[fe80::1%25lo]", "[0000::1]",
		"rebound.example", "two.example",
	}
	s := sender(t)
	resolver := nameserver(t, [4]byte{1, 1, 1, 1}, [4]byte{127, 0, 0, 1})
	if addresses, err := resolver.LookupIP(t.Context(), "ip4", "rebound.example"); err != nil || addresses[0].String() != "1.1.1.1" {
		t.Fatalf("the nameserver: %v, %v", addresses, err)
	}
	s.secure = client(net.Dialer{Resolver: resolver}, s.allowed.check)
	s.plain = client(net.Dialer{Resolver: resolver}, s.allowedByName)
	tried := 0
	for _, scheme := range []string{"http", "https"} {
		for _, host := range forms {
			tried++
			if _, err := s.Send(t.Context(), message(scheme+"://"+host+":"+port+"/")); err == nil {
				t.Errorf("%s://%s was reached", scheme, host)
			}
		}
	}
	if n := called.Load(); n > 0 || tried < 50 {
		t.Errorf("%d calls by %d forms", n, tried)
	}
	_, err = s.Send(t.Context(), message("https://rebound.example:"+port))
	if !errors.Is(err, errAddress) || !strings.Contains(err.Error(), "127.0.0.1 is this machine: webhooks may not reach it, unless otad runs with --webhook-allow 127.0.0.1/32") {
		t.Errorf("a name that leads here: %v", err)
	}
	// The same name is reached once the address is allowed: what kept it off was the
	// check, and nothing else.
	s = sender(t, "127.0.0.0/8")
	s.secure = client(net.Dialer{Resolver: resolver}, s.allowed.check)
	if _, err := s.Send(t.Context(), message("https://rebound.example:"+port)); err == nil || called.Load() == 0 {
		t.Errorf("allowed, and not called: %v", err)
	}
}

func TestAdmit(t *testing.T) {
	some := []string{"127.0.0.0/8", "10.1.0.0/16"}
	for _, c := range []struct {
		url   string
		allow []string
		may   bool
	}{
		{"https://example.com", nil, true}, {"https://1.1.1.1", nil, true}, {"https://10.0.0.1", nil, false}, {"https://localhost", nil, false}, {"https://[::1]", nil, false},
		{"https://[::ffff:10.0.0.1]:8443", nil, false}, {"http://example.com", nil, false}, {"http://1.1.1.1", nil, false}, {"http://127.0.0.1", nil, false},
		{"http://127.0.0.1:8080", some, true}, {"http://localhost", some, true}, {"https://10.1.2.3", some, true}, {"http://10.1.2.3", some, true},
		{"http://1.1.1.1", some, false}, {"https://10.2.0.1", some, false}, {"http://hooks.internal", some, true}, // judged when it is dialled
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		err = sender(t, c.allow...).Admit(u)
		if (err == nil) != c.may || err != nil && (!errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), "--webhook-allow")) {
			t.Errorf("%s with %q: %v", c.url, c.allow, err)
		}
	}
}

// TestPlainOnlyToWhatIsAllowed: http to a public address is refused when it is
// dialled, although https is not.
func TestPlainOnlyToWhatIsAllowed(t *testing.T) {
	s := sender(t, "127.0.0.0/8")
	resolver := nameserver(t, [4]byte{1, 1, 1, 1})
	s.plain = client(net.Dialer{Resolver: resolver}, s.allowedByName)
	if _, err := s.Send(t.Context(), message("http://hooks.internal/")); !errors.Is(err, errAddress) {
		t.Errorf("sent in the clear: %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "120": 2 * time.Minute, "2147483647": 2147483647 * time.Second, "2147483648": 0, "-1": 0, "1.5": 0, "1e3": 0, " 5": 0, "soon": 0,
		"Mon, 04 May 2026 03:12:01 GMT": 10 * time.Minute, "Mon, 04 May 2026 03:02:00 GMT": 0, "Monday, 04-May-26 03:03:01 GMT": time.Minute,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// FuzzRetryAfter: whatever a receiver says, it is no time of the past.
func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"120", "Mon, 04 May 2026 03:12:01 GMT", "99999999999999999999", "Mon, 04 May 9999 03:12:01 GMT"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if d := retryAfter(text, time.Unix(1614265330, 0)); d < 0 {
			t.Error(fmt.Sprint(text, d))
		}
	})
}
