package broker

import (
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

// How far a client may run ahead of its rates, and how long a connection waits at
// most because of others like it.
const (
	packetBurst    = 2 * time.Second
	connectBurst   = 10 * time.Second
	maxConnectWait = time.Second
)

// yieldEvery is after how many reads a connection that always has something to read
// lets others have the processor.
const yieldEvery = 4

// meter is the time up to which a rate is used up.
type meter time.Time

// use takes cost from the meter and says how long to wait before more is taken,
// once burst is used up.
func (m *meter) use(now time.Time, cost, burst time.Duration) time.Duration {
	at := time.Time(*m)
	if at.Before(now) {
		at = now
	}
	at = at.Add(cost)
	*m = meter(at)
	return max(at.Sub(now)-burst, 0)
}

// cost of n things of which perSecond are allowed.
func cost(n, perSecond int) time.Duration {
	return time.Duration(float64(n) / float64(perSecond) * float64(time.Second))
}

// pace is what a connection has sent, against PacketRate and ByteRate.
type pace struct {
	count, size    int // since the last look
	packets, bytes meter
	reads          int
	slowed         bool // it was told to the log
}

// measure counts a packet. Acknowledgements of what was sent to the client come as
// fast as it was sent, so only their bytes count.
func (c *conn) measure(h packet.Header) {
	c.size += 2 + h.Size
	switch h.Type {
	case packet.PUBACK, packet.PUBREC, packet.PUBCOMP:
	default:
		c.count++
	}
}

// throttle waits, before more is read, while the client is ahead of its rates. What
// it sends waits in the network, which slows it down and loses nothing.
func (c *conn) throttle() {
	if c.reads++; c.reads%yieldEvery == 0 {
		runtime.Gosched()
	}
	if c.size == 0 { // nothing whole since
		return
	}
	now, lim := time.Now(), &c.b.lim
	wait := c.packets.use(now, cost(c.count, lim.PacketRate), packetBurst)
	name, rate := "packet", lim.PacketRate
	if more := c.bytes.use(now, cost(c.size, lim.ByteRate), packetBurst); more > wait {
		wait, name, rate = more, "byte", lim.ByteRate
	}
	c.count, c.size = 0, 0
	if wait == 0 {
		return
	}
	c.b.stats.slowed.Add(1)
	if !c.slowed {
		c.slowed = true
		c.b.log.Info("client is slowed down", "client", c.session.clientID,
			"error", fmt.Sprintf("more than %d %ss a second: send fewer%s", rate, name, lim.raise(name+"-rate")))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.closing:
	}
}

// keepPace and takePace make it of no use to connect again.
func (c *conn) keepPace(now time.Time) {
	c.b.packets.keep(c.session.key, c.packets, now)
	c.b.bytes.keep(c.session.key, c.bytes, now)
}

func (c *conn) takePace() {
	c.packets, c.bytes = c.b.packets.take(c.session.key), c.b.bytes.take(c.session.key)
}

// meters are those of many clients or addresses. What is not used up is forgotten.
type meters struct {
	mu    sync.Mutex
	of    map[string]meter
	sweep int // at this size
}

// minSweep is below what number of meters nobody looks for those to forget.
const minSweep = 1000

// use is meter.use; with a cost of 0 it only asks.
func (m *meters) use(key string, now time.Time, cost, burst time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	one, known := m.of[key]
	if cost == 0 && !known {
		return 0
	}
	if m.of == nil {
		m.of, m.sweep = map[string]meter{}, minSweep
	}
	wait := one.use(now, cost, burst)
	if most := now.Add(burst + maxConnectWait); time.Time(one).After(most) {
		one = meter(most)
	}
	m.of[key] = one
	m.forget(now)
	return min(wait, maxConnectWait)
}

// forget drops what is not used up, once there is much. m.mu is held.
func (m *meters) forget(now time.Time) {
	if len(m.of) <= m.sweep {
		return
	}
	for key, one := range m.of {
		if !time.Time(one).After(now) {
			delete(m.of, key)
		}
	}
	m.sweep = max(2*len(m.of), minSweep)
}

// keep and take pass a meter on, from one connection of a client to the next.
func (m *meters) keep(key string, one meter, now time.Time) {
	if !time.Time(one).After(now) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.of == nil {
		m.of, m.sweep = map[string]meter{}, minSweep
	}
	m.of[key] = one
	m.forget(now)
}

func (m *meters) take(key string) meter {
	m.mu.Lock()
	defer m.mu.Unlock()
	one := m.of[key]
	delete(m.of, key)
	return one
}

// sharedConnects is how many times as often as one client a name may connect that
// is no device: many clients share it, and each may have a fresh client id.
const sharedConnects = 20

// paceConnect lets a client wait that connects again and again.
func (b *Broker) paceConnect(id mqtt.Identity, clientID string) {
	now, key := time.Now(), sessionKey(id, clientID)
	wait, most := b.connecting.use(key, now, cost(1, b.lim.ConnectRate), connectBurst), b.lim.ConnectRate
	if !id.Device {
		key = "n/" + id.Name
		if more := b.connecting.use(key, now, cost(1, most)/sharedConnects, connectBurst); more > wait {
			wait, most = more, most*sharedConnects
		}
	}
	if wait > 0 && b.worthNoting(key, now) {
		b.log.Info("client waits to connect", "client", clientID, "name", id.Name,
			"error", fmt.Sprintf("more than %d connections a second: connect less often%s", most, b.lim.raise("connect-rate")))
	}
	b.hold(wait)
}

// paceFailures lets an address wait from which many connections failed.
func (b *Broker) paceFailures(a net.Addr) {
	now := time.Now()
	wait := b.failing.use(host(a), now, 0, connectBurst)
	if wait > 0 && b.worthNoting("a/"+host(a), now) {
		b.log.Info("address waits to connect", "remote", host(a),
			"error", fmt.Sprintf("more than %d connections a second that come to nothing: mend or block who makes them%s", b.lim.FailureRate, b.lim.raise("failure-rate")))
	}
	b.hold(wait)
}

// noteBurst is for how long of quiet who waits again is worth another line in the log.
const noteBurst = time.Minute

func (b *Broker) worthNoting(key string, now time.Time) bool {
	return b.noted.use(key, now, noteBurst, noteBurst) == 0
}

func (b *Broker) noteFailure(a net.Addr) {
	b.failing.use(host(a), time.Now(), cost(1, b.lim.FailureRate), connectBurst)
}

func (b *Broker) hold(d time.Duration) {
	if d > 0 {
		b.stats.slowed.Add(1)
		b.pause(d)
	}
}

func host(a net.Addr) string {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.IP.String()
	}
	return a.String()
}
