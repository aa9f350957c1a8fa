package mqtt_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/pkg/ota"
)

// more gives gw-1 another QUEUED execution, of a rollout created after r-1.
func (f *fixture) more(id string, priority int, age time.Duration) {
	f.t.Helper()
	ctx := f.t.Context()
	r, err := f.store.Rollout(ctx, "r-1")
	f.ok(err)
	r.ID, r.Priority, r.Revision = id, priority, 0
	f.ok(f.store.CreateRollout(ctx, r))
	f.ok(f.store.Advance(ctx, fleet.Advance{Rollout: r, Now: now.Add(-age), Insert: []ota.Execution{{DeviceID: "gw-1", Attempt: 1, Status: ota.Queued}}}))
}

// retry fails r-1 on gw-1 and queues its second attempt.
func (f *fixture) retry() {
	f.t.Helper()
	ctx := f.t.Context()
	f.answer(jobs+"r-1/update", `{"status":"FAILED","statusDetails":{"reason":"first try"}}`, "/accepted")
	r, err := f.store.Rollout(ctx, "r-1")
	f.ok(err)
	f.ok(f.store.Advance(ctx, fleet.Advance{Rollout: r, Now: now, Insert: []ota.Execution{{DeviceID: "gw-1", Attempt: 2, Status: ota.Queued}}}))
}

// body is the one answer to a request as text, without its timestamp.
func (f *fixture) body(topic, payload, suffix string) string {
	f.t.Helper()
	got := f.answer(topic, payload, suffix)
	delete(got, "timestamp")
	b, err := json.Marshal(got)
	f.ok(err)
	return string(b)
}

func TestJobsAnswersInFull(t *testing.T) {
	f := newFixture(t)
	f.more("r-2", 0, 0)
	at := now.Unix()
	const document = `"jobDocument":{"attempt":1,"name":"gw","operation":"install","target":"gw/1.0.idx","version":"1.0"}`
	queued := func(id string) string {
		return fmt.Sprintf(`{"executionNumber":1,"jobId":"%s","lastUpdatedAt":%d,"queuedAt":%d,"versionNumber":1}`, id, at, at)
	}
	for _, c := range []struct{ topic, payload, want string }{
		{"get", ``, `{"inProgressJobs":[],"queuedJobs":[` + queued("r-1") + `,` + queued("r-2") + `]}`},
		{"$next/get", `{}`, fmt.Sprintf(`{"execution":{"executionNumber":1,%s,"jobId":"r-1","lastUpdatedAt":%d,"queuedAt":%d,"status":"QUEUED","thingName":"gw-1","versionNumber":1}}`, document, at, at)},
		{"$next/get", `{"includeJobDocument":false,"clientToken":"t","thingName":"gw-1","jobId":"$next"}`, fmt.Sprintf(`{"clientToken":"t","execution":{"executionNumber":1,"jobId":"r-1","lastUpdatedAt":%d,"queuedAt":%d,"status":"QUEUED","thingName":"gw-1","versionNumber":1}}`, at, at)},
		{"start-next", `{"statusDetails":{"step":"a"},"clientToken":"t"}`, fmt.Sprintf(`{"clientToken":"t","execution":{"executionNumber":1,%s,"jobId":"r-1","lastUpdatedAt":%d,"queuedAt":%d,"startedAt":%d,"status":"IN_PROGRESS","statusDetails":{"step":"a"},"thingName":"gw-1","versionNumber":2}}`, document, at, at, at)},
		// again: unchanged, whatever details are given
		{"start-next", `{"statusDetails":{"step":"b"}}`, fmt.Sprintf(`{"execution":{"executionNumber":1,%s,"jobId":"r-1","lastUpdatedAt":%d,"queuedAt":%d,"startedAt":%d,"status":"IN_PROGRESS","statusDetails":{"step":"a"},"thingName":"gw-1","versionNumber":2}}`, document, at, at, at)},
		{"get", `{"clientToken":"t"}`, fmt.Sprintf(`{"clientToken":"t","inProgressJobs":[{"executionNumber":1,"jobId":"r-1","lastUpdatedAt":%d,"queuedAt":%d,"startedAt":%d,"versionNumber":2}],"queuedJobs":[%s]}`, at, at, at, queued("r-2"))},
		{"r-1/update", `{"status":"IN_PROGRESS"}`, `{}`},
		{"r-1/update", `{"status":"IN_PROGRESS","expectedVersion":3,"executionNumber":"1","includeJobExecutionState":true,"clientToken":"t"}`, `{"clientToken":"t","executionState":{"status":"IN_PROGRESS","statusDetails":{"step":"a"},"versionNumber":4}}`},
		{"r-1/update", `{"status":"IN_PROGRESS","expectedVersion":"4","statusDetails":{"other":"x"},"includeJobDocument":true,"includeJobExecutionState":true}`, `{"executionState":{"status":"IN_PROGRESS","statusDetails":{"other":"x"},"versionNumber":5},` + document + `}`},
		{"r-1/update", `{"status":"IN_PROGRESS","statusDetails":{},"includeJobExecutionState":true}`, `{"executionState":{"status":"IN_PROGRESS","versionNumber":6}}`},
		{"r-2/get", `{"includeJobDocument":false,"executionNumber":"1"}`, fmt.Sprintf(`{"execution":{"executionNumber":1,"jobId":"r-2","lastUpdatedAt":%d,"queuedAt":%d,"status":"QUEUED","thingName":"gw-1","versionNumber":1}}`, at, at)},
	} {
		if got := f.body(jobs+c.topic, c.payload, "/accepted"); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.topic, c.payload, got, c.want)
		}
	}
	for _, c := range []struct{ topic, payload, want string }{
		{"r-1/update", `{"status":"SUCCEEDED","expectedVersion":5,"clientToken":"t"}`, `{"clientToken":"t","code":"VersionMismatch","executionState":{"status":"IN_PROGRESS","versionNumber":6},"message":"execution version does not match"}`},
		{"r-2/update", `{"status":"IN_PROGRESS"}`, `{"code":"InvalidStateTransition","executionState":{"status":"QUEUED","versionNumber":1},"message":"status change is not allowed: device gw-1 works on rollout r-1"}`},
	} {
		if got := f.body(jobs+c.topic, c.payload, "/rejected"); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.topic, c.payload, got, c.want)
		}
	}
	// QUEUED to the end in one step, as SDK v1 does; then nothing changes it.
	f.answer(jobs+"r-2/update", `{"status":"SUCCEEDED"}`, "/accepted")
	for _, status := range []string{"IN_PROGRESS", "SUCCEEDED", "FAILED"} {
		want := `{"code":"InvalidStateTransition","executionState":{"status":"SUCCEEDED","versionNumber":2},"message":"execution is already finished"}`
		if got := f.body(jobs+"r-2/update", `{"status":"`+status+`"}`, "/rejected"); got != want {
			t.Errorf("%s: %s", status, got)
		}
	}
}

func TestJobsNothingPending(t *testing.T) {
	f := newFixture(t)
	const j = "$aws/things/gw-2/jobs/"
	for topic, want := range map[string]string{"get": `{"inProgressJobs":[],"queuedJobs":[]}`, "start-next": `{}`, "$next/get": `{}`} {
		if got := f.body(j+topic, ``, "/accepted"); got != want {
			t.Errorf("%s: %s, want %s", topic, got, want)
		}
	}
}

// Every attempt can be looked at by its number; the last is what is meant
// without one.
func TestJobsAttempts(t *testing.T) {
	f := newFixture(t)
	f.retry()
	for payload, want := range map[string]string{``: "2 QUEUED", `{"executionNumber":2}`: "2 QUEUED", `{"executionNumber":1}`: "1 FAILED"} {
		e := f.answer(jobs+"r-1/get", payload, "/accepted")["execution"].(map[string]any)
		if got := fmt.Sprint(e["executionNumber"], " ", e["status"]); got != want || e["jobDocument"].(map[string]any)["attempt"] != e["executionNumber"] {
			t.Errorf("%s: %v, want %s", payload, e, want)
		}
	}
	if got := f.answer(jobs+"r-1/get", `{"executionNumber":3}`, "/rejected"); got["code"] != "ResourceNotFound" {
		t.Errorf("%v", got)
	}
	// a late word about the first does not touch the second
	if got := f.answer(jobs+"r-1/update", `{"status":"SUCCEEDED","executionNumber":1}`, "/rejected"); got["code"] != "VersionMismatch" {
		t.Errorf("%v", got)
	}
}

// What the server did to a job is for the device to see.
func TestCanceledAndRemovedAreVisible(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	r, err := f.store.Rollout(ctx, "r-1")
	f.ok(err)
	r.State, r.Reason = ota.RolloutAborting, "wrong colour"
	f.ok(f.store.Advance(ctx, fleet.Advance{Rollout: r, Now: now}))
	_, err = f.store.Cancel(ctx, r, now, 9)
	f.ok(err)
	check := func(status string) {
		t.Helper()
		e := f.answer(jobs+"r-1/get", ``, "/accepted")["execution"].(map[string]any)
		if e["status"] != status || e["statusDetails"].(map[string]any)["reason"] == "" {
			t.Errorf("%v", e)
		}
		if got := f.answer(jobs+"r-1/update", `{"status":"IN_PROGRESS"}`, "/rejected"); got["code"] != "InvalidStateTransition" || got["executionState"].(map[string]any)["status"] != status {
			t.Errorf("%v", got)
		}
		if got := f.body(jobs+"get", ``, "/accepted"); got != `{"inProgressJobs":[],"queuedJobs":[]}` {
			t.Errorf("%s", got)
		}
	}
	check("CANCELED")
	f = newFixture(t)
	f.answer(jobs+"start-next", ``, "/accepted")
	f.ok(f.store.RevokeDevice(ctx, "gw-1", now))
	check("REMOVED")
}

func TestNotify(t *testing.T) {
	f := newFixture(t)
	for i := range 12 {
		f.more(fmt.Sprintf("q-%02d", i), 0, -time.Duration(i+1)*time.Second)
	}
	f.answer(jobs+"q-11/update", `{"status":"IN_PROGRESS"}`, "/accepted")
	sent := f.send(jobs+"q-05/update", `{"status":"REJECTED"}`)
	if len(sent) != 2 || sent[0].Topic != jobs+"notify" || sent[0].QoS != 1 || sent[0].Expiry == 0 {
		t.Fatalf("%s", topics(sent))
	}
	var note struct {
		Timestamp int64
		Jobs      map[string][]struct{ JobID string }
	}
	f.ok(json.Unmarshal(sent[0].Payload, &note))
	var order []string
	for _, e := range append(note.Jobs["IN_PROGRESS"], note.Jobs["QUEUED"]...) {
		order = append(order, e.JobID)
	}
	if got := strings.Join(order, " "); got != "q-11 r-1 q-00 q-01 q-02 q-03 q-04 q-06 q-07 q-08" || len(note.Jobs["IN_PROGRESS"]) != 1 || note.Timestamp != now.Unix() {
		t.Errorf("%s: %s", got, sent[0].Payload)
	}
	// nobody listens: nothing is sent
	b := &choosy{}
	p := &mqtt.Publisher{Broker: b, Now: time.Now}
	e, err := f.store.Execution(t.Context(), "r-1", "gw-1")
	f.ok(err)
	f.ok(p.NotifyJobs(t.Context(), "gw-1", []ota.Execution{e}))
	f.ok(p.NotifyNext(t.Context(), "gw-1", &e))
	if len(b.sent) > 0 {
		t.Errorf("%s", topics(b.sent))
	}
	b.filters = []string{jobs + "notify-next"}
	f.ok(p.NotifyJobs(t.Context(), "gw-1", []ota.Execution{e}))
	f.ok(p.NotifyNext(t.Context(), "gw-1", nil))
	if got := topics(b.sent); !strings.HasPrefix(got, jobs+"notify-next {") || strings.Contains(got, "execution") {
		t.Errorf("%s", got)
	}
}

// What a device says and sees of its timers.
func TestStepTimeouts(t *testing.T) {
	f := newFixture(t)
	left := func(topic, payload string) string {
		t.Helper()
		e := f.answer(jobs+topic, payload, "/accepted")["execution"].(map[string]any)
		return fmt.Sprint(e["approximateSecondsBeforeTimedOut"])
	}
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s seconds left, want %s", what, got, want)
		}
	}
	expect("queued", left("r-1/get", ``), "<nil>")
	expect("started", left("start-next", `{"stepTimeoutInMinutes":10}`), "600")
	f.now = now.Add(30 * time.Second)
	expect("half a minute later", left("$next/get", ``), "570")
	expect("started again", left("start-next", `{"stepTimeoutInMinutes":5}`), "570")
	f.answer(jobs+"r-1/update", `{"status":"IN_PROGRESS"}`, "/accepted")
	expect("a report without", left("$next/get", ``), "570")
	f.answer(jobs+"r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":"10080"}`, "/accepted")
	expect("the longest, as a text", left("$next/get", ``), "604800")
	f.answer(jobs+"r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":1}`, "/accepted")
	f.now = f.now.Add(time.Hour)
	expect("over, and not ended yet", left("$next/get", ``), "0")
	f.answer(jobs+"r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":-1}`, "/accepted")
	expect("taken off", left("$next/get", ``), "<nil>")
	f.answer(jobs+"r-1/update", `{"status":"IN_PROGRESS","stepTimeoutInMinutes":1}`, "/accepted")
	f.now = f.now.Add(time.Hour)
	_, _, err := f.store.Expire(t.Context(), f.now)
	f.ok(err)
	if got := f.body(jobs+"r-1/update", `{"status":"SUCCEEDED"}`, "/rejected"); got != `{"code":"InvalidStateTransition","executionState":{"status":"TIMED_OUT","versionNumber":8},"message":"execution is already finished"}` {
		t.Errorf("a late report: %s", got)
	}
	if got := f.body(jobs+"$next/get", ``, "/accepted"); got != `{}` {
		t.Errorf("next: %s", got)
	}
}
