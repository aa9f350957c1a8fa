package broker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

// A session that is away and full costs nobody else what otad publishes, and the log
// one line.
func TestFullSessionMissesAlone(t *testing.T) {
	var log logText
	b := openPlain(t, nil, func(c *Config) {
		c.Limits.Queued, c.Logger = 2, slog.New(slog.NewTextHandler(&log, nil))
	})
	w := member(t, b, "here")
	away(t, b, "a")
	w.subscribe("a")
	for range 5 {
		if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", QoS: 1}); err != nil {
			t.Fatal(err)
		}
		w.receive()
	}
	if s := b.Stats(); s.Missed != 3 {
		t.Errorf("%d missed", s.Missed)
	}
	const line = `msg="message of otad not taken" client=away topic=a error="queue of the client is full: client \"away\"`
	if n := strings.Count(log.String(), line); n != 1 {
		t.Errorf("%d times in the log:\n%s", n, log.String())
	}
	back := join5(t, b, "away")
	for range 2 {
		back.receive()
	}
}

// One that is connected and makes no room for long loses its connection by what otad
// publishes alone, but not before, nor when it has made some in between.
func TestOwnMessagesFindTheStalled(t *testing.T) {
	b := openPlain(t, nil, func(c *Config) {
		c.Limits.Queued, c.Limits.Inflight, c.Limits.StallTimeout = 2, 1, time.Hour
	})
	w := member(t, b, "idle")
	w.subscribe("a")
	publish := func() {
		t.Helper()
		if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	s := b.sessions[sessionKey(mqtt.Identity{Name: "open"}, "idle")]
	fullFor := func(d time.Duration) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.fullSince.IsZero() {
			t.Fatal("it is not full")
		}
		s.fullSince = s.fullSince.Add(-d)
	}
	publish()
	first := w.receive()
	for range 4 { // two wait, two are missed
		publish()
	}
	fullFor(59 * time.Minute)
	publish()
	w.ack(packet.PUBACK, first.ID)
	w.receive()
	publish() // there is room
	publish()
	fullFor(59 * time.Minute)
	publish()
	fullFor(time.Minute)
	publish()
	w.told(disconnect, 0x97, "no room for a message within 1h0m0s: read and acknowledge faster")
	w.ended()
}

// A request is answered whoever else has no room for the answer; that of who asks and
// does not read is refused, so that it comes again.
func TestAskerHasToHaveRoom(t *testing.T) {
	b := openPlain(t, nil, func(c *Config) { c.Limits.Queued, c.Limits.Inflight = 2, 1 })
	err := b.Subscribe(t.Context(), []string{"ask"}, func(ctx context.Context, m mqtt.Message) error {
		err := b.Publish(ctx, mqtt.Message{Topic: "answer", QoS: 1, Origin: m.Origin})
		if err != nil && !errors.Is(err, ErrQueueFull) {
			t.Errorf("publish: %v", err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	asker := member(t, b, "asker")
	away(t, b, "answer")
	deaf := member(t, b, "deaf")
	asker.subscribe("answer")
	ask := func(answers ...byte) {
		t.Helper()
		asker.publish("ask", 1, qos1, "")
		for range answers {
			kind, body := asker.read()
			if !slices.Contains(answers, kind) || kind == puback && len(body) > 2 && body[2] >= 0x80 {
				t.Errorf("packet %d: % x", kind, body)
			}
		}
	}
	ask(puback, byte(packet.PUBLISH))
	ask(puback) // its answer waits
	ask(puback) // and so does this one; there is no more room where nobody is
	asker.publish("ask", 1, qos1, "")
	asker.told(puback, 0x83, "not taken; send it again")
	deaf.mustPublish("ask", 1, "") // it does not listen
}

// TestMessageToNobody: a client that asks on a topic which is no request's, a slip of the
// pen perhaps, hears that nobody got it (3.4.2.1), and the log has it; of a free topic
// that is nothing to complain of. A request is not retained: it would be heard again.
func TestMessageToNobody(t *testing.T) {
	var log logText
	b := openPlain(t, nil, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.Authenticate = func(_ context.Context, c Credentials) (mqtt.Identity, error) {
			if c.Username == "" {
				return mqtt.Identity{Name: "open", Access: mqtt.OpenAccess()}, nil
			}
			return mqtt.Identity{Name: c.Username, Device: true, Access: mqtt.DeviceAccess(c.Username, nil)}, nil
		}
	})
	if err := b.Subscribe(t.Context(), []string{"$aws/things/+/shadow/get"}, func(context.Context, mqtt.Message) error { return nil }); err != nil {
		t.Fatal(err)
	}
	listener, other, dev := member(t, b, "listener"), member(t, b, "other"), dialPlain(t, b)
	listener.subscribe("heard/#")
	dev.connect(hello{id: "dev", user: "dev", keepAlive: 30})
	for i, c := range []struct {
		from  *wire
		topic string
		qos   byte
		code  byte
	}{
		{dev, "$aws/things/dev/shadow/got", 1, nobody},
		{dev, "$aws/things/dev/shadow/get", 1, 0},
		{other, "heard/x", 1, 0},
		{other, "unheard/x", 1, nobody},
		{other, "unheard/y", 2, nobody},
	} {
		c.from.publish(c.topic, uint16(i+1), c.qos<<1|1, "x")
		ack := c.from.expect(map[byte]byte{1: puback, 2: pubrec}[c.qos])
		if got := append(ack, 0)[2]; got != c.code {
			t.Errorf("%s: % x, want code %#x", c.topic, ack, c.code)
		}
	}
	if n := b.Stats().Retained; n != 4 {
		t.Errorf("%d messages are retained", n)
	}
	if s := log.String(); !strings.Contains(s, "$aws/things/dev/shadow/got") || strings.Contains(s, "unheard") {
		t.Errorf("logged:\n%s", s)
	}
}
