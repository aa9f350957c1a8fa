package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Asker asks the people at the device, or their program, whether a new image may
// be activated.
type Asker interface {
	// Ask returns their answer. An error is as good as a deferral.
	Ask(ctx context.Context, q Question) (Answer, error)
}

// Question is what people are asked.
type Question struct {
	JobID    string
	Release  ota.ReleaseID
	Notes    string    // of the operators
	Left     int       // times it may still be put off, this one included
	Deadline time.Time // from then on nobody is asked; zero: none
}

// Answer is what people said.
type Answer struct {
	Granted bool
	Refused string        // why it must not be; empty: not refused
	Defer   time.Duration // neither: ask again after this; 0: DefaultDefer
}

// Bounds of one deferral.
const (
	MinDefer     = time.Minute
	DefaultDefer = time.Hour
	MaxDefer     = 7 * 24 * time.Hour
)

// detailDefers is the key of a report with the number of deferrals.
const detailDefers = "deferrals"

// stepReady lets nothing pass before all agree: the window, the people at the
// device, and, last, the server, which has to have stored that the new slot is
// activated now. Until that moment the execution can be given up; a power cut
// only asks again.
func (a *Agent) stepReady(ctx context.Context) (Record, error) {
	rec := a.rec
	if why := a.ended.of(rec.key()); why != "" {
		return a.giveUp(rec)
	}
	p, opens := a.shut(rec.Window)
	if !opens {
		return a.refuseLate(rec, reasonNeverOpens)
	}
	if p.reason != "" {
		if err := a.await(ctx, rec, p); err != nil {
			return rec, err
		}
		return a.peek(ctx, rec)
	}
	job, err := a.fresh(ctx, rec)
	if err != nil {
		return a.unclear(ctx, err)
	}
	if changed := rec.ordered(job.Document); changed != rec {
		return changed, nil
	}
	if job.Document.Hold {
		return rec, a.await(ctx, rec, waiting{reason: reasonPaused})
	}
	if next, asked, err := a.consent(ctx, job); asked || err != nil {
		return next, err
	}
	if next, signed, err := a.verifyAgain(ctx); !signed {
		return next, err
	}
	if err := a.announce(ctx, job, ota.StepRebooting); err != nil {
		return a.unclear(ctx, err)
	}
	a.retry.reset()
	a.goesOn()
	return rec.at(StateArm), nil
}

const reasonPaused = "rollout paused"

// maxCheckAge is how old a verification may be when the new slot is activated: an
// execution may have waited for weeks, and the operators may have signed
// something else meanwhile.
const maxCheckAge = time.Hour

// verifyAgain verifies what is signed about the release once more, when that was
// long ago or in another life. signed is false when the record that comes back is
// to be gone on with.
func (a *Agent) verifyAgain(ctx context.Context) (rec Record, signed bool, err error) {
	rec = a.rec
	if a.checked != nil && a.cfg.Now().Sub(a.checkedAt).Abs() < maxCheckAge {
		return rec, true, nil
	}
	p, err := a.verify(ctx, rec)
	switch {
	case isDisk(err) || ctx.Err() != nil:
		return rec, false, errors.Join(ctx.Err(), err)
	case err == nil && p.manifest.ImageDigest != rec.ToDigest:
		return rec.at(StateChecked), false, nil // signed anew with another image
	case err == nil:
		a.holds(p)
		return rec, true, nil
	}
	if next := rec.tried(err); next.State != StateFailed {
		a.note(err)
		return next, false, a.pauseFor(ctx, a.retry.next())
	}
	rec, lateErr := a.refuseLate(rec, err.Error())
	return rec, false, lateErr
}

// holds remembers what was verified now.
func (a *Agent) holds(p plan) { a.checked, a.checkedAt = &p, a.cfg.Now() }

// peek looks at an execution that waits for something of its own, so that one
// that is over or ordered otherwise meanwhile is noticed; a server that is away
// is no matter.
func (a *Agent) peek(ctx context.Context, rec Record) (Record, error) {
	job, err := a.lookAt(ctx, rec)
	switch {
	case err == nil:
		return rec.ordered(job.Document), nil
	case !errors.Is(err, ErrEnded):
		a.cfg.Log.Debug("look at the execution", "job", rec.JobID, "err", err)
	}
	return rec, ctx.Err()
}

// fresh hands over what was reported so far, so that the server knows it, and
// asks how the execution stands then.
func (a *Agent) fresh(ctx context.Context, rec Record) (Job, error) {
	for more := true; more; {
		err := a.call(ctx, func() (err error) {
			more, err = a.handOver(ctx)
			return err
		})
		if err != nil {
			return Job{}, err
		}
	}
	return a.lookAt(ctx, rec)
}

// announce tells the server that the step is taken now. It counts only if the
// execution is as it was just looked at.
func (a *Agent) announce(ctx context.Context, job Job, step ota.Step) error {
	r := Report{JobID: job.ID, Attempt: job.Attempt, Status: ota.InProgress, Details: map[string]string{ota.DetailStep: string(step)}}
	return a.call(ctx, func() error { return a.cfg.Transport.Announce(ctx, r, job.Version) })
}

// unclear waits after the server did not say that the execution may go on.
func (a *Agent) unclear(ctx context.Context, err error) (Record, error) {
	rec := a.rec
	switch {
	case isDisk(err) || ctx.Err() != nil:
		return rec, errors.Join(ctx.Err(), err)
	case errors.Is(err, ErrEnded):
		a.ended.set(rec.key(), err.Error())
		return rec, nil
	case errors.Is(err, ErrHeld):
		return rec, a.await(ctx, rec, waiting{reason: reasonPaused})
	case !errors.Is(err, ErrChanged):
		a.note(fmt.Errorf("ask the server whether to go on: %w", err))
		a.waiting = waiting{key: rec.key(), reason: "the server has to be asked first, and is not reached"}
		a.writeStatus()
	}
	return rec, a.pauseFor(ctx, a.retry.next())
}

// ordered is the record with what a newer document says. One that can not be
// read changes nothing.
func (r Record) ordered(d ota.JobDocument) Record {
	if d.Validate() != nil || d.Operation != ota.OperationInstall {
		return r
	}
	r.Quarantined, r.Window, r.Consent = d.Quarantined, d.Window, ota.DefaultConsent
	if d.Consent != nil {
		r.Consent = *d.Consent
		r.Consent.Deadline = r.Consent.Deadline.UTC()
	}
	return r
}

// consent asks the people at the device, if they may be asked and have not agreed
// yet. asked means that the record that comes back is to be gone on with.
func (a *Agent) consent(ctx context.Context, job Job) (rec Record, asked bool, err error) {
	rec = a.rec
	now := a.cfg.Now()
	if a.cfg.Asker == nil || rec.Consented {
		return rec, false, nil
	}
	if until := rec.deferredUntil(now); until.After(now) {
		p := waiting{
			reason: "deferred by the user until " + until.In(a.cfg.Zone).Format(layoutUntil), until: until,
			details: map[string]string{detailDefers: strconv.Itoa(rec.Defers)},
		}
		return rec, true, a.await(ctx, rec, p)
	}
	if !rec.Consent.Asks(rec.Defers, now) {
		return rec, false, nil
	}
	q := Question{JobID: rec.JobID, Release: rec.ID(), Notes: job.Document.Notes, Left: rec.Consent.MaxDefers - rec.Defers, Deadline: rec.Consent.Deadline}
	rec, err = a.guarded(ctx, true, func(ctx context.Context) (Record, error) { return a.askPeople(ctx, q) })
	return rec, true, err
}

// deferredUntil is the end of the last deferral; a deadline ends it before, and
// so does a clock that was set back.
func (r Record) deferredUntil(now time.Time) time.Time {
	until := r.DeferUntil
	if d := r.Consent.Deadline; !d.IsZero() && d.Before(until) {
		until = d
	}
	if until.Sub(now) > MaxDefer {
		return now
	}
	return until
}

// askPeople is one question and what its answer makes of the record.
func (a *Agent) askPeople(ctx context.Context, q Question) (Record, error) {
	rec := a.rec
	a.waits(rec.JobID, rec.Attempt, ota.InProgress, waiting{reason: "asking the user", details: map[string]string{detailDefers: strconv.Itoa(rec.Defers)}})
	answer, err := a.cfg.Asker.Ask(ctx, q)
	switch {
	case ctx.Err() != nil:
		return rec, ctx.Err()
	case err != nil:
		a.note(fmt.Errorf("ask for consent: %w", err))
		answer = Answer{}
	case answer.Granted:
		rec.Consented = true
		return rec, nil
	case answer.Refused != "":
		return a.refuseLate(rec, "refused by the user: "+answer.Refused)
	}
	d := answer.Defer
	if d == 0 {
		d = DefaultDefer
	}
	rec.Defers++
	rec.DeferUntil = a.cfg.Now().Add(min(max(d, MinDefer), MaxDefer)).UTC().Truncate(time.Second)
	return rec, nil
}
