package external

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/mqtt"
)

func testLanes(t *testing.T, h mqtt.Handler, filters ...string) (*lanes, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	l := newLanes(slog.New(slog.NewTextHandler(&log, nil)), time.Minute)
	if h != nil {
		if filters == nil {
			filters = []string{"ota/#"}
		}
		l.open(t.Context(), filters, h)
	}
	return l, &log
}

// A message that is not taken stays unacknowledged, keeps its place, and is
// tried again until it is taken.
func TestNotTakenIsTriedAgainInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		fails := 5
		l, _ := testLanes(t, func(_ context.Context, m mqtt.Message) error {
			got = append(got, string(m.Payload))
			if string(m.Payload) == "1" && fails > 0 {
				fails--
				return errors.New("away")
			}
			return nil
		})
		acked := make(chan string, 3)
		for i := range 3 {
			p := fmt.Sprint(i)
			l.put(item{message: mqtt.Message{Topic: "ota/a/x", Payload: []byte(p), QoS: 1}, ack: func() { acked <- p }})
		}
		synctest.Wait()
		if len(acked) != 1 {
			t.Errorf("%d acknowledged while the handler fails", len(acked))
		}
		<-time.After(time.Minute) // of the fake clock
		l.close()
		if fmt.Sprint(got) != "[0 1 1 1 1 1 1 2]" {
			t.Errorf("handled %v", got)
		}
		close(acked)
		want := 0
		for p := range acked {
			if p != fmt.Sprint(want) {
				t.Errorf("acknowledged %s, want %d", p, want)
			}
			want++
		}
	})
}

// A message that is never taken does not hold up the others for ever.
func TestPoisonIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		l, log := testLanes(t, func(context.Context, mqtt.Message) error { calls++; return errors.New("poison") })
		acked := make(chan struct{})
		begin := time.Now()
		l.put(item{message: mqtt.Message{Topic: "ota/a/x", QoS: 1}, ack: func() { close(acked) }})
		<-acked
		if took := time.Since(begin); took < time.Minute || took > time.Minute+retryMax {
			t.Errorf("given up after %v", took)
		}
		l.close()
		if calls < 5 || !strings.Contains(log.String(), "final=true") {
			t.Errorf("%d calls, log %s", calls, log)
		}
	})
}

func TestCloseAbandonsRetriesWithoutAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := testLanes(t, func(context.Context, mqtt.Message) error { return errors.New("away") })
		for range 3 {
			l.put(item{message: mqtt.Message{Topic: "ota/a/x", QoS: 1}, ack: func() { t.Error("acknowledged") }})
		}
		synctest.Wait()
		l.close()
		l.put(item{message: mqtt.Message{Topic: "ota/a/x", QoS: 1}, ack: func() { t.Error("acknowledged") }})
	})
}

// What the broker kept for this replica arrives before Subscribe, and waits.
func TestEarlyMessagesWaitForSubscribe(t *testing.T) {
	l, _ := testLanes(t, nil)
	acked := make(chan struct{})
	l.put(item{message: mqtt.Message{Topic: "ota/a/x", QoS: 1}, ack: func() { close(acked) }})
	select {
	case <-acked:
		t.Fatal("acknowledged without a handler")
	default:
	}
	l.open(t.Context(), []string{"ota/#"}, func(context.Context, mqtt.Message) error { return nil })
	<-acked
	l.close()
}

func TestQoS0IsBoundedAndNeverTriedAgain(t *testing.T) {
	l, log := testLanes(t, nil)
	for range maxWaiting0 + 5 {
		l.put(item{message: mqtt.Message{Topic: "ota/a/x"}, ack: func() {}})
	}
	if n := strings.Count(log.String(), "dropping QoS 0 messages"); len(l.held) != maxWaiting0 || n != 1 {
		t.Errorf("%d held, %d warnings", len(l.held), n)
	}
	calls := 0
	done := make(chan struct{})
	l.log = slog.New(slog.DiscardHandler)
	l.open(t.Context(), []string{"ota/#"}, func(context.Context, mqtt.Message) error {
		if calls++; calls == maxWaiting0 {
			close(done)
		}
		return errors.New("away")
	})
	<-done
	l.close()
	if l.waiting0 != 0 {
		t.Errorf("%d counted as waiting", l.waiting0)
	}
}

func TestForeignResponseTopicIsDropped(t *testing.T) {
	l, log := testLanes(t, func(_ context.Context, m mqtt.Message) error { t.Errorf("handled %+v", m); return nil })
	var wg sync.WaitGroup
	for _, rt := range []string{"ota/b/cmd", "$aws/things/b/x", "x", "ota/a"} {
		wg.Add(1)
		l.put(item{message: mqtt.Message{Topic: "ota/a/x", QoS: 1, ResponseTopic: rt}, ack: wg.Done})
	}
	wg.Wait()
	l.close()
	if n := strings.Count(log.String(), "belongs to someone else"); n != 4 {
		t.Errorf("%d warnings", n)
	}
}

func TestDeviceOf(t *testing.T) {
	for topic, want := range map[string]string{
		"ota/dev/x": "dev", "$aws/things/dev/shadow/update": "dev", "ota/dev/": "dev",
		"ota/dev": "ota/dev", "ota": "ota", "": "", "other/dev/x": "other/dev/x", "$aws/things": "$aws/things",
	} {
		if got := deviceOf(topic); got != want {
			t.Errorf("deviceOf(%q) = %q, want %q", topic, got, want)
		}
	}
}

// Of the copies of a message, one for each matching filter, exactly one counts.
func TestExactlyOneCopyCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		level := rapid.SampledFrom([]string{"a", "b", "+"})
		filters := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			f := strings.Join(rapid.SliceOfN(level, 1, 3).Draw(t, "levels"), "/")
			if rapid.Bool().Draw(t, "rest") {
				f += "/#"
			}
			return f
		}), 1, 5).Draw(t, "filters")
		topic := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 1, 3).Draw(t, "topic"), "/")
		matching, counted := 0, 0
		for i, f := range filters {
			if !mqtt.Matches(f, topic) {
				continue
			}
			matching++
			if first(filters, topic, i+1) {
				counted++
			}
		}
		if matching > 0 && counted != 1 {
			t.Fatalf("%d copies of %q count, filters %q", counted, topic, filters)
		}
	})
}

func TestBackoff(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBackoff(100*time.Millisecond, time.Second)
	b.now = func() time.Time { return now }
	for _, bound := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		if w := b.next(); w < 0 || w >= bound*time.Millisecond {
			t.Errorf("wait of %v, bound %vms", w, bound)
		}
	}
	b.connected()
	now = now.Add(stableAfter - 1)
	b.next()
	if b.bound != time.Second {
		t.Errorf("bound %v after a short connection", b.bound)
	}
	b.connected()
	now = now.Add(stableAfter)
	if w := b.next(); w >= 100*time.Millisecond {
		t.Errorf("wait of %v after a stable connection", w)
	}
}
