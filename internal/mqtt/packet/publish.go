package packet

// Publish is a PUBLISH (3.3).
type Publish struct {
	Topic   []byte // empty: by alias
	Payload []byte
	QoS     byte
	Dup     bool
	Retain  bool
	ID      uint16 // 0 for QoS 0

	Alias     uint16
	HasAlias  bool
	Expiry    uint32 // seconds
	HasExpiry bool
	// Props are the properties that go on to subscribers unaltered: payload
	// format, content type, response topic, correlation data, user properties.
	Props []byte
}

// DecodePublish reads the body of a PUBLISH. Topic, Payload and, where they were
// one run of bytes, Props belong to body. Whether the topic may be published to
// is for the caller to check: ValidTopicName.
func DecodePublish(flags byte, body []byte, version byte) (Publish, error) {
	p := Publish{QoS: flags >> 1 & 3, Dup: flags&8 != 0, Retain: flags&1 != 0}
	r := reader{b: body}
	p.Topic = r.text("the topic name")
	if p.QoS > 0 {
		p.ID = r.id()
	}
	if version == V5 {
		r.properties(publishProps, func(x property) {
			switch x.id {
			case propTopicAlias:
				p.Alias, p.HasAlias = uint16(x.num), true
			case propMessageExpiry:
				p.Expiry, p.HasExpiry = x.num, true
			default:
				if p.Props == nil {
					p.Props = x.raw[:len(x.raw):len(x.raw)] // the next append copies
				} else {
					p.Props = append(p.Props, x.raw...)
				}
			}
		})
	}
	p.Payload = r.b
	if r.err == nil && len(p.Topic) == 0 && !p.HasAlias {
		r.fail(violation("neither a topic nor an alias")) // 3.3.2.1
	}
	return p, r.err
}

// Delivery is a PUBLISH on its way to a subscriber.
type Delivery struct {
	Topic     string
	Payload   []byte
	Props     []byte // forwarded properties, for MQTT 5
	QoS       byte
	Dup       bool
	Retain    bool
	ID        uint16
	Expiry    uint32 // seconds left
	HasExpiry bool
	SubIDs    []uint32
	Alias     uint16 // topic alias, 0: none; Topic is empty once the client knows it
}

// AppendPublish writes a PUBLISH.
func AppendPublish(dst []byte, version byte, d Delivery) []byte {
	first := byte(PUBLISH)<<4 | d.QoS<<1
	if d.Dup {
		first |= 8
	}
	if d.Retain {
		first |= 1
	}
	props := -1
	if version == V5 {
		props = d.propsSize()
	}
	dst = append(dst, first)
	dst = appendVarint(dst, d.size(props))
	dst = appendText(dst, d.Topic)
	if d.QoS > 0 {
		dst = appendUint16(dst, d.ID)
	}
	if version == V5 {
		dst = appendVarint(dst, props)
		if d.HasExpiry {
			dst = appendUint32(append(dst, propMessageExpiry), d.Expiry)
		}
		if d.Alias != 0 {
			dst = appendUint16(append(dst, propTopicAlias), d.Alias)
		}
		for _, id := range d.SubIDs {
			dst = appendVarint(append(dst, propSubscriptionID), int(id))
		}
		dst = append(dst, d.Props...)
	}
	return append(dst, d.Payload...)
}

// PublishSize is how many bytes AppendPublish writes.
func PublishSize(version byte, d Delivery) int {
	props := -1
	if version == V5 {
		props = d.propsSize()
	}
	n := d.size(props)
	return 1 + varintSize(n) + n
}

func (d *Delivery) propsSize() int {
	n := len(d.Props)
	if d.HasExpiry {
		n += 5
	}
	if d.Alias != 0 {
		n += 3
	}
	for _, id := range d.SubIDs {
		n += 1 + varintSize(int(id))
	}
	return n
}

// size is the remaining length; props is -1 where there are none.
func (d *Delivery) size(props int) int {
	n := 2 + len(d.Topic) + len(d.Payload)
	if d.QoS > 0 {
		n += 2
	}
	if props >= 0 {
		n += varintSize(props) + props
	}
	return n
}
