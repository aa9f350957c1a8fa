package ota

import "time"

// Timers bound how long an execution may stay where it is. Each runs from the
// moment its step begins; 0: no bound. A device that does not report steps is
// bound by Claim and the rollout's InProgressTimeout alone.
type Timers struct {
	// Claim bounds QUEUED while the device could start: not while the rollout is
	// paused or has as many in flight as it may.
	Claim   time.Duration `json:"claim,omitempty"`
	Fetch   time.Duration `json:"fetch,omitempty"`   // step fetching
	Install time.Duration `json:"install,omitempty"` // step staged: written, not yet activated
	Reboot  time.Duration `json:"reboot,omitempty"`  // steps rebooting and rolling-back; over it the device is silent
	Health  time.Duration `json:"health,omitempty"`  // steps trial and committing; over it the device is silent
}

// DefaultTimers are those of a plan of firmware that says nothing else: a device that
// restarted into a release and is not heard of is a failure, not a wait without end.
// Before that it is as it was, and may be off for months.
var DefaultTimers = Timers{Reboot: time.Hour, Health: time.Hour}

// Step is where an execution is inside IN_PROGRESS, in the agent's words. Other
// devices may have none.
type Step string

// The steps, in the order they are taken.
const (
	StepWaiting     Step = "waiting" // for a window, a consent or the end of a pause
	StepFetching    Step = "fetching"
	StepStaged      Step = "staged"
	StepRebooting   Step = "rebooting"
	StepTrial       Step = "trial"
	StepCommitting  Step = "committing"
	StepRollingBack Step = "rolling-back"
)

// Activated reports whether the new slot may run from this step on: until then
// an execution can be cancelled without a trace on the device.
func (s Step) Activated() bool {
	return s != StepWaiting && s != StepFetching && s != StepStaged
}

// timer returns the bound of a step and the class of an execution that does not
// keep it.
func (t Timers) timer(s Step) (time.Duration, Class) {
	switch s {
	case StepFetching:
		return t.Fetch, ClassTimedOut
	case StepStaged:
		return t.Install, ClassTimedOut
	case StepRebooting, StepRollingBack:
		return t.Reboot, ClassSilent
	case StepTrial, StepCommitting:
		return t.Health, ClassSilent
	}
	return 0, ClassTimedOut
}

func (t Timers) validate() error {
	for _, d := range []struct {
		name string
		time.Duration
	}{{"claim", t.Claim}, {"fetch", t.Fetch}, {"install", t.Install}, {"reboot", t.Reboot}, {"health", t.Health}} {
		limit := MaxTimeout
		if d.name == "claim" {
			limit = MaxClaim
		}
		if d.Duration != 0 && (d.Duration < MinTimeout || d.Duration > limit) {
			return AtField(d.name, invalid("%s timer of %s: want %s to %s", d.name, d.Duration, MinTimeout, limit))
		}
	}
	return nil
}

// MaxClaim is the longest claim timer: devices may be switched off for months.
const MaxClaim = 366 * 24 * time.Hour
