package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	agenthttp "github.com/otad/otad/agent/http"
)

const (
	loadDevices = 200
	loadWarmUp  = 3 * time.Second
	loadTime    = 15 * time.Second
	// perAddress keeps enrollment under the server's limit for one address: on
	// loopback there are many.
	perAddress = 50
	// shadowTarget is what the project wants of the embedded broker in the end.
	shadowTarget = 8000
)

// loadDevice is one MQTT client that updates its shadow and waits for the
// acknowledgement and the answer before it does so again.
type loadDevice struct {
	id    string
	tls   *tls.Config
	wire  *wire
	times []time.Duration // of the updates that began in the measured time
}

// shadows measures durable shadow updates from end to end.
func (r *runner) shadows() error {
	s, err := r.newOperatedSite("shadow")
	if err != nil {
		return err
	}
	defer s.stop()
	devices := make([]*loadDevice, loadDevices)
	var g errgroup.Group
	g.SetLimit(8)
	for i := range devices {
		g.Go(func() (err error) {
			devices[i], err = s.enrollLoad(i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	broker, err := url.Parse(s.at.MQTT)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if err := d.connect(r.ctx, broker.Host); err != nil {
			return fmt.Errorf("connect %s: %w", d.id, err)
		}
		defer d.wire.nc.Close()
	}
	if err := s.load(devices); err != nil {
		return err
	}
	if err := r.settle(idleSettle); err != nil {
		return err
	}
	m, err := s.server.memory()
	if err != nil {
		return err
	}
	r.table.add(figure{
		what:     fmt.Sprintf("otad resident, %d devices connected, after that load", loadDevices),
		measured: fmt.Sprintf("%s, at most %s", showMB(m.resident), showMB(m.peak)),
	})
	return nil
}

func (s *site) enrollLoad(i int) (*loadDevice, error) {
	id := fmt.Sprintf("load-%03d", i)
	key, err := newEd25519()
	if err != nil {
		return nil, err
	}
	config, err := s.enrollKey(id, i, key)
	return &loadDevice{id: id, tls: config}, err
}

// enrollKey makes the n-th device, with that key, and returns how it connects.
func (s *site) enrollKey(id string, n int, key crypto.Signer) (*tls.Config, error) {
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+n/perAddress))}
	who, err := agenthttp.Enroll(s.r.ctx, agenthttp.Options{
		ServerURL: s.at.Device, Token: s.token, DeviceID: id, Hardware: hardware, Key: key,
		Dial: (&net.Dialer{LocalAddr: from}).DialContext,
	})
	if err != nil {
		return nil, fmt.Errorf("enroll %s: %w", id, err)
	}
	chain, err := agenthttp.ParseCertificates(who.Certificate)
	if err != nil {
		return nil, err
	}
	cert := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(who.CA)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, nil
}

func (d *loadDevice) topic() string { return "$aws/things/" + d.id + "/shadow/update" }

func (d *loadDevice) connect(ctx context.Context, address string) error {
	nc, err := (&tls.Dialer{Config: d.tls}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	d.wire = newWire(nc)
	return d.wire.connect(d.id, d.topic()+"/accepted", d.topic()+"/rejected")
}

// load lets every device update as fast as it is answered.
func (s *site) load(devices []*loadDevice) error {
	ctx, stop := context.WithCancel(s.r.ctx)
	defer stop()
	var g errgroup.Group
	var measured window
	measured.from = time.Now().Add(loadWarmUp)
	measured.to = measured.from.Add(loadTime)
	for _, d := range devices {
		g.Go(func() error {
			err := d.updates(ctx, measured)
			if err != nil {
				stop() // and nobody waits for the rest
			}
			return err
		})
	}
	used, err := s.watch(ctx, measured)
	if err = errors.Join(g.Wait(), err); err != nil {
		return err
	}
	var times []time.Duration
	for _, d := range devices {
		times = append(times, d.times...)
	}
	slices.Sort(times)
	n := float64(len(times))
	perSecond := n / loadTime.Seconds()
	s.r.table.add(figure{
		what: fmt.Sprintf("Shadow updates, %d devices by MQTT 5 and mTLS, durable", loadDevices),
		measured: fmt.Sprintf("%.0f/s, p50 %d ms, p99 %d ms", perSecond,
			times[len(times)/2].Milliseconds(), times[len(times)*99/100].Milliseconds()),
		target: fmt.Sprintf(">= %d/s", shadowTarget), met: perSecond >= shadowTarget,
	})
	s.r.table.add(figure{
		what: "  processor time of that, for 1,000 updates",
		measured: fmt.Sprintf("otad %.2f s, the load generator %.2f s", used.server.Seconds()*1000/n,
			used.generator.Seconds()*1000/n),
	})
	return nil
}

type window struct{ from, to time.Time }

// processors is what was used within a window.
type processors struct{ server, generator time.Duration }

// watch reads the processor times at both ends of the window.
func (s *site) watch(ctx context.Context, w window) (used processors, err error) {
	var at [2]processors
	for i, when := range []time.Time{w.from, w.to} {
		timer := time.NewTimer(time.Until(when))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return used, ctx.Err()
		}
		var errServer, errOwn error
		at[i].server, errServer = s.server.cpu()
		at[i].generator, errOwn = ownCPU()
		if err := errors.Join(errServer, errOwn); err != nil {
			return used, err
		}
	}
	return processors{at[1].server - at[0].server, at[1].generator - at[0].generator}, nil
}

// updates goes on until the window is over and counts those that ended in it.
func (d *loadDevice) updates(ctx context.Context, w window) error {
	var packet []byte
	for n := uint64(1); ctx.Err() == nil; n++ {
		began := time.Now()
		if began.After(w.to) {
			return nil
		}
		packet = publishPacket(packet[:0], d.topic(), 1, reportedState(n))
		if _, err := d.wire.nc.Write(packet); err != nil {
			return err
		}
		if err := d.answered(); err != nil {
			return fmt.Errorf("update of %s: %w", d.id, err)
		}
		if now := time.Now(); now.After(w.from) && !now.After(w.to) {
			d.times = append(d.times, now.Sub(began))
		}
	}
	return ctx.Err()
}

// answered waits for the PUBACK and for accepted, in whichever order.
func (d *loadDevice) answered() error {
	for acked, accepted := false, false; !acked || !accepted; {
		kind, flags, body, err := d.wire.read()
		if err != nil {
			return err
		}
		switch kind {
		case typePuback:
			if len(body) > 2 && body[2] >= 0x80 {
				return fmt.Errorf("not acknowledged: reason code 0x%02x", body[2])
			}
			acked = true
		case typePublish:
			topic, id, err := delivery(body)
			if err != nil {
				return err
			}
			if !bytes.HasSuffix(topic, []byte("/accepted")) {
				return fmt.Errorf("answer on %s: %s", topic, body)
			}
			accepted = true
			if flags&0b0110 != 0 {
				ack := binary.BigEndian.AppendUint16([]byte{typePuback << 4, 2}, id)
				if _, err := d.wire.nc.Write(ack); err != nil {
					return err
				}
			}
		default:
			return fmt.Errorf("packet of type %d", kind)
		}
	}
	return nil
}

// reportedState is an update of about 0.8 KB, as an agent with a dozen sensors
// reports.
func reportedState(n uint64) []byte {
	b := fmt.Appendf(nil, `{"state":{"reported":{"firmware":{"name":"app","version":"1.%d","digest":"%064x"}`, n%10, n)
	for i := range 12 {
		b = fmt.Appendf(b, `,"sensor-%d":{"value":%d,"unit":"degrees celsius","ok":true}`, i, n%1000)
	}
	return append(b, `}}}`...)
}
