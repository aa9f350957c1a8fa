package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/pkg/ota"
)

// maxManifestBytes bounds a stored manifest.
const maxManifestBytes = 256 << 10

// stepTrial starts the new image and has its health judged. Only what the
// device itself can see counts: a server that is away rolls nothing back.
func (a *Agent) stepTrial(ctx context.Context) (Record, error) {
	rec := a.rec
	m, ok := a.manifestFile(rec.To)
	if !ok || m.ImageDigest != rec.ToDigest {
		return rec.at(StateRollback).because("the trial's manifest is lost"), nil
	}
	whole, err := a.cfg.Health.Deadline(m.Health)
	if err != nil {
		return rec.at(StateRollback).because(err.Error()), nil
	}
	now := a.cfg.Now()
	if rec.Deadline.IsZero() {
		rec.Deadline = now.Add(whole)
		if err := a.store(&rec); err != nil {
			return rec, err
		}
	}
	a.report(rec, ota.StepTrial, nil)
	// A clock that was set meanwhile neither ends the trial nor prolongs it.
	left := min(max(rec.Deadline.Sub(now), 0), whole)
	if err := a.judge(ctx, m, rec.To, left); err != nil {
		if ctx.Err() != nil {
			return rec, ctx.Err()
		}
		return rec.at(StateRollback).because(err.Error()), nil
	}
	return rec.at(StateCommit), nil
}

// judge starts what a slot holds, if it does not run, and checks its health.
func (a *Agent) judge(ctx context.Context, m ota.Manifest, slot string, left time.Duration) error {
	ctx, stop := context.WithTimeout(ctx, left)
	defer stop()
	if err := a.startApp(ctx, m, slot); err != nil {
		return err
	}
	if err := a.cfg.Health.Check(ctx, m.Health, Trial{Image: a.cfg.Boot.ImagePath(slot), Alive: a.proc.Alive}); err != nil {
		return fmt.Errorf("health: %w", err)
	}
	return nil
}

// oldIsHealthy judges the slot that the device came back to, if its image says
// how.
func (a *Agent) oldIsHealthy(ctx context.Context) error {
	m, ok := a.manifestOf(a.facts.Active)
	if !ok || len(m.Health) == 0 {
		return nil
	}
	whole, err := a.cfg.Health.Deadline(m.Health)
	if err != nil {
		return err
	}
	return a.judge(ctx, m, a.facts.Active, whole)
}

// startActive starts the image that runs for good. A trial starts its own.
func (a *Agent) startActive(ctx context.Context) {
	if a.rec.State == StateTrial || a.facts.Active != a.facts.Selected {
		return
	}
	m, ok := a.manifestOf(a.facts.Active)
	if !ok {
		return
	}
	if err := a.startApp(ctx, m, a.facts.Active); err != nil {
		a.note(err)
	}
}

func (a *Agent) startApp(ctx context.Context, m ota.Manifest, slot string) error {
	if a.proc != nil {
		return nil
	}
	in := a.cfg.Installers[m.Installer]
	if in == nil {
		return fmt.Errorf("start %s: no installer %q", m.ID(), m.Installer)
	}
	proc, err := in.Start(ctx, App{Manifest: m, Image: a.cfg.Boot.ImagePath(slot), LogPath: a.cfg.Dir + "/app.log", Crashed: a.crashed})
	if err != nil {
		return fmt.Errorf("start %s: %w", m.ID(), err)
	}
	a.proc = proc
	return nil
}

// crashed says that the application ended by itself.
func (a *Agent) crashed(err error) {
	a.event(EventCrash, map[string]any{"error": clip(err.Error(), MaxReason)})
}

func (a *Agent) stopApp() {
	if a.proc != nil {
		a.proc.Stop()
		a.proc = nil
	}
}

// manifestOf returns the manifest of what a slot holds: the stored one, or the
// factory's.
func (a *Agent) manifestOf(slot string) (ota.Manifest, bool) {
	digest := a.facts.Slots[slot].Digest
	if digest == "" {
		return ota.Manifest{}, false
	}
	if m, ok := a.manifestFile(slot); ok && m.ImageDigest == digest {
		return m, true
	}
	return a.cfg.Factory, a.cfg.Factory.ImageDigest == digest
}

// manifestFile reads the manifest that was verified for a slot.
func (a *Agent) manifestFile(slot string) (ota.Manifest, bool) {
	b, err := disk.ReadFile(a.cfg.FS, a.cfg.Dir+"/"+manifestName(slot), maxManifestBytes)
	if err != nil {
		return ota.Manifest{}, false
	}
	m, err := parseManifest(b)
	return m, err == nil
}

func (a *Agent) putManifest(slot string, m ota.Manifest) error {
	b, err := json.Marshal(m)
	if err == nil && len(b) > maxManifestBytes {
		err = errors.New("manifest is too large")
	}
	if err == nil {
		err = disk.WriteFile(a.cfg.FS, a.cfg.Dir, manifestName(slot), b, 0o600)
	}
	if err != nil {
		return diskError{fmt.Errorf("store manifest of %s: %w", m.ID(), err)}
	}
	return nil
}

func manifestName(slot string) string { return "manifest-" + slot + ".json" }
