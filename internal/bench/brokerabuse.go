package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	abusePairs = 10
	abuseEvery = 5 * time.Millisecond // between two messages of a pair
	abuseTime  = 2 * time.Second
	// abuseWarmUp is longer than what a client may send ahead of its rates.
	abuseWarmUp = 3 * time.Second
	// abuseTarget is how much longer the others may wait, at their p99.
	abuseTarget = 1.2
	// abuserArgument makes this program the bad client.
	abuserArgument = "broker-abuser"
)

// abuses are what one client can do to the others.
var abuses = map[string]func(context.Context, string) error{
	"floods with QoS 0":                   floodAbuse,
	"floods with QoS 1, reads nothing":    deafAbuse,
	"reconnects without end":              reconnectAbuse,
	"sends malformed packets, reconnects": malformedAbuse,
}

// abused measures how long messages of others take beside each abuse, against a
// broker at peace and against one on a machine where the same client misbehaves
// towards another process: what is left of the difference is the broker's.
func (b *brokers) abused() error {
	elsewhere, err := b.r.startSink()
	if err != nil {
		return err
	}
	defer elsewhere.process.stop()
	names := slices.Sorted(maps.Keys(abuses))
	for _, name := range names {
		if !strings.Contains(name, b.r.row) {
			continue
		}
		var quiet, away, bad [2][]time.Duration
		for range b.r.rounds {
			for i, s := range b.both() {
				for _, run := range []struct {
					victim *brokerServer // nil: none
					times  *[2][]time.Duration
				}{{nil, &quiet}, {elsewhere, &away}, {s, &bad}} {
					p99, err := b.r.besideAbuser(name, s, run.victim)
					if err != nil {
						return fmt.Errorf("beside a client that %s, %s: %w", name, s.name, err)
					}
					run.times[i] = append(run.times[i], p99)
				}
			}
		}
		b.addAbuse(name, quiet, away, bad)
	}
	return nil
}

func (b *brokers) addAbuse(name string, quiet, away, bad [2][]time.Duration) {
	more := func(i int, than [2][]time.Duration) float64 {
		return median(bad[i]).Seconds() / median(than[i]).Seconds()
	}
	show := func(i int) string {
		ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
		return fmt.Sprintf("%.2f ms, %+.0f %% of %.2f at peace, %+.0f %% of %.2f with the client elsewhere", ms(median(bad[i])),
			(more(i, quiet)-1)*100, ms(median(quiet[i])), (more(i, away)-1)*100, ms(median(away[i])))
	}
	f := figure{
		what:     "Broker: p99 of the others while one client " + name,
		measured: show(0),
		target:   fmt.Sprintf("< %+.0f %%", (abuseTarget-1)*100), met: more(0, quiet) < abuseTarget,
		peer: "mosquitto " + show(1),
	}
	b.r.table.add(f)
	b.r.say("%s: %s; %s", f.what, f.measured, f.peer)
}

// besideAbuser is latency on s while the bad client, a process of its own, is busy
// with victim.
func (r *runner) besideAbuser(name string, s, victim *brokerServer) (time.Duration, error) {
	if victim == nil {
		return r.latency(s)
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	p, err := start(r.path("abuser.log"), self, abuserArgument, name, victim.plain)
	if err != nil {
		return 0, err
	}
	defer p.stop()
	if err := r.settle(abuseWarmUp); err != nil {
		return 0, err
	}
	p99, err := r.latency(s)
	return p99, errors.Join(err, p.ended())
}

// latency is the p99 from publish to delivery of ten calm pairs.
func (r *runner) latency(s *brokerServer) (time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	ctx, cancel := context.WithTimeout(r.ctx, abuseTime)
	defer cancel()
	var g errgroup.Group
	for i := range abusePairs {
		g.Go(func() error {
			times, err := pairLatency(ctx, s, i)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return percentile(all, 99), nil
}

func pairLatency(ctx context.Context, s *brokerServer, i int) ([]time.Duration, error) {
	var pair [2]*wire
	topic := fmt.Sprintf("bench/calm/%d", i)
	for n := range pair {
		nc, err := dialer{addr: s.plain}.dial(ctx, 0)
		if err != nil {
			return nil, err
		}
		defer nc.Close()
		pair[n] = newWire(nc)
		var filters []string
		if n == 0 {
			filters = []string{topic}
		}
		if err := pair[n].open(hello{id: fmt.Sprintf("calm-%d-%d", i, n)}, 0, filters...); err != nil {
			return nil, err
		}
	}
	tick := time.NewTicker(abuseEvery)
	defer tick.Stop()
	var times []time.Duration
	payload := make([]byte, brokerPayload)
	for {
		select {
		case <-ctx.Done():
			return times, nil
		case <-tick.C:
		}
		began := time.Now()
		if _, err := pair[1].nc.Write(qos0Packet(nil, topic, payload)); err != nil {
			return nil, err
		}
		if _, _, _, err := pair[0].read(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
}

// abuse is the process of the bad client.
func abuse(ctx context.Context, name, addr string) error {
	how := abuses[name]
	if how == nil {
		return fmt.Errorf("no abuse %q", name)
	}
	for ctx.Err() == nil {
		if err := how(ctx, addr); ctx.Err() == nil && err != nil && !errors.Is(err, net.ErrClosed) {
			if err := wait(ctx, time.Millisecond); err != nil { // the broker hung up, as it may
				return nil
			}
		}
	}
	return nil
}

func bad(ctx context.Context, addr string, filters ...string) (*wire, error) {
	nc, err := dialer{addr: addr}.dial(ctx, 0)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = nc.Close() })
	w := newWire(nc)
	return w, w.open(hello{id: "abuser"}, 1, filters...)
}

func floodAbuse(ctx context.Context, addr string) error {
	w, err := bad(ctx, addr)
	if err != nil {
		return err
	}
	defer w.nc.Close()
	b := []byte(strings.Repeat(string(qos0Packet(nil, "bench/abuse", make([]byte, brokerPayload))), 100))
	for {
		if _, err := w.nc.Write(b); err != nil {
			return err
		}
	}
}

func deafAbuse(ctx context.Context, addr string) error {
	w, err := bad(ctx, addr, "bench/abuse")
	if err != nil {
		return err
	}
	defer w.nc.Close()
	b := publishPacket(nil, "bench/abuse", 1, make([]byte, 1000))
	at := 2 + 2 + len("bench/abuse") + 1 // a length of two bytes, the topic, then the id
	for id := uint16(1); ; id++ {
		if id == 0 {
			id = 1
		}
		binary.BigEndian.PutUint16(b[at:], id)
		_ = w.nc.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := w.nc.Write(b); err != nil {
			return err
		}
	}
}

func reconnectAbuse(ctx context.Context, addr string) error {
	w, err := bad(ctx, addr)
	if err != nil {
		return err
	}
	return w.nc.Close()
}

func malformedAbuse(ctx context.Context, addr string) error {
	w, err := bad(ctx, addr)
	if err != nil {
		return err
	}
	defer w.nc.Close()
	_, err = w.nc.Write([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF})
	if err == nil {
		_, _, _, _ = w.read()
	}
	return err
}
