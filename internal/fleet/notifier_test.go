package fleet

import (
	"slices"
	"testing"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// TestPaceIsKept: a page at once, then no more than the rate in any span, and no
// rest that could be spent later.
func TestPaceIsKept(t *testing.T) {
	const rate = 100
	p, now := &pace{rate: rate}, time.Unix(1_000, 0)
	began, told := now, 0
	for range 20 {
		now = now.Add(max(p.wait(now, tellPage), 0))
		told += tellPage
		if most := tellPage + now.Sub(began).Seconds()*rate; float64(told) > most+1e-6 {
			t.Fatalf("%d are told within %s", told, now.Sub(began))
		}
	}
	if took := now.Sub(began); took > 19*tellPage*time.Second/rate {
		t.Errorf("it took %s", took)
	}
	now = now.Add(time.Hour)
	if p.wait(now, tellPage) > 0 || p.wait(now, tellPage) != tellPage*time.Second/rate {
		t.Error("what an hour left over is spent at once")
	}
	if p.wait(now, 0) > 0 {
		t.Error("nobody has to wait")
	}
	if fast := (&pace{rate: Unpaced}); fast.wait(now, 1_000_000) > 0 || fast.wait(now, 1) > 0 {
		t.Error("it waits though there is no bound")
	}
}

// TestNotifierRemembersABoundedNumber and says what it does not tell.
func TestNotifierRemembersABoundedNumber(t *testing.T) {
	n := newNotifier()
	half := make([]ota.Execution, maxTold/2)
	for range 3 {
		n.add(telling{list: half})
	}
	if len(n.queue) != 2 || n.dropped != 1 {
		t.Errorf("%d kept, %d dropped", len(n.queue), n.dropped)
	}
	_, dropped, ok := n.next()
	if !ok || dropped != 1 || n.told != len(half) {
		t.Errorf("took %t, %d dropped, %d are left", ok, dropped, n.told)
	}
	for range maxTellings {
		n.add(telling{to: 1})
	}
	if len(n.queue) != maxTellings || n.dropped != 1 {
		t.Errorf("%d kept, %d dropped", len(n.queue), n.dropped)
	}
}

// TestStepsOfAStageAreToldAsOne, or those of a million devices would be too much.
func TestStepsOfAStageAreToldAsOne(t *testing.T) {
	n := newNotifier()
	step := func(id string, what tellWhat, from, to int) telling {
		return telling{what: what, rollout: ota.Rollout{ID: id, Line: "l", Cursor: to}, from: from, to: to}
	}
	for turn := range 3 * maxTellings {
		n.add(step("a", tellCome, turn, turn+1))
	}
	n.add(step("b", tellCome, 3*maxTellings, 3*maxTellings+1)) // another rollout
	n.add(step("b", tellCome, 7, 8))                           // not what comes next
	n.add(telling{what: tellGone, rollout: ota.Rollout{ID: "b", Line: "l"}, whole: func(ota.Execution) bool { return true }})
	n.add(step("b", tellCome, 8, 9)) // what happened in between is told in between
	var got [][3]int
	for {
		next, dropped, ok := n.next()
		if dropped > 0 {
			t.Errorf("%d dropped", dropped)
		}
		if !ok {
			break
		}
		got = append(got, [3]int{next.from, next.to, next.rollout.Cursor})
	}
	want := [][3]int{{0, 3 * maxTellings, 3 * maxTellings}, {3 * maxTellings, 3*maxTellings + 1, 3*maxTellings + 1}, {7, 8, 8}, {}, {8, 9, 9}}
	if !slices.Equal(got, want) {
		t.Errorf("told are %v", got)
	}
}
