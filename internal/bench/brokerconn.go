package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	connectWorkers = 8
	connectTarget  = 700 // mTLS connects a second and core
	idleConns      = 10_000
	idleWorkers    = 16
	// What the project wants of one connection at rest.
	idlePlainTarget = 12 * kib
	idleTLSTarget   = 40 * kib
	notifyRounds    = 3
	// openFiles is what 10,000 connections need on both sides.
	openFiles = 1 << 16
)

func newEd25519() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

func newP256() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// connects measures how many connections a second of one core the brokers take,
// from TCP to CONNACK and the end.
func (b *brokers) connects() error {
	if err := b.connectRate("plain", 0, func(s *brokerServer, _ int) dialer { return dialer{addr: s.plain} }); err != nil {
		return err
	}
	for kind, key := range map[string]func() (crypto.Signer, error){"ed25519": newEd25519, "P-256": newP256} {
		configs := make([]*tls.Config, connectWorkers)
		for i := range configs {
			k, err := key()
			if err == nil {
				configs[i], err = b.site.enrollKey(fmt.Sprintf("%s-%d", kind, i), i, k)
			}
			if err != nil {
				return err
			}
		}
		err := b.connectRate("mTLS "+kind, connectTarget, func(s *brokerServer, i int) dialer { return dialer{addr: s.tls, tls: configs[i]} })
		if err != nil {
			return err
		}
		// Each device keeps a TLS session of each broker and resumes it.
		sessions := map[*brokerServer][]*tls.Config{}
		for _, s := range b.both() {
			for _, c := range configs {
				kept := c.Clone()
				kept.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				sessions[s] = append(sessions[s], kept)
			}
		}
		err = b.connectRate("mTLS "+kind+", resumed", 0, func(s *brokerServer, i int) dialer { return dialer{addr: s.tls, tls: sessions[s][i]} })
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *brokers) connectRate(what string, target float64, of func(*brokerServer, int) dialer) error {
	var perCore, perSecond [2][]float64
	for range b.r.rounds {
		for i, s := range b.both() {
			wall, core, err := b.r.connectRun(s, func(n int) dialer { return of(s, n) })
			if err != nil {
				return fmt.Errorf("connect %s to %s: %w", what, s.name, err)
			}
			perSecond[i], perCore[i] = append(perSecond[i], wall), append(perCore[i], core)
		}
	}
	f := figure{
		what:     "Broker: connects, " + what,
		measured: fmt.Sprintf("%.0f/s, %.0f a second of a core", median(perSecond[0]), median(perCore[0])),
		peer: fmt.Sprintf("%.2fx mosquitto a core (%.0f/s, %.0f a core)", median(perCore[0])/median(perCore[1]),
			median(perSecond[1]), median(perCore[1])),
	}
	if target > 0 {
		f.target, f.met = fmt.Sprintf(">= %.0f a core", target), median(perCore[0]) >= target
	}
	b.r.table.add(f)
	b.r.say("%s: %s; %s", f.what, f.measured, f.peer)
	return nil
}

// connectRun connects again and again for a while. A device that is still known
// is taken over, so each worker has one of its own.
func (r *runner) connectRun(s *brokerServer, of func(worker int) dialer) (perSecond, perCore float64, err error) {
	cpu, err := s.process.cpu()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	var counts [connectWorkers]int
	var g errgroup.Group
	for i := range connectWorkers {
		g.Go(func() error {
			for time.Since(began) < brokerTime {
				nc, err := of(i).dial(r.ctx, 0)
				if err != nil {
					return err
				}
				w := newWireSize(nc, 512)
				err = w.open(hello{id: of(i).clientID(i)}, 0)
				_ = nc.Close()
				if err != nil {
					return err
				}
				counts[i]++
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	took := time.Since(began)
	after, err := s.process.cpu()
	n := 0
	for _, c := range counts {
		n += c
	}
	return float64(n) / took.Seconds(), float64(n) / (after - cpu).Seconds(), err
}

// clientID is the device's own with a certificate.
func (d dialer) clientID(n int) string {
	if d.tls != nil {
		return d.tls.Certificates[0].Leaf.Subject.CommonName
	}
	return fmt.Sprintf("client-%d", n)
}

// raiseFiles lets this process and those that it starts have many connections.
func raiseFiles() error {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		return err
	}
	want := syscall.Rlimit{Cur: openFiles, Max: max(openFiles, now.Max)}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want); err == nil {
		return nil
	}
	if now.Max < idleConns+1000 {
		return fmt.Errorf("%d open files allowed: %d connections need more; raise the limit (ulimit -Hn)", now.Max, idleConns)
	}
	now.Cur = now.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &now)
}

func ownTopics(i int) []string {
	return []string{fmt.Sprintf("bench/device/%d/command", i), fmt.Sprintf("bench/device/%d/config/#", i)}
}

// idlePlain measures memory and then tells every connection something.
func (b *brokers) idlePlain() error {
	var rests [2]int64
	var times [2][]time.Duration
	for i, s := range b.both() {
		conns, each, err := b.r.openIdle(s, ownTopics, func(int) dialer { return dialer{addr: s.plain} })
		if err == nil {
			times[i], err = b.r.notify(s, conns)
		}
		closeAll(conns)
		if err != nil {
			return fmt.Errorf("idle connections to %s: %w", s.name, err)
		}
		rests[i] = each
	}
	b.addIdle("plain", idlePlainTarget, rests)
	rate := func(d time.Duration) float64 { return idleConns / d.Seconds() }
	ours, peer := rate(median(times[0])), rate(median(times[1]))
	b.r.table.add(figure{
		what:     "Broker: one QoS 1 message to each of 10,000 connections",
		measured: fmt.Sprintf("%.0f/s", ours),
		target:   fmt.Sprintf(">= %.1fx", clientTarget), met: ours >= clientTarget*peer,
		peer: fmt.Sprintf("%.2fx mosquitto (%.0f/s)", ours/peer, peer),
	})
	return nil
}

func (b *brokers) addIdle(what string, target int64, each [2]int64) {
	kb := func(n int64) string { return fmt.Sprintf("%.1f KiB", float64(n)/kib) }
	b.r.table.add(figure{
		what:     fmt.Sprintf("Broker: memory of an idle connection, %s, of 10,000", what),
		measured: kb(each[0]), target: "<= " + kb(target), met: each[0] <= target,
		peer: "mosquitto " + kb(each[1]),
	})
	b.r.say("idle %s: %s, mosquitto %s", what, kb(each[0]), kb(each[1]))
}

// idleTLS does it with 10,000 devices of their own.
func (b *brokers) idleTLS() error {
	configs, err := b.enrollIdle()
	if err != nil {
		return err
	}
	var rests [2]int64
	for i, s := range b.both() {
		conns, each, err := b.r.openIdle(s, idleTopics, func(n int) dialer { return dialer{addr: s.tls, tls: configs[n]} })
		closeAll(conns)
		if err != nil {
			return fmt.Errorf("idle TLS connections to %s: %w", s.name, err)
		}
		rests[i] = each
	}
	b.addIdle("mTLS", idleTLSTarget, rests)
	return nil
}

// openIdle opens the connections and says how much memory each of them takes.
func (r *runner) openIdle(s *brokerServer, topics func(int) []string, of func(int) dialer) ([]*wire, int64, error) {
	if err := r.settle(idleSettle); err != nil {
		return nil, 0, err
	}
	before, err := s.process.memory()
	if err != nil {
		return nil, 0, err
	}
	conns := make([]*wire, idleConns)
	var g errgroup.Group
	g.SetLimit(idleWorkers)
	for i := range conns {
		g.Go(func() error {
			nc, err := of(i).dial(r.ctx, i)
			if err != nil {
				return err
			}
			conns[i] = newWireSize(nc, 512)
			return conns[i].open(hello{id: of(i).clientID(i), receiveMaximum: 20}, 1, topics(i)...)
		})
	}
	if err := g.Wait(); err != nil {
		return conns, 0, err
	}
	if err := r.settle(idleSettle); err != nil {
		return conns, 0, err
	}
	after, err := s.process.memory()
	return conns, (after.resident - before.resident) / idleConns, err
}

func closeAll(conns []*wire) {
	for _, w := range conns {
		if w != nil {
			_ = w.nc.Close()
		}
	}
}

// notify sends one message to every connection, several times over.
func (r *runner) notify(s *brokerServer, conns []*wire) ([]time.Duration, error) {
	nc, err := dialer{addr: s.plain}.dial(r.ctx, 0)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	pub := newWire(nc)
	if err := pub.open(hello{id: "notifier"}, 0); err != nil {
		return nil, err
	}
	var got counter
	arrived := make(chan struct{}, 1)
	for _, w := range conns {
		go func() { _ = w.take(&got, arrived) }() // ends with its connection
	}
	var times []time.Duration
	for round := range notifyRounds {
		began := time.Now()
		if err := pub.sendAll(idleConns, func(i int) string { return ownTopics(i)[0] }); err != nil {
			return nil, err
		}
		if err := r.arrivals(&got, arrived, int64(round+1)*idleConns); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
	return times, nil
}

func (r *runner) arrivals(got *counter, arrived <-chan struct{}, want int64) error {
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	for got.n.Load() < want {
		select {
		case <-arrived:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d messages arrived", got.n.Load(), want)
		}
	}
	return nil
}

// take is subscribe for a connection that gets little; it tells every 1,000th.
func (w *wire) take(got *counter, arrived chan<- struct{}) error {
	for {
		kind, _, body, err := w.read()
		if err != nil {
			return err
		}
		if kind != typePublish {
			continue
		}
		_, id, err := delivery(body)
		if err != nil {
			return err
		}
		if _, err := w.nc.Write([]byte{typePuback << 4, 2, byte(id >> 8), byte(id)}); err != nil {
			return err
		}
		if got.n.Add(1)%1000 == 0 {
			select {
			case arrived <- struct{}{}:
			default:
			}
		}
	}
}

// sendAll publishes n messages with a window of 20.
func (w *wire) sendAll(n int, topic func(int) string) error {
	payload := make([]byte, brokerPayload)
	var out []byte
	for sent, acked := 0, 0; acked < n; {
		out = out[:0]
		for ; sent < n && sent-acked < 20; sent++ {
			out = publishPacket(out, topic(sent), uint16(sent%60_000+1), payload)
		}
		if _, err := w.nc.Write(out); err != nil {
			return err
		}
		for first := true; first || w.in.Buffered() >= 4; first = false {
			kind, _, body, err := w.read()
			if err != nil {
				return err
			}
			if kind == typePuback {
				acked++
				if len(body) > 2 && body[2] >= 0x80 {
					return fmt.Errorf("not acknowledged: reason code 0x%02x", body[2])
				}
			}
		}
	}
	return nil
}
