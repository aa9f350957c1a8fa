package broker

import (
	"errors"
	"fmt"
	"os"

	"github.com/otad/otad/internal/mqtt/packet"
)

const keepAliveReason = "keep alive timeout"

var (
	errGone       = errors.New("gone")
	errDisconnect = errors.New("disconnect")
)

// receive reads and handles packets until the connection ends.
func (c *conn) receive() {
	for {
		h, body, ok, err := c.frames.next(&c.b.lim)
		if err == nil && !ok {
			c.flush()
			c.throttle()
			if err = c.extend(c.nc); err == nil && !c.isClosing() {
				err = c.frames.fill(c.nc)
			}
		}
		if ok {
			c.b.stats.received.Add(1)
			c.measure(h)
			err = c.handle(h, body)
		}
		if err == nil {
			if c.isClosing() {
				return
			}
			continue
		}
		c.fault(err)
		return
	}
}

// isClosing reports whether the connection is being ended. Whoever ends it wakes the
// reader by a deadline after that: one that asks after it has set its own either sees
// it or is woken.
func (c *conn) isClosing() bool {
	select {
	case <-c.closing:
		return true
	default:
		return false
	}
}

// fault ends the connection for err.
func (c *conn) fault(err error) {
	var fault *packet.Error
	switch {
	case errors.Is(err, errDisconnect):
		c.end(closeCause{reason: "disconnected"}, func() {})
	case errors.As(err, &fault):
		c.blame(fault.Code, fault.Text)
	case !errors.Is(err, os.ErrDeadlineExceeded):
		c.lose(err)
	case c.shortened:
		c.blame(packet.KeepAliveTimeout, fmt.Sprintf("%s: send something, or PINGREQ, within %s%s", keepAliveReason, c.b.lim.KeepAlive, c.b.lim.raise("keep-alive")))
	default:
		c.close(packet.KeepAliveTimeout, keepAliveReason)
	}
}

func (c *conn) handle(h packet.Header, body []byte) error {
	switch h.Type {
	case packet.PUBLISH:
		return c.publish(h.Flags, body)
	case packet.PUBACK, packet.PUBREC, packet.PUBREL, packet.PUBCOMP:
		a, err := packet.DecodeAck(body, c.version)
		if err != nil {
			return err
		}
		c.ack(h.Type, a)
		return nil
	case packet.SUBSCRIBE:
		return c.subscribe(body)
	case packet.UNSUBSCRIBE:
		return c.unsubscribe(body)
	case packet.PINGREQ:
		if len(body) > 0 {
			return &packet.Error{Code: packet.MalformedPacket, Text: "malformed packet: PINGREQ with a body"}
		}
		c.answerNow([]byte{byte(packet.PINGRESP) << 4, 0}, 0)
		return nil
	case packet.DISCONNECT:
		return c.disconnect(body)
	}
	return &packet.Error{Code: packet.ProtocolError, Text: "protocol error: this packet is not for a server, or not now"}
}

// ack handles the acknowledgement of a publish to or, with PUBREL, from the
// client. Unknown packet identifiers are answered, not punished: after a lost
// connection they are normal.
func (c *conn) ack(t packet.Type, a packet.Ack) {
	if answer, settled := c.settleAck(t, a); answer.ID != 0 {
		next := packet.PUBREL
		if t == packet.PUBREL {
			next = packet.PUBCOMP
		}
		c.acknowledge(next, answer, "", settled)
	}
}

// settleAck takes an acknowledgement and returns what QoS 2 has in answer to it, if
// anything. With it both sides forget, so it waits until what was forgotten, or
// noted, is durable: c.dirty.
func (c *conn) settleAck(t packet.Type, a packet.Ack) (answer packet.Ack, settled int) {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if t == packet.PUBREL {
		return c.release(a)
	}
	i := s.flying(a.ID)
	if i < 0 {
		if t == packet.PUBREC {
			return packet.Ack{ID: a.ID, Code: packet.PacketIDNotFound}, 0
		}
		return packet.Ack{}, 0
	}
	o := s.inflight[i]
	switch {
	case t == packet.PUBACK && o.qos == 1,
		t == packet.PUBCOMP && o.state == released,
		t == packet.PUBREC && o.qos == 2 && a.Code >= packet.UnspecifiedError:
		s.complete(i)
	case t == packet.PUBREC && o.qos == 2:
		o.state = released
		s.keepReleased(o)
		c.dirty = o.stored
		return packet.Ack{ID: a.ID}, 0
	}
	return packet.Ack{}, 0
}

// release ends the receipt of a QoS 2 publish (4.3.3).
func (c *conn) release(a packet.Ack) (answer packet.Ack, settled int) {
	s := c.session
	answer = packet.Ack{ID: a.ID, Code: packet.PacketIDNotFound}
	if _, ok := s.received[a.ID]; ok {
		answer.Code, settled = packet.Success, 1
		delete(s.received, a.ID)
		s.forgetReceived(a.ID)
		c.dirty = s.recorded
	}
	if c.version != packet.V5 {
		answer.Code = packet.Success
	}
	return answer, settled
}

// disconnect handles the client's goodbye (3.14).
func (c *conn) disconnect(body []byte) error {
	d, err := packet.DecodeDisconnect(body, c.version)
	if err != nil {
		return err
	}
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.HasExpiry {
		if s.expiry == 0 && d.SessionExpiry > 0 && !s.identity.Passing { // who may have asked for one in CONNECT
			return &packet.Error{Code: packet.ProtocolError, Text: "protocol error: a session without expiry can not get one at the end"} // 3.14.2.2.2
		}
		s.expiry = s.b.expiry(d.SessionExpiry, s.identity)
	}
	c.clean = d.Code != packet.DisconnectWithWill
	return errDisconnect
}
