package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/otad/otad/internal/testserver"
)

// heldPause is between two rounds over the connections that are held.
const heldPause = 15 * time.Second

// heldAnswer is how long one connection may take to be answered.
const heldAnswer = 2 * time.Minute

var errLostPublish = errors.New("what was published did not come back")

// held is no measurement but a long run, for make soak: 10,000 plain and then
// 10,000 mTLS connections that rest, and in each round every one of them publishes to a
// topic of its own and has to hear it. One that is lost ends the run.
func (r *runner) held() error {
	if err := raiseFiles(); err != nil {
		return err
	}
	plain, err := testserver.FreeAddr()
	if err != nil {
		return err
	}
	site, err := r.newOperatedSite("held", "--mqtt-plain", plain, "--mqtt-plain-auth", "none")
	if err != nil {
		return err
	}
	defer site.stop()
	b := &brokers{r: r, site: site}
	configs, err := b.enrollIdle()
	if err != nil {
		return err
	}
	address, err := hostOf(site.at.MQTT)
	if err != nil {
		return err
	}
	server := &brokerServer{name: "otad", plain: plain, tls: address, process: site.server}
	plainly := func(int) dialer { return dialer{addr: plain} }
	if err := r.hold10k("plain", server, ownTopics, plainly); err != nil {
		return err
	}
	return r.hold10k("mTLS", server, idleTopics, func(n int) dialer { return dialer{addr: server.tls, tls: configs[n]} })
}

// hold10k holds the connections of one kind for half of the time: both at once
// are more files than many machines allow a process.
func (r *runner) hold10k(kind string, server *brokerServer, topics func(int) []string, of func(int) dialer) error {
	conns, _, err := r.openIdle(server, topics, of)
	defer func() { closeAll(conns) }()
	if err != nil {
		return fmt.Errorf("%s connections: %w", kind, err)
	}
	began := time.Now()
	for round := 1; round == 1 || time.Since(began) < r.hold/2; round++ {
		if err := echoAll(kind, conns, topics); err != nil {
			return fmt.Errorf("round %d, after %s: %w", round, time.Since(began).Round(time.Second), err)
		}
		m, err := server.process.memory()
		if err != nil {
			return err
		}
		r.say("held %d %s connections for %s, round %d; otad has %d MiB", len(conns), kind, time.Since(began).Round(time.Second), round, m.resident>>20)
		if err := r.settle(min(heldPause, max(0, r.hold/2-time.Since(began)))); err != nil {
			return err
		}
	}
	return nil
}

// echoAll lets every connection hear itself.
func echoAll(kind string, conns []*wire, topics func(int) []string) error {
	var g errgroup.Group
	g.SetLimit(idleWorkers)
	for i, w := range conns {
		g.Go(func() error {
			if err := w.echo(topics(i)[0]); err != nil {
				return fmt.Errorf("%s connection %d: %w", kind, i, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// echo publishes to a topic that the connection is subscribed to and waits for
// the acknowledgement and the message.
func (w *wire) echo(topic string) error {
	if err := w.nc.SetDeadline(time.Now().Add(heldAnswer)); err != nil {
		return err
	}
	if _, err := w.nc.Write(publishPacket(nil, topic, 7, make([]byte, brokerPayload))); err != nil {
		return err
	}
	for acked, heard := false, false; !acked || !heard; {
		kind, _, body, err := w.read()
		if err != nil {
			return fmt.Errorf("%w: %w", errLostPublish, err)
		}
		switch kind {
		case typePuback:
			if acked = true; len(body) > 2 && body[2] >= 0x80 {
				return fmt.Errorf("%w: reason code 0x%02x", errLostPublish, body[2])
			}
		case typePublish:
			to, id, err := delivery(body)
			if err != nil {
				return err
			}
			if heard = string(to) == topic; !heard {
				return fmt.Errorf("%w: a message on %s came", errLostPublish, to)
			}
			if _, err := w.nc.Write([]byte{typePuback << 4, 2, byte(id >> 8), byte(id)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// idleTopics are those of the devices that idle TLS connections are of.
func idleTopics(i int) []string {
	id := fmt.Sprintf("idle-%d", i)
	return []string{"ota/" + id + "/command", "$aws/things/" + id + "/jobs/notify"}
}

// enrollIdle makes 10,000 devices.
func (b *brokers) enrollIdle() ([]*tls.Config, error) {
	b.r.say("enrolling %d devices", idleConns)
	configs := make([]*tls.Config, idleConns)
	var g errgroup.Group
	g.SetLimit(idleWorkers)
	for i := range configs {
		g.Go(func() error {
			key, err := newEd25519()
			if err == nil {
				configs[i], err = b.site.enrollKey(fmt.Sprintf("idle-%d", i), i, key)
			}
			return err
		})
	}
	return configs, g.Wait()
}
