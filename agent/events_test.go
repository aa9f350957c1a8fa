package agent

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/agent/disk/disktest"
)

func openTestEvents(t *testing.T, fsys disk.FS) *events {
	t.Helper()
	ok(t, fsys.MkdirAll("/e", 0o700))
	e, err := openEvents(twin{fsys: fsys, dir: "/e", name: "events"}, time.Now, make(chan struct{}, 1))
	ok(t, err)
	return e
}

func TestEventsKeepNumbersAcrossPowerCuts(t *testing.T) {
	mem := disktest.NewMem()
	e := openTestEvents(t, mem)
	log, _ := e.head()
	for i := range 5 {
		ok(t, e.add(EventState, map[string]any{"n": i}))
		mem = mem.Crash(disktest.Lost, 0)
		e = openTestEvents(t, mem)
	}
	ok(t, e.delivered(log, 2))
	ok(t, e.delivered(log, 1))        // late
	ok(t, e.delivered("another", 99)) // not ours
	mem = mem.Crash(disktest.Lost, 0)
	e = openTestEvents(t, mem)
	again, batch := e.head()
	if again != log || len(batch) != 3 || batch[0].Seq != 3 || batch[2].Seq != 5 {
		t.Fatalf("log %s, was %s: %+v", again, log, batch)
	}
	ok(t, e.delivered(log, 5))
	ok(t, e.add(EventStart, nil))
	if _, batch = e.head(); len(batch) != 1 || batch[0].Seq != 6 {
		t.Fatalf("%+v", batch)
	}
}

func TestEventsAreBounded(t *testing.T) {
	e := openTestEvents(t, disktest.NewMem())
	for range MaxPendingEvents + 40 {
		ok(t, e.add(EventState, nil))
	}
	log, batch := e.head()
	if len(batch) != MaxEventBatch || batch[0].Seq != 41 {
		t.Fatalf("%d events from %d", len(batch), batch[0].Seq)
	}
	n := 0
	for ; len(batch) > 0; _, batch = e.head() {
		n += len(batch)
		ok(t, e.delivered(log, batch[len(batch)-1].Seq))
	}
	if n != MaxPendingEvents {
		t.Fatalf("%d kept, limit %d", n, MaxPendingEvents)
	}
}

// Numbers must not mean two things: what was lost is another log.
func TestLostEventsBeginAnotherLog(t *testing.T) {
	mem := disktest.NewMem()
	e := openTestEvents(t, mem)
	ok(t, e.add(EventStart, nil))
	log, _ := e.head()
	for i := range 2 {
		f, err := mem.OpenFile(fmt.Sprintf("/e/events.%d", i), os.O_RDWR|os.O_CREATE, 0o600)
		ok(t, err)
		_, err = f.WriteAt([]byte("damaged"), 0)
		ok(t, err)
		ok(t, f.Close())
	}
	e = openTestEvents(t, mem)
	if again, batch := e.head(); again == log || len(batch) > 0 {
		t.Fatalf("log %s again, %+v", again, batch)
	}
}

func TestABootIsToldOnce(t *testing.T) {
	mem := disktest.NewMem()
	e := openTestEvents(t, mem)
	for _, c := range []struct{ boot, was string }{{"b1", ""}, {"b1", ""}, {"b2", "b1"}, {"b2", ""}} {
		was, err := e.booted(c.boot)
		ok(t, err)
		if was != c.was {
			t.Errorf("boot %s after %q, want %q", c.boot, was, c.was)
		}
		mem = mem.Crash(disktest.Lost, 0)
		e = openTestEvents(t, mem)
	}
}

// TestWhichBootsAreExpected walks every state.
func TestWhichBootsAreExpected(t *testing.T) {
	surprising := map[State]bool{
		StateIdle: true, StateStuck: true, StateChecked: true, StateWait: true, StateFetch: true, StateStaged: true, StateReady: true, StateCommand: true,
	}
	for _, s := range States {
		if got := (Record{State: s}).bootExpected(); got == surprising[s] {
			t.Errorf("%s: %v", s, got)
		}
	}
	if !(Record{State: StateCommand, Command: "reboot"}).bootExpected() {
		t.Error("a reboot that was ordered is a surprise")
	}
}
