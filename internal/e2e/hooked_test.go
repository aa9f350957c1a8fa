package e2e

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
)

// hooked is the receiver of one webhook that holds every message to what
// docs/rollouts.md promises: signed, in order, none left out, and the same again when it
// comes again. It fails when it is told to.
type hooked struct {
	t      *testing.T
	server *httptest.Server
	id     string
	secret []byte

	mu     sync.Mutex
	killed time.Time          // when its sender was; zero: another one has sent since
	high   int64              // all up to this number were taken
	bodies map[int64]string   // of every message that came, taken or not
	again  int                // messages that came more than once
	fails  []http.HandlerFunc // what becomes of the next messages that come for the first time
}

// newHooked makes a receiver and the webhook of all events for it.
func newHooked(s *site) *hooked {
	s.t.Helper()
	h := &hooked{t: s.t, bodies: map[int64]string{}}
	h.mu.Lock() // until its secret is known
	defer h.mu.Unlock()
	h.server = httptest.NewServer(h)
	s.t.Cleanup(h.server.Close)
	var made struct{ ID, Secret string }
	s.get(&made, "webhook", "create", h.server.URL, "--after", "0", "-q")
	var err error
	if h.secret, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(made.Secret, "whsec_")); err != nil || len(h.secret) == 0 {
		s.t.Fatalf("secret %q: %v", made.Secret, err)
	}
	h.id = made.ID
	return h
}

func (h *hooked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil { // its sender was killed in the middle
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	seq, again := h.came(r, body)
	var fail http.HandlerFunc
	if !again && len(h.fails) > 0 {
		fail, h.fails = h.fails[0], h.fails[1:]
	} else {
		h.high = max(h.high, seq)
	}
	h.mu.Unlock()
	if fail != nil {
		fail(w, r)
	}
}

// came holds a message against the signature and what came before.
func (h *hooked) came(r *http.Request, body []byte) (seq int64, again bool) {
	id, at := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
	mac := hmac.New(sha256.New, h.secret)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want {
		h.t.Errorf("message %s is signed %q, want %q", id, r.Header.Get("webhook-signature"), want)
	}
	if !h.killed.IsZero() {
		h.t.Logf("the webhook goes on %s after the kill", time.Since(h.killed).Round(time.Millisecond))
		h.killed = time.Time{}
	}
	seq = h.seq(body)
	if want := fmt.Sprintf("%s-%d", h.id, seq); id != want {
		h.t.Errorf("event %d came as message %q, want %q", seq, id, want)
	}
	before, again := h.bodies[seq]
	if h.bodies[seq] = string(body); again && before != string(body) {
		h.t.Errorf("event %d came as %s and then as %s", seq, before, body)
	}
	if again {
		h.again++
	}
	if seq > h.high+1 {
		h.t.Errorf("event %d came while %d is the next one", seq, h.high+1)
	}
	return seq, again
}

func (h *hooked) seq(body []byte) int64 {
	var m struct{ Data struct{ Seq string } }
	err := json.Unmarshal(body, &m)
	seq, bad := strconv.ParseInt(m.Data.Seq, 10, 64)
	if err != nil || bad != nil {
		h.t.Errorf("message %s: %v", body, err)
	}
	return seq
}

// outlives has the receiver know that its sender is dead, and refuse the next one first
// and then leave it without an answer.
func (h *hooked) outlives() {
	h.mu.Lock()
	h.killed = time.Now()
	h.mu.Unlock()
	h.fail(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not now", http.StatusInternalServerError) })
	h.hang()
}

// fail has the next message not be taken.
func (h *hooked) fail(how http.HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails = append(h.fails, how)
}

// hang has the next message stay without an answer for as long as its sender waits.
// held is closed when it has come, over when its sender is gone.
func (h *hooked) hang() (held, over chan struct{}) {
	held, over = make(chan struct{}), make(chan struct{})
	h.fail(func(_ http.ResponseWriter, r *http.Request) {
		close(held)
		<-r.Context().Done()
		close(over)
	})
	return held, over
}

func closed(c chan struct{}) func() bool {
	return func() bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
}

func (h *hooked) last() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.high
}

// heard waits until the receiver has taken every event there is, though it has failed.
func (s *site) heard(h *hooked) {
	s.t.Helper()
	var events []struct{ Seq int64 }
	s.get(&events, "event", "list", "-n", "1000000")
	end := events[len(events)-1].Seq
	for _, failure := range []string{"the answer 500", "the answer that does not come"} {
		high := h.last()
		until(s.t, "the webhook to go on behind "+failure, func() bool { return h.last() > high || h.last() == end })
	}
	until(s.t, "the webhook to be told of all events", func() bool { return h.last() == end })
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.fails) > 0 || h.again < 3 { // what was held, refused and left without an answer
		s.t.Errorf("%d failures are left, and %d messages came again", len(h.fails), h.again)
	}
	s.t.Logf("%d events, %d came again", end, h.again)
}

// owners tells in the database which otad delivers: no command shows it.
type owners struct {
	t  *testing.T
	db *sql.DB
}

func newOwners(t *testing.T, url string) owners {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return owners{t, db}
}

// text is one text that a query finds; empty: there is none.
func (o owners) text(query string, args ...any) string {
	o.t.Helper()
	var text string
	if err := o.db.QueryRowContext(context.Background(), query, args...).Scan(&text); err != nil && err != sql.ErrNoRows {
		o.t.Fatal(err)
	}
	return text
}

// only is the name of the only otad there is.
func (o owners) only() (name string) {
	o.t.Helper()
	until(o.t, "the first otad to say that it is there", func() bool {
		name = o.text(`SELECT name FROM replicas`)
		return name != ""
	})
	return name
}

func (o owners) of(webhook string) string {
	o.t.Helper()
	return o.text(`SELECT owner FROM webhooks WHERE id = $1 AND owner <> ''`, webhook)
}

// held waits until another otad than the named one is in the middle of a delivery, and
// returns its name and what is closed when it gives up. That otad is b.
func (o owners) held(h *hooked, b *site, not string) (name string, over chan struct{}) {
	o.t.Helper()
	for {
		for o.of(h.id) == not { // it gives the claim back, and who resumes it is the first to see it
			b.must("webhook", "pause", h.id, "-q")
			until(o.t, "the claim to be given back", func() bool { return o.of(h.id) != not })
			b.must("webhook", "resume", h.id, "-q")
		}
		held, over := h.hang()
		until(o.t, "a message to come", closed(held))
		if name = o.of(h.id); name != not {
			return name, over
		}
		until(o.t, "the message to be given up", closed(over))
	}
}
