package broker

import (
	"fmt"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

func TestMeter(t *testing.T) {
	var m meter
	now := time.Unix(1000, 0)
	each := cost(1, 10)
	for i := range 20 { // 2 s of it at once
		if wait := m.use(now, each, 2*time.Second); wait != 0 {
			t.Fatalf("number %d waits %s", i, wait)
		}
	}
	if wait := m.use(now, each, 2*time.Second); wait != each {
		t.Errorf("waits %s, want %s", wait, each)
	}
	if wait := m.use(now.Add(each), each, 2*time.Second); wait != each {
		t.Errorf("a tenth of a second later it waits %s, want %s", wait, each)
	}
	now = now.Add(time.Hour) // rest is not saved up
	if wait := m.use(now, 3*time.Second, 2*time.Second); wait != time.Second {
		t.Errorf("waits %s, want 1s", wait)
	}
}

// Many clients leave no more behind than those who are at their rate now.
func TestMetersForget(t *testing.T) {
	var m meters
	now := time.Unix(1000, 0)
	for i := range 100 * minSweep {
		now = now.Add(time.Millisecond)
		m.use(fmt.Sprint(i), now, cost(1, 5), connectBurst)
	}
	if n := len(m.of); n > 2*minSweep {
		t.Errorf("%d meters", n)
	}
	for range 1000 { // nobody waits for long, and not for long after
		if wait := m.use("x", now, cost(1, 5), connectBurst); wait > maxConnectWait {
			t.Fatalf("waits %s", wait)
		}
	}
	if wait := m.use("x", now.Add(maxConnectWait), 0, connectBurst); wait != 0 {
		t.Errorf("waits %s a second later", wait)
	}
	if m.use("unknown", now, 0, connectBurst); len(m.of) > 2*minSweep+1 {
		t.Error("asking is remembered")
	}
}

// It does not help a client that is ahead of its rates to connect again.
func TestAFastClientStaysSlow(t *testing.T) {
	const rate, n, rounds = 1000, 1000, 4
	b := openPlain(t, nil, func(c *Config) { c.Limits.PacketRate = rate })
	began := time.Now()
	for range rounds {
		w := dialPlain(t, b)
		w.v5 = false
		w.mustConnect("fast")
		var all []byte
		for i := range n {
			all = append(all, framed(0x32, join(str("a"), []byte{0, byte(i%200 + 1)}))...)
		}
		w.send(all)
		for range n {
			w.expect(puback)
		}
		w.send([]byte{0xc0, 0})
		w.expect(13)
		w.drop()
		offline(t, b, 0)
	}
	if took, want := time.Since(began), cost(rounds*n, rate)-packetBurst; took < want {
		t.Errorf("%d packets in %s, want %s", rounds*n, took, want)
	}
}

// What a client has to acknowledge does not count against it.
func TestAcknowledgementsHaveNoRate(t *testing.T) {
	b := openPlain(t, nil, func(c *Config) { c.Limits.PacketRate = 1 })
	sub := dialPlain(t, b)
	sub.mustConnect("sub")
	sub.subscribe("a")
	for i := range 200 {
		if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", QoS: 1, Payload: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
		sub.ack(packet.PUBACK, sub.receive().ID)
	}
	if n := b.Stats().Slowed; n != 0 {
		t.Errorf("slowed %d times", n)
	}
}
