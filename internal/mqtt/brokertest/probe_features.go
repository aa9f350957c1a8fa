package brokertest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// featureProbes are what MQTT 5 has beside the flow of messages.
var featureProbes = []probeCase{
	{"retained", (*probe).retained},
	{"retained, to whom and when", (*probe).retainHandling},
	{"retain as published", (*probe).retainAsPublished},
	{"no local", (*probe).noLocal},
	{"subscription identifiers", (*probe).subscriptionIDs},
	{"filters that overlap", (*probe).overlap},
	{"filters and topics", (*probe).filters},
	{"unsubscribe", (*probe).unsubscribed},
	{"quality of service is the lesser one", (*probe).lesserQoS},
	{"session take-over", (*probe).takeOver},
	{"assigned client id", (*probe).assignedID},
	{"server keep alive", (*probe).serverKeepAlive},
	{"topic alias from the client", (*probe).aliasIn},
	{"properties pass through", (*probe).passThrough},
	{"request and response", (*probe).askAndAnswer},
	{"reason codes that are no failure", (*probe).softCodes},
	{"no messages for old clients that they cannot read", (*probe).oldClients},
	{"the limits that CONNACK tells are kept", (*probe).ownLimits},
	{"topics that nobody may use", (*probe).denied},
	{"WebSocket", (*probe).webSocket},
}

// Subscription options of MQTT 5 beside the QoS.
const (
	optNoLocal           byte = 0x04
	optRetainAsPublished byte = 0x08
	optRetainIfNew       byte = 0x10
	optNoRetained        byte = 0x20
)

func (p *probe) retained() {
	pub := p.client(v5, "pub")
	for n := range 5 {
		pub.mustPub(out{topic: fmt.Sprint("r/", n), payload: fmt.Sprint("old ", n), qos: 1, retain: true})
		pub.mustPub(out{topic: fmt.Sprint("r/", n), payload: fmt.Sprint(n), qos: byte(n % 3), retain: true})
	}
	pub.mustPub(out{topic: "r/2", qos: 1, retain: true}) // removed
	pub.mustPub(out{topic: "r/3", payload: "not this", qos: 1})
	for _, version := range []byte{v5, v311} {
		s := p.client(version, "sub")
		s.mustSub(1, "r/#")
		var got []string
		for range 4 {
			m := s.take()
			if !m.retain() || m.qos() > 1 {
				p.errorf("%s is delivered with retain %v and QoS %d", m.topic, m.retain(), m.qos())
			}
			got = append(got, m.topic+" "+m.payload)
		}
		slices.Sort(got)
		if want := []string{"r/0 0", "r/1 1", "r/3 3", "r/4 4"}; !slices.Equal(got, want) {
			p.errorf("got %q, want %q", got, want)
		}
		s.wantsNothing("there is no more that is retained")
		pub.mustPub(out{topic: "r/1", payload: "1", qos: 1, retain: true})
		if m := s.take(); m.retain() {
			p.errorf("a live message has the retain flag")
		}
		s.goodbye()
	}
	s := p.client(v5, "one")
	s.mustSub(1, "r/+", "+/4")
	for range 4 + 1 {
		s.take()
	}
	s.mustSub(1, "$share/g/r/#")
	s.wantsNothing("a shared subscription gets nothing that is retained")
}

func (p *probe) retainHandling() {
	p.client(v5, "pub").mustPub(out{topic: "rh", payload: "kept", qos: 1, retain: true})
	s := p.client(v5, "sub")
	s.mustSub(1|optRetainIfNew, "rh")
	s.wants("kept")
	s.mustSub(1|optRetainIfNew, "rh")
	s.wantsNothing("retain handling 1 and the subscription is not new")
	s.mustSub(1, "rh")
	s.wants("kept") // 0: every time
	s.mustSub(1|optNoRetained, "rh")
	s.wantsNothing("retain handling 2")
	s.unsub("rh")
	s.mustSub(1|optNoRetained, "rh")
	s.wantsNothing("retain handling 2")
}

func (p *probe) retainAsPublished() {
	s, rap := p.client(v5, "sub"), p.client(v5, "rap")
	s.mustSub(1, "rap")
	rap.mustSub(1|optRetainAsPublished, "rap")
	pub := p.client(v5, "pub")
	for _, retain := range []bool{true, false} {
		pub.mustPub(out{topic: "rap", payload: "x", qos: 1, retain: retain})
		if m := s.take(); m.retain() {
			p.errorf("without retain as published: retain on a live message")
		}
		if m := rap.take(); m.retain() != retain {
			p.errorf("retain as published: %v is delivered as %v", retain, m.retain())
		}
	}
}

func (p *probe) noLocal() {
	a, b := p.client(v5, "a"), p.client(v5, "b")
	a.mustSub(1|optNoLocal, "nl")
	b.mustSub(1, "nl")
	a.mustPub(out{topic: "nl", payload: "of a", qos: 1})
	b.wants("of a")
	a.wantsNothing("it had sent it itself")
	b.mustPub(out{topic: "nl", payload: "of b", qos: 1})
	a.wants("of b")
	b.wants("of b") // without the option one hears oneself
}

func ids(m packet) (all []uint32) {
	for _, x := range m.props {
		if x.id == propSubscriptionID {
			all = append(all, x.num)
		}
	}
	slices.Sort(all)
	return all
}

func (p *probe) subscriptionIDs() {
	s := p.client(v5, "sub")
	s.subWith(properties{{id: propSubscriptionID, num: 1}}, 1, "id/a")
	s.subWith(properties{{id: propSubscriptionID, num: 268_435_455}}, 1, "id/#")
	s.sub(1, "id/none/#")
	pub := p.client(v5, "pub")
	pub.mustPub(out{topic: "id/b", payload: "b", qos: 1})
	if m := s.wants("b"); !slices.Equal(ids(m), []uint32{268_435_455}) {
		p.errorf("identifiers %v", ids(m))
	}
	pub.mustPub(out{topic: "id/a", payload: "a", qos: 1})
	first := s.wants("a")
	got := ids(first)
	if len(got) == 1 { // a copy for each subscription is allowed too (3.3.4)
		got = append(got, ids(s.wants("a"))...)
		slices.Sort(got)
	}
	if !slices.Equal(got, []uint32{1, 268_435_455}) {
		p.errorf("identifiers %v", got)
	}
	s.subWith(properties{{id: propSubscriptionID, num: 7}}, 1, "id/#") // replaced
	pub.mustPub(out{topic: "id/b", payload: "b", qos: 1})
	if m := s.wants("b"); !slices.Equal(ids(m), []uint32{7}) {
		p.errorf("identifiers %v after the subscription was replaced, want 7", ids(m))
	}
	s.sub(1, "id/#")
	pub.mustPub(out{topic: "id/b", payload: "b", qos: 1})
	if m := s.wants("b"); len(ids(m)) != 0 {
		p.errorf("identifiers %v after the subscription was replaced by one without", ids(m))
	}
}

func (p *probe) overlap() {
	s := p.client(v5, "sub")
	s.mustSub(1, "o/#")
	s.mustSub(2, "o/a")
	s.mustSub(0, "+/a")
	pub := p.client(v5, "pub")
	pub.mustPub(out{topic: "o/a", payload: "x", qos: 2})
	m := s.take()
	copies := []packet{m}
	for _, m := range s.settled() {
		s.ack(m)
		copies = append(copies, m)
	}
	best := slices.MaxFunc(copies, func(a, b packet) int { return int(a.qos()) - int(b.qos()) })
	if best.qos() != 2 || len(copies) != 1 && len(copies) != 3 {
		p.errorf("%d copies, the best with QoS %d; want one with QoS 2, or one for each filter", len(copies), best.qos())
	}
}

// filters is clause 4.7 as a table.
func (p *probe) filters() {
	topics := []string{"f/a", "f/a/b", "f//b", "/f/a", "f", "f/", "F/a", "f/a b", "f/ä", "f/\u00e9\U0001F600", "$dollar/a"}
	match := map[string][]string{
		"f/a":     {"f/a"},
		"f/+":     {"f/a", "f/", "f/a b", "f/ä", "f/\u00e9\U0001F600"},
		"f/#":     {"f/a", "f/a/b", "f//b", "f", "f/", "f/a b", "f/ä", "f/\u00e9\U0001F600"},
		"f/+/b":   {"f/a/b", "f//b"},
		"f/+/#":   {"f/a", "f/a/b", "f//b", "f/", "f/a b", "f/ä", "f/\u00e9\U0001F600"},
		"+/f/a":   {"/f/a"},
		"+/a":     {"f/a", "F/a"},
		"/+/a":    {"/f/a"},
		"/#":      {"/f/a"},
		"f/ä":     {"f/ä"},
		"f/a/#":   {"f/a", "f/a/b"},
		"+/+":     {"f/a", "f/", "F/a", "f/a b", "f/ä", "f/\u00e9\U0001F600"},
		"f/a/b/#": {"f/a/b"},
	}
	pub := p.client(v5, "pub")
	for filter, want := range match {
		s := p.client(v5, "sub")
		s.mustSub(1, filter, "end")
		for _, t := range topics {
			pub.pub(out{topic: t, payload: t, qos: 1}) // $ topics may be refused
		}
		pub.mustPub(out{topic: "end", qos: 1})
		var got []string
		for m := s.take(); m.topic != "end"; m = s.take() {
			got = append(got, m.topic)
		}
		if !slices.Equal(got, want) {
			p.errorf("filter %q matches %q, want %q", filter, got, want)
		}
		s.goodbye()
	}
}

func (p *probe) unsubscribed() {
	s := p.client(v5, "sub")
	s.mustSub(1, "u/a", "u/b")
	if codes := s.unsub("u/a", "u/none"); !bytes.Equal(codes, []byte{0, 0x11}) {
		p.errorf("UNSUBACK % x, want 00 11", codes)
	}
	pub := p.client(v5, "pub")
	pub.mustPub(out{topic: "u/a", payload: "a", qos: 1})
	pub.mustPub(out{topic: "u/b", payload: "b", qos: 1})
	s.wants("b")
	s.mustSub(1, "$share/g/u/a")
	if codes := s.unsub("$share/g/u/a"); !bytes.Equal(codes, []byte{0}) {
		p.errorf("UNSUBACK of a shared subscription: % x", codes)
	}
	pub.mustPub(out{topic: "u/a", payload: "a", qos: 1})
	s.wantsNothing("it has unsubscribed")
}

func (p *probe) lesserQoS() {
	pub := p.client(v5, "pub")
	for _, version := range []byte{v5, v311, v31} {
		s := p.client(version, fmt.Sprint("sub", version))
		for sub := range byte(3) {
			s.mustSub(sub, "q")
			for qos := range byte(3) {
				pub.mustPub(out{topic: "q", payload: "x", qos: qos})
				if m := s.take(); m.qos() != min(qos, sub) {
					p.errorf("version %d: QoS %d to a subscription with %d is delivered with %d", version, qos, sub, m.qos())
				}
			}
		}
		s.goodbye()
	}
}

// takeOver: MQTT-3.1.4-3.
func (p *probe) takeOver() {
	h := lasting(v5, "same")
	first, _ := p.session(v5, h)
	first.mustSub(1, "to")
	pub := p.client(v5, "pub")
	pub.mustPub(out{topic: "to", payload: "1", qos: 1})
	first.message() // not acknowledged
	second, ack := p.session(v5, h)
	if !ack.present {
		p.errorf("no session present on take-over")
	}
	if code, told := first.ended("take-over"); told && code != 0x8E {
		p.errorf("the old connection ended with 0x%02x, want 0x8e", code)
	} else if !told && p.target.TellsWhy {
		p.errorf("the old connection ended without a reason")
	}
	if m := second.wants("1"); !m.dup() {
		p.errorf("the message that was not acknowledged comes again without dup")
	}
	pub.mustPub(out{topic: "to", payload: "2", qos: 1})
	second.wants("2")
	second.settled()    // so that the acknowledgement is there
	old := p.dial(v311) // another version of the protocol takes over too
	if ack := old.mustConnect(hello{id: "same", resume: true}); !ack.present {
		p.errorf("no session present on take-over by MQTT 3.1.1")
	}
	second.ended("take-over by MQTT 3.1.1")
	pub.mustPub(out{topic: "to", payload: "3", qos: 1})
	old.wants("3")
	old.settled()
	var hurried []*peer
	for n := range 30 { // and in a hurry
		c := p.dial(v5)
		c.send(h.encode(v5))
		if n%2 == 0 {
			c.subOrEnd("to") // the one before it may be dealt with later, and take over
		}
		hurried = append(hurried, c)
	}
	for n, c := range hurried { // nobody takes over from the last one
		if _, err := c.tryRead(); isTimeout(err) {
			p.errorf("connection %d of those in a hurry is neither accepted nor ended", n)
		}
	}
	last, _ := p.session(v5, h)
	last.mustSub(1, "to")
	pub.mustPub(out{topic: "to", payload: "4", qos: 1})
	last.wants("4")
}

// subOrEnd subscribes, and reads to the answer or the end of the connection.
func (c *peer) subOrEnd(filter string) {
	c.send(frame(subscribe<<4|2, short(c.nextID()), properties(nil).encode(), text(filter), []byte{1}))
	for {
		got, err := c.fromWire()
		if err != nil || got.kind == suback {
			return
		}
		c.kept = append(c.kept, got)
	}
}

func (p *probe) assignedID() {
	seen := map[string]bool{}
	for range 3 {
		c, ack := p.session(v5, hello{props: properties{{id: propSessionExpiry, num: 60}}})
		id := ack.props.text(propAssignedID)
		if id == "" || seen[id] {
			p.errorf("assigned client id %q", id)
		}
		seen[id] = true
		c.mustSub(1, "as")
		c.crash()
		c, ack = p.session(v5, hello{id: id, resume: true, props: properties{{id: propSessionExpiry, num: 60}}})
		if !ack.present {
			p.errorf("no session under the assigned id")
		}
		if _, ok := ack.props.find(propAssignedID); ok {
			p.errorf("a client with an id is assigned one")
		}
		c.goodbye()
	}
	a, b := p.client(v311, ""), p.client(v311, "")
	a.settled()
	b.settled()
	c := p.dial(v311)
	c.send(hello{resume: true}.encode(v311))
	if got := c.read(); got.kind != connack || got.code != 2 {
		p.errorf("MQTT 3.1.1 without id and not clean is answered by code %d, want 2", got.code)
	}
	c.ended("MQTT 3.1.1 without id and not clean")
}

func (p *probe) serverKeepAlive() {
	_, ack := p.session(v5, hello{id: "a"})
	got, told := ack.props.find(propServerKeepAlive)
	if want := p.target.ServerKeepAlive; uint16(got.num) != want || told != (want > 0) {
		p.errorf("server keep alive %d, want %d", got.num, want)
	}
	_, ack = p.session(v5, hello{id: "b", keepAlive: 5})
	if got, told := ack.props.find(propServerKeepAlive); told {
		p.errorf("server keep alive %d for a client that wants 5", got.num)
	}
}

func (p *probe) aliasIn() {
	s := p.client(v5, "sub")
	s.mustSub(1, "al/#")
	pub, ack := p.session(v5, hello{id: "pub"})
	limit := ack.props.number(propTopicAliasMaximum, 0)
	if limit == 0 {
		p.fatalf("the broker takes no topic aliases")
	}
	alias := func(n uint32) properties { return properties{{id: propTopicAlias, num: n}} }
	pub.mustPub(out{topic: "al/a", payload: "1", qos: 1, props: alias(1)})
	pub.mustPub(out{payload: "2", qos: 1, props: alias(1)})
	pub.mustPub(out{topic: "al/b", payload: "3", qos: 1, props: alias(limit)})
	pub.mustPub(out{payload: "4", qos: 1, props: alias(limit)})
	pub.mustPub(out{topic: "al/c", payload: "5", qos: 1, props: alias(1)}) // set anew
	pub.mustPub(out{payload: "6", props: alias(1)})
	for n, topic := range []string{"al/a", "al/a", "al/b", "al/b", "al/c", "al/c"} {
		if m := s.wants(fmt.Sprint(n + 1)); m.topic != topic {
			p.errorf("message %s has topic %q, want %q", m.payload, m.topic, topic)
		} else if _, ok := m.props.find(propTopicAlias); ok {
			p.errorf("the alias of the publisher reaches the subscriber")
		}
	}
	pub, _ = p.session(v5, hello{id: "pub"}) // aliases end with the connection
	pub.send(out{payload: "7", qos: 1, props: alias(1)}.encode(v5, 1))
	p.refused(pub, "an alias of the connection before", 0x82, 0x94)
}

// passThrough: MQTT-3.3.2-15 to -20.
func (p *probe) passThrough() {
	all := properties{
		{id: propPayloadFormat, num: 1}, {id: propContentType, text: "text/plain"}, {id: propResponseTopic, text: "pt/answer"},
		{id: propCorrelation, text: "\x00\xff1"}, {id: propUser, key: "a", text: "1"}, {id: propUser, key: "b", text: "2"},
		{id: propUser, key: "a", text: "1"}, {id: propUser, key: "", text: ""},
	}
	same := func(how string, m packet) {
		if !slices.Equal(m.props, all) {
			p.errorf("%s: properties %v, want %v", how, m.props, all)
		}
	}
	h := lasting(v5, "sub")
	s, _ := p.session(v5, h)
	s.mustSub(2, "pt")
	pub := p.client(v5, "pub")
	for qos := range byte(3) {
		pub.mustPub(out{topic: "pt", payload: "ü", qos: qos, props: all})
		same(fmt.Sprint("QoS ", qos), s.take())
	}
	s.goodbye()
	pub.mustPub(out{topic: "pt", payload: "ü", qos: 1, props: all, retain: true})
	s, _ = p.session(v5, h)
	same("queued", s.take())
	late := p.client(v5, "late")
	late.mustSub(1, "pt")
	same("retained", late.take())
	w := p.dial(v5)
	w.mustConnect(hello{id: "w", will: &will{topic: "pt", payload: "ü", qos: 1, props: all}})
	w.crash()
	same("will", late.take())
}

func (p *probe) askAndAnswer() {
	server, client := p.client(v5, "server"), p.client(v5, "client")
	server.mustSub(1, "ask")
	client.mustSub(1, "answer/client")
	for n := range 3 {
		client.mustPub(out{topic: "ask", payload: "?", qos: 1, props: properties{
			{id: propResponseTopic, text: "answer/client"}, {id: propCorrelation, text: fmt.Sprint(n)},
		}})
		m := server.take()
		server.mustPub(out{topic: m.props.text(propResponseTopic), payload: "!", qos: 1, props: properties{
			{id: propCorrelation, text: m.props.text(propCorrelation)},
		}})
		if m := client.wants("!"); m.props.text(propCorrelation) != fmt.Sprint(n) {
			p.errorf("correlation %q, want %d", m.props.text(propCorrelation), n)
		}
	}
}

// softCodes are answers that leave the connection as it is.
func (p *probe) softCodes() {
	c := p.client(v5, "c")
	if code := c.pub(out{topic: "nobody", qos: 1}); code != 0 && code != 0x10 {
		p.errorf("a message for nobody is answered by 0x%02x", code)
	}
	if code := c.pub(out{topic: "nobody", qos: 2}); code != 0 && code != 0x10 {
		p.errorf("a message for nobody with QoS 2 is answered by 0x%02x", code)
	}
	c.send(frame(pubrel<<4|2, short(77)))
	if got := c.await(pubcomp); got.id != 77 || got.code != 0x92 {
		p.errorf("PUBREL of an unknown id is answered by PUBCOMP %d, 0x%02x, want 77, 0x92", got.id, got.code)
	}
	c.send(frame(puback<<4, short(78)))
	c.send(frame(pubcomp<<4, short(79)))
	c.send(frame(puback<<4, short(80), []byte{0x10}))
	c.send(frame(puback<<4, short(80), []byte{0x10}, properties{{id: 0x1F, text: "why"}, {id: propUser, key: "k", text: "v"}}.encode()))
	c.settled()
	// A negative PUBREC of the subscriber ends the message (4.3.3).
	c.mustSub(2, "no")
	pub := p.client(v5, "pub")
	pub.mustPub(out{topic: "no", payload: "1", qos: 2})
	m := c.message()
	c.send(frame(pubrec<<4, short(m.id), []byte{0x87}))
	pub.mustPub(out{topic: "no", payload: "2", qos: 2})
	c.wants("2")
}

// oldClients: a 3.1.1 client gets messages of MQTT 5 without properties, and
// the other way round.
func (p *probe) oldClients() {
	clients := map[byte]*peer{}
	for _, v := range []byte{v31, v311, v5} {
		clients[v] = p.client(v, fmt.Sprint("c", v))
		clients[v].mustSub(1, "mixed")
	}
	for _, from := range []byte{v31, v311, v5} {
		o := out{topic: "mixed", payload: fmt.Sprint("from ", from), qos: 1}
		if from == v5 {
			o.props = properties{{id: propContentType, text: "x"}, {id: propUser, key: "k", text: "v"}, {id: propMessageExpiry, num: 60}}
		}
		clients[from].mustPub(o)
		for _, to := range clients {
			to.wants(o.payload)
		}
	}
}

func (p *probe) ownLimits() {
	c, ack := p.session(v5, hello{id: "c"})
	if q, ok := ack.props.find(propMaximumQoS); ok {
		p.errorf("maximum QoS %d", q.num)
	}
	limit := ack.props.number(propMaximumPacketSize, 0)
	if p.target.PacketLimit > 0 && int(limit) != p.target.PacketLimit {
		p.errorf("maximum packet size %d, want %d", limit, p.target.PacketLimit)
	}
	if limit == 0 || limit > 1<<20 {
		return
	}
	c.mustSub(0, "lim")
	head := len(out{topic: "lim", qos: 1}.encode(v5, 1)) + 2 // the length takes two bytes more
	c.mustPub(out{topic: "lim", payload: strings.Repeat("x", int(limit)-head-1), qos: 1})
	c.message()
	c.send(out{topic: "lim", payload: strings.Repeat("x", int(limit)), qos: 1}.encode(v5, 9))
	p.refused(c, "a packet over the maximum packet size", 0x95)
	if rm := ack.props.number(propReceiveMaximum, 65535); rm < 1000 {
		c = p.client(v5, "d")
		for id := range uint16(rm) + 1 {
			c.send(out{topic: "lim", qos: 2}.encode(v5, id+1))
		}
		p.refused(c, "more than the receive maximum in QoS 2", 0x93)
	}
}

// denied: every way to a topic is closed, and says so; without problem
// information it gives no reason in words (MQTT-3.1.2-29).
func (p *probe) denied() {
	topic := p.target.Denied
	if topic == "" {
		return
	}
	const notAuthorized = 0x87
	w := p.dial(v5)
	w.send(hello{id: "w", will: &will{topic: topic, payload: "x"}}.encode(v5))
	if got := w.read(); got.kind != connack || got.code != notAuthorized {
		p.errorf("a will for %s is answered by type %d, code 0x%02x", topic, got.kind, got.code)
	}
	w.ended("a will for a denied topic")
	for _, problems := range []uint32{0, 1} {
		c, _ := p.session(v5, hello{id: "c", props: properties{{id: propProblemInfo, num: problems}}})
		for qos := byte(1); qos <= 2; qos++ {
			for _, retain := range []bool{false, true} {
				id := c.nextID()
				c.send(out{topic: topic, payload: "x", qos: qos, retain: retain}.encode(v5, id))
				got := c.await(map[byte]byte{1: puback, 2: pubrec}[qos])
				if got.code != notAuthorized || got.id != id {
					p.errorf("publish to %s with QoS %d is answered by 0x%02x", topic, qos, got.code)
				}
				if why := got.props.text(propReasonString); problems == 0 && why != "" {
					p.errorf("without problem information: %q", why)
				}
			}
		}
		c.send(out{topic: topic, payload: "x"}.encode(v5, 0))
		prefix, _, _ := strings.Cut(topic, "/")
		for _, filter := range []string{topic, prefix + "/#", prefix + "/+", "$share/g/" + topic} {
			if code := c.sub(1, filter)[0]; code != notAuthorized && code != 0x80 {
				p.errorf("a subscription to %s is answered by 0x%02x", filter, code)
			}
		}
	}
	old := p.client(v311, "old")
	if code := old.sub(1, topic)[0]; code != 0x80 {
		p.errorf("MQTT 3.1.1: a subscription to %s is answered by 0x%02x", topic, code)
	}
}

// refused wants the connection to end, with one of the codes where one is told.
func (p *probe) refused(c *peer, what string, codes ...byte) {
	code, told := c.ended(what)
	switch {
	case told && !bytes.Contains(codes, []byte{code}):
		p.errorf("%s: code 0x%02x, want one of % x", what, code, codes)
	case !told && c.version == v5 && p.target.TellsWhy:
		p.errorf("%s: the connection ends without a reason", what)
	}
}
