package broker

import (
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

// will is what is to be published when a client is lost (3.1.2.5).
type will struct {
	msg    *message
	expiry time.Duration // of the message, once it is published; 0: none
	delay  time.Duration
	due    time.Time // zero while the client is connected
}

func newWill(w *packet.Will, sender string) *will {
	if w == nil {
		return nil
	}
	out := &will{
		msg:   &message{topic: w.Topic, payload: w.Payload, props: w.Props, qos: w.QoS, retain: w.Retain, sender: sender},
		delay: time.Duration(w.Delay) * time.Second,
	}
	if w.HasExpiry {
		out.expiry = max(time.Duration(w.Expiry)*time.Second, time.Nanosecond)
	}
	return out
}

// begin makes c the connection of s, whose reader then sends what there is.
// Broker.mu is held.
func (s *session) begin(c *conn, p packet.Connect, id mqtt.Identity, ack packet.Connack) {
	_ = c.nc.SetDeadline(time.Time{})
	s.mu.Lock()
	defer s.mu.Unlock()
	c.session = s
	c.takePace()
	s.stopTimer()
	c.voucher, c.expiring = id.Voucher, c.expire(id.Until)
	s.conn, s.identity, s.began, s.fullSince = c, id, c.began, time.Time{}
	s.expiry, s.since = s.b.expiry(p.SessionExpiry, id), time.Time{}
	s.will = newWill(p.Will, id.Name)
	s.up.Store(true)
	s.rewind()
	s.dropForeign()
	c.control = packet.AppendConnack(c.control, c.version, ack)
	for _, o := range s.inflight { // what is left is released
		c.control = packet.AppendAck(c.control, c.version, packet.PUBREL, packet.Ack{ID: o.id}, "")
	}
	s.save()
	s.saveWill()
}

// reasonExpired is why a connection ends whose JWT is over.
const reasonExpired = "its JWT has expired"

// expire ends the connection then; nil: never.
func (c *conn) expire(until time.Time) *time.Timer {
	if until.IsZero() {
		return nil
	}
	return time.AfterFunc(time.Until(until), func() { c.close(packet.AdministrativeAction, reasonExpired) })
}

// dropForeign removes what the identity may not have, or not any more.
func (s *session) dropForeign() {
	for key, sub := range s.subs {
		if !s.identity.Access.MaySubscribe(sub.filter) {
			s.b.index.remove(sub)
			delete(s.subs, key)
		}
	}
	s.keepOnly(func(o *outgoing) bool { return s.mayReceive(o.msg.topic) })
}

// over reports whether the time of s without a connection has run out.
func (s *session) over(now time.Time) bool {
	return s.conn == nil && !s.since.IsZero() && !now.Before(s.since.Add(s.expiry))
}

// detach takes c off its session, with all that follows, and lets the next
// connection have it.
func (b *Broker) detach(c *conn) {
	s := c.session
	c.lose(errGone) // if nobody has
	if c.expiring != nil {
		c.expiring.Stop()
	}
	reason := c.cause.reason
	now := time.Now()
	c.keepPace(now)
	b.mu.Lock()
	s.mu.Lock()
	s.conn, s.since = nil, now
	s.up.Store(false)
	s.wake()
	due := s.lost(c, now)
	ended := s.expiry == 0 || s.unkept
	if ended {
		s.end()
		b.leave(s)
	} else {
		s.save()
		s.keepAway()
		s.schedule(now)
	}
	s.mu.Unlock()
	b.mu.Unlock()
	if due != nil {
		b.publishWill(due)
	}
	if ended {
		b.bury(s)
	} else {
		b.share(s)
	}
	b.presence(s, false, reason)
	close(c.done)
}

// lost decides what becomes of the will now that the connection is gone: it is
// returned when it is due at once. A server that stops loses its clients too.
func (s *session) lost(c *conn, now time.Time) *will {
	w := s.will
	switch {
	case w == nil:
		return nil
	case c.clean:
		s.will = nil
		return nil
	case w.delay == 0:
		s.will = nil
		return w
	}
	w.due = now.Add(w.delay)
	return nil
}

// schedule sets the timer for will and expiry.
func (s *session) schedule(now time.Time) {
	next := s.since.Add(s.expiry)
	if s.will != nil && s.will.due.Before(next) {
		next = s.will.due
	}
	s.timer = time.AfterFunc(max(next.Sub(now), 0), func() { s.b.timeUp(s) })
}

func (s *session) stopTimer() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// timeUp publishes the will of s or ends s, whichever is due.
func (b *Broker) timeUp(s *session) {
	now := time.Now()
	b.mu.Lock()
	s.mu.Lock()
	if b.closing || s.conn != nil || s.ended {
		s.mu.Unlock()
		b.mu.Unlock()
		return
	}
	b.wg.Add(1)
	defer b.wg.Done()
	var due *will
	if s.will != nil && !now.Before(s.will.due) {
		due, s.will = s.will, nil
		s.save()
	}
	over := s.over(now)
	if over {
		s.end()
		b.leave(s)
	} else {
		s.schedule(now)
	}
	s.mu.Unlock()
	b.mu.Unlock()
	if due != nil {
		b.publishWill(due)
	}
	if over {
		b.bury(s)
	}
}

// end makes s be no more: nothing matches it, nothing of it is kept. Broker.mu
// and s.mu are held; bury does the rest.
func (s *session) end() {
	s.ended = true
	s.stopTimer()
	s.wake()
	for _, sub := range s.subs {
		s.b.index.remove(sub)
	}
	s.erase()
}

// count makes s count against Limits.Sessions if it may outlive its connection and
// belongs to no device, of which each has its few. Broker.mu is held.
func (b *Broker) count(s *session, id mqtt.Identity, expiry time.Duration) {
	if !s.counted && !id.Device && expiry > 0 {
		s.counted = true
		b.lasting[id.Name]++
	}
}

// leave takes s out of the sessions. Broker.mu is held.
func (b *Broker) leave(s *session) {
	delete(b.sessions, s.key)
	if !s.counted {
		return
	}
	if b.lasting[s.identity.Name]--; b.lasting[s.identity.Name] == 0 {
		delete(b.lasting, s.identity.Name)
	}
}

// bury publishes the will of an ended session (3.1.2.5) and gives what was meant
// for any member of a shared subscription to another one (4.8.2).
func (b *Broker) bury(s *session) {
	s.mu.Lock()
	w := s.will
	s.will = nil
	left := append(s.inflight, s.queue[s.head:]...)
	s.inflight, s.queue, s.head = nil, nil, 0
	s.mu.Unlock()
	if w != nil {
		b.publishWill(w)
	}
	for _, o := range left {
		if o.group == nil || o.qos == 0 || o.state == released {
			continue
		}
		if to := b.member(o.group); to == nil || b.passOn(o, to) != taken {
			b.stats.dropped.Add(1)
		}
	}
}

// share gives what waits in s for any member of a shared subscription to those who are
// connected and have room. It stays with s until another one has it, so that neither a
// kill nor a full queue loses it. Sessions are locked one in the other here alone: from one
// that has just lost its connection to one that has one, which is no circle.
func (b *Broker) share(s *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepOnly(func(o *outgoing) bool {
		if o.group == nil || o.dup {
			return true
		}
		to := b.member(o.group)
		return to == nil || !to.session.online() || b.passOn(o, to) != taken
	})
}

// member is whose turn it is in a group; nil: nobody is left.
func (b *Broker) member(g *group) *subscription {
	b.index.mu.RLock()
	defer b.index.mu.RUnlock()
	return g.pick()
}

func (b *Broker) passOn(o *outgoing, to *subscription) verdict {
	m := o.msg.copy()
	m.route()
	defer b.unref(m)
	return to.session.offer(m, delivery{session: to.session, qos: to.qos, group: o.group})
}

func (b *Broker) publishWill(w *will) {
	if w.expiry > 0 {
		w.msg.expires = time.Now().Add(w.expiry)
	}
	var to recipients
	if err := b.distribute(w.msg, nil, &to); err != nil {
		b.log.Warn("will not taken by all", "client", w.msg.sender, "topic", w.msg.topic, "error", err)
	}
}

func (b *Broker) presence(s *session, connected bool, reason string) {
	if b.conf.Presence != nil && s.identity.Device {
		b.conf.Presence(s.identity.Name, connected, reason, time.Now())
	}
}
