package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

// Config is what an agent is built from. Fields without a default are required.
type Config struct {
	Dir         string // state directory, made with mode 0700
	DeviceID    string
	Hardware    string // hardware model, matched with the manifest's
	FactoryRoot []byte // first TUF root, pinned at enrollment

	Transport  Transport
	Source     Source
	Boot       Boot
	Installers map[string]Installer // by ota.Manifest.Installer
	Health     Health
	Asker      Asker   // nil: nobody is asked before a new image is activated
	Actions    Actions // nil: the only command is reboot

	Factory  ota.Manifest  // of the image in the slot a device was made with; zero: none
	Version  string        // the agent's own version, for the shadow
	NotOlder time.Time     // a date that is surely past, such as the build's; bounds the clock from below
	Poll     time.Duration // upper bound of the jittered wait between polls; 0: DefaultPoll

	Log    *slog.Logger                        // nil: discarded
	Now    func() time.Time                    // nil: time.Now
	Zone   *time.Location                      // of the device's wall clock, for maintenance windows; nil: time.Local
	Jitter func(d time.Duration) time.Duration // from 0 to d; nil: random
	FS     disk.FS                             // nil: disk.OS
}

// DefaultPoll bounds the wait between two questions for a job when nothing
// wakes the agent.
const DefaultPoll = 15 * time.Minute

// Agent is the update loop of one device. Run may be called once.
type Agent struct {
	cfg Config

	// What follows belongs to the goroutine of Run.
	journal *journal
	rec     Record
	facts   BootFacts
	trust   *trustStore
	history *history
	checked *plan // what CHECKED verified in this life, of the execution in rec
	proc    Process
	// checkedAt is when that was.
	checkedAt time.Time
	retry     backoff
	renewAt   time.Time // when trust is renewed though no job asks for it
	lastErr   string
	waiting   waiting      // for what, as it was last told
	command   *ota.Command // of the record in COMMAND, in the life that took it
	outcome   outcome

	outbox *outbox
	events *events
	shadow shadowBox
	ended  *ended
	line   chan struct{} // holds a value while the transport is in use
	// delivered receives a value when everything queued has been handed over.
	delivered chan struct{}
}

// New checks the configuration and returns an agent that has not started.
func New(cfg Config) (*Agent, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("agent configuration: %w", err)
	}
	if cfg.Poll <= 0 {
		cfg.Poll = DefaultPoll
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Zone == nil {
		cfg.Zone = time.Local
	}
	if cfg.Jitter == nil {
		cfg.Jitter = fullJitter
	}
	if cfg.FS == nil {
		cfg.FS = disk.OS{}
	}
	return &Agent{
		cfg: cfg, retry: backoff{jitter: cfg.Jitter}, shadow: newShadowBox(), ended: newEnded(),
		line: make(chan struct{}, 1), delivered: make(chan struct{}, 1),
	}, nil
}

func (c Config) check() error {
	if err := ota.ValidateDeviceID(c.DeviceID); err != nil {
		return err
	}
	if err := ota.ValidateWord("hardware model", c.Hardware); err != nil {
		return err
	}
	if c.Dir == "" || c.Transport == nil || c.Source == nil || c.Boot == nil || c.Health == nil {
		return errors.New("required: Dir, Transport, Source, Boot and Health")
	}
	if _, err := signing.NewTrust(c.FactoryRoot, c.NotOlder); err != nil {
		return fmt.Errorf("factory root: %w", err)
	}
	return nil
}

// Run works until ctx ends (nil), until the process has to restart to boot the
// other slot (ErrReboot), or until its own disk fails it (any other error). It
// never ends because of the server. All it started is stopped when it returns.
// After ErrReboot the boot driver is to be closed and opened again (or the
// device boots), and a new agent made. An end in the middle of a trial costs
// one of its boots.
func (a *Agent) Run(ctx context.Context) (err error) {
	unlock, err := a.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.journal.close(), a.outbox.close(), unlock()) }()

	working, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.deliver(working); err != nil {
			stop(err)
		}
	})
	defer func() {
		stop(nil)
		wg.Wait()
		a.stopApp()
	}()

	err = a.work(working)
	if cause := context.Cause(working); isDisk(cause) {
		return cause
	}
	if ctx.Err() != nil && !errors.Is(err, ErrReboot) && !isDisk(err) {
		return nil
	}
	return err
}

// work is the loop: each step's result is in the journal before the next one.
func (a *Agent) work(ctx context.Context) error {
	if err := a.resume(); err != nil {
		return err
	}
	a.startActive(ctx)
	for {
		last := a.rec
		next, err := a.step(ctx)
		if err != nil {
			a.writeStatus()
			return err
		}
		if next.Stores > maxStores && (next.State == StateChecked || next.State == StateWait || next.State == StateStaged) {
			next = failed(next, ota.Failed, reasonTooManyStores)
		}
		if next == a.rec {
			continue // waited, and nothing has changed
		}
		if err := a.store(&next); err != nil {
			return err
		}
		if next.State != last.State {
			a.tell(last, next)
		}
		a.writeStatus()
	}
}

// tell says that the state has changed.
func (a *Agent) tell(last, next Record) {
	of := next
	if of.JobID == "" {
		of = last
	}
	a.event(EventState, map[string]any{"from": last.State, "to": next.State, "job": of.JobID, "release": of.ID().String(), "reason": next.Reason})
	a.cfg.Log.Info("state", "from", last.State, "to", next.State, "job", of.JobID, "release", of.ID().String(), "reason", next.Reason)
}

// open loads everything that is kept in Dir.
func (a *Agent) open() (unlock func() error, err error) {
	fsys, dir := a.cfg.FS, a.cfg.Dir
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := fsys.Lock(dir + "/lock")
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if a.trust, err = openTrust(fsys, dir+"/trust", a.cfg.FactoryRoot, a.cfg.NotOlder); err != nil {
		return nil, err
	}
	if a.trust.alarm != "" {
		a.cfg.Log.Error("trust", "alarm", a.trust.alarm)
	}
	if a.history, err = openHistory(twin{fsys: fsys, dir: dir, name: "history"}); err != nil {
		return nil, err
	}
	if a.outbox, err = openOutbox(fsys, dir); err != nil {
		return nil, err
	}
	if a.events, err = openEvents(twin{fsys: fsys, dir: dir, name: "events"}, a.cfg.Now, a.outbox.added); err != nil {
		return nil, errors.Join(err, a.outbox.close())
	}
	a.journal, a.rec, err = openJournal(fsys, dir)
	if errors.Is(err, ErrJournal) {
		a.cfg.Log.Error("journal is damaged: no execution is resumed", "dir", dir)
		err = nil
	}
	if err != nil {
		return nil, errors.Join(err, a.outbox.close())
	}
	return lock.Close, nil
}

// resume asks the boot chain what runs and decides where to go on.
func (a *Agent) resume() error {
	facts, err := a.cfg.Boot.Facts()
	if err != nil {
		return diskError{fmt.Errorf("boot facts: %w", err)}
	}
	a.facts = facts
	was := a.rec
	next := Recover(a.rec, facts)
	if next.State != a.rec.State {
		a.cfg.Log.Info("resume", "recorded", a.rec.State, "next", next.State, "active", facts.Active, "reason", next.Reason)
	}
	rec := a.rec.at(next.State)
	if next.Reason != "" {
		rec = rec.because(next.Reason)
	}
	if next.Used {
		rec.BootsLeft--
	}
	switch next.State {
	case StateTrial:
		rec.BootID = facts.BootID
	case StateArm:
		rec.Deadline = time.Time{} // each trial after the reboot has its whole time
		a.report(rec, ota.StepRebooting, nil)
	}
	if next.State == StateDone && rec.Verdict == "" {
		rec.Verdict = ota.Succeeded
	}
	if next.State == StateRolledBack || next.State == StateFailed && rec.Verdict == "" {
		rec.Verdict = ota.Failed
	}
	rec.Floor = max(rec.Floor, a.committedFloor())
	a.planRenewal()
	a.shadow.set(a.reported())
	if err := a.store(&rec); err != nil {
		return err
	}
	if boot, err := a.events.booted(facts.BootID); err != nil {
		a.cfg.Log.Warn("remember boot", "err", err)
	} else if boot != "" && !was.bootExpected() {
		a.event(EventReboot, map[string]any{"boot": facts.BootID, "was": boot})
	}
	info := facts.Slots[facts.Active]
	a.event(EventStart, map[string]any{
		"agent": a.cfg.Version, "slot": facts.Active, "name": info.Name, "version": info.Version, "boot": facts.BootID, "state": rec.State,
	})
	a.writeStatus()
	return nil
}

// committedFloor is the security version of what runs for good: the floor even
// if the journal was lost.
func (a *Agent) committedFloor() int64 {
	if a.facts.Active != a.facts.Selected {
		return 0
	}
	m, ok := a.manifestOf(a.facts.Active)
	if !ok {
		return 0
	}
	return m.SecurityVersion
}

// maxStores ends an execution that goes in a circle: 64 GiB make 8,192
// watermarks.
const maxStores = 20_000

const reasonTooManyStores = "the update did not come to an end: too many steps"

// store makes rec the journal's content and the agent's.
func (a *Agent) store(rec *Record) error {
	if rec.JobID != "" {
		rec.Stores++
	}
	if err := a.journal.store(*rec); err != nil {
		return diskError{err}
	}
	if rec.State == StateIdle || rec.State == StateChecked {
		a.checked = nil
	}
	a.rec = *rec
	return nil
}

// note remembers an error that is only waited out.
func (a *Agent) note(err error) {
	a.lastErr = clip(err.Error(), MaxReason)
	a.cfg.Log.Warn("retry", "state", a.rec.State, "job", a.rec.JobID, "err", err)
	a.writeStatus()
}
