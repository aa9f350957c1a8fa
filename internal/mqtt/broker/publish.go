package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

// rejected is a publish that is refused: what the client is told, and why.
type rejected struct {
	code packet.Code
	err  error
}

func (r *rejected) Error() string { return r.err.Error() }

func reject(code packet.Code, format string, args ...any) error {
	return &rejected{code, fmt.Errorf(format, args...)}
}

// errNoRequest is what the log says of a message on a topic that begins with $ and that
// nobody reads.
var errNoRequest = errors.New("no request has this topic: see docs/device-protocol.md")

// maxComplaints is how often one connection gets into the log for what it sends.
const maxComplaints = 10

// publish handles a PUBLISH of the client (3.3, 4.3).
func (c *conn) publish(flags byte, body []byte) error {
	p, err := packet.DecodePublish(flags, body, c.version)
	if err != nil {
		return err
	}
	topic, err := c.topic(p)
	if err != nil {
		return err
	}
	if p.QoS > 0 {
		known, err := c.owe(p)
		if err != nil {
			return err
		}
		if known {
			c.acknowledge(packet.PUBREC, packet.Ack{ID: p.ID}, "", 0)
			return nil
		}
	}
	m := c.message(p, topic)
	if p.QoS == 2 && c.session.remembers() {
		m.unit = c.b.journal.begin()
	}
	err = c.take(m)
	if err == nil && p.QoS == 2 {
		c.keepReceived(p.ID, m.unit)
	}
	m.unit.close()
	switch {
	case err != nil:
		c.complain("message not taken", "topic", topic, err)
	case !c.to.reached && topic[0] == '$': // the server's own topics (4.7.2), so it meant to ask for something
		c.complain("message to nobody", "topic", topic, errNoRequest)
	}
	return c.settlePublish(p, err)
}

// complain tells the log of what the client asked for in vain.
func (c *conn) complain(what, kind, name string, err error) {
	if c.complaints < maxComplaints {
		c.complaints++
		c.b.log.Warn(what, "client", c.session.clientID, kind, name, "error", err)
	}
}

// topic resolves the alias (3.3.2.3.4) and checks the name.
func (c *conn) topic(p packet.Publish) (string, error) {
	topic := string(p.Topic)
	if p.HasAlias {
		if p.Alias == 0 || p.Alias > c.b.lim.TopicAliases {
			remedy := ""
			if p.Alias > 0 {
				remedy = c.b.lim.raise("topic-aliases")
			}
			return "", &packet.Error{Code: packet.TopicAliasInvalid, Text: fmt.Sprintf("topic alias %d; from 1 to %d: send the whole topic", p.Alias, c.b.lim.TopicAliases) + remedy}
		}
		if topic == "" {
			if topic = c.aliases[p.Alias]; topic == "" {
				return "", &packet.Error{Code: packet.ProtocolError, Text: fmt.Sprintf("protocol error: topic alias %d stands for nothing", p.Alias)}
			}
			return topic, nil
		}
	}
	if !packet.ValidTopicName(topic) {
		return "", &packet.Error{Code: packet.TopicNameInvalid, Text: "topic name with a wildcard, or empty"} // 3.3.2-2
	}
	if err := c.b.checkTopic(topic); err != nil {
		return "", &packet.Error{Code: packet.TopicNameInvalid, Text: err.Error()}
	}
	if p.HasAlias {
		if c.aliases == nil {
			c.aliases = map[uint16]string{}
		}
		c.aliases[p.Alias] = topic
	}
	return topic, nil
}

// owe counts a publish that has to be acknowledged. known is one of QoS 2 that is
// here already: it is answered, when it is durable, and nothing else.
func (c *conn) owe(p packet.Publish) (known bool, err error) {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.received[p.ID]; known && p.QoS == 2 {
		c.dirty = s.recorded
		return true, nil
	}
	for c.owed >= int(c.b.lim.ReceiveMaximum) {
		if c.version == packet.V5 {
			return false, &packet.Error{Code: packet.ReceiveMaximumExceeded, Text: fmt.Sprintf("receive maximum of %d exceeded: wait for acknowledgements", c.b.lim.ReceiveMaximum) + c.b.lim.raise("receive-maximum")}
		}
		if len(c.acks) == 0 { // all that is owed waits for PUBREL, so waiting would be for ever
			break
		}
		if !c.awaitDrain() { // older clients know no such limit
			return false, errGone
		}
	}
	c.owed++
	return false, nil
}

// awaitDrain gives up session.mu until answers have gone out.
func (c *conn) awaitDrain() bool {
	if c.drained == nil {
		c.drained = make(chan struct{})
	}
	wait := c.drained
	c.session.mu.Unlock()
	defer c.session.mu.Lock()
	select {
	case <-wait:
		return true
	case <-c.closing:
		return false
	}
}

func (c *conn) message(p packet.Publish, topic string) *message {
	raw := make([]byte, len(p.Payload)+len(p.Props))
	n := copy(raw, p.Payload)
	copy(raw[n:], p.Props)
	m := &message{
		topic: topic, payload: raw[:n:n], props: raw[n:], qos: p.QoS, retain: p.Retain, sender: c.session.identity.Name, from: c.session,
	}
	if p.HasExpiry {
		m.expires = time.Now().Add(time.Duration(p.Expiry) * time.Second)
	}
	return m
}

// take does what a publish asks for.
func (c *conn) take(m *message) error {
	id := c.session.identity
	if !id.Access.MayPublish(m.topic) {
		return reject(packet.NotAuthorized, "%s may not publish here", id.Name)
	}
	if id.Device && c.b.handler.Load() == nil { // its topics are not known yet
		return reject(packet.ServerBusy, "otad is not ready")
	}
	return c.b.distribute(m, c, &c.to)
}

// settlePublish acknowledges p, or tells the client that it was not taken: one of
// MQTT 5 by a reason code, an older one by the end of the connection, so that it
// sends the message again before others.
func (c *conn) settlePublish(p packet.Publish, err error) error {
	code := packet.Success
	if !c.to.reached {
		code = packet.NoMatchingSubscribers
	}
	reason := ""
	var r *rejected
	if errors.As(err, &r) {
		code, reason = r.code, r.Error()
	} else if err != nil {
		code, reason = packet.ImplementationSpecific, "not taken; send it again"
	}
	if err != nil && c.version != packet.V5 && p.QoS > 0 {
		return &packet.Error{Code: code, Text: reason}
	}
	if p.QoS == 0 {
		return nil
	}
	if c.terse {
		reason = ""
	}
	if p.QoS == 1 {
		c.acknowledge(packet.PUBACK, packet.Ack{ID: p.ID, Code: code}, reason, 1)
		return nil
	}
	if err != nil {
		c.acknowledge(packet.PUBREC, packet.Ack{ID: p.ID, Code: code}, reason, 1)
		return nil
	}
	c.acknowledge(packet.PUBREC, packet.Ack{ID: p.ID, Code: code}, "", 0)
	return nil
}

// acknowledge sends an acknowledgement once what it stands for is durable.
func (c *conn) acknowledge(t packet.Type, a packet.Ack, reason string, settled int) {
	var b [64]byte
	ack := packet.AppendAck(b[:0], c.version, t, a, reason)
	if !c.fits(len(ack)) { // 3.4.2.2.2: a reason string is left out then
		ack = packet.AppendAck(b[:0], c.version, t, a, "")
	}
	if c.dirty {
		c.dirty = false
		c.answerDurable(append([]byte(nil), ack...), settled)
		return
	}
	c.answerNow(ack, settled)
}

// distribute gives m to otad's handler first, if it is one of its topics, so that
// a refused message goes nowhere; then keeps it if it is to be retained and no request; then gives
// it to all who are subscribed. It waits for those who are slow to read, c's own
// session excepted. QoS 2 is exactly once from session to session; otad's handler
// may get a message again after a kill. On an error some may have it: it comes again, which QoS 1
// allows. c is where it came from, nil for a will; to is memory to work with.
func (b *Broker) distribute(m *message, c *conn, to *recipients) error {
	b.match(m, to)
	if to.own {
		if err := b.handle(m, c); err != nil {
			return err
		}
	}
	if m.qos == 2 {
		if err := b.makeRoom(m, to.deliveries, c); err != nil {
			return err
		}
	}
	if m.retain && !to.own { // a request is for otad, once
		if err := b.retain(m, c); err != nil {
			return err
		}
	}
	if len(to.deliveries) == 0 {
		return nil
	}
	m.route()
	var failed error
	for _, d := range to.deliveries {
		if err := b.insist(m, d.session, c, func() verdict { return d.session.offer(m, d) }); err != nil {
			failed = err
		}
	}
	if c != nil && m.kept() {
		c.dirty = true
	}
	b.unref(m)
	to.clear()
	return failed
}

// handle gives m to otad.
func (b *Broker) handle(m *message, c *conn) error {
	h := b.handler.Load()
	if h.ctx.Err() != nil {
		return reject(packet.ServerBusy, "otad takes no more")
	}
	out := mqtt.Message{Topic: m.topic, Payload: m.payload, QoS: min(m.qos, 1), Sender: m.sender}
	if c != nil {
		out.Origin = c
	}
	if len(m.props) > 0 {
		a := packet.ParseAttributes(m.props)
		out.ResponseTopic, out.CorrelationData = a.ResponseTopic, a.CorrelationData
		for _, u := range a.User {
			if u.Key == mqtt.TraceProperty {
				out.Trace = u.Value
			}
		}
		if a.ResponseTopic != "" && c != nil && !c.session.identity.Access.MaySubscribe(a.ResponseTopic) {
			return reject(packet.NotAuthorized, "response topic %.140q belongs to someone else", a.ResponseTopic)
		}
	}
	if !m.expires.IsZero() {
		out.Expiry = max(time.Until(m.expires), time.Second)
	}
	return h.handle(h.ctx, out)
}

// makeRoom waits until everybody has room for a QoS 2 message. Before that nobody
// gets it, so that one that is refused, or whose publisher is lost meanwhile, may
// come again, and none is held back for long.
func (b *Broker) makeRoom(m *message, all []delivery, c *conn) error {
	for _, d := range all {
		if err := b.insist(m, d.session, c, func() verdict { return d.session.probe(m, d) }); err != nil {
			return err
		}
	}
	return nil
}

// insist tries again until s has room for m, which came by c.
func (b *Broker) insist(m *message, s *session, c *conn, try func() verdict) error {
	var stall *time.Timer
	for {
		v := try()
		switch {
		case v == taken, v == dropped:
			return nil
		case v == refused, c == nil, s == c.session:
			return reject(packet.QuotaExceeded, "%w", s.fullError())
		}
		if stall == nil {
			stall = time.NewTimer(b.lim.StallTimeout)
			defer stall.Stop()
		}
		select {
		case <-s.room(m):
		case <-stall.C:
			s.expel(c)
		case <-c.closing:
			return errGone
		}
	}
}

// expel drops the connection of s, which does not make room for c's message.
func (s *session) expel(c *conn) {
	s.mu.Lock()
	slow := s.conn
	s.mu.Unlock()
	if slow == nil {
		return
	}
	slow.stalled()
	select {
	case <-slow.done:
	case <-c.closing:
	}
}

// stalled drops a connection whose client makes no room.
func (c *conn) stalled() {
	c.blame(packet.QuotaExceeded, fmt.Sprintf("no room for a message within %s: read and acknowledge faster", c.b.lim.StallTimeout)+c.b.lim.raise("stall-timeout", "queued", "queued-bytes"))
}

// retain keeps m for those who subscribe later.
func (b *Broker) retain(m *message, c *conn) error {
	if err := b.retained.set(m, b.lim); err != nil {
		return reject(packet.QuotaExceeded, "%w", err)
	}
	b.saveRetained(m)
	if c != nil && b.journal.store != nil {
		c.dirty = true
	}
	return nil
}
