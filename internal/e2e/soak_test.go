package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/otad/otad/internal/testserver"
)

// soakTime is how long the tests that can go on for ever do; by default they
// make soakRounds.
var soakTime, _ = time.ParseDuration(os.Getenv("SOAKTIME")) // a wrong one is none

const soakRounds = 2

// TestDeviceTrafficOutlivesKills kills otad at random moments while devices
// update their shadows over MQTT with TLS, on both databases: what a PUBACK was
// sent for is in the shadow afterwards, every time, and a device that was away hears
// what was desired of it. SOAKSEED repeats the moments of a run, SOAKTIME makes it long.
func TestDeviceTrafficOutlivesKills(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		killAgainAndAgain(t, nil)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		var pg testserver.Postgres
		t.Cleanup(pg.Stop)
		killAgainAndAgain(t, []string{"OTAD_DATABASE=" + pg.Database(t)})
	})
}

// beat is one device that counts in its shadow.
type beat struct {
	id    string
	conf  *tls.Config
	sent  int // the last number that was sent
	acked int // the last that was acknowledged
}

func killAgainAndAgain(t *testing.T, env []string) {
	const devices = 6
	seed, err := strconv.ParseUint(os.Getenv("SOAKSEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("SOAKSEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t, env)
	beats := make([]*beat, devices)
	for i := range beats {
		beats[i] = &beat{id: fmt.Sprint("beat-", i)}
		s.enroll(beats[i].id)
		beats[i].conf = s.deviceTLS(beats[i].id)
	}
	s.enroll("absent")
	away := absent{t: t, s: s, conf: s.deviceTLS("absent")}
	away.visit(0)
	began, total := time.Now(), 0
	for round := 1; round <= soakRounds || time.Since(began) < soakTime; round++ {
		var load sync.WaitGroup
		var acked atomic.Int64
		enough, after := make(chan struct{}), int64(1+random.IntN(400))
		for _, b := range beats {
			load.Go(func() {
				b.run(t, s, func() {
					if acked.Add(1) == after {
						close(enough)
					}
				})
			})
		}
		select {
		case <-enough:
		case <-time.After(patience):
			t.Fatalf("round %d: only %d of %d updates acknowledged", round, acked.Load(), after)
		}
		s.must("shadow", "set", "absent", fmt.Sprintf("n=%d", round))
		s.server.kill()
		load.Wait()
		s.startServer()
		for _, b := range beats {
			b.settle(t, s, round)
		}
		away.visit(round)
		total += int(acked.Load())
		if t.Failed() {
			t.Fatalf("round %d of SOAKSEED=%d lost what it had acknowledged", round, seed)
		}
		if soakTime > 0 {
			t.Logf("round %d: killed after %d acknowledgements", round, after)
		}
	}
	t.Logf("%d acknowledged updates, none lost", total)
	s.check()
}

// run updates the shadow, one after the other, until the connection ends.
func (b *beat) run(t *testing.T, s *site, acked func()) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := (&tls.Dialer{Config: b.conf}).DialContext(ctx, "tcp", s.ports[2])
	if err != nil {
		return // killed before this one had a turn
	}
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(conn)})
	window := uint16(20)
	if _, err := c.Connect(ctx, &paho.Connect{ClientID: b.id, CleanStart: true, KeepAlive: 30, Properties: &paho.ConnectProperties{ReceiveMaximum: &window}}); err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	for ctx.Err() == nil {
		b.sent++
		_, err := c.Publish(ctx, &paho.Publish{
			Topic: "$aws/things/" + b.id + "/shadow/update", QoS: 1, Payload: fmt.Appendf(nil, `{"state":{"reported":{"n":%d}}}`, b.sent),
		})
		if err != nil {
			return
		}
		b.acked = b.sent
		acked()
	}
	t.Errorf("%s: the server went on", b.id)
}

// settle compares what is stored with what was acknowledged: one more may have
// become durable without its answer arriving.
func (b *beat) settle(t *testing.T, s *site, round int) {
	t.Helper()
	if b.acked == 0 {
		return
	}
	var doc struct {
		State struct{ Reported struct{ N int } }
	}
	s.get(&doc, "shadow", "get", b.id)
	got := doc.State.Reported.N
	if got < b.acked || got > b.sent {
		t.Errorf("round %d: %s has %d, acknowledged was %d, sent %d", round, b.id, got, b.acked, b.sent)
	}
}

// absent is a device with a session that lasts, which comes and goes, and asks for
// nothing.
type absent struct {
	t    *testing.T
	s    *site
	conf *tls.Config
}

// visit connects until the delta comes by itself that desires n, unless that is 0.
func (a absent) visit(n int) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := (&tls.Dialer{Config: a.conf}).DialContext(ctx, "tcp", a.s.ports[2])
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	heard := make(chan string, 100)
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(conn), OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(p paho.PublishReceived) (bool, error) { heard <- string(p.Packet.Payload); return true, nil },
	}})
	day := uint32(86400)
	if _, err := c.Connect(ctx, &paho.Connect{ClientID: "absent", KeepAlive: 30, Properties: &paho.ConnectProperties{SessionExpiryInterval: &day}}); err != nil {
		a.t.Fatal(err)
	}
	if n == 0 {
		if _, err := c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "$aws/things/absent/shadow/update/delta", QoS: 1}}}); err != nil {
			a.t.Fatal(err)
		}
	}
	for want := fmt.Sprintf(`"state":{"n":%d}`, n); n > 0; {
		select {
		case delta := <-heard:
			if strings.Contains(delta, want) {
				n = 0
			}
		case <-ctx.Done():
			a.t.Errorf("round %d: the delta did not come by itself", n)
			return
		}
	}
	if err := c.Disconnect(&paho.Disconnect{}); err != nil {
		a.t.Error(err)
	}
}

// deviceTLS is the configuration of an enrolled device.
func (s *site) deviceTLS(id string) *tls.Config {
	s.t.Helper()
	pair, err := tls.LoadX509KeyPair(s.path(id, "device.crt"), s.path(id, "device.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	ca, err := os.ReadFile(s.path(id, "ca.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair}, ServerName: "localhost"}
}
