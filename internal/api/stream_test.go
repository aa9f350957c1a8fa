package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/api"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
	"github.com/otad/otad/proto/otad/v1/otadv1connect"
)

// long is what nothing in these tests may take.
const long = 20 * time.Second

// watched follows a rollout until it is as wanted.
func (p *plane) watched(id string, want func(*otadv1.Rollout) bool) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), long)
	defer cancel()
	stream, err := p.rollouts().WatchRollout(ctx, connect.NewRequest(&otadv1.WatchRolloutRequest{Id: id}))
	p.ok(err)
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if want(stream.Msg().GetRollout()) {
			return
		}
	}
	p.Fatalf("the stream ended with %v", stream.Err())
}

func TestWatchRolloutEndsWithTheRollout(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	p.signed("1.0")
	p.enroll("gw-1", "gw-2")
	id := must(p, p.rollouts().CreateRollout, &otadv1.CreateRolloutRequest{Spec: spec("1.0")}).GetRollout().GetId()
	p.engine()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	stream, err := p.rollouts().WatchRollout(ctx, connect.NewRequest(&otadv1.WatchRolloutRequest{Id: id}))
	p.ok(err)
	last := ""
	for stream.Receive() {
		v := stream.Msg().GetRollout()
		if v.String() == last {
			t.Errorf("the same twice: %s", last)
		}
		last = v.String()
		for _, device := range []string{"gw-1", "gw-2"} { // whoever has a job does it
			if e, err := p.fleet.StartNext(ctx, device, ota.Starting{}); err == nil {
				_, err := p.fleet.Report(ctx, ota.Report{RolloutID: e.RolloutID, DeviceID: device, Status: ota.Succeeded})
				p.ok(err)
			}
		}
	}
	if stream.Err() != nil || !strings.Contains(last, "COMPLETED") {
		t.Errorf("it ended with %v after %s", stream.Err(), last)
	}
	p.ok(stream.Close())
	missing, err := p.rollouts().WatchRollout(ctx, connect.NewRequest(&otadv1.WatchRolloutRequest{Id: "r-none"}))
	p.ok(err)
	if missing.Receive() || connect.CodeOf(missing.Err()) != connect.CodeNotFound {
		t.Errorf("a rollout that is not there: %v", missing.Err())
	}
	p.ok(missing.Close())
}

// TestWatchEventsGoesOnWhereItWas: a reader that comes back misses nothing.
func TestWatchEventsGoesOnWhereItWas(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	p.enroll("gw-1")
	run := func() string {
		return must(p, p.rollouts().CreateRollout, &otadv1.CreateRolloutRequest{Spec: &otadv1.RolloutSpec{
			Command: &otadv1.Command{Name: "reboot"}, Stages: []*otadv1.StageSpec{{Percent: 100}},
		}}).GetRollout().GetId()
	}
	run()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	events := otadv1connect.NewEventServiceClient(p.client(p.token), p.url)
	stream, err := events.WatchEvents(ctx, connect.NewRequest(&otadv1.WatchEventsRequest{}))
	p.ok(err)
	if !stream.Receive() || len(stream.Msg().GetEvents()) != 0 || stream.Msg().GetAfter() == 0 {
		t.Fatalf("first: %v, %v", stream.Msg(), stream.Err())
	}
	from := stream.Msg().GetAfter()
	second := run()
	if !stream.Receive() || stream.Msg().GetEvents()[0].GetRolloutId() != second || stream.Msg().GetEvents()[0].GetSeq() != from+1 {
		t.Fatalf("then: %v, %v", stream.Msg(), stream.Err())
	}
	cancel()
	_ = stream.Close() // it was cancelled
	list := must(p, events.ListEvents, &otadv1.ListEventsRequest{After: from, RolloutId: second})
	again, stop := context.WithTimeout(t.Context(), long)
	defer stop()
	stream, err = events.WatchEvents(again, connect.NewRequest(&otadv1.WatchEventsRequest{After: &from}))
	p.ok(err)
	var got []string
	for len(got) < len(list.GetEvents()) && stream.Receive() {
		for _, e := range stream.Msg().GetEvents() {
			got = append(got, e.String())
		}
	}
	for i, e := range list.GetEvents() {
		if i >= len(got) || got[i] != e.String() {
			t.Errorf("event %d: %s, streamed %v", i, e, got)
		}
	}
	stop()
	_ = stream.Close()
	refused(p, events.ListEvents, &otadv1.ListEventsRequest{After: -1}, connect.CodeInvalidArgument, "counted from 1")
}

// TestWatchesEndWithTheirClient: goleak in TestMain sees one that does not.
func TestWatchesEndWithTheirClient(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	p.enroll("gw-1")
	update := func(value string) {
		must(p, p.shadows().UpdateShadow, &otadv1.UpdateShadowRequest{DeviceId: "gw-1", Update: []byte(`{"state":{"desired":{"k":"` + value + `"}}}`)})
	}
	update("first")
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := p.shadows().WatchShadow(ctx, connect.NewRequest(&otadv1.WatchShadowRequest{DeviceId: "gw-1"}))
	p.ok(err)
	for _, value := range []string{"first", "second", "third"} {
		if value != "first" {
			update(value)
		}
		if !stream.Receive() || !bytes.Contains(stream.Msg().GetDocument(), []byte(value)) {
			t.Fatalf("%s: %s, %v", value, stream.Msg().GetDocument(), stream.Err())
		}
	}
	cancel()
	if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeCanceled {
		t.Errorf("after cancel: %v", stream.Err())
	}
	_ = stream.Close() // says again that it was cancelled
}

// TestAWatchOutlivesTheLimitOfBodies: that one is over when the body is.
func TestAWatchOutlivesTheLimitOfBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = time.Minute
		p := newBubblePlane(t)
		p.initTrust()
		p.enroll("gw-1")
		p.url = p.serve(api.NewWithStall(p.fleet, p.fleet.Log, limit))
		update := func(i int) {
			must(p, p.shadows().UpdateShadow, &otadv1.UpdateShadowRequest{DeviceId: "gw-1", Update: fmt.Appendf(nil, `{"state":{"desired":{"k":%d}}}`, i)})
		}
		update(0)
		for _, client := range []*http.Client{p.http, p.http1()} {
			p.http = client
			ctx, cancel := context.WithCancel(t.Context())
			stream, err := p.shadows().WatchShadow(ctx, connect.NewRequest(&otadv1.WatchShadowRequest{DeviceId: "gw-1"}))
			p.ok(err)
			for i := range 4 {
				if !stream.Receive() {
					t.Fatalf("update %d: %v", i, stream.Err())
				}
				<-time.After(limit + limit/5)
				update(i)
			}
			cancel()
			_ = stream.Close() // says again that it was cancelled
		}
	})
}

func (p *plane) put(digest string, body io.Reader) (int, string) {
	p.Helper()
	req, err := http.NewRequestWithContext(p.Context(), http.MethodPut, p.url+"/v1/images/"+digest, body)
	p.ok(err)
	res, err := p.http.Do(req)
	p.ok(err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	p.ok(err)
	return res.StatusCode, strings.TrimSpace(string(b))
}

func TestUploadRefusals(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	m := p.signed("1.0")
	for name, c := range map[string]struct {
		digest string
		status int
		words  string
	}{
		"a release stands on it": {m.manifest.ImageDigest, http.StatusConflict, "release gw@1.0 uses it"},
		"no digest":              {"x", http.StatusBadRequest, "digest"},
		"a path":                 {"..%2f" + m.manifest.ImageDigest, http.StatusBadRequest, "digest"},
	} {
		if status, body := p.put(c.digest, strings.NewReader("object")); status != c.status || !strings.Contains(body, c.words) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	// One that is under way keeps others out.
	digest := strings.Repeat("ab", 32)
	slow, feed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := p.fleet.UploadImage(t.Context(), digest, slow)
		done <- err
	}()
	_, err := feed.Write([]byte("x"))
	p.ok(err)
	if status, body := p.put(digest, strings.NewReader("object")); status != http.StatusConflict || !strings.Contains(body, "under way") {
		t.Errorf("during another: %d %s", status, body)
	}
	p.ok(feed.Close())
	p.ok(<-done)
}

// raw sends the head of a PUT and a beginning of its body over HTTP/1.1, and
// returns the connection.
func (p *plane) raw(url, digest string, length int64) *tls.Conn {
	p.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), p.tls())
	p.ok(err)
	p.Cleanup(func() { _ = c.Close() })
	p.ok(c.SetDeadline(time.Now().Add(long)))
	_, err = fmt.Fprintf(c, "PUT /v1/images/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\nbeginning", digest, p.token, length)
	p.ok(err)
	return c
}

func TestAnUploadThatIsTooLargeIsToldSo(t *testing.T) {
	p := newPlane(t)
	c := p.raw(p.url, strings.Repeat("ab", 32), ota.MaxImageBytes+1)
	answer := make([]byte, 12)
	_, err := io.ReadFull(c, answer)
	p.ok(err)
	if string(answer) != "HTTP/1.1 413" {
		t.Fatalf("%q", answer)
	}
}

// TestAnUploadThatStallsEnds, and stores nothing; with a wrong token nobody
// waits for the body either.
func TestAnUploadThatStallsEnds(t *testing.T) {
	p := newPlane(t)
	digest := strings.Repeat("ab", 32)
	url := p.serve(api.NewWithStall(p.fleet, p.fleet.Log, 100*time.Millisecond))
	for token, want := range map[string]string{p.token: "HTTP/1.1 408", "wrong": "HTTP/1.1 401"} {
		p.token = token
		c := p.raw(url, digest, 1000)
		answer := make([]byte, len(want))
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != want {
			t.Errorf("%q: %q, %v", token, answer, err)
		}
	}
	if _, err := p.fleet.Blobs.Stat(t.Context(), "images/"+digest); err == nil {
		t.Error("a part of an upload was stored")
	}
}
