package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

func mustSay(t *testing.T, b *Broker, m mqtt.Message) {
	t.Helper()
	if err := b.Publish(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// emptied waits until no messages are left in the store.
func emptied(t *testing.T, m *memory) {
	t.Helper()
	if err := waitFor(func() bool { return m.keys(keyQueue)+m.keys(keyMessage) == 0 }); err != nil {
		t.Errorf("left in the store: %d of queues, %d messages", m.keys(keyQueue), m.keys(keyMessage))
	}
}

// What otad says to a client that is away is there after the process was killed, hints
// and what needs no acknowledgement excepted.
func TestOwnMessagesWaitForWhoIsAway(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	for _, id := range []string{"one", "two"} {
		w := join5(t, b, id)
		w.subscribe("own/#")
		w.drop()
		offline(t, b, 0)
	}
	mustSay(t, b, mqtt.Message{Topic: "own/a", QoS: 1, Payload: []byte("1"), CorrelationData: []byte("c")})
	mustSay(t, b, mqtt.Message{Topic: "own/hint", QoS: 1, Hint: true})
	mustSay(t, b, mqtt.Message{Topic: "own/quick", QoS: 0})
	mustSay(t, b, mqtt.Message{Topic: "own/a", QoS: 1, Payload: []byte("2"), Expiry: time.Hour})
	mustSay(t, b, mqtt.Message{Topic: "own/gone", QoS: 1, Expiry: time.Nanosecond})
	m = m.killed() // with no time for anything more
	b = openPlain(t, m, nil)
	for _, id := range []string{"one", "two"} {
		w := join5(t, b, id)
		for _, want := range []string{"1", "2"} {
			got := w.receive()
			if got.topic != "own/a" || got.payload != want {
				t.Fatalf("%s: %s %q, want %q", id, got.topic, got.payload, want)
			}
			if a := packet.ParseAttributes(got.Props); want == "1" && string(a.CorrelationData) != "c" {
				t.Errorf("correlation data %q", a.CorrelationData)
			}
			w.ack(packet.PUBACK, got.ID)
		}
	}
	emptied(t, m)
}

// What a client did not acknowledge before its connection was lost is kept from then
// on, for each by itself: another one's acknowledgement takes nothing away.
func TestOwnMessagesAreKeptFromWhenItGoes(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, func(c *Config) { c.Limits.Inflight = 2 })
	one, two := join5(t, b, "one"), join5(t, b, "two")
	one.subscribe("own")
	two.subscribe("own")
	for i := range 4 {
		mustSay(t, b, mqtt.Message{Topic: "own", QoS: 1, Payload: []byte(strconv.Itoa(i))})
	}
	if n := m.keys(keyQueue) + m.keys(keyMessage); n != 0 {
		t.Errorf("%d stored for who is there", n)
	}
	one.receive()
	one.drop()
	if err := waitFor(func() bool { return m.keys(keyQueue) == 4 && m.keys(keyMessage) == 4 }); err != nil {
		t.Fatalf("%d of queues, %d messages", m.keys(keyQueue), m.keys(keyMessage))
	}
	all := func(b *Broker, id string) {
		t.Helper()
		w := join5(t, b, id)
		for i := range 4 {
			got := w.receive()
			if got.payload != strconv.Itoa(i) {
				t.Fatalf("%s: %q, want %d", id, got.payload, i)
			}
			w.ack(packet.PUBACK, got.ID)
		}
		w.drop()
	}
	after := m.killed()
	all(openPlain(t, after, nil), "one")
	emptied(t, after)
	all(b, "one")
	emptied(t, m)
	two.drop()
	if err := waitFor(func() bool { return m.keys(keyQueue) == 4 && m.keys(keyMessage) == 4 }); err != nil {
		t.Fatalf("%d of queues, %d messages", m.keys(keyQueue), m.keys(keyMessage))
	}
	all(openPlain(t, m.killed(), nil), "two")
}

// Publish returns when the message is durable, and not without: with the store's error
// or when its caller has no more time.
func TestPublishReturnsWhenItIsStored(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	there := member(t, b, "there")
	there.subscribe("quick")
	away(t, b, "own")
	gate := make(chan struct{})
	m.mu.Lock()
	m.gate = gate
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	said := make(chan error, 1)
	say := func() { said <- b.Publish(ctx, mqtt.Message{Topic: "own", QoS: 1}) }
	queued := func(n int) {
		t.Helper()
		if err := waitFor(func() bool { return b.Stats().Queued == n }); err != nil {
			close(gate)
			t.Fatalf("%d queued, want %d", b.Stats().Queued, n)
		}
	}
	mustSay(t, b, mqtt.Message{Topic: "quick", QoS: 1}) // to who is there: waits for nothing
	there.ack(packet.PUBACK, there.receive().ID)
	mustSay(t, b, mqtt.Message{Topic: "own", QoS: 1, Hint: true})
	queued(1)
	go say()
	queued(2)
	select {
	case err := <-said:
		t.Fatalf("%v, while nothing could be stored", err)
	default:
	}
	cancel()
	if err := <-said; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	ctx = t.Context()
	go say()
	queued(3)
	m.mu.Lock()
	m.gate = nil
	m.mu.Unlock()
	close(gate)
	if err := <-said; err != nil || m.keys(keyQueue) != 2 {
		t.Errorf("%v, %d stored", err, m.keys(keyQueue))
	}
	full := errors.New("disk full")
	m.mu.Lock()
	m.fail = full
	m.mu.Unlock()
	if say(); !errors.Is(<-said, full) {
		t.Error("no word of a store that fails")
	}
	m.mu.Lock()
	m.fail = nil
	m.mu.Unlock()
}

// Clients that come and go all the time get everything that otad says, in order, and
// nothing of it is left in the store.
func TestOwnMessagesAmongComingAndGoing(t *testing.T) {
	const clients, messages = 4, 300
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, func(c *Config) { c.Limits.Queued = 2 * messages })
	var listening, done sync.WaitGroup
	for i := range clients {
		listening.Add(1)
		done.Go(func() {
			id := fmt.Sprint("c", i)
			join5(t, b, id).subscribe("own")
			listening.Done()
			var got []int
			for try := 0; len(got) < messages; try++ {
				w := join5(t, b, id) // taken over
				for n := range 5 + (try*7+i)%40 {
					p := w.receive()
					number, err := strconv.Atoi(p.payload)
					if err != nil {
						t.Errorf("%s: %q", id, p.payload)
					}
					if !slices.Contains(got, number) {
						got = append(got, number)
					}
					if n%5 != i {
						w.ack(packet.PUBACK, p.ID)
					}
					if len(got) == messages {
						break
					}
				}
				w.drop()
			}
			if !slices.IsSorted(got) {
				t.Errorf("%s: not in order: %v", id, got)
			}
			w := join5(t, b, id)
			w.send([]byte{0xc0, 0}) // PINGREQ
			for {
				h, body := w.readAll()
				if h.Type == packet.PINGRESP {
					return
				}
				p, err := packet.DecodePublish(h.Flags, body, packet.V5)
				if err != nil {
					t.Error(err)
					return
				}
				w.ack(packet.PUBACK, p.ID)
			}
		})
	}
	listening.Wait()
	for i := range messages {
		mustSay(t, b, mqtt.Message{Topic: "own", QoS: 1, Payload: []byte(strconv.Itoa(i))})
	}
	done.Wait()
	emptied(t, m)
}

// What a client was told has ended does not come back with the next process: a session
// by the CONNACK of a clean start, a subscription by UNSUBACK.
func TestWhatHasEndedDoesNotComeBack(t *testing.T) {
	for name, c := range map[string]struct {
		ask    func(w *wire) // for what is answered by
		answer byte
	}{
		"session": {func(w *wire) {
			w.hail(hello{id: "one", keepAlive: 60, props: forAnHour})
		}, connack},
		"subscription": {func(w *wire) {
			w.hail(hello{id: "one", keepAlive: 60, persist: true, props: forAnHour})
			w.expect(connack)
			w.send(framed(0xa2, join([]byte{0, 9, 0}, str("own"))))
		}, unsuback},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{state: map[string][]byte{}}
			b := openPlain(t, m, nil)
			w := join5(t, b, "one")
			w.subscribe("own")
			w.drop()
			offline(t, b, 0)
			gate := make(chan struct{})
			m.mu.Lock()
			m.gate = gate
			m.mu.Unlock()
			w = dialPlain(t, b)
			c.ask(w)
			if err := waitFor(func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.held > 0 }); err != nil {
				t.Error("nothing is to be stored")
			}
			after := make(chan *memory)
			go func() {
				kind, _ := w.read()
				if kind != c.answer {
					t.Errorf("got packet %d, want %d", kind, c.answer)
				}
				after <- m.killed()
			}()
			select {
			case m = <-after: // too early, and what it finds shows that
			case <-time.After(50 * time.Millisecond): // of a right one nothing comes
				close(gate)
				m = <-after
			}
			again := openPlain(t, m, nil)
			join5(t, again, "one")
			mustSay(t, again, mqtt.Message{Topic: "own", QoS: 1})
			if n := again.Stats().Queued; n != 0 {
				t.Errorf("%d messages on their way", n)
			}
			if !isOver(gate) {
				close(gate)
			}
		})
	}
}
