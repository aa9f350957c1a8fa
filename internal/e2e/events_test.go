package e2e

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// eventKills is how often the server is killed in a short run.
const eventKills = 5

// TestEventsOutliveKills kills otad at random moments while devices and an operator
// make events, a webhook sends them and a program follows them. At the end both
// have every number of the feed, in order; the webhook may have repeated some.
func TestEventsOutliveKills(t *testing.T) {
	t.Parallel()
	seed, err := strconv.ParseUint(os.Getenv("SOAKSEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("SOAKSEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	s := newSite(t, nil, "--enroll-limit", "100000", "--log-level", "warn", "--webhook-allow", "127.0.0.1")
	box := newInbox(t)
	s.must("webhook", "create", box.server.URL, "--after", "0", "-q")
	watch := s.watchEvents()
	for _, v := range []string{"1.0", "1.1"} {
		s.image(v)
	}
	f := s.simulate(20, "--reconnect", "500ms", "--trial", "50ms", "--bad", "5%")
	began, rollouts, id := time.Now(), 0, ""
	for round := 0; round < eventKills || time.Since(began) < soakTime; round++ {
		if id == "" {
			id = s.rollout([]string{"1.0", "1.1"}[rollouts%2], "--stages", "10%,50%,100%", "--gate", "50%", "--quarantined")
			rollouts++
		}
		s.must("command", "run", "--all", "nothing", "--yes", "-q", "-o", "name") // which no device allows
		more := box.last() + 1 + random.Int64N(60)
		until(t, "events to be delivered", func() bool { return box.last() >= more || final(s.show(id).State) })
		s.server.kill()
		s.startServer()
		watch.goOn()
		if final(s.show(id).State) {
			id = ""
		}
		if t.Failed() {
			t.Fatalf("round %d of SOAKSEED=%d", round, seed)
		}
	}
	f.end()
	var end int64
	until(t, "all events to be everywhere", func() bool {
		var events []struct{ Seq int64 }
		s.get(&events, "event", "list", "-n", "1000000")
		end = events[len(events)-1].Seq
		if len(events) != int(end) {
			t.Fatalf("%d events up to number %d", len(events), end)
		}
		watch.goOn()
		return box.last() == end && watch.last() == end
	})
	t.Logf("%d events of %d rollouts, %d messages", end, rollouts, box.count())
	watch.proc.kill()
	s.check()
}

// inbox is a receiver that holds the messages of one webhook to their order.
type inbox struct {
	t      *testing.T
	server *httptest.Server
	mu     sync.Mutex
	high   int64 // all up to this number came
	n      int
}

func newInbox(t *testing.T) *inbox {
	b := &inbox{t: t}
	b.server = httptest.NewServer(b)
	t.Cleanup(b.server.Close)
	return b
}

func (b *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var m struct{ Data struct{ Seq string } }
	err := json.NewDecoder(r.Body).Decode(&m)
	if err != nil { // it was killed in the middle
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	b.high = follows(b.t, "the webhook", b.high, m.Data.Seq)
}

func (b *inbox) last() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.high
}

func (b *inbox) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n
}

// follows is how far a reader is that was told of a number; none may be left out.
func follows(t *testing.T, who string, high int64, text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n > high+1 {
		t.Errorf("%s was told of event %q after %d", who, text, high)
	}
	return max(high, n)
}

// watcher is otactl event watch, started again where it was when it has given up.
type watcher struct {
	s    *site
	proc *proc
}

func (s *site) watchEvents() *watcher {
	w := &watcher{s: s}
	w.start(0)
	return w
}

func (w *watcher) start(after int64) {
	w.s.t.Helper()
	w.proc = start(w.s.t, "otactl event watch", w.s.path("watch.jsonl"), w.s.operator(), bin+"/otactl", "event", "watch", "-o", "jsonl", "--after", strconv.FormatInt(after, 10))
}

// goOn starts the program again if it has ended.
func (w *watcher) goOn() {
	w.s.t.Helper()
	select {
	case <-w.proc.done:
		w.start(w.last())
	default:
	}
}

// last is the last number that was written, each right after the one before it.
func (w *watcher) last() (high int64) {
	w.s.t.Helper()
	for line := range strings.Lines(w.proc.text()) {
		var e struct{ Seq int64 }
		if !strings.HasSuffix(line, "}\n") || json.Unmarshal([]byte(line), &e) != nil {
			continue // a note, or one that is being written
		}
		high = follows(w.s.t, "the watcher", high, strconv.FormatInt(e.Seq, 10))
	}
	return high
}
