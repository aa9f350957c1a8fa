package broker

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/otad/otad/internal/mqtt/packet"
)

// message is one publish on its way. It does not change once it is routed, and
// all its receivers share it.
type message struct {
	topic   string
	payload []byte
	props   []byte // forwarded properties
	qos     byte
	retain  bool
	expires time.Time // zero: never
	sender  string    // name of the identity that published it, empty: otad
	from    *session  // nil: otad, or a session that is gone

	keeping keeping
	unit    *unit // of what is stored of it, nil: none

	mu   sync.Mutex
	id   uint64 // its place in the store, 0: not kept there
	refs int    // who needs it in the store: queue entries, and whoever is routing it
}

// keeping says for which sessions that last a message is stored.
type keeping byte

const (
	keptForAll  keeping = iota // until the client has it: who published it may forget it
	keptForAway                // from when the client is away, which does not know then what it missed
	keptForNone                // not: the client asks when it is back
)

// copy returns a message of its own with the same content.
func (m *message) copy() *message {
	return &message{topic: m.topic, payload: m.payload, props: m.props, qos: m.qos, retain: m.retain, expires: m.expires, sender: m.sender, keeping: m.keeping}
}

// route takes the reference of who routes m. Broker.unref gives it back.
func (m *message) route() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refs++
}

// kept reports whether m is in the store for somebody.
func (m *message) kept() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id != 0
}

func (m *message) expired(now time.Time) bool { return !m.expires.IsZero() && !now.Before(m.expires) }

// size is what m counts against the limits of a queue.
func (m *message) size() int { return len(m.topic) + len(m.payload) + len(m.props) }

// encode writes m as it rests in the store: the time it expires in
// microseconds, the length of the sender's name, the name, and an MQTT 5 PUBLISH.
func (m *message) encode() []byte {
	var expires uint64
	if !m.expires.IsZero() {
		expires = uint64(m.expires.UnixMicro())
	}
	out := binary.BigEndian.AppendUint64(nil, expires)
	out = binary.BigEndian.AppendUint16(out, uint16(len(m.sender)))
	out = append(out, m.sender...)
	return packet.AppendPublish(out, packet.V5, packet.Delivery{
		Topic: m.topic, Payload: m.payload, Props: m.props, QoS: m.qos, Retain: m.retain, ID: 1,
	})
}

func decodeMessage(b []byte) (*message, error) {
	if len(b) < 10 || len(b) < 10+int(binary.BigEndian.Uint16(b[8:])) {
		return nil, errStored
	}
	m := &message{}
	if expires := binary.BigEndian.Uint64(b); expires != 0 {
		m.expires = time.UnixMicro(int64(expires))
	}
	rest := b[10:]
	n := binary.BigEndian.Uint16(b[8:])
	m.sender, rest = string(rest[:n]), rest[n:]
	h, size, err := packet.ParseHeader(rest)
	if err != nil || size == 0 || h.Type != packet.PUBLISH || len(rest) != size+h.Size {
		return nil, errStored
	}
	p, err := packet.DecodePublish(h.Flags, rest[size:], packet.V5)
	if err != nil {
		return nil, err
	}
	m.topic, m.payload, m.props, m.qos, m.retain = string(p.Topic), p.Payload, p.Props, p.QoS, p.Retain
	return m, nil
}

// outgoing is one message in the queue of a session.
type outgoing struct {
	msg    *message
	seq    uint64 // order within the session
	subIDs []uint32
	id     uint16 // packet identifier, 0 for QoS 0
	qos    byte
	retain bool
	dup    bool
	held   bool // not to be sent before it is durable
	stored bool
	state  outgoingState
	group  *group // the shared subscription it came by
}

type outgoingState byte

const (
	waiting  outgoingState = iota
	sent                   // PUBLISH is out
	released               // QoS 2: PUBREC came, PUBREL is out
)

const (
	bitRetain   = 1 << 2
	bitReleased = 1 << 3
)

// encode writes o as it rests in the store: flags, packet identifier, the id of
// the message, subscription identifiers of four bytes each.
func (o *outgoing) encode() []byte {
	flags := o.qos
	if o.retain {
		flags |= bitRetain
	}
	var id uint64
	if o.state == released {
		flags |= bitReleased
	} else {
		id = o.msg.id
	}
	out := binary.BigEndian.AppendUint16([]byte{flags}, o.id)
	out = binary.BigEndian.AppendUint64(out, id)
	for _, sub := range o.subIDs {
		out = binary.BigEndian.AppendUint32(out, sub)
	}
	return out
}

// decodeOutgoing returns o without its message, and the message's id.
func decodeOutgoing(b []byte) (o *outgoing, message uint64, err error) {
	if len(b) < 11 || (len(b)-11)%4 != 0 {
		return nil, 0, errStored
	}
	o = &outgoing{qos: b[0] & 3, retain: b[0]&bitRetain != 0, id: binary.BigEndian.Uint16(b[1:]), stored: true}
	if b[0]&bitReleased != 0 {
		o.state = released
	}
	for rest := b[11:]; len(rest) > 0; rest = rest[4:] {
		o.subIDs = append(o.subIDs, binary.BigEndian.Uint32(rest))
	}
	return o, binary.BigEndian.Uint64(b[3:]), nil
}
