package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// counter stands alone in its cache line.
type counter struct {
	n atomic.Int64
	_ [56]byte
}

// trafficRun is one load while it runs.
type trafficRun struct {
	traffic
	published []counter // of each publisher: acknowledged, or with QoS 0 sent
	delivered []counter // of each subscriber
	stopping  atomic.Bool
}

// runTraffic connects, lets the load warm up and counts for a while.
func (r *runner) runTraffic(s *brokerServer, t traffic) (outcome, error) {
	run := &trafficRun{traffic: t, published: make([]counter, t.publishers), delivered: make([]counter, t.subscribers)}
	var conns []net.Conn
	defer func() {
		for _, nc := range conns {
			_ = nc.Close()
		}
	}()
	open := func(id string, filters ...string) (*wire, error) {
		nc, err := dialer{addr: s.plain}.dial(r.ctx, 0)
		if err != nil {
			return nil, err
		}
		conns = append(conns, nc)
		w := newWireSize(nc, 64*kib)
		return w, w.open(hello{id: id, receiveMaximum: brokerReceive}, t.qos, filters...)
	}
	var g errgroup.Group
	for i := range t.subscribers {
		w, err := open(fmt.Sprintf("sub-%d", i), t.filter(i))
		if err != nil {
			return outcome{}, err
		}
		g.Go(func() error { return run.ended(w.subscribe(&run.delivered[i].n)) })
	}
	for i := range t.publishers {
		w, err := open(fmt.Sprintf("pub-%d", i))
		if err != nil {
			return outcome{}, err
		}
		if t.qos == 0 {
			g.Go(func() error { return run.ended(w.flood(run, i)) })
		} else {
			g.Go(func() error { return run.ended(w.publish(run, i)) })
		}
	}
	o, err := run.measure(r.ctx, s)
	run.stopping.Store(true)
	for _, nc := range conns {
		_ = nc.Close()
	}
	return o, errors.Join(err, g.Wait())
}

// ended forgets the error of a connection that was closed at the end.
func (run *trafficRun) ended(err error) error {
	if run.stopping.Load() {
		return nil
	}
	return err
}

func (run *trafficRun) count() int64 {
	counters := run.delivered
	if run.acks {
		counters = run.published
	}
	var n int64
	for i := range counters {
		n += counters[i].n.Load()
	}
	return n
}

func (run *trafficRun) measure(ctx context.Context, s *brokerServer) (outcome, error) {
	if err := wait(ctx, brokerWarmUp); err != nil {
		return outcome{}, err
	}
	cpu, err := s.process.cpu()
	if err != nil {
		return outcome{}, err
	}
	from, began := run.count(), time.Now()
	if err := wait(ctx, brokerTime); err != nil {
		return outcome{}, err
	}
	n, took := float64(run.count()-from), time.Since(began)
	after, err := s.process.cpu()
	if n == 0 {
		err = errors.Join(err, errors.New("nothing arrived"))
	}
	return outcome{perSecond: n / took.Seconds(), cpu: float64((after - cpu).Microseconds()) / n}, err
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// subscribe takes messages and acknowledges them, in as few writes as the arrival
// of packets allows.
func (w *wire) subscribe(count *atomic.Int64) error {
	var acks []byte
	for {
		kind, flags, body, err := w.read()
		if err != nil {
			return err
		}
		if kind == typePublish {
			count.Add(1)
			if flags&0b0110 != 0 {
				_, id, err := delivery(body)
				if err != nil {
					return err
				}
				acks = append(acks, typePuback<<4, 2, byte(id>>8), byte(id))
			}
		}
		if len(acks) > 0 && (w.in.Buffered() < 4 || len(acks) >= 4*brokerReceive) {
			if _, err := w.nc.Write(acks); err != nil {
				return err
			}
			acks = acks[:0]
		}
	}
}

// publish keeps window messages of QoS 1 under way.
func (w *wire) publish(run *trafficRun, i int) error {
	topic, payload := run.topic(i), make([]byte, brokerPayload)
	var out []byte
	count := &run.published[i].n
	for id, free := uint16(0), run.window; ; {
		out = out[:0]
		for ; free > 0; free-- {
			if id++; id == 0 {
				id = 1
			}
			out = publishPacket(out, topic, id, payload)
		}
		if _, err := w.nc.Write(out); err != nil {
			return err
		}
		for free == 0 || w.in.Buffered() >= 4 {
			kind, _, body, err := w.read()
			if err != nil {
				return err
			}
			if kind != typePuback {
				continue
			}
			if len(body) > 2 && body[2] >= 0x80 {
				return fmt.Errorf("not acknowledged: reason code 0x%02x", body[2])
			}
			free++
			count.Add(1)
		}
	}
}

// flood sends QoS 0, at most window messages ahead of the subscriber of the same
// number, and looks away for a moment when it is.
func (w *wire) flood(run *trafficRun, i int) error {
	topic, payload := run.topic(i), make([]byte, brokerPayload)
	const batch = 20
	packet := qos0Packet(nil, topic, payload)
	var out []byte
	for range batch {
		out = append(out, packet...)
	}
	sent, got := &run.published[i].n, &run.delivered[i].n
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	for !run.stopping.Load() {
		if sent.Load()-got.Load() > int64(run.window-batch) {
			<-tick.C
			continue
		}
		if _, err := w.nc.Write(out); err != nil {
			return err
		}
		sent.Add(batch)
	}
	return nil
}

// qos0Packet is a PUBLISH of QoS 0 without properties.
func qos0Packet(to []byte, topic string, payload []byte) []byte {
	to = append(to, typePublish<<4)
	to = binary.AppendUvarint(to, uint64(2+len(topic)+1+len(payload)))
	to = binary.BigEndian.AppendUint16(to, uint16(len(topic)))
	to = append(to, topic...)
	to = append(to, 0)
	return append(to, payload...)
}
