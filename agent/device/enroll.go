package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/boot/file"
	"github.com/otad/otad/agent/disk"
	agenthttp "github.com/otad/otad/agent/http"
	"github.com/otad/otad/pkg/ota"
)

// FactoryImage is what a device runs before its first update.
type FactoryImage struct {
	Path      string // the raw image
	Name      string
	Version   string
	Installer string          // ota.InstallImage or ota.InstallBinary
	Run       []string        // arguments, for a binary
	Health    json.RawMessage // health contract; empty: the default one
}

// EnrollConfig is what Enroll needs.
type EnrollConfig struct {
	Dir       string // made with mode 0700
	ServerURL string // https://host[:port] of the device plane
	Token     string // text of an enroll.Token
	DeviceID  string
	Hardware  string
	KeyType   string        // of a key that has to be made: KeyEd25519 (also "") or KeyP256
	Factory   *FactoryImage // nil: the slots stay empty
}

// Enroll makes the directory a device's. It may be cut at any point and run
// again: the key is on the disk before the server hears of it, agent.json comes
// last. ErrEnrolled when there is a device already; other errors are those of
// agent/http's Enroll.
func Enroll(ctx context.Context, c EnrollConfig) (err error) {
	if c.Dir == "" {
		return errors.New("enrollment needs a directory")
	}
	if err := (disk.OS{}).MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	d := dir(c.Dir)
	lock, err := d.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	switch s, err := d.settings(); {
	case err == nil:
		return fmt.Errorf("%w: %s is device %s of %s", ErrEnrolled, c.Dir, s.DeviceID, s.ServerURL)
	case !errors.Is(err, ErrNotEnrolled):
		return err
	}
	key, err := d.key(c.KeyType)
	if err != nil {
		return err
	}
	id, err := agenthttp.Enroll(ctx, agenthttp.Options{
		ServerURL: c.ServerURL, Token: c.Token, DeviceID: c.DeviceID, Hardware: c.Hardware, Key: key,
	})
	if err != nil {
		return err
	}
	return d.keep(c, id)
}

// keep writes what enrollment brought; agent.json makes it count.
func (d dir) keep(c EnrollConfig, id agenthttp.Identity) error {
	settings := Settings{DeviceID: id.DeviceID, Hardware: id.Hardware, ServerURL: c.ServerURL, MQTTURL: id.MQTTURL}
	if c.Factory != nil {
		m, err := d.provision(*c.Factory, id.Hardware)
		if err != nil {
			return fmt.Errorf("factory image %s: %w", c.Factory.Path, err)
		}
		settings.Factory = m
	}
	text, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{caName, id.CA}, {rootName, id.Root}, {certName, id.Certificate}, {settingsName, append(text, '\n')},
	} {
		if err := d.write(f.name, f.content); err != nil {
			return err
		}
	}
	return nil
}

// provision puts the factory image into the selected slot and returns the
// manifest that tells the agent how to run it.
func (d dir) provision(f FactoryImage, hardware string) (ota.Manifest, error) {
	image, err := os.Open(f.Path)
	if err != nil {
		return ota.Manifest{}, err
	}
	defer image.Close()
	info, err := file.Provision(file.Config{Dir: string(d)}, image, agent.SlotInfo{Name: f.Name, Version: f.Version})
	if err != nil {
		return ota.Manifest{}, err
	}
	m := ota.Manifest{
		Name: info.Name, Version: info.Version, HardwareIDs: []string{hardware}, Installer: f.Installer,
		ImageDigest: info.Digest, ImageSize: info.Size, ObjectSize: info.Size, Run: f.Run, Health: f.Health,
	}
	return m, m.Validate()
}
