package agent

import (
	"context"
	"errors"
	"maps"

	"github.com/otad/otad/pkg/ota"
)

// Actions runs commands that the device's own configuration allows.
type Actions interface {
	// Check says why a command is refused on this device, and what is allowed
	// instead; nil: it may be run.
	Check(c ota.Command) error
	// Run runs a command that Check lets pass to its end, or to its time-out. When
	// ctx ends it is killed.
	Run(ctx context.Context, c ota.Command) Outcome
}

// Outcome is how a command ended.
type Outcome struct {
	Err     error             // why it failed; nil: it succeeded
	Details map[string]string // for the report: at most MaxOutcomeDetails
}

// MaxOutcomeDetails leaves room for reason and class in a report.
const MaxOutcomeDetails = ota.MaxDetails - 2

// stepRunning is the step of a command; an update has the steps of package ota.
const stepRunning ota.Step = "running"

const reasonInterrupted = "interrupted: the agent or the device restarted while the command was under way; it is not run again"

// outcome is what a command left for its report. It is lost in a restart, the
// verdict is not.
type outcome struct {
	key     string
	details map[string]string
}

// acceptCommand takes a command, or says why not. One that was begun in a life
// that nothing is left of may have run.
func (a *Agent) acceptCommand(rec Record, job Job) Record {
	c := *job.Document.Command
	if err := a.checkCommand(c); err != nil {
		return failed(rec, ota.Rejected, err.Error())
	}
	rec.Command, rec.BootID = c.Name, a.facts.BootID
	if job.Status == ota.InProgress {
		return failed(rec, ota.Failed, reasonInterrupted)
	}
	a.command = &c
	return rec.at(StateCommand)
}

func (a *Agent) checkCommand(c ota.Command) error {
	switch {
	case c.Name == ota.CommandReboot && len(c.Parameters) == 0:
		return nil
	case c.Name == ota.CommandReboot:
		return errors.New("command " + c.Name + " takes no parameters")
	case a.cfg.Actions == nil:
		return errors.New("command " + c.Name + " is not allowed on this device, which has: " + ota.CommandReboot)
	}
	return a.cfg.Actions.Check(c)
}

// stepCommand runs a command once the server has stored that it runs. The record
// is in the journal before, so a command that was cut is never run again.
func (a *Agent) stepCommand(ctx context.Context) (Record, error) {
	rec := a.rec
	if why := a.ended.of(rec.key()); why != "" {
		return a.giveUp(rec)
	}
	if a.command == nil && rec.Command != ota.CommandReboot {
		return failed(rec, ota.Failed, reasonInterrupted), nil
	}
	job, err := a.fresh(ctx, rec)
	if err != nil {
		return a.unclear(ctx, err)
	}
	if job.Document.Hold {
		return rec, a.await(ctx, rec, waiting{reason: reasonPaused})
	}
	if err := a.announce(ctx, job, stepRunning); err != nil {
		return a.unclear(ctx, err)
	}
	a.retry.reset()
	a.goesOn()
	if rec.Command == ota.CommandReboot {
		return rec, a.reboot(ctx)
	}
	c := *a.command
	a.command = nil
	return a.guarded(ctx, false, func(ctx context.Context) (Record, error) { return a.runCommand(ctx, c) })
}

func (a *Agent) runCommand(ctx context.Context, c ota.Command) (Record, error) {
	rec := a.rec
	out := a.cfg.Actions.Run(ctx, c)
	if ctx.Err() != nil {
		return rec, ctx.Err()
	}
	a.outcome = outcome{key: rec.key(), details: out.Details}
	if out.Err != nil {
		return failed(rec, ota.Failed, out.Err.Error()), nil
	}
	rec.Verdict = ota.Succeeded
	return rec.at(StateDone), nil
}

// commandDetails are those of a command's verdict.
func (a *Agent) commandDetails(rec Record) map[string]string {
	d := map[string]string{}
	if a.outcome.key == rec.key() {
		maps.Copy(d, a.outcome.details)
	}
	return d
}
