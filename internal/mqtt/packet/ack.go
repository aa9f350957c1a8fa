package packet

// Ack is a PUBACK, PUBREC, PUBREL or PUBCOMP (3.4 to 3.7).
type Ack struct {
	ID   uint16
	Code Code
}

// DecodeAck reads the body of a PUBACK, PUBREC, PUBREL or PUBCOMP.
func DecodeAck(body []byte, version byte) (Ack, error) {
	r := reader{b: body}
	a := Ack{ID: r.id()}
	if version == V5 && len(r.b) > 0 {
		a.Code = Code(r.byte("the reason code"))
		if len(r.b) > 0 {
			r.properties(ackProps, func(property) {})
		}
	}
	return a, r.end()
}

// AppendAck writes a PUBACK, PUBREC, PUBREL or PUBCOMP. Code and reason are left
// out for older clients.
func AppendAck(dst []byte, version byte, t Type, a Ack, reason string) []byte {
	first := byte(t) << 4
	if t == PUBREL {
		first |= 2
	}
	dst = append(dst, first)
	switch {
	case version != V5 || a.Code == Success && reason == "":
		return appendUint16(append(dst, 2), a.ID)
	case reason == "":
		return append(appendUint16(append(dst, 3), a.ID), byte(a.Code))
	}
	props := 3 + len(reason)
	dst = appendVarint(dst, 3+varintSize(props)+props)
	dst = append(appendUint16(dst, a.ID), byte(a.Code))
	dst = append(appendVarint(dst, props), propReasonString)
	return appendText(dst, reason)
}

// Disconnect is a DISCONNECT of the client (3.14).
type Disconnect struct {
	Code          Code
	SessionExpiry uint32
	HasExpiry     bool
}

// DecodeDisconnect reads the body of a DISCONNECT.
func DecodeDisconnect(body []byte, version byte) (Disconnect, error) {
	r := reader{b: body}
	var d Disconnect
	if version == V5 && len(r.b) > 0 {
		d.Code = Code(r.byte("the reason code"))
		if len(r.b) > 0 {
			r.properties(disconnectProps, func(p property) {
				if p.id == propSessionExpiry {
					d.SessionExpiry, d.HasExpiry = p.num, true
				}
			})
		}
	}
	return d, r.end()
}

// AppendDisconnect writes a DISCONNECT for an MQTT 5 client; there is none to
// older ones.
func AppendDisconnect(dst []byte, code Code, reason string) []byte {
	dst = append(dst, byte(DISCONNECT)<<4)
	if reason == "" {
		return append(dst, 1, byte(code))
	}
	props := 3 + len(reason)
	dst = appendVarint(dst, 1+varintSize(props)+props)
	dst = append(dst, byte(code))
	dst = append(appendVarint(dst, props), propReasonString)
	return appendText(dst, reason)
}

// AppendPingresp writes a PINGRESP (3.13).
func AppendPingresp(dst []byte) []byte { return append(dst, byte(PINGRESP)<<4, 0) }

func appendUint16(dst []byte, v uint16) []byte { return append(dst, byte(v>>8), byte(v)) }

func appendUint32(dst []byte, v uint32) []byte {
	return append(dst, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func appendText(dst []byte, s string) []byte {
	return append(appendUint16(dst, uint16(len(s))), s...)
}

func appendVarint(dst []byte, v int) []byte {
	for ; v > 127; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

func varintSize(v int) int {
	n := 1
	for ; v > 127; v >>= 7 {
		n++
	}
	return n
}
