package ota

import (
	"slices"
	"time"
)

// DriftPolicy says what becomes of a device that a rollout updated and that runs
// another image since: it fell back, was flashed or restored.
type DriftPolicy string

// DriftRequeue, also the empty policy, gives it another attempt, as many as
// Retry.Attempts. DriftRecord gives it none.
const (
	DriftRequeue DriftPolicy = "requeue"
	DriftRecord  DriftPolicy = "record"
)

func (p DriftPolicy) validate() error {
	switch p {
	case "", DriftRequeue, DriftRecord:
		return nil
	}
	return invalid("drift policy %q: want %s or %s", p, DriftRequeue, DriftRecord)
}

// Running is what a device said it runs. Its word counts only for what was
// settled before it: an execution that ended later may have changed the image.
type Running struct {
	Digest string    // lower-case hex sha256 of the raw image; empty: not said
	At     time.Time // when the server stored it
}

// Standing is an attempt of a rollout on a device: the newest of that rollout, or
// one before it whose device has drifted or came a leg of its path.
type Standing struct {
	Execution
	Rollout Rollout
	Digest  string // of the image of its release; empty: it installs none
	Goal    string // of that of the rollout's release
}

// ArrivedReason is why an execution SUCCEEDED whose device had the image by other
// means.
const ArrivedReason = "the device runs this image already"

// Compare holds what a device says it runs against how all rollouts stand on it,
// and returns the newest attempts that it changes, as they become:
//
//	QUEUED, of the image that it runs            SUCCEEDED: it need not install it
//	QUEUED, of one on the way to that            SUCCEEDED: it need not go there
//	its last success, and it runs another image  class drifted, and due again as Terms.Drift says
//	that one, and it runs the image after all    class succeeded, or underway
//
// Nothing changes while the device works on an install: what it runs then may be
// on trial. An earlier success was replaced by the last one and says nothing.
func Compare(list []Standing, r Running, now time.Time) []Execution {
	working := func(s Standing) bool { return s.Digest != "" && s.Status == InProgress }
	if r.Digest == "" || slices.ContainsFunc(list, working) {
		return nil
	}
	var changed []Execution
	for _, s := range list {
		if (s.Digest == r.Digest || s.Goal == r.Digest) && s.Status == Queued && r.At.After(s.QueuedAt) {
			changed = append(changed, s.arrived(r))
		}
	}
	last, ok := lastSuccess(list)
	switch {
	case !ok || !r.At.After(last.FinishedAt) || last.retried(list):
	case last.Class != ClassDrifted && last.Digest != r.Digest:
		changed = append(changed, drifted(last, list, r, now))
	case last.Class == ClassDrifted && last.Digest == r.Digest && r.At.After(last.DriftedAt):
		changed = append(changed, returned(last.Execution))
	}
	return changed
}

func lastSuccess(list []Standing) (last Standing, ok bool) {
	for _, s := range list {
		if s.Status == Succeeded && s.Digest != "" && (!ok || s.FinishedAt.After(last.FinishedAt)) {
			last, ok = s, true
		}
	}
	return last, ok
}

// retried reports whether there is a later attempt.
func (s Standing) retried(list []Standing) bool {
	return slices.ContainsFunc(list, func(o Standing) bool { return o.RolloutID == s.RolloutID && o.Attempt > s.Attempt })
}

// arrived ends an execution when the device said so: what it says after that
// counts.
func (s Standing) arrived(r Running) Execution {
	e := s.Execution
	if s.Goal == r.Digest {
		e.Via = nil
		e = e.Under(s.Rollout)
	}
	e, _ = Apply(e, Report{Status: Succeeded, Details: map[string]string{DetailReason: ArrivedReason, DetailDigest: r.Digest}}, r.At)
	return e
}

// DriftedFrom returns what a device was last brought, of all its executions, if it has
// drifted from that.
func DriftedFrom(list []Execution) (from Execution, drifted bool) {
	found := false
	for _, e := range list {
		if e.Status == Succeeded && e.Command == nil && (!found || e.FinishedAt.After(from.FinishedAt)) {
			from, found = e, true
		}
	}
	if from.Class != ClassDrifted {
		return Execution{}, false
	}
	return from, true
}

func drifted(s Standing, list []Standing, r Running, now time.Time) Execution {
	e := s.Execution
	e.Class, e.DriftedAt, e.Runs, e.RetryAt = ClassDrifted, r.At, r.Digest, time.Time{}
	terms := s.Rollout.Terms
	if terms.Drift != DriftRecord && !s.Rollout.State.Terminal() && !s.Rollout.Ending() && !s.superseded(list) {
		e.RetryAt = terms.Retry.next(e, now)
	}
	return e
}

// returned is an execution whose device runs its image again.
func returned(e Execution) Execution {
	e.Class, e.DriftedAt, e.Runs = classOf(e), time.Time{}, ""
	e.RetryAt = e.Retry.after(e)
	return e
}

// superseded reports whether a rollout that supersedes that of s has work for the
// device, or had.
func (s Standing) superseded(list []Standing) bool {
	return slices.ContainsFunc(list, func(o Standing) bool {
		return o.Rollout.Supersedes(s.Rollout) && o.Status != Canceled && o.Status != Removed
	})
}
