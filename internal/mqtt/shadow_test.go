package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

const gw1 = "$aws/things/gw-1/shadow/"

// Every rejection of the shadow protocol, code and text, on both kinds of
// shadow; nothing is stored for any.
func TestShadowRejections(t *testing.T) {
	f := newFixture(t)
	const named = gw1 + "name/config/"
	for _, p := range []string{gw1, named} {
		f.send(p+"update", `{"state":{"desired":{"a":1}}}`)
		f.send(p+"update", `{"state":{"desired":{"a":2}}}`)
	}
	deep := strings.Repeat(`{"a":`, shadow.MaxDepth+1) + "1" + strings.Repeat("}", shadow.MaxDepth+1)
	for _, c := range []struct {
		op, payload string
		code        int
		message     string
	}{
		{"update", `{"state":{"desired":{`, 400, "Invalid JSON"},
		{"update", ``, 400, "Invalid JSON"},
		{"update", `{"clientToken":"x"}`, 400, "Missing required node: state"},
		{"update", `{"state":1,"clientToken":"x"}`, 400, "State node must be an object"},
		{"update", `{"state":{"desired":1},"clientToken":"x"}`, 400, "Desired node must be an object"},
		{"update", `{"state":{"reported":"a"},"clientToken":"x"}`, 400, "Reported node must be an object"},
		{"update", `{"state":{},"version":"2","clientToken":"x"}`, 400, "Invalid version"},
		{"update", `{"state":{},"clientToken":"` + strings.Repeat("x", 65) + `"}`, 400, "Invalid clientToken"},
		{"update", `{"state":{"desired":` + deep + `},"clientToken":"x"}`, 400, "JSON contains too many levels of nesting; maximum is 6"},
		{"update", `{"state":{"desire":{"a":1}},"clientToken":"x"}`, 400, "State contains an invalid node"},
		{"update", `{"state":{"desired":{"a":[1,null]}},"clientToken":"x"}`, 400, "State contains an invalid node"},
		{"update", `{"state":{"desired":{"a":1}},"version":1,"clientToken":"x"}`, 409, "Version conflict"},
		{"update", `{"state":{"desired":{"a":1}},"version":3,"clientToken":"x"}`, 409, "Version conflict"},
		{"update", `{"state":{"desired":{"a":"` + strings.Repeat("x", shadow.MaxStateBytes) + `"}},"clientToken":"x"}`, 413, "The payload exceeds the maximum size allowed"},
		{"update", "{\"state\":{\"desired\":{\"a\":\"\xff\"}}}", 415, "Unsupported documented encoding; supported encoding is UTF-8"},
		{"get", `{"clientToken":`, 400, "Invalid JSON"},
		{"get", "\xff", 415, "Unsupported documented encoding; supported encoding is UTF-8"},
		{"get", `{"clientToken":1}`, 400, "Invalid clientToken"},
	} {
		for _, p := range []string{gw1, named} {
			got := f.answer(p+c.op, c.payload, "/rejected")
			if got["code"] != float64(c.code) || got["message"] != c.message || got["timestamp"] != float64(now.Unix()) {
				t.Errorf("%s%s %.60s: %v, want %d %s", p, c.op, c.payload, got, c.code, c.message)
			}
			if token := got["clientToken"]; strings.Contains(c.payload, `"clientToken":"x"`) != (token == "x") {
				t.Errorf("%s%s %.60s: token %v", p, c.op, c.payload, token)
			}
		}
	}
	for _, name := range []string{"", "config"} {
		d, err := f.store.Shadow(t.Context(), "gw-1", name)
		if err != nil || d.Version != 2 || d.Desired.String() != `{"a":2}` {
			t.Errorf("after the rejections: %+v, %v", d, err)
		}
	}
}

func TestShadowNotFound(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct{ topic, message string }{
		{gw1 + "get", "No shadow exists with name: gw-1"},
		{gw1 + "delete", "No shadow exists with name: gw-1"},
		{gw1 + "name/cfg/get", "No shadow exists with name: cfg"},
		{gw1 + "name/cfg/delete", "No shadow exists with name: cfg"},
		{"$aws/things/nobody/shadow/get", "Thing not found"},
		{"$aws/things/nobody/shadow/name/cfg/delete", "Thing not found"},
	} {
		if got := f.answer(c.topic, `{"clientToken":"x"}`, "/rejected"); got["code"] != float64(404) || got["message"] != c.message || got["clientToken"] != "x" {
			t.Errorf("%s: %v, want %s", c.topic, got, c.message)
		}
	}
	if got := f.answer("$aws/things/nobody/shadow/update", `{"state":{},"clientToken":"x"}`, "/rejected"); got["message"] != "Thing not found" || got["clientToken"] != "x" {
		t.Errorf("%v", got)
	}
	for _, name := range []string{strings.Repeat("n", 65), "a b", "é", "a.b"} {
		for _, op := range []string{"get", "update", "delete"} {
			if got := f.answer(gw1+"name/"+name+"/"+op, `{"state":{}}`, "/rejected"); got["code"] != float64(400) || got["message"] == "" {
				t.Errorf("name %q, %s: %v", name, op, got)
			}
		}
	}
}

// delete takes any body, and the version lives on.
func TestShadowDelete(t *testing.T) {
	f := newFixture(t)
	last := 0.0
	for _, c := range []struct{ body, token string }{{``, ""}, {`{"clientToken":"d"}`, "d"}, {`not JSON`, ""}, {`{"clientToken":7}`, ""}} {
		created := f.answer(gw1+"update", `{"state":{"reported":{"a":1}}}`, "/accepted")
		if created["version"].(float64) <= last {
			t.Fatalf("version %v after %v", created["version"], last)
		}
		got := f.answer(gw1+"delete", c.body, "/accepted")
		if token, _ := got["clientToken"].(string); got["version"] != created["version"] || token != c.token || got["state"] != nil {
			t.Errorf("%q: %v", c.body, got)
		}
		last = got["version"].(float64)
	}
}

// What SDKs put into bodies besides is passed over.
func TestShadowToleratesWhatSDKsSend(t *testing.T) {
	f := newFixture(t)
	got := f.answer(gw1+"name/cfg/update", `{"thingName":"gw-1","shadowName":"cfg","state":{"reported":{"a":1},"delta":{"z":1}},"clientToken":"t"}`, "/accepted")
	if fmt.Sprint(got["state"]) != "map[reported:map[a:1]]" || got["clientToken"] != "t" {
		t.Errorf("%v", got)
	}
	got = f.answer(gw1+"name/cfg/get", `{"thingName":"gw-1","shadowName":"cfg","clientToken":"t"}`, "/accepted")
	if got["version"] != float64(1) || got["clientToken"] != "t" {
		t.Errorf("%v", got)
	}
}

// choosy is a broker that knows who listens to what.
type choosy struct {
	outgoing
	filters []string
}

func (c *choosy) Listening(topic string) bool {
	for _, f := range c.filters {
		if mqtt.Matches(f, topic) {
			return true
		}
	}
	return false
}

func TestNobodyListensNothingIsPublished(t *testing.T) {
	for _, c := range []struct {
		filters []string
		want    []string
	}{
		{nil, nil},
		{[]string{gw1 + "update/accepted"}, []string{"accepted"}},
		{[]string{gw1 + "update/delta", gw1 + "update/rejected"}, []string{"delta"}},
		{[]string{"$aws/things/+/shadow/update/documents"}, []string{"documents"}},
		{[]string{gw1 + "update/#"}, []string{"accepted", "documents", "delta"}},
	} {
		b := &choosy{filters: c.filters}
		var r shadow.Result
		r, err := shadow.Apply(shadow.Document{}, shadow.NewUpdate(map[string]any{"a": 1}, nil), now)
		if err != nil {
			t.Fatal(err)
		}
		if err := (&mqtt.Publisher{Broker: b, Now: time.Now}).ShadowUpdated(t.Context(), "gw-1", "", r); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range b.sent {
			got = append(got, strings.TrimPrefix(m.Topic, gw1+"update/"))
		}
		if strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("%v: published %v, want %v", c.filters, got, c.want)
		}
	}
}

// picky is a broker that does not take everything.
type picky struct {
	outgoing
	refuses string // suffix of topics
}

var errPicky = errors.New("not this one")

func (p *picky) Publish(ctx context.Context, m mqtt.Message) error {
	if strings.HasSuffix(m.Topic, p.refuses) {
		return errPicky
	}
	return p.outgoing.Publish(ctx, m)
}

// What an update is told by does not depend on each other, and is acknowledged.
func TestPartsOfAnUpdateStandAlone(t *testing.T) {
	r, err := shadow.Apply(shadow.Document{}, shadow.NewUpdate(map[string]any{"a": 1}, nil), now)
	if err != nil {
		t.Fatal(err)
	}
	for refuses, want := range map[string]string{
		"accepted": "documents delta", "documents": "accepted delta", "delta": "accepted documents", "none": "accepted documents delta",
	} {
		b := &picky{refuses: refuses}
		err := (&mqtt.Publisher{Broker: b, Now: time.Now}).ShadowUpdated(t.Context(), "gw-1", "", r)
		if errors.Is(err, errPicky) == (refuses == "none") {
			t.Errorf("without %s: %v", refuses, err)
		}
		var got []string
		for _, m := range b.sent {
			got = append(got, strings.TrimPrefix(m.Topic, gw1+"update/"))
			if m.QoS != 1 {
				t.Errorf("%s has QoS %d", m.Topic, m.QoS)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("without %s: published %v, want %s", refuses, got, want)
		}
	}
}

// slow is a store whose shadow updates and job reads wait to be let go, and
// then fail.
type slow struct {
	fleet.Store
	arrived chan struct{}
	release chan struct{}
}

var errDisk = fmt.Errorf("write: %w", io.ErrShortWrite)

func (s *slow) wait() error {
	s.arrived <- struct{}{}
	<-s.release
	return errDisk
}

func (s *slow) UpdateShadow(context.Context, string, string, shadow.Update, time.Time) (shadow.Result, error) {
	return shadow.Result{}, s.wait()
}

// locked is an outgoing that many may use.
type locked struct {
	mu sync.Mutex
	outgoing
}

func (l *locked) Publish(ctx context.Context, m mqtt.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.outgoing.Publish(ctx, m)
}

func (l *locked) Reply(ctx context.Context, _, answer mqtt.Message) error {
	return l.Publish(ctx, answer)
}

func (l *locked) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	sent := topics(l.sent)
	l.sent = nil
	return sent
}

// Of one device at most ten requests are under way; others are not held up, and
// what is answered makes room.
func TestTooManyRequestsInFlight(t *testing.T) {
	s := &slow{Store: memstore.New(), arrived: make(chan struct{}), release: make(chan struct{})}
	out := &locked{}
	log := slog.New(slog.DiscardHandler)
	clock := func() time.Time { return now }
	e := mqtt.NewEndpoint(out, fleet.New(fleet.Config{Store: s, Publisher: &mqtt.Publisher{Broker: out, Now: clock}, Now: clock, Log: log}), log, clock)
	update := func(device string) mqtt.Message {
		return mqtt.Message{Topic: "$aws/things/" + device + "/shadow/update", Payload: []byte(`{"state":{},"clientToken":"t"}`), QoS: 1}
	}
	var done sync.WaitGroup
	for range mqtt.MaxInFlight {
		done.Go(func() {
			if err := e.Handle(t.Context(), update("gw-1")); !errors.Is(err, errDisk) {
				t.Errorf("got %v", err)
			}
		})
		<-s.arrived
	}
	if err := e.Handle(t.Context(), update("gw-1")); err != nil {
		t.Fatal(err)
	}
	if sent := out.take(); sent != gw1+`update/rejected {"code":429,"message":"Too many requests in flight; wait for the answers","timestamp":1775034000,"clientToken":"t"}` {
		t.Errorf("one more: %s", sent)
	}
	if err := e.Handle(t.Context(), mqtt.Message{Topic: jobs + "$next/get", Payload: []byte(`{"clientToken":"t"}`)}); err != nil {
		t.Fatal(err)
	}
	if sent := out.take(); !strings.HasPrefix(sent, jobs+"$next/get/rejected ") || !strings.Contains(sent, `"code":"RequestThrottled"`) || !strings.Contains(sent, `"clientToken":"t"`) {
		t.Errorf("one more: %s", sent)
	}
	done.Go(func() { _ = e.Handle(t.Context(), update("gw-2")) })
	<-s.arrived // another device is let through
	close(s.release)
	done.Wait()
	if sent := out.take(); sent != "" {
		t.Errorf("QoS 1 comes again, so nobody is answered: %s", sent)
	}
	done.Go(func() { _ = e.Handle(t.Context(), update("gw-1")) })
	<-s.arrived // and so is the first again
	done.Wait()
}

// A fault of ours: a QoS 1 request comes again, the sender of a QoS 0 one hears
// of it.
func TestInternalErrors(t *testing.T) {
	s := &slow{Store: broken{}, arrived: make(chan struct{}, 1), release: make(chan struct{})}
	close(s.release)
	out := &locked{}
	log := slog.New(slog.DiscardHandler)
	clock := func() time.Time { return now }
	e := mqtt.NewEndpoint(out, fleet.New(fleet.Config{Store: s, Publisher: &mqtt.Publisher{Broker: out, Now: clock}, Now: clock, Log: log}), log, clock)
	for _, c := range []struct{ topic, payload, want string }{
		{gw1 + "update", `{"state":{},"clientToken":"t"}`, `{"code":500,"message":"Internal service failure",`},
		{gw1 + "get", `{"clientToken":"t"}`, `{"code":500,"message":"Internal service failure",`},
		{jobs + "$next/get", `{"clientToken":"t"}`, `"code":"InternalError","message":"Internal service failure"`},
	} {
		if err := e.Handle(t.Context(), mqtt.Message{Topic: c.topic, Payload: []byte(c.payload)}); err != nil {
			t.Errorf("%s: %v", c.topic, err)
		}
		if sent := out.take(); !strings.HasPrefix(sent, c.topic+"/rejected ") || !strings.Contains(sent, c.want) || !strings.Contains(sent, `"clientToken":"t"`) {
			t.Errorf("%s: %s, want %s", c.topic, sent, c.want)
		}
		if len(s.arrived) > 0 {
			<-s.arrived
		}
		err := e.Handle(t.Context(), mqtt.Message{Topic: c.topic, Payload: []byte(c.payload), QoS: 1})
		if sent := out.take(); !errors.Is(err, errDisk) || sent != "" {
			t.Errorf("%s with QoS 1: %v, %s", c.topic, err, sent)
		}
		if len(s.arrived) > 0 {
			<-s.arrived
		}
	}
}

// broken is a store that can not read.
type broken struct{ fleet.Store }

func (broken) Openings(context.Context) ([]ota.Rollout, error) { return nil, errDisk }

func (broken) Shadow(context.Context, string, string) (shadow.Document, error) {
	return shadow.Document{}, errDisk
}

func (broken) NextExecution(context.Context, string) (ota.Execution, error) {
	return ota.Execution{}, errDisk
}
