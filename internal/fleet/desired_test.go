package fleet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// desires has an operator desire a firmware of a device.
func (w *world) desires(device string, firmware any) error {
	_, err := w.s.ChangeShadow(w.ctx, device, "", shadow.NewUpdate(map[string]any{"firmware": firmware}, nil))
	return err
}

func desired(r ota.Release) map[string]any {
	return map[string]any{"name": r.Name, "version": r.Version}
}

func (w *world) rollouts() []ota.Rollout {
	w.t.Helper()
	list, err := w.store.Rollouts(w.ctx)
	w.ok(err)
	return list
}

// newestOn is the rollout of the newest execution that is not finished on a device.
func (w *world) newestOn(device string) string {
	w.t.Helper()
	e, err := w.s.NextExecution(w.ctx, device)
	if errors.Is(err, fleet.ErrNotFound) {
		return ""
	}
	w.ok(err)
	return e.Release.String()
}

// TestDesiredFirmware: what is desired of a device comes to it through the engine, one
// rollout for all that desire a release; what was desired last counts.
func TestDesiredFirmware(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		for _, id := range []string{"a", "b", "c"} {
			w.made(id, "north")
		}
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		w.ok(w.desires("a", desired(two)))
		w.ok(w.desires("b", desired(two)))
		w.rests()
		if n := len(w.rollouts()); n != 1 {
			t.Fatalf("%d rollouts for one release, want 1", n)
		}
		for id, want := range map[string]string{"a": two.ID().String(), "b": two.ID().String(), "c": ""} {
			if got := w.newestOn(id); got != want {
				t.Errorf("%s is to install %q, want %q", id, got, want)
			}
		}
		w.installs("a", two)
		w.ok(w.desires("a", desired(one))) // another mind
		w.ok(w.desires("b", nil))          // none any more
		w.rests()
		if got := w.newestOn("a"); got != one.ID().String() {
			t.Errorf("a is to install %q, want %s", got, one.ID())
		}
		if got := w.newestOn("b"); got != "" {
			t.Errorf("b is to install %q though nothing is desired of it", got)
		}
		w.installs("a", one)
		w.rests()

		// An ordinary rollout after it has the last word, until something is desired anew.
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Selector: `id = "a"`, Stages: w.stages("100%")})
		w.ok(err)
		w.rests()
		if e := w.attempt(v.ID, "a"); e.Status != ota.Queued {
			t.Fatalf("the later rollout has %+v on a", e)
		}
		w.installs("a", two)
		w.rests()
		if got := w.newestOn("a"); got != "" {
			t.Errorf("%s is to undo what came after it was desired", got)
		}
		before := len(w.rollouts())
		w.ok(w.desires("a", desired(one)))
		w.rests()
		if got := w.newestOn("a"); got != one.ID().String() || len(w.rollouts()) != before+1 {
			t.Errorf("a is to install %q by %d rollouts more, want %s by one", got, len(w.rollouts())-before, one.ID())
		}
		live := 0
		for _, r := range w.rollouts() {
			if r.Selector == fleet.DesiredSelector(one.ID()) && !r.State.Terminal() {
				live++
			}
		}
		if live != 1 {
			t.Errorf("%d rollouts bring what is desired, want 1: the newer takes the place of the older", live)
		}
	})
}

// TestDesiredFirmwareIsChecked: what no device could be given is not desired.
func TestDesiredFirmwareIsChecked(t *testing.T) {
	w := newWorld(t)
	r := w.release("1.0")
	w.made("a", "north")
	_, err := w.s.CreateDevice(w.ctx, fleet.Device{ID: "x", Hardware: "other"})
	w.ok(err)
	draft, _, err := w.drafted("3.0", []byte("draft"), 0)
	w.ok(err)
	for _, c := range []struct {
		device   string
		firmware any
		is       error
		words    string
	}{
		{"a", map[string]any{"version": "1.0"}, fleet.ErrInvalid, `want {"name": NAME, "version": VERSION}`},
		{"a", map[string]any{"name": r.Name, "version": "1.0", "digest": "x"}, fleet.ErrInvalid, "nothing else"},
		{"a", "1.0", fleet.ErrInvalid, "or null to desire none"},
		{"a", map[string]any{"name": r.Name, "version": "9"}, fleet.ErrNotFound, r.Name + "@9"},
		{"a", desired(draft), fleet.ErrUnsigned, "otactl firmware sign"},
		{"x", desired(r), fleet.ErrInvalid, "is not for hardware other"},
		{"none", desired(r), fleet.ErrNotFound, "none"},
	} {
		if err := w.desires(c.device, c.firmware); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s, %v: %v, want %q", c.device, c.firmware, err, c.words)
		}
	}
	if n := len(w.rollouts()); n > 0 {
		t.Errorf("%d rollouts were made", n)
	}
	if doc, err := w.s.Shadow(w.ctx, "a", ""); err == nil {
		t.Errorf("stored %v", doc.Desired)
	}
}
