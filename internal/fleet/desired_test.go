package fleet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

// TestDesiredFirmwareOfOneIsOfNoOther: who desired a release before a newer rollout had the
// last word is not taken back to it because it is desired of another device now.
func TestDesiredFirmwareOfOneIsOfNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		for _, id := range []string{"a", "b", "c"} {
			w.made(id, "north")
		}
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		for _, id := range []string{"a", "b"} {
			w.ok(w.desires(id, desired(one)))
			w.rests()
			w.installs(id, one)
		}
		w.rests()
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%")})
		w.ok(err)
		w.rests()
		for _, id := range []string{"a", "b", "c"} {
			w.installs(id, two)
		}
		<-time.After(2 * time.Minute) // its soak
		w.rests()
		if v, err = w.s.Rollout(w.ctx, v.ID); err != nil || v.State != ota.RolloutCompleted {
			t.Fatalf("the newer rollout is %s, %v", v.State, err)
		}
		why, err := w.s.Why(w.ctx, "a")
		w.ok(err)
		if len(why) != 1 || why[0].Cause != fleet.CausePassedBy || why[0].Other != v.ID || !strings.Contains(why[0].Why, "attempt 1 ended succeeded") {
			t.Errorf("of what was desired before: %+v, want it to be passed by rollout %s", why, v.ID)
		}
		before := len(w.rollouts())
		err = w.desires("c", desired(one))
		if !errors.Is(err, fleet.ErrConflict) || !strings.Contains(err.Error(), "2 other devices still desire "+one.ID().String()) {
			t.Fatalf("%v, want two others to be named", err)
		}
		w.rests()
		if n := len(w.rollouts()); n != before || w.newestOn("a") != "" || w.newestOn("c") != "" {
			t.Errorf("%d rollouts, %d before; a is to install %q, c %q", n, before, w.newestOn("a"), w.newestOn("c"))
		}

		w.ok(w.desires("b", nil)) // as the error says
		w.rests()
		w.ok(w.desires("a", desired(one))) // its own wish of before is no other's
		w.rests()
		w.ok(w.desires("c", desired(one)))
		w.rests()
		for id, want := range map[string]string{"a": one.ID().String(), "b": "", "c": one.ID().String()} {
			if got := w.newestOn(id); got != want {
				t.Errorf("%s is to install %q, want %q", id, got, want)
			}
		}
	})
}

// TestDesiredFirmwareUnderAHigherPriority: what is desired does not undo what a rollout of
// higher priority has brought, or is going to bring.
func TestDesiredFirmwareUnderAHigherPriority(t *testing.T) {
	for name, c := range map[string]struct {
		plan    ota.Rollout
		refused map[string]bool // by device: a is updated, b is to come, c is not meant
	}{
		"of a snapshot":       {ota.Rollout{Selector: `id != "c"`}, map[string]bool{"a": true, "b": true, "c": false}},
		"of a continuous one": {ota.Rollout{Selector: `id != "c"`, Terms: ota.Terms{Continuous: true}}, map[string]bool{"a": true, "b": true, "c": false}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.release("1.0"), w.release("2.0")
				for _, id := range []string{"a", "b", "c"} {
					w.made(id, "north")
				}
				defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
				c.plan.Release, c.plan.Priority, c.plan.Stages = two.ID(), 5, w.stages("1,100%")
				c.plan.Stages[1].Approval = true
				v, err := w.s.CreateRollout(w.ctx, c.plan)
				w.ok(err)
				w.rests()
				first, other := "a", "b"
				if w.newestOn("a") == "" {
					first, other = "b", "a"
				}
				w.installs(first, two)
				w.rests()
				for _, id := range []string{first, other, "c"} {
					err := w.desires(id, desired(one))
					if refused := errors.Is(err, fleet.ErrOutranked); refused != c.refused[id] || refused && !strings.Contains(err.Error(), "rollout "+v.ID+" of priority 5 has gw@2.0 for this device") {
						t.Errorf("%s: %v, want refused: %v", id, err, c.refused[id])
					}
				}
				w.rests()
				if got := w.newestOn(first); got != "" {
					t.Errorf("%s is to install %q, which undoes the rollout of higher priority", first, got)
				}
				_, err = w.s.AbortRollout(w.ctx, v.ID, "", ota.AbortKeep)
				w.ok(err)
				w.rests()
				w.ok(w.desires(first, desired(one)))
				w.rests()
				if got := w.newestOn(first); got != one.ID().String() {
					t.Errorf("after its end %s is to install %q", first, got)
				}
			})
		})
	}
}

// TestDesiredFirmwareUnderAHigherPriorityToCome: a rollout has whom it means, before it has
// begun; a continuous one also who needs nothing yet, since it would bring the device back.
func TestDesiredFirmwareUnderAHigherPriorityToCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		w.made("a", "north")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		w.ok(w.desires("a", desired(two)))
		w.rests()
		w.installs("a", two)
		w.ok(w.desires("a", nil))
		w.rests()
		w.made("b", "north")
		for device, terms := range map[string]ota.Terms{
			"a": {Continuous: true}, // which it runs already
			"b": {Start: w.s.Now().Add(time.Hour)},
		} {
			v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Priority: 5, Stages: w.stages("100%"), Terms: terms})
			w.ok(err)
			w.rests()
			if err := w.desires(device, desired(one)); !errors.Is(err, fleet.ErrOutranked) {
				t.Errorf("%s: %v, want it to be refused", device, err)
			}
			_, err = w.s.AbortRollout(w.ctx, v.ID, "", ota.AbortKeep)
			w.ok(err)
			w.rests()
		}
	})
}
