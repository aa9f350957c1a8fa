package broker

import (
	"errors"

	"github.com/otad/otad/internal/mqtt/packet"
)

var (
	errGone       = errors.New("gone")
	errDisconnect = errors.New("disconnect")
)

// receive reads and handles packets until the connection ends.
func (c *conn) receive() {
	for {
		h, body, ok, err := c.frames.next(c.b.lim.PacketBytes)
		if err == nil && !ok {
			c.flush()
			if err = c.extend(c.nc); err == nil {
				err = c.frames.fill(c.nc)
			}
		}
		if ok {
			c.b.stats.received.Add(1)
			err = c.handle(h, body)
		}
		if err == nil {
			select {
			case <-c.closing:
				return
			default:
				continue
			}
		}
		c.fault(err)
		return
	}
}

// fault ends the connection for err.
func (c *conn) fault(err error) {
	var fault *packet.Error
	switch {
	case errors.Is(err, errDisconnect):
		c.end(closeCause{reason: "disconnected"}, func() {})
	case errors.As(err, &fault):
		c.close(fault.Code, fault.Text)
	default:
		if r := reasonOf(err); r == keepAliveReason {
			c.close(packet.KeepAliveTimeout, r)
			return
		}
		c.lose(err)
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
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if t == packet.PUBREL {
		c.release(a)
		return
	}
	i := s.flying(a.ID)
	if i < 0 {
		if t == packet.PUBREC {
			c.control = packet.AppendAck(c.control, c.version, packet.PUBREL, packet.Ack{ID: a.ID, Code: packet.PacketIDNotFound}, "")
		}
		return
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
		c.control = packet.AppendAck(c.control, c.version, packet.PUBREL, packet.Ack{ID: a.ID}, "")
	}
}

// release ends the receipt of a QoS 2 publish (4.3.3).
func (c *conn) release(a packet.Ack) {
	s := c.session
	code := packet.PacketIDNotFound
	if _, ok := s.received[a.ID]; ok {
		code = packet.Success
		delete(s.received, a.ID)
		s.forgetReceived(a.ID)
		c.owed--
	}
	if c.version != packet.V5 {
		code = packet.Success
	}
	c.control = packet.AppendAck(c.control, c.version, packet.PUBCOMP, packet.Ack{ID: a.ID, Code: code}, "")
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
		if s.expiry == 0 && d.SessionExpiry > 0 {
			return &packet.Error{Code: packet.ProtocolError, Text: "protocol error: a session without expiry can not get one at the end"} // 3.14.2.2.2
		}
		s.expiry = s.b.expiry(d.SessionExpiry)
	}
	c.clean = d.Code != packet.DisconnectWithWill
	return errDisconnect
}
