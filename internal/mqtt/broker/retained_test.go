package broker

import (
	"bytes"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt/packet"
)

// subscribe0 subscribes with QoS 0 and returns the reason code.
func (w *wire) subscribe0(filter string) byte {
	w.t.Helper()
	w.send(framed(0x82, join([]byte{0, 9, 0}, str(filter), []byte{0})))
	answer := w.expect(suback)
	return answer[len(answer)-1]
}

// A client that subscribes with QoS 0 gets all that is retained, also more than its queue
// holds: it is what stands, and there is no second time.
func TestRetainedBeyondTheQueue(t *testing.T) {
	const kept, queued = 500, 10
	b := openPlain(t, nil, func(c *Config) {
		c.Limits.Queued, c.Limits.Inflight, c.Limits.RetainedPerClient = queued, 1, kept
	})
	pub := member(t, b, "pub")
	for i := range kept {
		pub.mustRetain(fmt.Sprint("kept/", i), strconv.Itoa(i))
	}
	w := member(t, b, "sub")
	w.subscribe0("kept/#")
	got := map[string]bool{}
	for len(got) < kept {
		got[w.receive().payload] = true
	}
	// Of one that first has to acknowledge the queue does not empty by itself: it is told.
	w = member(t, b, "owing")
	w.subscribe("live")
	for range 3 {
		pub.mustPublish("live", 1, "")
	}
	w.send(framed(0x82, join([]byte{0, 9, 0}, str("kept/#"), []byte{0})))
	for {
		kind, body := w.read()
		if kind == disconnect {
			if !bytes.Contains(body, []byte("more retained messages than the queue of 10 holds")) {
				t.Errorf("%q", body)
			}
			break
		}
		if kind == 0 {
			t.Fatal("the connection ended without a word")
		}
	}
}

// What was replaced or removed while a client waited for room does not come after it.
func TestRetainedIsNotOutOfDate(t *testing.T) {
	b := openPlain(t, nil, nil)
	pub, w := member(t, b, "pub"), member(t, b, "sub")
	pub.mustRetain("kept/1", "old")
	pub.mustRetain("kept/2", "old")
	w.subscribe0("other")
	b.mu.Lock()
	s := b.sessions["c/open/sub"]
	b.mu.Unlock()
	s.mu.Lock()
	c, sub := s.conn, s.subs["other"]
	s.mu.Unlock()
	list := []delivered{{b.retained.of("kept/1"), sub}, {b.retained.of("kept/2"), sub}}
	pub.mustRetain("kept/1", "")
	pub.mustRetain("kept/2", "new")
	if err := c.sendRetained(list); err != nil {
		t.Fatal(err)
	}
	if got := w.receive(); got.topic != "kept/2" || got.payload != "new" {
		t.Errorf("%s %q, want the new one of kept/2", got.topic, got.payload)
	}
}

// What has expired makes room for what is retained, in the store too.
func TestExpiredRetainedMakesRoom(t *testing.T) {
	m := &memory{state: map[string][]byte{}}
	b := openPlain(t, m, func(c *Config) { c.Limits.RetainedPerClient = 2 })
	w := member(t, b, "pub")
	w.mustRetain("kept/1", "1")
	w.mustRetain("kept/2", "2")
	w.publish("kept/3", 1, qos1|1, "3")
	w.told(puback, 0x97, "2 retained messages")
	b.retained.mu.Lock()
	b.retained.root.find("kept/1").msg.expires = time.Now().Add(-time.Second)
	b.retained.swept = time.Time{}
	b.retained.mu.Unlock()
	w.mustRetain("kept/3", "3")
	if n, keys := b.Stats().Retained, m.keys(keyRetained); n != 2 || keys != 2 {
		t.Errorf("%d retained, %d in the store, want 2", n, keys)
	}
}

// A subscription that is refused is in the log, as the device guide says.
func TestRefusedSubscriptionIsLogged(t *testing.T) {
	var log bytes.Buffer
	b := openPlain(t, nil, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	w := member(t, b, "curious")
	for filter, code := range map[string]packet.Code{"ota/other/#": packet.NotAuthorized, "a/#/b": packet.TopicFilterInvalid, "$share//a": packet.TopicFilterInvalid} {
		if got := w.subscribe0(filter); got != byte(code) {
			t.Errorf("%s: 0x%02x, want 0x%02x", filter, got, code)
		}
	}
	w.drop()
	offline(t, b, 0)
	for _, filter := range []string{"ota/other/#", "a/#/b", "$share//a"} {
		if !strings.Contains(log.String(), `msg="subscription refused" client=curious filter=`+filter) {
			t.Errorf("%s is not in the log:\n%s", filter, &log)
		}
	}
}
