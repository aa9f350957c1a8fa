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
	if _, blocked := h.blocks("d7", 1); !blocked {
		t.Error("a bad image is not blocked")
	}
	if _, blocked := h.blocks("d7", 2); blocked {
		t.Error("a new attempt is blocked")
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
