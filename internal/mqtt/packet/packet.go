// Package packet reads and writes the control packets of MQTT 5.0, 3.1.1 and
// 3.1 for a server. It is strict: what a specification calls malformed is an
// error here, so that the broker above sees well-formed packets only.
//
// Reading makes no copies: byte slices of a decoded packet belong to the buffer
// they were read from. Writing appends to a buffer of the caller's.
//
// Clause numbers are those of MQTT 5.0 (OASIS, 7 March 2019).
package packet

import "fmt"

// Type is a control packet type (2.1.2).
type Type byte

// The control packet types.
const (
	CONNECT Type = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
	AUTH
)

// Protocol levels as in CONNECT (3.1.2.2).
const (
	V31  = 3
	V311 = 4
	V5   = 5
)

// Code is a reason code (2.4).
type Code byte

// The reason codes that this server sends or looks at.
const (
	Success                 Code = 0x00
	DisconnectWithWill      Code = 0x04
	NoMatchingSubscribers   Code = 0x10
	NoSubscriptionExisted   Code = 0x11
	UnspecifiedError        Code = 0x80
	MalformedPacket         Code = 0x81
	ProtocolError           Code = 0x82
	ImplementationSpecific  Code = 0x83
	UnsupportedVersion      Code = 0x84
	ClientIDNotValid        Code = 0x85
	BadUserNameOrPassword   Code = 0x86
	NotAuthorized           Code = 0x87
	ServerUnavailable       Code = 0x88
	ServerBusy              Code = 0x89
	ServerShuttingDown      Code = 0x8B
	BadAuthenticationMethod Code = 0x8C
	KeepAliveTimeout        Code = 0x8D
	SessionTakenOver        Code = 0x8E
	TopicFilterInvalid      Code = 0x8F
	TopicNameInvalid        Code = 0x90
	PacketIDInUse           Code = 0x91
	PacketIDNotFound        Code = 0x92
	ReceiveMaximumExceeded  Code = 0x93
	TopicAliasInvalid       Code = 0x94
	PacketTooLarge          Code = 0x95
	QuotaExceeded           Code = 0x97
	AdministrativeAction    Code = 0x98
	PayloadFormatInvalid    Code = 0x99
	QoSNotSupported         Code = 0x9B
)

// Error is a fault of the peer's: the code to answer with and words for it.
type Error struct {
	Code Code
	Text string
}

// Error implements error.
func (e *Error) Error() string { return e.Text }

func malformed(format string, args ...any) error {
	return &Error{MalformedPacket, "malformed packet: " + fmt.Sprintf(format, args...)}
}

func violation(format string, args ...any) error {
	return &Error{ProtocolError, "protocol error: " + fmt.Sprintf(format, args...)}
}

// Header is a fixed header (2.1.1).
type Header struct {
	Type  Type
	Flags byte // the low four bits of the first byte
	Size  int  // of what follows the header
}

// MaxHeaderBytes is the size of the largest fixed header.
const MaxHeaderBytes = 5

// ParseHeader reads the fixed header at the start of b and returns how many bytes
// it has: 0 when b does not hold all of it yet. Flags that the type does not
// allow (2.1.3) are an error.
func ParseHeader(b []byte) (h Header, n int, err error) {
	if len(b) == 0 {
		return Header{}, 0, nil
	}
	h = Header{Type: Type(b[0] >> 4), Flags: b[0] & 0x0f}
	if err := h.checkFlags(); err != nil {
		return Header{}, 0, err
	}
	size, n, err := varint(b[1:])
	if err != nil || n == 0 {
		return Header{}, 0, err
	}
	h.Size = size
	return h, 1 + n, nil
}

func (h Header) checkFlags() error {
	switch h.Type {
	case 0:
		return malformed("packet type 0 is reserved")
	case PUBLISH:
		if h.Flags&0x06 == 0x06 {
			return malformed("QoS 3") // 3.3.1-4
		}
		if h.Flags&0x0e == 0x08 {
			return malformed("DUP with QoS 0") // 3.3.1-2
		}
	case PUBREL, SUBSCRIBE, UNSUBSCRIBE:
		if h.Flags != 2 {
			return malformed("flags %#x of packet type %d", h.Flags, h.Type)
		}
	default:
		if h.Flags != 0 {
			return malformed("flags %#x of packet type %d", h.Flags, h.Type)
		}
	}
	return nil
}

// varint reads a variable byte integer (1.5.5); n is 0 when b ends within it.
func varint(b []byte) (v, n int, err error) {
	for n = 0; n < 4; n++ {
		if n == len(b) {
			return 0, 0, nil
		}
		v |= int(b[n]&0x7f) << (7 * n)
		if b[n]&0x80 == 0 {
			if n > 0 && b[n] == 0 {
				return 0, 0, malformed("a length in more bytes than it needs") // 1.5.5-1
			}
			return v, n + 1, nil
		}
	}
	return 0, 0, malformed("a length of more than four bytes")
}
