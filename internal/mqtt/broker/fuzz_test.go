package broker

import (
	"context"
	"io"
	"net"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
)

const (
	// fuzzPatience is how long a session may last after its client has gone.
	fuzzPatience = 10 * time.Second
	// What a session may allocate: its buffers, and a multiple of what it was sent.
	fuzzBase    = 4 << 20
	fuzzPerByte = 4 << 10
)

func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

var fuzzHellos = map[byte][]byte{
	3: []byte("\x10\x11\x00\x06MQIsdp\x03\x02\x00\x00\x00\x03abc"),
	4: []byte("\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03abc"),
	5: []byte("\x10\x18\x00\x04MQTT\x05\x02\x00\x00\x08\x11\x00\x00\x00\x3c\x22\x00\x05\x00\x03abc"),
}

// FuzzSession: whatever a client sends, by itself or after a CONNECT of any
// version, the session comes to its end, nothing panics, and no more memory is
// taken than the bytes can account for.
func FuzzSession(f *testing.F) {
	for _, packets := range []string{
		"", "\xc0\x00", "\xe0\x00", "\x82\x09\x00\x01\x00\x00\x03a/#\x01", "\x82\x0a\x00\x01\x02\x0b\x05\x00\x02a#\x01",
		"\x82\x0f\x00\x01\x00\x00\x09$share/g/a\x00", "\x82\x08\x00\x01\x00\x03a/#\x01",
		"\x32\x0b\x00\x01a\x00\x01\x00hello", "\x34\x07\x00\x01a\x00\x02\x00xx\x62\x02\x00\x02", "\x31\x05\x00\x01a\x00x",
		"\x32\x0a\x00\x01a\x00\x01\x03\x23\x00\x01x\x32\x09\x00\x00\x00\x02\x03\x23\x00\x01x",
		"\x82\x07\x00\x01\x00\x00\x01a\x02\x34\x06\x00\x01a\x00\x02\x00\x62\x02\x00\x02\x50\x02\x00\x01\x70\x02\x00\x01",
		"\xa2\x06\x00\x01\x00\x00\x01a", "\x40\x02\x00\x01", "\xe0\x07\x00\x05\x11\x00\x00\x00\x00", "\xf0\x00",
	} {
		for version := range byte(6) {
			f.Add(version, []byte(packets))
		}
	}
	for _, hello := range fuzzHellos {
		f.Add(byte(0), hello)
	}
	f.Fuzz(func(t *testing.T, version byte, data []byte) {
		before := allocated()
		b, err := New(context.Background(), Config{Authenticate: openToAll})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Subscribe(context.Background(), []string{"#"}, func(context.Context, mqtt.Message) error { return nil }); err != nil {
			t.Fatal(err)
		}
		client, server := net.Pipe()
		if !b.register(server) {
			t.Fatal("a new broker takes no connection")
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			b.serve(server, true)
		}()
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, client)
		}()
		_ = client.SetWriteDeadline(time.Now().Add(fuzzPatience))
		_, err = client.Write(append(fuzzHellos[version%6], data...))
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("the session stands still")
		}
		_ = client.Close()
		timer := time.NewTimer(fuzzPatience)
		defer timer.Stop()
		select {
		case <-served:
		case <-timer.C:
			t.Fatal("the session goes on without its client")
		}
		<-read
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if used := allocated() - before; used > fuzzBase+fuzzPerByte*uint64(len(data)) {
			t.Errorf("%d bytes allocated for %d bytes", used, len(data))
		}
	})
}
