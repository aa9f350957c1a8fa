package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/otad/otad/pkg/shadow"
)

func TestTable(t *testing.T) {
	var tab table
	tab.add(figure{what: "a", measured: "1 µs", target: "<= 2", met: true})
	tab.add(figure{what: "bb", measured: "3", target: "<= 2"})
	tab.add(figure{what: "c", measured: "4", peer: "2x"})
	var b strings.Builder
	if err := tab.print(&b); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 5 || !strings.Contains(lines[2], "pass") || !strings.Contains(lines[3], "short") ||
		strings.Contains(lines[4], "pass") || strings.Contains(lines[4], "short") {
		t.Errorf("%s", b.String())
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []time.Duration
		want   time.Duration
	}{
		{[]time.Duration{3}, 3}, {[]time.Duration{9, 1, 5}, 5}, {[]time.Duration{4, 1, 3, 2}, 2},
	} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v", c.values, got)
		}
	}
}

// TestPublishPacket holds what the load generator writes against the packet
// library, and what it reads back.
func TestPublishPacket(t *testing.T) {
	state := newReport().state(5)
	raw := publishPacket(nil, "$aws/things/d/shadow/update", 7, state)
	p, err := packets.ReadPacket(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	got := p.Content.(*packets.Publish)
	if got.Topic != "$aws/things/d/shadow/update" || got.QoS != 1 || got.PacketID != 7 || !bytes.Equal(got.Payload, state) {
		t.Errorf("%+v", got)
	}
	_, rest, ok := bytes.Cut(raw, []byte{0x00, byte(len(got.Topic))})
	if !ok {
		t.Fatal("no topic")
	}
	topic, id, err := delivery(append([]byte{0, byte(len(got.Topic))}, rest...))
	if err != nil || string(topic) != got.Topic || id != 7 {
		t.Errorf("%s %d %v", topic, id, err)
	}
}

// TestReport says that each report is one, and says something else than the one before.
func TestReport(t *testing.T) {
	r := newReport()
	for _, c := range []struct {
		n    uint64
		want string
	}{{1, `"value":101,`}, {2, `"value":102,`}, {899, `"value":999,`}, {900, `"value":100,`}} {
		state := r.state(c.n)
		if _, err := shadow.ParseUpdate(state); err != nil || bytes.Count(state, []byte(c.want)) != 12 {
			t.Errorf("%d: %v: %s", c.n, err, state)
		}
		if len(state) < 700 || len(state) > 900 {
			t.Errorf("an update of %d bytes", len(state))
		}
	}
}

func TestChange(t *testing.T) {
	m := change.FindStringSubmatch(`time=2026-01-02T03:04:05.678+01:00 level=INFO msg=state from=FETCH to=STAGED job=r-1 release=a@1 reason=""`)
	if m == nil || m[2] != "STAGED" {
		t.Fatalf("%q", m)
	}
	if _, err := time.Parse(time.RFC3339, m[1]); err != nil {
		t.Error(err)
	}
}
