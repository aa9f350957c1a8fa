package ota

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// AbortPolicy says what becomes of devices that a rollout has changed when it is
// aborted.
type AbortPolicy string

// AbortKeep, also the empty policy, leaves them what they run. AbortRevert
// brings them back to what they ran before.
const (
	AbortKeep   AbortPolicy = "keep"
	AbortRevert AbortPolicy = "revert"
)

func (p AbortPolicy) validate() error {
	switch p {
	case "", AbortKeep, AbortRevert:
		return nil
	}
	return invalid("abort policy %q: want %s or %s", p, AbortKeep, AbortRevert)
}

// Changed reports whether the device may run the image with this digest because
// of the execution: it said so, or it activated the image and was not heard of
// again. One that has drifted runs another.
func (e Execution) Changed(digest string) bool {
	switch said := e.Details[DetailDigest]; {
	case e.Class == ClassSucceeded:
		return true
	case e.Class != ClassFailed && e.Class != ClassSilent && e.Class != ClassTimedOut:
		return false
	case said != "":
		return said == digest
	case e.Status == TimedOut:
		return !e.StartedAt.IsZero() && e.Step().Activated()
	}
	return e.Class == ClassSilent
}

// Changed reports whether a device may run an image of a rollout because of its
// attempts there, all of them in order; digest says which image a release has. The
// newest one with a verdict counts. Where that was not the first leg, the device
// stays changed unless it said that it runs what it ran before.
func Changed(attempts []Execution, digest func(ReleaseID) string) bool {
	underway := false
	var last Execution
	for _, e := range attempts {
		switch e.Class {
		case ClassNone:
			continue
		case ClassUnderway:
			underway = true
		case ClassDrifted:
			underway = false
		}
		last = e
	}
	if underway && last.Details[DetailDigest] != last.From {
		return true
	}
	return last.Changed(digest(last.Release))
}

// Return is where devices go back to that ran one image before.
type Return struct {
	Digest  string // of the image; empty: they did not say
	Devices int
	Sample  []string  // the first of them, at most ReturnSample
	To      ReleaseID // what has that image; of no meaning if they stay
	Stay    string    // why they can not go back; empty: they can
}

// ReturnSample is how many devices that stay are named in a rollout's reason.
const ReturnSample = 10

// SendBack makes the reverts of a rollout that is ROLLING_BACK, one for each
// image that its devices ran before, and returns how the rollout stands then: it
// waits for them, or is ROLLED_BACK when there are none.
//
// A revert takes the place of its rollout among others: what is newer than the
// rollout is newer than the revert, and comes before it on a device.
func SendBack(r Rollout, returns []Return, now time.Time) (Rollout, []Rollout) {
	returns = slices.Clone(returns)
	slices.SortFunc(returns, func(a, b Return) int { return cmp.Compare(a.Digest, b.Digest) })
	var reverts []Rollout
	var words []string
	for _, back := range returns {
		if back.Stay != "" {
			words = append(words, fmt.Sprintf("%s: %s", back.who(), back.Stay))
			continue
		}
		reverts = append(reverts, r.revert(back))
		words = append(words, fmt.Sprintf("%s to %s", back.who(), back.To))
	}
	if len(words) == 0 {
		words = []string{"no device had changed"}
	}
	r.Reason = strings.Join(append([]string{r.Reason}, words...), "; ")
	if len(reverts) == 0 {
		r.State, r.EndedAt = RolloutRolledBack, now
	}
	return r, reverts
}

// who says how many go back or stay, and names those that stay.
func (b Return) who() string {
	noun, goes, stays := "devices", "go back", "stay"
	if b.Devices == 1 {
		noun, goes, stays = "device", "goes back", "stays"
	}
	if b.Stay == "" {
		return fmt.Sprintf("%d %s %s", b.Devices, noun, goes)
	}
	names := strings.Join(b.Sample, " ")
	if b.Devices > len(b.Sample) {
		names += " ..."
	}
	return fmt.Sprintf("%d %s %s (%s)", b.Devices, noun, stays, names)
}

// revert is the rollout that brings devices back. Its name tells which it is.
func (r Rollout) revert(back Return) Rollout {
	t := r.Terms
	return Rollout{
		ID: r.ID + "-" + back.Digest[:min(revertDigits, len(back.Digest))], RevertOf: r.ID, Release: back.To,
		Seed: r.Seed, Abort: r.Abort, Priority: r.Priority, InProgressTimeout: r.InProgressTimeout,
		Terms: Terms{
			Rate: t.Rate, InFlight: t.InFlight, Timers: t.Timers, Retry: t.Retry, OnPause: t.OnPause, Window: t.Window, Consent: t.Consent,
			Quarantined: true,
		},
		Stages: []Stage{{Size: Size{Percent: 100}, Gate: Gate{Success: r.Stages[len(r.Stages)-1].Gate.Success}, State: StagePending}},
		State:  RolloutScheduled, CreatedAt: r.CreatedAt,
	}
}

// revertDigits of the digest of an image name a revert.
const revertDigits = 12
