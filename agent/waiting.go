package agent

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// waiting is what an execution waits for, as people see it.
type waiting struct {
	key     string    // the execution's, see Report.key
	reason  string    // empty: for nothing
	until   time.Time // when it is worth looking again at the latest; zero: at the next poll
	details map[string]string
}

// maxClockLag is how far behind what is known of the time a clock may be and
// still count as set.
const maxClockLag = time.Hour

// layoutUntil is how people read the end of a wait.
const layoutUntil = "2006-01-02T15:04Z07:00"

// spread bounds how late after the opening of its window a device begins, so
// that a fleet does not begin as one: a tenth of the time it is open, at most
// maxSpread.
const (
	spreadShare = 10
	maxSpread   = 5 * time.Minute
)

// shut says what an execution with this window waits for now; an empty reason:
// for nothing, go on. ok is false when the window never opens again.
func (a *Agent) shut(w ota.Window) (p waiting, ok bool) {
	if w == (ota.Window{}) {
		return waiting{}, true
	}
	now := a.cfg.Now()
	if floor := a.clockFloor(); now.Before(floor.Add(-maxClockLag)) {
		return waiting{reason: fmt.Sprintf("the clock is not set: it shows %s, and it is later than %s", now.UTC().Format(time.DateOnly), floor.UTC().Format(time.DateOnly))}, true
	}
	open, until := w.State(now, a.cfg.Zone)
	switch {
	case open:
		return waiting{}, true
	case until.IsZero():
		return waiting{}, false
	}
	spread := a.cfg.Jitter(min(time.Duration(w.Duration)*time.Second/spreadShare, maxSpread))
	return waiting{reason: "window opens " + until.In(a.cfg.Zone).Format(layoutUntil), until: until.Add(spread)}, true
}

const reasonNeverOpens = "its maintenance window does not open again"

// clockFloor is a date that is surely past.
func (a *Agent) clockFloor() time.Time {
	floor := a.trust.trust.ClockFloor()
	if a.cfg.NotOlder.After(floor) {
		return a.cfg.NotOlder
	}
	return floor
}

// waits tells, once for each reason, what an execution waits for. One that has
// not begun stays QUEUED on the server.
func (a *Agent) waits(jobID string, attempt int, status ota.Status, p waiting) {
	p.key = Report{JobID: jobID, Attempt: attempt}.key()
	same := p.key == a.waiting.key && p.reason == a.waiting.reason
	a.waiting = p
	if same {
		return
	}
	d := map[string]string{ota.DetailStep: string(ota.StepWaiting), ota.DetailReason: p.reason}
	maps.Copy(d, p.details)
	if err := a.outbox.queue(Report{JobID: jobID, Attempt: attempt, Status: status, Details: d}); err != nil {
		a.cfg.Log.Warn("queue report", "step", ota.StepWaiting, "err", err)
	}
	a.event(EventWaiting, map[string]any{"job": jobID, "reason": p.reason})
	a.cfg.Log.Info("waiting", "job", jobID, "reason", p.reason)
	a.writeStatus()
}

// goesOn forgets what was waited for.
func (a *Agent) goesOn() { a.waiting = waiting{} }

// await waits for p, for as long as a poll at most; then look again.
func (a *Agent) await(ctx context.Context, rec Record, p waiting) error {
	a.waits(rec.JobID, rec.Attempt, ota.InProgress, p)
	return a.pauseFor(ctx, a.lookAgain(p))
}

// lookAgain is how long to wait for p before another look at the server.
func (a *Agent) lookAgain(p waiting) time.Duration {
	wait := a.cfg.Jitter(a.cfg.Poll)
	if p.until.IsZero() {
		return wait
	}
	return min(wait, max(p.until.Sub(a.cfg.Now()), 0))
}
