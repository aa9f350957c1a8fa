package brokertest

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"time"
)

// peer is one connection that speaks raw packets, any version.
type peer struct {
	p       *probe
	nc      net.Conn
	in      *bufio.Reader
	version byte
	id      string
	lastID  uint16
	kept    []packet          // arrived while something else was awaited
	aliases map[uint16]string // that the broker set
	idle    time.Duration     // how long a read waits; 0: patience
}

// hello is a CONNECT.
type hello struct {
	id         string
	resume     bool // not clean
	keepAlive  uint16
	props      properties
	will       *will
	user, pass string
}

type will struct {
	topic, payload string
	qos            byte
	retain         bool
	props          properties
}

func (h hello) encode(version byte) []byte {
	name := "MQTT"
	if version == v31 {
		name = "MQIsdp"
	}
	var flags byte
	if !h.resume {
		flags |= 0x02
	}
	body := append(text(name), version, 0)
	at := len(body) - 1
	body = append(body, short(h.keepAlive)...)
	if version == v5 {
		body = append(body, h.props.encode()...)
	}
	body = append(body, text(h.id)...)
	if w := h.will; w != nil {
		flags |= 0x04 | w.qos<<3
		if w.retain {
			flags |= 0x20
		}
		if version == v5 {
			body = append(body, w.props.encode()...)
		}
		body = append(append(body, text(w.topic)...), text(w.payload)...)
	}
	if h.user != "" {
		flags |= 0x80
		body = append(body, text(h.user)...)
	}
	if h.pass != "" {
		flags |= 0x40
		body = append(body, text(h.pass)...)
	}
	body[at] = flags
	return frame(connect<<4, body)
}

// dial opens a connection and sends nothing yet.
func (p *probe) dial(version byte) *peer {
	nc, err := dialTimeout(p.target.Addr)
	if err != nil {
		p.fatalf("dial: %v", err)
	}
	return p.over(nc, version)
}

func dialTimeout(addr string) (net.Conn, error) { return net.DialTimeout("tcp", addr, patience) }

// over is a peer on a connection that is open already.
func (p *probe) over(nc net.Conn, version byte) *peer {
	c := &peer{p: p, nc: nc, in: bufio.NewReader(nc), version: version, aliases: map[uint16]string{}}
	p.cleanup(func() { _ = nc.Close() })
	return c
}

// session connects and wants to be accepted.
func (p *probe) session(version byte, h hello) (*peer, packet) {
	c := p.dial(version)
	return c, c.mustConnect(h)
}

// client is a connection with a clean session and nothing special.
func (p *probe) client(version byte, id string) *peer {
	c, _ := p.session(version, hello{id: id})
	return c
}

// lasting is a hello for a session that outlives its connection.
func lasting(version byte, id string) hello {
	h := hello{id: id, resume: true}
	if version == v5 {
		h.props = properties{{id: propSessionExpiry, num: 3600}}
	}
	return h
}

func (c *peer) mustConnect(h hello) packet {
	c.id = h.id
	c.send(h.encode(c.version))
	got := c.read()
	if got.kind != connack || got.code != 0 {
		c.p.fatalf("%s: CONNECT is answered by type %d, code 0x%02x", h.id, got.kind, got.code)
	}
	return got
}

// send writes; that the broker has hung up is found by the next read.
func (c *peer) send(b []byte) {
	_ = c.nc.SetWriteDeadline(time.Now().Add(patience))
	_, _ = c.nc.Write(b)
}

func (c *peer) close() { _ = c.nc.Close() }

// crash ends the connection by a reset, so that nothing more is read or sent.
func (c *peer) crash() {
	if t, ok := c.nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.nc.Close()
}

// goodbye is a DISCONNECT without a will, after which the broker hangs up.
func (c *peer) goodbye() {
	c.send(frame(disconnect << 4))
	c.drain()
}

// drain reads to the end of the connection.
func (c *peer) drain() {
	for {
		if _, err := c.tryRead(); err != nil {
			c.close()
			return
		}
	}
}

// tryRead is the next packet, or why there is none.
func (c *peer) tryRead() (packet, error) {
	if len(c.kept) > 0 {
		got := c.kept[0]
		c.kept = c.kept[1:]
		return got, nil
	}
	return c.fromWire()
}

func (c *peer) fromWire() (packet, error) {
	wait := c.idle
	if wait == 0 {
		wait = patience
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(wait))
	got, err := readPacket(c.in, c.version)
	if err != nil {
		return got, err
	}
	if got.kind == publish && c.version == v5 {
		err = c.resolve(&got)
	}
	return got, err
}

// resolve gives a message its topic by the alias; an alias that was never set is
// the broker's fault.
func (c *peer) resolve(got *packet) error {
	alias := uint16(got.props.number(propTopicAlias, 0))
	switch {
	case alias == 0 && got.topic == "":
		return errors.New("a PUBLISH with neither topic nor alias")
	case alias == 0:
	case got.topic != "":
		c.aliases[alias] = got.topic
	case c.aliases[alias] == "":
		return fmt.Errorf("a PUBLISH with topic alias %d, which was never set", alias)
	default:
		got.topic = c.aliases[alias]
	}
	return nil
}

func (c *peer) read() packet {
	got, err := c.tryRead()
	if err != nil {
		c.p.fatalf("%s: %v", c.id, err)
	}
	return got
}

// await reads until a packet of that type comes and keeps the others.
func (c *peer) await(kind byte) packet {
	for i, k := range c.kept {
		if k.kind == kind {
			c.kept = append(c.kept[:i:i], c.kept[i+1:]...)
			return k
		}
	}
	for {
		got, err := c.fromWire()
		if err != nil {
			c.p.fatalf("%s waits for a packet of type %d: %v", c.id, kind, err)
		}
		if got.kind == kind {
			return got
		}
		c.kept = append(c.kept, got)
	}
}

// message is the next PUBLISH.
func (c *peer) message() packet { return c.await(publish) }

// ack answers a message with all that its QoS wants of this side at once.
func (c *peer) ack(m packet) {
	switch m.qos() {
	case 1:
		c.send(frame(puback<<4, short(m.id)))
	case 2:
		c.send(frame(pubrec<<4, short(m.id)))
		c.await(pubrel)
		c.send(frame(pubcomp<<4, short(m.id)))
	}
}

// take is the next message, acknowledged.
func (c *peer) take() packet {
	m := c.message()
	c.ack(m)
	return m
}

func (c *peer) nextID() uint16 {
	if c.lastID++; c.lastID == 0 {
		c.lastID = 1
	}
	return c.lastID
}

// sub subscribes and returns the codes.
func (c *peer) sub(options byte, filters ...string) []byte {
	return c.subWith(nil, options, filters...)
}

func (c *peer) subWith(props properties, options byte, filters ...string) []byte {
	parts := [][]byte{short(c.nextID())}
	if c.version == v5 {
		parts = append(parts, props.encode())
	}
	for _, f := range filters {
		parts = append(parts, text(f), []byte{options})
	}
	c.send(frame(subscribe<<4|2, parts...))
	got := c.await(suback)
	if got.id != c.lastID || len(got.codes) != len(filters) {
		c.p.fatalf("%s: SUBACK for %d with %d codes, want %d with %d", c.id, got.id, len(got.codes), c.lastID, len(filters))
	}
	return got.codes
}

func (c *peer) mustSub(options byte, filters ...string) {
	for i, code := range c.sub(options, filters...) {
		if code != options&3 {
			c.p.fatalf("%s: subscription to %s with QoS %d is answered by 0x%02x", c.id, filters[i], options&3, code)
		}
	}
}

func (c *peer) unsub(filters ...string) []byte {
	parts := [][]byte{short(c.nextID())}
	if c.version == v5 {
		parts = append(parts, properties(nil).encode())
	}
	for _, f := range filters {
		parts = append(parts, text(f))
	}
	c.send(frame(unsubscribe<<4|2, parts...))
	return c.await(unsuback).codes
}

// out is a message that a probe sends.
type out struct {
	topic, payload string
	qos            byte
	retain         bool
	props          properties
}

func (o out) encode(version byte, id uint16) []byte {
	first := publish<<4 | o.qos<<1
	if o.retain {
		first |= 1
	}
	parts := [][]byte{text(o.topic)}
	if o.qos > 0 {
		parts = append(parts, short(id))
	}
	if version == v5 {
		parts = append(parts, o.props.encode())
	}
	return frame(first, append(parts, []byte(o.payload))...)
}

// pub sends a message and waits for what its QoS has in answer: the reason code.
func (c *peer) pub(o out) byte {
	id := c.nextID()
	c.send(o.encode(c.version, id))
	switch o.qos {
	case 1:
		return c.acknowledged(puback, id)
	case 2:
		if code := c.acknowledged(pubrec, id); code >= 0x80 {
			return code
		}
		c.send(frame(pubrel<<4|2, short(id)))
		return c.acknowledged(pubcomp, id)
	}
	return 0
}

func (c *peer) acknowledged(kind byte, id uint16) byte {
	got := c.await(kind)
	if got.id != id {
		c.p.fatalf("%s: acknowledgement of type %d for %d, want %d", c.id, kind, got.id, id)
	}
	return got.code
}

func (c *peer) mustPub(o out) {
	if code := c.pub(o); code >= 0x80 {
		c.p.fatalf("%s: publish to %s is answered by 0x%02x", c.id, o.topic, code)
	}
}

// settled returns the messages that are there by the time a few round trips of
// this connection are over. Nothing that was published before comes later than
// that, unless the broker holds it back.
func (c *peer) settled() []packet {
	const trips = 5
	for range trips {
		c.send(frame(pingreq << 4))
		c.await(pingresp)
	}
	var all, rest []packet
	for _, k := range c.kept {
		if k.kind == publish {
			all = append(all, k)
		} else {
			rest = append(rest, k)
		}
	}
	c.kept = rest
	return all
}

// ended reads to the end of the connection, within patience, and returns the
// code of the DISCONNECT or CONNACK that told why. told: there was one.
func (c *peer) ended(what string) (code byte, told bool) {
	const doubt = 2 * time.Second // after which a PINGREQ shows that the broker goes on
	asked := c.idle != 0
	if !asked {
		c.idle = doubt
	}
	for {
		got, err := c.tryRead()
		switch {
		case err != nil && isTimeout(err) && !asked:
			c.send(frame(pingreq << 4))
			asked, c.idle = true, patience
		case err != nil && isTimeout(err), err == nil && got.kind == pingresp && asked:
			c.p.errorf("%s: the connection stays open", what)
			return code, told
		case err != nil:
			return code, told
		case got.kind == disconnect || got.kind == connack && got.code != 0:
			code, told = got.code, true
		}
	}
}
