package agent_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/otad/otad/agent"
)

// TestFreezeIsSeen: a server that shows the same old metadata for ever, while
// there is no job, is noticed on the device and by the operator.
func TestFreezeIsSeen(t *testing.T) {
	for name, freeze := range map[string]func(*repo){
		"frozen":      func(*repo) {},
		"unreachable": func(r *repo) { r.twist = nil; delete(r.files, "timestamp.json") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			d := newDevice(t, r, nil)
			r.install(t, d, 1)
			published := r.now
			if s := d.status(); !s.TrustExpires.Equal(published.Add(24*time.Hour).UTC().Truncate(time.Second)) || s.TrustAlarm != "" {
				t.Fatalf("trust expires %s, published %s, alarm %q", s.TrustExpires, published, s.TrustAlarm)
			}
			freeze(r)
			r.now = published.Add(30 * time.Hour)
			var log bytes.Buffer
			d.edit = func(c *agent.Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) }
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- d.live(ctx) }()
			d.waitStatus(func(s agent.Status) bool { return strings.HasPrefix(s.TrustAlarm, "trust expired on ") })
			d.waitTold(true)
			r.set(r.publish)
			d.waitStatus(func(s agent.Status) bool { return s.TrustAlarm == "" && s.TrustExpires.After(r.now) })
			d.waitTold(false)
			stop()
			must(t, <-ended)
			for _, want := range []string{"trust expired", "trust is renewed"} {
				if n := strings.Count(log.String(), `msg="`+want); n != 1 {
					t.Errorf("%q is logged %d times", want, n)
				}
			}
		})
	}
}

// waitTold waits until the server's shadow says so.
func (d *device) waitTold(expired bool) {
	d.tb.Helper()
	d.waitStatus(func(agent.Status) bool {
		told := false
		d.repo.set(func() {
			of, _ := d.repo.shadow["agent"].(map[string]any)
			told = of["trustExpired"] == expired
		})
		return told
	})
}

// TestIdleDeviceRenewsTrust: without any job, not all the time, and well before
// the end.
func TestIdleDeviceRenewsTrust(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	r.install(t, d, 1)
	asked := 0
	r.twist = func(name string, b []byte) []byte {
		if name == "timestamp.json" {
			asked++
		}
		return b
	}
	var clock atomic.Int64 // hours since the start
	polled := make(chan struct{})
	d.edit = func(c *agent.Config) {
		c.Transport = polls{r, polled}
		c.Now = func() time.Time { return r.now.Add(time.Duration(clock.Load()) * time.Hour) }
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.life(ctx) }()
	for _, c := range []struct {
		hour int64
		want int
	}{{0, 0}, {11, 0}, {13, 1}} {
		clock.Store(c.hour)
		for range 5 {
			<-polled
		}
		r.set(func() {
			if asked != c.want {
				t.Errorf("hour %d: asked %d times, want %d", c.hour, asked, c.want)
			}
		})
		if c.hour == 11 {
			r.set(func() {
				var err error
				r.stamp, err = r.online.Refresh(r.stamp, r.snapshot, r.now.Add(11*time.Hour))
				must(t, err)
				r.files["timestamp.json"] = r.stamp
			})
		}
	}
	stop()
	must(t, <-ended)
}

// polls tells of every question for a job.
type polls struct {
	*repo
	polled chan struct{}
}

func (p polls) Next(ctx context.Context) (agent.Job, bool, error) {
	select {
	case p.polled <- struct{}{}:
	case <-ctx.Done():
	}
	return p.repo.Next(ctx)
}
