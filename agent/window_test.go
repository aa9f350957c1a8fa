package agent_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// inBerlin makes a device whose clock is the test's virtual one.
func inBerlin(t *testing.T, r *repo, factory []byte) *device {
	berlin, err := time.LoadLocation("Europe/Berlin")
	must(t, err)
	d := newDevice(t, r, factory)
	d.edit = func(c *agent.Config) {
		c.Now, c.Zone = time.Now, berlin
		c.Jitter = func(d time.Duration) time.Duration { return d / 2 }
	}
	return d
}

// start runs the device until the end of the test or a call of stop, which waits.
func (d *device) start(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.live(ctx) }()
	var over atomic.Bool
	stop = func() {
		if over.Swap(true) {
			return
		}
		cancel()
		must(t, <-ended)
	}
	t.Cleanup(stop)
	return stop
}

// told are the distinct steps and reasons of a job's reports, in order.
func (r *repo) told(job string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, p := range r.reports {
		line := string(p.Status)
		if p.Status == ota.InProgress || p.Status == ota.Queued {
			line = p.Details[ota.DetailStep]
			if line == "waiting" {
				line = fmt.Sprintf("%s waiting: %s", p.Status, p.Details[ota.DetailReason])
			}
		}
		if p.JobID == job && (len(out) == 0 || out[len(out)-1] != line) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

func expectTold(t *testing.T, r *repo, job string, want ...string) {
	t.Helper()
	if got := r.told(job); got != strings.Join(want, "\n") {
		t.Fatalf("told:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

// elapse lets virtual time go by, and all that is then to be done be done. Nothing
// happening has no condition to wait on.
func elapse(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// pass lets time go by, and the server sign anew now and then.
func (r *repo) pass(d time.Duration) {
	for ; d > 0; d -= 6 * time.Hour {
		elapse(min(d, 6*time.Hour))
		r.set(func() {
			r.now = time.Now()
			r.publish()
		})
	}
}

func windowed(w string) func(*ota.JobDocument) {
	return func(d *ota.JobDocument) {
		window, err := ota.ParseWindow(w)
		if err != nil {
			panic(err)
		}
		d.Window = window
	}
}

// The bubble of a test begins on Saturday, 1 January 2000, 01:00 in Berlin.
const sundays = "FREQ=WEEKLY;BYDAY=SU;BYHOUR=2 for 3h"

// TestWindowHoldsTheStart: outside its window a job is looked at, and stays
// QUEUED; nothing is fetched.
func TestWindowHoldsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo(t)
		r.release("1.0", noise(2, 20_000), nil)
		d := inBerlin(t, r, noise(1, 5000))
		r.order("job-1", "1.0", 1)
		r.edit(windowed(sundays))
		stop := d.start(t)
		r.pass(24 * time.Hour)
		if r.job.Status != ota.Queued || len(r.opened) > 0 {
			t.Fatalf("the job is %s, %d downloads", r.job.Status, len(r.opened))
		}
		expectTold(t, r, "job-1", "QUEUED waiting: window opens 2000-01-02T02:00+01:00")
		time.Sleep(time.Hour + 10*time.Minute)
		synctest.Wait()
		expectTold(t, r, "job-1", "QUEUED waiting: window opens 2000-01-02T02:00+01:00", "fetching", "staged", "rebooting", "trial", "committing", "SUCCEEDED")
		stop()
	})
}

// TestWindowHoldsTheActivation: a download that may be made at any time is, and
// the rest waits, over a restart without its server too.
func TestWindowHoldsTheActivation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo(t)
		old, img := noise(1, 5000), noise(2, 20_000)
		r.release("1.0", img, nil)
		d := inBerlin(t, r, old)
		r.order("job-1", "1.0", 1)
		r.edit(windowed(sundays + " fetch anytime"))
		stop := d.start(t)
		time.Sleep(time.Hour)
		synctest.Wait()
		told := []string{"fetching", "staged", "IN_PROGRESS waiting: window opens 2000-01-02T02:00+01:00"}
		expectTold(t, r, "job-1", told...)
		stop()
		r.set(func() { r.offline = true })
		stop = d.start(t)
		r.pass(22 * time.Hour)
		r.set(func() { r.offline = false })
		time.Sleep(time.Hour)
		synctest.Wait()
		if d.running().Digest != digest(old) {
			t.Fatal("activated outside the window")
		}
		time.Sleep(90 * time.Minute)
		synctest.Wait()
		expectTold(t, r, "job-1", append(told, "rebooting", "trial", "committing", "SUCCEEDED")...)
		stop()
	})
}

// slowBody gives a piece each minute and notes when.
type slowBody struct {
	r    io.Reader
	read *[]time.Time
}

func (s slowBody) Read(p []byte) (int, error) {
	time.Sleep(time.Minute)
	*s.read = append(*s.read, time.Now())
	return s.r.Read(p[:min(len(p), 500)])
}

// TestWindowClosesDuringTheDownload: it stops, and goes on where it was when the
// window opens again.
func TestWindowClosesDuringTheDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo(t)
		r.release("1.0", noise(2, 120_000), nil) // 240 minutes
		d := inBerlin(t, r, noise(1, 5000))
		var read []time.Time
		r.body = func(_ string, in io.Reader) io.Reader { return slowBody{in, &read} }
		r.order("job-1", "1.0", 1)
		r.edit(windowed(sundays))
		stop := d.start(t)
		r.pass(9 * 24 * time.Hour)
		w := r.job
		if w != nil {
			t.Fatalf("not done: %s", r.told("job-1"))
		}
		for _, at := range read {
			opens, closes := time.Date(2000, 1, 2, 1, 0, 0, 0, time.UTC), time.Date(2000, 1, 2, 4, 1, 0, 0, time.UTC)
			if at.After(closes) {
				opens, closes = opens.AddDate(0, 0, 7), closes.AddDate(0, 0, 7)
			}
			if at.Before(opens) || at.After(closes) {
				t.Fatalf("read at %s", at)
			}
		}
		expectTold(t, r, "job-1", "QUEUED waiting: window opens 2000-01-02T02:00+01:00", "fetching",
			"IN_PROGRESS waiting: window opens 2000-01-09T02:00+01:00", "fetching", "staged", "rebooting", "trial", "committing", "SUCCEEDED")
		stop()
	})
}

// TestClockThatIsNotSet: such a device does not know when its window opens.
func TestClockThatIsNotSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo(t)
		r.release("1.0", noise(2, 20_000), nil)
		d := inBerlin(t, r, noise(1, 5000))
		var late atomic.Int64
		late.Store(int64(20 * 365 * 24 * time.Hour))
		edit := d.edit
		d.edit = func(c *agent.Config) {
			edit(c)
			c.Now = func() time.Time { return time.Now().Add(-time.Duration(late.Load())) }
			c.NotOlder = r.now
		}
		r.order("job-1", "1.0", 1)
		r.edit(windowed("FREQ=DAILY;BYHOUR=0 for 1d"))
		stop := d.start(t)
		time.Sleep(time.Hour)
		synctest.Wait()
		told := "QUEUED waiting: the clock is not set: it shows 1980-01-06, and it is later than 2000-01-01"
		expectTold(t, r, "job-1", told)
		late.Store(0)
		time.Sleep(time.Hour)
		synctest.Wait()
		expectTold(t, r, "job-1", told, "fetching", "staged", "rebooting", "trial", "committing", "SUCCEEDED")
		stop()
	})
}

// TestWindowThatNeverOpens is refused, before and after the download.
func TestWindowThatNeverOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo(t)
		old := noise(1, 5000)
		r.release("1.0", noise(2, 20_000), nil)
		d := inBerlin(t, r, old)
		r.order("job-1", "1.0", 1)
		r.edit(windowed("FREQ=DAILY;COUNT=3 from 1999-01-01T02:00 for 3h"))
		stop := d.start(t)
		time.Sleep(time.Minute)
		expect(t, r.verdicts("job-1", 1)[0], ota.Rejected, "does not open again")
		r.order("job-2", "1.0", 1)
		r.edit(windowed("FREQ=DAILY;COUNT=1 from 2000-01-01T02:00 for 3h fetch anytime"))
		r.edit(func(d *ota.JobDocument) { d.Hold = true })
		time.Sleep(7 * time.Hour)
		expect(t, r.verdicts("job-2", 1)[0], ota.Rejected, "does not open again")
		stop()
		if d.running().Digest != digest(old) {
			t.Error("installed")
		}
	})
}

// TestZoneIsReported, so that the server can say until when a device waits; and
// all of it again on every reconnect.
func TestReportedOnEveryReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo(t)
		old := noise(1, 5000)
		d := inBerlin(t, r, old)
		stop := d.start(t)
		for n := 1; n <= 3; n++ {
			synctest.Wait()
			if f := r.shadow["firmware"].(map[string]any); r.shadows != n || f["digest"] != digest(old) || r.shadow["timezone"] != "Europe/Berlin" {
				t.Fatalf("%d times, %v", r.shadows, r.shadow)
			}
			r.up <- struct{}{}
		}
		stop()
	})
}
