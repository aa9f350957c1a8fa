package external

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/testserver"
)

const patience = 20 * time.Second

func take[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("waited in vain")
		panic("unreachable")
	}
}

func device(t *testing.T, srv *testserver.Broker, pki *testserver.PKI, cn string) *paho.Client {
	t.Helper()
	nc, err := tls.Dial("tcp", srv.DeviceAddr, pki.ClientTLS(cn))
	if err != nil {
		t.Fatal(err)
	}
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(nc)})
	limit := uint16(20)
	cp := &paho.Connect{ClientID: cn, KeepAlive: 30, CleanStart: true, Properties: &paho.ConnectProperties{ReceiveMaximum: &limit}}
	if _, err := c.Connect(t.Context(), cp); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) })
	return c
}

func send(t *testing.T, c *paho.Client, topic, payload string) {
	t.Helper()
	if _, err := c.Publish(t.Context(), &paho.Publish{Topic: topic, Payload: []byte(payload), QoS: 1}); err != nil {
		t.Fatal(err)
	}
}

// The broker has its PUBACK after the handler is done, and not before.
func TestAckToTheBrokerFollowsTheHandler(t *testing.T) {
	pki := testserver.NewPKI(t)
	srv := testserver.Mosquitto(t, pki)
	b := open(t, srv, func(c *Config) { c.ClientID = "otad-one" })
	defer b.Close()
	entered, release := make(chan struct{}), make(chan struct{})
	if err := b.Subscribe(t.Context(), []string{"ota/+/x"}, func(context.Context, mqtt.Message) error {
		close(entered)
		<-release
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	send(t, device(t, srv, pki, "dev"), "ota/dev/x", "1")
	take(t, entered)
	const ack = "Received PUBACK from otad-one"
	for end := time.Now().Add(10 * ackInterval); time.Now().Before(end); { // round trips, for a wrong one to come
		if err := b.Publish(t.Context(), mqtt.Message{Topic: "ota/other/y", QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(srv.Log(), ack) {
		t.Error("acknowledged while the handler runs")
	}
	close(release)
	if err := b.Close(); err != nil { // sends what is due
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !strings.Contains(srv.Log(), ack); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("never acknowledged")
		}
	}
}

// A message whose handler never finished goes to the replica's successor.
func TestUnacknowledgedSurvivesTheReplica(t *testing.T) {
	pki := testserver.NewPKI(t)
	srv := testserver.Mosquitto(t, pki)
	group := rand.Text()
	same := func(c *Config) { c.ClientID, c.Group = "otad-one", group }
	first := open(t, srv, same)
	failed := make(chan struct{}, 100)
	if err := first.Subscribe(t.Context(), []string{"ota/+/x"}, func(context.Context, mqtt.Message) error {
		failed <- struct{}{}
		return errors.New("database is away")
	}); err != nil {
		t.Fatal(err)
	}
	dev := device(t, srv, pki, "dev")
	send(t, dev, "ota/dev/x", "1")
	take(t, failed)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	send(t, dev, "ota/dev/x", "2") // while no replica runs
	second := open(t, srv, same)
	defer second.Close()
	got := make(chan string, 10)
	if err := second.Subscribe(t.Context(), []string{"ota/+/x"}, func(_ context.Context, m mqtt.Message) error {
		got <- string(m.Payload)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1", "2"} {
		if s := take(t, got); s != want {
			t.Errorf("got %q, want %q", s, want)
		}
	}
}

func TestReplicasShareTheMessages(t *testing.T) {
	const messages = 40
	pki := testserver.NewPKI(t)
	srv := testserver.Mosquitto(t, pki)
	group := rand.Text()
	var mu sync.Mutex
	seen, by := map[string]int{}, [2]int{}
	all := make(chan struct{})
	for i := range 2 {
		b := open(t, srv, func(c *Config) { c.Group = group })
		defer b.Close()
		if err := b.Subscribe(t.Context(), []string{"ota/+/x", "ota/+/#"}, func(_ context.Context, m mqtt.Message) error {
			mu.Lock()
			defer mu.Unlock()
			seen[string(m.Payload)]++
			by[i]++
			if by[0]+by[1] == messages {
				close(all)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	dev := device(t, srv, pki, "dev")
	for n := range messages {
		send(t, dev, "ota/dev/x", fmt.Sprint(n))
	}
	take(t, all)
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != messages || by[0] == 0 || by[1] == 0 {
		t.Errorf("%d of %d messages, %v by replica", len(seen), messages, by)
	}
}

// A device that joins the group of another installation, or guesses a name,
// takes nothing away from otad.
func TestGroupIsNotShared(t *testing.T) {
	pki := testserver.NewPKI(t)
	srv := testserver.Mosquitto(t, pki)
	b := open(t, srv, func(c *Config) { c.Group = rand.Text() })
	defer b.Close()
	got := make(chan string, 100)
	if err := b.Subscribe(t.Context(), []string{"ota/+/x"}, func(_ context.Context, m mqtt.Message) error {
		got <- string(m.Payload)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	mallory := device(t, srv, pki, "mallory")
	for _, group := range []string{"otad", "g", "otad-server"} {
		_, _ = mallory.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "$share/" + group + "/ota/+/x", QoS: 1}}})
	}
	dev := device(t, srv, pki, "dev")
	for n := range 20 {
		send(t, dev, "ota/dev/x", fmt.Sprint(n))
		if s := take(t, got); s != fmt.Sprint(n) {
			t.Errorf("got %s, want %d", s, n)
		}
	}
}

func TestPublishWithoutBrokerEndsWithTheContext(t *testing.T) {
	pki := testserver.NewPKI(t)
	srv := testserver.Mosquitto(t, pki)
	srv.Kill()
	b := open(t, srv, nil)
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Publish(ctx, mqtt.Message{Topic: "ota/dev/x", QoS: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("publish: %v", err)
	}
	if err := b.Subscribe(ctx, []string{"ota/#"}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("subscribe: %v", err)
	}
	waiting := make(chan error, 1)
	go func() { waiting <- b.Publish(context.Background(), mqtt.Message{Topic: "ota/dev/x", QoS: 1}) }()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := take(t, waiting); !errors.Is(err, ErrClosed) {
		t.Errorf("publish during Close: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{URL: "mqtts://127.0.0.1:1", TLS: &tls.Config{MinVersion: tls.VersionTLS12}, ClientID: "otad", Group: strings.Repeat("g", MinGroupBytes)}
	for want, change := range map[string]func(*Config){
		"use mqtts://host:port":      func(c *Config) { c.URL = "http://host" },
		"without TLS":                func(c *Config) { c.TLS = nil },
		"use Username and Password":  func(c *Config) { c.URL = "mqtts://u:p@host:1" },
		"no ClientID":                func(c *Config) { c.ClientID = "" },
		"15 bytes: use 16 or more":   func(c *Config) { c.Group = c.Group[1:] },
		"random letters and digits,": func(c *Config) { c.Group += "/x" },
	} {
		c := good
		change(&c)
		if b, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
			if b != nil {
				_ = b.Close()
			}
		}
	}
	b, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// The rules that otad writes give each device its part of the free-form topics
// and nothing of another's.
func TestFreeFormTopicsAtMosquitto(t *testing.T) {
	pki := testserver.NewPKI(t)
	srv := testserver.Mosquitto(t, pki)
	clients := map[string]*paho.Client{}
	heard := map[string]chan string{}
	for _, id := range []string{"one", "two"} {
		c, topics := device(t, srv, pki, id), make(chan string, 10)
		c.AddOnPublishReceived(func(p paho.PublishReceived) (bool, error) {
			topics <- p.Packet.Topic
			return true, nil
		})
		for _, filter := range []string{"sensors/" + id + "/command", "sensors/one/command", "sensors/+/command", "sensors/#", "sensors/one/#"} {
			_, _ = c.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}}) // refused, or without effect
		}
		clients[id], heard[id] = c, topics
	}
	for topic, mine := range map[string]bool{
		"sensors/one/a/b": true, "sensors/one/a": true, "sensors/two/a": false, "sensors/two/command": false, "sensors": false, "other/one/x": false,
	} {
		if _, err := clients["one"].Publish(t.Context(), &paho.Publish{Topic: topic, Payload: []byte("x"), QoS: 1}); (err == nil) != mine {
			t.Errorf("publish to %s: %v", topic, err)
		}
	}
	for _, id := range []string{"one", "two"} { // the second comes after all that two should not have heard
		send(t, clients[id], "sensors/"+id+"/command", "blink")
		if topic := take(t, heard[id]); topic != "sensors/"+id+"/command" {
			t.Errorf("%s heard %s", id, topic)
		}
	}
}

// Disconnect ends a session that is there, and nobody else's; the next session
// begins with nothing.
func TestDisconnectTakesTheDevicesPlace(t *testing.T) {
	pki := testserver.NewPKI(t)
	srv := testserver.Mosquitto(t, pki)
	b := open(t, srv, func(c *Config) {
		c.DeviceURL = "mqtts://" + srv.DeviceAddr
		c.StandIn = func(id string) (*tls.Config, error) { return pki.ClientTLS(id), nil }
	})
	defer b.Close()
	gone, stays := device(t, srv, pki, "gone"), device(t, srv, pki, "stays")
	b.Evict(mqtt.Eviction{DeviceID: "gone", Reason: "revoked"})
	b.Evict(mqtt.Eviction{DeviceID: "gone", Reason: "revoked"}) // again, while it is under way
	take(t, gone.Done())
	send(t, stays, "ota/stays/x", "1")
	select {
	case <-stays.Done():
		t.Error("another device was disconnected")
	default:
	}
	back := device(t, srv, pki, "gone") // before the broker knows: it is ended again
	take(t, back.Done())
}

// Without a stand-in nothing happens, and Close ends what is under way.
func TestDisconnectEndsWithTheBroker(t *testing.T) {
	pki := testserver.NewPKI(t)
	srv := testserver.Mosquitto(t, pki)
	without := open(t, srv, nil)
	defer without.Close()
	dev := device(t, srv, pki, "dev")
	without.Evict(mqtt.Eviction{DeviceID: "dev", Reason: "revoked"})
	send(t, dev, "ota/dev/x", "1")
	b := open(t, srv, func(c *Config) {
		c.DeviceURL = "mqtts://" + srv.DeviceAddr
		c.StandIn = func(string) (*tls.Config, error) { return nil, errors.New("no key") }
	})
	b.Evict(mqtt.Eviction{DeviceID: "dev", Reason: "revoked"})
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	b.Evict(mqtt.Eviction{DeviceID: "dev", Reason: "revoked"}) // after it: nothing
	send(t, dev, "ota/dev/x", "2")
}
