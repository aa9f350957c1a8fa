package packet

// Subscription is one filter of a SUBSCRIBE with its options (3.8.3.1).
type Subscription struct {
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte // 0: send retained, 1: only if new, 2: do not
}

// Subscribe is a SUBSCRIBE (3.8).
type Subscribe struct {
	ID            uint16
	SubID         uint32 // subscription identifier, 0: none
	Subscriptions []Subscription
}

// DecodeSubscribe reads the body of a SUBSCRIBE. Whether the filters are valid is
// for the caller to check, as each is answered by itself.
func DecodeSubscribe(body []byte, version byte) (Subscribe, error) {
	r := reader{b: body}
	s := Subscribe{ID: r.id()}
	if version == V5 {
		r.properties(subscribeProps, func(p property) {
			if p.id == propSubscriptionID {
				s.SubID = p.num
			}
		})
	}
	for len(r.b) > 0 {
		f := Subscription{Filter: string(r.text("a topic filter"))}
		options := r.byte("the subscription options")
		f.QoS = options & 3
		reserved := options &^ 3
		if version == V5 {
			f.NoLocal, f.RetainAsPublished, f.RetainHandling = options&4 != 0, options&8 != 0, options>>4&3
			reserved = options & 0xc0
		}
		if r.err == nil && (reserved != 0 || f.QoS == 3 || f.RetainHandling == 3) {
			r.fail(malformed("subscription options %#x", options)) // 3.8.3-5
		}
		s.Subscriptions = append(s.Subscriptions, f)
	}
	if r.err == nil && len(s.Subscriptions) == 0 {
		r.fail(violation("SUBSCRIBE without a filter")) // 3.8.3-2
	}
	return s, r.err
}

// Unsubscribe is an UNSUBSCRIBE (3.10).
type Unsubscribe struct {
	ID      uint16
	Filters []string
}

// DecodeUnsubscribe reads the body of an UNSUBSCRIBE.
func DecodeUnsubscribe(body []byte, version byte) (Unsubscribe, error) {
	r := reader{b: body}
	u := Unsubscribe{ID: r.id()}
	if version == V5 {
		r.properties(unsubProps, func(property) {})
	}
	for len(r.b) > 0 {
		u.Filters = append(u.Filters, string(r.text("a topic filter")))
	}
	if r.err == nil && len(u.Filters) == 0 {
		r.fail(violation("UNSUBSCRIBE without a filter")) // 3.10.3-2
	}
	return u, r.err
}

// AppendSuback writes a SUBACK with one code for each filter (3.9). For older
// clients every failure is 0x80; MQTT 3.1 knows only granted QoS, and gets the
// same.
func AppendSuback(dst []byte, version byte, id uint16, codes []Code) []byte {
	dst = append(dst, byte(SUBACK)<<4)
	if version != V5 {
		dst = appendUint16(appendVarint(dst, 2+len(codes)), id)
		for _, c := range codes {
			dst = append(dst, byte(min(c, UnspecifiedError)))
		}
		return dst
	}
	return appendCodes(dst, id, codes)
}

// AppendUnsuback writes an UNSUBACK (3.11).
func AppendUnsuback(dst []byte, version byte, id uint16, codes []Code) []byte {
	dst = append(dst, byte(UNSUBACK)<<4)
	if version != V5 {
		return appendUint16(append(dst, 2), id)
	}
	return appendCodes(dst, id, codes)
}

func appendCodes(dst []byte, id uint16, codes []Code) []byte {
	dst = appendVarint(dst, 3+len(codes))
	dst = append(appendUint16(dst, id), 0)
	for _, c := range codes {
		dst = append(dst, byte(c))
	}
	return dst
}
