package ota

import (
	"fmt"
	"slices"
	"time"
)

// Terms are the parts of a plan that bind the rollout as a whole. The zero value
// binds nothing.
type Terms struct {
	Start    time.Time   `json:"start,omitzero"`     // not before this moment
	Approval bool        `json:"approval,omitempty"` // an operator must approve it before it starts
	Rate     Rate        `json:"rate,omitzero"`
	InFlight InFlight    `json:"inFlight,omitzero"`
	Timers   Timers      `json:"timers,omitzero"`
	Retry    Retry       `json:"retry,omitzero"`
	Strata   []string    `json:"strata,omitempty"` // what every stage holds a share of: "hardware" or tag keys
	OnPause  PausePolicy `json:"onPause,omitempty"`
	OnAbort  AbortPolicy `json:"onAbort,omitempty"`
	Health   Health      `json:"health,omitzero"`
	Window   Window      `json:"window,omitzero"`   // when a device may install, by its own wall clock
	Consent  *Consent    `json:"consent,omitempty"` // nil: DefaultConsent
	Drift    DriftPolicy `json:"drift,omitempty"`
	// Continuous: it follows its selector, see MoveOf.
	Continuous bool `json:"continuous,omitempty"`
	// Quarantined lets in devices on which the same image failed before.
	Quarantined bool `json:"quarantined,omitempty"`
}

// PausePolicy says what a pause does to executions that are in progress.
type PausePolicy string

// PauseLetFinish, also the empty policy, lets them finish.
// PauseHoldBeforeInstall asks them to stay as they are until the rollout goes
// on, unless they have activated the new slot.
const (
	PauseLetFinish         PausePolicy = "let-finish"
	PauseHoldBeforeInstall PausePolicy = "hold-before-install"
)

// InFlight bounds how many devices of a rollout are IN_PROGRESS at a time.
type InFlight struct {
	Max    int    `json:"max,omitempty"`    // 0: no bound
	Per    string `json:"per,omitempty"`    // "hardware" or a tag key; empty: PerMax does not bind
	PerMax int    `json:"perMax,omitempty"` // for each value of Per; devices without the tag share one
}

// Limits of terms.
const (
	MaxStrata   = 8
	MaxInFlight = 10_000_000
	MaxStart    = 366 * 24 * time.Hour // how far ahead a rollout may be scheduled
)

// ByHardware is the word for the hardware model where a tag key may stand.
const ByHardware = "hardware"

func (t Terms) validate() error {
	for _, part := range []struct {
		field string
		check func() error
	}{
		{"rate", t.Rate.validate},
		{"inFlight", t.InFlight.validate},
		{"timers", t.Timers.validate},
		{"retry", t.Retry.validate},
		{"drift", t.Drift.validate},
		{"window", t.validateWindow},
		{"consent", t.Consent.validate},
		{"strata", t.validateStrata},
		{"health", t.Health.validate},
		{"onAbort", t.OnAbort.validate},
		{"onPause", t.OnPause.validate},
	} {
		if err := part.check(); err != nil {
			return AtField(part.field, err)
		}
	}
	return nil
}

func (t Terms) validateWindow() error {
	if t.Window == (Window{}) {
		return nil
	}
	return t.Window.Validate()
}

func (t Terms) validateStrata() error {
	if len(t.Strata) > MaxStrata {
		return invalid("%d strata: at most %d", len(t.Strata), MaxStrata)
	}
	for i, s := range t.Strata {
		err := ValidateWord("stratum", s)
		if slices.Contains(t.Strata[:i], s) {
			err = invalid("stratum %q is given twice", s)
		}
		if err != nil {
			return AtField(fmt.Sprintf("[%d]", i), err)
		}
	}
	return nil
}

func (p PausePolicy) validate() error {
	switch p {
	case "", PauseLetFinish, PauseHoldBeforeInstall:
		return nil
	}
	return invalid("pause policy %q: want %s or %s", p, PauseLetFinish, PauseHoldBeforeInstall)
}

func (f InFlight) validate() error {
	switch {
	case f.Max < 0 || f.Max > MaxInFlight:
		return AtField("max", invalid("%d in flight: want 0 (no bound) to %d", f.Max, MaxInFlight))
	case f.PerMax < 0 || f.PerMax > MaxInFlight:
		return AtField("perMax", invalid("%d in flight for each value: want 0 (no bound) to %d", f.PerMax, MaxInFlight))
	case (f.Per == "") != (f.PerMax == 0):
		return invalid("in flight for each value: give the tag key and the number, as in 'site=5'")
	case f.Per != "":
		return AtField("per", ValidateWord("tag key", f.Per))
	}
	return nil
}
