package broker

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/mqtt"
)

// Who is passing leaves nothing behind, whatever it asks for.
func TestPassingClientsLeaveNothing(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, func(c *Config) {
		c.Authenticate = func(context.Context, Credentials) (mqtt.Identity, error) {
			return mqtt.Identity{Name: "claim", Passing: true, Access: mqtt.OpenAccess()}, nil
		}
	})
	for _, v5 := range []bool{true, false} {
		for range 2 {
			w := dialPlain(t, b)
			w.v5 = v5
			h := hello{id: "line-1", keepAlive: 30, persist: true}
			if v5 {
				h.props = forAnHour
			}
			body := w.greet(h)
			if body[0] != 0 || body[1] != 0 {
				t.Fatalf("v5=%v: CONNACK % x", v5, body)
			}
			if v5 && !bytes.Contains(body[2:], uint32Property(17, 0)) {
				t.Errorf("it is not told that its session does not last: % x", body)
			}
			w.subscribe("a")
			if v5 {
				w.send(framed(0xe0, join([]byte{0, 5}, forAnHour))) // DISCONNECT
				if kind, body := w.read(); kind != 0 {
					t.Errorf("packet %d: % x", kind, body)
				}
			}
			w.drop()
			offline(t, b, 0)
			if n := b.Stats().Sessions; n != 0 || m.keys("") != 0 {
				t.Fatalf("v5=%v: %d sessions and %d records are left", v5, n, m.keys(""))
			}
		}
	}
}

// Fresh client ids do not make sessions without end, and those there are survive a
// restart with their number.
func TestSessionsAreBounded(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	limits := func(c *Config) {
		c.Limits.Sessions = 2
		c.Authenticate = func(_ context.Context, creds Credentials) (mqtt.Identity, error) {
			if creds.Username != "" {
				return mqtt.Identity{Name: creds.Username, Device: true, Access: mqtt.OpenAccess()}, nil
			}
			return mqtt.Identity{Name: "open", Access: mqtt.OpenAccess()}, nil
		}
	}
	b := openPlain(t, m, limits)
	try := func(h hello, v5 bool, want byte) {
		t.Helper()
		w := dialPlain(t, b)
		w.v5, h.keepAlive = v5, 30
		if code, _ := w.connect(h); code != want {
			t.Errorf("%s, v5=%v: code 0x%02x, want 0x%02x", h.id, v5, code, want)
		}
		w.drop()
		offline(t, b, 0)
	}
	lasting := func(id string) hello { return hello{id: id, persist: true, props: forAnHour} }
	full := func() {
		t.Helper()
		for i := range 5 {
			try(lasting(fmt.Sprint("fresh-", i)), true, 0x97)
			try(hello{id: fmt.Sprint("fresh-", i), persist: true}, false, 3)
		}
		if n := b.Stats().Sessions; n > 5 { // three of devices
			t.Errorf("%d sessions", n)
		}
	}
	try(lasting("a"), true, 0)
	try(lasting("b"), true, 0)
	full()
	try(hello{id: "fresh"}, true, 0)  // that lasts no longer than its connection
	try(hello{id: "fresh"}, false, 0) // clean
	try(lasting("a"), true, 0)        // that is one of the two
	clean := lasting("b")
	clean.persist = false
	try(clean, true, 0) // begins it anew
	for i := range 3 {
		id := fmt.Sprint("device-", i)
		try(hello{id: id, user: id, persist: true, props: forAnHour}, true, 0)
	}
	_ = b.Close()
	b = openPlain(t, m.killed(), limits)
	full()
	try(hello{id: "a"}, true, 0) // ends it
	try(lasting("c"), true, 0)
	full()
}

// Nor does a fresh client id escape the pace; devices, many behind one address, do
// not wait for each other.
func TestFreshClientIDsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Broker{lim: Limits{ConnectRate: 1}.withDefaults(), log: slog.New(slog.DiscardHandler), quit: make(chan struct{})}
		burst := sharedConnects * int(connectBurst/time.Second)
		for _, c := range []struct {
			device bool
			want   time.Duration
		}{{true, 0}, {false, 5 * time.Second}} {
			began := time.Now()
			for i := range burst + 5*sharedConnects {
				id := mqtt.Identity{Name: "open", Device: c.device}
				if c.device {
					id.Name = fmt.Sprint("device-", i)
				}
				b.paceConnect(id, fmt.Sprint("fresh-", i))
			}
			if took := time.Since(began); took != c.want {
				t.Errorf("device=%v: %s, want %s", c.device, took, c.want)
			}
		}
	})
}

// Who finds the queue of a client full, and waits, goes on when there is room already.
func TestRoomThatCameBeforeTheWait(t *testing.T) {
	b := openPlain(t, nil, nil)
	member(t, b, "quick")
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		select {
		case <-s.room(&message{}):
		default:
			t.Error("waits though the queue is empty")
		}
	}
}
