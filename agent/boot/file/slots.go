package file

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/disk"
)

// MarkUnbootable implements agent.Slots: it removes meta.json. What a failed
// trial left armed is disarmed with it.
func (b *Boot) MarkUnbootable() error {
	slot := b.inactive()
	if selected, err := b.selected(); err != nil || selected == slot {
		return errors.Join(err, fmt.Errorf("slot %s is selected: %w", slot, agent.ErrBusySlot))
	}
	if once, err := b.oneShot(); err != nil || once == slot {
		if err = errors.Join(err, b.disarm()); err != nil {
			return err
		}
	}
	err := b.fsys.Remove(b.slotDir(slot) + "/" + metaName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return b.fsys.SyncDir(b.slotDir(slot))
}

// OpenInactive implements agent.Slots.
func (b *Boot) OpenInactive(size int64) (agent.SlotWriter, error) {
	slot := b.inactive()
	info, err := b.info(slot)
	if err != nil {
		return nil, err
	}
	if info.Bootable {
		return nil, fmt.Errorf("slot %s is bootable: %w: mark it unbootable first", slot, agent.ErrBusySlot)
	}
	f, err := b.fsys.OpenFile(b.ImagePath(slot), os.O_RDWR|os.O_CREATE, imageFileMode)
	if err != nil {
		return nil, err
	}
	if err := b.resize(f, slot, size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (b *Boot) resize(f disk.File, slot string, size int64) error {
	old, err := f.Size()
	if err != nil || old == size {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return b.fsys.SyncDir(b.slotDir(slot))
}

// OpenSlot implements agent.Slots.
func (b *Boot) OpenSlot(slot string) (agent.SlotReader, error) {
	if err := checkSlot(slot); err != nil {
		return nil, err
	}
	f, err := b.fsys.OpenFile(b.ImagePath(slot), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	f.DropCache()
	return f, nil
}

// Seal implements agent.Slots.
func (b *Boot) Seal(info agent.SlotInfo) error { return b.seal(b.inactive(), info) }

func (b *Boot) seal(slot string, info agent.SlotInfo) error {
	info.Bootable = true
	text, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return disk.WriteFile(b.fsys, b.slotDir(slot), metaName, append(text, '\n'), 0o600)
}

// Free implements agent.Slots: what the file system has, and what the slot's
// old image gives back.
func (b *Boot) Free() (int64, error) {
	free, err := b.fsys.Free(b.slotDir(b.inactive()))
	if err != nil {
		return 0, err
	}
	if f, err := b.fsys.OpenFile(b.ImagePath(b.inactive()), os.O_RDONLY, 0); err == nil {
		size, sizeErr := f.Size()
		if errors.Join(sizeErr, f.Close()) == nil {
			free += size
		}
	}
	return max(free-reserveFree, 0), nil
}

// ImagePath implements agent.Slots.
func (b *Boot) ImagePath(slot string) string { return b.slotDir(slot) + "/" + imageName }

// provision writes a factory image into the selected slot.
func (b *Boot) provision(image io.Reader, info agent.SlotInfo) (agent.SlotInfo, error) {
	slot, err := b.selected()
	if err != nil {
		return info, err
	}
	if old, err := b.info(slot); err != nil || old.Bootable {
		return old, err
	}
	f, err := b.fsys.OpenFile(b.ImagePath(slot), os.O_RDWR|os.O_CREATE|os.O_TRUNC, imageFileMode)
	if err != nil {
		return info, err
	}
	h := sha256.New()
	info.Size, err = io.Copy(io.NewOffsetWriter(f, 0), io.TeeReader(image, h))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return info, fmt.Errorf("write factory image: %w", err)
	}
	info.Digest = hex.EncodeToString(h.Sum(nil))
	info.Bootable = true
	return info, b.seal(slot, info)
}
