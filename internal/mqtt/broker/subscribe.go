package broker

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/otad/otad/internal/mqtt/packet"
)

// subscribe handles a SUBSCRIBE (3.8). Each filter is answered by itself.
func (c *conn) subscribe(body []byte) error {
	p, err := packet.DecodeSubscribe(body, c.version)
	if err != nil {
		return err
	}
	codes := make([]packet.Code, len(p.Subscriptions))
	if err := c.answerable(codes); err != nil {
		return err
	}
	var retained []delivered
	for i, f := range p.Subscriptions {
		sub, code, err := c.filter(f, p.SubID)
		if err != nil {
			return err
		}
		if codes[i] = code; sub == nil {
			continue
		}
		isNew := c.session.enter(f.Filter, sub)
		if sub.share == "" && (f.RetainHandling == 0 || f.RetainHandling == 1 && isNew) { // 3.8.4
			for _, m := range c.b.retained.match(sub.filter) {
				retained = append(retained, delivered{m, sub})
			}
		}
	}
	c.session.mu.Lock()
	c.session.save()
	c.session.mu.Unlock()
	c.answerStored(packet.AppendSuback(nil, c.version, p.ID, codes))
	return c.sendRetained(retained)
}

// answerStored sends ack when the subscriptions of a session that outlives the process
// are durable.
func (c *conn) answerStored(ack []byte) {
	s := c.session
	s.mu.Lock()
	stored := s.persistent() && s.b.journal.store != nil
	s.mu.Unlock()
	if stored {
		c.answerDurable(ack, 0)
		return
	}
	c.answerNow(ack, 0)
}

// answerable refuses a request whose answer, a code for each filter, the client
// would not take. SUBACK and UNSUBACK of MQTT 5 have the same size.
func (c *conn) answerable(codes []packet.Code) error {
	if c.maxPacket == 0 || c.fits(len(packet.AppendSuback(nil, c.version, 0, codes))) {
		return nil
	}
	return &packet.Error{Code: packet.PacketTooLarge, Text: fmt.Sprintf("the answer to %d filters is larger than the maximum packet size of %d; use fewer at a time", len(codes), c.maxPacket)}
}

type delivered struct {
	msg *message
	sub *subscription
}

var errNoFilter = errors.New("no valid topic filter: + and # stand alone in a level, # in the last one; $share/GROUP/FILTER")

// filter checks one filter: a subscription, or the code that refuses it. An error
// ends the connection.
func (c *conn) filter(f packet.Subscription, id uint32) (*subscription, packet.Code, error) {
	sub := &subscription{
		session: c.session, filter: f.Filter, qos: f.QoS, noLocal: f.NoLocal, retainAsPublished: f.RetainAsPublished, id: id,
	}
	if rest, ok := strings.CutPrefix(f.Filter, "$share/"); ok {
		share, filter, ok := strings.Cut(rest, "/")
		if !ok || share == "" || strings.ContainsAny(share, "+#") { // 4.8.2-1, 4.8.2-2
			c.complain("subscription refused", "filter", f.Filter, errNoFilter)
			return nil, packet.TopicFilterInvalid, nil
		}
		if f.NoLocal {
			return nil, 0, &packet.Error{Code: packet.ProtocolError, Text: "protocol error: no local in a shared subscription"} // 3.8.3-4
		}
		sub.share, sub.filter = share, filter
	}
	if !packet.ValidFilter(sub.filter) {
		c.complain("subscription refused", "filter", f.Filter, errNoFilter)
		return nil, packet.TopicFilterInvalid, nil
	}
	if err := c.b.checkTopic(sub.filter); err != nil {
		c.complain("subscription refused", "filter", f.Filter, err)
		return nil, packet.TopicFilterInvalid, nil
	}
	if !c.session.identity.Access.MaySubscribe(sub.filter) {
		c.complain("subscription refused", "filter", f.Filter, fmt.Errorf("%s may not subscribe to this", c.session.identity.Name))
		return nil, packet.NotAuthorized, nil
	}
	if err := c.session.roomFor(f.Filter); err != nil {
		c.complain("subscription refused", "filter", f.Filter, err)
		return nil, packet.QuotaExceeded, nil
	}
	return sub, packet.Code(sub.qos), nil
}

// roomFor says why one more filter does not fit.
func (s *session) roomFor(filter string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := s.b.lim.Subscriptions; s.subs[filter] == nil && len(s.subs) >= most {
		return fmt.Errorf("%d subscriptions: use wider filters, or unsubscribe from some%s", most, s.b.lim.raise("subscriptions"))
	}
	return nil
}

// enter makes sub, under the name the client gave it, and reports whether there
// was none of that name.
func (s *session) enter(name string, sub *subscription) (isNew bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	isNew = s.subs[name] == nil
	s.subs[name] = sub
	s.b.index.add(sub)
	return isNew
}

// sendRetained delivers retained messages, once for each subscription. A client
// with more of them than its queue holds has to ask by narrower filters, unless they go
// out by themselves, with QoS 0: then it waits for room.
func (c *conn) sendRetained(all []delivered) error {
	for _, d := range all {
		roomy := c.drains(d.msg, min(d.msg.qos, d.sub.qos))
		kept := c.b.retained.of(d.msg.topic) // an older one must not follow what came while it waited
		if kept == nil {
			continue
		}
		to := d.sub.delivery(kept, nil)
		to.retain = true // 3.3.1-8
		m := kept.copy()
		m.route()
		v := c.session.offer(m, to)
		c.b.unref(m)
		if v == full || v == refused || !roomy {
			return &packet.Error{Code: packet.QuotaExceeded, Text: fmt.Sprintf("more retained messages than the queue of %d holds: use a narrower filter", c.b.lim.Queued) + c.b.lim.raise("queued", "queued-bytes")}
		}
	}
	return nil
}

// drains reports whether there is room for a message of QoS 0 to the client, or is before
// long: it waits while the queue empties, which it does without the client's
// acknowledgements, that nobody reads meanwhile.
func (c *conn) drains(m *message, qos byte) bool {
	if qos > 0 {
		return true // offer says whether there is
	}
	s := c.session
	var stall *time.Timer
	for {
		s.mu.Lock()
		crowded, owing := !s.ended && s.crowded(m), len(s.ids) > 0
		s.mu.Unlock()
		if !crowded || owing {
			return !crowded
		}
		if stall == nil {
			stall = time.NewTimer(c.b.lim.StallTimeout)
			defer stall.Stop()
		}
		select {
		case <-s.room(m):
		case <-c.closing:
			return true // and nobody is there to be told
		case <-stall.C:
			return false
		}
	}
}

// unsubscribe handles an UNSUBSCRIBE (3.10).
func (c *conn) unsubscribe(body []byte) error {
	p, err := packet.DecodeUnsubscribe(body, c.version)
	if err != nil {
		return err
	}
	s := c.session
	codes := make([]packet.Code, len(p.Filters))
	if err := c.answerable(codes); err != nil {
		return err
	}
	s.mu.Lock()
	for i, name := range p.Filters {
		sub := s.subs[name]
		if sub == nil {
			codes[i] = packet.NoSubscriptionExisted
			continue
		}
		s.b.index.remove(sub)
		delete(s.subs, name)
	}
	s.save()
	s.mu.Unlock()
	c.answerStored(packet.AppendUnsuback(nil, c.version, p.ID, codes))
	return nil
}
