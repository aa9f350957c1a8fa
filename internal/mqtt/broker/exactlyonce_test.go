package broker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/mqtt/packet"
)

// history is a store that remembers what it held after each write: what a new
// process would find after a kill at any time.
type history struct {
	memory
	mu   sync.Mutex
	past []*memory
}

func newHistory() *history { return &history{memory: memory{state: map[string][]byte{}}} }

func (h *history) SaveState(ctx context.Context, set map[string][]byte) error {
	err := h.memory.SaveState(ctx, set)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.past = append(h.past, h.killed())
	return err
}

func (h *history) all() []*memory {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.past)
}

func (w *wire) subscribe2(filters ...string) {
	w.t.Helper()
	body := []byte{0, 9, 0}
	for _, f := range filters {
		body = join(body, str(f), []byte{2})
	}
	w.send(framed(0x82, body))
	w.expect(suback)
}

// until takes and acknowledges what comes, up to the payload last, and returns
// how often each payload came.
func (w *wire) until(last string) map[string]int {
	w.t.Helper()
	got := map[string]int{}
	for {
		h, body := w.readAll()
		switch h.Type {
		case packet.PUBLISH:
			p, err := packet.DecodePublish(h.Flags, body, packet.V5)
			if err != nil {
				w.t.Fatal(err)
			}
			if p.QoS == 2 {
				w.ack(packet.PUBREC, p.ID)
			} else {
				w.ack(packet.PUBACK, p.ID)
			}
			if string(p.Payload) == last {
				return got
			}
			got[string(p.Payload)]++
		case packet.PUBREL:
			w.ack(packet.PUBCOMP, uint16(body[0])<<8|uint16(body[1]))
		case packet.PUBCOMP, packet.PUBACK, packet.PUBREC:
		default:
			w.t.Fatalf("packet %d: % x", h.Type, body)
		}
	}
}

// crowd starts a broker with the sessions away, not connected, and slow, connected
// with a full queue, both subscribed to "a" and "end" with QoS 2.
func crowd(t *testing.T, store Store) (b *Broker, slow *wire) {
	t.Helper()
	b = openPlain(t, store, func(c *Config) { c.Limits.Queued, c.Limits.Inflight = 2, 1 })
	away := join5(t, b, "away")
	away.subscribe2("a", "end")
	away.drop()
	offline(t, b, 0)
	slow = join5(t, b, "slow")
	slow.subscribe2("a", "fill", "end")
	fill := dialPlain(t, b)
	fill.mustConnect("fill")
	for i := range 3 {
		fill.mustPublish("fill", 1, fmt.Sprint("fill", i))
	}
	return b, slow
}

// awaitWaiting waits until a publisher waits for room in the queue of a client.
func awaitWaiting(t *testing.T, b *Broker, id string) {
	t.Helper()
	must(t, waitFor(func() bool {
		b.mu.Lock()
		s := b.sessions["c/open/"+id]
		b.mu.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.space != nil
	}))
}

// A QoS 2 message reaches each session once, whenever the process is killed and
// whatever the publisher sends again, even if one of its takers lets it wait.
func TestExactlyOnceOverAKillAtAnyTime(t *testing.T) {
	store := newHistory()
	b, slow := crowd(t, store)
	pub := join5(t, b, "pub")
	b.journal.flush()
	before := len(store.all())
	pub.publish("a", 7, 2<<1|1, "once")
	awaitWaiting(t, b, "slow")
	b.journal.flush()
	slow.ack(packet.PUBACK, slow.receive().ID)
	if rec := pub.expect(5); len(rec) > 2 {
		t.Fatalf("PUBREC % x", rec)
	}
	received := len(store.all())
	pub.ack(packet.PUBREL, 7)
	pub.expect(7)
	b.journal.flush()
	for n, found := range store.all() {
		if n < before-1 {
			continue
		}
		b := openPlain(t, found, nil)
		pub := join5(t, b, "pub")
		if n < received {
			pub.publish("a", 7, 2<<1|8|1, "once")
			pub.expect(5)
		}
		pub.ack(packet.PUBREL, 7)
		pub.expect(7)
		pub.mustPublish("end", 1, "end")
		for _, id := range []string{"away", "slow"} {
			if got := join5(t, b, id).until("end"); got["once"] != 1 {
				t.Errorf("killed after write %d, published after %d, received at %d: %s got it %d times", n+1, before, received, id, got["once"])
			}
		}
		must(t, b.Close())
	}
}

// Nobody has a QoS 2 message before there is room for it with everybody, so that a
// publisher that goes away meanwhile, or is refused, can send it again.
func TestExactlyOnceOverALostPublisher(t *testing.T) {
	b, slow := crowd(t, &memory{state: map[string][]byte{}})
	pub := join5(t, b, "pub")
	pub.publish("a", 7, 2<<1, "once")
	awaitWaiting(t, b, "slow")
	pub.drop()
	pub = join5(t, b, "pub") // which ends the waiting of the connection before
	pub.publish("a", 7, 2<<1|8, "once")
	awaitWaiting(t, b, "slow")
	slow.drop() // without a connection its queue stays full
	if rec := pub.expect(5); len(rec) < 3 || rec[2] != 0x97 {
		t.Fatalf("PUBREC % x, want 'quota exceeded'", rec)
	}
	slow = join5(t, b, "slow")
	slow.ack(packet.PUBACK, slow.receive().ID)
	slow.ack(packet.PUBACK, slow.receive().ID)
	pub.publish("a", 7, 2<<1|8, "once")
	if rec := pub.expect(5); len(rec) > 2 {
		t.Fatalf("PUBREC % x", rec)
	}
	pub.mustPublish("end", 1, "end")
	if got := join5(t, b, "away").until("end"); got["once"] != 1 {
		t.Errorf("it came %d times", got["once"])
	}
}

// What is known already is acknowledged when it is stored, not before.
func TestExactlyOnceAcknowledgesARepeatWhenItIsStored(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	away := join5(t, b, "away")
	away.subscribe2("a")
	away.drop()
	pub := join5(t, b, "pub")
	offline(t, b, 1)
	b.journal.flush()
	gate := make(chan struct{})
	m.mu.Lock()
	m.gate = gate
	m.mu.Unlock()
	pub.publish("a", 7, 2<<1, "once")
	pub.publish("a", 7, 2<<1|8, "once")
	pub.send([]byte{0xc0, 0}) // PINGREQ, whose answer comes after those
	kind := make(chan byte, 3)
	go func() {
		for range 3 {
			k, _ := pub.read()
			kind <- k
		}
	}()
	select {
	case k := <-kind:
		t.Errorf("packet %d before anything is stored", k)
	case <-time.After(50 * time.Millisecond):
	}
	m.mu.Lock()
	m.gate = nil
	m.mu.Unlock()
	close(gate)
	for _, want := range []byte{5, 5, 13} {
		if k := take(t, kind); k != want {
			t.Errorf("packet %d, want %d", k, want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The store has all of a unit or nothing, after every write, whatever else is put,
// removed and waited for in the meantime.
func TestJournalUnits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := newHistory()
		j := newJournal(store, closedChannel())
		var open []*unit
		added := map[*unit]int{}
		names := map[*unit]string{}
		begin := func() {
			u := j.begin()
			open, names[u] = append(open, u), fmt.Sprint("unit", len(names))
		}
		grow := func(u *unit) {
			j.add(fmt.Sprint(names[u], "/", added[u]), []byte{1}, u)
			added[u]++
		}
		finish := func(i int) {
			u := open[i]
			grow(u)
			durable := make(chan error, 1)
			j.thenUnit(u, func(err error) { durable <- err })
			u.close()
			open = slices.Delete(open, i, i+1)
			if err := <-durable; err != nil || store.keys(names[u]+"/") != added[u] {
				t.Fatalf("%s is not durable: %v", names[u], err)
			}
		}
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			pick := func() int { return rapid.IntRange(0, len(open)-1).Draw(t, "unit") }
			switch step := rapid.IntRange(0, 4).Draw(t, "step"); {
			case step == 0 || len(open) == 0:
				begin()
			case step == 1:
				grow(open[pick()])
			case step == 2:
				finish(pick())
			case step == 3: // the same key in a unit and outside: the last one counts
				j.put("shared", fmt.Append(nil, i), open[pick()])
				j.put("shared", fmt.Append(nil, i, "!"), nil)
				done := make(chan error, 1)
				j.then(func(err error) { done <- err })
				if err := <-done; err != nil || string(store.killed().state["shared"]) != fmt.Sprint(i, "!") {
					t.Fatalf("a change waits for a unit that is not its own: %v", err)
				}
			default:
				j.flush()
			}
		}
		for len(open) > 0 {
			finish(0)
		}
		j.flush()
		for n, past := range store.all() {
			for u, name := range names {
				if k := past.keys(name + "/"); k != 0 && k != added[u] {
					t.Fatalf("after write %d the store has %d of the %d parts of %s", n, k, added[u], name)
				}
			}
		}
	})
}
