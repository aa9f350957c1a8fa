package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Limits of the states.
const (
	maxBoots    = 3  // boots that an execution may ask for
	maxRestages = 2  // times a slot may be written again because it did not read back
	maxWaits    = 20 // failed verifications, other than by an unreachable server
	maxDoubts   = 5  // of these, by files of the server that do not verify
)

// step does what the record's state asks for and returns the next record. Every
// step may run again after a power cut in it.
func (a *Agent) step(ctx context.Context) (Record, error) {
	switch a.rec.State {
	case StateChecked:
		return a.guarded(ctx, false, a.stepChecked)
	case StateWait:
		return a.guarded(ctx, false, a.stepWait)
	case StateFetch:
		return a.stepFetchInWindow(ctx)
	case StateStaged:
		return a.guarded(ctx, false, a.stepStaged)
	case StateReady:
		return a.stepReady(ctx)
	case StateArm:
		return a.stepArm()
	case StateReboot:
		return a.stepReboot(ctx)
	case StateTrial:
		return a.stepTrial(ctx)
	case StateCommit:
		return a.stepCommit()
	case StatePost:
		return a.stepPost()
	case StateRollback:
		return a.stepRollback(ctx)
	case StateCommand:
		return a.stepCommand(ctx)
	case StateDone, StateFailed, StateRolledBack:
		return a.stepEnd(ctx)
	}
	return a.stepIdle(ctx) // IDLE, STUCK
}

// stepIdle asks for a job when woken, and now and then.
func (a *Agent) stepIdle(ctx context.Context) (Record, error) {
	for {
		asked := a.outbox.position()
		job, ok, err := a.ask(ctx)
		if ctx.Err() != nil {
			return a.rec, ctx.Err()
		}
		wait := a.cfg.Jitter(a.cfg.Poll)
		switch {
		case err != nil:
			a.note(fmt.Errorf("ask for a job: %w", err))
			wait = min(wait, a.retry.next())
		case ok:
			a.retry.reset()
			rec, taken, err := a.accept(job, asked)
			if err != nil || taken {
				return rec, err
			}
			if a.waiting.reason != "" {
				wait = min(wait, a.lookAgain(a.waiting))
			}
		default:
			a.retry.reset()
			a.goesOn()
		}
		if err := a.renewTrust(ctx); err != nil {
			return a.rec, err
		}
		if err := a.sleep(ctx, wait); err != nil {
			return a.rec, err
		}
	}
}

// sleep waits in IDLE until woken, and keeps the status true meanwhile.
func (a *Agent) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.delivered:
			a.writeStatus()
		case <-a.cfg.Transport.Wake():
			a.outbox.kick()
			return nil
		case <-t.C:
			return nil
		}
	}
}

// accept takes a job, unless this attempt at it has its verdict, which is then
// sent again. The job was asked for when the outbox stood at asked.
func (a *Agent) accept(job Job, asked int64) (Record, bool, error) {
	if job.Status.Terminal() || job.ID == "" {
		return a.rec, false, nil
	}
	attempt := job.Attempt
	if attempt < 1 {
		attempt = max(job.Document.Attempt, 1)
	}
	if v, ended := a.history.of(job.ID, attempt); ended {
		if err := a.outbox.again(v, asked); err != nil {
			return a.rec, false, diskError{err}
		}
		return a.rec, false, nil
	}
	if why := a.ended.forget(Report{JobID: job.ID, Attempt: attempt}.key()); why != "" {
		a.note(fmt.Errorf("the server offers a job that it says is over: %s", why))
		a.waiting = waiting{reason: why, until: a.cfg.Now().Add(a.retry.next())}
		return a.rec, false, nil
	}
	if len(job.ID) > maxJobID {
		a.note(fmt.Errorf("job %.40q...: id of %d bytes: at most %d", job.ID, len(job.ID), maxJobID))
		return a.rec, false, nil
	}
	rec := a.rec.idle()
	rec.State, rec.JobID, rec.Attempt = StateChecked, job.ID, attempt
	rec.From, rec.To = a.facts.Active, a.facts.Inactive
	rec.FromDigest = a.facts.Slots[a.facts.Active].Digest
	if err := job.Document.Validate(); err != nil {
		return failed(rec, ota.Rejected, "job document: "+err.Error()), true, nil
	}
	if job.Document.Operation == ota.OperationCommand {
		a.goesOn()
		return a.acceptCommand(rec, job), true, nil
	}
	rec.Name, rec.Version = job.Document.Name, job.Document.Version
	rec = rec.ordered(job.Document)
	if job.Status == ota.Queued && rec.Window.Fetch != ota.FetchAnytime {
		p, opens := a.shut(rec.Window)
		if !opens {
			return failed(rec, ota.Rejected, reasonNeverOpens), true, nil
		}
		if p.reason != "" {
			a.waits(job.ID, attempt, ota.Queued, p)
			return a.rec, false, nil
		}
	}
	a.goesOn()
	return rec, true, nil
}

// maxJobID bounds what a server may make the journal hold.
const maxJobID = 128

// failed is the record of an execution that ended without a trial.
func failed(rec Record, status ota.Status, reason string) Record {
	rec = rec.at(StateFailed).because(reason)
	rec.Verdict = status
	return rec
}

// stepChecked decides whether the release may be installed. Nothing has been
// changed before it says so.
func (a *Agent) stepChecked(ctx context.Context) (Record, error) {
	rec := a.rec
	p, err := a.verify(ctx, rec)
	switch {
	case isDisk(err) || ctx.Err() != nil:
		return rec, errors.Join(ctx.Err(), err)
	case err != nil:
		return a.deferred(rec, err), nil
	}
	m := p.manifest
	rec.ToDigest = m.ImageDigest
	active := a.facts.Slots[a.facts.Active]
	if active.Digest == m.ImageDigest {
		rec.Verdict = ota.Succeeded
		return rec.at(StateDone).because("already installed"), nil
	}
	if v, blocked := a.history.blocks(rec); blocked {
		rec.Class = ota.Class(v.Details[ota.DetailClass])
		return failed(rec, ota.Failed, untried+strings.ReplaceAll(v.Details[ota.DetailReason], untried, "")), nil
	}
	free, err := a.cfg.Boot.Free()
	if err != nil {
		return rec, diskError{err}
	}
	if free < m.ImageSize {
		return failed(rec, ota.Rejected, fmt.Sprintf("no space: the image has %d bytes, the slot room for %d", m.ImageSize, free)), nil
	}
	if err := a.cfg.Boot.MarkUnbootable(); err != nil {
		return rec, diskError{err}
	}
	if err := a.putManifest(rec.To, m); err != nil {
		return rec, err
	}
	rec.FloorAfter, rec.Watermark, rec.SpanStart, rec.Waits, rec.Doubts = m.SecurityVersion, 0, 0, 0, 0
	a.holds(p)
	return rec.at(StateFetch).because(""), nil
}

// untried begins the reason of a job that was refused because of what its image did
// here before; that reason stands behind it once, however often it is refused.
const untried = "not tried again but by a further attempt, or a rollout that lets in quarantined devices, since it failed here: "

// deferred puts the decision off. A server that can not be reached is waited
// for without end, and without a journal write each time; other faults only so
// often.
func (a *Agent) deferred(rec Record, err error) Record {
	if rec = rec.tried(err); rec.State == StateFailed {
		return rec
	}
	a.note(err)
	rec = rec.because("deferred: " + err.Error())
	if rec.State == StateChecked {
		a.report(rec, ota.StepWaiting, map[string]string{ota.DetailReason: rec.Reason})
	}
	return rec.at(StateWait)
}

// tried counts a verification that failed, and is FAILED once that was too
// often.
func (r Record) tried(err error) Record {
	if errors.Is(err, ErrUnreachable) {
		return r
	}
	r.Waits++
	if isDoubt(err) {
		r.Doubts++
	}
	if isRefusal(err) || r.Doubts >= maxDoubts || r.Waits > maxWaits {
		return failed(r, ota.Rejected, err.Error())
	}
	return r
}

func (a *Agent) stepWait(ctx context.Context) (Record, error) {
	if err := a.retry.wait(ctx); err != nil {
		return a.rec, err
	}
	return a.stepChecked(ctx)
}

// stepStaged reads the slot back whole, and only then makes it bootable.
func (a *Agent) stepStaged(ctx context.Context) (Record, error) {
	rec := a.rec
	m, ok := a.manifestFile(rec.To)
	if !ok || m.ImageDigest != rec.ToDigest {
		return rec.at(StateChecked), nil
	}
	a.report(rec, ota.StepStaged, map[string]string{ota.DetailBytes: strconv.FormatInt(rec.Bytes, 10)})
	digest, err := a.digestOf(ctx, rec.To, m.ImageSize)
	if ctx.Err() != nil {
		return rec, ctx.Err()
	}
	if err != nil || digest != rec.ToDigest {
		a.note(fmt.Errorf("slot %s does not read back as it was written: %w", rec.To, errors.Join(err, errReadBack)))
		if rec.Restages++; rec.Restages > maxRestages {
			return failed(rec, ota.Failed, "the slot does not read back as it was written: its storage is worn out or full"), nil
		}
		rec.Watermark, rec.SpanStart = 0, 0
		return rec.at(StateFetch), nil
	}
	info := SlotInfo{Name: m.Name, Version: m.Version, Digest: m.ImageDigest, Size: m.ImageSize, Bootable: true}
	if err := a.cfg.Boot.Seal(info); err != nil {
		return rec, diskError{err}
	}
	rec.BootsLeft = maxBoots
	return rec.at(StateReady), a.look()
}

var errReadBack = errors.New("digest differs")

// look reads the boot facts again after a change.
func (a *Agent) look() error {
	facts, err := a.cfg.Boot.Facts()
	if err != nil {
		return diskError{err}
	}
	a.facts = facts
	return nil
}

func (a *Agent) stepArm() (Record, error) {
	rec := a.rec
	if err := a.cfg.Boot.Arm(rec.To); err != nil {
		return rec, diskError{err}
	}
	rec.BootID = a.facts.BootID
	return rec.at(StateReboot), a.look()
}

// stepReboot ends the process, or the device.
func (a *Agent) stepReboot(ctx context.Context) (Record, error) {
	return a.rec, a.reboot(ctx)
}

func (a *Agent) reboot(ctx context.Context) error {
	a.stopApp()
	err := a.cfg.Boot.Reboot(ctx)
	if errors.Is(err, ErrReboot) || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	return diskError{fmt.Errorf("reboot: %w", err)}
}

// stepCommit makes the switch permanent, and then raises the floor.
func (a *Agent) stepCommit() (Record, error) {
	rec := a.rec
	a.report(rec, ota.StepCommitting, nil)
	if err := a.cfg.Boot.Commit(rec.To); err != nil {
		return rec, diskError{err}
	}
	rec.Floor = max(rec.Floor, rec.FloorAfter)
	return rec.at(StatePost), a.look()
}

func (a *Agent) stepPost() (Record, error) {
	rec := a.rec
	rec.Verdict = ota.Succeeded
	return rec.at(StateDone), nil
}

// stepRollback selects the old slot; a device that runs the new one boots.
func (a *Agent) stepRollback(ctx context.Context) (Record, error) {
	rec := a.rec
	rec.Verdict = ota.Failed
	a.report(rec, ota.StepRollingBack, map[string]string{ota.DetailReason: rec.Reason})
	if err := a.cfg.Boot.Rollback(rec.From); err != nil {
		return rec, diskError{err}
	}
	if a.facts.Active == rec.From {
		return rec.at(StateRolledBack), a.look()
	}
	return rec, a.reboot(ctx)
}

// stepEnd remembers the verdict, queues it once, and is idle again.
func (a *Agent) stepEnd(ctx context.Context) (Record, error) {
	rec := a.rec
	if rec.State == StateRolledBack {
		rec.Class = ota.ClassRolledBack
		if err := a.cfg.Boot.MarkUnbootable(); err != nil {
			return rec, diskError{err}
		}
	}
	if err := a.look(); err != nil {
		return rec, err
	}
	v := a.verdictOf(rec)
	if err := a.history.add(v.brief()); err != nil {
		return rec, diskError{err}
	}
	if err := a.outbox.verdict(v); err != nil {
		return rec, diskError{err}
	}
	a.shadow.set(a.reported())
	a.startActive(ctx) // after a commit that was finished in a later boot
	next := rec.idle()
	if rec.State == StateRolledBack {
		if err := a.oldIsHealthy(ctx); err != nil {
			if ctx.Err() != nil {
				return rec, ctx.Err()
			}
			return next.at(StateStuck).because("after the rollback: " + err.Error()), nil
		}
	}
	return next, nil
}

func (a *Agent) verdictOf(rec Record) verdict {
	var d map[string]string
	if rec.Command != "" {
		d = a.commandDetails(rec)
	} else {
		d = map[string]string{ota.DetailBytes: strconv.FormatInt(rec.Bytes, 10)}
		if digest := a.facts.Slots[a.facts.Active].Digest; digest != "" {
			d[ota.DetailDigest] = digest
		}
	}
	if rec.Reason != "" {
		d[ota.DetailReason] = rec.Reason
	}
	if rec.Verdict == ota.Failed {
		class := rec.Class
		if class == ota.ClassNone {
			class = ota.ClassFailed
		}
		d[ota.DetailClass] = string(class)
	}
	return verdict{
		JobID: rec.JobID, Attempt: rec.Attempt, Digest: rec.ToDigest, Status: rec.Verdict, Details: d,
		Quarantined: rec.Class == ota.ClassRolledBack,
	}
}
