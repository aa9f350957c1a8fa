package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	agenthttp "github.com/otad/otad/agent/http"
	"github.com/otad/otad/internal/store/storetest"
	"github.com/otad/otad/internal/testserver"
)

const (
	loadDevices = 200
	// loadWarmUp is until otad has the memory that the load takes: with ten thousand
	// connections it grows for some seconds, of which the kernel has a part.
	loadWarmUp = 10 * time.Second
	loadTime   = 15 * time.Second
	// perAddress keeps enrollment under the server's limit for one address: on
	// loopback there are many.
	perAddress = 50
	// roomForTimes is more updates than a device makes in the measured time.
	roomForTimes = 2048
	// knownDevices are enrolled, with a shadow each.
	knownDevices = 100_000
	// What the project wants: updates a second, and megabytes.
	sqliteTarget   = 8_000
	postgresTarget = 10_000
	residentTarget = 120
)

// loadDevice is one MQTT client that updates its shadow and waits for the
// acknowledgement and the answer before it does so again.
type loadDevice struct {
	id     string
	tls    *tls.Config
	wire   *wire
	report *report
	out    []byte // what goes out next
}

// caller makes one update after the other, of its devices in turn.
type caller struct {
	devices []*loadDevice
	times   []time.Duration // of the updates that ended in the measured time
}

// loadSite is a server with a fleet that it knows, of which a few are connected.
type loadSite struct {
	*site
	database string               // its name in the table
	target   int                  // updates a second
	used     func() time.Duration // what the database's own processes used so far
}

// shadowsSQLite measures durable shadow updates from end to end.
func (r *runner) shadowsSQLite() error {
	s, err := r.newOperatedSite("shadow-sqlite")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := seed("sqlite", "file:"+s.path("server", "otad.db")+"?_pragma=busy_timeout(60000)"); err != nil {
		return err
	}
	return r.shadows(&loadSite{site: s, database: "SQLite", target: sqliteTarget, used: func() time.Duration { return 0 }})
}

// shadowsPostgres is the same with a PostgreSQL of its own on the same machine.
func (r *runner) shadowsPostgres() error {
	server := testserver.Postgres{Durable: true, Socket: true}
	defer server.Stop()
	url, err := server.NewDatabase()
	if err != nil {
		return err
	}
	s, err := r.newOperatedSiteIn("shadow-postgres", []string{"OTAD_DATABASE=" + url})
	if err != nil {
		return err
	}
	defer s.stop()
	// As autovacuum leaves a fleet that came in over the years. It would do so in the
	// middle of the load, and until then plans go by guesses.
	if err := seed("pgx", url, "VACUUM ANALYZE"); err != nil {
		return err
	}
	return r.shadows(&loadSite{site: s, database: "PostgreSQL", target: postgresTarget, used: server.CPU})
}

// seed makes the fleet, behind the server's back.
func seed(driver, url string, after ...string) error {
	db, err := sql.Open(driver, url)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, statement := range append(append(storetest.Seed(knownDevices), passwords()), after...) {
		if _, err := db.Exec(statement); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) shadows(s *loadSite) error {
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
	callers := make([]*caller, loadDevices)
	for i, d := range devices {
		if err := d.connect(r.ctx, broker.Host, hello{id: d.id}); err != nil {
			return fmt.Errorf("connect %s: %w", d.id, err)
		}
		defer d.wire.nc.Close()
		callers[i] = newCaller(d)
	}
	what := fmt.Sprintf("%s: shadow updates, %d devices by MQTT 5 and mTLS, durable, with accepted and delta", s.database, loadDevices)
	each, err := s.load(callers, what, s.target)
	if err != nil {
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
		what:     fmt.Sprintf("  otad resident, %d devices connected of %d known, after that load", loadDevices, knownDevices),
		measured: fmt.Sprintf("%s, at most %s", showMB(m.resident), showMB(m.peak)),
		target:   fmt.Sprintf("<= %d MB", residentTarget), met: m.peak <= residentTarget*1_000_000,
	})
	return s.spread(broker.Host, devices[0].tls, each)
}

func newCaller(devices ...*loadDevice) *caller {
	return &caller{devices: devices, times: make([]time.Duration, 0, roomForTimes)}
}

func (s *site) enrollLoad(i int) (*loadDevice, error) {
	id := fmt.Sprintf("load-%03d", i)
	key, err := newEd25519()
	if err != nil {
		return nil, err
	}
	config, err := s.enrollKey(id, i, key)
	return &loadDevice{id: id, tls: config, report: newReport()}, err
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

// connect has the device desire what it never reports, so that there is a delta with
// each update.
func (d *loadDevice) connect(ctx context.Context, address string, h hello) error {
	nc, err := (&tls.Dialer{Config: d.tls}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	d.wire = newWire(nc)
	if err := d.wire.open(h, 1, d.topic()+"/accepted", d.topic()+"/rejected", d.topic()+"/delta"); err != nil {
		return err
	}
	return d.update([]byte(`{"state":{"desired":{"interval":60}}}`))
}

// load lets every caller update as fast as it is answered, and returns how many there
// were in a second.
func (s *loadSite) load(callers []*caller, what string, target int) (perSecond float64, err error) {
	ctx, stop := context.WithCancel(s.r.ctx)
	defer stop()
	var g errgroup.Group
	var measured window
	measured.from = time.Now().Add(loadWarmUp)
	measured.to = measured.from.Add(loadTime)
	for _, c := range callers {
		g.Go(func() error {
			err := c.updates(ctx, measured)
			if err != nil {
				stop() // and nobody waits for the rest
			}
			return err
		})
	}
	used, err := s.watch(ctx, measured)
	if err = errors.Join(g.Wait(), err); err != nil {
		return 0, err
	}
	var times []time.Duration
	for _, c := range callers {
		times = append(times, c.times...)
	}
	slices.Sort(times)
	n := float64(len(times))
	perSecond = n / loadTime.Seconds()
	s.r.table.add(figure{
		what: what,
		measured: fmt.Sprintf("%.0f/s, p50 %d ms, p99 %d ms", perSecond,
			times[len(times)/2].Milliseconds(), times[len(times)*99/100].Milliseconds()),
		target: fmt.Sprintf(">= %d/s", target), met: perSecond >= float64(target),
	})
	s.r.table.add(figure{
		what: "  processor time of that, for 1,000 updates",
		measured: fmt.Sprintf("otad %.3f s, the database's own process %.3f s, the load generator %.3f s", used.server.Seconds()*1000/n,
			used.database.Seconds()*1000/n, used.generator.Seconds()*1000/n),
	})
	return perSecond, nil
}

type window struct{ from, to time.Time }

// processors is what was used within a window.
type processors struct{ server, database, generator time.Duration }

// watch reads the processor times at both ends of the window.
func (s *loadSite) watch(ctx context.Context, w window) (used processors, err error) {
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
		at[i].database = s.used()
		if err := errors.Join(errServer, errOwn); err != nil {
			return used, err
		}
	}
	return processors{at[1].server - at[0].server, at[1].database - at[0].database, at[1].generator - at[0].generator}, nil
}

// updates goes on until the window is over and counts those that ended in it.
func (c *caller) updates(ctx context.Context, w window) error {
	for n := 1; ctx.Err() == nil; n++ {
		began := time.Now()
		if began.After(w.to) {
			break
		}
		d := c.devices[n%len(c.devices)]
		if err := d.update(d.report.state(uint64(n))); err != nil {
			return fmt.Errorf("update of %s: %w", d.id, err)
		}
		if now := time.Now(); now.After(w.from) && !now.After(w.to) {
			c.times = append(c.times, now.Sub(began))
		}
	}
	for _, d := range c.devices {
		if err := d.send(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// update publishes one and waits until all has come that belongs to it.
func (d *loadDevice) update(state []byte) error {
	d.out = publishPacket(d.out, d.topic(), 1, state)
	return d.answered()
}

// send writes what is to go out.
func (d *loadDevice) send() error {
	_, err := d.wire.nc.Write(d.out)
	d.out = d.out[:0]
	return err
}

// answered waits for the PUBACK, for accepted and for the delta, in whichever
// order. It acknowledges what has come before it waits for the rest; the
// acknowledgement of the last goes out with the next update, which follows at once.
func (d *loadDevice) answered() error {
	for acked, accepted, delta := false, false, false; !acked || !accepted || !delta; {
		if len(d.out) > 0 && d.wire.in.Buffered() == 0 {
			if err := d.send(); err != nil {
				return err
			}
		}
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
			switch {
			case bytes.HasSuffix(topic, []byte("/accepted")):
				accepted = true
			case bytes.HasSuffix(topic, []byte("/delta")):
				delta = true
			default:
				return fmt.Errorf("answer on %s: %s", topic, body)
			}
			if flags&0b0110 != 0 {
				d.out = binary.BigEndian.AppendUint16(append(d.out, typePuback<<4, 2), id)
			}
		default:
			return fmt.Errorf("packet of type %d", kind)
		}
	}
	return nil
}

// report is an update of about 0.8 KB, as an agent with a dozen sensors reports: they
// change, and its firmware does not. It is written once and then only its values, for
// the generator shares the processors.
type report struct {
	text   []byte
	values []int // where the three digits of each value stand
}

func newReport() *report {
	r := &report{text: fmt.Appendf(nil, `{"state":{"reported":{"firmware":{"name":"app","version":"1.7","digest":"%064x"}`, 7)}
	for i := range 12 {
		r.text = fmt.Appendf(r.text, `,"sensor-%d":{"value":`, i)
		r.values = append(r.values, len(r.text))
		r.text = append(r.text, `100,"unit":"degrees celsius","ok":true}`...)
	}
	r.text = append(r.text, `}}}`...)
	return r
}

// state is valid until the next call.
func (r *report) state(n uint64) []byte {
	var digits [3]byte
	strconv.AppendUint(digits[:0], 100+n%900, 10)
	for _, at := range r.values {
		copy(r.text[at:], digits[:])
	}
	return r.text
}
