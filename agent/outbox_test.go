package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/agent/disk/disktest"
	"github.com/otad/otad/pkg/ota"
)

func openTestOutbox(t *testing.T, fsys disk.FS) *outbox {
	t.Helper()
	if err := fsys.MkdirAll("/o", 0o700); err != nil {
		t.Fatal(err)
	}
	o, err := openOutbox(fsys, "/o")
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOutboxKeepsOrderAcrossPowerCuts(t *testing.T) {
	mem := disktest.NewMem()
	o := openTestOutbox(t, mem)
	for i := range 5 {
		ok(t, o.progress("j", 1, map[string]string{ota.DetailStep: fmt.Sprint(i)}))
	}
	ok(t, o.verdict(verdict{JobID: "j", Attempt: 1, Status: ota.Succeeded}))
	for seq := int64(1); seq <= 6; seq++ {
		mem = mem.Crash(disktest.Lost, 0)
		o = openTestOutbox(t, mem)
		r, has := o.head()
		if !has || r.Seq != seq {
			t.Fatalf("head %+v, want sequence %d", r, seq)
		}
		ok(t, o.delivered(seq))
	}
	o = openTestOutbox(t, mem.Crash(disktest.Lost, 0))
	if r, has := o.head(); has {
		t.Fatalf("delivered twice: %+v", r)
	}
	ok(t, o.progress("j", 2, nil))
	if r, _ := o.head(); r.Seq != 7 {
		t.Fatalf("sequence %d was used before", r.Seq)
	}
}

func TestVerdictIsQueuedOnce(t *testing.T) {
	mem := disktest.NewMem()
	v := verdict{JobID: "j", Attempt: 1, Status: ota.Failed}
	for range 3 {
		o := openTestOutbox(t, mem)
		ok(t, o.verdict(v))
		if o.len() != 1 {
			t.Fatalf("%d verdicts", o.len())
		}
		mem = mem.Crash(disktest.Lost, 0)
	}
	o := openTestOutbox(t, mem)
	ok(t, o.delivered(1))
	ok(t, o.verdict(v))
	if o.len() != 0 {
		t.Fatal("a delivered verdict was queued again")
	}
	ok(t, o.again(v, o.position()))
	ok(t, o.again(v, o.position()))
	if o.len() != 1 {
		t.Fatalf("%d verdicts after the server asked again", o.len())
	}
	before := o.position()
	ok(t, o.delivered(2))
	ok(t, o.again(v, before))
	if o.len() != 0 {
		t.Fatal("queued again though it was delivered while the server was asked")
	}
}

func TestTornOutboxLineIsAsIfNotWritten(t *testing.T) {
	line, err := encodeLine(outboxEntry{Report: &Report{JobID: "j", Attempt: 1, Seq: 2, Status: ota.Succeeded}})
	ok(t, err)
	for n := range line {
		mem := disktest.NewMem()
		o := openTestOutbox(t, mem)
		ok(t, o.progress("j", 1, nil))
		if _, err := o.f.WriteAt(line[:n], o.size); err != nil {
			t.Fatal(err)
		}
		o = openTestOutbox(t, mem)
		if o.len() != 1 {
			t.Fatalf("torn after %d bytes: %d reports", n, o.len())
		}
		ok(t, o.verdict(verdict{JobID: "j", Attempt: 1, Status: ota.Succeeded}))
		o = openTestOutbox(t, mem)
		if o.len() != 2 {
			t.Fatalf("torn after %d bytes: %d reports after one more", n, o.len())
		}
	}
}

func TestOutboxIsBounded(t *testing.T) {
	mem := disktest.NewMem()
	o := openTestOutbox(t, mem)
	for i := range 10 {
		ok(t, o.verdict(verdict{JobID: fmt.Sprint("v", i), Attempt: 1, Status: ota.Failed}))
	}
	for range 3 * MaxPending {
		ok(t, o.progress("j", 1, map[string]string{ota.DetailReason: strings.Repeat("x", 600)}))
	}
	if o.len() != MaxPending {
		t.Fatalf("%d pending, want %d", o.len(), MaxPending)
	}
	o = openTestOutbox(t, mem)
	verdicts := 0
	for _, r := range o.pending {
		if r.Status.Terminal() {
			verdicts++
		}
	}
	if verdicts != 10 {
		t.Fatalf("%d of 10 verdicts are left", verdicts)
	}
	for o.len() > 0 {
		r, _ := o.head()
		ok(t, o.delivered(r.Seq))
	}
	for range 800 { // twice the file's limit
		ok(t, o.progress("j", 1, map[string]string{ota.DetailReason: strings.Repeat("x", 600)}))
		r, _ := o.head()
		ok(t, o.delivered(r.Seq))
	}
	if o.size > maxOutboxBytes {
		t.Fatalf("file of %d bytes: at most %d", o.size, maxOutboxBytes)
	}
}

// TestOutboxRewriteUnderPowerCut: whatever is lost, a verdict that was queued is
// still queued, once.
func TestOutboxRewriteUnderPowerCut(t *testing.T) {
	for cut := 1; cut < 12; cut++ {
		mem := disktest.NewMem()
		o := openTestOutbox(t, mem)
		ok(t, o.verdict(verdict{JobID: "j", Attempt: 1, Status: ota.Failed}))
		for o.size+700 < maxOutboxBytes {
			ok(t, o.progress("p", 1, map[string]string{ota.DetailReason: strings.Repeat("x", 600)}))
		}
		mem.CutAt(cut)
		for !mem.Dead() {
			if o.progress("p", 1, map[string]string{ota.DetailReason: strings.Repeat("x", 600)}) != nil {
				break
			}
		}
		for _, s := range []disktest.Survival{disktest.Lost, disktest.Torn} {
			o := openTestOutbox(t, mem.Crash(s, uint64(cut)))
			if r, _ := o.head(); r.JobID != "j" || r.Seq != 1 {
				t.Fatalf("cut %d: head %+v", cut, r)
			}
		}
	}
}

func FuzzOutboxLine(f *testing.F) {
	line, err := encodeLine(outboxEntry{Report: &Report{JobID: "j", Attempt: 1, Seq: 2, Status: ota.Succeeded}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line[:len(line)-1])
	f.Add([]byte("00000000 {}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeLine(b)
		if err != nil {
			return
		}
		o := &outbox{judged: map[string]int64{}}
		o.apply(e)
	})
}
