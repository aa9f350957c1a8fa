package agent

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/otad/otad/agent/disk/disktest"
	"github.com/otad/otad/pkg/ota"
)

func TestHistoryForgetsTheOldest(t *testing.T) {
	mem := disktest.NewMem()
	ok(t, mem.MkdirAll("/h", 0o700))
	file := twin{fsys: mem, dir: "/h", name: "history"}
	h, err := openHistory(file)
	ok(t, err)
	for i := range MaxHistory + 5 {
		d := map[string]string{ota.DetailReason: strings.Repeat("\x01", MaxReason)}
		ok(t, h.add(verdict{JobID: fmt.Sprint("j", i), Attempt: 1, Digest: fmt.Sprint("d", i), Status: ota.Failed, Details: d, Quarantined: true}))
	}
	h, err = openHistory(file)
	ok(t, err)
	if len(h.verdicts) != MaxHistory {
		t.Fatalf("%d verdicts, want %d", len(h.verdicts), MaxHistory)
	}
	if _, known := h.of("j4", 1); known {
		t.Error("the oldest is still there")
	}
	if _, known := h.of("j5", 1); !known {
		t.Error("a newer one was forgotten")
	}
	if _, blocked := h.blocks(Record{JobID: "j7", Attempt: 1, ToDigest: "d7"}); !blocked {
		t.Error("a bad image is not blocked")
	}
}

// TestBlocks: an image that was rolled back is tried once by each attempt that means
// it, and by no other. Attempts at different jobs are not counted together.
func TestBlocks(t *testing.T) {
	bad := func(job string, attempt int) verdict {
		return verdict{JobID: job, Attempt: attempt, Digest: "d", Status: ota.Failed, Quarantined: true}
	}
	other := func(job string, attempt int, digest string) verdict {
		return verdict{JobID: job, Attempt: attempt, Digest: digest, Status: ota.Failed}
	}
	order := func(job string, attempt int) Record { return Record{JobID: job, Attempt: attempt, ToDigest: "d"} }
	meant := func(r Record) Record { r.Quarantined = true; return r }
	for name, c := range map[string]struct {
		history []verdict
		job     Record
		blocked bool
	}{
		"nothing is known of it":                        {nil, order("a", 1), false},
		"another image failed":                          {[]verdict{bad("a", 1), other("b", 1, "e")}, Record{JobID: "c", Attempt: 1, ToDigest: "e"}, false},
		"another job":                                   {[]verdict{bad("a", 1)}, order("b", 1), true},
		"another job, though its attempt is higher":     {[]verdict{bad("a", 1)}, order("b", 2), true},
		"another job that means it":                     {[]verdict{bad("a", 1)}, meant(order("b", 1)), false},
		"it means it, the other has tried more":         {[]verdict{bad("a", 3)}, meant(order("b", 1)), false},
		"the same attempt again":                        {[]verdict{bad("a", 1)}, order("a", 1), true},
		"it means it, but has tried it":                 {[]verdict{bad("a", 1)}, meant(order("a", 1)), true},
		"it means it, but a later attempt has tried it": {[]verdict{bad("a", 2), bad("b", 1)}, meant(order("a", 1)), true},
		"a further attempt":                             {[]verdict{bad("a", 1)}, order("a", 2), false},
		"a further attempt, refused at another job":     {[]verdict{bad("a", 1), bad("b", 1)}, order("a", 2), false},
		"a further attempt at the job that was refused": {[]verdict{bad("a", 1), bad("b", 1)}, order("b", 2), false},
		"it failed by something else since":             {[]verdict{bad("a", 1), other("b", 1, "d")}, order("c", 1), false},
	} {
		h := &history{verdicts: c.history}
		if _, blocked := h.blocks(c.job); blocked != c.blocked {
			t.Errorf("%s: blocked %v", name, blocked)
		}
	}
}

func TestTwinKeepsTheCopyBefore(t *testing.T) {
	for cut := 1; cut < 12; cut++ {
		mem := disktest.NewMem()
		ok(t, mem.MkdirAll("/t", 0o700))
		w := twin{fsys: mem, dir: "/t", name: "x", limit: 64}
		ok(t, w.store([]byte("one")))
		ok(t, w.store([]byte("two")))
		mem.CutAt(cut)
		stored := w.store([]byte("three")) == nil
		for _, s := range []disktest.Survival{disktest.Lost, disktest.Kept, disktest.Torn} {
			again := twin{fsys: mem.Crash(s, uint64(cut)), dir: "/t", name: "x", limit: 64}
			bodies, _, err := again.load()
			ok(t, err)
			if len(bodies) == 0 || string(bodies[0]) != "three" && (stored || string(bodies[0]) != "two") {
				t.Fatalf("cut %d: %q", cut, bodies)
			}
		}
	}
	w := twin{fsys: disktest.NewMem(), dir: "/", name: "x", limit: 4}
	if err := w.store([]byte("five!")); err == nil || !strings.Contains(err.Error(), "at most 4") {
		t.Fatal(err)
	}
}

func FuzzTwin(f *testing.F) {
	f.Add(encodeTwin(3, []byte("body")))
	f.Add([]byte(twinMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		seq, body, err := decodeTwin(b)
		if err == nil && !bytes.Equal(encodeTwin(seq, body), b) {
			t.Fatal("accepted bytes do not encode to themselves")
		}
	})
}
