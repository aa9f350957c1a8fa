package brokertest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

// malformedProbes are T12: what is no MQTT gets the right code, ends its
// connection and nobody else's, and costs no memory.
var malformedProbes = []probeCase{
	{"T12 CONNECT", (*probe).malformedConnect},
	{"T12 packets", (*probe).malformedPackets},
	{"T12 packets of MQTT 3.1.1", (*probe).malformedOld},
	{"T12 subscriptions", (*probe).malformedSubscriptions},
	{"T12 cut at every byte", (*probe).cutEverywhere},
	{"T12 many levels and long names", (*probe).manyLevels},
	{"T12 lengths without bytes", (*probe).lengths},
	{"T12 no MQTT at all", (*probe).foreign},
	{"T12 CONNECT flood", (*probe).connectFlood},
}

// badUTF8 are strings that MQTT forbids (1.5.4).
var badUTF8 = map[string]string{
	"a zero": "a\x00b", "half a surrogate": "a\xED\xA0\x80", "an overlong slash": "a\xC0\xAF", "a stray byte": "a\xFF",
	"an unfinished rune": "a\xE2\x82", "beyond unicode": "\xF4\x90\x80\x80",
}

// witness is two connections that must not notice anything.
type witness struct {
	p        *probe
	pub, sub *peer
	n        int
	before   int64
}

func (p *probe) witness() *witness {
	w := &witness{p: p, pub: p.client(v5, "witness-pub"), sub: p.client(v311, "witness-sub")}
	w.sub.mustSub(1, "witness")
	w.check("at first")
	if p.target.Resident != nil {
		w.before = p.target.Resident()
	}
	return w
}

func (w *witness) check(after string) {
	w.n++
	began := time.Now()
	w.pub.mustPub(out{topic: "witness", payload: fmt.Sprint(w.n), qos: 1})
	if m := w.sub.take(); number(m) != w.n || m.topic != "witness" {
		w.p.errorf("%s: the others got %q on %s, want %d", after, m.payload, m.topic, w.n)
	}
	if d := time.Since(began); d > patience/4 {
		w.p.errorf("%s: the others waited %v", after, d)
	}
}

// end wants the memory to be what it was, give or take.
func (w *witness) end() {
	const slack = 24 << 20
	w.check("in the end")
	if w.p.target.Resident == nil {
		return
	}
	if after := w.p.target.Resident(); after > w.before+slack {
		w.p.errorf("memory grew from %d to %d KiB", w.before>>10, after>>10)
	}
}

// raw builds a CONNECT of MQTT 5 by hand.
func rawConnect(name string, level, flags byte, rest ...[]byte) []byte {
	body := append(text(name), level, flags, 0, 0)
	return frame(connect<<4, append([][]byte{body}, rest...)...)
}

var noProps = []byte{0}

func block(b ...byte) []byte { return append(binary.AppendUvarint(nil, uint64(len(b))), b...) }

func (p *probe) malformedConnect() {
	w := p.witness()
	id := text("bad")
	for _, c := range []struct {
		name  string
		send  []byte
		codes []byte
	}{
		{"protocol name", rawConnect("MQTX", 5, 2, noProps, id), []byte{0x84, 0x01, 0x81, 0x82}},
		{"protocol name in lower case", rawConnect("mqtt", 5, 2, noProps, id), []byte{0x84, 0x01, 0x81, 0x82}},
		{"empty protocol name", rawConnect("", 5, 2, noProps, id), []byte{0x84, 0x01, 0x81, 0x82}},
		{"long protocol name", rawConnect(strings.Repeat("M", 60_000), 5, 2, noProps, id), []byte{0x84, 0x01, 0x81, 0x82}},
		{"the old name with the new level", rawConnect("MQIsdp", 5, 2, noProps, id), []byte{0x84, 0x01, 0x81, 0x82}},
		{"the new name with level 3", rawConnect("MQTT", 3, 2, id), []byte{0x84, 0x01, 0x81, 0x82}},
		{"level 0", rawConnect("MQTT", 0, 2, noProps, id), []byte{0x84, 0x01}},
		{"level 6", rawConnect("MQTT", 6, 2, noProps, id), []byte{0x84, 0x01}},
		{"level 127", rawConnect("MQTT", 127, 2, noProps, id), []byte{0x84, 0x01}},
		{"reserved flag", rawConnect("MQTT", 5, 3, noProps, id), []byte{0x81, 0x82}},
		{"will with QoS 3", rawConnect("MQTT", 5, 0x1E, noProps, id, noProps, text("t"), text("p")), []byte{0x81, 0x82, 0x9B}},
		{"QoS of no will", rawConnect("MQTT", 5, 0x0A, noProps, id), []byte{0x81, 0x82}},
		{"retain of no will", rawConnect("MQTT", 5, 0x22, noProps, id), []byte{0x81, 0x82}},
		{"a will flag without a will", rawConnect("MQTT", 5, 0x06, noProps, id), []byte{0x81, 0x82}},
		{"a user flag without a user", rawConnect("MQTT", 5, 0x82, noProps, id), []byte{0x81, 0x82}},
		{"bytes behind the end", rawConnect("MQTT", 5, 2, noProps, id, []byte("rest")), []byte{0x81, 0x82}},
		{"no client id", rawConnect("MQTT", 5, 2, noProps), []byte{0x81, 0x82}},
		{"no properties", rawConnect("MQTT", 5, 2), []byte{0x81, 0x82}},
		{"a client id that is too short", rawConnect("MQTT", 5, 2, noProps, []byte{0, 9, 'x'}), []byte{0x81, 0x82}},
		{"a property twice", rawConnect("MQTT", 5, 2, block(0x11, 0, 0, 0, 1, 0x11, 0, 0, 0, 1), id), []byte{0x82, 0x81}},
		{"an unknown property", rawConnect("MQTT", 5, 2, block(0x7F, 0), id), []byte{0x81, 0x82}},
		{"property 0", rawConnect("MQTT", 5, 2, block(0), id), []byte{0x81, 0x82}},
		{"a property of PUBLISH", rawConnect("MQTT", 5, 2, block(0x23, 0, 1), id), []byte{0x82, 0x81}},
		{"a property of CONNACK", rawConnect("MQTT", 5, 2, block(0x24, 1), id), []byte{0x82, 0x81}},
		{"receive maximum 0", rawConnect("MQTT", 5, 2, block(0x21, 0, 0), id), []byte{0x82, 0x81}},
		{"maximum packet size 0", rawConnect("MQTT", 5, 2, block(0x27, 0, 0, 0, 0), id), []byte{0x82, 0x81}},
		{"request problem information 2", rawConnect("MQTT", 5, 2, block(0x17, 2), id), []byte{0x82, 0x81}},
		{"request response information 2", rawConnect("MQTT", 5, 2, block(0x19, 2), id), []byte{0x82, 0x81}},
		{"data of no authentication", rawConnect("MQTT", 5, 2, block(0x16, 0, 1, 'x'), id), []byte{0x82, 0x81}},
		{"unknown authentication", rawConnect("MQTT", 5, 2, block(0x15, 0, 1, 'x'), id), []byte{0x8C}},
		{"properties longer than the packet", rawConnect("MQTT", 5, 2, []byte{100}, id), []byte{0x81, 0x82}},
		{"a property cut off", rawConnect("MQTT", 5, 2, block(0x11, 0, 0), id), []byte{0x81, 0x82}},
		{"a property length of five bytes", rawConnect("MQTT", 5, 2, []byte{0x80, 0x80, 0x80, 0x80, 0}, id), []byte{0x81, 0x82}},
		{"flags of the fixed header", append([]byte{connect<<4 | 1}, rawConnect("MQTT", 5, 2, noProps, id)[1:]...), []byte{0x81, 0x82}},
		{"a will property of no will", rawConnect("MQTT", 5, 2, block(0x18, 0, 0, 0, 1), id), []byte{0x82, 0x81}},
		{"a will with an alias", rawConnect("MQTT", 5, 6, noProps, id, block(0x23, 0, 1), text("t"), text("p")), []byte{0x82, 0x81}},
		{"a will with a wildcard", rawConnect("MQTT", 5, 6, noProps, id, noProps, text("a/+"), text("p")), []byte{0x90, 0x81, 0x82}},
		{"a will without a topic", rawConnect("MQTT", 5, 6, noProps, id, noProps, text(""), text("p")), []byte{0x90, 0x81, 0x82}},
		{"a will with payload format 2", rawConnect("MQTT", 5, 6, noProps, id, block(1, 2), text("a"), text("p")), []byte{0x82, 0x81}},
		{"a client id with +", rawConnect("MQTT", 5, 2, noProps, text("a+b")), []byte{0x85, 0x87}},
		{"a client id with #", rawConnect("MQTT", 5, 2, noProps, text("a#b")), []byte{0x85, 0x87}},
	} {
		p.refuseConnect(w, c.name, v5, c.send, c.codes...)
	}
	for how, bad := range badUTF8 {
		p.refuseConnect(w, "client id with "+how, v5, rawConnect("MQTT", 5, 2, noProps, text(bad)), 0x81, 0x82, 0x85)
		p.refuseConnect(w, "user with "+how, v5, rawConnect("MQTT", 5, 0x82, noProps, id, text(bad)), 0x81, 0x82, 0x86, 0x87)
		p.refuseConnect(w, "will topic with "+how, v5, rawConnect("MQTT", 5, 6, noProps, id, noProps, text(bad), text("p")), 0x81, 0x82, 0x90)
		p.refuseConnect(w, "user property with "+how, v5, rawConnect("MQTT", 5, 2, properties{{id: propUser, key: "k", text: bad}}.encode(), id), 0x81, 0x82)
		p.refuseConnect(w, "client id of MQTT 3.1.1 with "+how, v311, rawConnect("MQTT", 4, 2, text(bad)), 0x02)
	}
	p.refuseConnect(w, "MQTT 3.1.1: a password without a user", v311, rawConnect("MQTT", 4, 0x42, id, text("pw")))
	p.refuseConnect(w, "MQTT 3.1.1: reserved flag", v311, rawConnect("MQTT", 4, 3, id))
	p.refuseConnect(w, "MQTT 3.1.1: no client id and not clean", v311, rawConnect("MQTT", 4, 0, text("")), 0x02)
	p.refuseConnect(w, "MQTT 3.1.1: bytes behind the end", v311, rawConnect("MQTT", 4, 2, id, []byte("rest")))
	p.refuseConnect(w, "MQTT 3.1: no client id", v31, rawConnect("MQIsdp", 3, 2, text("")), 0x02)
	for kind := byte(0); kind <= authPacket; kind++ {
		if kind != connect {
			p.refuseConnect(w, fmt.Sprint("a first packet of type ", kind), v5, frame(kind<<4), 0x81, 0x82)
			p.refuseConnect(w, fmt.Sprint("a first packet of type ", kind, " with a body"), v5, frame(kind<<4|2, short(1), []byte{0, 0, 1, 'x', 0}), 0x81, 0x82)
		}
	}
	w.end()
}

// refuseConnect sends to a connection that is not yet a session.
func (p *probe) refuseConnect(w *witness, name string, version byte, send []byte, codes ...byte) {
	c := p.dial(version)
	c.id = name
	c.send(send)
	for {
		got, err := c.tryRead()
		if err != nil {
			if isTimeout(err) {
				p.errorf("%s: the connection stays open", name)
			}
			break
		}
		if got.kind == connack && got.code == 0 {
			p.errorf("%s: the connection is accepted", name)
			break
		}
		if got.kind != connack && got.kind != disconnect || !bytes.Contains(codes, []byte{got.code}) {
			p.errorf("%s: answered by type %d, code 0x%02x, want % x", name, got.kind, got.code, codes)
		}
	}
	c.close()
	w.check(name)
}

func publishOf(topic string, rest ...[]byte) []byte {
	return frame(publish<<4|2, append([][]byte{text(topic), short(1)}, rest...)...)
}

func (p *probe) malformedPackets() {
	w := p.witness()
	malformed := []byte{0x81, 0x82}
	type fault struct {
		name  string
		send  []byte
		codes []byte
	}
	faults := []fault{
		{"a second CONNECT", hello{id: "again"}.encode(v5), []byte{0x82}},
		{"type 0", frame(0), malformed},
		{"AUTH without a method", frame(authPacket<<4, []byte{0x18}, noProps), []byte{0x82, 0x81, 0x8C}},
		{"AUTH, empty", frame(authPacket << 4), []byte{0x82, 0x81, 0x8C}},
		{"CONNACK", frame(connack<<4, []byte{0, 0, 0}), malformed},
		{"SUBACK", frame(suback<<4, short(1), noProps, []byte{0}), malformed},
		{"UNSUBACK", frame(unsuback<<4, short(1), noProps, []byte{0}), malformed},
		{"PINGRESP", frame(pingresp << 4), malformed},
		{"PUBLISH with QoS 3", frame(publish<<4|6, text("m"), short(1), noProps), malformed},
		{"PUBLISH without a topic", publishOf("", noProps), malformed},
		{"PUBLISH to +", publishOf("m/+", noProps), []byte{0x90, 0x81, 0x82}},
		{"PUBLISH to #", publishOf("m/#", noProps), []byte{0x90, 0x81, 0x82}},
		{"PUBLISH with packet id 0", frame(publish<<4|2, text("m"), short(0), noProps), malformed},
		{"PUBLISH with alias 0", publishOf("m", block(0x23, 0, 0)), []byte{0x94, 0x82}},
		{"PUBLISH with an alias too high", publishOf("m", block(0x23, 0xFF, 0xFF)), []byte{0x94}},
		{"PUBLISH with an unknown alias", publishOf("", block(0x23, 0, 1)), []byte{0x82, 0x94}},
		{"PUBLISH with a subscription identifier", publishOf("m", block(0x0B, 1)), malformed},
		{"PUBLISH with payload format 2", publishOf("m", block(1, 2)), malformed},
		{"PUBLISH with an expiry twice", publishOf("m", block(2, 0, 0, 0, 9, 2, 0, 0, 0, 9)), malformed},
		{"PUBLISH with an alias twice", publishOf("m", block(0x23, 0, 1, 0x23, 0, 1)), malformed},
		{"PUBLISH with a property of CONNECT", publishOf("m", block(0x11, 0, 0, 0, 1)), malformed},
		{"PUBLISH with an unknown property", publishOf("m", block(0x7E, 1)), malformed},
		{"PUBLISH with an answer to a wildcard", publishOf("m", properties{{id: propResponseTopic, text: "a/#"}}.encode()), []byte{0x82, 0x81, 0x90}},
		{"PUBLISH with properties longer than the packet", publishOf("m", []byte{50}), malformed},
		{"PUBLISH without properties", publishOf("m"), malformed},
		{"PUBLISH, empty", frame(publish << 4), malformed},
		{"PUBACK with flags", frame(puback<<4|1, short(1)), malformed},
		{"PUBACK, empty", frame(puback << 4), malformed},
		{"PUBACK of id 0", frame(puback<<4, short(0)), malformed},
		{"PUBACK with a bad property", frame(puback<<4, short(1), []byte{0}, block(0x23, 0, 1)), malformed},
		{"PUBREC with flags", frame(pubrec<<4|2, short(1)), malformed},
		{"PUBREL without its flags", frame(pubrel<<4, short(1)), malformed},
		{"PUBREL, empty", frame(pubrel<<4 | 2), malformed},
		{"PUBCOMP with flags", frame(pubcomp<<4|8, short(1)), malformed},
		{"PINGREQ with flags", frame(pingreq<<4 | 1), malformed},
		{"PINGREQ with a body", frame(pingreq<<4, []byte("x")), malformed},
		{"DISCONNECT with flags", frame(disconnect<<4|1, []byte{0}), malformed},
		{"DISCONNECT with a bad property", frame(disconnect<<4, []byte{0}, block(0x23, 0, 1)), malformed},
		{"a length of five bytes", []byte{pingreq << 4, 0x80, 0x80, 0x80, 0x80, 0x00}, malformed},
		{"the largest length of five bytes", []byte{publish << 4, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F}, []byte{0x81, 0x82, 0x95}},
	}
	for how, bad := range badUTF8 {
		faults = append(faults,
			fault{"PUBLISH to " + how, publishOf(bad, noProps), []byte{0x81, 0x82, 0x90}},
			fault{"PUBLISH with a user property with " + how, publishOf("m", properties{{id: propUser, key: bad, text: "v"}}.encode()), malformed},
			fault{"PUBLISH with an answer to " + how, publishOf("m", properties{{id: propResponseTopic, text: bad}}.encode()), []byte{0x81, 0x82, 0x90}})
	}
	h := hello{id: "bad", will: &will{topic: "will", payload: "x"}}
	for _, f := range faults {
		c, _ := p.session(v5, h)
		c.send(f.send)
		p.refused(c, f.name, f.codes...)
		w.check(f.name)
	}
	w.end()
}

// malformedOld: MQTT 3.1.1 knows nothing but to hang up.
func (p *probe) malformedOld() {
	w := p.witness()
	for name, send := range map[string][]byte{
		"a second CONNECT":            hello{id: "again"}.encode(v311),
		"type 0":                      frame(0),
		"type 15":                     frame(authPacket << 4),
		"CONNACK":                     frame(connack<<4, []byte{0, 0}),
		"SUBACK":                      frame(suback<<4, short(1), []byte{0}),
		"PINGRESP":                    frame(pingresp << 4),
		"PUBLISH with QoS 3":          frame(publish<<4|6, text("m"), short(1)),
		"PUBLISH without a topic":     publishOf(""),
		"PUBLISH to +":                publishOf("m/+"),
		"PUBLISH to a zero":           publishOf("m\x00"),
		"PUBLISH to a stray byte":     publishOf("m\xFF"),
		"PUBLISH with packet id 0":    frame(publish<<4|2, text("m"), short(0)),
		"PUBLISH, empty":              frame(publish << 4),
		"PUBACK with more":            frame(puback<<4, short(1), []byte{0}),
		"PUBREL without its flags":    frame(pubrel<<4, short(1)),
		"SUBSCRIBE without its flags": frame(subscribe<<4, short(1), text("a"), []byte{0}),
		"SUBSCRIBE with QoS 3":        frame(subscribe<<4|2, short(1), text("a"), []byte{3}),
		"SUBSCRIBE with reserved":     frame(subscribe<<4|2, short(1), text("a"), []byte{0x04}),
		"SUBSCRIBE to nothing":        frame(subscribe<<4|2, short(1)),
		"SUBSCRIBE with id 0":         frame(subscribe<<4|2, short(0), text("a"), []byte{0}),
		"SUBSCRIBE without QoS":       frame(subscribe<<4|2, short(1), text("a")),
		"UNSUBSCRIBE of nothing":      frame(unsubscribe<<4|2, short(1)),
		"PINGREQ with flags":          frame(pingreq<<4 | 4),
		"PINGREQ with a body":         frame(pingreq<<4, []byte("x")),
		"DISCONNECT with a body":      frame(disconnect<<4, []byte{0}),
	} {
		c := p.client(v311, "bad")
		c.send(send)
		if _, told := c.ended(name); told {
			p.errorf("%s: MQTT 3.1.1 has no DISCONNECT of a server", name)
		}
		w.check(name)
	}
	w.end()
}

// malformedSubscriptions are refused as packets or as single filters.
func (p *probe) malformedSubscriptions() {
	w := p.witness()
	packets := map[string]struct {
		send  []byte
		codes []byte
	}{
		"SUBSCRIBE without its flags":      {frame(subscribe<<4, short(1), noProps, text("a"), []byte{0}), []byte{0x81, 0x82}},
		"SUBSCRIBE with id 0":              {frame(subscribe<<4|2, short(0), noProps, text("a"), []byte{0}), []byte{0x81, 0x82}},
		"SUBSCRIBE to nothing":             {frame(subscribe<<4|2, short(1), noProps), []byte{0x82, 0x81}},
		"SUBSCRIBE, empty":                 {frame(subscribe<<4 | 2), []byte{0x81, 0x82}},
		"SUBSCRIBE with QoS 3":             {frame(subscribe<<4|2, short(1), noProps, text("a"), []byte{3}), []byte{0x82, 0x81}},
		"SUBSCRIBE with retain handling 3": {frame(subscribe<<4|2, short(1), noProps, text("a"), []byte{0x30}), []byte{0x82, 0x81}},
		"SUBSCRIBE with reserved options":  {frame(subscribe<<4|2, short(1), noProps, text("a"), []byte{0x40}), []byte{0x81, 0x82}},
		"SUBSCRIBE without options":        {frame(subscribe<<4|2, short(1), noProps, text("a")), []byte{0x81, 0x82}},
		"SUBSCRIBE, shared and no local":   {frame(subscribe<<4|2, short(1), noProps, text("$share/g/a"), []byte{4}), []byte{0x82}},
		"SUBSCRIBE with identifier 0":      {frame(subscribe<<4|2, short(1), block(0x0B, 0), text("a"), []byte{0}), []byte{0x82, 0x81}},
		"SUBSCRIBE with two identifiers":   {frame(subscribe<<4|2, short(1), block(0x0B, 1, 0x0B, 2), text("a"), []byte{0}), []byte{0x82, 0x81}},
		"SUBSCRIBE with a bad property":    {frame(subscribe<<4|2, short(1), block(0x23, 0, 1), text("a"), []byte{0}), []byte{0x82, 0x81}},
		"UNSUBSCRIBE without its flags":    {frame(unsubscribe<<4, short(1), noProps, text("a")), []byte{0x81, 0x82}},
		"UNSUBSCRIBE with id 0":            {frame(unsubscribe<<4|2, short(0), noProps, text("a")), []byte{0x81, 0x82}},
		"UNSUBSCRIBE of nothing":           {frame(unsubscribe<<4|2, short(1), noProps), []byte{0x82, 0x81}},
	}
	for name, f := range packets {
		c := p.client(v5, "bad")
		c.send(f.send)
		p.refused(c, name, f.codes...)
		w.check(name)
	}
	filters := []string{"", "a#", "a/#/b", "#a", "+a", "a+", "a/b+/c", "a/+b", "##", "$share", "$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/#/a", "$share/a#/b", "$share/g/a#"}
	for _, bad := range badUTF8 {
		filters = append(filters, bad)
	}
	for _, version := range []byte{v5, v311} {
		for _, f := range filters {
			if version == v311 && strings.HasPrefix(f, "$share") && !strings.HasSuffix(f, "#") {
				continue // a name like any other there
			}
			p.filterRefused(version, f)
			w.check(fmt.Sprintf("filter %q", f))
		}
	}
	w.end()
}

// filterRefused: by a code in the SUBACK or by the end of the connection.
func (p *probe) filterRefused(version byte, filter string) {
	c := p.client(version, "bad")
	defer c.close()
	parts := [][]byte{short(1)}
	if version == v5 {
		parts = append(parts, noProps)
	}
	c.send(frame(subscribe<<4|2, append(parts, text(filter), []byte{1})...))
	got, err := c.tryRead()
	switch {
	case err != nil && isTimeout(err):
		p.errorf("version %d, filter %q: no answer", version, filter)
	case err != nil:
	case got.kind == suback && len(got.codes) == 1 && got.codes[0] < 0x80:
		p.errorf("version %d, filter %q is granted", version, filter)
	case got.kind == suback && version == v5 && !slices.Contains([]byte{0x80, 0x83, 0x87, 0x8F, 0x9E}, got.codes[0]):
		p.errorf("filter %q is answered by 0x%02x", filter, got.codes[0])
	case got.kind == disconnect && !slices.Contains([]byte{0x81, 0x82, 0x8F}, got.code):
		p.errorf("filter %q ends the connection with 0x%02x", filter, got.code)
	}
}

// valid are whole packets, to be cut. must: up to where a packet that says it
// ends there is malformed.
func valid(version byte) map[string]struct {
	send []byte
	must int
} {
	type cut = struct {
		send []byte
		must int
	}
	all := map[string]cut{}
	add := func(name string, b []byte, must int) {
		if must == 0 {
			must = len(b) - 2 // all of the body
		}
		all[name] = cut{b, must}
	}
	o := out{topic: "cut/x", payload: "payload", qos: 1}
	props := []byte{}
	if version == v5 {
		o.props = properties{{id: propMessageExpiry, num: 60}, {id: propUser, key: "k", text: "v"}, {id: propCorrelation, text: "c"}}
		props = noProps
	}
	b := o.encode(version, 1)
	add("PUBLISH", b, len(b)-2-len(o.payload))
	add("PUBREL", frame(pubrel<<4|2, short(1)), 0)
	add("SUBSCRIBE", frame(subscribe<<4|2, short(1), props, text("cut/y"), []byte{1}), 0)
	add("UNSUBSCRIBE", frame(unsubscribe<<4|2, short(1), props, text("cut/y")), 0)
	if version == v5 {
		add("PUBACK", frame(puback<<4, short(1), []byte{0}, properties{{id: propUser, key: "k", text: "v"}}.encode()), 2)
		add("SUBSCRIBE with two", frame(subscribe<<4|2, short(1), block(0x0B, 5), text("cut/y"), []byte{1}, text("z"), []byte{0}), 13)
	}
	return all
}

// cutEverywhere cuts packets at every byte: first the connection ends there,
// then the packet says that it ends there.
func (p *probe) cutEverywhere() {
	w := p.witness()
	for _, version := range []byte{v5, v311} {
		h := hello{id: "cut", keepAlive: 60, will: &will{topic: "cut/will", payload: "w"}, user: "u", pass: "p"}
		if version == v5 {
			h.props = properties{{id: propSessionExpiry, num: 0}, {id: propReceiveMaximum, num: 10}, {id: propUser, key: "k", text: "v"}}
			h.will.props = properties{{id: propWillDelay, num: 0}, {id: propContentType, text: "t"}}
		}
		whole := h.encode(version)
		for i := range whole {
			c := p.dial(version)
			c.send(whole[:i])
			c.crash()
			if i >= 2 {
				c = p.dial(version)
				c.id = fmt.Sprint("CONNECT cut after ", i)
				c.send(frame(connect<<4, whole[2:i]))
				if got, err := c.tryRead(); err == nil && got.kind == connack && got.code == 0 {
					p.errorf("version %d: CONNECT with a body of %d bytes of %d is accepted", version, i-2, len(whole)-2)
				} else if err != nil && isTimeout(err) {
					p.errorf("version %d: CONNECT with a body of %d bytes stays open", version, i-2)
				}
				c.close()
			}
		}
		w.check("CONNECT cut")
		for name, v := range valid(version) {
			for i := range v.send {
				c := p.client(version, "cut")
				c.send(v.send[:i])
				c.crash()
				if i < 2 || i-2 >= v.must {
					continue
				}
				c = p.client(version, "cut")
				what := fmt.Sprintf("version %d: %s with a body of %d bytes of %d", version, name, i-2, len(v.send)-2)
				c.send(frame(v.send[0], v.send[2:i]))
				if version == v5 {
					p.refused(c, what, 0x81, 0x82, 0x90)
				} else {
					c.ended(what)
				}
			}
			w.check(name + " cut")
		}
	}
	w.end()
}

// manyLevels: names as long as MQTT lets them be. They are refused or they work,
// and cost nobody anything.
func (p *probe) manyLevels() {
	w := p.witness()
	slashes, plusses := strings.Repeat("/", 65_535), strings.Repeat("+/", 32_767)
	for _, version := range []byte{v5, v311} {
		for range 10 {
			for _, f := range []string{slashes, plusses, "#" + slashes[1:], slashes[:65_534] + "#", strings.Repeat("x", 65_535), "$share/g/" + slashes[9:]} {
				p.long(version, func(c *peer) {
					c.send(frame(subscribe<<4|2, subscribeBody(version, f)...))
				}, suback, fmt.Sprintf("filter %.12s...", f))
			}
			p.long(version, func(c *peer) { c.send(out{topic: slashes, qos: 1}.encode(version, 1)) }, puback, "topic of slashes")
			p.long(version, func(c *peer) { c.send(out{topic: slashes, qos: 1, retain: true}.encode(version, 1)) }, puback, "retained topic of slashes")
			c := p.dial(version)
			c.send(hello{id: strings.Repeat("i", 65_535)}.encode(version))
			_, _ = c.tryRead()
			c.close()
			w.check("long names")
		}
	}
	w.end()
}

func subscribeBody(version byte, filter string) [][]byte {
	parts := [][]byte{short(1)}
	if version == v5 {
		parts = append(parts, noProps)
	}
	return append(parts, text(filter), []byte{1})
}

func (p *probe) long(version byte, send func(*peer), answer byte, what string) {
	c := p.client(version, "long")
	defer c.close()
	send(c)
	if got, err := c.tryRead(); err != nil && isTimeout(err) {
		p.errorf("version %d: %s has no answer", version, what)
	} else if err == nil && got.kind != answer && got.kind != disconnect {
		p.errorf("version %d: %s is answered by type %d", version, what, got.kind)
	}
}

// lengths announces much and sends little, on many connections at once: memory
// follows what came, not what was said.
func (p *probe) lengths() {
	const many = 100
	w := p.witness()
	var open []*peer
	for i := range many {
		c := p.dial(v5)
		if i%2 == 0 {
			c.mustConnect(hello{id: fmt.Sprint("len", i)})
			c.send([]byte{publish << 4, 0xFF, 0xFF, 0xFF, 0x7F, 0, 1, 'a'})
		} else {
			c.send([]byte{connect << 4, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4, 'M'})
		}
		open = append(open, c)
	}
	w.check("lengths")
	w.end()
	for i, c := range open {
		switch {
		case p.target.PacketLimit == 0:
		case i%2 == 0:
			p.refused(c, "PUBLISH with a length over the limit", 0x95)
		default:
			c.ended("CONNECT with a length over the limit") // its version is not known yet
		}
		c.close()
	}
	c := p.client(v5, "last")
	body := bytes.Repeat([]byte("x"), 1<<16) // more than a length says is the next packet
	c.send(append(frame(pingreq<<4), body...))
	p.refused(c, "text for packets", 0x81, 0x82, 0x95)
	w.check("text")
}

func (p *probe) foreign() {
	w := p.witness()
	for name, text := range map[string]string{
		"HTTP":   "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
		"TLS":    "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 500),
		"SSH":    "SSH-2.0-OpenSSH_9.2\r\n",
		"zeroes": strings.Repeat("\x00", 4096),
		"ones":   strings.Repeat("\xff", 4096),
	} {
		c := p.dial(v5)
		c.send([]byte(text))
		c.ended(name)
		c.close()
		w.check(name)
	}
	w.end()
}
