package fleet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// TestAWindowThatIsOverEverywhereIsRefused: at plan, create and edit alike, from when the
// rollout may begin. It is over where clocks are furthest behind: an hour before that, a
// device there may still install.
func TestAWindowThatIsOverEverywhereIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t) // it is 2000-01-01T00:00:00Z, and 12:00 of the day before where that comes last
		r := w.release("1.0")
		w.enroll(1, "rpi4")
		draft, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Stages: w.stages("100%"), State: ota.RolloutDraft})
		w.ok(err)
		const refused = "does not open any more from 2000-01-01T00:00:00Z on, in no time zone: give a later UNTIL, a greater COUNT, or neither"
		for _, c := range []struct {
			window string
			start  time.Duration
			words  string
		}{
			{"FREQ=DAILY;BYHOUR=2 for 1h", 0, ""},
			{"FREQ=DAILY;BYHOUR=2;UNTIL=19950101T000000 for 1h", 0, refused},
			{"FREQ=DAILY;BYHOUR=11;UNTIL=19991231T110000 for 1h", 0, refused}, // it closes there now
			{"FREQ=DAILY;BYHOUR=11;UNTIL=19991231T110000 for 61m", 0, ""},     // and here it is open yet
			{"FREQ=DAILY;BYHOUR=13;UNTIL=19991231T130000 for 1h", 0, ""},      // it is past in Greenwich
			{"FREQ=DAILY;BYHOUR=13;UNTIL=19991231T130000 for 1h", time.Hour, ""},
			{"FREQ=DAILY;BYHOUR=13;UNTIL=19991231T130000 for 1h", 2 * time.Hour, "from 2000-01-01T02:00:00Z on"},
			{"FREQ=DAILY;BYHOUR=13;UNTIL=19991231T130000 for 1h", -24 * time.Hour, ""}, // that is now
			{"FREQ=DAILY;COUNT=3 from 1999-12-28T02:00 for 1h", 0, refused},
			{"FREQ=DAILY;COUNT=5 from 1999-12-28T02:00 for 1h", 0, ""},
		} {
			window, err := ota.ParseWindow(c.window)
			w.ok(err)
			plan := ota.Rollout{Release: r.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Window: window}, State: ota.RolloutDraft}
			if c.start != 0 {
				plan.Terms.Start = time.Now().Add(c.start)
			}
			_, planned := w.s.PlanRollout(w.ctx, plan)
			_, created := w.s.CreateRollout(w.ctx, plan)
			_, edited := w.s.EditRollout(w.ctx, draft.ID, plan)
			for i, err := range []error{planned, created, edited} {
				if fine := c.words == ""; fine && err != nil || !fine && (!errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), c.words)) {
					t.Errorf("%s, in %s, %d: %v, want %q", c.window, c.start, i, err, c.words)
				}
			}
		}
	})
}
