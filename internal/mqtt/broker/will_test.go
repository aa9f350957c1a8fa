package broker

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
)

// leaver connects with a will for topic; delay of MQTT 5, in seconds.
func leaver(t *testing.T, b *Broker, h hello, delay uint32) *wire {
	t.Helper()
	w := dialPlain(t, b)
	h.keepAlive, h.willProps = 60, uint32Property(24, delay)
	if h.persist {
		h.props = forAnHour
	}
	if code, _ := w.connect(h); code != 0 {
		t.Fatalf("connect %s: 0x%02x", h.id, code)
	}
	return w
}

// heard are the payloads that wait for the session "sub", sorted by topic.
func heard(t *testing.T, b *Broker, n int) (topics []string) {
	t.Helper()
	sub := join5(t, b, "sub")
	defer sub.drop()
	for range n {
		m := sub.receive()
		sub.ack(4, m.ID)
		topics = append(topics, m.topic)
	}
	sub.send([]byte{0xc0, 0}) // PINGREQ
	if kind, body := sub.read(); kind != pingresp {
		t.Errorf("one more: packet %d %q", kind, body)
	}
	slices.Sort(topics)
	return topics
}

// A server that stops publishes the wills of its clients; one with a delay when that
// is over, and the server is back, and the client is not.
func TestStopPublishesWills(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	sub := join5(t, b, "sub")
	sub.subscribe("w/#")
	leaver(t, b, hello{id: "clean", willTopic: "w/clean", kept: true}, 0)
	leaver(t, b, hello{id: "lasting", willTopic: "w/lasting", persist: true}, 0)
	leaver(t, b, hello{id: "ends", willTopic: "w/ends"}, 3600) // with its session
	leaver(t, b, hello{id: "slow", willTopic: "w/slow", persist: true}, 1)
	leaver(t, b, hello{id: "back", willTopic: "w/back", persist: true}, 1)
	polite := leaver(t, b, hello{id: "polite", willTopic: "w/polite"}, 0)
	polite.send([]byte{0xe0, 0}) // DISCONNECT
	polite.ended()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if n := m.keys(keyRetained); n != 1 {
		t.Errorf("%d retained messages are stored", n)
	}
	m = m.killed()
	b = openPlain(t, m, func(c *Config) { c.WillGrace = time.Hour })
	join5(t, b, "back").drop()
	if got := heard(t, b, 3); !slices.Equal(got, []string{"w/clean", "w/ends", "w/lasting"}) {
		t.Errorf("heard %q", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openPlain(t, m.killed(), func(c *Config) { c.WillGrace = time.Millisecond })
	if err := waitFor(func() bool { return b.Stats().Queued == 1 }); err != nil {
		t.Fatal(err)
	}
	if got := heard(t, b, 1); !slices.Equal(got, []string{"w/slow"}) {
		t.Errorf("heard %q", got)
	}
	if err := b.journal.flush(); err != nil {
		t.Fatal(err)
	}
	again := openPlain(t, b.conf.Store.(*memory).killed(), nil)
	for key, s := range again.sessions {
		if s.will != nil {
			t.Errorf("%s: the will would be published again", key)
		}
	}
	late := member(t, b, "late")
	late.subscribe("w/clean")
	if got := late.receive(); got.payload != "will" || !got.Retain {
		t.Errorf("retained %+v", got)
	}
}

// The wills of a process that was killed are published by the next one, unless their
// clients are back in time.
func TestKilledServerPublishesWills(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	sub := join5(t, b, "sub")
	sub.subscribe("w/#")
	for _, id := range []string{"clean", "clean-back"} {
		leaver(t, b, hello{id: id, willTopic: "w/" + id, kept: true}, 0).subscribe("x")
	}
	for _, id := range []string{"lasting", "lasting-back"} {
		leaver(t, b, hello{id: id, willTopic: "w/" + id, persist: true}, 0)
	}
	leaver(t, b, hello{id: "later", willTopic: "w/later", persist: true}, 3600) // its delay begins when the server is back
	gone := leaver(t, b, hello{id: "gone", willTopic: "w/gone"}, 0)
	gone.send([]byte{0xe0, 0}) // DISCONNECT
	gone.ended()
	if err := waitFor(func() bool { return m.keys(keySession) == 6 }); err != nil {
		t.Fatalf("%d records", m.keys(keySession))
	}
	m = m.killed()
	b = openPlain(t, m, func(c *Config) { c.WillGrace = time.Hour })
	for _, v5 := range []bool{true, false} {
		w := dialPlain(t, b)
		w.v5 = v5
		if ack := w.greet(hello{id: "clean-back", keepAlive: 60}); ack[0] != 0 || ack[1] != 0 {
			t.Errorf("CONNACK % x", ack) // no session is present
		}
		w.drop()
		offline(t, b, 0)
	}
	join5(t, b, "lasting-back").drop()
	offline(t, b, 0)
	if n := m.keys(keySession) + len(heard(t, b, 0)); n != 5 {
		t.Errorf("%d records", n)
	}
	b = openPlain(t, m.killed(), func(c *Config) { c.WillGrace = time.Millisecond })
	if err := waitFor(func() bool { return b.Stats().Queued == 2 }); err != nil {
		t.Fatal(err)
	}
	if got := heard(t, b, 2); !slices.Equal(got, []string{"w/clean", "w/lasting"}) {
		t.Errorf("heard %q", got)
	}
	if n := b.Stats().Sessions; n != 4 {
		t.Errorf("%d sessions", n)
	}
}

// The time of a will's message begins when it is published.
func TestWillExpiresFromWhenItIsPublished(t *testing.T) {
	b := openPlain(t, nil, nil)
	sub := member(t, b, "sub")
	sub.subscribe("w")
	for _, expiry := range []uint32{0, 3600} {
		w := dialPlain(t, b)
		h := hello{id: "x", keepAlive: 60, willTopic: "w"}
		if expiry > 0 {
			h.willProps = uint32Property(2, expiry)
		}
		if code, _ := w.connect(h); code != 0 {
			t.Fatal(code)
		}
		w.drop()
		got := sub.receive()
		if sub.ack(4, got.ID); got.HasExpiry != (expiry > 0) || got.Expiry > expiry || expiry > 0 && got.Expiry < expiry-60 {
			t.Errorf("expiry %d: %v, %d", expiry, got.HasExpiry, got.Expiry)
		}
	}
}

// Only a will makes a session that does not last be written.
func TestConnectWithoutAWillIsNotWritten(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	w := member(t, b, "x")
	w.subscribe("a")
	w.send([]byte{0xe0, 0}) // DISCONNECT
	w.ended()
	offline(t, b, 0)
	if err := b.journal.flush(); err != nil || m.saves != 0 {
		t.Errorf("%d writes, %v", m.saves, err)
	}
	b = openPlain(t, m, func(c *Config) {
		c.Authenticate = func(context.Context, Credentials) (mqtt.Identity, error) { // who shares credentials with many
			return mqtt.Identity{Name: "claim", Passing: true, Access: mqtt.OpenAccess()}, nil
		}
	})
	leaver(t, b, hello{id: "y", willTopic: "w", persist: true}, 0)
	if err := b.journal.flush(); err != nil || m.saves != 0 {
		t.Errorf("%d writes of a connection that passes, %v", m.saves, err)
	}
}
