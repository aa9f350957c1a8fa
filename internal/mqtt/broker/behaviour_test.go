package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/testserver"
)

var everything = []string{"$aws/things/#", "ota/#"}

func start(t *testing.T, pki *testserver.PKI, h mqtt.Handler, change func(*Config)) *Broker {
	t.Helper()
	b := open(t, pki, change)
	t.Cleanup(func() { _ = b.Close() })
	if h != nil {
		if err := b.Subscribe(context.Background(), everything, h); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

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

// MQTT 3.1.1 has no negative PUBACK: the connection must end, without an
// acknowledgement, and what was sent behind the failed message must not
// overtake it.
func TestHandlerErrorEndsAnOldClient(t *testing.T) {
	pki := testserver.NewPKI(t)
	got := make(chan string, 10)
	b := start(t, pki, func(_ context.Context, m mqtt.Message) error {
		got <- string(m.Payload)
		if string(m.Payload) == "bad" {
			return errors.New("database is away")
		}
		return nil
	}, nil)
	w := dialTLS(t, b, pki, "dev")
	if code, _ := w.connect(hello{id: "dev", keepAlive: 30, willTopic: "ota/dev/presence"}); code != 0 {
		t.Fatalf("connect: %d", code)
	}
	w.publish("ota/dev/x", 1, qos1, "good")
	if ack := w.expect(puback); !bytes.Equal(ack, []byte{0, 1}) {
		t.Errorf("acknowledged % x", ack)
	}
	body := func(id uint16, payload string) []byte {
		return framed(0x30|qos1, join(str("ota/dev/x"), binary.BigEndian.AppendUint16(nil, id), []byte(payload)))
	}
	w.send(join(body(2, "bad"), body(3, "behind"), body(4, "behind")))
	if kind, rest := w.read(); kind != 0 {
		t.Errorf("after the error came packet %d: % x", kind, rest)
	}
	for _, want := range []string{"good", "bad", "will"} {
		if s := take(t, got); s != want {
			t.Errorf("the handler got %q, want %q", s, want)
		}
	}
}

func TestHandlerErrorIsANegativeAck(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, func(context.Context, mqtt.Message) error { return errors.New("secret detail") }, nil)
	w := dialTLS(t, b, pki, "dev")
	w.v5 = true
	w.mustConnect("dev")
	w.publish("ota/dev/x", 7, qos1, "1")
	if ack := w.expect(puback); ack[1] != 7 || ack[2] != 0x83 || bytes.Contains(ack, []byte("secret")) {
		t.Errorf("PUBACK % x", ack)
	}
}

func TestBeforeSubscribeAndAfterItsEnd(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, nil, nil)
	w := dialTLS(t, b, pki, "dev")
	w.v5 = true
	w.mustConnect("dev")
	wantAck := func(code byte) {
		t.Helper()
		w.publish("ota/dev/x", 1, qos1, "1")
		if ack := w.expect(puback); code != 0 && ack[2] != code || code == 0 && len(ack) > 2 && ack[2] > 0x10 {
			t.Errorf("PUBACK % x, want code 0x%02x", ack, code)
		}
	}
	wantAck(0x89)
	ctx, cancel := context.WithCancel(t.Context())
	ok := func(context.Context, mqtt.Message) error { return nil }
	for _, bad := range []string{"", "a/#/b", "$share/g/a"} {
		if err := b.Subscribe(ctx, []string{bad}, ok); err == nil {
			t.Errorf("filter %q was accepted", bad)
		}
	}
	if err := b.Subscribe(ctx, everything, ok); err != nil {
		t.Fatal(err)
	}
	wantAck(0)
	if err := b.Subscribe(ctx, everything, ok); !errors.Is(err, ErrSubscribed) {
		t.Errorf("second Subscribe: %v", err)
	}
	cancel()
	wantAck(0x89)
}

func TestRefusedConnectSaysWhy(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, func(_ context.Context, m mqtt.Message) error {
		t.Errorf("the handler got %q", m.Topic)
		return nil
	}, func(c *Config) {
		c.Authenticate = func(ctx context.Context, cr Credentials) (mqtt.Identity, error) {
			switch cr.Certificates[0].Subject.CommonName {
			case "revoked":
				return mqtt.Identity{}, errors.New("on the deny list since yesterday")
			case "unlucky":
				return mqtt.Identity{}, fmt.Errorf("%w: the deny list is in a database that is away", ErrUnavailable)
			}
			return byCertificate(ctx, cr)
		}
	})
	for _, c := range []struct {
		name, cn string
		hello    hello
		v3, v5   byte
		says     string // to a client of MQTT 5, nothing else
	}{
		{"revoked", "revoked", hello{id: "revoked"}, 5, 0x87, ""},
		{"nobody knows now", "unlucky", hello{id: "unlucky"}, 3, 0x88, ""},
		{"other client id", "dev", hello{id: "victim"}, 2, 0x85, "claims the client id"},
		{"name with +", "+", hello{id: "+"}, 5, 0x87, ""},
		{"name with #", "#", hello{id: "#"}, 5, 0x87, ""},
		{"name with /", "dev/shadow", hello{id: "dev/shadow"}, 5, 0x87, ""},
		{"name of two dots", "..", hello{id: ".."}, 5, 0x87, ""},
		{"no name", "", hello{id: "x"}, 5, 0x87, ""},
		{"name of 129 bytes", strings.Repeat("d", 129), hello{id: strings.Repeat("d", 129)}, 5, 0x87, ""},
		{"foreign will", "dev", hello{id: "dev", willTopic: "ota/victim/presence"}, 5, 0x87, ""},
		{"shared will", "dev", hello{id: "dev", willTopic: "$share/g/ota/dev/x"}, 5, 0x87, ""},
		{"wildcard will", "dev", hello{id: "dev", willTopic: "ota/+/x"}, 5, 0x90, "will topic"},
		{"deep will", "dev", hello{id: "dev", willTopic: "ota/dev/3/4/5/6/7/8/9"}, 5, 0x90, "will: topic of 9 levels; at most 8"},
		{"no room for words", "dev", hello{id: "victim", props: uint32Property(39, 20)}, 2, 0x85, ""},
		{"no words wanted", "dev", hello{id: "victim", props: []byte{23, 0}}, 2, 0x85, ""},
	} {
		for _, v5 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v5=%v", c.name, v5), func(t *testing.T) {
				w := dialTLS(t, b, pki, c.cn)
				w.v5 = v5
				want := c.v3
				if v5 {
					want = c.v5
				}
				code, props := w.connect(c.hello)
				if code != want || bytes.Contains(props, []byte("deny list")) {
					t.Fatalf("code 0x%02x, want 0x%02x; %q", code, want, props)
				}
				if silent := !v5 || len(props) == 1; silent != (!v5 || c.says == "") || v5 && !bytes.Contains(props, []byte(c.says)) {
					t.Errorf("it is told %q, want %q", props, c.says)
				}
				if kind, _ := w.read(); kind != 0 {
					t.Errorf("packet %d after the refusal", kind)
				}
			})
		}
	}
	if n := b.Stats().Connections; n != 0 {
		t.Errorf("%d sessions", n)
	}
	// What only clients meet that are no device.
	scram := dialPlain(t, openPlain(t, nil, nil))
	if code, props := scram.connect(hello{id: "x", props: append([]byte{21}, str("SCRAM")...)}); code != 0x8c || !bytes.Contains(props, []byte(`enhanced authentication "SCRAM" is not offered`)) {
		t.Errorf("code 0x%02x, %q", code, props)
	}
}

// With no client id of its own a device gets its name.
func TestEmptyClientIDIsAssigned(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, func(context.Context, mqtt.Message) error { return nil }, nil)
	w := dialTLS(t, b, pki, "dev")
	w.v5 = true
	if code, props := w.connect(hello{keepAlive: 30}); code != 0 || !bytes.Contains(props, append([]byte{18}, str("dev")...)) {
		t.Errorf("code %d, properties %q", code, props)
	}
	w.publish("ota/dev/x", 1, qos1, "")
	w.expect(puback)
}

// presences records what a PresenceHandler hears.
type presences struct{ ch chan string }

func (p presences) heard(id string, connected bool, reason string, at time.Time) {
	if at.IsZero() {
		reason = "no time"
	}
	p.ch <- fmt.Sprintf("%s %v %q", id, connected, reason)
}

// A newcomer takes over once all that the old connection brought is done.
func TestTakeOver(t *testing.T) {
	pki := testserver.NewPKI(t)
	p := presences{make(chan string, 20)}
	got, release := make(chan string, 10), make(chan struct{})
	b := start(t, pki, func(_ context.Context, m mqtt.Message) error {
		got <- string(m.Payload)
		if string(m.Payload) == "slow" {
			<-release
		}
		return nil
	}, func(c *Config) {
		c.Presence = p.heard
	})
	old := dialTLS(t, b, pki, "dev")
	old.v5 = true
	if code, _ := old.connect(hello{id: "dev", keepAlive: 30, willTopic: "ota/dev/presence"}); code != 0 {
		t.Fatal(code)
	}
	old.publish("ota/dev/x", 1, qos1, "slow")
	if s := take(t, got); s != "slow" {
		t.Fatalf("the handler got %q", s)
	}
	fresh := dialTLS(t, b, pki, "dev")
	fresh.v5 = true
	var wg sync.WaitGroup
	wg.Go(func() { fresh.mustConnect("dev") })
	if end := old.expect(disconnect); end[0] != 0x8e {
		t.Errorf("the old client was told % x", end)
	}
	close(release)
	wg.Wait()
	fresh.publish("ota/dev/x", 1, qos1, "new")
	fresh.expect(puback)
	for _, want := range []string{"will", "new"} {
		if s := take(t, got); s != want {
			t.Errorf("the handler got %q, want %q", s, want)
		}
	}
	if n := b.Stats().Connections; n != 1 {
		t.Errorf("%d sessions", n)
	}
	fresh.send(framed(0xe0, nil))
	for _, want := range []string{`dev true ""`, `dev false "taken over"`, `dev true ""`, `dev false "disconnected"`} {
		if s := take(t, p.ch); s != want {
			t.Errorf("presence %s, want %s", s, want)
		}
	}
}

func TestManyTakeOvers(t *testing.T) {
	pki := testserver.NewPKI(t)
	p := presences{make(chan string, 1000)}
	b := open(t, pki, func(c *Config) { c.Presence = p.heard })
	if err := b.Subscribe(t.Context(), everything, func(context.Context, mqtt.Message) error { return nil }); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 10 {
		w := dialTLS(t, b, pki, "dev")
		w.v5 = true
		wg.Go(func() {
			w.send(framed(0x10, join(str("MQTT"), []byte{5, 2, 0, 30, 0}, str("dev"))))
			for kind := byte(1); kind != 0; kind, _ = w.read() {
			}
		})
	}
	if err := waitFor(func() bool { return b.Stats().Connections == 1 }); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	close(p.ch)
	online := false
	for s := range p.ch {
		now := strings.HasPrefix(s, "dev true")
		if now == online {
			t.Errorf("presence %s twice in a row", s)
		}
		online = now
	}
	if online || b.Stats().Connections != 0 {
		t.Error("online after Close")
	}
}

func waitFor(cond func() bool) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			return errors.New("condition not met")
		}
	}
	return nil
}

// Revocation ends a live session, with its will, and says why.
func TestDisconnect(t *testing.T) {
	pki := testserver.NewPKI(t)
	p := presences{make(chan string, 20)}
	got := make(chan string, 10)
	b := start(t, pki, func(_ context.Context, m mqtt.Message) error { got <- m.Topic; return nil },
		func(c *Config) { c.Presence = p.heard })
	for _, v5 := range []bool{true, false} {
		w := dialTLS(t, b, pki, "dev")
		w.v5 = v5
		if code, _ := w.connect(hello{id: "dev", keepAlive: 30, willTopic: "ota/dev/presence"}); code != 0 {
			t.Fatal(code)
		}
		take(t, p.ch)
		b.Evict(mqtt.Eviction{DeviceID: "other", Reason: "x", At: time.Now()})
		b.Evict(mqtt.Eviction{DeviceID: "dev", Reason: "certificate revoked", At: time.Now()})
		if v5 {
			if body := w.expect(disconnect); body[0] != 0x98 || !bytes.Contains(body, []byte("certificate revoked")) {
				t.Errorf("DISCONNECT %q", body)
			}
		}
		if kind, _ := w.read(); kind != 0 {
			t.Errorf("packet %d at the end", kind)
		}
		if s := take(t, p.ch); !strings.HasPrefix(s, `dev false "certificate revoked"`) {
			t.Errorf("presence %s", s)
		}
		if topic := take(t, got); topic != "ota/dev/presence" {
			t.Errorf("handled %s", topic)
		}
	}
}

// A device's companions have its topics but not its place: they neither end its
// connection nor tell its presence, and go when it is shut out.
func TestCompanions(t *testing.T) {
	pki := testserver.NewPKI(t)
	p := presences{make(chan string, 20)}
	b := start(t, pki, func(context.Context, mqtt.Message) error { return nil }, func(c *Config) {
		c.Presence = p.heard
		authenticate := c.Authenticate
		c.Authenticate = func(ctx context.Context, creds Credentials) (mqtt.Identity, error) {
			id, err := authenticate(ctx, creds)
			id.Device = !slices.Contains(mqtt.CompanionIDs(id.Name), creds.ClientID)
			return id, err
		}
	})
	device := dialTLS(t, b, pki, "dev")
	device.mustConnect("dev")
	if s := take(t, p.ch); !strings.HasPrefix(s, "dev true") {
		t.Errorf("presence %s", s)
	}
	var companions []*wire
	for _, id := range mqtt.CompanionIDs("dev") {
		w := dialTLS(t, b, pki, "dev")
		w.mustConnect(id)
		if codes := w.subscribe("ota/dev/#"); codes[0] != 1 {
			t.Errorf("%s: SUBACK % x", id, codes)
		}
		companions = append(companions, w)
	}
	for _, id := range []string{"dev/0", "dev/5", "dev/1/1", "dev/", "dev/x", "other/1"} {
		if code, _ := dialTLS(t, b, pki, "dev").connect(hello{id: id}); code == 0 {
			t.Errorf("%s was let in", id)
		}
	}
	if code, _ := dialTLS(t, b, pki, "other").connect(hello{id: "dev/1"}); code == 0 {
		t.Error("another device is a companion")
	}
	if codes := device.subscribe("ota/dev/#"); codes[0] != 1 { // it still is connected
		t.Errorf("SUBACK % x", codes)
	}
	b.Evict(mqtt.Eviction{DeviceID: "dev", Reason: "revoked", At: time.Now()})
	for _, w := range append(companions, device) {
		for kind := byte(1); kind != 0; {
			kind, _ = w.read()
		}
	}
	if s := take(t, p.ch); !strings.HasPrefix(s, `dev false "revoked"`) {
		t.Errorf("presence %s", s)
	}
	select {
	case s := <-p.ch:
		t.Errorf("a companion's presence was told: %s", s)
	default:
	}
}

// A client that stops reading holds up neither publishers nor its own end.
func TestDisconnectOfAStalledClient(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, func(context.Context, mqtt.Message) error { return nil }, func(c *Config) {
		c.Limits.WriteTimeout, c.Limits.StallTimeout = time.Hour, time.Hour // neither of them ends it
	})
	w := dialTLS(t, b, pki, "dev")
	w.v5 = true
	w.mustConnect("dev")
	if codes := w.subscribe("ota/dev/#"); codes[0] != 1 {
		t.Fatalf("SUBACK % x", codes)
	}
	for range 200 { // 40 MB into a socket that nobody reads
		if err := b.Publish(t.Context(), mqtt.Message{Topic: "ota/dev/x", Payload: make([]byte, 200<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	b.Evict(mqtt.Eviction{DeviceID: "dev", Reason: "revoked", At: time.Now()})
	if err := waitFor(func() bool { return b.Stats().Connections == 0 }); err != nil {
		t.Fatal(err)
	}
}

func TestPlainListener(t *testing.T) {
	pki := testserver.NewPKI(t)
	for _, addr := range []string{"0.0.0.0:0", ":0", "localhost:0", "192.0.2.1:0", "[::]:0", "nonsense"} {
		if b, err := New(t.Context(), Config{PlainAddr: addr, Authenticate: byCertificate}); err == nil {
			t.Errorf("%s was accepted", addr)
			_ = b.Close()
		} else if addr == ":0" && !strings.Contains(err.Error(), "only a loopback address such as 127.0.0.1 is allowed; use TLSAddr") {
			t.Errorf("error %q names no remedy", err)
		}
	}
	b := start(t, pki, func(context.Context, mqtt.Message) error { return nil }, func(c *Config) {
		c.PlainAddr = "127.0.0.1:0"
		c.Authenticate = func(_ context.Context, cr Credentials) (mqtt.Identity, error) {
			if cr.Certificates != nil || string(cr.Password) != "password of "+cr.Username || cr.Remote == nil || !cr.Plain {
				return mqtt.Identity{}, errors.New("who")
			}
			return device(cr.Username), nil
		}
	})
	for user, want := range map[string]byte{"dev": 0, "other": 2} {
		nc, err := net.Dial("tcp", b.PlainAddr())
		if err != nil {
			t.Fatal(err)
		}
		w := newWire(t, nc)
		if code, _ := w.connect(hello{id: "dev", user: user, keepAlive: 30}); code != want {
			t.Errorf("%s: code %d, want %d", user, code, want)
		}
	}
}

func TestNewRefusesHalfAConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no Authenticate": {TLSAddr: "127.0.0.1:0"},
		"no TLS":          {TLSAddr: "127.0.0.1:0", Authenticate: byCertificate},
		"bad address":     {TLSAddr: "nowhere", Authenticate: byCertificate},
	} {
		if b, err := New(t.Context(), c); err == nil {
			t.Errorf("%s: no error", name)
			_ = b.Close()
		}
	}
}
