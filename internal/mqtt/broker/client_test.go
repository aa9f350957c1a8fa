package broker

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/otad/otad/internal/testserver"
)

const patience = 20 * time.Second

// Packet types, as the first four bits of a packet.
const (
	connack    = 2
	puback     = 4
	suback     = 9
	unsuback   = 11
	disconnect = 14
)

// wire speaks MQTT in bytes: what no client library would send, and 3.1.1.
type wire struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
	v5 bool
}

func dialTLS(t *testing.T, b *Broker, pki *testserver.PKI, cn string) *wire {
	t.Helper()
	nc, err := tls.Dial("tcp", b.Addr(), pki.ClientTLS(cn))
	if err != nil {
		t.Fatal(err)
	}
	return newWire(t, nc)
}

func newWire(t *testing.T, nc net.Conn) *wire {
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return &wire{t: t, nc: nc, r: bufio.NewReader(nc)}
}

func str(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func join(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// framed puts a header before a body.
func framed(head byte, body []byte) []byte {
	return join([]byte{head}, binary.AppendUvarint(nil, uint64(len(body))), body)
}

// send ignores errors: the broker may have hung up, which reading shows.
func (w *wire) send(b []byte) { _, _ = w.nc.Write(b) }

// read returns the next packet, type 0 at the end of the connection.
func (w *wire) read() (kind byte, body []byte) {
	w.t.Helper()
	head, err := w.r.ReadByte()
	if err == nil {
		var n uint64
		if n, err = binary.ReadUvarint(w.r); err == nil {
			body = make([]byte, n)
			_, err = io.ReadFull(w.r, body)
		}
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		w.t.Fatal("neither a packet nor the end of the connection")
	}
	if err != nil {
		return 0, nil
	}
	return head >> 4, body
}

func (w *wire) expect(kind byte) []byte {
	w.t.Helper()
	got, body := w.read()
	if got != kind {
		w.t.Fatalf("got packet %d (% x), want %d", got, body, kind)
	}
	return body
}

// hello is what differs between CONNECTs.
type hello struct {
	id        string
	willTopic string
	willProps []byte // of MQTT 5
	kept      bool   // the will is to be retained
	user      string
	keepAlive uint16
	persist   bool
	props     []byte // of MQTT 5
}

// connect returns the return code and, for MQTT 5, the properties.
func (w *wire) connect(h hello) (code byte, props []byte) {
	w.t.Helper()
	body := w.greet(h)
	return body[1], body[2:]
}

// greet returns the CONNACK.
func (w *wire) greet(h hello) []byte {
	w.t.Helper()
	w.hail(h)
	return w.expect(connack)
}

// hail sends CONNECT.
func (w *wire) hail(h hello) {
	var flags byte
	if !h.persist {
		flags |= 0x02
	}
	version, head := byte(4), []byte{}
	if w.v5 {
		version = 5
		head = append([]byte{byte(len(h.props))}, h.props...)
	}
	tail := str(h.id)
	if h.willTopic != "" {
		flags |= 0x04 | 1<<3
		if h.kept {
			flags |= 1 << 5
		}
		if w.v5 {
			tail = append(append(tail, byte(len(h.willProps))), h.willProps...)
		}
		tail = join(tail, str(h.willTopic), str("will"))
	}
	if h.user != "" {
		flags |= 0x80 | 0x40
		tail = join(tail, str(h.user), str("password of "+h.user))
	}
	w.send(framed(0x10, join(str("MQTT"), []byte{version, flags}, binary.BigEndian.AppendUint16(nil, h.keepAlive), head, tail)))
}

func (w *wire) mustConnect(id string) {
	w.t.Helper()
	if code, _ := w.connect(hello{id: id, keepAlive: 30}); code != 0 {
		w.t.Fatalf("connect %s: code 0x%02x", id, code)
	}
}

func (w *wire) publish(topic string, id uint16, flags byte, payload string) {
	body := join(str(topic), binary.BigEndian.AppendUint16(nil, id))
	if w.v5 {
		body = append(body, 0)
	}
	w.send(framed(0x30|flags, append(body, payload...)))
}

// subscribe returns the reason codes.
func (w *wire) subscribe(filters ...string) []byte {
	w.t.Helper()
	body := []byte{0, 9}
	if w.v5 {
		body = append(body, 0)
	}
	for _, f := range filters {
		body = join(body, str(f), []byte{1})
	}
	w.send(framed(0x82, body))
	answer := w.expect(suback)
	return answer[len(answer)-len(filters):]
}

const qos1 = 1 << 1
