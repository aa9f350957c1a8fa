package brokertest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Packet types of MQTT, the upper half of the first byte.
const (
	connect     byte = 1
	connack     byte = 2
	publish     byte = 3
	puback      byte = 4
	pubrec      byte = 5
	pubrel      byte = 6
	pubcomp     byte = 7
	subscribe   byte = 8
	suback      byte = 9
	unsubscribe byte = 10
	unsuback    byte = 11
	pingreq     byte = 12
	pingresp    byte = 13
	disconnect  byte = 14
	authPacket  byte = 15
)

// The versions of the protocol as CONNECT names them.
const (
	v31  byte = 3
	v311 byte = 4
	v5   byte = 5
)

// Property identifiers of MQTT 5 (clause 2.2.2.2).
const (
	propPayloadFormat     byte = 0x01
	propMessageExpiry     byte = 0x02
	propContentType       byte = 0x03
	propResponseTopic     byte = 0x08
	propCorrelation       byte = 0x09
	propSubscriptionID    byte = 0x0B
	propSessionExpiry     byte = 0x11
	propAssignedID        byte = 0x12
	propServerKeepAlive   byte = 0x13
	propAuthMethod        byte = 0x15
	propAuthData          byte = 0x16
	propProblemInfo       byte = 0x17
	propWillDelay         byte = 0x18
	propReasonString      byte = 0x1F
	propReceiveMaximum    byte = 0x21
	propTopicAliasMaximum byte = 0x22
	propTopicAlias        byte = 0x23
	propMaximumQoS        byte = 0x24
	propUser              byte = 0x26
	propMaximumPacketSize byte = 0x27
)

// shapes of properties
const (
	shapeByte = iota + 1
	shapeShort
	shapeInt
	shapeVarint
	shapeText
	shapePair
)

var propertyShapes = map[byte]int{
	0x01: shapeByte, 0x02: shapeInt, 0x03: shapeText, 0x08: shapeText, 0x09: shapeText, 0x0B: shapeVarint, 0x11: shapeInt,
	0x12: shapeText, 0x13: shapeShort, 0x15: shapeText, 0x16: shapeText, 0x17: shapeByte, 0x18: shapeInt, 0x19: shapeByte,
	0x1A: shapeText, 0x1C: shapeText, 0x1F: shapeText, 0x21: shapeShort, 0x22: shapeShort, 0x23: shapeShort, 0x24: shapeByte,
	0x25: shapeByte, 0x26: shapePair, 0x27: shapeInt, 0x28: shapeByte, 0x29: shapeByte, 0x2A: shapeByte,
}

// property is one of MQTT 5; which of its values counts follows from its shape.
type property struct {
	id   byte
	num  uint32
	text string
	key  string
}

type properties []property

func (ps properties) find(id byte) (property, bool) {
	for _, p := range ps {
		if p.id == id {
			return p, true
		}
	}
	return property{}, false
}

// number is the value of a property, and def where it is not there.
func (ps properties) number(id byte, def uint32) uint32 {
	if p, ok := ps.find(id); ok {
		return p.num
	}
	return def
}

func (ps properties) text(id byte) string {
	p, _ := ps.find(id)
	return p.text
}

func (ps properties) encode() []byte {
	var b []byte
	for _, p := range ps {
		b = append(b, p.id)
		switch propertyShapes[p.id] {
		case shapeByte:
			b = append(b, byte(p.num))
		case shapeShort:
			b = binary.BigEndian.AppendUint16(b, uint16(p.num))
		case shapeInt:
			b = binary.BigEndian.AppendUint32(b, p.num)
		case shapeVarint:
			b = binary.AppendUvarint(b, uint64(p.num))
		case shapePair:
			b = append(append(b, text(p.key)...), text(p.text)...)
		default:
			b = append(b, text(p.text)...)
		}
	}
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

// text is a string or binary data behind its length.
func text(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func short(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// frame puts the fixed header in front. MQTT's variable byte integer is the
// encoding of encoding/binary.
func frame(first byte, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	b := binary.AppendUvarint([]byte{first}, uint64(len(body)))
	return append(b, body...)
}

// packet is one that the broker sent.
type packet struct {
	kind, flags byte
	id          uint16
	code        byte   // reason or return code
	codes       []byte // of SUBACK and UNSUBACK
	present     bool   // session present
	topic       string
	payload     string
	props       properties
	size        int
}

func (p packet) qos() byte    { return p.flags >> 1 & 3 }
func (p packet) dup() bool    { return p.flags&8 != 0 }
func (p packet) retain() bool { return p.flags&1 != 0 }

const maxProbePacket = 1 << 20

var errMalformed = errors.New("malformed packet from the broker")

// reader takes a body apart; after a fault everything is empty.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return make([]byte, max(0, min(n, 8)))
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte    { return r.take(1)[0] }
func (r *reader) short() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) int() uint32   { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) text() string  { return string(r.take(int(r.short()))) }

func (r *reader) varint() uint32 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || size > 4 {
		r.take(-1)
		return 0
	}
	r.take(size)
	return uint32(n)
}

func (r *reader) properties() properties {
	in := &reader{b: r.take(int(r.varint()))}
	var ps properties
	for len(in.b) > 0 && !in.bad {
		p := property{id: in.byte()}
		switch propertyShapes[p.id] {
		case shapeByte:
			p.num = uint32(in.byte())
		case shapeShort:
			p.num = uint32(in.short())
		case shapeInt:
			p.num = in.int()
		case shapeVarint:
			p.num = in.varint()
		case shapePair:
			p.key, p.text = in.text(), in.text()
		case shapeText:
			p.text = in.text()
		default:
			in.bad = true
		}
		ps = append(ps, p)
	}
	r.bad = r.bad || in.bad
	return ps
}

// readPacket reads what the broker sends, in its own words and not with the
// broker's codec: what both got wrong in the same way would not show.
func readPacket(in *bufio.Reader, version byte) (packet, error) {
	first, err := in.ReadByte()
	if err != nil {
		return packet{}, err
	}
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return packet{}, err
	}
	if n > maxProbePacket {
		return packet{}, fmt.Errorf("%w: %d bytes", errMalformed, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(in, body); err != nil {
		return packet{}, err
	}
	p := packet{kind: first >> 4, flags: first & 0xf, size: int(n)}
	r := &reader{b: body}
	p.parse(r, version == v5)
	if r.bad {
		return p, fmt.Errorf("%w: type %d: % x", errMalformed, p.kind, body)
	}
	return p, nil
}

func (p *packet) parse(r *reader, v5 bool) {
	switch p.kind {
	case connack:
		p.present = r.byte() == 1
		p.code = r.byte()
	case publish:
		p.topic = r.text()
		if p.qos() > 0 {
			p.id = r.short()
		}
	case puback, pubrec, pubrel, pubcomp:
		p.id = r.short()
		if len(r.b) > 0 {
			p.code = r.byte()
		}
		if len(r.b) == 0 {
			return
		}
	case suback, unsuback:
		p.id = r.short()
	case disconnect, authPacket:
		if len(r.b) > 0 {
			p.code = r.byte()
		}
		if len(r.b) == 0 {
			return
		}
	}
	if v5 && p.kind != pingresp {
		p.props = r.properties()
	}
	switch p.kind {
	case publish:
		p.payload = string(r.b)
	case suback, unsuback:
		p.codes = r.b
	default:
		r.bad = r.bad || len(r.b) > 0
	}
}
