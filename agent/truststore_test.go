package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/disk/disktest"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

// spoil damages a stored file's copies, which makes them fail their checksum.
func (d *device) spoil(name string, copies ...int) {
	d.tb.Helper()
	for _, i := range copies {
		f, err := d.fs.OpenFile(fmt.Sprintf("%s/trust/%s.%d", d.dir, name, i), 2, 0)
		if err != nil {
			continue // there is one copy only
		}
		_, err = f.WriteAt([]byte("spoilt"), 60)
		must(d.tb, err)
		must(d.tb, f.Sync())
	}
}

// rotate publishes a next root under new root keys.
func (r *repo) rotate() {
	next := signing.RootKey{Signer: newKey(r.tb)}
	spec := r.spec()
	spec.RootKeys = []signing.PublicKey{next.Public()}
	current := r.factory
	version := 1
	for ; r.files[fmt.Sprintf("%d.root.json", version+1)] != nil; version++ {
		current = r.files[fmt.Sprintf("%d.root.json", version+1)]
	}
	b, err := signing.NextRoot(current, spec, r.root, next)
	must(r.tb, err)
	r.root = next
	r.set(func() { r.files[fmt.Sprintf("%d.root.json", version+1)] = b })
}

func (r *repo) install(t *testing.T, d *device, n int) {
	t.Helper()
	version := fmt.Sprintf("1.%d", n)
	r.release(version, noise(uint64(100+n), 3000), nil)
	r.order("job-"+version, version, 1)
	expect(t, d.until("job-"+version, 1), ota.Succeeded, "")
}

func (d *device) status() agent.Status {
	d.tb.Helper()
	var s agent.Status
	d.waitStatus(func(got agent.Status) bool { s = got; return true })
	return s
}

func TestRootChainIsFollowedAndKept(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	for range 3 {
		r.rotate()
	}
	r.install(t, d, 1)
	if s := d.status(); s.RootVersion != 4 {
		t.Fatalf("root version %d", s.RootVersion)
	}
	// The chain's files are gone from the server: the stored root is enough.
	r.set(func() {
		for v := 2; v <= 4; v++ {
			delete(r.files, fmt.Sprintf("%d.root.json", v))
		}
	})
	r.install(t, d, 2)
	if s := d.status(); s.RootVersion != 4 || s.TrustAlarm != "" {
		t.Fatalf("%+v", s)
	}
}

func TestDamagedRootFallsBackWithAnAlarm(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	r.rotate()
	r.rotate()
	r.install(t, d, 1)
	d.spoil("root", 0, 1)
	var log bytes.Buffer
	d.edit = func(c *agent.Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) }
	r.install(t, d, 2) // the chain is walked again from the factory root
	d.edit = nil
	if s := d.status(); s.RootVersion != 3 || !strings.Contains(log.String(), "started from the factory root") {
		t.Fatalf("%+v\n%s", s, log.String())
	}
	// One copy alone is no alarm: the other is a root that was trusted.
	d.spoil("root", 0)
	r.install(t, d, 3)
	if s := d.status(); s.RootVersion != 3 {
		t.Fatalf("%+v", s)
	}
}

// TestDamagedCacheHealsItself: each stored file in turn, one copy and both.
func TestDamagedCacheHealsItself(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	r.install(t, d, 0)
	n := 0
	for _, name := range []string{"timestamp", "snapshot", "targets", "clock"} {
		for _, copies := range [][]int{{0}, {1}, {0, 1}} {
			n++
			d.spoil(name, copies...)
			r.install(t, d, n)
		}
	}
}

// TestOldMetadataIsRefused: a server that goes back to files it signed before.
func TestOldMetadataIsRefused(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	old := map[string][]byte{}
	r.install(t, d, 1)
	for k, v := range r.files {
		old[k] = bytes.Clone(v)
	}
	r.install(t, d, 2)
	r.set(func() { r.files = old })
	r.order("back", "1.1", 1)
	expect(t, d.until("back", 1), ota.Rejected, "timestamp")
}

// TestClockFloor: a device without a battery wakes up in 1970 and still refuses
// a server that is frozen in the past.
func TestClockFloor(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	r.install(t, d, 1)
	r.now = r.now.Add(200 * time.Hour)
	r.install(t, d, 2) // raises the floor by 200 h
	r.now = r.now.Add(200 * time.Hour)
	r.install(t, d, 3)
	d.edit = func(c *agent.Config) { c.Now = func() time.Time { return time.Unix(0, 0) } }
	r.install(t, d, 4) // the floor stands for the clock
	if s := d.status(); s.ClockFloor.Before(r.now.Add(-time.Hour)) {
		t.Fatalf("clock floor %s, published at %s", s.ClockFloor, r.now)
	}
	d.edit = func(c *agent.Config) {
		c.Now = func() time.Time { return time.Unix(0, 0) }
		c.NotOlder = r.now.Add(100 * time.Hour) // an agent built later than the timestamp's end
	}
	r.order("frozen", "1.3", 1)
	expect(t, d.until("frozen", 1), ota.Rejected, "expired")
}

// TestTrustUnderPowerCut cuts the power at every operation on a stored trust
// file while a refresh takes a new root and new files: the next life starts from
// a root it trusted, and can refresh.
func TestTrustUnderPowerCut(t *testing.T) {
	r := newRepo(t)
	base := newDevice(t, r, nil)
	r.install(t, base, 1)
	r.rotate()
	r.release("2.0", noise(7, 3000), nil)
	still := base.fs.(*disktest.Mem)

	try := func(cut int, log func(string)) (cutHere bool) {
		r.set(func() { r.reports = nil })
		r.order("job-2", "2.0", 1)
		mem := still.Clone()
		mem.Log = log
		mem.CutAt(cut)
		d := newDevice(t, r, nil)
		d.fs = mem
		if d.untilCut(mem, "job-2") {
			return false
		}
		d.fs = mem.Crash(disktest.Torn, uint64(cut))
		r.order("job-2", "2.0", 1)
		if v := d.until("job-2", 1); v.Status != ota.Succeeded && v.Details[ota.DetailClass] != string(ota.ClassRolledBack) {
			t.Fatalf("cut %d: %s %v", cut, v.Status, v.Details)
		}
		if s := d.status(); s.RootVersion != 2 || s.TrustAlarm != "" {
			t.Fatalf("cut %d: %+v", cut, s)
		}
		return true
	}
	var cuts []int
	n := 0
	try(0, func(op string) {
		if n++; strings.Contains(op, "/trust") {
			cuts = append(cuts, n)
		}
	})
	points := 0
	for i, cut := range cuts {
		if i%every(1) == 0 && try(cut, nil) {
			points++
		}
	}
	if points < 15/every(1) {
		t.Errorf("%d cuts only", points)
	}
	t.Logf("%d cuts", points)
}

// TestPoisonedClockIsForgottenForGood: a thief of the online keys dates metadata
// far ahead. The root that takes the keys away resets the clock floor, also when
// the device restarts before it has seen anything newer.
func TestPoisonedClockIsForgottenForGood(t *testing.T) {
	for name, rotate := range map[string]func(*signing.Online, signing.OnlineKey){
		"both keys":        func(o *signing.Online, k signing.OnlineKey) { o.Snapshot, o.Timestamp = k, k },
		"the snapshot key": func(o *signing.Online, k signing.OnlineKey) { o.Snapshot = k },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			d := newDevice(t, r, nil)
			honest := r.now
			r.now = honest.Add(900 * time.Hour)
			r.install(t, d, 1)
			r.now = honest
			if s := d.status(); s.ClockFloor.Before(honest.Add(899 * time.Hour)) {
				t.Fatalf("the clock floor was not poisoned: %s", s.ClockFloor)
			}

			rotate(&r.online, signing.OnlineKey{Signer: newKey(t)})
			r.rotate()
			r.set(func() { r.snapshot, r.stamp = nil, nil })
			r.release("2.0", noise(7, 3000), nil)
			r.order("job-2", "2.0", 1)
			d.edit = func(c *agent.Config) { c.Source = rootsOnly{r} }
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- d.live(ctx) }()
			d.waitStatus(func(s agent.Status) bool { return s.RootVersion == 2 && s.State == agent.StateWait })
			stop()
			must(t, <-ended)
			d.edit = nil
			expect(t, d.until("job-2", 1), ota.Succeeded, "")
			if s := d.status(); s.ClockFloor.After(honest.Add(time.Hour)) {
				t.Errorf("clock floor %s", s.ClockFloor)
			}
		})
	}
}

// rootsOnly is a server that fails after the roots.
type rootsOnly struct{ *repo }

func (s rootsOnly) Metadata(ctx context.Context, name string, limit int64) ([]byte, error) {
	if !strings.HasSuffix(name, ".root.json") {
		return nil, agent.ErrUnreachable
	}
	return s.repo.Metadata(ctx, name, limit)
}
