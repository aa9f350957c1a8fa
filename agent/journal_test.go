package agent

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/agent/disk/disktest"
)

func fullRecord(job string) Record {
	return Record{
		Schema: recordSchema, State: StateFetch, BootID: "boot", JobID: job, Attempt: 2, Name: "gateway", Version: "1.0",
		From: "a", To: "b", FromDigest: strings.Repeat("a", 64), ToDigest: strings.Repeat("b", 64),
		Watermark: 7, SpanStart: 3, Bytes: 1 << 40, Floor: 4, FloorAfter: 5, Deadline: time.Unix(1e9, 0).UTC(), BootsLeft: 3,
		Restages: 1, Waits: 2, Stores: 9, Verdict: "FAILED", Class: "failed", Reason: strings.Repeat("r", MaxReason),
	}
}

func openTestJournal(t *testing.T, fsys disk.FS) (*journal, Record) {
	t.Helper()
	if err := fsys.MkdirAll("/j", 0o700); err != nil {
		t.Fatal(err)
	}
	j, r, err := openJournal(fsys, "/j")
	if err != nil {
		t.Fatal(err)
	}
	return j, r
}

func TestJournalKeepsTheNewestRecord(t *testing.T) {
	mem := disktest.NewMem()
	j, r := openTestJournal(t, mem)
	if r.State != StateIdle {
		t.Fatalf("new journal: %+v", r)
	}
	for _, job := range []string{"1", "2", "3"} {
		if err := j.store(fullRecord(job)); err != nil {
			t.Fatal(err)
		}
		after := mem.Crash(disktest.Lost, 0) // no sync was asked for: O_DSYNC
		j, r = openTestJournal(t, after)
		if diff := cmp.Diff(fullRecord(job), r); diff != "" {
			t.Fatal(diff)
		}
		mem = after
	}
}

// TestTornRecordLeavesTheOneBefore writes only the first n bytes of a record,
// for every n, over an older one.
func TestTornRecordLeavesTheOneBefore(t *testing.T) {
	mem := disktest.NewMem()
	j, _ := openTestJournal(t, mem)
	for _, job := range []string{"1", "2"} {
		if err := j.store(fullRecord(job)); err != nil {
			t.Fatal(err)
		}
	}
	next, err := encodeSlot(3, fullRecord("3"))
	if err != nil {
		t.Fatal(err)
	}
	at := int64(3%2) * journalSlot
	older := make([]byte, journalSlot)
	if _, err := j.f.ReadAt(older, at); err != nil {
		t.Fatal(err)
	}
	for n := range journalSlot {
		torn := append(append([]byte(nil), next[:n]...), older[n:]...)
		if _, err := j.f.WriteAt(torn, at); err != nil {
			t.Fatal(err)
		}
		_, r := openTestJournal(t, mem)
		want := "2"
		if bytes.Equal(torn, next) {
			want = "3" // the rest was the same anyway
		}
		if r.JobID != want {
			t.Fatalf("torn after %d bytes: job %q", n, r.JobID)
		}
	}
}

func TestDamagedJournalIsAnErrorAndUsable(t *testing.T) {
	mem := disktest.NewMem()
	j, _ := openTestJournal(t, mem)
	if err := j.store(fullRecord("1")); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := j.f.WriteAt([]byte("xxxx"), int64(i)*journalSlot); err != nil {
			t.Fatal(err)
		}
	}
	j, r, err := openJournal(mem, "/j")
	if !errors.Is(err, ErrJournal) || r.State != StateIdle {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := j.store(fullRecord("2")); err != nil {
		t.Fatal(err)
	}
	if _, r := openTestJournal(t, mem); r.JobID != "2" {
		t.Fatalf("%+v", r)
	}
}

func TestLargestRecordFits(t *testing.T) {
	r := fullRecord(strings.Repeat("j", maxJobID))
	r.Name, r.Version = strings.Repeat("n", 63), strings.Repeat("v", 63)
	r = r.because(strings.Repeat("\x01", 10_000)) // six bytes each in JSON
	if _, err := encodeSlot(1, r); err != nil {
		t.Fatal(err)
	}
	r.Reason = strings.Repeat("r", maxRecord)
	if _, err := encodeSlot(1, r); err == nil {
		t.Fatal("a record over the limit was taken")
	}
}

func TestJournalOnTheRealDisk(t *testing.T) {
	dir := t.TempDir()
	j, _, err := openJournal(disk.OS{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.store(fullRecord("1")), j.close()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir + "/journal")
	if err != nil || info.Size() != 2*journalSlot || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	j, r, err := openJournal(disk.OS{}, dir)
	if err != nil || r.JobID != "1" {
		t.Fatalf("%+v %v", r, err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzJournalRecord(f *testing.F) {
	good, err := encodeSlot(5, fullRecord("1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(make([]byte, journalSlot))
	f.Add([]byte(journalMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		seq, r, err := decodeSlot(b)
		if err != nil {
			return
		}
		again, err := encodeSlot(seq, r)
		if err != nil {
			t.Fatalf("accepted what can not be written: %v", err)
		}
		if _, r2, err := decodeSlot(again); err != nil || !cmp.Equal(r, r2) {
			t.Fatalf("%v\n%s", err, cmp.Diff(r, r2))
		}
	})
}
