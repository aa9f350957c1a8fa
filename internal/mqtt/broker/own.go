package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

// Publish implements mqtt.Broker. The message goes to the clients that are
// connected now, or have a session, and are subscribed. It does not wait for them:
// who has too much to read already goes without, at nobody else's cost. In an answer
// to a request that came here (Message.Origin) that is ErrQueueFull for who asked.
// What is for a session without a connection is durable when it returns, hints
// excepted; what a client that is connected has not acknowledged is stored when it goes.
func (b *Broker) Publish(ctx context.Context, m mqtt.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	msg, err := b.message(m)
	if err != nil {
		return err
	}
	if msg.keeping = keptForAway; m.Hint {
		msg.keeping = keptForNone
	}
	msg.route()
	asker, _ := m.Origin.(*conn)
	var r recipients
	b.match(msg, &r)
	for _, d := range r.deliveries {
		v := d.session.offer(msg, d)
		switch {
		case v == taken, v == dropped:
		case asker != nil && d.session == asker.session:
			err = fmt.Errorf("publish to %s: %w", m.Topic, d.session.fullError())
		default:
			b.miss(d.session, msg)
		}
	}
	if msg.kept() {
		err = errors.Join(err, b.journal.written(ctx))
	}
	b.unref(msg)
	return err
}

// miss notes that s had no room for a message of otad's own. A client that has made
// none for as long as the limits allow loses its connection.
func (b *Broker) miss(s *session, m *message) {
	now := time.Now()
	b.stats.missed.Add(1)
	s.mu.Lock()
	if s.fullSince.IsZero() {
		s.fullSince = now
	}
	c := s.conn
	stalled := c != nil && now.Sub(s.fullSince) >= b.lim.StallTimeout
	s.mu.Unlock()
	if b.worthNoting("q/"+s.key, now) {
		b.log.Warn("message of otad not taken", "client", s.clientID, "topic", m.topic, "error", s.fullError())
	}
	if stalled {
		c.stalled()
	}
}

// Reply implements mqtt.Broker: to the connection that request came by.
func (b *Broker) Reply(ctx context.Context, request, answer mqtt.Message) error {
	c, ok := request.Origin.(*conn)
	if !ok {
		return b.Publish(ctx, answer)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	msg, err := b.message(answer)
	if err != nil {
		return err
	}
	if v := c.session.offerTo(c, msg); v == full || v == refused {
		return fmt.Errorf("reply on %s: %w", answer.Topic, c.session.fullError())
	}
	return nil
}

// message makes a message of otad's own.
func (b *Broker) message(m mqtt.Message) (*message, error) {
	switch {
	case b.isStopped():
		return nil, ErrClosed
	case !packet.ValidTopicName(m.Topic):
		return nil, fmt.Errorf("%w: topic %q", ErrInvalidMessage, m.Topic)
	case m.QoS > 1:
		return nil, fmt.Errorf("%w: QoS %d; use 0 or 1", ErrInvalidMessage, m.QoS)
	case len(m.Payload) > b.lim.PacketBytes:
		return nil, fmt.Errorf("%w: payload of %d bytes; at most %d: send less at a time%s", ErrInvalidMessage, len(m.Payload), b.lim.PacketBytes, b.lim.raise("packet-bytes"))
	}
	msg := &message{topic: m.Topic, payload: m.Payload, qos: m.QoS, keeping: keptForNone}
	msg.props = packet.AppendAttributes(nil, packet.Attributes{ResponseTopic: m.ResponseTopic, CorrelationData: m.CorrelationData})
	if m.Expiry > 0 {
		msg.expires = time.Now().Add(m.Expiry)
	}
	return msg, nil
}
