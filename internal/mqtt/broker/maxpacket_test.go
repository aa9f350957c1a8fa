package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

// pickyAccess refuses the topic "no" and has long names to say so with.
type pickyAccess struct{ mqtt.Access }

func (pickyAccess) MayPublish(topic string) bool { return topic != "no" }

// No packet is larger than the client takes: reason strings are left out, what can
// not be shorter is not sent and ends the connection.
func TestNoPacketIsLargerThanTheClientTakes(t *testing.T) {
	b := openPlain(t, nil, func(c *Config) {
		c.Authenticate = func(context.Context, Credentials) (mqtt.Identity, error) {
			return mqtt.Identity{Name: strings.Repeat("n", 40), Access: pickyAccess{mqtt.OpenAccess()}}, nil
		}
	})
	const plenty = 200
	told := map[byte]bool{} // packets that had a reason string
	for limit := uint32(1); limit <= plenty; limit++ {
		w := dialPlain(t, b)
		read := func() (byte, []byte) {
			kind, body := w.read()
			if size := len(framed(0, body)); kind != 0 && size > int(limit) {
				t.Errorf("limit %d: packet %d has %d bytes", limit, kind, size)
			}
			if reason := bytes.Repeat([]byte("n"), 40); bytes.Contains(body, reason) || bytes.Contains(body, []byte("not for a server")) {
				told[kind] = true
			}
			return kind, body
		}
		w.send(framed(0x10, join(str("MQTT"), []byte{5, 2, 0, 30, 5}, uint32Property(39, limit), str("x"))))
		kind, body := read()
		if kind == 0 && limit < 5 {
			continue
		}
		if kind != connack {
			t.Fatalf("limit %d: packet %d", limit, kind)
		}
		if body[1] != 0 {
			if packet.Code(body[1]) != packet.PacketTooLarge || limit > 30 {
				t.Errorf("limit %d: code 0x%02x", limit, body[1])
			}
			continue
		}
		w.publish("no", 1, qos1, "")
		w.publish("no", 2, 2<<1, "")
		w.publish("yes", 3, 2<<1, "")
		w.ack(packet.PUBREL, 3)
		w.ack(packet.PUBREC, 99)
		w.send(framed(0xa2, join([]byte{0, 9, 0}, str("x"))))
		for _, want := range []byte{4, 5, 5, 7, 6, 11} {
			if kind, body := read(); kind != want {
				t.Fatalf("limit %d: packet %d % x, want %d", limit, kind, body, want)
			}
		}
		filters := []byte{0, 9, 0}
		for i := range 40 {
			filters = join(filters, str("f/"+string(rune('a'+i))), []byte{0})
		}
		w.send(framed(0x82, filters))
		switch kind, body := read(); {
		case limit >= 45 && kind == suback, limit < 45 && kind == disconnect && packet.Code(body[0]) == packet.PacketTooLarge:
		default:
			t.Errorf("limit %d: packet %d % x", limit, kind, body)
		}
		w.send(binary.BigEndian.AppendUint16(nil, 0xf000)) // AUTH, which nobody asked for
		read()
		w.drop()
	}
	for _, kind := range []byte{4, 5, disconnect} {
		if !told[kind] {
			t.Errorf("packet %d never had its reason string", kind)
		}
	}
}
