package mqtt_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/ota"
)

var now = time.Date(2026, 4, 1, 9, 0, 0, 0, time.UTC)

// outgoing is the Broker an Endpoint under test publishes to.
type outgoing struct {
	sent    []mqtt.Message
	evicted []mqtt.Eviction
}

func (o *outgoing) Subscribe(context.Context, []string, mqtt.Handler) error { return nil }
func (o *outgoing) Publish(_ context.Context, m mqtt.Message) error {
	o.sent = append(o.sent, m)
	return nil
}
func (o *outgoing) Reply(ctx context.Context, _, answer mqtt.Message) error {
	return o.Publish(ctx, answer)
}
func (o *outgoing) Listening(string) bool { return true }
func (o *outgoing) Evict(e mqtt.Eviction) { o.evicted = append(o.evicted, e) }
func (o *outgoing) Close() error          { return nil }

type fixture struct {
	t     *testing.T
	out   *outgoing
	store fleet.Store
	now   time.Time
	s     *fleet.Service
	e     *mqtt.Endpoint
}

// newFixture has the device gw-1 with a QUEUED execution in rollout r-1.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, out: &outgoing{}, store: memstore.New(), now: now}
	clock := func() time.Time { return f.now }
	log := slog.New(slog.DiscardHandler)
	s := fleet.New(fleet.Config{Store: f.store, Blobs: directory(t), Publisher: &mqtt.Publisher{Broker: f.out, Now: clock}, Now: clock, Log: log})
	f.s, f.e = s, mqtt.NewEndpoint(f.out, s, log, clock)
	ctx := t.Context()
	_, secret, err := s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{Uses: 2})
	f.ok(err)
	for _, id := range []string{"gw-1", "gw-2"} {
		_, err := f.store.Enroll(ctx, fleet.Device{ID: id, Hardware: "rpi4", KeyFingerprint: strings.Repeat("a", 64), CreatedAt: now}, hash(secret), now)
		f.ok(err)
	}
	release := ota.Release{
		Manifest: ota.Manifest{Name: "gw", Version: "1.0", HardwareIDs: []string{"rpi4"}, Installer: ota.InstallImage, ImageDigest: strings.Repeat("b", 64), ImageSize: 1, ObjectSize: 1},
		State:    ota.ReleaseDraft, IndexDigest: strings.Repeat("c", 64), IndexSize: 1, CreatedAt: now,
	}
	_, err = f.store.CreateRelease(ctx, release)
	f.ok(err)
	stages, err := ota.ParseStages("100%", ota.Gate{Success: 1}, 0)
	f.ok(err)
	r := ota.Rollout{ID: "r-1", Release: release.ID(), Seed: "s", Stages: stages, State: ota.RolloutRunning, Population: 1, CreatedAt: now, ArmedAt: now}
	f.ok(f.store.CreateRollout(ctx, r))
	r, err = f.store.Rollout(ctx, "r-1")
	f.ok(err)
	r.Stages[0].State, r.Stages[0].Target, r.Stages[0].OpenedAt = ota.StageOpen, 1, now
	f.ok(f.store.Advance(ctx, fleet.Advance{Rollout: r, Now: now, Insert: []ota.Execution{{
		RolloutID: "r-1", DeviceID: "gw-1", Release: release.ID(), Attempt: 1, Status: ota.Queued, Version: 1, QueuedAt: now, UpdatedAt: now,
	}}}))
	return f
}

func (f *fixture) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// send hands over one message and returns what was published for it.
func (f *fixture) send(topic, payload string) []mqtt.Message {
	f.t.Helper()
	f.out.sent = nil
	f.ok(f.e.Handle(f.t.Context(), mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: 1, CorrelationData: []byte("c")}))
	return f.out.sent
}

// answer is send, and returns the one message that answers.
func (f *fixture) answer(topic, payload, wantSuffix string) map[string]any {
	f.t.Helper()
	sent := f.send(topic, payload)
	i := slices.IndexFunc(sent, func(m mqtt.Message) bool { return m.Topic == topic+wantSuffix })
	if i < 0 {
		f.t.Fatalf("%s %s: published %s, want %s", topic, payload, topics(sent), topic+wantSuffix)
	}
	var body map[string]any
	f.ok(json.Unmarshal(sent[i].Payload, &body))
	return body
}

func topics(sent []mqtt.Message) string {
	var all []string
	for _, m := range sent {
		all = append(all, fmt.Sprintf("%s %s", m.Topic, m.Payload))
	}
	return strings.Join(all, "; ")
}

const jobs = "$aws/things/gw-1/jobs/"

func TestJobsConversation(t *testing.T) {
	f := newFixture(t)
	got := f.answer(jobs+"$next/get", `{"clientToken":"t1"}`, "/accepted")
	e := got["execution"].(map[string]any)
	document := e["jobDocument"].(map[string]any)
	if got["clientToken"] != "t1" || e["status"] != "QUEUED" || e["jobId"] != "r-1" || e["thingName"] != "gw-1" ||
		document["target"] != "gw/1.0.idx" || document["operation"] != "install" || got["timestamp"] != float64(now.Unix()) {
		t.Fatalf("%v", got)
	}
	if got := f.answer(jobs+"get", ``, "/accepted"); len(got["queuedJobs"].([]any)) != 1 || len(got["inProgressJobs"].([]any)) != 0 {
		t.Fatalf("%v", got)
	}
	if got := f.answer(jobs+"start-next", `{"statusDetails":{"step":"fetching"}}`, "/accepted"); got["execution"].(map[string]any)["status"] != "IN_PROGRESS" {
		t.Fatalf("%v", got)
	}
	// The embedded C library sends the version as a string.
	got = f.answer(jobs+"r-1/update", `{"status":"IN_PROGRESS","expectedVersion":"2","includeJobExecutionState":true,"includeJobDocument":true}`, "/accepted")
	if got["executionState"].(map[string]any)["versionNumber"] != float64(3) || got["jobDocument"] == nil {
		t.Fatalf("%v", got)
	}
	got = f.answer(jobs+"r-1/update", `{"status":"SUCCEEDED","expectedVersion":2}`, "/rejected")
	if got["code"] != "VersionMismatch" || got["executionState"].(map[string]any)["status"] != "IN_PROGRESS" {
		t.Fatalf("%v", got)
	}
	sent := f.send(jobs+"r-1/update", `{"status":"SUCCEEDED","executionNumber":1}`)
	if want := fmt.Sprintf(`%snotify {"timestamp":%d,"jobs":{}}; %snotify-next {"timestamp":%d}; %sr-1/update/accepted {"timestamp":%d}`,
		jobs, now.Unix(), jobs, now.Unix(), jobs, now.Unix()); topics(sent) != want {
		t.Fatalf("%s", topics(sent))
	}
	got = f.answer(jobs+"r-1/update", `{"status":"FAILED"}`, "/rejected")
	if got["code"] != "InvalidStateTransition" || got["executionState"].(map[string]any)["status"] != "SUCCEEDED" {
		t.Fatalf("%v", got)
	}
	if got := f.answer(jobs+"$next/get", `{}`, "/accepted"); got["execution"] != nil {
		t.Fatalf("%v", got)
	}
	if got := f.answer(jobs+"r-1/get", `{"includeJobDocument":false}`, "/accepted"); got["execution"].(map[string]any)["jobDocument"] != nil {
		t.Fatalf("%v", got)
	}
}

func TestJobsBadRequests(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct{ topic, payload, code string }{
		{jobs + "r-1/update", `{`, "InvalidJson"},
		{jobs + "r-1/update", "{\"status\":\"\xff\"}", "InvalidJson"},
		{jobs + "r-1/update", `{"status":"FAILED"} x`, "InvalidJson"},
		{jobs + "get", `nope`, "InvalidJson"},
		{jobs + "start-next", `{"statusDetails":`, "InvalidJson"},
		{jobs + "$next/get", `{'a':1}`, "InvalidJson"},
		{jobs + "r-1/update", `[]`, "InvalidRequest"},
		{jobs + "r-1/update", `null`, "InvalidRequest"},
		{jobs + "r-1/update", `"FAILED"`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","pad":"` + strings.Repeat("x", mqtt.MaxJobRequestBytes) + `"}`, "InvalidRequest"},
		{jobs + "r-1/update", `{}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"Status":"FAILED"}`, "InvalidRequest"}, // names are exact
		{jobs + "r-1/update", `{"status":null}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":7}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"DONE"}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","expectedVersion":"x"}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","expectedVersion":0}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","expectedVersion":1.5}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","executionNumber":"-1"}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","executionNumber":true}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","includeJobDocument":"yes"}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","includeJobExecutionState":1}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","statusDetails":[]}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","statusDetails":{"a":1}}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","statusDetails":{"a":null}}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","statusDetails":{"` + strings.Repeat("k", 129) + `":""}}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"FAILED","statusDetails":{"k":"` + strings.Repeat("v", 1025) + `"}}`, "InvalidRequest"},
		{jobs + "start-next", `{"statusDetails":{"a b":"x"}}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":0}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":-2}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":10081}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":9223372036854775807}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":1.5}`, "InvalidRequest"},
		{jobs + "start-next", `{"stepTimeoutInMinutes":"soon"}`, "InvalidRequest"},
		{jobs + "r-1/get", `{"executionNumber":0}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"status":"QUEUED"}`, "InvalidStateTransition"},
		{jobs + "r-1/update", `{"status":"TIMED_OUT"}`, "InvalidStateTransition"},
		{jobs + "r-1/update", `{"status":"REMOVED"}`, "InvalidStateTransition"},
		{jobs + "r-1/update", `{"status":"FAILED","expectedVersion":2}`, "VersionMismatch"},
		{jobs + "r-1/update", `{"status":"FAILED","executionNumber":2}`, "VersionMismatch"},
		{jobs + "r-1/get", `{"executionNumber":2}`, "ResourceNotFound"},
		{jobs + "$next/update", `{"status":"FAILED"}`, "InvalidTopic"},
		{jobs + "r.1/update", `{"status":"FAILED"}`, "InvalidTopic"},
		{jobs + "a b/get", ``, "InvalidTopic"},
		{jobs + strings.Repeat("j", 65) + "/get", ``, "InvalidTopic"},
		{jobs + "r-1/update", `{"status":"CANCELED"}`, "InvalidStateTransition"},
		{jobs + "r-1/update", `{"status":"IN_PROGRESS","statusDetails":{"a b":""}}`, "InvalidRequest"},
		{jobs + "r-1/update", `{"clientToken":"` + strings.Repeat("x", 65) + `"}`, "InvalidRequest"},
		{jobs + "r-9/update", `{"status":"SUCCEEDED"}`, "ResourceNotFound"},
		{jobs + "r-9/get", `{}`, "ResourceNotFound"},
		{"$aws/things/gw-2/jobs/r-1/update", `{"status":"SUCCEEDED"}`, "ResourceNotFound"}, // not its job
	} {
		got := f.answer(c.topic, c.payload, "/rejected")
		if message, _ := got["message"].(string); got["code"] != c.code || message == "" || got["timestamp"] != float64(now.Unix()) {
			t.Errorf("%s %.80s: %v, want %s", c.topic, c.payload, got, c.code)
		}
		if shown := got["executionState"] != nil; shown != (c.code == "InvalidStateTransition" || c.code == "VersionMismatch") {
			t.Errorf("%s %.80s: state shown %v with %s", c.topic, c.payload, shown, c.code)
		}
	}
	e, err := f.store.Execution(t.Context(), "r-1", "gw-1")
	if err != nil || e.Status != ota.Queued || e.Version != 1 {
		t.Fatalf("bad requests changed the execution: %+v, %v", e, err)
	}
}

func TestShadowConversation(t *testing.T) {
	f := newFixture(t)
	for _, s := range []string{"$aws/things/gw-1/shadow/", "$aws/things/gw-1/shadow/name/config/"} {
		if got := f.answer(s+"get", ``, "/rejected"); got["code"] != float64(404) {
			t.Fatalf("%v", got)
		}
		sent := f.send(s+"update", `{"state":{"desired":{"a":1},"reported":{"a":2}},"clientToken":"x"}`)
		if len(sent) != 3 || sent[0].Topic != s+"update/accepted" || sent[1].Topic != s+"update/documents" || sent[2].Topic != s+"update/delta" {
			t.Fatalf("%s", topics(sent))
		}
		if got := f.answer(s+"update", `{"state":{"reported":{"a":1}},"version":7}`, "/rejected"); got["code"] != float64(409) {
			t.Fatalf("%v", got)
		}
		if got := f.answer(s+"get", `{"clientToken":"y"}`, "/accepted"); got["version"] != float64(1) || got["clientToken"] != "y" || got["state"].(map[string]any)["delta"] == nil {
			t.Fatalf("%v", got)
		}
		if got := f.answer(s+"delete", ``, "/accepted"); got["version"] != float64(1) {
			t.Fatalf("%v", got)
		}
		f.answer(s+"update", `{"state":`, "/rejected")
	}
	if got := f.answer("$aws/things/nobody/shadow/update", `{"state":{}}`, "/rejected"); got["code"] != float64(404) {
		t.Fatalf("%v", got)
	}
}

func TestForeignTopicsAreDropped(t *testing.T) {
	f := newFixture(t)
	for _, topic := range []string{
		"", "x", "$aws/things/gw-1/shadow/update/accepted", "$aws/things/gw-1/jobs/r-1/update/accepted", "$aws/things/+/shadow/get",
		"$aws/things/gw.1/shadow/get", "$aws/things//shadow/get", "$aws/things/gw-1/shadow/name//get", "$aws/things/gw-1/jobs/notify-next",
	} {
		if sent := f.send(topic, `{}`); len(sent) > 0 {
			t.Errorf("%q: answered %s", topic, topics(sent))
		}
	}
}

// fromDevices is a broker that hands over what a test sends.
type fromDevices struct {
	outgoing
	handle mqtt.Handler
}

func (b *fromDevices) Subscribe(_ context.Context, _ []string, h mqtt.Handler) error {
	b.handle = h
	return nil
}

// An external broker lets a revoked device in for as long as its certificate
// lives; its messages must change nothing all the same.
func TestAdmittedDropsRevokedAndUnknownDevices(t *testing.T) {
	f := newFixture(t)
	log := slog.New(slog.DiscardHandler)
	s := fleet.New(fleet.Config{Store: f.store, Publisher: &mqtt.Publisher{Broker: f.out, Now: time.Now}, Now: time.Now, Log: log})
	broker := &fromDevices{}
	handled := 0
	f.ok(mqtt.Admitted(broker, s, log).Subscribe(t.Context(), nil, func(context.Context, mqtt.Message) error { handled++; return nil }))
	send := func(topic string, want int) {
		t.Helper()
		handled = 0
		f.ok(broker.handle(t.Context(), mqtt.Message{Topic: topic}))
		if handled != want {
			t.Errorf("%s: handled %d times, want %d", topic, handled, want)
		}
	}
	send("$aws/things/gw-1/shadow/update", 1)
	send("$aws/things/nobody/shadow/update", 0)
	f.ok(f.store.RevokeDevice(t.Context(), "gw-1", now))
	for _, topic := range []string{"$aws/things/gw-1/shadow/update", "$aws/things/gw-1/jobs/$next/get", "ota/gw-1/presence"} {
		send(topic, 0)
	}
	send("$aws/things/gw-2/shadow/update", 1)
}

func FuzzHandle(f *testing.F) {
	for _, op := range []string{"shadow/update", "shadow/get", "shadow/delete", "jobs/r-1/update", "jobs/$next/get", "jobs/start-next", "jobs/get", "jobs/r-1/get", "jobs/$next/update", "shadow/name/x/update"} {
		f.Add(op, []byte(`{"status":"IN_PROGRESS","statusDetails":{"a":"b"},"executionNumber":1,"includeJobDocument":true,"includeJobExecutionState":null}`))
		f.Add(op, []byte(`{"status":"FAILED","state":{"desired":{"a":[1,{"b":null}]}},"expectedVersion":"1"}`))
	}
	f.Fuzz(func(t *testing.T, op string, payload []byte) {
		x := newFixture(t)
		if err := x.e.Handle(t.Context(), mqtt.Message{Topic: "$aws/things/gw-1/" + op, Payload: payload, QoS: 1}); err != nil {
			t.Fatalf("a device's message is a fault of ours: %v", err)
		}
		for _, m := range x.out.sent {
			if !json.Valid(m.Payload) && !strings.HasSuffix(m.Topic, "/cbor") {
				t.Fatalf("%s: %q is not JSON", m.Topic, m.Payload)
			}
		}
		faults, err := x.store.Check(t.Context())
		if err != nil || len(faults) > 0 {
			t.Fatalf("%v %v", faults, err)
		}
	})
}

func hash(secret [32]byte) [32]byte { return sha256.Sum256(secret[:]) }

// A broker elsewhere knows certificates only: what is about other credentials does
// not concern it, and what is about the device does.
func TestAdmittedEvicts(t *testing.T) {
	out := &outgoing{}
	p := &mqtt.Publisher{Broker: mqtt.Admitted(out, nil, slog.New(slog.DiscardHandler))}
	for _, reason := range []string{fleet.EvictedRevoked, fleet.EvictedDeleted, fleet.EvictedCredential, fleet.EvictedIssuer} {
		p.Evict(fleet.Eviction{DeviceID: "gw-1", Reason: reason, At: now})
	}
	want := []mqtt.Eviction{{DeviceID: "gw-1", Reason: fleet.EvictedRevoked, At: now}, {DeviceID: "gw-1", Reason: fleet.EvictedDeleted, At: now, Forget: true}}
	if !slices.Equal(out.evicted, want) {
		t.Errorf("%v, want %v", out.evicted, want)
	}
}

// What is published as presence counts where the broker does not tell who is
// connected, and there only.
func TestPresenceMessages(t *testing.T) {
	for _, c := range []struct {
		told    bool
		payload string
		reach   fleet.Reachability
		reason  string
		origin  any
		seen    bool
	}{
		{payload: `{"online":true}`, reach: fleet.Online, seen: true},
		{payload: `{"online":false}`, reach: fleet.Offline, reason: mqtt.SaidOffline, seen: true},
		{payload: `{"online":false,"reason":"low battery"}`, reach: fleet.Offline, reason: "low battery", seen: true},
		{told: true, payload: `{"online":false}`, reach: fleet.Unknown, origin: 1, seen: true},
		{told: true, payload: `{"online":true}`, reach: fleet.Unknown}, // a will
	} {
		f := newFixture(t)
		f.e.Told = c.told
		f.ok(f.e.Handle(t.Context(), mqtt.Message{Topic: "ota/gw-1/presence", Payload: []byte(c.payload), QoS: 1, Origin: c.origin}))
		d, err := f.s.Device(t.Context(), "gw-1")
		f.ok(err)
		if d.Reachability != c.reach || d.Connection.Reason != c.reason || d.LastSeen.IsZero() == c.seen {
			t.Errorf("%+v: %s, %q, seen %s", c, d.Reachability, d.Connection.Reason, d.LastSeen)
		}
	}
}
