package embedded

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// conn is a network connection and what is known of who is behind it.
type conn struct {
	net.Conn

	// Of the connection's own goroutine.
	id     string  // device id, empty before admission
	device *device // nil before admission

	mu     sync.Mutex
	cl     *mochi.Client // nil before admission
	reason string        // why this side ended it, empty if it did not
}

// device is the place of one device: one connection at a time holds it, so
// that all that happens to a device happens in order. A newcomer ends the
// holder and waits until it has left, handler, will and all.
type device struct {
	slot   chan struct{} // capacity 1
	latest *conn         // the last to ask for the slot; guarded by Broker.mu
	online bool          // guarded by Broker.mu
	refs   int           // who knows this value; guarded by Broker.mu
}

func (c *conn) client() *mochi.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cl
}

// condemn notes why this side ends the connection. The first reason stays.
func (c *conn) condemn(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reason = cmp.Or(c.reason, reason)
}

func (c *conn) condemned() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// Write gives up on a client that does not read. The connection is then of no
// use: half a packet may have been sent.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// Close ends the connection. TLS says goodbye first, for a second at most.
func (c *conn) Close() error {
	timer := time.AfterFunc(farewellTimeout, c.abort)
	defer timer.Stop()
	return c.Conn.Close()
}

// abort closes the socket below TLS.
func (c *conn) abort() {
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
		return
	}
	_ = c.Conn.Close()
}

// SetDeadline is what the engine calls for the keep alive, which is about
// reading; Write has its own deadline.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// peerCertificates is the chain that TLS verified, nil without one.
func (c *conn) peerCertificates() []*x509.Certificate {
	t, ok := c.Conn.(*tls.Conn)
	if !ok || len(t.ConnectionState().VerifiedChains) == 0 {
		return nil
	}
	return t.ConnectionState().PeerCertificates
}

// accept serves connections until l is closed.
func (b *Broker) accept(l net.Listener, name string) {
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			b.log.Error("accept", "listener", name, "error", err)
			if !b.pause(time.Second) { // out of file descriptors, most likely
				return
			}
			continue
		}
		c := &conn{Conn: nc}
		if !b.register(c) {
			_ = nc.Close()
			return
		}
		go b.serve(c, name)
	}
}

// pause waits for d; false when the broker is closed in the meantime.
func (b *Broker) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-b.quit:
		return false
	}
}

// register counts c among what Close ends and waits for.
func (b *Broker) register(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return false
	}
	b.conns[c] = struct{}{}
	b.wg.Add(1)
	return true
}

// serve runs one connection to its end.
func (b *Broker) serve(c *conn, listener string) {
	defer b.wg.Done()
	_ = c.SetReadDeadline(time.Now().Add(connectTimeout)) // the engine sets none before CONNECT
	err := b.server.EstablishConnection(listener, c)
	_ = c.Close()
	if c.device == nil {
		b.log.Info("connection refused", "remote", c.RemoteAddr().String(), "error", err)
	} else {
		b.left(c, reasonOf(c, err))
	}
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
}

// acquire returns the place of a device; release gives it back.
func (b *Broker) acquire(id string) *device {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.devices[id]
	if d == nil {
		d = &device{slot: make(chan struct{}, 1)}
		b.devices[id] = d
	}
	d.refs++
	return d
}

func (b *Broker) release(id string, d *device) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.refs--; d.refs == 0 {
		delete(b.devices, id)
	}
}

// claim makes c the device's connection, once the one before has left.
func (b *Broker) claim(c *conn, cl *mochi.Client, id string) error {
	d := b.acquire(id)
	if err := b.takeOver(c, d); err != nil {
		b.release(id, d)
		return err
	}
	c.id, c.device = id, d
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cl = cl
	return nil
}

func (b *Broker) takeOver(c *conn, d *device) error {
	b.mu.Lock()
	before := d.latest
	d.latest = c
	b.mu.Unlock()
	if before != nil {
		b.end(before, codeTakenOver)
	}
	timer := time.NewTimer(connectTimeout)
	defer timer.Stop()
	select {
	case d.slot <- struct{}{}:
	case <-timer.C:
		return errors.New("the former connection is still busy")
	case <-b.quit:
		return ErrClosed
	}
	if c.condemned() != "" {
		<-d.slot
		return errors.New(c.condemned())
	}
	return nil
}

// arrived reports that c's session is up.
func (b *Broker) arrived(c *conn) {
	b.setOnline(c.device, true)
	b.presence(c.id, true, "")
}

// left reports the end of c and makes room for the next.
func (b *Broker) left(c *conn, reason string) {
	if b.setOnline(c.device, false) {
		b.presence(c.id, false, reason)
	}
	b.mu.Lock()
	if c.device.latest == c {
		c.device.latest = nil
	}
	b.mu.Unlock()
	<-c.device.slot
	b.release(c.id, c.device)
}

// setOnline returns what was before.
func (b *Broker) setOnline(d *device, online bool) (before bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before, d.online = d.online, online
	return before
}

// end ends a connection from this side, with a word of farewell to an MQTT 5
// client, which must not hold it up. The engine then finds the connection
// closed and publishes the will; its own way of ending drops wills at times.
func (b *Broker) end(c *conn, code packets.Code) {
	c.condemn(code.Reason)
	timer := time.AfterFunc(farewellTimeout, c.abort)
	defer timer.Stop()
	if cl := c.client(); cl != nil && cl.Properties.ProtocolVersion == 5 {
		_ = cl.WritePacket(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Disconnect},
			ReasonCode:  code.Code,
			Properties:  packets.Properties{ReasonString: code.Reason},
		})
	}
	_ = c.Close()
}

func (b *Broker) presence(id string, connected bool, reason string) {
	if b.conf.Presence != nil {
		b.conf.Presence(id, connected, reason, b.conf.Now())
	}
}

// reasonOf says in words why a connection ended.
func reasonOf(c *conn, err error) string {
	if reason := c.condemned(); reason != "" {
		return reason
	}
	var code packets.Code
	switch cause := cmp.Or(c.client().StopCause(), err); {
	case errors.As(cause, &code):
		return code.Reason
	case errors.Is(cause, os.ErrDeadlineExceeded):
		return "keep alive timeout"
	case cause == nil:
		return "disconnected"
	default: // io.EOF and its many relatives
		return "connection lost"
	}
}
