package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"reflect"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/testserver"
)

func uint32Property(id byte, v uint32) []byte {
	return append([]byte{id}, binary.BigEndian.AppendUint32(nil, v)...)
}

func TestLimitsAreAnnounced(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, func(context.Context, mqtt.Message) error { return nil }, nil)
	for _, keepAlive := range []uint16{0, 1201, 65535} {
		w := dialTLS(t, b, pki, "dev")
		w.v5 = true
		code, props := w.connect(hello{id: "dev", keepAlive: keepAlive, props: uint32Property(17, 0xffffffff)})
		if code != 0 {
			t.Fatalf("code 0x%02x", code)
		}
		for name, want := range map[string][]byte{
			"session expiry":      uint32Property(17, 7*24*60*60),
			"server keep alive":   {19, 1200 >> 8, 1200 & 0xff},
			"receive maximum":     {33, 0, 20},
			"topic alias maximum": {34, 0, 16},
			"maximum packet size": uint32Property(39, 256<<10),
		} {
			if !bytes.Contains(props, want) {
				t.Errorf("%s: CONNACK % x lacks % x", name, props, want)
			}
		}
	}
}

// What a client was told not to send ends its connection.
func TestForbiddenPublishesEndTheConnection(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, func(_ context.Context, m mqtt.Message) error {
		t.Errorf("the handler got %q", m.Topic)
		return nil
	}, nil)
	for _, c := range []struct {
		name   string
		packet []byte
		reason byte
	}{
		{"topic alias of nothing", framed(0x32, join(str(""), []byte{0, 1, 3, 35, 0, 1})), 0x82},
		{"wildcard", framed(0x32, join(str("ota/dev/+"), []byte{0, 1, 0})), 0x90},
		{"no topic", framed(0x32, join(str(""), []byte{0, 1, 0})), 0x82},
		{"second CONNECT", framed(0x10, join(str("MQTT"), []byte{5, 2, 0, 30, 0}, str("dev"))), 0x82},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := dialTLS(t, b, pki, "dev")
			w.v5 = true
			w.mustConnect("dev")
			w.send(c.packet)
			if kind, body := w.read(); kind != 0 && (kind != disconnect || body[0] != c.reason) {
				t.Errorf("packet %d: % x, want DISCONNECT 0x%02x", kind, body, c.reason)
			}
		})
	}
}

func TestTopicsOutsideOwnAreRefused(t *testing.T) {
	pki := testserver.NewPKI(t)
	b := start(t, pki, func(_ context.Context, m mqtt.Message) error {
		t.Errorf("the handler got %q", m.Topic)
		return nil
	}, nil)
	foreign := []string{"ota/victim/x", "ota/dev", "ota", "$aws/things/dev", "x", "$SYS/x"}
	for _, topic := range foreign {
		w := dialTLS(t, b, pki, "dev")
		w.v5 = true
		w.mustConnect("dev")
		w.publish(topic, 3, qos1, "")
		if ack := w.expect(puback); ack[2] != 0x87 {
			t.Errorf("%s: PUBACK % x", topic, ack)
		}
		if codes := w.subscribe(topic, "ota/+/x", "#", "$share/g/ota/dev/x", "ota/dev/#"); !bytes.Equal(codes, []byte{0x87, 0x87, 0x87, 1, 1}) {
			t.Errorf("%s: SUBACK % x", topic, codes)
		}
		old := dialTLS(t, b, pki, "old")
		old.mustConnect("old")
		if codes := old.subscribe(topic); codes[0] != 0x80 {
			t.Errorf("%s: SUBACK of 3.1.1 % x", topic, codes)
		}
		old.publish(topic, 3, qos1, "")
		if kind, _ := old.read(); kind == puback {
			t.Errorf("%s: acknowledged to a 3.1.1 client", topic)
		}
	}
	// A response topic is where otad would answer to.
	w := dialTLS(t, b, pki, "dev")
	w.v5 = true
	w.mustConnect("dev")
	props := append([]byte{8}, str("ota/victim/cmd")...)
	w.send(framed(0x32, join(str("ota/dev/x"), []byte{0, 1, byte(len(props))}, props)))
	if ack := w.expect(puback); ack[2] != 0x87 {
		t.Errorf("foreign response topic: PUBACK % x", ack)
	}
}

func TestSilentClientIsDropped(t *testing.T) {
	pki := testserver.NewPKI(t)
	p := presences{make(chan string, 5)}
	b := start(t, pki, nil, func(c *Config) {
		c.Limits.KeepAlive = time.Second
		c.Presence = p.heard
	})
	w := dialTLS(t, b, pki, "dev")
	w.v5 = true // which can be told of the shorter keep alive
	w.mustConnect("dev")
	take(t, p.ch)
	w.expect(disconnect)
	if kind, _ := w.read(); kind != 0 {
		t.Errorf("packet %d", kind)
	}
	if s := take(t, p.ch); !bytes.HasPrefix([]byte(s), []byte(`dev false "keep alive timeout: `)) {
		t.Errorf("presence %s", s)
	}
}

func TestDefaultLimits(t *testing.T) {
	got := Limits{KeepAlive: 100 * time.Hour, Queued: 70_000, Inflight: 65_535, TopicLevels: 12, TopicBytes: 1000, ClientIDBytes: 1000}.withDefaults()
	if got.KeepAlive != 12*time.Hour || got.Queued != maxQueued || got.Inflight != maxInflight || got.TopicLevels != mqtt.MaxTopicLevels || got.TopicBytes != DefaultTopicBytes || got.ClientIDBytes != DefaultClientIDBytes {
		t.Errorf("not capped: %+v", got)
	}
	if free := packetIDs - got.Queued - got.Inflight; free < 100 {
		t.Errorf("%d packet identifiers are left", free)
	}
	v := reflect.ValueOf(Limits{}.withDefaults())
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s has no default", v.Type().Field(i).Name)
		}
	}
}

// A client that acknowledges nothing does not use up the packet identifiers,
// whatever the limits say.
func TestPacketIDsAreNotUsedUp(t *testing.T) {
	b := openPlain(t, nil, func(c *Config) { c.Limits.Inflight, c.Limits.Queued = 65_535, 50 })
	w := dialPlain(t, b)
	w.mustConnect("deaf")
	w.subscribe("a")
	go func() { _, _ = io.Copy(io.Discard, w.r) }()
	err := waitFor(func() bool {
		for missed := b.Stats().Missed; b.Stats().Missed == missed; {
			if err := b.Publish(t.Context(), mqtt.Message{Topic: "a", QoS: 1}); err != nil {
				t.Fatal(err)
			}
		}
		return b.Stats().Queued == maxInflight+50
	})
	if err != nil {
		t.Errorf("%d messages are on their way: %v", b.Stats().Queued, err)
	}
}

// Should they be used up all the same, by what was stored with other limits, the
// next message is refused until one is free.
func TestNoPacketIDIsFree(t *testing.T) {
	s := &session{b: &Broker{lim: Limits{}.withDefaults(), journal: newJournal(nil, nil)}, ids: map[uint16]struct{}{}}
	for id := 1; id <= packetIDs; id++ {
		s.ids[uint16(id)] = struct{}{}
	}
	m := &message{topic: "a", qos: 1}
	if v := s.enqueue(m, delivery{qos: 1}); v != refused {
		t.Errorf("verdict %d", v)
	}
	delete(s.ids, 7)
	if v := s.enqueue(m, delivery{qos: 1}); v != taken || s.queue[0].id != 7 {
		t.Errorf("verdict %d, queue %+v", v, s.queue)
	}
}

// What was acknowledged stays when the limits are lowered later.
func TestRetainedMessagesOutliveLowerLimits(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, nil)
	w := member(t, b, "x")
	for _, topic := range []string{"1", "2", "3"} {
		w.mustRetain(topic, topic)
	}
	b = openPlain(t, m.killed(), func(c *Config) { c.Limits.Retained, c.Limits.RetainedPerClient = 1, 1 })
	w = member(t, b, "x")
	w.subscribe("#")
	for range 3 {
		w.receive()
	}
	w.publish("4", 1, qos1|1, "4")
	w.told(puback, 0x97, "1 retained messages")
}
