package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/internal/mqtt"
)

// Keys in the store. A session's key may hold any byte, so that what follows it
// is cut off at the last slash.
const (
	keySession  = "s/" // + session: its record
	keyQueue    = "q/" // + session / seq: a message that waits for it
	keyReceived = "i/" // + session / packet identifier of QoS 2
	keyMessage  = "m/" // + id
	keyRetained = "r/" // + topic
)

func queueKey(session string, seq uint64) string {
	return keyQueue + session + "/" + fmt.Sprintf("%016x", seq)
}

func receivedKey(session string, id uint16) string {
	return keyReceived + session + "/" + strconv.Itoa(int(id))
}

func messageKey(id uint64) string { return keyMessage + fmt.Sprintf("%016x", id) }

// sessionRecord is a session as it rests in the store. What only a connected
// client has, such as its will before it is due, is there too, for the case that
// the process is killed.
type sessionRecord struct {
	ClientID string               `json:"clientId"`
	Name     string               `json:"name"`
	Device   bool                 `json:"device,omitempty"`
	Expiry   time.Duration        `json:"expiry"`         // 0: it ended with its connection, and only the will is left
	Since    time.Time            `json:"since,omitzero"` // zero: it was connected
	Subs     []subscriptionRecord `json:"subs,omitempty"`
	Will     *willRecord          `json:"will,omitempty"`
}

type subscriptionRecord struct {
	Name              string `json:"name"`
	Filter            string `json:"filter"`
	Share             string `json:"share,omitempty"`
	QoS               byte   `json:"qos,omitempty"`
	NoLocal           bool   `json:"noLocal,omitempty"`
	RetainAsPublished bool   `json:"retainAsPublished,omitempty"`
	ID                uint32 `json:"id,omitempty"`
}

type willRecord struct {
	Message []byte        `json:"message"`
	Expiry  time.Duration `json:"expiry,omitempty"`
	Delay   time.Duration `json:"delay,omitempty"`
	Due     time.Time     `json:"due,omitzero"`
}

// save puts the record of s into the journal. s.mu is held.
func (s *session) save() {
	if s.b.journal.store == nil || !s.persistent() {
		return
	}
	s.recorded = true
	r := sessionRecord{ClientID: s.clientID, Name: s.identity.Name, Device: s.identity.Device, Expiry: s.expiry, Since: s.since}
	for name, sub := range s.subs {
		r.Subs = append(r.Subs, subscriptionRecord{name, sub.filter, sub.share, sub.qos, sub.noLocal, sub.retainAsPublished, sub.id})
	}
	s.put(r)
}

// saveWill puts the will of a session that ends with its connection into the journal,
// for the case that the process is killed. s.mu is held.
func (s *session) saveWill() {
	if s.b.journal.store == nil || s.persistent() || s.will == nil || s.identity.Passing {
		return
	}
	s.willed = true
	s.put(sessionRecord{ClientID: s.clientID, Name: s.identity.Name, Device: s.identity.Device})
}

// put writes r with the will.
func (s *session) put(r sessionRecord) {
	if w := s.will; w != nil {
		r.Will = &willRecord{w.msg.encode(), w.expiry, w.delay, w.due}
	}
	b, err := json.Marshal(r)
	if err != nil {
		s.b.log.Error("session not stored", "client", s.clientID, "error", err)
		return
	}
	s.b.journal.put(keySession+s.key, b, nil)
}

// erase removes all of s from the store. s.mu is held.
func (s *session) erase() {
	if s.recorded || s.willed {
		s.b.journal.remove(keySession + s.key)
	}
	if !s.recorded {
		return
	}
	for _, o := range s.inflight {
		s.forget(o)
	}
	for _, o := range s.queue[s.head:] {
		s.forget(o)
	}
	for id := range s.received {
		s.b.journal.remove(receivedKey(s.key, id))
	}
}

// keep puts o and, if nobody has yet, its message into the journal. s.mu is held.
// Who routes the message has a reference to it, so that it does not go and come
// again while it gets to others. One of QoS 2 may be sent when it is durable.
func (s *session) keep(o *outgoing) {
	j, m := s.b.journal, o.msg
	m.mu.Lock()
	if m.refs++; m.id == 0 {
		m.id = s.b.lastID.Add(1)
		j.add(messageKey(m.id), m.encode(), m.unit)
	}
	j.add(queueKey(s.key, o.seq), o.encode(), m.unit)
	m.mu.Unlock()
	if o.stored, o.held = true, o.qos == 2; o.held {
		j.thenUnit(o.msg.unit, func(error) { // on an error its publisher sends it again; it goes out all the same
			s.mu.Lock()
			defer s.mu.Unlock()
			o.held = false
			s.kick()
		})
	}
}

// keepAway puts what is kept for clients that are away into the journal, since this
// one is now. s.mu is held.
func (s *session) keepAway() {
	for _, list := range [][]*outgoing{s.inflight, s.queue[s.head:]} {
		for _, o := range list {
			if !o.stored && s.keeps(o) {
				s.keep(o)
			}
		}
	}
}

// keeps reports whether o is to be in the store now. s.mu is held.
func (s *session) keeps(o *outgoing) bool {
	if o.qos == 0 || !s.persistent() || s.b.journal.store == nil {
		return false
	}
	return o.msg.keeping == keptForAll || o.msg.keeping == keptForAway && s.conn == nil
}

// keepReleased notes that PUBREC has come for o. s.mu is held.
func (s *session) keepReleased(o *outgoing) {
	if !o.stored {
		return
	}
	s.b.journal.put(queueKey(s.key, o.seq), o.encode(), nil)
	s.b.unref(o.msg)
}

// forget removes o from the store. s.mu is held.
func (s *session) forget(o *outgoing) {
	if !o.stored {
		return
	}
	s.b.journal.remove(queueKey(s.key, o.seq))
	if o.state != released {
		s.b.unref(o.msg)
	}
	o.stored = false
}

// unref removes m from the store when nobody needs it there any more.
func (b *Broker) unref(m *message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refs--; m.refs == 0 && m.id != 0 {
		b.journal.remove(messageKey(m.id))
		m.id = 0
	}
}

// keepReceived notes the packet identifier of a QoS 2 publish of the client. u is
// the unit of its message.
func (c *conn) keepReceived(id uint16, u *unit) {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received == nil {
		s.received = map[uint16]struct{}{}
	}
	s.received[id] = struct{}{}
	if s.remembers() {
		s.b.journal.add(receivedKey(s.key, id), []byte{}, u)
		c.dirty = true
	}
}

func (s *session) forgetReceived(id uint16) {
	if s.recorded {
		s.b.journal.remove(receivedKey(s.key, id))
	}
}

func (b *Broker) saveRetained(m *message) {
	if len(m.payload) == 0 {
		b.journal.remove(keyRetained + m.topic)
		return
	}
	b.journal.put(keyRetained+m.topic, m.encode(), m.unit)
}

// loader brings back what the store has. Keys come in order, so that queues and
// received identifiers come before their sessions.
type loader struct {
	b        *Broker
	messages map[uint64]*message
	queues   map[string][]queued
	received map[string]map[uint16]struct{}
	sessions map[string]sessionRecord
}

type queued struct {
	o       *outgoing
	message uint64
}

func (b *Broker) load(ctx context.Context) error {
	if b.conf.Store == nil {
		return nil
	}
	l := loader{b, map[uint64]*message{}, map[string][]queued{}, map[string]map[uint16]struct{}{}, map[string]sessionRecord{}}
	err := b.conf.Store.LoadState(ctx, func(key string, value []byte) error {
		if err := l.record(key, value); err != nil {
			return fmt.Errorf("stored state %q: %w", key, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	now := time.Now()
	for key, r := range l.sessions {
		if err := l.revive(key, r, now); err != nil {
			return fmt.Errorf("stored session of client %q: %w", r.ClientID, err)
		}
	}
	l.sweep()
	b.startTimers(now)
	return nil
}

// startTimers lets the time of the revived sessions run, now that all are there, and
// hear each other's wills.
func (b *Broker) startTimers(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		s.mu.Lock()
		if s.will == nil {
			s.schedule(now)
		} else {
			s.timer = time.AfterFunc(b.conf.WillGrace, func() { b.timeUp(s) })
		}
		s.mu.Unlock()
	}
}

func (l *loader) record(key string, value []byte) error {
	kind, rest := key[:min(len(key), 2)], key[min(len(key), 2):]
	value = append([]byte(nil), value...)
	switch kind {
	case keySession:
		var r sessionRecord
		if err := json.Unmarshal(value, &r); err != nil {
			return err
		}
		l.sessions[rest] = r
		return nil
	case keyMessage:
		id, err := strconv.ParseUint(rest, 16, 64)
		if err != nil {
			return err
		}
		m, err := decodeMessage(value)
		if err != nil {
			return err
		}
		m.id = id
		l.messages[id] = m
		l.b.lastID.Store(max(l.b.lastID.Load(), id))
		return nil
	case keyRetained:
		m, err := decodeMessage(value)
		if err != nil {
			return err
		}
		return l.b.retained.set(m, Limits{Retained: math.MaxInt, RetainedPerClient: math.MaxInt}) // it was acknowledged
	}
	at := strings.LastIndexByte(rest, '/')
	if at < 0 {
		return errStored
	}
	session, last := rest[:at], rest[at+1:]
	if kind == keyReceived {
		id, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return err
		}
		if l.received[session] == nil {
			l.received[session] = map[uint16]struct{}{}
		}
		l.received[session][uint16(id)] = struct{}{}
		return nil
	}
	if kind != keyQueue {
		return errStored
	}
	seq, err := strconv.ParseUint(last, 16, 64)
	if err != nil {
		return err
	}
	o, message, err := decodeOutgoing(value)
	if err != nil {
		return err
	}
	o.seq = seq
	l.queues[session] = append(l.queues[session], queued{o, message})
	return nil
}

// revive makes a session of its record, without a connection.
func (l *loader) revive(key string, r sessionRecord, now time.Time) error {
	b := l.b
	s := &session{
		b: b, key: key, clientID: r.ClientID, identity: mqtt.Identity{Name: r.Name, Device: r.Device},
		subs: map[string]*subscription{}, expiry: r.Expiry, since: r.Since, received: l.received[key], recorded: true,
	}
	if s.since.IsZero() {
		s.since = now
	}
	if err := s.reviveWill(r.Will, now); err != nil {
		return err
	}
	for _, sub := range r.Subs {
		s.subs[sub.Name] = &subscription{
			session: s, filter: sub.Filter, share: sub.Share, qos: sub.QoS, noLocal: sub.NoLocal, retainAsPublished: sub.RetainAsPublished, id: sub.ID,
		}
		b.index.add(s.subs[sub.Name])
	}
	l.reviveQueue(s)
	b.sessions[key] = s
	b.count(s, s.identity, s.expiry)
	return nil
}

func (s *session) reviveWill(r *willRecord, now time.Time) error {
	if r == nil {
		return nil
	}
	m, err := decodeMessage(r.Message)
	if err != nil {
		return err
	}
	s.will = &will{msg: m, expiry: r.Expiry, delay: r.Delay, due: r.Due}
	if r.Due.IsZero() { // the server was lost, not the client
		s.will.due = now.Add(r.Delay)
	}
	return nil
}

// reviveQueue fills the queue. What may have been sent before is marked as sent
// again; the store does not know it exactly.
func (l *loader) reviveQueue(s *session) {
	s.ids = map[uint16]struct{}{}
	for _, q := range l.queues[s.key] {
		o := q.o
		if o.state != released {
			if o.msg = l.messages[q.message]; o.msg == nil {
				l.b.journal.remove(queueKey(s.key, o.seq))
				continue
			}
			o.msg.route()
			o.dup = len(s.queue) < l.b.lim.Inflight
			s.push(o)
		} else {
			s.inflight = append(s.inflight, o)
		}
		s.ids[o.id] = struct{}{}
		s.lastID, s.seq = o.id, max(s.seq, o.seq)
	}
	delete(l.queues, s.key)
	delete(l.received, s.key)
}

// sweep removes what belongs to no session.
func (l *loader) sweep() {
	for session, queue := range l.queues {
		for _, q := range queue {
			l.b.journal.remove(queueKey(session, q.o.seq))
		}
	}
	for session, ids := range l.received {
		for id := range ids {
			l.b.journal.remove(receivedKey(session, id))
		}
	}
	for id, m := range l.messages {
		if m.refs == 0 {
			l.b.journal.remove(messageKey(id))
		}
	}
}
