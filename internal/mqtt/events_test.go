package mqtt_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
)

const events = "ota/gw-1/events"

func batch(log string, from, to int) string {
	var list []string
	for seq := from; seq <= to; seq++ {
		list = append(list, fmt.Sprintf(`{"seq":%d,"at":%d,"kind":"state","data":{"to":"FETCH"}}`, seq, now.UnixMilli()))
	}
	return fmt.Sprintf(`{"log":%q,"events":[%s]}`, log, strings.Join(list, ","))
}

func TestEventsAreStoredAndAcknowledged(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct{ from, to, ack int }{{1, 3, 3}, {1, 3, 3}, {2, 5, 5}} {
		got := f.answer(events, batch("a", c.from, c.to), "/accepted")
		if got["ack"] != float64(c.ack) || got["log"] != "a" {
			t.Fatalf("%v, want %d", got, c.ack)
		}
	}
	stored, err := f.store.Events(t.Context(), "gw-1", 0, 99)
	f.ok(err)
	if len(stored) != 5 || stored[0].Seq != 5 || stored[0].Kind != "state" || stored[0].Data != `{"to":"FETCH"}` || !stored[0].At.Equal(now) {
		t.Fatalf("%+v", stored)
	}
}

// The answer goes where the device asks, if that is its own; else the server
// would send for it where it may not.
func TestEventsResponseTopicIsTheDevicesOwn(t *testing.T) {
	f := newFixture(t)
	for response, want := range map[string]string{
		"ota/gw-1/events/ack": "ota/gw-1/events/ack", "": events + "/accepted", "ota/gw-2/events/ack": events + "/accepted",
		"$aws/things/gw-1/x": "$aws/things/gw-1/x", "sensors/x": events + "/accepted", "ota/gw-1/#": events + "/accepted", "ota/gw-10/x": events + "/accepted",
		"ota/gw-1/a/b/c/d/e/f/g": events + "/accepted",
	} {
		f.out.sent = nil
		f.ok(f.e.Handle(t.Context(), mqtt.Message{Topic: events, Payload: []byte(batch("a", 1, 1)), ResponseTopic: response, CorrelationData: []byte("c")}))
		if len(f.out.sent) != 1 || f.out.sent[0].Topic != want || string(f.out.sent[0].CorrelationData) != "c" {
			t.Errorf("%q: %s, want %s", response, topics(f.out.sent), want)
		}
	}
}

// Every answer of MQTT 5 carries the correlation data of its request, and goes to
// its response topic if that is the device's own; the accepted of an update goes to
// all others who listen as well.
func TestAnswersGoWhereTheRequestSays(t *testing.T) {
	const own = "ota/gw-1/answers"
	things := "$aws/things/gw-1/"
	for _, c := range []struct{ topic, payload, suffix string }{
		{things + "shadow/get", "", "/rejected"},
		{things + "shadow/update", `{"state":{"reported":{"a":1}}}`, "/accepted"},
		{things + "shadow/get", "", "/accepted"},
		{things + "shadow/update", `{"state":1}`, "/rejected"},
		{things + "shadow/name/n/update", `{"state":{"reported":{"a":1}}}`, "/accepted"},
		{things + "shadow/delete", "", "/accepted"},
		{things + "jobs/get", "{}", "/accepted"},
		{things + "jobs/$next/get", "{}", "/accepted"},
		{things + "jobs/start-next", "{}", "/accepted"},
		{things + "jobs/none/get", "{}", "/rejected"},
		{things + "jobs/none/update", `{"status":"IN_PROGRESS"}`, "/rejected"},
		{events, batch("a", 1, 1), "/accepted"},
		{events, "{", "/rejected"},
	} {
		for response, want := range map[string]string{"": c.topic + c.suffix, own: own, "ota/gw-2/x": c.topic + c.suffix, things + "shadow/get": c.topic + c.suffix} {
			f := newFixture(t)
			if strings.HasSuffix(c.topic, "shadow/get") && c.suffix == "/accepted" || strings.HasSuffix(c.topic, "delete") {
				f.ok(f.e.Handle(t.Context(), mqtt.Message{Topic: things + "shadow/update", Payload: []byte(`{"state":{"reported":{"a":1}}}`)}))
			}
			f.out.sent = nil
			f.ok(f.e.Handle(t.Context(), mqtt.Message{Topic: c.topic, Payload: []byte(c.payload), ResponseTopic: response, CorrelationData: []byte("c")}))
			found, correlated := false, false
			for _, m := range f.out.sent {
				found = found || m.Topic == want && string(m.CorrelationData) == "c"
				correlated = correlated || string(m.CorrelationData) == "c" && m.Topic != want && m.Topic != c.topic+c.suffix
			}
			if !found || correlated {
				t.Errorf("%s for %q: %s, want %s", c.topic, response, topics(f.out.sent), want)
			}
			update := strings.HasSuffix(c.topic, "/update") && c.suffix == "/accepted"
			if update && !strings.Contains(topics(f.out.sent), c.topic+"/accepted") {
				t.Errorf("%s: accepted was not published: %s", c.topic, topics(f.out.sent))
			}
		}
	}
}

func TestBadEventsAreRefused(t *testing.T) {
	f := newFixture(t)
	many := strings.TrimSuffix(strings.Repeat(`{"seq":1,"kind":"x"},`, fleet.MaxEvents+1), ",")
	for name, payload := range map[string]string{
		"no JSON": `{`, "none": `{"log":"a"}`, "no log": `{"events":[{"seq":1,"kind":"x"}]}`, "a wild log": batch("a b", 1, 1),
		"a long log": batch(strings.Repeat("a", fleet.MaxEventLog+1), 1, 1), "from 0": batch("a", 0, 1),
		"backwards":   `{"log":"a","events":[{"seq":2,"kind":"x"},{"seq":1,"kind":"x"}]}`,
		"huge number": `{"log":"a","events":[{"seq":9007199254740993,"kind":"x"}]}`,
		"no kind":     `{"log":"a","events":[{"seq":1}]}`, "a wild kind": `{"log":"a","events":[{"seq":1,"kind":"a\u001b"}]}`,
		"no object": `{"log":"a","events":[{"seq":1,"kind":"x","data":[1]}]}`, "null": `{"log":"a","events":[{"seq":1,"kind":"x","data":null}]}`,
		"large data": `{"log":"a","events":[{"seq":1,"kind":"x","data":{"x":"` + strings.Repeat("x", fleet.MaxEventBytes) + `"}}]}`,
		"many":       `{"log":"a","events":[` + many + `]}`, "a large message": `{"log":"` + strings.Repeat("x", mqtt.MaxEventsPayload) + `"}`,
	} {
		if got := f.answer(events, payload, "/rejected"); got["code"] != "InvalidRequest" || got["message"] == "" {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := f.answer("ota/nobody/events", batch("a", 1, 1), "/rejected"); got["code"] != "ResourceNotFound" {
		t.Errorf("%v", got)
	}
	stored, err := f.store.Events(t.Context(), "gw-1", 0, 99)
	f.ok(err)
	if len(stored) > 0 {
		t.Fatalf("bad events were stored: %+v", stored)
	}
}

// The device's trace id is found in the server's log, and beside its events.
func TestTraceReachesTheLog(t *testing.T) {
	f := newFixture(t)
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := fleet.New(fleet.Config{Store: f.store, Publisher: &mqtt.Publisher{Broker: f.out, Now: time.Now}, Now: time.Now, Log: log})
	e := mqtt.NewEndpoint(f.out, s, log, time.Now)
	f.ok(e.Handle(t.Context(), mqtt.Message{Topic: jobs + "r-1/update", Payload: []byte(`{"status":"SUCCEEDED"}`), Trace: "trace-1"}))
	f.ok(e.Handle(t.Context(), mqtt.Message{Topic: events, Payload: []byte(batch("a", 1, 1)), Trace: "trace-2"}))
	f.ok(e.Handle(t.Context(), mqtt.Message{Topic: events, Payload: []byte(batch("a", 2, 2)), Trace: "forged\nline"}))
	said := map[string]string{}
	for line := range strings.Lines(out.String()) {
		var l struct{ Msg, Trace string }
		f.ok(json.Unmarshal([]byte(line), &l))
		said[l.Msg+" "+l.Trace] = line
	}
	for _, want := range []string{"execution finished trace-1", "device message trace-1", "device message trace-2", "device message "} {
		if said[want] == "" {
			t.Errorf("the log has no %q:\n%s", want, out.String())
		}
	}
	stored, err := f.store.Events(t.Context(), "gw-1", 0, 99)
	f.ok(err)
	if stored[1].Trace != "trace-2" || stored[0].Trace != "" {
		t.Errorf("%+v", stored)
	}
}
