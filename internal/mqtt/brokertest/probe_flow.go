package brokertest

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// flowProbes are T1 to T7: what is queued, in which order, how much at once, and
// that nothing acknowledged is lost.
var flowProbes = []probeCase{
	{"T1 queued offline, in order: MQTT 5", func(p *probe) { p.queuedInOrder(v5, 1) }},
	{"T1 queued offline, in order: MQTT 3.1.1", func(p *probe) { p.queuedInOrder(v311, 1) }},
	{"T1 queued offline, in order: MQTT 3.1", func(p *probe) { p.queuedInOrder(v31, 1) }},
	{"T1 queued offline, in order: QoS 2", func(p *probe) { p.queuedInOrder(v5, 2) }},
	{"T2 receive maximum on resume", (*probe).receiveMaximumOnResume},
	{"T2 unacknowledged first, same id, dup", (*probe).redelivery},
	{"T2 QoS 2 resumes where it was", (*probe).exactlyOnce},
	{"T2 QoS 2 sent twice is one message", (*probe).onceInbound},
	{"T3 receive maximum, live: QoS 1", func(p *probe) { p.receiveMaximumLive(1) }},
	{"T3 receive maximum, live: QoS 2", func(p *probe) { p.receiveMaximumLive(2) }},
	{"T4 topic alias maximum on resume", (*probe).aliasOnResume},
	{"T5 shared subscription, a member offline", (*probe).sharedOffline},
	{"T5 shared subscription, a member dies with messages", (*probe).sharedTakesOver},
	{"T6 stalled subscriber", (*probe).stalled},
	{"T7 over the client's maximum packet size", (*probe).overClientMaximum},
}

// number is the running number that a payload starts with.
func number(m packet) int {
	n := -1
	_, _ = fmt.Sscan(m.payload, &n)
	return n
}

// wantRun takes count messages, acknowledges them and wants their numbers to
// rise from first without a gap.
func (c *peer) wantRun(first, count int) {
	inversions := 0
	seen := map[int]bool{}
	last := first - 1
	for range count {
		m := c.take()
		n := number(m)
		if n < last {
			inversions++
		}
		if seen[n] {
			c.p.errorf("message %d came twice", n)
		}
		seen[n], last = true, n
	}
	for n := first; n < first+count; n++ {
		if !seen[n] {
			c.p.errorf("message %d is missing", n)
		}
	}
	if inversions > 0 {
		c.p.errorf("%d inversions in %d messages", inversions, count)
	}
}

func (c *peer) pubRun(topic string, qos byte, first, count int) {
	for n := first; n < first+count; n++ {
		c.mustPub(out{topic: topic, payload: fmt.Sprint(n), qos: qos})
	}
}

func (p *probe) queuedInOrder(version, qos byte) {
	s, _ := p.session(version, lasting(version, "sub"))
	s.mustSub(qos, "t1/#")
	s.goodbye()
	p.client(version, "pub").pubRun("t1/a", qos, 0, 200)
	s, ack := p.session(version, lasting(version, "sub"))
	if !ack.present && version != v31 {
		p.errorf("no session present")
	}
	s.wantRun(0, 200)
	if more := s.settled(); len(more) > 0 {
		p.errorf("%d messages more", len(more))
	}
}

func (p *probe) receiveMaximumOnResume() {
	h := lasting(v5, "sub")
	h.props = append(h.props, property{id: propReceiveMaximum, num: 5})
	s, _ := p.session(v5, h)
	s.mustSub(1, "t2")
	s.goodbye()
	pub := p.client(v5, "pub")
	pub.pubRun("t2", 1, 0, 50)
	s, _ = p.session(v5, h)
	first := []packet{s.message()}
	first = append(first, s.settled()...)
	first = append(first, s.settled()...)
	if len(first) != 5 {
		p.errorf("%d messages before an acknowledgement, want 5", len(first))
	}
	pub.pubRun("t2", 1, 50, 10) // also live ones wait
	if more := s.settled(); len(more) > 0 {
		p.errorf("%d messages more without an acknowledgement", len(more))
	}
	for i, m := range first {
		if number(m) != i {
			p.errorf("message %d in place %d", number(m), i)
		}
		s.ack(m)
	}
	s.wantRun(len(first), 60-len(first))
	if more := s.settled(); len(more) > 0 {
		p.errorf("%d deliveries too many", len(more))
	}
}

// redelivery: MQTT-4.4.0-1, MQTT-4.6.0-1.
func (p *probe) redelivery() {
	for _, version := range []byte{v5, v311} {
		id := fmt.Sprint("sub", version)
		h := lasting(version, id)
		if version == v5 {
			h.props = append(h.props, property{id: propReceiveMaximum, num: 10})
		}
		s, _ := p.session(version, h)
		s.mustSub(1, "t2r/"+id)
		pub := p.client(v5, "pub")
		pub.pubRun("t2r/"+id, 1, 0, 6)
		ids := map[int]uint16{}
		for range 6 {
			m := s.message()
			ids[number(m)] = m.id
			if number(m) == 2 {
				s.ack(m)
			}
		}
		s.goodbye() // it has gone by the time new messages come
		pub.pubRun("t2r/"+id, 1, 6, 4)
		s, _ = p.session(version, h)
		for _, want := range []int{0, 1, 3, 4, 5, 6, 7, 8, 9} {
			m := s.take()
			if number(m) != want {
				p.errorf("version %d: message %d, want %d", version, number(m), want)
			}
			if want < 6 && (!m.dup() || m.id != ids[want]) {
				p.errorf("version %d: message %d comes again with id %d and dup %v, want %d and true", version, want, m.id, m.dup(), ids[want])
			}
			if want >= 6 && m.dup() {
				p.errorf("version %d: message %d is new and has dup", version, want)
			}
		}
	}
}

// exactlyOnce crashes between every two packets of a QoS 2 delivery.
func (p *probe) exactlyOnce() {
	h := lasting(v5, "sub")
	s, _ := p.session(v5, h)
	s.mustSub(2, "t2q")
	pub := p.client(v5, "pub")
	pub.mustPub(out{topic: "t2q", payload: "1", qos: 2})
	first := s.message()
	s.crash()
	s, _ = p.session(v5, h)
	again := s.message()
	if again.id != first.id || !again.dup() || again.qos() != 2 {
		p.errorf("PUBLISH comes again with id %d, dup %v, QoS %d", again.id, again.dup(), again.qos())
	}
	s.send(frame(pubrec<<4, short(again.id)))
	if rel := s.await(pubrel); rel.id != first.id || rel.flags != 2 {
		p.errorf("PUBREL for %d with flags %d", rel.id, rel.flags)
	}
	s.crash()
	s, _ = p.session(v5, h)
	if rel := s.await(pubrel); rel.id != first.id {
		p.errorf("after PUBREC and a new connection, PUBREL for %d, want %d", rel.id, first.id)
	}
	s.send(frame(pubcomp<<4, short(first.id)))
	if more := s.settled(); len(more) > 0 {
		p.errorf("%d messages after PUBREC, want none", len(more))
	}
	s.crash()
	s, _ = p.session(v5, h)
	if more := s.settled(); len(more) > 0 || len(s.kept) > 0 {
		p.errorf("after PUBCOMP there come %d messages and %d other packets", len(more), len(s.kept))
	}
}

// onceInbound: the publisher loses its connection before PUBREC and before
// PUBCOMP, and repeats itself as it must.
func (p *probe) onceInbound() {
	s := p.client(v5, "sub")
	s.mustSub(2, "t2i")
	h := lasting(v5, "pub")
	c, _ := p.session(v5, h)
	o := out{topic: "t2i", payload: "1", qos: 2}
	c.send(o.encode(v5, 9))
	c.await(pubrec)
	c.crash()
	c, ack := p.session(v5, h)
	if !ack.present {
		p.fatalf("no session present")
	}
	again := o.encode(v5, 9)
	again[0] |= 8
	c.send(again)
	c.await(pubrec)
	c.send(frame(pubrel<<4|2, short(9)))
	c.await(pubcomp)
	c.crash()
	c, _ = p.session(v5, h)
	c.send(frame(pubrel<<4|2, short(9)))
	if got := c.await(pubcomp); got.code != 0 && got.code != 0x92 {
		p.errorf("PUBREL again is answered by 0x%02x", got.code)
	}
	c.mustPub(out{topic: "t2i", payload: "2", qos: 2})
	for _, want := range []string{"1", "2"} {
		if m := s.take(); m.payload != want {
			p.errorf("message %q, want %q", m.payload, want)
		}
	}
}

func (p *probe) receiveMaximumLive(qos byte) {
	s, _ := p.session(v5, hello{id: "sub", props: properties{{id: propReceiveMaximum, num: 5}}})
	s.mustSub(qos, "t3")
	pub := p.client(v5, "pub")
	for n := range 100 {
		pub.send(out{topic: "t3", payload: fmt.Sprint(n), qos: 1}.encode(v5, uint16(n+1)))
	}
	want := min(qos, 1)
	for n := range 100 {
		m := s.take()
		if number(m) != n || m.qos() != want {
			p.errorf("message %d with QoS %d, want %d with %d", number(m), m.qos(), n, want)
		}
	}
	for range 100 {
		pub.await(puback)
	}
	pub.mustPub(out{topic: "t3", payload: "100", qos: qos})
	s.take()
}

func (p *probe) aliasOnResume() {
	h := lasting(v5, "sub")
	h.props = append(h.props, property{id: propTopicAliasMaximum, num: 10})
	s, _ := p.session(v5, h)
	s.mustSub(1, "t4/#")
	pub := p.client(v5, "pub")
	for range 3 {
		pub.mustPub(out{topic: "t4/a", payload: "0", qos: 1})
		s.take() // an alias may be set now
	}
	s.goodbye()
	for n := range 20 {
		pub.mustPub(out{topic: fmt.Sprintf("t4/%d", n%3), payload: fmt.Sprint(n), qos: 1})
	}
	s, _ = p.session(v5, h)
	for n := range 20 {
		if m := s.take(); m.topic != fmt.Sprintf("t4/%d", n%3) || number(m) != n {
			p.errorf("message %d has topic %q", number(m), m.topic)
		}
	}
}

func (p *probe) sharedOffline() {
	const each = 50
	a, _ := p.session(v5, lasting(v5, "a"))
	b, _ := p.session(v5, lasting(v5, "b"))
	a.mustSub(1, "$share/g/t5/#")
	b.mustSub(1, "$share/g/t5/#")
	pub := p.client(v5, "pub")
	pub.pubRun("t5/x", 1, 0, each)
	both := 0
	for _, c := range []*peer{a, b} {
		for more := c.settled(); len(more) > 0; more = c.settled() {
			both += len(more)
			for _, m := range more {
				c.ack(m)
			}
		}
	}
	if both != each {
		p.errorf("two members got %d of %d messages", both, each)
	}
	b.goodbye()
	pub.pubRun("t5/x", 1, each, each)
	got := 0
	for more := a.settled(); len(more) > 0; more = a.settled() {
		got += len(more)
		for _, m := range more {
			a.ack(m)
		}
	}
	if got != each {
		p.errorf("the online member got %d of %d", got, each)
	}
	b, _ = p.session(v5, lasting(v5, "b"))
	if more := b.settled(); len(more) > 0 {
		p.errorf("the member that was away got %d", len(more))
	}
}

// What a member had not acknowledged when its session ended is nobody else's by
// the specification (4.8.2 leaves it open), but what was only queued for it must
// not be held back from the others while it is away for good.
func (p *probe) sharedTakesOver() {
	a, _ := p.session(v5, hello{id: "a", props: properties{{id: propReceiveMaximum, num: 3}}})
	b, _ := p.session(v5, hello{id: "b", props: properties{{id: propReceiveMaximum, num: 1000}}})
	a.mustSub(1, "$share/g/t5d")
	b.mustSub(1, "$share/g/t5d")
	pub := p.client(v5, "pub")
	pub.pubRun("t5d", 1, 0, 60)
	a.crash() // with 3 in flight, and whatever was queued behind them
	seen := map[int]bool{}
	pub.pubRun("t5d", 1, 60, 20)
	deadline := time.Now().Add(patience)
	for len(seen) < 80-3 && time.Now().Before(deadline) {
		for _, m := range b.settled() {
			seen[number(m)] = true
			b.ack(m)
		}
	}
	if len(seen) < 80-3 {
		p.errorf("the member that is left got %d of 80; at most 3 were in flight to the one that died", len(seen))
	}
}

// stalled: a subscriber that reads nothing. Its publisher is slowed down or
// refused, others go on, and whatever was acknowledged arrives in the end.
func (p *probe) stalled() {
	const count, window = 20_000, 100
	h := lasting(v5, "sub")
	s, _ := p.session(v5, h)
	s.mustSub(1, "t6")
	pub := p.client(v5, "pub")
	pub.idle = 2 * time.Second // without an answer for so long, it is being held back
	filler := strings.Repeat(" ", 500)
	var acked sync.Map
	var n, ackedCount, sent int
	var refused, held bool
	next := func() {
		o := out{topic: "t6", payload: fmt.Sprint(sent, filler), qos: 1}
		pub.send(o.encode(v5, uint16(sent%60_000+1)))
		sent++
	}
	for ackedCount+n < count && !refused && !held {
		for sent < count && sent-ackedCount-n < window {
			next()
		}
		got, err := pub.tryRead()
		switch {
		case err != nil && isTimeout(err):
			held = true
		case err != nil || got.kind == disconnect:
			refused = true
		case got.kind == puback && got.code >= 0x80:
			n++
		case got.kind == puback:
			acked.Store(int(got.id)-1, true)
			ackedCount++
		}
	}
	// The others.
	x, y := p.client(v5, "x"), p.client(v5, "y")
	x.mustSub(1, "other")
	for i := range 50 {
		y.mustPub(out{topic: "other", payload: fmt.Sprint(i), qos: 1})
		if m := x.take(); number(m) != i {
			p.errorf("the others got %d, want %d", number(m), i)
		}
	}
	// Now it reads; where the broker had hung up, it comes back.
	var late atomic.Int64
	done := make(chan struct{})
	if held {
		pub.idle = patience
		go func() { // the publisher gets the rest of its answers
			defer close(done)
			for int(late.Load())+ackedCount+n < sent {
				got, err := pub.tryRead()
				if err != nil {
					return
				}
				if got.kind == puback && got.code < 0x80 {
					acked.Store(int(got.id)-1, true)
				}
				if got.kind == puback {
					late.Add(1)
				}
			}
		}()
	} else {
		close(done)
	}
	seen := map[int]bool{}
	missing := func() (lost int) {
		acked.Range(func(k, _ any) bool {
			if !seen[k.(int)] {
				lost++
			}
			return true
		})
		return lost
	}
	s.idle = 3 * time.Second
	for tries := 0; tries < 3; {
		m, err := s.tryRead()
		if err == nil {
			if m.kind == publish {
				seen[number(m)] = true
				s.ack(m)
			}
			tries = 0
			continue
		}
		if isDone(done) && missing() == 0 {
			break
		}
		tries++
		if isTimeout(err) {
			continue
		}
		s.close()
		s, _ = p.session(v5, h)
		s.idle = 3 * time.Second
	}
	if lost := missing(); lost > 0 {
		total := 0
		acked.Range(func(_, _ any) bool { total++; return true })
		p.errorf("%d of %d acknowledged messages are lost (held back: %v, refused: %v)", lost, total, held, refused)
	}
	if !isDone(done) {
		p.errorf("the publisher is held back for good after the subscriber reads again")
	}
}

func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

// overClientMaximum: MQTT-3.1.2-24 and -25.
func (p *probe) overClientMaximum() {
	s, _ := p.session(v5, hello{id: "sub", props: properties{
		{id: propReceiveMaximum, num: 3}, {id: propMaximumPacketSize, num: 200},
	}})
	s.mustSub(1, "t7")
	pub := p.client(v5, "pub")
	large := strings.Repeat("x", 1000)
	for range 10 {
		pub.mustPub(out{topic: "t7", payload: large, qos: 1})
	}
	pub.mustPub(out{topic: "t7", payload: large})
	pub.mustPub(out{topic: "t7", payload: "small", qos: 1})
	if m := s.take(); m.payload != "small" {
		p.errorf("a message of %d bytes, want only the small one", m.size)
	}
	// The properties count too; those that it may leave out it may leave out.
	pub.mustPub(out{topic: "t7", payload: "user", qos: 1, props: properties{{id: propUser, key: "k", text: large}}})
	pub.mustPub(out{topic: "t7", payload: "end", qos: 1})
	if m := s.take(); m.payload != "end" {
		p.errorf("a message of %d bytes, want only the last one", m.size)
	}
}
