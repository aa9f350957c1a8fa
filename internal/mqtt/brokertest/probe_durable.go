package brokertest

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// durableProbes are T13: the broker dies without a word, and nothing that it had
// acknowledged is lost. They need a broker that is a process of its own.
var durableProbes = []probeCase{
	{"T13 killed at rest", (*probe).killedAtRest},
	{"T13 killed under load", (*probe).killedUnderLoad},
	{"T13 QoS 2 exactly once over a kill", (*probe).killedExactlyOnce},
}

func (p *probe) killedAtRest() {
	s, _ := p.session(v5, lasting(v5, "sub"))
	s.mustSub(1, "t13/#")
	s.mustSub(2, "t13q")
	s.subWith(properties{{id: propSubscriptionID, num: 42}}, 1, "t13id")
	old, _ := p.session(v311, lasting(v311, "old"))
	old.mustSub(1, "t13/#")
	pub := p.client(v5, "pub")
	props := properties{{id: propContentType, text: "text/plain"}, {id: propUser, key: "k", text: "v"}}
	pub.mustPub(out{topic: "t13/inflight", payload: "inflight", qos: 1})
	inflight := s.message()
	s.crash()
	old.crash()
	pub.mustPub(out{topic: "t13/queued", payload: "queued", qos: 1, props: props})
	pub.mustPub(out{topic: "t13q", payload: "two", qos: 2})
	pub.mustPub(out{topic: "t13id", payload: "id", qos: 1})
	pub.mustPub(out{topic: "kept/a", payload: "a", qos: 1, retain: true, props: props})
	pub.mustPub(out{topic: "kept/b", payload: "b", qos: 1, retain: true})
	pub.mustPub(out{topic: "kept/b", qos: 1, retain: true})
	mourner, _ := p.mourner("m", 60, 1)
	mourner.settled()
	pub.mustPub(out{topic: "t13/expiring", payload: "expiring", qos: 1, props: expiring(2)}) // after the restart
	if p.target.Save != nil {
		p.target.Save()
	}
	p.target.Restart()
	p.pass(3200 * time.Millisecond)

	s, ack := p.session(v5, lasting(v5, "sub"))
	if !ack.present {
		p.errorf("the session is gone")
	}
	if m := s.wants("inflight"); !m.dup() || m.id != inflight.id {
		p.errorf("what was in flight comes with id %d, dup %v; want %d", m.id, m.dup(), inflight.id)
	}
	if m := s.wants("queued"); m.props.text(propContentType) != "text/plain" {
		p.errorf("properties are lost: %v", m.props)
	}
	if m := s.wants("two"); m.qos() != 2 {
		p.errorf("QoS 2 became %d", m.qos())
	}
	if m := s.wants("id"); m.props.number(propSubscriptionID, 0) != 42 {
		p.errorf("the subscription identifier is lost: %v", m.props)
	}
	s.wantsNothing("after the restart")
	pub = p.client(v5, "pub")
	pub.mustPub(out{topic: "t13/live", payload: "live", qos: 1})
	s.wants("live")
	old, ack = p.session(v311, lasting(v311, "old"))
	if !ack.present {
		p.errorf("the session of MQTT 3.1.1 is gone")
	}
	old.wants("inflight")
	old.wants("queued")
	old.wants("live")
	late := p.client(v5, "late")
	late.mustSub(1, "kept/#")
	if m := late.wants("a"); !m.retain() || m.props.text(propContentType) != "text/plain" {
		p.errorf("the retained message has retain %v and properties %v", m.retain(), m.props)
	}
	late.wantsNothing("it had been removed")
}

// load is one publisher, with a window of unacknowledged messages.
type load struct {
	id      int
	acked   int // all below it are acknowledged
	retains int // the highest number of its retained topic that is acknowledged
}

const loadWindow = 20

// every so many messages one is retained, and one is also for the subscriber
// that is away: what waits for it must not grow over any broker's limit.
const (
	loadRetained = 10
	loadAway     = 100
)

// run publishes until the connection ends, and tells begun of the first
// acknowledgement. Acknowledgements come in order (MQTT-4.6.0-2).
func (l *load) run(p *probe, from int, begun chan<- struct{}) (sent int) {
	nc, err := dialTimeout(p.target.Addr)
	if err != nil {
		return from
	}
	c := p.over(nc, v5)
	c.send(hello{id: fmt.Sprint("load", l.id)}.encode(v5))
	if got, err := c.tryRead(); err != nil || got.kind != connack {
		return from
	}
	sent, l.acked = from, from
	for {
		for sent < l.acked+loadWindow {
			o := out{topic: fmt.Sprintf("load/%d", l.id), payload: fmt.Sprint(sent), qos: 1}
			switch {
			case sent%loadAway == 1:
				o.topic = fmt.Sprintf("load/%d/away", l.id)
			case sent%loadRetained == 0:
				o.topic, o.retain = fmt.Sprintf("load/%d/kept", l.id), true
			}
			c.send(o.encode(v5, uint16(sent%60_000+1)))
			sent++
		}
		got, err := c.tryRead()
		if err != nil || got.kind != puback || got.code >= 0x80 {
			return sent
		}
		if int(got.id) != l.acked%60_000+1 {
			p.errorf("publisher %d: PUBACK of %d, want %d", l.id, got.id, l.acked%60_000+1)
			return sent
		}
		if l.acked%loadRetained == 0 {
			l.retains = l.acked
		}
		if l.acked++; l.acked == from+1 {
			begun <- struct{}{}
		}
	}
}

// killedUnderLoad: some publishers, a subscriber that reads and one that is away.
func (p *probe) killedUnderLoad() {
	const publishers, rounds = 4, 3
	reading, away := lasting(v5, "reading"), lasting(v5, "away")
	reading.props = append(reading.props, property{id: propReceiveMaximum, num: 50})
	a, _ := p.session(v5, away)
	a.mustSub(1, "load/+/away")
	a.crash()
	r, _ := p.session(v5, reading)
	r.mustSub(1, "load/#")
	loads := make([]*load, publishers)
	for i := range loads {
		loads[i] = &load{id: i}
	}
	owed, owedAway := []string{}, []string{} // publisher and number of every acknowledged message
	seen := map[string]bool{}
	for round := range rounds {
		var wg sync.WaitGroup
		var from [publishers]int
		begun := make(chan struct{}, publishers)
		for i, l := range loads {
			from[i] = round * 1_000_000
			wg.Go(func() { l.run(p, from[i], begun) })
		}
		wg.Go(func() { p.reads(r, seen, nil) })
		awaitAll(begun, publishers) // each has something to lose
		p.pass(time.Duration(400+150*round) * time.Millisecond)
		p.target.Restart()
		wg.Wait()
		for i, l := range loads {
			for n := from[i]; n < l.acked; n++ {
				owed = append(owed, fmt.Sprintf("%d %d", i, n))
				if n%loadAway == 1 {
					owedAway = append(owedAway, fmt.Sprintf("%d %d", i, n))
				}
			}
			if l.acked == from[i] {
				p.errorf("round %d: publisher %d had nothing acknowledged", round, i)
			}
		}
		var ack packet
		r, ack = p.session(v5, reading)
		if !ack.present {
			p.fatalf("round %d: the session of the one that reads is gone", round)
		}
	}
	r.idle = p.quiet()
	p.reads(r, seen, owed)
	p.missing("the subscriber that was there", owed, seen)
	a, ack := p.session(v5, away)
	if !ack.present {
		p.fatalf("the session of the one that was away is gone")
	}
	got := map[string]bool{}
	a.idle = p.quiet()
	p.reads(a, got, owedAway)
	p.missing("the subscriber that was away", owedAway, got)
	late := p.client(v5, "late")
	for _, l := range loads {
		late.mustSub(1, fmt.Sprintf("load/%d/kept", l.id))
		if m := late.take(); number(m) < l.retains {
			p.errorf("retained: %d, but %d was acknowledged", number(m), l.retains)
		}
	}
}

// awaitAll waits until n have begun, within patience.
func awaitAll(begun <-chan struct{}, n int) {
	deadline, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	for range n {
		select {
		case <-begun:
		case <-deadline.Done():
		}
	}
}

// quiet is how long nothing has to come until nothing is expected any more. Brokers
// that are not ours do lose what they acknowledged, and need not be waited for.
func (p *probe) quiet() time.Duration {
	if p.target.Tries > 1 {
		return 2 * time.Second
	}
	return patience
}

// reads takes messages until the connection ends, nothing comes any more, or all that
// is owed was seen; nil: whatever there is.
func (p *probe) reads(c *peer, seen map[string]bool, owed []string) {
	left := map[string]bool{}
	for _, o := range owed {
		if !seen[o] {
			left[o] = true
		}
	}
	for owed == nil || len(left) > 0 {
		m, err := c.tryRead()
		if err != nil {
			return
		}
		if m.kind != publish {
			continue
		}
		var from int
		_, _ = fmt.Sscanf(m.topic, "load/%d", &from)
		name := fmt.Sprintf("%d %d", from, number(m))
		seen[name] = true
		delete(left, name)
		c.ack(m)
	}
}

func (p *probe) missing(who string, owed []string, seen map[string]bool) {
	lost := 0
	for _, o := range owed {
		if !seen[o] {
			lost++
		}
	}
	if lost > 0 {
		p.errorf("%s: %d of %d acknowledged messages are lost", who, lost, len(owed))
	}
}

// killedExactlyOnce keeps both ends of QoS 2 as a client must and counts.
func (p *probe) killedExactlyOnce() {
	const rounds = 4
	hs, hp := lasting(v5, "sub"), lasting(v5, "pub")
	s, _ := p.session(v5, hs)
	s.mustSub(2, "once")
	counts := map[string]int{}
	held := map[uint16]bool{} // ids of the subscriber between PUBLISH and PUBREL
	state := map[uint16]byte{}
	payloads := map[uint16]string{}
	next := 0
	var mu sync.Mutex
	for round := range rounds + 1 {
		pub, ack := p.session(v5, hp)
		if round > 0 && !ack.present {
			p.fatalf("round %d: the publisher's session is gone", round)
		}
		var wg sync.WaitGroup
		all := func() bool { return round == rounds && len(counts) == next && len(held) == 0 }
		wg.Go(func() { p.takesOnce(s, counts, held, &mu, all) })
		wg.Go(func() { p.sendsOnce(pub, state, payloads, &next, round == rounds) })
		if round < rounds {
			p.pass(time.Duration(200+70*round) * time.Millisecond)
			p.target.Restart()
			wg.Wait()
			s, _ = p.session(v5, hs)
			s.idle = p.quiet()
			continue
		}
		wg.Wait()
	}
	for _, m := range s.settled() { // too many
		counts[m.payload]++
	}
	for n := range next {
		if c := counts[fmt.Sprint(n)]; c != 1 {
			p.errorf("message %d of %d arrived %d times", n, next, c)
		}
	}
}

// takesOnce takes what comes until the connection ends, nothing comes any more, or all
// is there.
func (p *probe) takesOnce(c *peer, counts map[string]int, held map[uint16]bool, mu *sync.Mutex, all func() bool) {
	mu.Lock()
	defer mu.Unlock()
	for !all() {
		m, err := c.tryRead()
		if err != nil {
			return
		}
		switch m.kind {
		case publish:
			if !held[m.id] {
				held[m.id] = true
				counts[m.payload]++
			}
			c.send(frame(pubrec<<4, short(m.id)))
		case pubrel:
			delete(held, m.id)
			c.send(frame(pubcomp<<4, short(m.id)))
		}
	}
}

// sendsOnce goes on with what was under way, then with new messages while the
// connection lasts; finish: only the former.
func (p *probe) sendsOnce(c *peer, state map[uint16]byte, payloads map[uint16]string, next *int, finish bool) {
	const window = 10
	for id, at := range state {
		if at == publish {
			b := out{topic: "once", payload: payloads[id], qos: 2}.encode(v5, id)
			b[0] |= 8
			c.send(b)
		} else {
			c.send(frame(pubrel<<4|2, short(id)))
		}
	}
	for len(state) > 0 || !finish {
		for !finish && len(state) < window {
			id := uint16(1) // the lowest that is free: what the broker forgets must be forgotten
			for state[id] != 0 {
				id++
			}
			payloads[id], state[id] = fmt.Sprint(*next), publish
			c.send(out{topic: "once", payload: payloads[id], qos: 2}.encode(v5, id))
			*next++
		}
		got, err := c.tryRead()
		if err != nil {
			return
		}
		switch got.kind {
		case pubrec:
			if got.code >= 0x80 {
				p.errorf("PUBREC with code 0x%02x", got.code)
				return
			}
			state[got.id] = pubrel
			c.send(frame(pubrel<<4|2, short(got.id)))
		case pubcomp:
			delete(state, got.id)
		}
	}
}
