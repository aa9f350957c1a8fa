package broker

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

// session is what the broker keeps of one client between its connections
// (4.1): subscriptions, what waits for it, what is in flight.
type session struct {
	b        *Broker
	key      string // its place among all sessions and in the store
	clientID string
	identity mqtt.Identity // of the last connection; Access is nil before the first one
	up       atomic.Bool   // connected
	counted  bool          // in Broker.lasting; guarded by Broker.mu

	mu     sync.Mutex
	conn   *conn // nil: none
	ended  bool  // it is no more
	unkept bool  // it ends with its connection, whatever its expiry
	subs   map[string]*subscription
	expiry time.Duration // how long it outlives its connection, 0: not at all
	since  time.Time     // when it was last connected, zero while it is
	began  time.Time     // when the credentials of its last connection were looked at, zero: before this process
	will   *will         // pending
	timer  *time.Timer   // of will and expiry, while there is no connection

	queue    []*outgoing // in order, from head
	head     int
	bytes    int
	inflight []*outgoing // sent and not complete, in the order they were sent
	ids      map[uint16]struct{}
	lastID   uint16
	seq      uint64
	space    chan struct{} // somebody waits for room in the queue

	fullSince time.Time // there has been no room for otad's own, zero: there is some

	recorded bool                // the store may know of it
	willed   bool                // the store may know of its will alone
	received map[uint16]struct{} // QoS 2 packet identifiers between PUBLISH and PUBREL
}

func (s *session) online() bool { return s.up.Load() }

// mayReceive lets everything through until the access of the client is known, as
// it is asked again when the client is back.
func (s *session) mayReceive(topic string) bool {
	return s.identity.Access == nil || s.identity.Access.MayReceive(topic)
}

// persistent reports whether it outlives the connection, and so a restart.
func (s *session) persistent() bool { return s.expiry > 0 }

// remembers reports whether what is acknowledged to its client is stored. Only the
// goroutine that reads from the client asks.
func (s *session) remembers() bool { return s.persistent() && s.b.journal.store != nil }

// verdict says what became of a message offered to a session.
type verdict int

const (
	taken   verdict = iota
	full            // no room; waiting may help
	refused         // no room, and waiting makes none
	dropped         // QoS 0, which may be lost
)

// delivery is what a matching subscription asks of a message.
type delivery struct {
	session *session
	qos     byte
	retain  bool
	subIDs  []uint32
	group   *group
}

// offer puts m into the queue of d's session, and into the store if it is kept. One
// of QoS 2 that is waits until it is durable.
func (s *session) offer(m *message, d delivery) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mayReceive(m.topic) {
		return dropped
	}
	return s.enqueue(m, d)
}

// probe says what offer would say now.
func (s *session) probe(m *message, d delivery) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mayReceive(m.topic) {
		return dropped
	}
	return s.judge(m, min(m.qos, d.qos))
}

// offerTo is offer for a message to one connection, whatever is subscribed.
func (s *session) offerTo(c *conn, m *message) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c {
		return dropped
	}
	return s.enqueue(m, delivery{qos: m.qos})
}

func (s *session) enqueue(m *message, d delivery) verdict {
	o := &outgoing{msg: m, qos: min(m.qos, d.qos), retain: d.retain, subIDs: d.subIDs, group: d.group}
	if v := s.judge(m, o.qos); v != taken {
		if v == dropped && s.conn != nil {
			s.b.stats.dropped.Add(1)
		}
		return v
	}
	s.fullSince = time.Time{}
	if o.qos > 0 {
		o.id = s.newID()
		s.ids[o.id] = struct{}{}
	}
	s.seq++
	o.seq = s.seq
	if s.keeps(o) {
		s.keep(o)
	}
	s.push(o)
	s.kick()
	return taken
}

// judge says what becomes of m here if it goes out with qos.
func (s *session) judge(m *message, qos byte) verdict {
	switch {
	case s.ended, s.conn == nil && qos == 0:
		return dropped
	case qos > 0 && len(s.ids) >= packetIDs: // of a time with other limits; waiting for the queue is of no use
		return refused
	case !s.crowded(m):
		return taken
	case qos == 0:
		return dropped
	case s.conn == nil:
		return refused
	}
	return full
}

// fullError says that nothing more gets into the queue.
func (s *session) fullError() error {
	return fmt.Errorf("%w: client %.140q has to read and acknowledge what waits%s", ErrQueueFull, s.clientID, s.b.lim.raise("queued", "queued-bytes"))
}

// crowded reports whether the queue has no room for m. What has expired makes
// room first.
func (s *session) crowded(m *message) bool {
	lim := &s.b.lim
	tight := func() bool {
		n := len(s.queue) - s.head
		return n >= lim.Queued || n > 0 && s.bytes+m.size() > lim.QueuedBytes
	}
	if !tight() {
		return false
	}
	s.dropExpired(time.Now())
	return tight()
}

func (s *session) dropExpired(now time.Time) {
	s.keepOnly(func(o *outgoing) bool { return !o.msg.expired(now) })
}

// keepOnly discards what waits and is not wanted.
func (s *session) keepOnly(wanted func(*outgoing) bool) {
	kept := s.queue[:0]
	for _, o := range s.queue[s.head:] {
		if !wanted(o) {
			s.bytes -= o.msg.size()
			s.discard(o)
			continue
		}
		kept = append(kept, o)
	}
	clear(s.queue[len(kept):])
	s.queue, s.head = kept, 0
}

func (s *session) push(o *outgoing) {
	if s.head > 32 && s.head > len(s.queue)/2 {
		n := copy(s.queue, s.queue[s.head:])
		clear(s.queue[n:])
		s.queue, s.head = s.queue[:n], 0
	}
	s.queue = append(s.queue, o)
	s.bytes += o.msg.size()
}

// newID returns a packet identifier that is not in use (2.2.1). There is one: judge
// has seen to it.
func (s *session) newID() uint16 {
	if s.ids == nil {
		s.ids = map[uint16]struct{}{}
	}
	for range packetIDs + 1 {
		s.lastID++
		if _, used := s.ids[s.lastID]; !used && s.lastID != 0 {
			break
		}
	}
	return s.lastID
}

// sendable reports whether next may find something.
func (s *session) sendable(c *conn) bool {
	if s.head == len(s.queue) {
		return false
	}
	o := s.queue[s.head]
	return !o.held && (o.qos == 0 || len(s.inflight) < c.window)
}

// next takes the next message to send to c out of the queue; nil: none, or none
// may be sent now.
func (s *session) next(c *conn, now time.Time) *outgoing {
	for s.head < len(s.queue) {
		o := s.queue[s.head]
		if !s.sendable(c) {
			return nil
		}
		s.queue[s.head] = nil
		s.head++
		s.bytes -= o.msg.size()
		s.wakePublishers()
		if o.msg.expired(now) || c.tooLarge(o) {
			s.discard(o)
			continue
		}
		if s.head == len(s.queue) {
			s.queue, s.head = s.queue[:0], 0
			if cap(s.queue) > 64 { // an idle session keeps little
				s.queue = nil
			}
		}
		return o
	}
	return nil
}

// wakePublishers lets those go on who wait for room, once there is some of it.
func (s *session) wakePublishers() {
	if len(s.queue)-s.head <= s.b.lim.Queued/2 && s.bytes <= s.b.lim.QueuedBytes/2 {
		s.wake()
	}
}

func (s *session) wake() {
	if s.space != nil {
		close(s.space)
		s.space = nil
	}
}

// room returns a channel that is closed when it is worth trying again with m.
func (s *session) room(m *message) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.space == nil {
		s.space = make(chan struct{})
	}
	space := s.space
	if s.conn == nil || !s.crowded(m) { // since the caller looked
		s.wake()
	}
	return space
}

// discard forgets o, which is in neither queue nor inflight any more.
func (s *session) discard(o *outgoing) {
	if o.qos > 0 {
		delete(s.ids, o.id)
	}
	s.forget(o)
}

// flying returns the place of id in inflight, or -1.
func (s *session) flying(id uint16) int {
	for i, o := range s.inflight {
		if o.id == id {
			return i
		}
	}
	return -1
}

// complete ends the flight of inflight[i].
func (s *session) complete(i int) {
	o := s.inflight[i]
	s.inflight = append(s.inflight[:i], s.inflight[i+1:]...)
	s.discard(o)
}

// rewind puts what was in flight back to the front of the queue, to be sent again
// in the order it was sent first (4.4, 4.6).
func (s *session) rewind() {
	if len(s.inflight) == 0 {
		return
	}
	sort.Slice(s.inflight, func(i, j int) bool { return s.inflight[i].seq < s.inflight[j].seq })
	again := make([]*outgoing, 0, len(s.inflight)+len(s.queue)-s.head)
	var rel []*outgoing
	for _, o := range s.inflight {
		if o.state == released {
			rel = append(rel, o)
			continue
		}
		o.state, o.dup = waiting, true
		s.bytes += o.msg.size()
		again = append(again, o)
	}
	s.queue, s.head = append(again, s.queue[s.head:]...), 0
	s.inflight = rel
}

// publishOut is o as it goes out now.
func (o *outgoing) publishOut(now time.Time) packet.Delivery {
	d := packet.Delivery{
		Topic: o.msg.topic, Payload: o.msg.payload, Props: o.msg.props, QoS: o.qos, Dup: o.dup, Retain: o.retain, ID: o.id, SubIDs: o.subIDs,
	}
	if !o.msg.expires.IsZero() {
		d.HasExpiry, d.Expiry = true, uint32(max(o.msg.expires.Sub(now)+time.Second-1, 0)/time.Second)
	}
	return d
}
