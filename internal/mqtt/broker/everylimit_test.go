package broker

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"math"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

const (
	pubrec   = 5
	pingresp = 13
)

// logText is what a broker wrote to its log.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// told expects a packet that refuses something: its code, and words to a client of
// MQTT 5.
func (w *wire) told(kind, code byte, says string) {
	w.t.Helper()
	body := w.expect(kind)
	at := map[byte]int{connack: 1, puback: 2, disconnect: 0, suback: len(body) - 1}[kind]
	if body[at] != code || !bytes.Contains(body, []byte(says)) {
		w.t.Errorf("packet %d: code 0x%02x and %q, want 0x%02x and %q", kind, body[at], body, code, says)
	}
}

func (w *wire) ended() {
	w.t.Helper()
	if kind, body := w.read(); kind != 0 {
		w.t.Errorf("packet %d (% x) instead of the end of the connection", kind, body)
	}
}

func member(t *testing.T, b *Broker, id string) *wire {
	t.Helper()
	w := dialPlain(t, b)
	w.mustConnect(id)
	return w
}

// away leaves a session behind that is subscribed to topic.
func away(t *testing.T, b *Broker, topic string) {
	t.Helper()
	w := join5(t, b, "away")
	w.subscribe(topic)
	w.drop()
	offline(t, b, 1)
}

// limitCase is a client that goes beyond a limit.
type limitCase struct {
	set    Limits
	beyond func(t *testing.T, b *Broker) // and what it hears
	logged string                        // empty: nothing, since nothing is refused
}

// everyLimit has a row for each limit there is.
var everyLimit = map[string]limitCase{
	"packet-bytes": {Limits{PacketBytes: 200}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		w.send([]byte{0x32, 0xc9, 1}) // no more than the header is needed
		w.told(disconnect, 0x95, "packet of 204 bytes; at most 200: send less at a time")
		w.ended()
		err := b.Publish(t.Context(), mqtt.Message{Topic: "a", Payload: make([]byte, 201)})
		if err == nil || !strings.Contains(err.Error(), "at most 200: send less at a time, or raise it (--mqtt-limit packet-bytes=N)") {
			t.Errorf("from otad: %v", err)
		}
	}, "connection ended"},
	"topic-levels": {Limits{TopicLevels: 2}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		if codes := w.subscribe("1/2/#", "$share/g/1/2/3", "1/2"); !bytes.Equal(codes, []byte{0x8f, 0x8f, 1}) {
			t.Errorf("SUBACK % x", codes)
		}
		w.publish("1/2/3", 1, qos1, "")
		w.told(disconnect, 0x90, "topic of 3 levels; at most 2: take one with fewer")
		w.ended()
	}, "subscription refused"},
	"topic-bytes": {Limits{TopicBytes: 20}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		long := strings.Repeat("x", 21)
		if codes := w.subscribe(long, long[1:]); !bytes.Equal(codes, []byte{0x8f, 1}) {
			t.Errorf("SUBACK % x", codes)
		}
		w.publish(long, 1, qos1, "")
		w.told(disconnect, 0x90, "topic of 21 bytes; at most 20: take a shorter one")
		w.ended()
	}, "connection ended"},
	"client-id-bytes": {Limits{ClientIDBytes: 10}, func(t *testing.T, b *Broker) {
		w := dialPlain(t, b)
		w.v5 = false
		if code, _ := w.connect(hello{id: "elevenbytes"}); code != 2 {
			t.Errorf("3.1.1: code %d", code)
		}
		w = dialPlain(t, b)
		body := w.greet(hello{id: "elevenbytes"})
		if body[1] != 0x85 || !bytes.Contains(body, []byte("client id of 11 bytes; at most 10: take a shorter one")) {
			t.Errorf("CONNACK %q", body)
		}
		w.ended()
		member(t, b, "ten--bytes")
	}, "connection refused"},
	"receive-maximum": {Limits{ReceiveMaximum: 2}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		for id := range uint16(3) { // without PUBREL they are not over
			w.publish("a", id+1, 2<<1, "")
		}
		w.expect(pubrec)
		w.expect(pubrec)
		w.told(disconnect, 0x93, "receive maximum of 2 exceeded: wait for acknowledgements")
		w.ended()
	}, "connection ended"},
	"topic-aliases": {Limits{TopicAliases: 1}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		for alias := range byte(3) {
			if alias > 0 { // 0 is none
				w.send(framed(0x32, join(str("a"), []byte{0, 1, 3, 35, 0, alias})))
			}
		}
		w.expect(puback)
		w.told(disconnect, 0x94, "topic alias 2; from 1 to 1: send the whole topic")
		w.ended()
	}, "connection ended"},
	"inflight": {Limits{Inflight: 2}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		w.subscribe("a")
		for range 3 {
			if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", QoS: 1}); err != nil {
				t.Fatal(err)
			}
		}
		first := w.receive()
		w.receive()
		w.send([]byte{0xc0, 0}) // PINGREQ
		w.expect(pingresp)      // and no third message before it
		w.ack(packet.PUBACK, first.ID)
		w.receive()
	}, ""},
	"queued": {Limits{Queued: 2}, func(t *testing.T, b *Broker) {
		away(t, b, "a")
		w := member(t, b, "x")
		w.mustPublish("a", 1, "1")
		w.mustPublish("a", 1, "2")
		w.publish("a", 1, qos1, "3")
		w.told(puback, 0x97, `queue of the client is full: client "away" has to read and acknowledge what waits`)
		if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", QoS: 1}); err != nil || b.Stats().Missed != 1 {
			t.Errorf("from otad: %v, %+v", err, b.Stats())
		}
	}, "message not taken"},
	"queued-bytes": {Limits{QueuedBytes: 1000}, func(t *testing.T, b *Broker) {
		away(t, b, "a")
		w := member(t, b, "x")
		w.mustPublish("a", 1, strings.Repeat("1", 2000)) // one always fits
		w.publish("a", 1, qos1, "2")
		w.told(puback, 0x97, `queue of the client is full: client "away" has to read and acknowledge what waits`)
		back := join5(t, b, "away")
		back.ack(packet.PUBACK, back.receive().ID)
		w.mustPublish("a", 1, "2")
		if got := back.receive(); got.payload != "2" {
			t.Errorf("%+v", got)
		}
	}, "message not taken"},
	"session-expiry": {Limits{SessionExpiry: 50 * time.Millisecond}, func(t *testing.T, b *Broker) {
		w := dialPlain(t, b)
		if code, props := w.connect(hello{id: "x", persist: true, props: forAnHour}); code != 0 || !bytes.Contains(props, uint32Property(17, 0)) {
			t.Errorf("code 0x%02x, properties % x", code, props)
		}
		w.drop()
		if err := waitFor(func() bool { return b.Stats().Sessions == 1 }); err != nil {
			t.Errorf("%d sessions", b.Stats().Sessions)
		}
	}, ""},
	"keep-alive": {Limits{KeepAlive: 100 * time.Millisecond}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		w.told(disconnect, 0x8d, "keep alive timeout: send something, or PINGREQ, within 100ms")
		w.ended()
	}, "connection ended"},
	"connections": {Limits{Connections: 2}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		more := dialPlain(t, b)
		more.refused(hello{id: "y"}, 0x89, "there are 2 connections: connect later")
		w.drop()
		if err := waitFor(func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.conns) == 1 }); err != nil {
			t.Fatal(err)
		}
		member(t, b, "y")
	}, "connection refused"},
	"sessions": {Limits{Sessions: 1}, func(t *testing.T, b *Broker) {
		join5(t, b, "x")
		dialPlain(t, b).refused(hello{id: "y", persist: true, props: forAnHour}, 0x97, `1 sessions with an expiry of "open": connect without one, with a client id that has one already`)
		member(t, b, "y")
		member(t, b, "x")
	}, "connection refused"},
	"subscriptions": {Limits{Subscriptions: 3}, func(t *testing.T, b *Broker) {
		w := member(t, b, "x")
		if codes := w.subscribe("1", "2", "3", "4"); !bytes.Equal(codes, []byte{1, 1, 1, 0x97}) {
			t.Errorf("SUBACK % x", codes)
		}
		if codes := w.subscribe("1", "5"); !bytes.Equal(codes, []byte{1, 0x97}) {
			t.Errorf("SUBACK % x", codes)
		}
		old := dialPlain(t, b)
		old.v5 = false
		old.mustConnect("old")
		if codes := old.subscribe("1", "2", "3", "4"); !bytes.Equal(codes, []byte{1, 1, 1, 0x80}) {
			t.Errorf("SUBACK of 3.1.1 % x", codes)
		}
	}, "subscription refused"},
	"retained": {Limits{Retained: 1}, func(t *testing.T, b *Broker) {
		retainOne(t, b, "other", "1 retained messages of all clients: remove some by an empty payload")
	}, "message not taken"},
	"retained-per-client": {Limits{RetainedPerClient: 1}, func(t *testing.T, b *Broker) {
		retainOne(t, b, "open", `1 retained messages of "open": remove some by an empty payload`)
		w := dialPlain(t, b)
		w.connect(hello{id: "z", user: "other"})
		w.mustRetain("kept/other", "1")
	}, "message not taken"},
	"packet-rate": {Limits{PacketRate: 100}, func(t *testing.T, b *Broker) {
		const n = 250
		w := dialPlain(t, b)
		w.v5 = false // whose number of unacknowledged publishes is free
		w.mustConnect("fast")
		began := time.Now()
		var all []byte
		for i := range n {
			all = append(all, framed(0x32, join(str("a"), []byte{0, byte(i%200 + 1)}))...)
		}
		w.send(all)
		for range n {
			w.expect(puback)
		}
		waits(t, w, began, cost(n, 100)-packetBurst)
	}, "client is slowed down"},
	"byte-rate": {Limits{ByteRate: 10_000}, func(t *testing.T, b *Broker) {
		w := member(t, b, "loud")
		began := time.Now()
		w.mustPublish("a", 1, string(make([]byte, 25_000)))
		waits(t, w, began, cost(25_000, 10_000)-packetBurst)
	}, "client is slowed down"},
	"connect-rate": {Limits{ConnectRate: 1}, func(t *testing.T, b *Broker) {
		began := time.Now()
		for range connectBurst/time.Second + 1 {
			w := member(t, b, "again")
			w.drop()
		}
		if took := time.Since(began); took < maxConnectWait*9/10 {
			t.Errorf("a client that connects again and again waited %s", took)
		}
		slowed := b.Stats().Slowed
		if member(t, b, "another"); b.Stats().Slowed != slowed {
			t.Error("another client waits too")
		}
	}, "client waits to connect"},
	"failure-rate": {Limits{FailureRate: 1}, func(t *testing.T, b *Broker) {
		began := time.Now()
		for range connectBurst/time.Second + 2 {
			w := dialPlain(t, b)
			w.send([]byte{0xff, 0xff, 0xff, 0xff, 0xff})
			w.ended()
		}
		if took := time.Since(began); took < maxConnectWait*9/10 {
			t.Errorf("an address from which nothing good comes waited %s", took)
		}
		member(t, b, "good") // a second later, but it gets in
	}, "address waits to connect"},
	"connect-timeout": {Limits{ConnectTimeout: 50 * time.Millisecond}, func(t *testing.T, b *Broker) {
		for _, part := range [][]byte{nil, {0x10, 20, 0}} {
			w := dialPlain(t, b)
			w.send(part)
			w.ended()
		}
	}, "connection refused"},
	"write-timeout": {Limits{WriteTimeout: 50 * time.Millisecond}, func(t *testing.T, b *Broker) {
		w := member(t, b, "deaf")
		w.subscribe("a")
		for range 200 { // 40 MB into a socket that nobody reads
			if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", Payload: make([]byte, 200<<10)}); err != nil {
				t.Fatal(err)
			}
		}
		offline(t, b, 1)
	}, "nothing read for 50ms: read what is sent"},
	"stall-timeout": {Limits{StallTimeout: 50 * time.Millisecond, Queued: 2, Inflight: 1}, func(t *testing.T, b *Broker) {
		w := member(t, b, "idle")
		w.subscribe("a")
		pub := member(t, b, "pub")
		for range 4 { // one is under way, two wait
			pub.mustPublish("a", 1, "")
		}
		w.receive()
		w.told(disconnect, 0x97, "no room for a message within 50ms: read and acknowledge faster")
		w.ended()
	}, "connection ended"},
}

// refused expects that a CONNECT is refused.
func (w *wire) refused(h hello, code byte, says string) {
	w.t.Helper()
	h.keepAlive = 30
	if got, props := w.connect(h); got != code || !bytes.Contains(props, []byte(says)) {
		w.t.Errorf("CONNACK 0x%02x %q, want 0x%02x and %q", got, props, code, says)
	}
	w.ended()
}

// retainOne fills the one place that there is and has a second message refused.
func retainOne(t *testing.T, b *Broker, secondName, says string) {
	t.Helper()
	first, second := member(t, b, "x"), dialPlain(t, b)
	second.connect(hello{id: "y", user: strings.TrimPrefix(secondName, "open"), keepAlive: 30})
	first.mustRetain("kept/1", "1")
	second.publish("kept/2", 1, qos1|1, "2")
	second.told(puback, 0x97, says)
	first.mustRetain("kept/1", "replaced")
	if n := b.Stats().Retained; n != 1 {
		t.Errorf("%d retained messages", n)
	}
	first.mustRetain("kept/1", "")
	second.mustRetain("kept/2", "2")
	second.mustRetain("kept/2", "")
	first.mustRetain("kept/1", "1")
}

func (w *wire) mustRetain(topic, payload string) {
	w.t.Helper()
	w.publish(topic, 1, qos1|1, payload)
	if ack := w.expect(puback); len(ack) > 2 && ack[2] >= 0x80 {
		w.t.Fatalf("PUBACK %q", ack)
	}
}

// waits expects that w is slowed down.
func waits(t *testing.T, w *wire, began time.Time, least time.Duration) {
	t.Helper()
	w.send([]byte{0xc0, 0}) // PINGREQ
	w.expect(pingresp)
	if took := time.Since(began); took < least {
		t.Errorf("slowed down for %s, want %s", took, least)
	}
}

// Each limit: who goes beyond it hears so, with the code that MQTT has for it and
// what to do; the operator reads which --mqtt-limit it was; nobody else is harmed.
func TestEveryLimit(t *testing.T) {
	var l Limits
	for _, s := range l.Settings() {
		if _, ok := everyLimit[s.Name]; !ok {
			t.Errorf("limit %s has no row here", s.Name)
		}
	}
	for name, c := range everyLimit {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log logText
			b := openPlain(t, nil, func(conf *Config) {
				paces := unpaced()
				conf.Limits = c.set
				for i, s := range conf.Limits.Settings() {
					if p, ok := s.Field.(*int); ok && *p == 0 {
						*p = *paces.Settings()[i].Field.(*int)
					}
				}
				conf.Logger = slog.New(slog.NewTextHandler(&log, nil))
				conf.Authenticate = func(_ context.Context, creds Credentials) (mqtt.Identity, error) {
					return mqtt.Identity{Name: cmp.Or(creds.Username, "open"), Access: mqtt.OpenAccess()}, nil
				}
			})
			calm := dialPlain(t, b)
			calm.v5 = false // and no keep alive: it may be silent
			if code, _ := calm.connect(hello{id: "calm"}); code != 0 {
				t.Fatalf("code %d", code)
			}
			if codes := calm.subscribe("calm"); codes[0] != 1 {
				t.Fatalf("SUBACK % x", codes)
			}
			c.beyond(t, b)
			named := regexp.MustCompile(`\(--mqtt-limit ([a-z-]+=N,)*` + name + `=N[,)]`)
			if err := waitFor(func() bool {
				return c.logged == "" || strings.Contains(log.String(), c.logged) && named.MatchString(log.String())
			}); err != nil {
				t.Errorf("want %q and --mqtt-limit %s=N in the log:\n%s", c.logged, name, &log)
			}
			if c.logged == "" && log.String() != "" {
				t.Errorf("logged:\n%s", &log)
			}
			calm.publish("calm", 1, qos1, "still here")
			for range 2 {
				switch h, body := calm.readAll(); h.Type {
				case packet.PUBACK, packet.PUBLISH:
				default:
					t.Errorf("the other client got packet %d (% x)", h.Type, body)
				}
			}
		})
	}
}

// A client that is silent by WebSocket, or does not read, is said to be so.
func TestSilenceOverWebSocket(t *testing.T) {
	var log logText
	b := openPlain(t, nil, func(c *Config) {
		c.Limits.KeepAlive, c.Limits.ConnectTimeout = 500*time.Millisecond, 500*time.Millisecond
		c.Limits.WriteTimeout = 100 * time.Millisecond
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	dial := func() *wire {
		ws, _, err := websocket.Dial(t.Context(), server.URL, &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
		if err != nil {
			t.Fatal(err)
		}
		w := newWire(t, websocket.NetConn(context.Background(), ws, websocket.MessageBinary))
		w.v5 = true
		return w
	}
	dial()
	dial().mustConnect("silent")
	deaf := dial()
	deaf.mustConnect("deaf")
	deaf.subscribe("a")
	for range 200 {
		if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", Payload: make([]byte, 200<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"no CONNECT within 500ms", "keep alive timeout: send", "nothing read for 100ms: read what is sent"} {
		if err := waitFor(func() bool { return strings.Contains(log.String(), want) }); err != nil {
			t.Fatalf("want %q in the log:\n%s", want, &log)
		}
	}
}

var limitRow = regexp.MustCompile("^\\| `([a-z-]+)` \\| ([^|]+) \\| ([^|]+) \\| ([^|]+) \\| ([^|]+) \\|$")

// The table in the documentation has each limit with its default and its most.
func TestLimitsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "### Limits of the embedded broker\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var l Limits
	settings := l.Settings()
	for line := range strings.Lines(section) {
		row := limitRow.FindStringSubmatch(strings.TrimSpace(line))
		if row == nil {
			continue
		}
		if len(settings) == 0 || settings[0].Name != row[1] {
			t.Fatalf("%s stands where the broker has %+v", row[1], settings)
		}
		s := settings[0]
		settings = settings[1:]
		standard, most, bounded := strings.Cut(row[2], ", at most ")
		if limitValue(t, s, standard) != s.Default {
			t.Errorf("%s: documented default %s, is %d", s.Name, standard, s.Default)
		}
		if free := s.Most == math.MaxInt32 || s.Most == math.MaxInt64; free == bounded || bounded && limitValue(t, s, most) != s.Most {
			t.Errorf("%s: documented most %s, is %d", s.Name, most, s.Most)
		}
	}
	if len(settings) > 0 {
		t.Errorf("not in docs/operations.md: %+v", settings)
	}
}

func limitValue(t *testing.T, s Setting, text string) int64 {
	t.Helper()
	if _, ok := s.Field.(*time.Duration); ok {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		return int64(d)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Errorf("%s: %v", s.Name, err)
	}
	return n
}
