package mqtt_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/broker"
)

const patience = 20 * time.Second

// said is a message as a device got it.
type said struct {
	topic string
	body  map[string]any
}

// caller is a device with a connection of its own.
type caller interface {
	subscribe(filters ...string)
	publish(topic, payload string) // QoS 1, acknowledged when it returns
	next() said
}

// wholePath runs an endpoint on the embedded broker over the fixture's store,
// with a client of MQTT 5 for gw-1 and one of 3.1.1 for gw-2.
func (f *fixture) wholePath() (v5, v3 caller) {
	t := f.t
	b, err := broker.New(t.Context(), broker.Config{
		PlainAddr: "127.0.0.1:0",
		Authenticate: func(_ context.Context, c broker.Credentials) (mqtt.Identity, error) {
			return mqtt.Identity{Name: c.ClientID, Device: true, Access: mqtt.DeviceAccess(c.ClientID, nil)}, nil
		},
	})
	f.ok(err)
	t.Cleanup(func() { f.ok(b.Close()) })
	clock := func() time.Time { return now }
	log := slog.New(slog.DiscardHandler)
	s := fleet.New(fleet.Config{Store: f.store, Publisher: &mqtt.Publisher{Broker: b, Now: clock}, Now: clock, Log: log})
	f.ok(mqtt.NewEndpoint(b, s, log, clock).Serve(context.Background())) // until Close
	dial := func() net.Conn {
		nc, err := net.Dial("tcp", b.PlainAddr())
		f.ok(err)
		t.Cleanup(func() { _ = nc.Close() })
		return nc
	}
	return newPahoCaller(t, dial(), "gw-1"), newOldCaller(t, dial(), "gw-2")
}

type pahoCaller struct {
	t   *testing.T
	cli *paho.Client
	got chan said
}

func newPahoCaller(t *testing.T, nc net.Conn, id string) *pahoCaller {
	c := &pahoCaller{t: t, got: make(chan said, 100)}
	c.cli = paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(nc), PacketTimeout: patience,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			c.got <- saidOf(t, p.Packet.Topic, p.Packet.Payload)
			return true, nil
		}},
	})
	if _, err := c.cli.Connect(t.Context(), &paho.Connect{ClientID: id, KeepAlive: 30, CleanStart: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.cli.Disconnect(&paho.Disconnect{}) })
	return c
}

func (c *pahoCaller) subscribe(filters ...string) {
	s := &paho.Subscribe{}
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1})
	}
	if _, err := c.cli.Subscribe(c.t.Context(), s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *pahoCaller) publish(topic, payload string) {
	if _, err := c.cli.Publish(c.t.Context(), &paho.Publish{Topic: topic, Payload: []byte(payload), QoS: 1}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *pahoCaller) next() said { return await(c.t, c.got) }

func await(t *testing.T, ch <-chan said) said {
	t.Helper()
	select {
	case m := <-ch:
		return m
	case <-time.After(patience):
		t.Fatal("waited in vain")
		return said{}
	}
}

func saidOf(t *testing.T, topic string, payload []byte) said {
	m := said{topic: topic}
	if err := json.Unmarshal(payload, &m.body); err != nil {
		t.Errorf("%s: %v in %q", topic, err, payload)
	}
	return m
}

// oldCaller speaks MQTT 3.1.1 in bytes.
type oldCaller struct {
	t    *testing.T
	nc   net.Conn
	got  chan said
	acks chan byte // the type of what acknowledged
}

func newOldCaller(t *testing.T, nc net.Conn, id string) *oldCaller {
	c := &oldCaller{t: t, nc: nc, got: make(chan said, 100), acks: make(chan byte, 10)}
	go c.read(bufio.NewReader(nc))
	c.send(0x10, slices.Concat(text("MQTT"), []byte{4, 2, 0, 30}, text(id)))
	c.acked(2)
	return c
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func (c *oldCaller) send(head byte, body []byte) {
	if _, err := c.nc.Write(slices.Concat([]byte{head}, binary.AppendUvarint(nil, uint64(len(body))), body)); err != nil {
		c.t.Error(err)
	}
}

// read takes what comes until the connection ends.
func (c *oldCaller) read(r *bufio.Reader) {
	for {
		head, err := r.ReadByte()
		if err != nil {
			return
		}
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		if head>>4 != 3 {
			c.acks <- head >> 4
			continue
		}
		topic, rest := string(body[2:2+binary.BigEndian.Uint16(body)]), body[2+binary.BigEndian.Uint16(body):]
		if head>>1&3 == 1 {
			c.send(0x40, rest[:2])
			rest = rest[2:]
		}
		c.got <- saidOf(c.t, topic, rest)
	}
}

func (c *oldCaller) acked(kind byte) {
	c.t.Helper()
	select {
	case got := <-c.acks:
		if got != kind {
			c.t.Fatalf("acknowledged by packet %d, want %d", got, kind)
		}
	case <-time.After(patience):
		c.t.Fatal("not acknowledged")
	}
}

func (c *oldCaller) subscribe(filters ...string) {
	body := []byte{0, 1}
	for _, f := range filters {
		body = slices.Concat(body, text(f), []byte{1})
	}
	c.send(0x82, body)
	c.acked(9)
}

func (c *oldCaller) publish(topic, payload string) {
	c.send(0x32, slices.Concat(text(topic), []byte{0, 2}, []byte(payload)))
	c.acked(4)
}

func (c *oldCaller) next() said { return await(c.t, c.got) }

// One path from the device's socket to the store and back, for both versions of
// MQTT: shadow with conflict, jobs with unasked answers and pushes.
func TestWholePath(t *testing.T) {
	f := newFixture(t)
	f.more("r-2", 0, 0)
	v5, v3 := f.wholePath()
	for id, c := range map[string]caller{"gw-1": v5, "gw-2": v3} {
		t.Run(id, func(t *testing.T) {
			p := "$aws/things/" + id + "/"
			expect := func(topic string) map[string]any {
				t.Helper()
				m := c.next()
				if m.topic != p+topic {
					t.Fatalf("got %s %v, want %s", m.topic, m.body, topic)
				}
				return m.body
			}
			c.subscribe(p+"shadow/update/accepted", p+"shadow/update/rejected", p+"shadow/update/delta")
			c.publish(p+"shadow/update", `{"state":{"desired":{"a":1},"reported":{"a":2}},"clientToken":"x"}`)
			if got := expect("shadow/update/accepted"); got["clientToken"] != "x" || got["version"] != 1.0 {
				t.Errorf("%v", got)
			}
			if got := expect("shadow/update/delta"); got["state"].(map[string]any)["a"] != 1.0 { // documents has no taker
				t.Errorf("%v", got)
			}
			c.publish(p+"shadow/update", `{"state":{"reported":{"a":1}},"version":7}`)
			if got := expect("shadow/update/rejected"); got["code"] != 409.0 {
				t.Errorf("%v", got)
			}
			c.subscribe(p + "shadow/update/documents")
			c.publish(p+"shadow/update", `{"state":{"reported":{"a":1}},"version":1}`)
			expect("shadow/update/accepted")
			if got := expect("shadow/update/documents"); got["previous"].(map[string]any)["version"] != 1.0 || got["current"].(map[string]any)["version"] != 2.0 {
				t.Errorf("%v", got)
			}
			c.publish(p+"jobs/get", `{"clientToken":"j"}`) // answered without a subscription
			if got := expect("jobs/get/accepted"); got["clientToken"] != "j" || (len(got["queuedJobs"].([]any)) == 2) != (id == "gw-1") {
				t.Errorf("%v", got)
			}
			c.publish(p+"jobs/r-9/update", `{"status":"FAILED"}`)
			if got := expect("jobs/r-9/update/rejected"); got["code"] != "ResourceNotFound" {
				t.Errorf("%v", got)
			}
		})
	}
	v5.subscribe(jobs+"notify", jobs+"notify-next")
	v5.publish(jobs+"start-next", `{"stepTimeoutInMinutes":5}`)
	if m := v5.next(); m.topic != jobs+"start-next/accepted" || m.body["execution"].(map[string]any)["approximateSecondsBeforeTimedOut"] != 300.0 {
		t.Fatalf("%+v", m)
	}
	v5.publish(jobs+"r-1/update", `{"status":"SUCCEEDED","expectedVersion":"2"}`)
	var topics []string
	for range 3 {
		m := v5.next()
		topics = append(topics, strings.TrimPrefix(m.topic, jobs))
		if e, ok := m.body["execution"].(map[string]any); ok && e["jobId"] != "r-2" {
			t.Errorf("next is %v", e)
		}
	}
	if got := strings.Join(topics, " "); got != "notify notify-next r-1/update/accepted" {
		t.Errorf("got %s", got)
	}
}
