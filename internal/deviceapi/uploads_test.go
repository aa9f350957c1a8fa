package deviceapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

// started gives a device an execution in progress and returns it.
func (p *plane) started(device string, key signing.TargetsKey) ota.Execution {
	p.Helper()
	r, _, index := p.release([]byte("image"))
	custom, err := json.Marshal(r.Manifest)
	p.ok(err)
	trust, err := p.fleet.Trust(p.Context())
	p.ok(err)
	targets, err := signing.AddTarget(trust.Targets, signing.Target{
		Path: r.ID().TargetPath(), Length: int64(len(index)), SHA256: sha256.Sum256(index), Custom: custom,
	}, time.Now().Add(1000*time.Hour), key)
	p.ok(err)
	_, _, err = p.fleet.PublishTargets(p.Context(), targets)
	p.ok(err)
	v, err := p.fleet.CreateRollout(p.Context(), ota.Rollout{
		Release: r.ID(), Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, Gate: ota.Gate{Success: 1}}},
	})
	p.ok(err)
	ctx, stop := context.WithCancel(p.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.fleet.RunEngine(ctx) }()
	defer func() { stop(); p.ok(<-ended) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(long); ; {
		e, err := p.fleet.StartNext(p.Context(), device, ota.Starting{})
		if err == nil && e.RolloutID == v.ID {
			return e
		}
		select {
		case <-tick.C:
		case <-end:
			p.Fatalf("nothing to do for %s: %v", device, err)
		}
	}
}

func TestUpload(t *testing.T) {
	p := newPlane(t)
	key := p.initTrust()
	c, _ := p.enrolled("gw:1")
	other, _ := p.enrolled("gw-2")
	e := p.started("gw:1", key)
	path := strings.TrimPrefix(p.fleet.UploadURL(e), p.fleet.DeviceURL)
	if want := "/uploads/" + e.RolloutID + "/1"; path != want {
		t.Fatalf("%s, want %s", path, want)
	}
	if _, _, err := p.fleet.Upload(t.Context(), e.RolloutID, "gw:1", 1); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("before: %v", err)
	}
	logs := strings.Repeat("log\x00", 100_000)
	for _, body := range []string{"first", logs} {
		if got := p.do(c, "PUT", path, body); got.status != http.StatusNoContent {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	info, body, err := p.fleet.Upload(t.Context(), e.RolloutID, "gw:1", 1)
	p.ok(err)
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || string(got) != logs || info.Size != int64(len(logs)) {
		t.Errorf("%d bytes, %+v, %v", len(got), info, err)
	}
	for name, c := range map[string]struct {
		client *http.Client
		path   string
		status int
	}{
		"without a certificate": {p.client(), path, http.StatusUnauthorized},
		"of another device":     {other, path, http.StatusConflict}, // its own is QUEUED
		"no such job":           {c, "/uploads/r-none/1", http.StatusNotFound},
		"another attempt":       {c, "/uploads/" + e.RolloutID + "/2", http.StatusConflict},
		"no attempt":            {c, "/uploads/" + e.RolloutID + "/01", http.StatusBadRequest},
	} {
		if got := p.do(c.client, "PUT", c.path, "x"); got.status != c.status {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if got := p.do(c, "GET", path, ""); got.status != http.StatusNotFound && got.status != http.StatusMethodNotAllowed {
		t.Errorf("a device reads: %d", got.status)
	}
	_, err = p.fleet.Report(t.Context(), ota.Report{RolloutID: e.RolloutID, DeviceID: "gw:1", Status: ota.Succeeded})
	p.ok(err)
	if got := p.do(c, "PUT", path, "late"); got.status != http.StatusConflict {
		t.Errorf("after its end: %d %s", got.status, got.body)
	}
}

// endless is a body that does not end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestUploadIsBounded(t *testing.T) {
	p := newPlane(t)
	key := p.initTrust()
	c, _ := p.enrolled("gw-1")
	e := p.started("gw-1", key)
	for name, body := range map[string]io.Reader{
		"of a length that is told": bytes.NewReader(make([]byte, fleet.MaxUploadBytes+1)),
		"as it comes":              io.LimitReader(endless{}, fleet.MaxUploadBytes+1),
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fmt.Sprintf("%s/uploads/%s/1", p.url, e.RolloutID), body)
		p.ok(err)
		resp, err := c.Do(req)
		if err != nil {
			continue // the server hung up on a body that it did not read to its end
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
	if _, _, err := p.fleet.Upload(t.Context(), e.RolloutID, "gw-1", 1); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("something was stored: %v", err)
	}
}
