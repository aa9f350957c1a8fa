package deviceapi_test

import (
	"bytes"
	"context"
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
)

// started gives a device a command in progress and returns its execution.
func (p *plane) started(device, command string) ota.Execution {
	p.Helper()
	v, err := p.fleet.CreateRollout(p.Context(), ota.Rollout{
		Command: &ota.Command{Name: command}, Selector: fmt.Sprintf("id = %q", device), Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}},
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
	p.initTrust()
	c, _ := p.enrolled("gw:1")
	other, _ := p.enrolled("gw-2")
	elsewhere := p.started("gw-2", ota.CommandReboot)
	e := p.started("gw:1", ota.CommandCollectLogs)
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
	list, more, err := p.fleet.UploadPage(t.Context(), fleet.UploadFilter{DeviceID: "gw:1"}, 1)
	p.ok(err)
	if len(list) != 1 || more || list[0].RolloutID != e.RolloutID || list[0].Bytes != int64(len(logs)) {
		t.Errorf("listed: %+v %v", list, more)
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
		"of another device":     {other, path, http.StatusNotFound},
		"of another command":    {other, "/uploads/" + elsewhere.RolloutID + "/1", http.StatusConflict},
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
	p.initTrust()
	c, _ := p.enrolled("gw-1")
	e := p.started("gw-1", ota.CommandCollectLogs)
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
	if list, _, err := p.fleet.UploadPage(t.Context(), fleet.UploadFilter{}, 10); err != nil || len(list) != 0 {
		t.Errorf("listed: %+v %v", list, err)
	}
}
