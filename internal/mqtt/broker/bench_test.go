package broker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

func openBench(b *testing.B) *Broker {
	br, err := New(b.Context(), Config{PlainAddr: "127.0.0.1:0", Limits: unpaced(), Authenticate: func(context.Context, Credentials) (mqtt.Identity, error) {
		return mqtt.Identity{Name: "open", Access: mqtt.OpenAccess()}, nil
	}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = br.Close() })
	return br
}

func benchDial(b *testing.B, br *Broker, id string) net.Conn {
	nc, err := net.Dial("tcp", br.PlainAddr())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = nc.Close() })
	_, _ = nc.Write(framed(0x10, join(str("MQTT"), []byte{4, 2, 0, 0}, str(id))))
	if _, err := io.ReadFull(nc, make([]byte, 4)); err != nil {
		b.Fatal(err)
	}
	return nc
}

// publishN sends n publishes of QoS 1 with a window and waits for their PUBACKs.
func publishN(b *testing.B, nc net.Conn, topic string, n, window int) {
	payload := make([]byte, 256)
	r := bufio.NewReaderSize(nc, 4096)
	var one []byte
	sent, acked := 0, 0
	ack := make([]byte, 4)
	for acked < n {
		var out []byte
		for sent < n && sent-acked < window {
			one = packet.AppendPublish(one[:0], packet.V311, packet.Delivery{Topic: topic, Payload: payload, QoS: 1, ID: uint16(sent%60000 + 1)})
			out = append(out, one...)
			sent++
		}
		if len(out) > 0 {
			if _, err := nc.Write(out); err != nil {
				b.Error(err)
				return
			}
		}
		for more := true; more; more = r.Buffered() >= 4 {
			if _, err := io.ReadFull(r, ack); err != nil {
				b.Error(err)
				return
			}
			acked++
		}
	}
}

// BenchmarkHandler: 20 devices publish with QoS 1, otad's handler takes it, PUBACK.
func BenchmarkHandler(b *testing.B) {
	br := openBench(b)
	if err := br.Subscribe(context.Background(), []string{"in/+"}, func(context.Context, mqtt.Message) error { return nil }); err != nil {
		b.Fatal(err)
	}
	runPublishers(b, br, func(i int) string { return fmt.Sprintf("in/%d", i) })
}

// BenchmarkFanIn: 20 devices publish with QoS 1 to one subscriber.
func BenchmarkFanIn(b *testing.B) {
	br := openBench(b)
	drain(b, br, "sub", "in/+")
	runPublishers(b, br, func(i int) string { return fmt.Sprintf("in/%d", i) })
}

// BenchmarkPairs: 10 publish with QoS 1, each to a subscriber of its own.
func BenchmarkPairs(b *testing.B) {
	br := openBench(b)
	for i := range 20 {
		drain(b, br, fmt.Sprintf("sub%d", i), fmt.Sprintf("in/%d", i))
	}
	runPublishers(b, br, func(i int) string { return fmt.Sprintf("in/%d", i) })
}

func runPublishers(b *testing.B, br *Broker, topic func(int) string) {
	const devices = 20
	conns := make([]net.Conn, devices)
	for i := range conns {
		conns[i] = benchDial(b, br, fmt.Sprintf("pub%d", i))
	}
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, nc := range conns {
		wg.Go(func() { publishN(b, nc, topic(i), b.N/devices+1, 20) })
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// drain subscribes and acknowledges all that comes.
func drain(b *testing.B, br *Broker, id, filter string) {
	nc := benchDial(b, br, id)
	_, _ = nc.Write(framed(0x82, join([]byte{0, 1}, str(filter), []byte{1})))
	if _, err := io.ReadFull(nc, make([]byte, 5)); err != nil {
		b.Fatal(err)
	}
	go func() {
		var f frames
		lim := Limits{PacketBytes: 1 << 20}
		var out []byte
		for {
			h, body, ok, err := f.next(&lim)
			if err != nil {
				return
			}
			if !ok {
				if len(out) > 0 {
					_, _ = nc.Write(out)
					out = out[:0]
				}
				if f.fill(nc) != nil {
					return
				}
				continue
			}
			if p, err := packet.DecodePublish(h.Flags, body, packet.V311); err == nil && p.QoS == 1 {
				out = packet.AppendAck(out, packet.V311, packet.PUBACK, packet.Ack{ID: p.ID}, "")
			}
		}
	}()
}
