package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/boot/file"
	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/agent/disk/disktest"
	"github.com/otad/otad/agent/health"
	"github.com/otad/otad/agent/install/binary"
	"github.com/otad/otad/pkg/ota"
)

// TestStuckDeviceStaysReachable: the old slot is sick as well after the
// rollback; the device says so, and takes the job that heals it.
func TestStuckDeviceStaysReachable(t *testing.T) {
	r := newRepo(t)
	old, bad, good := noise(1, 5000), noise(2, 5000), noise(3, 5000)
	d := newDevice(t, r, nil)
	contract := func(m *ota.Manifest) { m.Health = json.RawMessage(`{}`) }
	r.release("1.0", old, contract)
	r.release("2.0", bad, contract)
	r.release("3.0", good, contract)
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Succeeded, "")

	d.health = func(_ context.Context, image string) error {
		if b := d.slotImage(path.Base(path.Dir(image))); digest(b) == digest(good) {
			return nil
		}
		return errors.New("flash is worn")
	}
	r.order("job-2", "2.0", 1)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.live(ctx) }()
	d.waitStatus(func(s agent.Status) bool {
		return s.State == agent.StateStuck && strings.Contains(s.Reason, "flash is worn") && s.Pending == 0
	})
	expect(t, r.verdicts("job-2", 1)[0], ota.Failed, "flash is worn")
	r.order("job-3", "3.0", 1)
	d.waitStatus(func(s agent.Status) bool { return s.State == agent.StateIdle && s.Firmware.Digest == digest(good) })
	stop()
	must(t, <-ended)
}

// TestWaitingWritesNothing: an agent whose server is away for days does not
// wear out its flash.
func TestWaitingWritesNothing(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	r.release("1.0", noise(1, 5000), nil)
	r.order("job-1", "1.0", 1)
	writes := 0
	d.fs.(*disktest.Mem).Log = func(op string) {
		if op == "write /var/otad/journal" {
			writes++
		}
	}
	away := &awaySource{r, new(int)}
	*away.calls = -170 // and so 200 failures
	d.edit = func(c *agent.Config) { c.Source = away }
	expect(t, d.until("job-1", 1), ota.Succeeded, "")
	if writes > 60 {
		t.Errorf("the journal was written %d times", writes)
	}
}

// TestBinaryOnARealDisk is the whole path with real files and real processes: an
// application is replaced, and one that dies is rolled back.
func TestBinaryOnARealDisk(t *testing.T) {
	t.Parallel() // it waits for processes most of the time
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	app := func(text string) []byte { return []byte("#!/bin/sh\n" + text + "\n") }
	asBinary := func(m *ota.Manifest) {
		m.Installer = ota.InstallBinary
		m.Run = []string{"{image}", "--serve"}
		deadline := "1m"       // on a busy machine, for what is healthy
		if m.Version > "2.0" { // is waited for, and has to be looked at once before
			deadline = "6s"
		}
		m.Health = json.RawMessage(`{"hold":"200ms","deadline":"` + deadline + `","checks":[{"running":{}},{"tcp":"` + l.Addr().String() + `"},{"command":["{image}","--selftest"]}]}`)
	}
	const serve = `[ "$1" = --serve ] || exit 0; echo "$0 serves"; exec sleep 60`
	one, two, dies, sick := app(serve), app(serve+" # two"), app("exit 1"), app(`[ "$1" = --serve ] || { echo no sensor; exit 4; }; exec sleep 60`)

	r := newRepo(t)
	d := newDevice(t, r, nil)
	d.fs, d.dir = disk.OS{}, t.TempDir()+"/state"
	d.edit = func(c *agent.Config) {
		c.Installers[ota.InstallBinary] = binary.Installer{}
		c.Health = health.Checker{}
	}
	for version, img := range map[string][]byte{"1.0": one, "2.0": two, "3.0": dies, "4.0": sick} {
		r.release(version, img, asBinary)
	}
	for _, step := range []struct {
		version string
		status  ota.Status
		reason  string
		running []byte
	}{
		{"1.0", ota.Succeeded, "", one},
		{"2.0", ota.Succeeded, "", two},
		{"3.0", ota.Failed, "does not run", two},
		{"4.0", ota.Failed, "no sensor", two},
	} {
		r.order("job-"+step.version, step.version, 1)
		expect(t, d.until("job-"+step.version, 1), step.status, step.reason)
		if got := d.running(); got.Digest != digest(step.running) {
			t.Fatalf("after %s: %+v", step.version, got)
		}
	}
	log, err := os.ReadFile(d.dir + "/app.log")
	must(t, err)
	if n := strings.Count(string(log), " serves\n"); n < 4 { // two trials, and the return twice
		t.Errorf("the application was started %d times", n)
	}
	entries, err := os.ReadDir(d.dir)
	must(t, err)
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	s, err := agent.ReadStatus(d.dir)
	if err != nil || s.Firmware.Version != "2.0" || len(s.Quarantine) != 2 {
		t.Errorf("status %+v, %v", s, err)
	}
}

// TestOneAgentAtATime: a second one must not touch the state.
func TestOneAgentAtATime(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	d.fs, d.dir = disk.OS{}, t.TempDir()
	lock, err := d.fs.Lock(d.dir + "/lock")
	must(t, err)
	if err := d.life(t.Context()); !errors.Is(err, disk.ErrLocked) {
		t.Fatal(err)
	}
	must(t, lock.Close())
	boot, err := file.Open(file.Config{Dir: d.dir + "/boot"})
	must(t, err)
	if err := d.life(t.Context()); !errors.Is(err, disk.ErrLocked) {
		t.Fatal(err)
	}
	must(t, boot.Close())
}

func TestConfigIsChecked(t *testing.T) {
	r := newRepo(t)
	for name, edit := range map[string]func(*agent.Config){
		"device id":    func(c *agent.Config) { c.DeviceID = "a/b" },
		"hardware":     func(c *agent.Config) { c.Hardware = "" },
		"factory root": func(c *agent.Config) { c.FactoryRoot = []byte("{}") },
		"required":     func(c *agent.Config) { c.Health = nil },
	} {
		d := newDevice(t, r, nil)
		d.edit = edit
		if err := d.life(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCutTrialsAreTriedAgain: a boot chain that tries once comes back in the old
// slot after each cut in the trial. While boots are left the same slot is tried
// again; a firmware that takes the device down each time is rolled back.
func TestCutTrialsAreTriedAgain(t *testing.T) {
	const boots = 3
	for crashes, want := range map[int]ota.Status{0: ota.Succeeded, 1: ota.Succeeded, boots - 1: ota.Succeeded, boots: ota.Failed, 100: ota.Failed} {
		t.Run(fmt.Sprint(crashes, " crashes"), func(t *testing.T) {
			r := newRepo(t)
			old, img := noise(1, 5000), noise(2, 5000)
			d := newDevice(t, r, old)
			r.release("1.0", img, nil)
			r.order("job-1", "1.0", 1)
			trials := 0
			var after *disktest.Mem
			d.health = func(context.Context, string) error {
				if trials++; trials <= crashes {
					after = d.fs.(*disktest.Mem).Crash(disktest.Lost, 1)
					return errors.New("crashed")
				}
				return nil
			}
			for !d.untilCut(d.fs.(*disktest.Mem), "job-1") {
				d.fs = after
			}
			d.settle()
			if trials != min(crashes+1, boots) {
				t.Errorf("%d trials", trials)
			}
			verdicts := r.verdicts("job-1", 1)
			if len(verdicts) != 1 {
				t.Fatalf("verdicts %v", verdicts)
			}
			reason, running := "", img
			if want == ota.Failed {
				reason, running = "boot failed", old
			}
			expect(t, verdicts[0], want, reason)
			if got := d.running(); got.Digest != digest(running) || len(r.opened) != 1 {
				t.Errorf("running %+v, %d downloads", got, len(r.opened))
			}
		})
	}
}

// TestAgentStoppedInTrial: a restart of the agent alone, asked for in the middle
// of a trial, costs a boot and not the update.
func TestAgentStoppedInTrial(t *testing.T) {
	r := newRepo(t)
	img := noise(2, 5000)
	d := newDevice(t, r, noise(1, 5000))
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	ctx, stop := context.WithCancel(t.Context())
	trials := 0
	d.health = func(ctx context.Context, _ string) error {
		if trials++; trials == 1 {
			stop()
			<-ctx.Done()
		}
		return ctx.Err()
	}
	must(t, d.live(ctx))
	r.now = r.now.Add(time.Hour) // the next trial has its whole time all the same
	expect(t, d.until("job-1", 1), ota.Succeeded, "")
	if got := d.running(); got.Digest != digest(img) || trials != 2 {
		t.Errorf("running %+v after %d trials", got, trials)
	}
}
