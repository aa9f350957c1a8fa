package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

func TestUpdateInstallsAndReports(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 100_000))
	img := noise(2, 300_000)
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	v := d.until("job-1", 1)
	expect(t, v, ota.Succeeded, "")
	if got := d.running(); got.Digest != digest(img) || got.Version != "1.0" {
		t.Fatalf("running %+v", got)
	}
	if v.Details[ota.DetailDigest] != digest(img) {
		t.Errorf("verdict details %v", v.Details)
	}
	var steps []string
	for _, p := range r.reports {
		if s := p.Details[ota.DetailStep]; s != "" {
			steps = append(steps, s)
		}
	}
	want := []string{"fetching", "staged", "rebooting", "trial", "committing"}
	if len(steps) != len(want) {
		t.Fatalf("steps %v, want %v", steps, want)
	}
	for i := range want {
		if steps[i] != want[i] {
			t.Fatalf("steps %v, want %v", steps, want)
		}
	}
	firmware, _ := r.shadow["firmware"].(map[string]any)
	if firmware["digest"] != digest(img) || firmware["slot"] != "b" {
		t.Errorf("shadow %v", r.shadow)
	}
}

func TestFailedHealthRollsBack(t *testing.T) {
	r := newRepo(t)
	old := noise(1, 100_000)
	d := newDevice(t, r, old)
	d.health = func(context.Context, string) error { return errors.New("no answer on port 80") }
	img := noise(2, 200_000)
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	v := d.until("job-1", 1)
	expect(t, v, ota.Failed, "no answer on port 80")
	if v.Details[ota.DetailClass] != string(ota.ClassRolledBack) || v.Details[ota.DetailDigest] != digest(old) {
		t.Errorf("verdict details %v", v.Details)
	}
	if got := d.running(); got.Digest != digest(old) {
		t.Fatalf("running %+v", got)
	}
	if !bytes.Equal(d.slotImage("a"), old) {
		t.Fatal("the old slot was changed")
	}

	// The image is in quarantine: another job for it fails at once, untried.
	boots := d.boots
	d.health = healthy
	r.order("job-2", "1.0", 1)
	expect(t, d.until("job-2", 1), ota.Failed, "no answer on port 80")
	if d.boots != boots+1 { // until() itself boots once
		t.Errorf("%d boots for a quarantined image", d.boots-boots)
	}
	// A new attempt is tried, and may succeed.
	r.order("job-2", "1.0", 2)
	expect(t, d.until("job-2", 2), ota.Succeeded, "")
	if got := d.running(); got.Digest != digest(img) {
		t.Fatalf("running %+v", got)
	}
}

// TestQuarantinedImageIsTriedWhenMeant: what was rolled back is tried again, once, by a
// job that lets it in, and by no other, however many there are.
func TestQuarantinedImageIsTriedWhenMeant(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 50_000))
	var trials atomic.Int64
	good := false
	d.health = func(context.Context, string) error {
		if trials.Add(1); good {
			return nil
		}
		return errors.New("no answer on port 80")
	}
	img := noise(2, 60_000)
	r.release("1.0", img, nil)
	meant := func(job string) {
		r.order(job, "1.0", 1)
		r.edit(func(d *ota.JobDocument) { d.Quarantined = true })
	}
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Failed, "no answer on port 80")
	tried := trials.Load()
	for _, job := range []string{"job-2", "job-3"} {
		r.order(job, "1.0", 1)
		v := d.until(job, 1)
		expect(t, v, ota.Failed, "since it failed here: health: no answer on port 80")
		if v.Details[ota.DetailClass] != string(ota.ClassRolledBack) || strings.Count(v.Details[ota.DetailReason], "failed here") != 1 {
			t.Errorf("%s: %v", job, v.Details)
		}
	}
	if n := trials.Load(); n != tried {
		t.Errorf("%d trials by jobs that do not mean it", n-tried)
	}
	meant("job-4")
	expect(t, d.until("job-4", 1), ota.Failed, "no answer on port 80")
	again := trials.Load()
	if again == tried {
		t.Error("not tried by a job that means it")
	}
	r.set(func() { r.reports = nil })
	meant("job-4") // the server offers it once more
	expect(t, d.until("job-4", 1), ota.Failed, "no answer on port 80")
	if n := trials.Load(); n != again {
		t.Errorf("%d more trials of an attempt that has its verdict", n-again)
	}
	good = true
	meant("job-5")
	expect(t, d.until("job-5", 1), ota.Succeeded, "")
	if got := d.running(); got.Digest != digest(img) {
		t.Fatalf("running %+v", got)
	}
}

func TestReplayedJobInstallsNothing(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 50_000))
	one, two := noise(2, 60_000), noise(3, 60_000)
	r.release("1.0", one, nil)
	r.release("2.0", two, nil)
	r.order("job-1", "1.0", 1)
	d.until("job-1", 1)
	r.order("job-2", "2.0", 1)
	d.until("job-2", 1)
	sent := r.sent
	r.set(func() { r.reports = nil })
	r.order("job-1", "1.0", 1) // an old job comes again
	expect(t, d.until("job-1", 1), ota.Succeeded, "")
	if got := d.running(); got.Digest != digest(two) {
		t.Fatalf("a replayed job went back to %+v", got)
	}
	if r.sent != sent {
		t.Errorf("a replayed job fetched %d bytes", r.sent-sent)
	}
}

func TestRunningImageIsAlreadyInstalled(t *testing.T) {
	r := newRepo(t)
	img := noise(1, 50_000)
	d := newDevice(t, r, img)
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Succeeded, "already installed")
	if d.boots != 1 || r.sent != 0 {
		t.Errorf("%d boots, %d bytes", d.boots, r.sent)
	}
}

func TestEmptyFactorySlot(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, nil)
	img := noise(1, 50_000)
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Succeeded, "")
	if got := d.running(); got.Digest != digest(img) {
		t.Fatalf("running %+v", got)
	}
}

func TestServerOutageInTrialRollsNothingBack(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 50_000))
	img := noise(2, 50_000)
	d.health = func(context.Context, string) error {
		r.set(func() { r.offline = true })
		return nil
	}
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.live(ctx) }()
	d.waitStatus(func(s agent.Status) bool {
		return s.State == agent.StateIdle && s.Firmware.Digest == digest(img)
	})
	r.set(func() { r.offline = false })
	for changed := r.changed(); len(r.verdicts("job-1", 1)) == 0; changed = r.changed() {
		r.nudge()
		if len(r.verdicts("job-1", 1)) > 0 {
			break
		}
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-changed:
		}
	}
	stop()
	must(t, <-ended)
	expect(t, r.verdicts("job-1", 1)[0], ota.Succeeded, "")
}

// The whole story of an update reaches the server, in order and once, though
// answers get lost and the device reboots in the middle.
func TestEventsTellTheUpdate(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 100_000))
	r.release("1.0", noise(2, 200_000), nil)
	r.set(func() { r.loseAck = true })
	r.order("job-1", "1.0", 1)
	d.onBoot = func(agent.BootFacts) { r.set(func() { r.loseAck = true }) }
	d.until("job-1", 1)
	r.order("job-2", "1.0", 1) // ends at once, as it runs; by then the rest was sent
	d.until("job-2", 1)
	var story []string
	for i, e := range r.events {
		if i > 0 && e.Seq != r.events[i-1].Seq+1 {
			t.Fatalf("event %d after %d", e.Seq, r.events[i-1].Seq)
		}
		if e.Kind == agent.EventState && e.Data["job"] == "job-1" {
			story = append(story, fmt.Sprint(e.Data["to"]))
		}
	}
	want := "CHECKED FETCH STAGED READY ARM REBOOT"
	if got := strings.Join(story, " "); !strings.HasPrefix(got, want) {
		t.Fatalf("told %q, want %q and more", got, want)
	}
	// The boots of the update are no surprise; those of the later lives are.
	r.order("job-3", "1.0", 1)
	d.until("job-3", 1)
	surprises := 0
	for _, e := range r.events {
		if e.Kind == agent.EventReboot {
			surprises++
		}
	}
	if lives := 2; surprises < 1 || surprises > lives {
		t.Errorf("%d boots are told as a surprise, of %d", surprises, d.boots)
	}
	if r.events[0].Kind != agent.EventStart || r.events[0].At == 0 {
		t.Fatalf("the first is %+v", r.events[0])
	}
}
