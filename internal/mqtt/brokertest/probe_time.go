package brokertest

import (
	"fmt"
	"time"
)

// granularity is the clock of a broker that counts whole seconds. How late it may
// be is not asserted beyond patience: mosquitto looks at keep alives every 5 s.
const granularity = time.Second

// timeProbes are T8 to T11: wills, expiry of sessions and messages, keep alive.
// They wait for real seconds, since those are the units of the protocol.
var timeProbes = []probeCase{
	{"T8 will delay, cancelled by a new connection", (*probe).willCancelled},
	{"T8 will after its delay", (*probe).willDelayed},
	{"T8 will at the end of the session", (*probe).willAtSessionEnd},
	{"T8 will and ways to leave", (*probe).willWays},
	{"T8 will when the session is begun anew", (*probe).willOnCleanStart},
	{"T9 session expiry", (*probe).sessionExpiry},
	{"T9 session expiry set on DISCONNECT", (*probe).sessionExpiryOnDisconnect},
	{"T9 sessions of MQTT 3.1.1", (*probe).oldSessions},
	{"T10 message expiry", (*probe).messageExpiry},
	{"T10 message expiry of retained messages", (*probe).retainedExpiry},
	{"T11 keep alive", (*probe).keepAlive},
}

// wants takes the next message and compares its payload.
func (c *peer) wants(payload string) packet {
	m := c.take()
	if m.payload != payload {
		c.p.errorf("%s got %q on %s, want %q", c.id, m.payload, m.topic, payload)
	}
	return m
}

// wantsNothing fails on messages that are there.
func (c *peer) wantsNothing(why string) {
	for _, m := range c.settled() {
		c.p.errorf("%s got %q on %s: %s", c.id, m.payload, m.topic, why)
		c.ack(m)
	}
}

// mourner is a session with a will.
func (p *probe) mourner(id string, expiry, delay uint32) (*peer, hello) {
	h := hello{id: id, resume: true, props: properties{{id: propSessionExpiry, num: expiry}},
		will: &will{topic: "t8/" + id, payload: "will of " + id, qos: 1, props: properties{{id: propWillDelay, num: delay}}}}
	c, _ := p.session(v5, h)
	return c, h
}

func (p *probe) willCancelled() {
	s := p.client(v5, "sub")
	s.mustSub(1, "t8/#")
	c, h := p.mourner("a", 60, 2)
	c.crash()
	c, ack := p.session(v5, h)
	if !ack.present {
		p.errorf("no session present")
	}
	p.pass(3500 * time.Millisecond)
	s.wantsNothing("its session went on within the delay")
	c.crash() // and the new will counts
	began := time.Now()
	s.wants("will of a")
	if took := time.Since(began); took < 2*time.Second-granularity {
		p.errorf("the will came after %v, before its delay", took)
	}
}

func (p *probe) willDelayed() {
	s := p.client(v5, "sub")
	s.mustSub(1, "t8/#")
	c, _ := p.mourner("a", 60, 2)
	began := time.Now()
	c.crash()
	m := s.wants("will of a")
	if took := time.Since(began); took < 2*time.Second-granularity {
		p.errorf("the will with a delay of 2 s came after %v", took)
	}
	if _, ok := m.props.find(propWillDelay); ok {
		p.errorf("the will is delivered with its delay as a property")
	}
	c, _ = p.mourner("b", 60, 0)
	c.crash()
	s.wants("will of b")
}

func (p *probe) willAtSessionEnd() {
	s := p.client(v5, "sub")
	s.mustSub(1, "t8/#")
	for _, expiry := range []uint32{0, 1} {
		id := fmt.Sprint("e", expiry)
		c, _ := p.mourner(id, expiry, 120)
		c.crash()
		s.wants("will of " + id) // within patience, long before the delay
	}
}

func (p *probe) willWays() {
	s := p.client(v5, "sub")
	s.mustSub(1, "t8/#")
	c, _ := p.mourner("normal", 60, 0)
	c.goodbye()
	c, _ = p.mourner("with-will", 60, 0)
	c.send(frame(disconnect<<4, []byte{0x04}))
	s.wants("will of with-will")
	c, _ = p.mourner("fin", 60, 0)
	c.close() // the connection ends in order, but not the session
	s.wants("will of fin")
	c, _ = p.mourner("fault", 60, 0)
	c.send([]byte{0xF0, 0}) // a protocol error
	s.wants("will of fault")
	old := p.dial(v311)
	old.mustConnect(hello{id: "old", will: &will{topic: "t8/old", payload: "will of old", qos: 1, retain: true}})
	old.crash()
	s.wants("will of old")
	late := p.client(v5, "late")
	late.mustSub(1, "t8/#")
	if m := late.wants("will of old"); !m.retain() {
		p.errorf("a retained will is delivered to a new subscription without retain")
	}
	s.wantsNothing("it had taken its leave")
}

// willOnCleanStart: a new session ends the old one, and with it the delay
// (3.1.3.2.2).
func (p *probe) willOnCleanStart() {
	s := p.client(v5, "sub")
	s.mustSub(1, "t8/#")
	c, _ := p.mourner("a", 300, 120)
	c.crash()
	c, ack := p.session(v5, hello{id: "a"})
	if ack.present {
		p.errorf("session present after a clean start")
	}
	s.wants("will of a")
	c.goodbye()
}

// present reports whether a session is there; asking ends it.
func (p *probe) present(id string) bool {
	c, ack := p.session(v5, hello{id: id, resume: true})
	c.goodbye()
	return ack.present
}

func (p *probe) sessionExpiry() {
	open := func(id string, expiry uint32) {
		c, _ := p.session(v5, hello{id: id, resume: true, props: properties{{id: propSessionExpiry, num: expiry}}})
		c.mustSub(1, "t9")
		c.crash()
	}
	open("zero", 0)
	open("short", 1)
	open("long", 60)
	if p.present("zero") {
		p.errorf("a session with expiry 0 outlived its connection")
	}
	p.client(v5, "pub").mustPub(out{topic: "t9", payload: "1", qos: 1})
	p.pass(2500 * time.Millisecond)
	if p.present("short") {
		p.errorf("a session with an expiry of 1 s is there after 2.5 s")
	}
	c, ack := p.session(v5, hello{id: "long", resume: true})
	if !ack.present {
		p.errorf("a session with an expiry of 60 s is gone after 2.5 s")
	}
	c.wants("1")
}

func (p *probe) sessionExpiryOnDisconnect() {
	leave := func(id string, at, with uint32) *peer {
		c, _ := p.session(v5, hello{id: id, props: properties{{id: propSessionExpiry, num: at}}})
		c.send(frame(disconnect<<4, []byte{0}, properties{{id: propSessionExpiry, num: with}}.encode()))
		return c
	}
	leave("shorter", 60, 0).drain()
	if p.present("shorter") {
		p.errorf("the session outlived a DISCONNECT with session expiry 0")
	}
	leave("kept", 60, 120).drain()
	if !p.present("kept") {
		p.errorf("no session after a DISCONNECT with session expiry 120")
	}
	// From nothing to something is a protocol error (3.14.2.2.2).
	c := leave("raised", 0, 60)
	if code, told := c.ended("session expiry raised from 0"); told && code != 0x82 {
		p.errorf("session expiry raised from 0 is answered by 0x%02x, want 0x82", code)
	} else if !told && p.target.TellsWhy {
		p.errorf("session expiry raised from 0 ends without a reason")
	}
	if p.present("raised") {
		p.errorf("a session with expiry 0 was raised by DISCONNECT")
	}
}

func (p *probe) oldSessions() {
	for _, version := range []byte{v311, v31} {
		id := fmt.Sprint("v", version)
		c, ack := p.session(version, hello{id: id, resume: true})
		if ack.present {
			p.errorf("version %d: session present at first", version)
		}
		c.mustSub(1, "t9o")
		c.crash()
		p.client(v311, "pub").mustPub(out{topic: "t9o", payload: "1", qos: 1})
		c, ack = p.session(version, hello{id: id, resume: true})
		if version == v311 && !ack.present {
			p.errorf("no session present after a crash")
		}
		c.wants("1")
		c.goodbye()
		c, ack = p.session(version, hello{id: id})
		if ack.present {
			p.errorf("version %d: session present after a clean one", version)
		}
		c.goodbye()
		c, ack = p.session(version, hello{id: id, resume: true})
		if ack.present {
			p.errorf("version %d: a clean session outlived its connection", version)
		}
		c.wantsNothing("its subscription had ended")
		c.goodbye()
	}
}

func expiring(seconds uint32) properties {
	return properties{{id: propMessageExpiry, num: seconds}}
}

func (p *probe) messageExpiry() {
	h := lasting(v5, "sub")
	s, _ := p.session(v5, h)
	s.mustSub(1, "t10")
	pub := p.client(v5, "pub")
	pub.mustPub(out{topic: "t10", payload: "live", qos: 1, props: expiring(60)})
	if m := s.wants("live"); m.props.number(propMessageExpiry, 0) > 60 || m.props.number(propMessageExpiry, 0) < 55 {
		p.errorf("a live message with expiry 60 is delivered with %d", m.props.number(propMessageExpiry, 0))
	}
	s.goodbye()
	pub.mustPub(out{topic: "t10", payload: "short", qos: 1, props: expiring(1)})
	pub.mustPub(out{topic: "t10", payload: "long", qos: 1, props: expiring(60)})
	pub.mustPub(out{topic: "t10", payload: "for ever", qos: 1})
	p.pass(2500 * time.Millisecond)
	s, _ = p.session(v5, h)
	m := s.wants("long")
	if left := m.props.number(propMessageExpiry, 0); left > 58 || left < 50 {
		p.errorf("a message with expiry 60 that lay for 2.5 s is delivered with %d", left)
	}
	m = s.wants("for ever")
	if _, ok := m.props.find(propMessageExpiry); ok {
		p.errorf("a message without expiry is delivered with one")
	}
}

func (p *probe) retainedExpiry() {
	pub := p.client(v5, "pub")
	pub.mustPub(out{topic: "t10r/a", payload: "short", qos: 1, retain: true, props: expiring(1)})
	pub.mustPub(out{topic: "t10r/b", payload: "long", qos: 1, retain: true, props: expiring(60)})
	p.pass(2500 * time.Millisecond)
	s := p.client(v5, "sub")
	s.mustSub(1, "t10r/#")
	m := s.wants("long")
	if left := m.props.number(propMessageExpiry, 0); left > 58 || left < 50 {
		p.errorf("a retained message with expiry 60 that lay for 2.5 s is delivered with %d", left)
	}
	s.wantsNothing("it had expired")
}

func (p *probe) keepAlive() {
	lively, silent := p.dial(v5), p.dial(v5)
	lively.mustConnect(hello{id: "lively", keepAlive: 1})
	silent.mustConnect(hello{id: "silent", keepAlive: 1})
	old := p.dial(v311)
	old.mustConnect(hello{id: "old", keepAlive: 1})
	none := p.dial(v5)
	none.mustConnect(hello{id: "none"})
	began := time.Now()
	over := make(chan struct{})
	go func() { // the one that sends lives
		defer close(over)
		for time.Since(began) < 5*time.Second {
			lively.send(frame(pingreq << 4))
			if got, err := lively.tryRead(); err != nil || got.kind != pingresp {
				p.errorf("a connection that pings got type %d, %v", got.kind, err)
				return
			}
			p.pass(500 * time.Millisecond)
		}
	}()
	silent.idle, old.idle = patience, patience // a PINGREQ would break the silence
	code, told := silent.ended("silence with keep alive 1")
	if took := time.Since(began); took < 1500*time.Millisecond-granularity/2 {
		p.errorf("silence with keep alive 1 was ended after %v, before 1.5 s", took)
	}
	if told && code != 0x8D {
		p.errorf("silence was ended with 0x%02x, want 0x8d", code)
	} else if !told && p.target.TellsWhy {
		p.errorf("silence was ended without a reason")
	}
	if _, told := old.ended("silence of MQTT 3.1.1"); told {
		p.errorf("MQTT 3.1.1 has no DISCONNECT of a server")
	}
	<-over
	none.settled() // without keep alive it lives
}
