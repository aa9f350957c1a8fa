package mqtt_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/broker"
	"github.com/otad/otad/internal/store/memstore"
)

// lines is a log that goroutines write.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestWillsAtTheStopAreRequestsLikeOthers: a shadow is updated by the will that a
// stopping server publishes, who is away gets what comes of it from the next one, and
// nobody is worried.
func TestWillsAtTheStopAreRequestsLikeOthers(t *testing.T) {
	f := newFixture(t)
	var log lines
	logger := slog.New(slog.NewTextHandler(&log, nil))
	clock := func() time.Time { return now }
	start := func() *broker.Broker {
		b, err := broker.New(t.Context(), broker.Config{
			PlainAddr: "127.0.0.1:0", Store: f.store.(*memstore.Store), Logger: logger,
			Authenticate: func(_ context.Context, c broker.Credentials) (mqtt.Identity, error) {
				name, _, companion := strings.Cut(c.ClientID, "/")
				return mqtt.Identity{Name: name, Device: !companion, Access: mqtt.DeviceAccess(name, nil)}, nil
			},
		})
		f.ok(err)
		t.Cleanup(func() { f.ok(b.Close()) })
		s := fleet.New(fleet.Config{Store: f.store, Publisher: &mqtt.Publisher{Broker: b, Now: clock}, Now: clock, Log: logger})
		f.ok(mqtt.NewEndpoint(b, s, logger, clock).Serve(context.Background())) // until Close
		return b
	}
	dial := func(b *broker.Broker, id string, will *paho.WillMessage) *pahoCaller {
		nc, err := net.Dial("tcp", b.PlainAddr())
		f.ok(err)
		t.Cleanup(func() { _ = nc.Close() })
		c := &pahoCaller{t: t, got: make(chan said, 100)}
		c.cli = paho.NewClient(paho.ClientConfig{
			Conn: packets.NewThreadSafeConn(nc), PacketTimeout: patience,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
				c.got <- saidOf(t, p.Packet.Topic, p.Packet.Payload)
				return true, nil
			}},
		})
		hour := uint32(3600)
		_, err = c.cli.Connect(t.Context(), &paho.Connect{ClientID: id, KeepAlive: 30, WillMessage: will, Properties: &paho.ConnectProperties{SessionExpiryInterval: &hour}})
		f.ok(err)
		return c
	}
	const prefix = "$aws/things/gw-1/shadow/update/"
	b := start()
	away, there := dial(b, "gw-1/1", nil), dial(b, "gw-1/2", nil)
	away.subscribe(prefix + "accepted")
	there.subscribe(prefix + "accepted")
	f.ok(away.cli.Disconnect(&paho.Disconnect{}))
	f.ok(newWilful(dial, b, "gw-1", `{"state":{"reported":{"online":false}}}`))
	f.ok(newWilful(dial, b, "gw-2", `{"state":5}`)) // is rejected, also then
	f.ok(b.Close())
	doc, err := f.store.Shadow(t.Context(), "gw-1", "")
	f.ok(err)
	if got := doc.Reported.String(); got != `{"online":false}` {
		t.Errorf("reported %s", got)
	}
	if s := log.String(); strings.Contains(s, "level=WARN") || strings.Contains(s, "level=ERROR") {
		t.Errorf("the log:\n%s", s)
	}
	b = start()
	for _, id := range []string{"gw-1/1", "gw-1/2"} {
		c := dial(b, id, nil)
		if m := c.next(); m.topic != prefix+"accepted" {
			t.Errorf("%s: %+v", id, m)
		}
		f.ok(c.cli.Disconnect(&paho.Disconnect{}))
	}
}

// newWilful connects a device with an update of its shadow as its will.
func newWilful(dial func(*broker.Broker, string, *paho.WillMessage) *pahoCaller, b *broker.Broker, id, payload string) error {
	c := dial(b, id, &paho.WillMessage{Topic: "$aws/things/" + id + "/shadow/update", QoS: 1, Payload: []byte(payload)})
	_, err := c.cli.Subscribe(c.t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "$aws/things/" + id + "/shadow/update/rejected", QoS: 1}}})
	return err
}
