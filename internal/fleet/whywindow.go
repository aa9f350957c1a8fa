package fleet

import (
	"fmt"
	"time"
	_ "time/tzdata" // containers have no zone files

	"github.com/otad/otad/pkg/ota"
)

// shut says that the window of a rollout is shut for the device, and when it opens: when
// its turn comes, or now. Empty: it is open, or there is none.
func (w inquiry) shut(r ota.Rollout, turn time.Time) string {
	zone, named := w.zone()
	for _, at := range []time.Time{turn, w.now} {
		if r.Terms.Window.Open(at, zone) {
			continue
		}
		text := fmt.Sprintf("; its window (%s) is shut", r.Terms.Window)
		if opens, ok := r.Terms.Window.Next(at, zone); ok {
			text += fmt.Sprintf(" and opens at %s (%s)", opens.In(zone).Format(time.RFC3339), zone)
		} else {
			text += " and does not open any more"
		}
		if !named {
			text += ", if the device's clock is in that time zone: it has not said its own"
		}
		return text
	}
	return ""
}

// zone is the time zone that the device reports, by which it reads windows; UTC and false
// where it reports none that is known here.
func (w inquiry) zone() (zone *time.Location, named bool) {
	said, _ := w.device.Shadow.Reported.Get("timezone")
	name, _ := said.Text()
	zone, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		return time.UTC, false
	}
	return zone, true
}
