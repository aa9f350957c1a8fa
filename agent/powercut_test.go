package agent_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/disk/disktest"
	"github.com/otad/otad/pkg/ota"
)

// cutCase is one update whose power is cut once, somewhere.
type cutCase struct {
	health  healthFunc
	strides map[disktest.Survival]int // every how many operations a cut of that kind
	want    func(cut bool, v agent.Report, running string) bool
}

// soak is the environment variable that leaves no cut out; see docs/agent.md.
const soak = "OTAD_SOAK"

// raceStride thins out the cuts under the race detector, which makes each many
// times slower. Prime, so that operations that repeat are cut in all their turns.
const raceStride = 11

// every is how many operations lie between two cuts.
func every(stride int) int {
	switch {
	case os.Getenv(soak) != "":
		return 1
	case raceEnabled:
		return stride * raceStride
	}
	return stride
}

// TestPowerCutAnywhere cuts the power during every single operation on the disk
// of a whole update, loses what was not durable in three ways, and starts
// again: the device always boots an image that was verified whole, the update
// comes to its end, and one verdict is reported.
func TestPowerCutAnywhere(t *testing.T) {
	old, img := noise(1, 20_000), noise(2, 60_000)
	sick := func(context.Context, string) error { return errors.New("sick") }
	cases := map[string]cutCase{
		"good update": {healthy, map[disktest.Survival]int{disktest.Lost: 1, disktest.Torn: 2, disktest.Kept: 4}, func(cut bool, v agent.Report, running string) bool {
			// A cut in the trial costs a boot. Only one before the journal says TRIAL
			// is a failed boot.
			return v.Status == ota.Succeeded && running == digest(img) ||
				cut && v.Details[ota.DetailClass] == string(ota.ClassRolledBack) && running == digest(old)
		}},
		"bad update": {sick, map[disktest.Survival]int{disktest.Torn: 2, disktest.Lost: 5}, func(_ bool, v agent.Report, running string) bool {
			return v.Details[ota.DetailClass] == string(ota.ClassRolledBack) && running == digest(old)
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRepo(t)
			r.release("1.0", img, nil)
			points, rolledBack := 0, 0
			for survival, stride := range c.strides {
				for cut := 1; ; cut += every(stride) {
					r.set(func() { r.reports, r.job = nil, nil })
					d := newDevice(t, r, old)
					d.health = c.health
					d.onBoot = func(f agent.BootFacts) { verifyBoot(t, d, f, digest(old), digest(img)) }
					mem := d.fs.(*disktest.Mem)
					r.order("job-1", "1.0", 1)
					mem.CutAt(cut)
					done := d.untilCut(mem, "job-1")
					mem.CutAt(0)
					if !done {
						points++
						d.fs = mem.Crash(survival, uint64(cut))
					}
					d.settle()
					verdicts := r.verdicts("job-1", 1)
					if len(verdicts) != 1 {
						t.Fatalf("cut %d (survival %d): %d verdicts", cut, survival, len(verdicts))
					}
					v := verdicts[0]
					if got := d.running(); !c.want(!done, v, got.Digest) {
						t.Fatalf("cut %d (survival %d): verdict %s %v, running %.8s", cut, survival, v.Status, v.Details, got.Digest)
					}
					if v.Details[ota.DetailClass] == string(ota.ClassRolledBack) {
						rolledBack++
					}
					if done {
						break
					}
				}
			}
			t.Logf("%d cuts, 0 bricks, %d ended in a rollback", points, rolledBack)
		})
	}
}

// untilCut runs the device until its power goes, or until the verdict is
// delivered and the agent idle: then it returns true.
func (d *device) untilCut(mem *disktest.Mem, job string) bool {
	d.tb.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- d.live(ctx) }()
	for {
		changed := d.repo.changed()
		if len(d.repo.verdicts(job, 1)) > 0 {
			stop()
			<-ended
			return !mem.Dead()
		}
		select {
		case <-changed:
		case err := <-ended:
			if !errors.Is(err, disktest.ErrPower) {
				d.tb.Fatalf("ended without a power cut: %v", err)
			}
			return false
		}
	}
}

// settle runs the device until the job has its verdict and nothing is left to
// do or to deliver.
func (d *device) settle() {
	d.tb.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.live(ctx) }()
	d.waitStatus(func(s agent.Status) bool {
		return s.State == agent.StateIdle && s.Pending == 0 && len(d.repo.verdicts("job-1", 1)) > 0
	})
	stop()
	must(d.tb, <-ended)
}

// verifyBoot asserts that what runs is one of the images, whole, and that no
// bootable slot holds anything else.
func verifyBoot(tb testing.TB, d *device, f agent.BootFacts, images ...string) {
	for slot, info := range f.Slots {
		if !info.Bootable {
			if slot == f.Active {
				tb.Errorf("slot %s runs and is not bootable", slot)
			}
			continue
		}
		b := d.slotImage(slot)
		got := digest(b[:min(int64(len(b)), info.Size)])
		known := false
		for _, want := range images {
			known = known || got == want
		}
		if !known || got != info.Digest {
			tb.Errorf("slot %s is bootable and holds %.8s, said to be %.8s", slot, got, info.Digest)
		}
	}
}
