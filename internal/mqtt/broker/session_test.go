package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"pgregory.net/rapid"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

// memory is a Store whose writes can be held up or fail.
type memory struct {
	mu    sync.Mutex
	state map[string][]byte
	gate  chan struct{} // nil: open
	held  int           // saves that waited at the gate
	fail  error
	saves int
}

func (m *memory) SaveState(_ context.Context, set map[string][]byte) error {
	m.mu.Lock()
	gate := m.gate
	if gate != nil {
		m.held++
	}
	m.mu.Unlock()
	if gate != nil {
		<-gate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saves++
	if m.fail != nil {
		return m.fail
	}
	for k, v := range set {
		if v == nil {
			delete(m.state, k)
			continue
		}
		m.state[k] = slices.Clone(v)
	}
	return nil
}

func (m *memory) LoadState(_ context.Context, f func(string, []byte) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(m.state)) {
		if err := f(k, m.state[k]); err != nil {
			return err
		}
	}
	return nil
}

// killed is what a new process would find if this one died now.
func (m *memory) killed() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{state: maps.Clone(m.state)}
}

func (m *memory) keys(prefix string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for k := range m.state {
		if strings.HasPrefix(k, prefix) {
			n++
		}
	}
	return n
}

// openPlain starts a broker that lets everybody in.
func openPlain(t *testing.T, s Store, change func(*Config)) *Broker {
	t.Helper()
	c := Config{PlainAddr: "127.0.0.1:0", Store: s, Limits: unpaced(), Authenticate: func(context.Context, Credentials) (mqtt.Identity, error) {
		return mqtt.Identity{Name: "open", Access: mqtt.OpenAccess()}, nil
	}}
	if change != nil {
		change(&c)
	}
	b, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func dialPlain(t *testing.T, b *Broker) *wire {
	t.Helper()
	nc, err := net.Dial("tcp", b.PlainAddr())
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, nc)
	w.v5 = true
	return w
}

var forAnHour = uint32Property(17, 3600)

// join5 connects with a session that lasts.
func join5(t *testing.T, b *Broker, id string) *wire {
	t.Helper()
	w := dialPlain(t, b)
	if code, _ := w.connect(hello{id: id, keepAlive: 60, persist: true, props: forAnHour}); code != 0 {
		t.Fatalf("connect %s: 0x%02x", id, code)
	}
	return w
}

func (w *wire) drop() { _ = w.nc.Close() }

// offline waits until the broker has noticed that n connections are left.
func offline(t *testing.T, b *Broker, n int) {
	t.Helper()
	if err := waitFor(func() bool { return b.Stats().Connections == n }); err != nil {
		t.Fatalf("%d connections: %v", b.Stats().Connections, err)
	}
}

type incoming struct {
	packet.Publish
	topic, payload string
}

func (w *wire) receive() incoming {
	w.t.Helper()
	h, body := w.readAll()
	if h.Type != packet.PUBLISH {
		w.t.Fatalf("packet %d (% x), want PUBLISH", h.Type, body)
	}
	version := byte(packet.V311)
	if w.v5 {
		version = packet.V5
	}
	p, err := packet.DecodePublish(h.Flags, body, version)
	if err != nil {
		w.t.Fatal(err)
	}
	return incoming{p, string(p.Topic), string(p.Payload)}
}

// readAll is read with the flags.
func (w *wire) readAll() (packet.Header, []byte) {
	w.t.Helper()
	head, err := w.r.Peek(1)
	if err != nil {
		return packet.Header{}, nil
	}
	flags := head[0] & 15
	kind, body := w.read()
	return packet.Header{Type: packet.Type(kind), Flags: flags, Size: len(body)}, body
}

func (w *wire) ack(t packet.Type, id uint16) {
	w.send(packet.AppendAck(nil, packet.V5, t, packet.Ack{ID: id}, ""))
}

const nobody = 0x10 // no matching subscribers

func (w *wire) mustPublish(topic string, id uint16, payload string) {
	w.t.Helper()
	w.publish(topic, id, qos1, payload)
	if ack := w.expect(puback); len(ack) > 2 && ack[2] != nobody {
		w.t.Fatalf("PUBACK % x", ack)
	}
}

// What was acknowledged is there after the process was killed: subscriptions,
// queued messages in order with what was in flight first, retained messages.
func TestKilledAndStartedAgain(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	sub := join5(t, b, "sub")
	if codes := sub.subscribe("a/#"); codes[0] != 1 {
		t.Fatalf("SUBACK % x", codes)
	}
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	for i := range 5 { // delivered, not acknowledged
		pub.mustPublish("a/x", uint16(i+1), fmt.Sprint(i))
	}
	for i := range 5 {
		if got := sub.receive(); got.payload != fmt.Sprint(i) || got.Dup {
			t.Fatalf("got %q, dup %v", got.payload, got.Dup)
		}
	}
	sub.ack(packet.PUBACK, 1)
	sub.drop()
	offline(t, b, 1)
	for i := range 200 {
		pub.mustPublish("a/x", 1, fmt.Sprint(i+5))
	}
	pub.publish("a/kept", 2, qos1|1, "retained")
	pub.expect(puback)

	after := m.killed()
	b2 := openPlain(t, after, nil)
	sub = dialPlain(t, b2)
	code, _ := sub.connect(hello{id: "sub", keepAlive: 60, persist: true, props: forAnHour})
	if code != 0 {
		t.Fatal(code)
	}
	for i := 1; i < 205; i++ {
		got := sub.receive()
		if got.payload != fmt.Sprint(i) || got.QoS != 1 {
			t.Fatalf("got %q with QoS %d, want %d", got.payload, got.QoS, i)
		}
		sub.ack(packet.PUBACK, got.ID)
	}
	if got := sub.receive(); got.topic != "a/kept" || got.Retain {
		t.Fatalf("%+v", got)
	} else {
		sub.ack(packet.PUBACK, got.ID)
	}
	other := dialPlain(t, b2)
	other.mustConnect("other")
	other.subscribe("a/+")
	if got := other.receive(); got.payload != "retained" || !got.Retain {
		t.Errorf("retained: %+v", got)
	}
	if err := waitFor(func() bool { return after.keys(keyQueue) == 0 && after.keys(keyMessage) == 0 }); err != nil {
		t.Errorf("left in the store: %d of queues, %d messages", after.keys(keyQueue), after.keys(keyMessage))
	}
	// A clean start leaves nothing of the session.
	sub.drop()
	offline(t, b2, 1)
	clean := dialPlain(t, b2)
	clean.mustConnect("sub")
	if err := waitFor(func() bool { return after.keys(keySession) == 0 }); err != nil {
		t.Error("the session is still stored")
	}
}

// No acknowledgement goes out before the store has what it stands for, and they
// go out in the order of the publishes.
func TestAcknowledgedMeansStored(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	sub := join5(t, b, "sub")
	sub.subscribe("kept/#")
	sub.drop()
	offline(t, b, 0)
	gate := make(chan struct{})
	m.mu.Lock()
	m.gate = gate
	m.mu.Unlock()
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	for i := range 10 { // every other one needs the store
		topic := "lost/x"
		if i%2 == 0 {
			topic = "kept/x"
		}
		pub.publish(topic, uint16(i+1), qos1, "1")
	}
	pub.send([]byte{0xc0, 0}) // PINGREQ: the connection is alive all the same
	if n := m.keys(keyQueue); n != 0 {
		t.Fatalf("%d stored before their time", n)
	}
	acks := make(chan []byte, 20)
	go func() {
		for range 10 {
			kind, body := pub.read()
			for kind == 13 {
				kind, body = pub.read()
			}
			acks <- body
		}
		close(acks)
	}()
	select {
	case a := <-acks:
		t.Fatalf("acknowledged % x while nothing could be stored", a)
	case <-time.After(50 * time.Millisecond):
	}
	m.mu.Lock()
	m.gate = nil
	m.mu.Unlock()
	close(gate)
	for i := range 10 {
		if a := take(t, acks); a[1] != byte(i+1) {
			t.Errorf("acknowledgement %d is for %d", i, a[1])
		}
	}
	if n := m.keys(keyQueue); n != 5 {
		t.Errorf("%d stored, want 5", n)
	}
}

func TestAStoreThatFailsAcknowledgesNothing(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	sub := join5(t, b, "sub")
	sub.subscribe("a")
	sub.drop()
	offline(t, b, 0)
	m.mu.Lock()
	m.fail = errors.New("disk full")
	m.mu.Unlock()
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	pub.publish("a", 1, qos1, "1")
	if kind, _ := pub.read(); kind != disconnect {
		t.Errorf("packet %d, want DISCONNECT", kind)
	}
	m.mu.Lock()
	m.fail = nil
	m.mu.Unlock()
	pub = dialPlain(t, b)
	pub.mustConnect("pub")
	pub.mustPublish("a", 1, "2")
	b2 := openPlain(t, m.killed(), nil)
	sub = join5(t, b2, "sub")
	if got := sub.receive(); got.payload != "1" && got.payload != "2" {
		t.Errorf("%+v", got)
	}
}

// QoS 2 is exactly once, over lost connections and a killed process, both ways.
func TestExactlyOnce(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	sub := join5(t, b, "sub")
	sub.send(framed(0x82, join([]byte{0, 9, 0}, str("a"), []byte{2})))
	sub.expect(suback)
	pub := join5(t, b, "pub")
	pub.publish("a", 7, 2<<1, "once")
	pub.expect(5) // PUBREC
	got := sub.receive()
	if got.QoS != 2 || got.payload != "once" {
		t.Fatalf("%+v", got)
	}
	// Everything is lost now; the publisher does not know whether it arrived.
	for range 2 {
		m = m.killed()
		b = openPlain(t, m, nil)
		pub = join5(t, b, "pub")
		pub.publish("a", 7, 2<<1|8, "once")
		pub.expect(5)
		sub = join5(t, b, "sub")
		again := sub.receive()
		if again.ID != got.ID || !again.Dup {
			t.Fatalf("sent again as %d, dup %v; was %d", again.ID, again.Dup, got.ID)
		}
	}
	sub.ack(packet.PUBREC, got.ID)
	if rel := sub.expect(6); rel[1] != byte(got.ID) {
		t.Fatalf("PUBREL % x", rel)
	}
	pub.ack(packet.PUBREL, 7)
	pub.expect(7)
	b.journal.flush()
	m = m.killed()
	b = openPlain(t, m, nil)
	sub = join5(t, b, "sub")
	if rel := sub.expect(6); rel[1] != byte(got.ID) { // PUBREL again, not the message
		t.Fatalf("PUBREL % x", rel)
	}
	sub.ack(packet.PUBCOMP, got.ID)
	pub = join5(t, b, "pub")
	pub.ack(packet.PUBREL, 7)
	if comp := pub.expect(7); len(comp) != 3 || comp[2] != 0x92 {
		t.Errorf("PUBCOMP % x, want 'not found'", comp)
	}
	if err := waitFor(func() bool { return m.keys(keyQueue)+m.keys(keyMessage)+m.keys(keyReceived) == 0 }); err != nil {
		t.Error("something is left in the store")
	}
}

// A subscriber that stands still loses its connection, not its messages; its
// publisher is slowed down, then refused.
func TestStalledSubscriber(t *testing.T) {
	b := openPlain(t, &memory{state: map[string][]byte{}}, func(c *Config) {
		c.Limits.Queued, c.Limits.StallTimeout = 50, 100*time.Millisecond
	})
	sub := join5(t, b, "sub")
	sub.subscribe("a")
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	acked := 0
	for refused := false; !refused; {
		pub.publish("a", 1, qos1, fmt.Sprint(acked))
		if a := pub.expect(puback); len(a) > 2 {
			if refused = a[2] == 0x97; !refused {
				t.Fatalf("PUBACK % x", a)
			}
			continue
		}
		acked++
	}
	if acked < 50 || acked > 50+DefaultInflight {
		t.Errorf("%d acknowledged", acked)
	}
	old := dialPlain(t, b) // of 3.1.1: no word for it but the end
	old.v5 = false
	old.mustConnect("old")
	old.publish("a", 1, qos1, "x")
	if kind, _ := old.read(); kind != 0 {
		t.Errorf("packet %d", kind)
	}
	sub = join5(t, b, "sub")
	for i := range acked {
		got := sub.receive()
		if got.payload != fmt.Sprint(i) {
			t.Fatalf("got %q, want %d", got.payload, i)
		}
		sub.ack(packet.PUBACK, got.ID)
	}
	pub.mustPublish("a", 1, "room again")
	if got := sub.receive(); got.payload != "room again" {
		t.Errorf("%+v", got)
	}
}

// Where it is the bytes that a publisher finds no room for, it waits, without looking
// again and again, and goes on when there is some.
func TestPublisherWaitsForRoomByBytes(t *testing.T) {
	b := openPlain(t, nil, func(c *Config) { c.Limits.QueuedBytes, c.Limits.StallTimeout = 1000, time.Hour })
	sub := dialPlain(t, b)
	sub.connect(hello{id: "sub", keepAlive: 60, props: []byte{33, 0, 1}}) // receive maximum of 1
	sub.subscribe("a")
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	payload := strings.Repeat("x", 600)
	pub.mustPublish("a", 1, payload)
	first := sub.receive()
	pub.mustPublish("a", 1, payload)
	pub.publish("a", 1, qos1, payload)
	awaitWaiting(t, b, "sub")
	select {
	case <-b.sessions["c/open/sub"].room(&message{topic: "a", payload: []byte(payload)}):
		t.Error("there is no room")
	default:
	}
	sub.ack(packet.PUBACK, first.ID)
	pub.expect(puback)
}

// What an ended session leaves of a shared subscription goes to another member.
func TestSharedSubscriptionPassesOn(t *testing.T) {
	b := openPlain(t, nil, nil)
	one, two := dialPlain(t, b), dialPlain(t, b)
	one.mustConnect("one")
	two.mustConnect("two")
	one.subscribe("$share/g/jobs")
	two.subscribe("$share/g/jobs")
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	for i := range 4 {
		pub.mustPublish("jobs", 1, fmt.Sprint(i))
	}
	var got []string
	for range 2 {
		m := two.receive()
		got = append(got, m.payload)
		two.ack(packet.PUBACK, m.ID)
	}
	one.drop() // with two messages that it has not acknowledged
	for range 2 {
		m := two.receive()
		got = append(got, m.payload)
		two.ack(packet.PUBACK, m.ID)
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		t.Errorf("got %v", got)
	}
}

// What waits for a member that goes stays with it if the others have no room.
func TestSharedSubscriptionKeepsWhatNobodyTakes(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, func(c *Config) { c.Limits.Queued, c.Limits.Inflight = 2, 1 })
	wires := map[string]*wire{}
	for _, id := range []string{"one", "two"} {
		wires[id] = join5(t, b, id)
		wires[id].subscribe("$share/g/jobs")
	}
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	for i := range 6 { // one is on its way to each, two wait
		pub.mustPublish("jobs", 1, fmt.Sprint(i))
	}
	wires["one"].receive()
	wires["one"].drop()
	offline(t, b, 2)
	wires["two"].drop()
	offline(t, b, 1)
	got := map[string]bool{}
	b = openPlain(t, m.killed(), nil)
	for _, id := range []string{"one", "two"} {
		w := join5(t, b, id)
		for range 3 {
			p := w.receive()
			got[p.payload] = true
			w.ack(packet.PUBACK, p.ID)
		}
	}
	if len(got) != 6 {
		t.Errorf("got %v of 6", got)
	}
}

// Members that come and go all the time, with little room, get all that was acknowledged.
func TestSharedSubscriptionAmongComingAndGoing(t *testing.T) {
	const members, messages = 4, 400
	b := openPlain(t, nil, func(c *Config) { c.Limits.Queued, c.Limits.Inflight, c.Limits.StallTimeout = 8, 2, time.Second })
	var mu sync.Mutex
	got := map[string]bool{}
	all := func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == messages }
	var begun, done sync.WaitGroup
	for i := range members {
		begun.Add(1)
		done.Go(func() {
			id := fmt.Sprint("m", i)
			join5(t, b, id).subscribe("$share/g/jobs")
			begun.Done()
			for try := 0; !all(); try++ {
				w := join5(t, b, id)
				for range 1 + (try*7+i)%20 {
					_ = w.nc.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // then it goes
					kind, err := w.r.Peek(1)
					if err != nil || kind[0]>>4 != byte(packet.PUBLISH) {
						break
					}
					_ = w.nc.SetReadDeadline(time.Now().Add(patience))
					p := w.receive()
					mu.Lock()
					got[p.payload] = true
					mu.Unlock()
					w.ack(packet.PUBACK, p.ID)
				}
				w.drop()
			}
		})
	}
	begun.Wait()
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	for i := 0; i < messages; {
		pub.publish("jobs", 1, qos1, strconv.Itoa(i))
		if ack := pub.expect(puback); len(ack) < 3 || ack[2] < 0x80 {
			i++
		}
	}
	done.Wait()
}

// While all members of a shared subscription are away, each keeps its share.
func TestSharedSubscriptionOfTheAway(t *testing.T) {
	b := openPlain(t, nil, func(c *Config) { c.Limits.Queued = 2 })
	ids := []string{"one", "two", "three"}
	for _, id := range ids {
		w := join5(t, b, id)
		w.subscribe("$share/g/jobs")
		w.drop()
		offline(t, b, 0)
	}
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	for i := range 6 {
		pub.mustPublish("jobs", 1, fmt.Sprint(i))
	}
	pub.publish("jobs", 1, qos1, "too much")
	pub.told(puback, 0x97, "queue of the client is full")
	var got []string
	for _, id := range ids {
		w := join5(t, b, id)
		for range 2 {
			m := w.receive()
			got = append(got, m.payload)
			w.ack(packet.PUBACK, m.ID)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"0", "1", "2", "3", "4", "5"}) {
		t.Errorf("got %v", got)
	}
}

// A reply goes to the connection that asked, subscribed or not, and to nobody else.
func TestReply(t *testing.T) {
	b := openPlain(t, nil, nil)
	err := b.Subscribe(context.Background(), []string{"ask/+"}, func(ctx context.Context, m mqtt.Message) error {
		return b.Reply(ctx, m, mqtt.Message{Topic: "answer", Payload: m.Payload, QoS: m.QoS})
	})
	if err != nil {
		t.Fatal(err)
	}
	nosy, asker := dialPlain(t, b), dialPlain(t, b)
	nosy.mustConnect("nosy")
	nosy.subscribe("answer", "#")
	asker.mustConnect("asker")
	asker.publish("ask/x", 1, qos1, "q")
	seen := map[packet.Type]bool{}
	for range 2 {
		h, _ := asker.readAll()
		seen[h.Type] = true
	}
	if !seen[packet.PUBLISH] || !seen[packet.PUBACK] {
		t.Errorf("got %v", seen)
	}
	if m := nosy.receive(); m.topic != "ask/x" {
		t.Errorf("the others got %q", m.topic)
	}
	if b.Listening("answer") != true || b.Listening("$SYS/x") {
		t.Error("Listening is wrong")
	}
}

func TestWebSocket(t *testing.T) {
	b := openPlain(t, nil, nil)
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	ws, _, err := websocket.Dial(t.Context(), server.URL, &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, websocket.NetConn(context.Background(), ws, websocket.MessageBinary))
	w.v5 = true
	w.mustConnect("browser")
	w.subscribe("a")
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	pub.mustPublish("a", 1, strings.Repeat("x", 100_000))
	if m := w.receive(); len(m.payload) != 100_000 {
		t.Errorf("%d bytes", len(m.payload))
	}
	var several []byte // in one message, larger than a packet may be
	for id := range byte(4) {
		several = append(several, framed(0x32, join(str("b"), []byte{0, id + 1, 0}, make([]byte, 100_000)))...)
	}
	w.ack(packet.PUBACK, 1)
	w.send(several)
	for range 4 {
		w.expect(puback)
	}
	bare, _, err := websocket.Dial(t.Context(), server.URL, nil)
	if err == nil {
		_, _, err = bare.Read(t.Context())
	}
	if err == nil {
		t.Error("a WebSocket without the subprotocol mqtt was taken")
	}
}

// What was sent and not acknowledged comes again after a lost connection, first
// and marked; what was never sent is not marked.
func TestRedelivery(t *testing.T) {
	b := openPlain(t, nil, nil)
	sub := join5(t, b, "sub")
	sub.subscribe("a")
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	pub.mustPublish("a", 1, "sent")
	first := sub.receive()
	sub.drop()
	offline(t, b, 1)
	pub.mustPublish("a", 1, "not sent")
	sub = join5(t, b, "sub")
	if got := sub.receive(); got.payload != "sent" || !got.Dup || got.ID != first.ID {
		t.Errorf("%q, dup %v, id %d; was %d", got.payload, got.Dup, got.ID, first.ID)
	}
	if got := sub.receive(); got.payload != "not sent" || got.Dup {
		t.Errorf("%q, dup %v", got.payload, got.Dup)
	}
}

// A QoS 2 message goes out when it is stored, not before: sent again under another
// identifier after a crash it would count as another message.
func TestExactlyOnceWaitsForTheStore(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	sub := join5(t, b, "sub")
	sub.send(framed(0x82, join([]byte{0, 9, 0}, str("a"), []byte{2})))
	sub.expect(suback)
	gate := make(chan struct{})
	m.mu.Lock()
	m.gate = gate
	m.mu.Unlock()
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	pub.publish("a", 7, 2<<1, "x")
	got := make(chan incoming, 1)
	go func() { got <- sub.receive() }()
	select {
	case <-got:
		t.Error("sent before it was stored")
	case <-time.After(50 * time.Millisecond):
	}
	m.mu.Lock()
	m.gate = nil
	m.mu.Unlock()
	close(gate)
	if p := take(t, got); p.payload != "x" {
		t.Errorf("%+v", p)
	}
}

// Who comes to wait while a failed write is tried again is told too, and Close says
// what is not stored.
func TestNobodyWaitsForAStoreThatFails(t *testing.T) {
	gate := make(chan struct{})
	m := &memory{state: map[string][]byte{}, gate: gate, fail: errors.New("disk full")}
	j := newJournal(m, closedChannel())
	first, second := make(chan error, 1), make(chan error, 1)
	j.put("a", []byte("1"), nil)
	j.then(func(err error) { first <- err })
	gate <- struct{}{} // fails
	if err := take(t, first); !errors.Is(err, m.fail) {
		t.Errorf("the first: %v", err)
	}
	j.put("b", []byte("2"), nil)
	j.then(func(err error) { second <- err }) // while it is tried again
	close(gate)
	if err := take(t, second); !errors.Is(err, m.fail) {
		t.Errorf("the second: %v", err)
	}
	if err := j.flush(); !errors.Is(err, m.fail) || !strings.Contains(err.Error(), "2 changes of sessions are not stored") {
		t.Errorf("flush: %v", err)
	}
	m.fail = nil
	if err := j.flush(); err != nil || len(m.state) != 2 {
		t.Errorf("flush: %v, stored %q", err, m.state)
	}
}

// A key that comes anew while its removal fails is removed after all when it goes.
func TestAKeyThatCameAnewIsRemoved(t *testing.T) {
	j := newJournal(&memory{}, closedChannel())
	j.running = true // nobody writes but this test
	j.remove("a")
	batch, _ := j.take()
	j.add("a", []byte("new"), nil)
	j.restore(batch)
	j.remove("a")
	if last, ok := j.changes["a"]; !ok || last.value != nil {
		t.Errorf("changes %+v: what the store had stays there", j.changes)
	}
}

// Whatever is put and removed while batches are written or fail, the store ends up
// with what was asked for last.
func TestJournal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &memory{state: map[string][]byte{}}
		j := newJournal(m, closedChannel())
		want := map[string]string{}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			key := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key")
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				if _, there := want[key]; there { // add is for keys that are new
					j.remove(key)
					delete(want, key)
					continue
				}
				j.add(key, fmt.Append(nil, i), nil)
				want[key] = fmt.Sprint(i)
			case 1:
				j.put(key, fmt.Append(nil, i), nil)
				want[key] = fmt.Sprint(i)
			case 2:
				j.remove(key)
				delete(want, key)
			case 3:
				j.flush()
			case 4:
				m.mu.Lock()
				m.fail = nil
				if rapid.Bool().Draw(t, "fails") {
					m.fail = errors.New("disk full")
				}
				m.mu.Unlock()
			}
		}
		m.mu.Lock()
		m.fail = nil
		m.mu.Unlock()
		done := make(chan error, 1)
		j.then(func(err error) { done <- err })
		<-done
		j.put("last", []byte("1"), nil) // wakes what a failure left
		want["last"] = "1"
		j.flush()
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.state) != len(want) {
			t.Fatalf("stored %v, want %v", m.state, want)
		}
		for k, v := range want {
			if string(m.state[k]) != v {
				t.Fatalf("%s is %q, want %q", k, m.state[k], v)
			}
		}
	})
}

func closedChannel() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
