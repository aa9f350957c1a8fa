package mqtt

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/internal/testserver"
	"github.com/otad/otad/pkg/ota"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	deviceID = "gw-1"
	// patience is how long anything may take that has to come.
	patience = 30 * time.Second
)

// message is what the scripted server saw.
type message struct {
	topic   string
	payload map[string]any
}

// script is otad's side: it answers each request by the function set, or not at
// all.
type script struct {
	cm      *autopaho.ConnectionManager
	seen    chan message
	up      chan struct{} // each time it is connected and has subscribed
	ctx     context.Context
	replies sync.WaitGroup

	mu    sync.Mutex
	reply func(m message) (suffix string, body map[string]any) // suffix "" is silence
}

func (s *script) answer(f func(m message) (string, map[string]any)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply = f
}

func (s *script) handle(p paho.PublishReceived) (bool, error) {
	m := message{topic: p.Packet.Topic}
	if json.Unmarshal(p.Packet.Payload, &m.payload) != nil {
		return true, nil
	}
	s.seen <- m
	s.mu.Lock()
	f := s.reply
	s.mu.Unlock()
	if m.payload["clientToken"] == nil { // presence asks for nothing
		return true, nil
	}
	s.replies.Go(func() { // beside the reader, which takes the acknowledgements
		if suffix, body := f(m); suffix != "" {
			body = maps.Clone(body)
			body["clientToken"] = m.payload["clientToken"]
			s.publish(m.topic+suffix, body)
		}
	})
	return true, nil
}

func (s *script) publish(topic string, body any) {
	payload, _ := json.Marshal(body)
	s.send(topic, payload)
}

func (s *script) send(topic string, payload []byte) {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	_, _ = s.cm.Publish(ctx, &paho.Publish{Topic: topic, Payload: payload, QoS: 1})
}

// bench is a broker, the scripted server and one device.
type bench struct {
	broker *testserver.Broker
	pki    *testserver.PKI
	server *script
	device *Transport
}

func newBench(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	b := &bench{pki: testserver.NewPKI(t)}
	b.broker = testserver.Mosquitto(t, b.pki)
	b.server = newScript(t, b.broker)
	cert := b.pki.Client(deviceID)
	cfg := Config{
		URL: "mqtts://" + b.broker.DeviceAddr, DeviceID: deviceID, CAs: b.pki.Pool(),
		Certificate:    func() *tls.Certificate { return &cert },
		RequestTimeout: patience,
		Backoff:        func(int) time.Duration { return 20 * time.Millisecond },
	}
	if change != nil {
		change(&cfg)
	}
	device, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(device.Close)
	b.device = device
	return b
}

func newScript(t *testing.T, broker *testserver.Broker) *script {
	t.Helper()
	s := &script{seen: make(chan message, 1000), up: make(chan struct{}, 100), reply: func(message) (string, map[string]any) { return "", nil }}
	u, err := url.Parse("mqtts://" + broker.ServerAddr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.ctx = ctx
	s.cm, err = autopaho.NewConnection(context.Background(), autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, TlsCfg: broker.ServerTLS(), KeepAlive: 20,
		ReconnectBackoff: func(int) time.Duration { return 10 * time.Millisecond },
		OnConnectionUp: func(cm *autopaho.ConnectionManager, _ *paho.Connack) {
			s.replies.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, patience)
				defer cancel()
				_, err := cm.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{
					{Topic: "$aws/things/+/jobs/+/get", QoS: 1}, {Topic: "$aws/things/+/jobs/+/update", QoS: 1},
					{Topic: "$aws/things/+/shadow/update", QoS: 1}, {Topic: "ota/+/presence", QoS: 1},
				}})
				if err == nil {
					s.up <- struct{}{}
				}
			})
		},
		ClientConfig: paho.ClientConfig{ClientID: "otad-test", OnPublishReceived: []func(paho.PublishReceived) (bool, error){s.handle}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		s.replies.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.cm.Disconnect(ctx)
	})
	await(t, s.up, "the scripted server's subscription")
	return s
}

func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s within %s", what, patience)
		panic("unreachable")
	}
}

// expect skips what the server saw until a message on a topic with this ending.
func (b *bench) expect(t *testing.T, ending string) message {
	t.Helper()
	for {
		if m := await(t, b.server.seen, ending); strings.HasSuffix(m.topic, ending) {
			return m
		}
	}
}

func TestNext(t *testing.T) {
	b := newBench(t, nil)
	await(t, b.device.Wake(), "wake on connect")
	b.server.answer(func(m message) (string, map[string]any) {
		return accepted, map[string]any{"timestamp": 1, "execution": map[string]any{
			"jobId": "ro-7", "thingName": deviceID, "status": "IN_PROGRESS", "versionNumber": 4, "executionNumber": 2, "queuedAt": 1, "lastUpdatedAt": 1,
			"jobDocument": ota.NewJobDocument(ota.ReleaseID{Name: "gateway", Version: "1.2"}, 2),
		}}
	})
	job, ok, err := b.device.Next(t.Context())
	want := agent.Job{ID: "ro-7", Attempt: 2, Status: ota.InProgress, Version: 4, Document: ota.JobDocument{
		Operation: "install", Name: "gateway", Version: "1.2", Target: "gateway/1.2.idx", Attempt: 2}}
	if err != nil || !ok || job != want {
		t.Errorf("%+v, %v, %v", job, ok, err)
	}
	b.server.answer(func(message) (string, map[string]any) { return accepted, map[string]any{"timestamp": 1} })
	if job, ok, err := b.device.Next(t.Context()); err != nil || ok {
		t.Errorf("%+v, %v, %v", job, ok, err)
	}
	b.server.answer(func(message) (string, map[string]any) {
		return rejected, map[string]any{"code": "InternalError", "message": "store is away"}
	})
	if _, _, err := b.device.Next(t.Context()); !errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

// refusals are the server's answers to an update of version 8, and what they mean
// for a report that counts for any version.
func refusals() map[string]struct {
	body   map[string]any
	report error // nil: stored
	other  bool  // an error that means nothing in particular
} {
	state := func(status string) map[string]any { return map[string]any{"status": status, "versionNumber": 9} }
	return map[string]struct {
		body   map[string]any
		report error
		other  bool
	}{
		"already finished":             {map[string]any{"code": "TerminalStateReached", "executionState": state("SUCCEEDED")}, agent.ErrEnded, false},
		"cancelled":                    {map[string]any{"code": "InvalidStateTransition", "executionState": state("CANCELED")}, agent.ErrEnded, false},
		"finished by timeout":          {map[string]any{"code": "InvalidStateTransition", "executionState": state("TIMED_OUT")}, agent.ErrEnded, false},
		"unknown job":                  {map[string]any{"code": "ResourceNotFound"}, agent.ErrEnded, false},
		"attempt superseded":           {map[string]any{"code": "VersionMismatch", "executionState": state("QUEUED")}, agent.ErrEnded, false},
		"transition refused":           {map[string]any{"code": "InvalidStateTransition", "executionState": state("QUEUED")}, agent.ErrHeld, false},
		"transition refused, no state": {map[string]any{"code": "InvalidStateTransition"}, nil, true},
		"invalid":                      {map[string]any{"code": "InvalidRequest"}, nil, true},
		"server fault":                 {map[string]any{"code": "InternalError"}, agent.ErrUnreachable, false},
		"no code":                      {map[string]any{}, nil, true},
	}
}

func TestReport(t *testing.T) {
	b := newBench(t, nil)
	r := agent.Report{JobID: "ro-7", Attempt: 3, Seq: 5, Status: ota.Succeeded, Details: map[string]string{"step": "x"}}
	want := map[string]any{"status": "SUCCEEDED", "executionNumber": 3.0, "includeJobExecutionState": true, "statusDetails": map[string]any{"step": "x"}}
	sent := func(name string) {
		t.Helper()
		m := b.expect(t, "/jobs/ro-7/update")
		delete(m.payload, "clientToken")
		if d := cmp.Diff(want, m.payload); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	b.server.answer(func(message) (string, map[string]any) { return accepted, map[string]any{} })
	if err := b.device.Report(t.Context(), r); err != nil {
		t.Error(err)
	}
	sent("stored")
	for name, tc := range refusals() {
		b.server.answer(func(message) (string, map[string]any) { return rejected, tc.body })
		err := b.device.Report(t.Context(), r)
		if tc.report != nil && !errors.Is(err, tc.report) || tc.other && (err == nil || errors.Is(err, agent.ErrEnded) || errors.Is(err, agent.ErrHeld)) {
			t.Errorf("%s: %v", name, err)
		}
		sent(name)
	}
}

func TestAnnounce(t *testing.T) {
	b := newBench(t, nil)
	r := agent.Report{JobID: "ro-7", Attempt: 3, Status: ota.InProgress, Details: map[string]string{"step": "rebooting"}}
	b.server.answer(func(message) (string, map[string]any) { return accepted, map[string]any{} })
	if err := b.device.Announce(t.Context(), r, 8); err != nil {
		t.Error(err)
	}
	if m := b.expect(t, "/jobs/ro-7/update"); m.payload["expectedVersion"] != 8.0 || m.payload["executionNumber"] != 3.0 {
		t.Errorf("%v", m.payload)
	}
	for name, tc := range refusals() {
		want := tc.report
		if name == "attempt superseded" {
			want = agent.ErrChanged
		}
		b.server.answer(func(message) (string, map[string]any) { return rejected, tc.body })
		if err := b.device.Announce(t.Context(), r, 8); want != nil && !errors.Is(err, want) || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLook(t *testing.T) {
	b := newBench(t, nil)
	execution := map[string]any{"jobId": "ro-7", "thingName": deviceID, "status": "CANCELED", "versionNumber": 4, "executionNumber": 2, "jobDocument": map[string]any{"operation": "install", "hold": true}}
	b.server.answer(func(message) (string, map[string]any) { return accepted, map[string]any{"execution": execution} })
	job, err := b.device.Look(t.Context(), "ro-7", 2)
	if err != nil || job.Status != ota.Canceled || job.Version != 4 || !job.Document.Hold {
		t.Errorf("%+v, %v", job, err)
	}
	if m := b.expect(t, "/jobs/ro-7/get"); m.payload["executionNumber"] != 2.0 {
		t.Errorf("%v", m.payload)
	}
	for _, foreign := range [][2]any{{"ro-8", 2}, {"ro-7", 1}} {
		if _, err := b.device.Look(t.Context(), foreign[0].(string), foreign[1].(int)); !errors.Is(err, ErrReply) {
			t.Errorf("%v: %v", foreign, err)
		}
	}
	b.server.answer(func(message) (string, map[string]any) { return accepted, map[string]any{} })
	if _, err := b.device.Look(t.Context(), "ro-7", 2); !errors.Is(err, agent.ErrEnded) {
		t.Errorf("none: %v", err)
	}
	b.server.answer(func(message) (string, map[string]any) { return rejected, map[string]any{"code": "ResourceNotFound"} })
	if _, err := b.device.Look(t.Context(), "ro-7", 2); !errors.Is(err, agent.ErrEnded) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := b.device.Look(t.Context(), "a/b", 2); !errors.Is(err, agent.ErrEnded) {
		t.Errorf("impossible: %v", err)
	}
}

func TestReportShadow(t *testing.T) {
	b := newBench(t, nil)
	b.server.answer(func(message) (string, map[string]any) { return accepted, map[string]any{"version": 2} })
	firmware := map[string]any{"firmware": map[string]any{"name": "gateway", "version": "1.2"}}
	if err := b.device.ReportShadow(t.Context(), firmware); err != nil {
		t.Error(err)
	}
	m := b.expect(t, "$aws/things/gw-1/shadow/update")
	if d := cmp.Diff(map[string]any{"reported": firmware}, m.payload["state"]); d != "" {
		t.Error(d)
	}
	b.server.answer(func(message) (string, map[string]any) {
		return rejected, map[string]any{"code": 413, "message": "too large"}
	})
	var refused *RejectedError
	if err := b.device.ReportShadow(t.Context(), firmware); !errors.As(err, &refused) || refused.Code != "413" {
		t.Errorf("%v", err)
	}
	for _, code := range []any{429, 500, "RequestThrottled", "InternalError"} { // worth another try
		b.server.answer(func(message) (string, map[string]any) {
			return rejected, map[string]any{"code": code, "message": "later"}
		})
		if err := b.device.ReportShadow(t.Context(), firmware); !errors.Is(err, agent.ErrUnreachable) {
			t.Errorf("%v: %v", code, err)
		}
	}
	if err := b.device.ReportShadow(t.Context(), map[string]any{"x": strings.Repeat("x", MaxPayload)}); err == nil || errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("oversized: %v", err)
	}
}

// A reply that is lost costs one timeout, and the next question is answered;
// late answers to the first reach nobody.
func TestLostReplyIsATimeoutAndARetry(t *testing.T) {
	b := newBench(t, func(c *Config) { c.RequestTimeout = 300 * time.Millisecond })
	await(t, b.device.Wake(), "wake on connect")
	_, _, err := b.device.Next(t.Context())
	if !errors.Is(err, agent.ErrUnreachable) {
		t.Fatalf("%v", err)
	}
	late := b.expect(t, "/get")
	b.server.publish(late.topic+accepted, map[string]any{"clientToken": late.payload["clientToken"], "execution": map[string]any{
		"jobId": "old", "status": "QUEUED", "executionNumber": 1}})
	b.server.answer(func(message) (string, map[string]any) { return accepted, map[string]any{} })
	job, ok, err := retried(t, b.device)
	if err != nil || ok {
		t.Errorf("%+v, %v, %v", job, ok, err)
	}
}

// retried asks again while the answer is ErrUnreachable, as the agent does.
func retried(t *testing.T, d *Transport) (agent.Job, bool, error) {
	for deadline := time.Now().Add(patience); ; {
		job, ok, err := d.Next(t.Context())
		if !errors.Is(err, agent.ErrUnreachable) || time.Now().After(deadline) {
			return job, ok, err
		}
	}
}

// Answers to others, to nobody and in no language are dropped, and the right
// one still arrives.
func TestBadMessagesAreDropped(t *testing.T) {
	b := newBench(t, nil)
	await(t, b.device.Wake(), "wake on connect")
	b.server.answer(func(m message) (string, map[string]any) {
		topic := m.topic + accepted
		foreign := strings.Replace(m.topic, "$next/get", "x/update/accepted", 1)
		for _, bad := range []string{"", "{", "null", "[]", `"x"`, "\xff\xfe", `{"clientToken":5}`, `{"clientToken":"other","execution":{"jobId":"evil"}}`} {
			b.server.send(topic, []byte(bad))
		}
		b.server.send(foreign, fmt.Appendf(nil, `{"clientToken":%q,"execution":{"jobId":"evil"}}`, m.payload["clientToken"]))
		return accepted, map[string]any{}
	})
	if job, ok, err := b.device.Next(t.Context()); err != nil || ok {
		t.Errorf("%+v, %v, %v", job, ok, err)
	}
}

func TestNotificationWakes(t *testing.T) {
	b := newBench(t, nil)
	await(t, b.device.Wake(), "wake on connect")
	for range 3 {
		b.server.publish("$aws/things/gw-1/jobs/notify-next", map[string]any{"timestamp": 1})
	}
	await(t, b.device.Wake(), "wake on notification")
	await(t, b.device.Connected(), "a connect")
	select {
	case <-b.device.Connected():
		t.Error("a notification is no connect")
	default:
	}
}

func TestBrokerRestart(t *testing.T) {
	b := newBench(t, nil)
	b.server.answer(func(message) (string, map[string]any) { return accepted, map[string]any{} })
	for range 2 {
		await(t, b.device.Wake(), "wake on connect")
		await(t, b.device.Connected(), "a connect")
		if _, _, err := retried(t, b.device); err != nil {
			t.Fatal(err)
		}
		b.broker.Kill()
		b.broker.Restart()
		await(t, b.server.up, "the scripted server again") // this broker keeps no question for it
	}
	await(t, b.device.Wake(), "wake on the last connect")
}

// A request under way when the line breaks fails at once, not at its timeout.
func TestBrokenLineFailsRequests(t *testing.T) {
	b := newBench(t, func(c *Config) { c.RequestTimeout = time.Hour })
	await(t, b.device.Wake(), "wake on connect")
	failed := make(chan error, 1)
	go func() {
		_, _, err := b.device.Next(context.Background())
		failed <- err
	}()
	b.expect(t, "/get")
	b.broker.Kill()
	if err := await(t, failed, "failure of the request"); !errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := b.device.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("while down: %v", err)
	}
}

func TestPresence(t *testing.T) {
	b := newBench(t, nil)
	if m := b.expect(t, "ota/gw-1/presence"); m.payload["online"] != true {
		t.Errorf("%v", m)
	}
	b.device.Close()
	if m := b.expect(t, "ota/gw-1/presence"); m.payload["online"] != false {
		t.Errorf("%v", m)
	}
	if _, _, err := b.device.Next(t.Context()); !errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("after Close: %v", err)
	}
}

// The broker is believed only under the pinned CA; a device waits, and Close
// still ends it.
func TestFalseBroker(t *testing.T) {
	b := newBench(t, func(c *Config) { c.RequestTimeout = 300 * time.Millisecond })
	other := testserver.NewPKI(t)
	cfg := b.device.cfg
	cfg.CAs = other.Pool()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, _, err := d.Next(t.Context()); !errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	pki := testserver.NewPKI(t)
	for _, c := range []Config{
		{URL: "mqtt://x:1883", DeviceID: "a"}, {URL: "mqtts://x", DeviceID: "a"}, {URL: "", DeviceID: "a"},
		{URL: "mqtts://x:1", DeviceID: "a/+"}, {URL: "mqtts://x:1", DeviceID: "a"}, {URL: "mqtts://x:1", DeviceID: "a", CAs: pki.Pool()},
	} {
		if d, err := New(c); err == nil {
			d.Close()
			t.Errorf("%+v accepted", c)
		}
	}
}

var _ net.Conn = (*limitConn)(nil)
