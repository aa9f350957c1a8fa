package ota

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Retry gives a device another attempt after it failed.
type Retry struct {
	Attempts int           `json:"attempts,omitempty"` // in all, with the first; 0 and 1: no retry
	Backoff  time.Duration `json:"backoff,omitempty"`  // before the second attempt; doubled before each further one
	On       []Class       `json:"on,omitempty"`       // which classes; empty: RetriedClasses
}

// RetriedClasses are retried when a plan does not say which: what may well have
// been the network or the power. A device that tried the image and went back, or
// refused it, would do so again.
var RetriedClasses = []Class{ClassTimedOut, ClassSilent, ClassFailed}

// Limits of a retry.
const (
	MaxAttempts = 11 // ten retries, as AWS IoT Jobs
	MaxBackoff  = 7 * 24 * time.Hour
)

func (r Retry) validate() error {
	switch {
	case r.Attempts < 0 || r.Attempts > MaxAttempts:
		return AtField("attempts", invalid("%d attempts: want 1 to %d", r.Attempts, MaxAttempts))
	case r.Backoff < 0 || r.Backoff > MaxBackoff:
		return AtField("backoff", invalid("retry backoff of %s: want 0 to %s", r.Backoff, MaxBackoff))
	case r.Attempts < 2 && (r.Backoff != 0 || len(r.On) > 0):
		return invalid("a retry needs at least 2 attempts, with the first")
	}
	for i, c := range r.On {
		if !slices.Contains(Unsuccessful, c) || c == ClassDrifted {
			return AtField(fmt.Sprintf("on[%d]", i), invalid("retry on %q: want failed, rolled_back, rejected, timed_out or silent", c))
		}
	}
	return nil
}

// after is when an execution that just finished gets its next attempt; zero:
// never. One that is underway gets that of its next leg, whatever the plan says.
func (r Retry) after(e Execution) time.Time {
	if e.Class == ClassUnderway {
		return e.FinishedAt
	}
	on := r.On
	if len(on) == 0 {
		on = RetriedClasses
	}
	if !slices.Contains(on, e.Class) {
		return time.Time{}
	}
	return r.next(e, e.FinishedAt)
}

// next is when an execution gets its next attempt, counted from then; zero:
// never, there were as many as there may be.
func (r Retry) next(e Execution, from time.Time) time.Time {
	if e.tries() >= r.Attempts {
		return time.Time{}
	}
	backoff := float64(r.Backoff) * math.Pow(2, float64(e.tries()-1))
	return from.Add(time.Duration(math.Min(backoff, float64(MaxBackoff))))
}
