package ota

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Status is the state of one execution, in the words of the AWS Jobs protocol.
type Status string

// The statuses; all but the first two are terminal.
const (
	Queued     Status = "QUEUED"
	InProgress Status = "IN_PROGRESS"
	Succeeded  Status = "SUCCEEDED"
	Failed     Status = "FAILED"
	Rejected   Status = "REJECTED"
	TimedOut   Status = "TIMED_OUT"
	Canceled   Status = "CANCELED"
	Removed    Status = "REMOVED"
)

// Statuses lists every status, in the order tables show them.
var Statuses = []Status{Queued, InProgress, Succeeded, Failed, Rejected, TimedOut, Canceled, Removed}

// Terminal reports whether the status is final.
func (s Status) Terminal() bool { return s != Queued && s != InProgress }

// Class says how a finished execution ended, for gates and abort rules. It is
// finer than Status: a device that tried and returned is not one that never
// came back.
type Class string

// The classes. ClassNone is that of an execution that is not finished or was
// cancelled before it mattered.
const (
	ClassNone       Class = ""
	ClassSucceeded  Class = "succeeded"
	ClassFailed     Class = "failed"
	ClassRolledBack Class = "rolled_back"
	ClassRejected   Class = "rejected"
	ClassTimedOut   Class = "timed_out"
	ClassSilent     Class = "silent"
	// ClassDrifted is that of one that SUCCEEDED and whose device runs another image
	// since.
	ClassDrifted Class = "drifted"
	// ClassUnderway is that of one that SUCCEEDED with a release that its device had to
	// pass through: the next of its path follows. It is no verdict on the rollout.
	ClassUnderway Class = "underway"
	// ClassAny stands for every unsuccessful class, in abort rules only.
	ClassAny Class = "any"
)

// Unsuccessful lists the classes that count against a rollout.
var Unsuccessful = []Class{ClassFailed, ClassRolledBack, ClassRejected, ClassTimedOut, ClassSilent, ClassDrifted}

// Execution is one job on one device.
type Execution struct {
	RolloutID string // the job id on the wire
	DeviceID  string
	Release   ReleaseID // the rollout's, or the first of Via
	// Via are the releases that the device passes through, with this execution and
	// those that follow it, before that of the rollout; empty: this is the last.
	Via []ReleaseID
	// Leg is the how manieth of the releases on the device's path it installs, from 1.
	Leg        int
	Stage      int // index into the rollout's stages, from 0
	Attempt    int // from 1
	Status     Status
	Class      Class
	Details    map[string]string // the device's last statusDetails
	Version    int64             // from 1; raised by one on every accepted change
	QueuedAt   time.Time
	StartedAt  time.Time // zero while QUEUED
	StepAt     time.Time // when it came to the step it is at; zero while QUEUED
	UpdatedAt  time.Time
	FinishedAt time.Time // zero until terminal
	// Lane is the device's value of what InFlight.Per names, when it was made.
	Lane string
	// From is the digest of the image that the device said it ran when it was given
	// the first attempt; empty: it had not said.
	From string
	// Command is that of its rollout, nil for an install; Timeout its
	// InProgressTimeout; from Timers on, its terms.
	Command *Command
	Timeout time.Duration
	Timers  Timers
	Retry   Retry
	Window  Window
	Consent *Consent
	Hold    bool // the rollout is paused, and the device asked to stay as it is
	// Quarantined is that of Terms: the device is asked to try an image that was
	// rolled back on it.
	Quarantined bool
	// Expires is when the server ends it as TIMED_OUT, of class ExpiresAs, if
	// nothing else ends it before. Zero: never, and always when terminal.
	Expires   time.Time
	ExpiresAs Class
	// RetryAt is when a finished one is followed by the next attempt. Zero: never.
	RetryAt time.Time
	// DriftedAt is when the device said that it runs another image than it was
	// given, and Runs is the digest of that. Zero and empty unless drifted.
	DriftedAt time.Time
	Runs      string
	// WentBackAt is when the device said of one that the server had ended that it had
	// tried the image and gone back, see Late. Zero: it did not, or its own report
	// ended the execution, which is ClassRolledBack then.
	WentBackAt time.Time
}

// WentBack reports whether the image was tried on the device and rolled back.
func (e Execution) WentBack() bool { return e.Class == ClassRolledBack || !e.WentBackAt.IsZero() }

// Under returns the execution with what it has of its rollout: the terms, and the
// release unless it is one to pass through.
func (e Execution) Under(r Rollout) Execution {
	t := r.Terms
	e.Release = r.Release
	if len(e.Via) > 0 {
		e.Release = e.Via[0]
	}
	e.Command, e.Timeout = r.Command, r.InProgressTimeout
	e.Timers, e.Retry, e.Window, e.Consent, e.Hold = t.Timers, t.Retry, t.Window, t.Consent, r.Holds()
	e.Quarantined = t.Quarantined
	return e
}

// Legs is how many releases the device's path has.
func (e Execution) Legs() int { return e.leg() + len(e.Via) }

func (e Execution) leg() int { return max(e.Leg, 1) }

// tries is how many attempts there were beside those that a path needs anyway.
func (e Execution) tries() int { return e.Attempt - e.leg() + 1 }

// SettledAt is when it got the class that it has; zero until it is terminal.
func (e Execution) SettledAt() time.Time {
	if e.Class == ClassDrifted {
		return e.DriftedAt
	}
	return e.FinishedAt
}

// Step is the agent's own word for where it is inside IN_PROGRESS.
func (e Execution) Step() Step { return Step(e.Details[DetailStep]) }

// Reason is why it is as it is, for people: the agent's explanation, empty when it
// gave none, or what is known of a drift, and that it went back after all.
func (e Execution) Reason() string {
	if e.Class == ClassDrifted {
		return fmt.Sprintf("runs another image since %s: %s", e.DriftedAt.UTC().Format(time.RFC3339), e.Runs)
	}
	why := e.Details[DetailReason]
	if e.WentBackAt.IsZero() {
		return why
	}
	if why != "" {
		why += "; "
	}
	return why + "the device said at " + e.WentBackAt.UTC().Format(time.RFC3339) + " that it had gone back"
}

// Keys of statusDetails that our agent sets; other devices may leave them out.
const (
	DetailStep   = "step"   // a Step
	DetailReason = "reason" // why it failed, for people
	DetailClass  = "class"  // a Class, refines FAILED
	DetailBytes  = "bytes"  // decimal bytes fetched over the network
	DetailDigest = "digest" // digest of the image the device runs now
)

// Limits of statusDetails, after the AWS IoT Jobs API reference.
const (
	MaxDetails          = 10
	MaxDetailKeyBytes   = 128
	MaxDetailValueBytes = 1024
)

// Report is a device's word about its execution.
type Report struct {
	RolloutID       string
	DeviceID        string
	Status          Status            // IN_PROGRESS, SUCCEEDED, FAILED or REJECTED; QUEUED with StepWaiting: it will begin later
	Details         map[string]string // replaces the stored map when not nil
	ExpectedVersion int64             // 0: not given
	Attempt         int               // 0: not given
	// StepTimeout is how long from now the device may go on before it reports an
	// end or another StepTimeout. 0: the timer runs on; NoStepTimeout: it is
	// taken off. The rollout's timeout stays above it.
	StepTimeout time.Duration
}

// NoStepTimeout takes off the timer that an earlier report set.
const NoStepTimeout time.Duration = -1

// Limits of both timeouts, those of AWS IoT.
const (
	MinTimeout = time.Minute
	MaxTimeout = 7 * 24 * time.Hour
)

// Starting is what a device says when it starts what is next.
type Starting struct {
	Details     map[string]string
	StepTimeout time.Duration // as in Report
}

// Errors of Apply and of the store's Report; the current execution comes back
// beside them, unchanged.
var (
	ErrTerminal        = errors.New("execution is already finished")
	ErrVersionMismatch = errors.New("execution version does not match")
	ErrTransition      = errors.New("status change is not allowed")
)

// deviceMoves is what a device may do to its own execution: from -> to. A
// device may finish a job it never announced as started (AWS SDK v1 does).
var deviceMoves = map[Status]map[Status]bool{
	Queued:     {InProgress: true, Succeeded: true, Failed: true, Rejected: true},
	InProgress: {InProgress: true, Succeeded: true, Failed: true, Rejected: true},
}

// Apply returns the execution after a device's report. It fails with
// ErrTerminal, ErrVersionMismatch (also for a wrong attempt), ErrTransition or
// ErrInvalid, and then returns e as it was.
func Apply(e Execution, r Report, now time.Time) (Execution, error) {
	if err := r.validate(); err != nil {
		return e, err
	}
	if e.Status.Terminal() {
		return e, ErrTerminal
	}
	if r.ExpectedVersion != 0 && r.ExpectedVersion != e.Version {
		return e, ErrVersionMismatch
	}
	if r.Attempt != 0 && r.Attempt != e.Attempt {
		return e, ErrVersionMismatch
	}
	if e.Status == Queued && r.Status == Queued && Step(r.Details[DetailStep]) == StepWaiting {
		return putOff(e, r, now), nil
	}
	if !deviceMoves[e.Status][r.Status] {
		return e, ErrTransition
	}
	next := e
	next.Status = r.Status
	if r.Details != nil {
		next.Details = r.Details
	}
	next.Version++
	next.UpdatedAt = now
	if next.StartedAt.IsZero() {
		next.StartedAt = now
	}
	if next.Status.Terminal() {
		return finished(next, classOf(next), now), nil
	}
	next.rearm(r, e.Status == Queued || e.Step() != next.Step(), now)
	return next, nil
}

// Late returns an execution that the server ended, after a report that comes too late for
// it: what has ended stays so, with its class and its version, and counts as before. But
// that the device has tried the image and gone back is remembered, so that no other rollout
// gives it the image again. It is false when the report says nothing of that, or nothing
// new: who ended it by itself has said how.
func Late(e Execution, r Report, now time.Time) (Execution, bool) {
	if !r.wentBack() || e.Command != nil || e.Status != TimedOut && e.Status != Canceled || !e.WentBackAt.IsZero() {
		return e, false
	}
	if r.Attempt != 0 && r.Attempt != e.Attempt || r.validate() != nil {
		return e, false
	}
	e.WentBackAt = now
	return e, true
}

// wentBack reports whether the device says that it went back.
func (r Report) wentBack() bool {
	return classOf(Execution{Status: r.Status, Details: r.Details}) == ClassRolledBack
}

// LateFor returns the attempt that a report is about which Apply refused for the newest
// one, if Late may take it; false: it takes none.
func LateFor(newest Execution, r Report, refused error) (attempt int, ok bool) {
	if !errors.Is(refused, ErrTerminal) && !errors.Is(refused, ErrVersionMismatch) || !r.wentBack() {
		return 0, false
	}
	return cmp.Or(r.Attempt, newest.Attempt), r.Attempt >= 0 && r.Attempt <= newest.Attempt
}

// putOff is a QUEUED execution whose device has looked at it and waits, for its
// window or a consent, before it begins. Its claim runs from then on, and from
// the next opening of the window on wherever the device is: no zone is more than
// 14 hours from UTC.
func putOff(e Execution, r Report, now time.Time) Execution {
	e.Details, e.UpdatedAt = r.Details, now
	e.Version++
	from := now
	if e.Window != (Window{}) {
		if opens, ok := e.Window.Next(now, time.UTC); ok {
			from = opens.Add(14 * time.Hour)
		}
	}
	return Claimable(e, from)
}

// rearm sets when an execution in progress expires. A report that says how long
// its step may take, or takes that bound off, is obeyed below the bounds of the
// rollout; else the timer runs on, unless a new step begins.
func (e *Execution) rearm(r Report, begun bool, now time.Time) {
	limit, class := e.Timers.timer(e.Step())
	switch {
	case r.StepTimeout > 0:
		e.Expires, e.ExpiresAs = now.Add(r.StepTimeout), class
	case r.StepTimeout == NoStepTimeout || begun && e.Timers != (Timers{}):
		e.Expires, e.ExpiresAs = time.Time{}, ClassNone
	}
	if begun {
		e.StepAt = now
	}
	if limit > 0 {
		e.expireBy(e.StepAt.Add(limit), class)
	}
	if e.Timeout > 0 {
		e.expireBy(e.StartedAt.Add(e.Timeout), ClassTimedOut)
	}
}

func (e *Execution) expireBy(at time.Time, as Class) {
	if e.Expires.IsZero() || at.Before(e.Expires) {
		e.Expires, e.ExpiresAs = at, as
	}
}

// finished ends an execution with a verdict.
func finished(e Execution, class Class, now time.Time) Execution {
	e.Class, e.FinishedAt = class, now
	e.Expires, e.ExpiresAs = time.Time{}, ClassNone
	e.RetryAt = e.Retry.after(e)
	return e
}

// Queue returns a new execution as it is queued.
func Queue(e Execution, now time.Time) Execution {
	e.Leg = e.leg()
	e.Status, e.Version, e.QueuedAt, e.UpdatedAt = Queued, 1, now, now
	return Claimable(e, now)
}

// Claimable starts the claim timer of a QUEUED execution anew.
func Claimable(e Execution, now time.Time) Execution {
	e.Expires, e.ExpiresAs = time.Time{}, ClassNone
	if e.Timers.Claim > 0 {
		e.Expires, e.ExpiresAs = now.Add(e.Timers.Claim), ClassTimedOut
	}
	return e
}

// Start returns the execution as start-next leaves it: a QUEUED one becomes
// IN_PROGRESS, one in progress stays as it is, so asking again is harmless.
func Start(e Execution, s Starting, now time.Time) (Execution, error) {
	if e.Status == InProgress {
		return e, nil
	}
	return Apply(e, Report{Status: InProgress, Details: s.Details, StepTimeout: s.StepTimeout}, now)
}

// Expire returns the execution as the server ends it when its time is up: its
// details stay, since they say where the device was.
func Expire(e Execution, now time.Time) (Execution, bool) {
	if e.Status.Terminal() || e.Expires.IsZero() || now.Before(e.Expires) {
		return e, false
	}
	as := e.ExpiresAs
	e.Status, e.UpdatedAt = TimedOut, now
	e.Version++
	return finished(e, as, now), true
}

// Before reports whether the device shall work on a, of a rollout of priority pa,
// before b, when both are QUEUED: commands first, since an install may wait for its
// window or take long; then the higher priority, then the older.
func Before(a Execution, pa int, b Execution, pb int) bool {
	if commands := a.Command != nil; commands != (b.Command != nil) {
		return commands
	}
	return cmp.Or(cmp.Compare(pb, pa), a.QueuedAt.Compare(b.QueuedAt), cmp.Compare(a.RolloutID, b.RolloutID)) < 0
}

// Cancel returns the execution as an abort leaves it: what is QUEUED changes, and
// what is IN_PROGRESS at a step at which it can still be given up.
func Cancel(e Execution, reason string, now time.Time) (Execution, bool) {
	if e.Status.Terminal() || e.Status == InProgress && e.Step().Activated() {
		return e, false
	}
	return ended(e, Canceled, reason, now), true
}

// Supersede returns a QUEUED execution as a newer rollout of the same firmware
// leaves it.
func Supersede(e Execution, by string, now time.Time) (Execution, bool) {
	if e.Status != Queued {
		return e, false
	}
	return ended(e, Canceled, SupersededReason+by, now), true
}

// SupersededReason begins the reason of an execution that made way for the
// rollout whose id follows.
const SupersededReason = "superseded by rollout "

// DeletedReason is what the executions of a device end with that is deleted.
const DeletedReason = "the device was deleted"

// Remove returns the execution of a device that is locked out, or deleted: whatever is not
// finished is REMOVED, without a verdict.
func Remove(e Execution, reason string, now time.Time) (Execution, bool) {
	if e.Status.Terminal() {
		return e, false
	}
	return ended(e, Removed, reason, now), true
}

// ended is an execution that ends without a verdict.
func ended(e Execution, as Status, reason string, now time.Time) Execution {
	e.Status, e.Class = as, ClassNone
	e.Details = map[string]string{DetailReason: reason}
	e.Version++
	e.UpdatedAt, e.FinishedAt = now, now
	e.Expires, e.ExpiresAs = time.Time{}, ClassNone
	return e
}

func classOf(e Execution) Class {
	switch e.Status {
	case Succeeded:
		if len(e.Via) > 0 {
			return ClassUnderway
		}
		return ClassSucceeded
	case Rejected:
		return ClassRejected
	case TimedOut:
		return ClassTimedOut
	case Failed:
		if c := Class(e.Details[DetailClass]); c == ClassRolledBack || c == ClassSilent || c == ClassTimedOut {
			return c
		}
		return ClassFailed
	}
	return ClassNone
}

func validTimeout(t time.Duration) bool { return t >= MinTimeout && t <= MaxTimeout }

var detailKeyPattern = regexp.MustCompile(`^[a-zA-Z0-9:_-]{1,128}$`)

func (r Report) validate() error {
	if t := r.StepTimeout; t != 0 && t != NoStepTimeout && !validTimeout(t) {
		return invalid("step timeout of %s: want %s to %s", t, MinTimeout, MaxTimeout)
	}
	if len(r.Details) > MaxDetails {
		return invalid("statusDetails has %d entries: at most %d", len(r.Details), MaxDetails)
	}
	for k, v := range r.Details {
		if !detailKeyPattern.MatchString(k) {
			return invalid("statusDetails key %.40q: 1 to %d of a-z A-Z 0-9 : _ -", k, MaxDetailKeyBytes)
		}
		if len(v) > MaxDetailValueBytes {
			return invalid("statusDetails %q has %d bytes: at most %d", k, len(v), MaxDetailValueBytes)
		}
	}
	return nil
}
