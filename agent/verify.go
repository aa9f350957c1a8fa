package agent

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

// plan is a release that was verified for this device: nothing in it comes from
// anywhere but signed bytes.
type plan struct {
	manifest ota.Manifest
	index    *image.Index
}

// verify brings trust up to date and returns what is signed about the record's
// release. It changes no slot. Errors are refusals, doubts, disk errors, or
// worth another try.
func (a *Agent) verify(ctx context.Context, rec Record) (plan, error) {
	if err := a.refresh(ctx); err != nil {
		return plan{}, err
	}
	target, err := a.trust.trust.Target(rec.ID().TargetPath())
	if err != nil {
		return plan{}, doubtful("release %s: %w", rec.ID(), err)
	}
	m, err := parseManifest(target.Custom())
	if err != nil {
		return plan{}, refuse("manifest of %s: %w", rec.ID(), err)
	}
	if m.ID() != rec.ID() {
		return plan{}, refuse("manifest of %s names %s", rec.ID(), m.ID())
	}
	if err := a.suits(m, rec.Floor); err != nil {
		return plan{}, err
	}
	ix, err := a.index(ctx, target, m)
	if err != nil {
		return plan{}, err
	}
	return plan{manifest: m, index: ix}, nil
}

func parseManifest(b []byte) (ota.Manifest, error) {
	var m ota.Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return ota.Manifest{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return ota.Manifest{}, errors.New("bytes after the manifest")
	}
	return m, m.Validate()
}

// suits checks what the manifest asks of this device.
func (a *Agent) suits(m ota.Manifest, floor int64) error {
	if !m.Fits(a.cfg.Hardware) {
		return refuse("%s is for hardware %v, this device is %q", m.ID(), m.HardwareIDs, a.cfg.Hardware)
	}
	if m.SecurityVersion < floor {
		return refuse("%s has security version %d, this device has reached %d and does not go back", m.ID(), m.SecurityVersion, floor)
	}
	active := a.facts.Slots[a.facts.Active]
	if err := m.Admits(ota.ReleaseID{Name: active.Name, Version: active.Version}); err != nil && active.Digest != m.ImageDigest {
		return refuse("%w: install that first", err)
	}
	if a.cfg.Installers[m.Installer] == nil {
		return refuse("%s needs installer %q, which this agent does not have", m.ID(), m.Installer)
	}
	if _, err := a.cfg.Health.Deadline(m.Health); err != nil {
		return refuse("%s: %w", m.ID(), err)
	}
	return nil
}

// index fetches the artifact index and checks it against what is signed.
func (a *Agent) index(ctx context.Context, target signing.VerifiedTarget, m ota.Manifest) (*image.Index, error) {
	if target.Length() > image.MaxIndexBytes {
		return nil, refuse("index of %s has %d bytes: at most %d", m.ID(), target.Length(), image.MaxIndexBytes)
	}
	b, err := a.cfg.Source.Target(ctx, target.Path(), target.SHA256(), target.Length())
	if errors.Is(err, ErrNoSuchFile) {
		return nil, doubtful("the server lacks the index of %s: %w", m.ID(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("fetch index of %s: %w", m.ID(), err)
	}
	verified, err := target.Check(b)
	if err != nil {
		return nil, doubtful("index of %s: %w", m.ID(), err)
	}
	ix, err := image.ParseIndex(verified.Bytes())
	if err != nil {
		return nil, refuse("index of %s: %w", m.ID(), err)
	}
	if hex.EncodeToString(ix.RawDigest[:]) != m.ImageDigest || ix.RawSize != m.ImageSize || ix.ObjectSize() != m.ObjectSize {
		return nil, refuse("index of %s describes another image than its manifest", m.ID())
	}
	return ix, nil
}
