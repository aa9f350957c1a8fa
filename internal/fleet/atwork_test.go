package fleet_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// TestAtWork: while few are in progress a rollout names those that it waits for.
func TestAtWork(t *testing.T) { synctest.Test(t, testAtWork) }

func testAtWork(t *testing.T) {
	w := newWorld(t)
	r := w.release("1.0")
	w.enroll(fleet.MaxAtWork+2, "rpi4")
	v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Stages: w.stages("100%")})
	w.ok(err)
	defer w.background(w.s.RunEngine)()
	if none, err := w.s.AtWork(w.ctx, v); err != nil || none != nil {
		t.Fatalf("before anybody began: %v, %v", none, err)
	}
	w.rests()
	var want []string
	for i := range fleet.MaxAtWork + 1 {
		id := fmt.Sprintf("rpi4-%03d", fleet.MaxAtWork-i)
		_, err := w.s.StartNext(w.ctx, id, ota.Starting{})
		w.ok(err)
		<-time.After(time.Second)
		want = append(want, id)
	}
	v, err = w.s.Rollout(w.ctx, v.ID)
	w.ok(err)
	list, err := w.s.AtWork(w.ctx, v)
	w.ok(err)
	var got []string
	for _, e := range list {
		got = append(got, e.DeviceID)
	}
	if !slices.Equal(got, want[:fleet.MaxAtWork]) {
		t.Errorf("%v, want the first of %v", got, want)
	}
	for n, shown := range map[int]bool{fleet.FewAtWork: true, fleet.FewAtWork + 1: false} {
		v.Progress.Stages[0].InProgress = n
		if list, err := w.s.AtWork(w.ctx, v); err != nil || (len(list) > 0) != shown {
			t.Errorf("of %d: %d, %v", n, len(list), err)
		}
	}
}
