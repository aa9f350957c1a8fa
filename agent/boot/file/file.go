// Package file is the boot driver for applications, containers and tests: two
// slots are directories, a symbolic link selects one, and opening the driver is
// the boot.
//
// Layout below the driver's directory:
//
//	slots/a/image  slots/a/meta.json   one slot: the image, and what it is
//	slots/b/image  slots/b/meta.json
//	current -> slots/a                 the slot that boots
//	try                                the slot that boots next, once
//	lock                               held while the driver is open
//
// A slot without meta.json, or whose meta.json does not say bootable, never
// boots. The file try is removed, durably, before its slot counts as running:
// whatever happens in that boot, the one after it is in the selected slot.
//
// It restarts nothing by itself: Reboot only says that the program has to end
// and be started again, or to start itself again.
package file

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/google/uuid"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/pkg/ota"
)

// The slots.
const (
	SlotA = "a"
	SlotB = "b"
)

const (
	maxMetaBytes  = 16 << 10
	maxTryBytes   = 16
	imageName     = "image"
	metaName      = "meta.json"
	currentName   = "current"
	tryName       = "try"
	reserveFree   = 1 << 20 // bytes left to the device's other files
	imageFileMode = 0o600
)

// Config says where the slots are.
type Config struct {
	Dir string  // made with mode 0700 when missing
	FS  disk.FS // nil: disk.OS
}

// Boot is the driver; its methods are called from one goroutine.
type Boot struct {
	fsys   disk.FS
	dir    string
	lock   io.Closer
	bootID string
	active string
}

var _ agent.Boot = (*Boot)(nil)

// Open boots: it decides which slot runs and uses up a one-shot. A directory
// that is new gets two empty slots, the first of them selected. disk.ErrLocked
// while another process has it open.
func Open(cfg Config) (*Boot, error) {
	b, err := prepare(cfg)
	if err != nil {
		return nil, fmt.Errorf("boot directory %s: %w", cfg.Dir, err)
	}
	if err := b.boot(); err != nil {
		return nil, fmt.Errorf("boot from %s: %w", cfg.Dir, errors.Join(err, b.lock.Close()))
	}
	return b, nil
}

// Provision gives the selected slot of a device its factory image. It does
// nothing to a slot that is bootable already. info.Digest and info.Size are
// filled in.
func Provision(cfg Config, image io.Reader, info agent.SlotInfo) (agent.SlotInfo, error) {
	b, err := prepare(cfg)
	if err != nil {
		return info, fmt.Errorf("boot directory %s: %w", cfg.Dir, err)
	}
	info, err = b.provision(image, info)
	return info, errors.Join(err, b.lock.Close())
}

func prepare(cfg Config) (*Boot, error) {
	b := &Boot{fsys: cfg.FS, dir: cfg.Dir, bootID: uuid.NewString()}
	if b.fsys == nil {
		b.fsys = disk.OS{}
	}
	for _, slot := range []string{SlotA, SlotB} {
		if err := b.fsys.MkdirAll(b.slotDir(slot), 0o700); err != nil {
			return nil, err
		}
	}
	lock, err := b.fsys.Lock(b.dir + "/lock")
	if err != nil {
		return nil, err
	}
	b.lock = lock
	if _, err := b.selected(); errors.Is(err, fs.ErrNotExist) {
		if err := b.point(SlotA); err != nil {
			return nil, errors.Join(err, lock.Close())
		}
	}
	return b, nil
}

// boot decides what runs.
func (b *Boot) boot() error {
	selected, err := b.selected()
	if err != nil {
		return err
	}
	b.active = selected
	once, err := b.oneShot()
	if err != nil || once == "" {
		return err
	}
	if err := b.disarm(); err != nil {
		return err
	}
	if info, err := b.info(once); err == nil && info.Bootable {
		b.active = once
	}
	return nil
}

// Close lets another process open the driver.
func (b *Boot) Close() error { return b.lock.Close() }

// Facts implements agent.Switch.
func (b *Boot) Facts() (agent.BootFacts, error) {
	f := agent.BootFacts{BootID: b.bootID, Active: b.active, Inactive: b.inactive(), Slots: map[string]agent.SlotInfo{}}
	var err error
	if f.Selected, err = b.selected(); err != nil {
		return f, err
	}
	if f.OneShot, err = b.oneShot(); err != nil {
		return f, err
	}
	for _, slot := range []string{SlotA, SlotB} {
		if f.Slots[slot], err = b.info(slot); err != nil {
			return f, err
		}
	}
	return f, nil
}

// Arm implements agent.Switch.
func (b *Boot) Arm(slot string) error {
	info, err := b.info(slot)
	if err != nil {
		return err
	}
	if !info.Bootable {
		return fmt.Errorf("arm slot %s: it is not bootable", slot)
	}
	return disk.WriteFile(b.fsys, b.dir, tryName, []byte(slot), 0o600)
}

// Commit implements agent.Switch.
func (b *Boot) Commit(slot string) error {
	info, err := b.info(slot)
	if err != nil {
		return err
	}
	if !info.Bootable {
		return fmt.Errorf("commit slot %s: it is not bootable", slot)
	}
	return b.choose(slot)
}

// Rollback implements agent.Switch.
func (b *Boot) Rollback(slot string) error { return b.choose(slot) }

// Reboot implements agent.Switch: the program has to start again.
func (b *Boot) Reboot(context.Context) error { return agent.ErrReboot }

// choose makes the choice permanent first: a power cut before the one-shot is
// gone only tries a slot once more.
func (b *Boot) choose(slot string) error {
	if err := checkSlot(slot); err != nil {
		return err
	}
	if selected, err := b.selected(); err != nil {
		return err
	} else if selected != slot {
		if err := b.point(slot); err != nil {
			return err
		}
	}
	return b.disarm()
}

// point makes current name a slot, in one step.
func (b *Boot) point(slot string) error {
	temp := b.dir + "/." + currentName + ".new"
	if err := b.fsys.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.fsys.Symlink("slots/"+slot, temp); err != nil {
		return err
	}
	if err := b.fsys.Rename(temp, b.dir+"/"+currentName); err != nil {
		return err
	}
	return b.fsys.SyncDir(b.dir)
}

func (b *Boot) selected() (string, error) {
	target, err := b.fsys.Readlink(b.dir + "/" + currentName)
	if err != nil {
		return "", err
	}
	for _, slot := range []string{SlotA, SlotB} {
		if target == "slots/"+slot {
			return slot, nil
		}
	}
	return "", fmt.Errorf("link %s points to %q: want slots/%s or slots/%s", currentName, target, SlotA, SlotB)
}

func (b *Boot) oneShot() (string, error) {
	text, err := disk.ReadFile(b.fsys, b.dir+"/"+tryName, maxTryBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if checkSlot(string(text)) != nil {
		return "", nil // no slot: nothing is armed
	}
	return string(text), nil
}

func (b *Boot) disarm() error {
	err := b.fsys.Remove(b.dir + "/" + tryName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return b.fsys.SyncDir(b.dir)
}

// info describes a slot; one whose meta.json is missing or not readable is
// empty.
func (b *Boot) info(slot string) (agent.SlotInfo, error) {
	if err := checkSlot(slot); err != nil {
		return agent.SlotInfo{}, err
	}
	text, err := disk.ReadFile(b.fsys, b.slotDir(slot)+"/"+metaName, maxMetaBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return agent.SlotInfo{}, nil
	}
	if err != nil {
		return agent.SlotInfo{}, err
	}
	var info agent.SlotInfo
	if json.Unmarshal(text, &info) != nil || ota.ValidateDigest(info.Digest) != nil {
		return agent.SlotInfo{}, nil
	}
	return info, nil
}

func (b *Boot) inactive() string {
	if b.active == SlotA {
		return SlotB
	}
	return SlotA
}

func (b *Boot) slotDir(slot string) string { return b.dir + "/slots/" + slot }

func checkSlot(slot string) error {
	if slot != SlotA && slot != SlotB {
		return fmt.Errorf("slot %.20q: want %s or %s", slot, SlotA, SlotB)
	}
	return nil
}
