package broker

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/otad/otad/internal/mqtt/packet"
)

// conn is one network connection. What is not said to be guarded belongs to the
// goroutine that reads from it.
type conn struct {
	b     *Broker
	nc    net.Conn
	plain bool

	frames   frames
	version  byte
	began    time.Time   // before its credentials were looked at
	voucher  string      // of its JWT, see mqtt.Identity; guarded by Broker.mu
	expiring *time.Timer // nil: it came without a JWT
	session  *session    // set once, before anybody else knows of the connection
	aliases  map[uint16]string
	deadline
	pace
	shortened bool // its keep alive is Limits.KeepAlive, and it was told
	clean     bool // the client said goodbye: no will

	dirty      bool       // the packet at hand changed what is in the store
	complaints int        // in the log about this connection
	to         recipients // of the message at hand

	window    int           // publishes in flight to the client
	maxPacket int           // bytes of a packet to it, 0: any
	terse     bool          // no reason strings but in DISCONNECT (3.1.2.11.7)
	closing   chan struct{} // closed when this side or the network has ended it
	told      chan struct{} // closed when the farewell is out, or can not be
	done      chan struct{} // closed when the session is free again
	once      sync.Once
	cause     closeCause // set before closing is closed

	// Guarded by session.mu.
	outAliases aliases   // for topics to the client
	control    []byte    // packets that go before publishes
	acks       []*answer // not sent yet, in the order their requests came
	owed       int       // publishes of the client without PUBACK or PUBCOMP
	writing    bool      // somebody writes, or is about to
	dead       bool      // nothing goes out any more but the farewell
	farewell   []byte
	drained    chan struct{} // somebody waits for control to be written
}

type closeCause struct {
	code   packet.Code
	reason string
	fault  bool // of the client, and the log is told
}

// answer is an acknowledgement that may have to wait for the store.
type answer struct {
	bytes []byte
	ready bool
	owed  int // publishes that it settles
}

// writeChunk is how much one write takes at most, unless one packet is larger.
const writeChunk = 16 << 10

// aliasSize is what a topic alias adds to a packet.
const aliasSize = 3

// controlMax is how many bytes of answers may wait for a client that sends
// requests without reading the answers, before no more requests are read.
const controlMax = 16 << 10

var chunks = sync.Pool{New: func() any { b := make([]byte, 0, writeChunk+1024); return &b }}

// kick makes sure that somebody writes what there is. session.mu is held.
func (s *session) kick() {
	if c := s.conn; c != nil && !c.writing && !c.dead {
		c.writing = true
		c.b.wg.Go(c.write)
	}
}

// flush writes what there is, on the goroutine of the reader, unless somebody
// does already. While the client does not take its answers, it waits.
func (c *conn) flush() {
	s := c.session
	s.mu.Lock()
	if !c.writing && !c.dead && (len(c.control) > 0 || s.sendable(c)) {
		c.writing = true
		s.mu.Unlock()
		if c.writeSome() {
			c.b.wg.Go(c.write) // the reader has to go on reading
		}
		return
	}
	var wait chan struct{}
	if c.writing && len(c.control) > controlMax {
		if c.drained == nil {
			c.drained = make(chan struct{})
		}
		wait = c.drained
	}
	s.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-c.closing:
		}
	}
}

// write sends until there is nothing to send. The caller has set writing.
func (c *conn) write() {
	for c.writeSome() {
	}
}

// writeSome sends a chunk and reports whether there may be more; if not, writing
// is not set any more.
func (c *conn) writeSome() (more bool) {
	chunk := chunks.Get().(*[]byte)
	defer chunks.Put(chunk)
	s := c.session
	s.mu.Lock()
	buf := c.collect((*chunk)[:0])
	dead := c.dead
	if dead {
		buf = append(buf, c.farewell...)
	}
	if len(buf) == 0 && !dead {
		c.writing = false
		s.mu.Unlock()
		return false
	}
	s.mu.Unlock()
	err := c.send(buf, dead)
	if cap(buf) <= 2*writeChunk {
		*chunk = buf[:0]
	}
	if err != nil {
		c.lose(c.writeError(err))
	}
	if dead || err != nil { // half a packet may be out: nothing can follow it
		if err != nil || !c.halfClose() {
			c.hangUp()
		}
		close(c.told)
		return false // and writing stays set: there is nothing more to do
	}
	return c.moreToWrite()
}

// moreToWrite gives up writing when there is nothing left.
func (c *conn) moreToWrite() bool {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	c.writing = c.dead || len(c.control) > 0 || s.conn == c && s.sendable(c)
	return c.writing
}

func (c *conn) send(buf []byte, farewell bool) error {
	timeout := c.b.lim.WriteTimeout
	if farewell {
		timeout = farewellTimeout
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(timeout))
	n, err := c.nc.Write(buf)
	c.b.stats.bytesOut.Add(uint64(n))
	return err
}

// writeError is err, or says that the client does not read.
func (c *conn) writeError(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return &packet.Error{Code: packet.QuotaExceeded, Text: fmt.Sprintf("nothing read for %s: read what is sent", c.b.lim.WriteTimeout) + c.b.lim.raise("write-timeout")}
}

// collect appends what shall go out next: answers, then publishes.
func (c *conn) collect(buf []byte) []byte {
	s := c.session
	if len(c.control) > 0 {
		buf = append(buf, c.control...)
		c.control = c.control[:0]
		if cap(c.control) > 256 {
			c.control = nil
		}
		if c.drained != nil {
			close(c.drained)
			c.drained = nil
		}
	}
	if c.dead || s.conn != c {
		return buf
	}
	var now time.Time
	for len(buf) < writeChunk && s.head < len(s.queue) {
		if now.IsZero() {
			now = time.Now()
		}
		o := s.next(c, now)
		if o == nil {
			break
		}
		d := o.publishOut(now)
		c.outAliases.use(&d)
		buf = packet.AppendPublish(buf, c.version, d)
		c.b.stats.sent.Add(1)
		if o.qos > 0 {
			o.state = sent
			s.inflight = append(s.inflight, o)
		}
	}
	return buf
}

// aliases are the topic aliases of one connection to the client (3.3.2.3.4). The
// first topics get them.
type aliases struct {
	most uint16 // 0: the client wants none
	of   map[string]uint16
}

// use makes d shorter if it can.
func (a *aliases) use(d *packet.Delivery) {
	if a.most == 0 {
		return
	}
	if known, ok := a.of[d.Topic]; ok {
		d.Topic, d.Alias = "", known
		return
	}
	if len(a.of) == int(a.most) {
		return
	}
	if a.of == nil {
		a.of = map[string]uint16{}
	}
	d.Alias = uint16(len(a.of) + 1)
	a.of[d.Topic] = d.Alias
}

// fits reports whether the client takes a packet of so many bytes. What every
// packet but PUBLISH has at least, always does: connect sees to it.
func (c *conn) fits(size int) bool { return c.maxPacket == 0 || size <= c.maxPacket }

// tooLarge reports whether the client would not take o (3.1.2.11.4).
func (c *conn) tooLarge(o *outgoing) bool {
	if c.maxPacket == 0 || o.msg.size()+64+aliasSize+5*len(o.subIDs) < c.maxPacket {
		return false
	}
	return packet.PublishSize(c.version, o.publishOut(time.Now()))+aliasSize > c.maxPacket
}

// answerNow sends b after the answers that are still to come. settled is how many
// publishes it acknowledges.
func (c *conn) answerNow(b []byte, settled int) {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(c.acks) == 0 {
		c.control = append(c.control, b...)
		c.owed -= settled
		return
	}
	c.acks = append(c.acks, &answer{append([]byte(nil), b...), true, settled})
}

// answerDurable sends b when everything that was put into the journal up to now
// is durable. If it can not be, the connection ends, so that the client comes
// again.
func (c *conn) answerDurable(b []byte, settled int) {
	s := c.session
	a := &answer{bytes: b, owed: settled}
	s.mu.Lock()
	c.acks = append(c.acks, a)
	s.mu.Unlock()
	c.b.journal.then(func(err error) {
		if err != nil {
			c.b.log.Error("session not stored", "client", s.clientID, "error", err)
			c.close(packet.ImplementationSpecific, "could not be stored")
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		a.ready = true
		c.settle()
		if len(c.control) > 0 {
			s.kick()
		}
	})
}

// settle moves the answers that are ready to control, in order (4.6).
func (c *conn) settle() {
	for len(c.acks) > 0 && c.acks[0].ready {
		c.control = append(c.control, c.acks[0].bytes...)
		c.owed -= c.acks[0].owed
		c.acks = c.acks[1:]
	}
	if len(c.acks) == 0 {
		c.acks = nil
	}
}

// close ends the connection from this side, with a word to an MQTT 5 client.
// Only the first reason counts. It does not wait.
func (c *conn) close(code packet.Code, reason string) {
	c.end(closeCause{code: code, reason: reason}, c.sayWhy)
}

// blame is close for what the client did, of which the log hears too.
func (c *conn) blame(code packet.Code, reason string) {
	c.end(closeCause{code, reason, true}, c.sayWhy)
}

func (c *conn) sayWhy() {
	if c.version != packet.V5 {
		return
	}
	c.farewell = packet.AppendDisconnect(nil, c.cause.code, c.cause.reason)
	if !c.fits(len(c.farewell)) { // 3.14.2.2.3
		c.farewell = packet.AppendDisconnect(nil, c.cause.code, "")
	}
}

// lose ends a connection that is broken.
func (c *conn) lose(err error) {
	var fault *packet.Error
	c.end(closeCause{reason: reasonOf(err), fault: errors.As(err, &fault)}, func() {})
}

func (c *conn) end(cause closeCause, farewell func()) {
	c.once.Do(func() {
		if cause.fault {
			c.b.log.Info("connection ended", "client", c.session.clientID, "remote", c.nc.RemoteAddr().String(), "error", cause.reason)
		}
		c.cause = cause
		close(c.closing)
		s := c.session
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conn == c {
			s.up.Store(false) // before the client can know: no share of anything goes to it
		}
		farewell()
		c.dead = true
		if !c.writing {
			c.writing = true
			c.b.wg.Go(c.write)
			return
		}
		_ = c.nc.SetWriteDeadline(time.Now().Add(farewellTimeout)) // whoever writes now is not to take longer
	})
}

// lingerBytes is how much a client may still send while it is told to go.
const lingerBytes = 64 << 10

// halfClose ends the sending side after a farewell and wakes the reader, which
// lingers. It reports false where there is nothing to linger for.
func (c *conn) halfClose() bool {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || len(c.farewell) == 0 || half.CloseWrite() != nil {
		return false
	}
	_ = c.nc.SetReadDeadline(time.Now())
	return true
}

// linger lets the client read its DISCONNECT: closing at once, with bytes of the
// client unread, would reset the connection and take the packet away from it.
func (c *conn) linger() {
	<-c.told
	if len(c.farewell) == 0 {
		return
	}
	nc := c.nc
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	_ = nc.SetReadDeadline(time.Now().Add(farewellTimeout))
	_, _ = io.CopyN(io.Discard, nc, lingerBytes)
}

// hangUp closes the network connection. TLS says goodbye first, for a second at
// most.
func (c *conn) hangUp() {
	t, ok := c.nc.(*tls.Conn)
	if !ok {
		_ = c.nc.Close()
		return
	}
	timer := time.AfterFunc(farewellTimeout, func() { _ = t.NetConn().Close() })
	defer timer.Stop()
	_ = t.Close()
}

// reasonOf says in words why reading or writing ended.
func reasonOf(err error) string {
	var fault *packet.Error
	if errors.As(err, &fault) {
		return fault.Text
	}
	return "connection lost"
}
