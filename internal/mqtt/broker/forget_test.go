package broker

import (
	"context"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
)

// A device that is forgotten loses its session with what waits in it, connected or
// not, and finds none when one of that name comes anew.
func TestForget(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, func(c *Config) {
		c.Authenticate = func(_ context.Context, creds Credentials) (mqtt.Identity, error) {
			return mqtt.Identity{Name: creds.ClientID, Device: creds.ClientID != "pub", Access: mqtt.OpenAccess()}, nil
		}
	})
	var here *wire
	for _, id := range []string{"stays", "away", "here"} {
		sub := join5(t, b, id)
		if codes := sub.subscribe("a/#"); codes[0] != 1 {
			t.Fatalf("SUBACK % x", codes)
		}
		if here = sub; id != "here" {
			sub.drop()
		}
	}
	offline(t, b, 1)
	pub := dialPlain(t, b)
	pub.mustConnect("pub")
	pub.mustPublish("a/x", 1, "waits")
	if got := here.receive(); got.payload != "waits" {
		t.Errorf("got %q before the end", got.payload)
	}
	before := m.keys("")
	deleted := time.Now()
	for _, id := range []string{"nobody", "away", "here"} {
		b.Evict(mqtt.Eviction{DeviceID: id, Reason: "deleted", At: deleted, Forget: true})
	}
	offline(t, b, 1)
	b.journal.flush() // the two were written one after the other, or are still to be
	if n := m.keys(""); n >= before {
		t.Errorf("%d records are kept of %d", n, before)
	}
	for id, want := range map[string]int{"here": 0, "away": 0, "stays": 1} {
		if n := len(b.sessionsOf(id)); n != want {
			t.Errorf("%s has %d sessions, want %d", id, n, want)
		}
	}
	if body := here.expect(disconnect); body[0] != 0x98 {
		t.Errorf("DISCONNECT % x", body)
	}
	later := openPlain(t, m.killed(), nil)
	if n := len(later.sessions); n != 1 {
		t.Errorf("%d sessions after a restart, want 1", n)
	}
	again := join5(t, b, "away")
	again.subscribe("b")
	pub.mustPublish("b", 2, "for the new one")
	if got := again.receive(); got.payload != "for the new one" {
		t.Errorf("the new one got %q", got.payload)
	}
}

// Whoever came after the moment of an eviction is not meant by it: neither its
// connection ends, nor what waits for it when it has gone meanwhile.
func TestEvictionSparesWhoCameSince(t *testing.T) {
	b := openPlain(t, &memory{state: map[string][]byte{}}, func(c *Config) {
		c.Authenticate = func(_ context.Context, creds Credentials) (mqtt.Identity, error) {
			return mqtt.Identity{Name: creds.ClientID, Device: true, Access: mqtt.OpenAccess()}, nil
		}
	})
	evict := func(forget bool, at time.Time) {
		for _, id := range []string{"here", "away"} {
			b.Evict(mqtt.Eviction{DeviceID: id, Reason: "x", At: at, Forget: forget})
		}
	}
	earlier := time.Now()
	here, away := join5(t, b, "here"), join5(t, b, "away")
	here.subscribe("a")
	away.subscribe("a")
	away.drop()
	offline(t, b, 1)
	evict(false, earlier)
	evict(true, earlier)
	if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", Payload: []byte("x"), QoS: 1}); err != nil {
		t.Fatal(err)
	}
	if got := here.receive(); got.payload != "x" {
		t.Errorf("got %q", got.payload)
	}
	if n := len(b.sessionsOf("away")); n != 1 {
		t.Errorf("%d sessions of who is away", n)
	}
	evict(false, time.Now())
	if body := here.expect(disconnect); body[0] != 0x98 {
		t.Errorf("DISCONNECT % x", body)
	}
	evict(true, time.Now())
	for _, id := range []string{"here", "away"} {
		if err := waitFor(func() bool { return len(b.sessionsOf(id)) == 0 }); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}
