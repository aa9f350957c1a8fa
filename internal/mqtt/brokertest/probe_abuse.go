package brokertest

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// abuseProbes: one client does its worst, the others are served. How much longer
// they wait is measured by the benchmark; here they must not wait for good.
var abuseProbes = []probeCase{
	{"abuse: floods", func(p *probe) { p.abused((*abuser).flood) }},
	{"abuse: floods with QoS 1 and reads nothing", func(p *probe) { p.abused((*abuser).deaf) }},
	{"abuse: reconnects without end", func(p *probe) { p.abused((*abuser).reconnect) }},
	{"abuse: takes over itself without end", func(p *probe) { p.abused((*abuser).takeOver) }},
	{"abuse: malformed packets without end", func(p *probe) { p.abused((*abuser).malformed) }},
	{"abuse: subscribes without end", func(p *probe) { p.abused((*abuser).subscribe) }},
	{"abuse: connections that say nothing", func(p *probe) { p.abused((*abuser).silent) }},
	{"abuse: retained messages without end", func(p *probe) { p.abused((*abuser).retain) }},
}

// abuser is what one bad client has: a way to connect that never fails the probe,
// and a time at which to stop.
type abuser struct {
	p    *probe
	stop chan struct{}
	turn int
}

// open is a session of the abuser, or nil where the broker has enough of it.
func (a *abuser) open(id string) *peer {
	nc := a.bare()
	if nc == nil {
		return nil
	}
	nc.idle = 2 * time.Second
	nc.send(hello{id: id}.encode(v5))
	if got, err := nc.tryRead(); err != nil || got.kind != connack || got.code != 0 {
		nc.close()
		return nil
	}
	return nc
}

func (a *abuser) bare() *peer {
	nc, err := dialTimeout(a.p.target.Addr)
	if err != nil {
		return nil
	}
	return a.p.over(nc, v5)
}

// write sends what the broker takes within a moment. false: it is over.
func (a *abuser) write(c *peer, b []byte) bool {
	_ = c.nc.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	_, err := c.nc.Write(b)
	return err == nil && !isDone(a.stop)
}

func (a *abuser) flood() {
	c := a.open("abuser")
	if c == nil {
		return
	}
	defer c.close()
	go c.drain()
	b := []byte(strings.Repeat(string(out{topic: "abuse", payload: strings.Repeat("f", 200)}.encode(v5, 0)), 100))
	for a.write(c, b) {
	}
}

// deaf subscribes to its own flood and reads no byte of it.
func (a *abuser) deaf() {
	c := a.open("abuser")
	if c == nil {
		return
	}
	defer c.close()
	c.sub(1, "abuse/#")
	for n := 1; ; n = n%60_000 + 1 {
		if !a.write(c, out{topic: "abuse/x", payload: strings.Repeat("d", 1000), qos: 1}.encode(v5, uint16(n))) {
			<-a.pause()
			return
		}
	}
}

// pause lets the abuser stay connected for a while.
func (a *abuser) pause() <-chan time.Time { return time.After(100 * time.Millisecond) }

func (a *abuser) reconnect() {
	if c := a.open(fmt.Sprint("abuser", a.turn)); c != nil {
		c.crash()
	}
}

func (a *abuser) takeOver() {
	if c := a.bare(); c != nil {
		c.send(lasting(v5, "abuser").encode(v5))
	}
}

func (a *abuser) malformed() {
	if c := a.open("abuser"); c != nil {
		c.send([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF})
		c.close()
	}
}

func (a *abuser) subscribe() {
	c := a.open("abuser")
	if c == nil {
		return
	}
	defer c.close()
	go c.drain()
	for n := 1; n < 20_000; n++ {
		body := subscribeBody(v5, fmt.Sprintf("abuse/%d/+/%d/#", n, n))
		body[0] = short(uint16(n))
		if !a.write(c, frame(subscribe<<4|2, body...)) {
			return
		}
	}
}

func (a *abuser) silent() {
	if a.turn > 500 {
		<-a.pause()
		return
	}
	if c := a.bare(); c != nil && a.turn%2 == 0 {
		c.send([]byte{connect << 4})
	}
}

func (a *abuser) retain() {
	c := a.open("abuser")
	if c == nil {
		return
	}
	defer c.close()
	go c.drain()
	for n := 1; n < 20_000; n++ {
		if !a.write(c, out{topic: fmt.Sprint("abuse/", n), payload: "r", qos: 1, retain: true}.encode(v5, uint16(n))) {
			return
		}
	}
}

// abused runs round trips of others beside the abuser.
func (p *probe) abused(how func(*abuser)) {
	const trips = 200
	w := p.witness()
	a := &abuser{p: p, stop: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; !isDone(a.stop); a.turn++ {
			how(a)
		}
	})
	began := time.Now()
	for n := 0; n < trips || time.Since(began) < time.Second; n++ {
		w.check(fmt.Sprint("round trip ", n))
		if len(p.faults) > 0 {
			break
		}
	}
	close(a.stop)
	wg.Wait()
	w.check("after the abuse")
	late := p.client(v5, "late") // and newcomers are let in
	late.mustSub(1, "late")
	late.mustPub(out{topic: "late", payload: "x", qos: 1})
	late.wants("x")
}

// connectFlood is one client under ever fresh ids, each with a session that lasts and
// a large will in it. It costs no memory beyond a bound.
func (p *probe) connectFlood() {
	const clients, each = 2000, 15_000
	w := p.witness()
	a := &abuser{p: p}
	for ; a.turn < clients; a.turn++ {
		if a.turn%50 == 0 {
			w.check(fmt.Sprint("after client ", a.turn))
		}
		c := a.bare()
		if c == nil {
			continue
		}
		h := lasting(v5, fmt.Sprint("flood", a.turn))
		h.will = &will{topic: "abuse", payload: strings.Repeat("w", each), props: properties{{id: propWillDelay, num: 3600}}}
		c.send(h.encode(v5))
		if got, err := c.tryRead(); p.target.TellsWhy && err == nil && got.code != 0 && got.code != 0x97 {
			p.errorf("client %d is answered by type %d, code 0x%02x", a.turn, got.kind, got.code)
		}
		c.crash()
	}
	w.end()
	p.client(v5, "late") // and newcomers are let in
}
