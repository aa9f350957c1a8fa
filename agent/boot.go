package agent

import (
	"context"
	"errors"
	"io"
)

// Errors of the boot port.
var (
	// ErrReboot is what Reboot and Run return when the process has to end so
	// that the device (or, for the file driver, the application) boots again.
	ErrReboot = errors.New("reboot wanted")
	// ErrBusySlot: the slot runs now, or is still marked bootable, and so is not
	// written.
	ErrBusySlot = errors.New("slot is in use")
)

// SlotInfo describes what a slot holds. The zero value is an empty slot.
type SlotInfo struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Digest   string `json:"digest"` // lower-case hex sha256 of the raw image
	Size     int64  `json:"size"`
	Bootable bool   `json:"bootable"` // verified whole and sealed
}

// BootFacts is what the boot chain says, read once for each boot.
type BootFacts struct {
	BootID   string              // differs from boot to boot
	Active   string              // slot that runs now
	Inactive string              // the other one
	Selected string              // slot that boots unless a one-shot says otherwise
	OneShot  string              // slot armed for the next boot only; empty: never armed, or used
	Slots    map[string]SlotInfo // by slot
}

// Slots is the storage half of a boot driver. All methods but OpenSlot act on
// the inactive slot; the active one is never opened for writing.
type Slots interface {
	// MarkUnbootable makes sure that the inactive slot can not be booted, and
	// returns once that is on the disk. Repeating it is harmless.
	MarkUnbootable() error
	// OpenInactive opens the inactive slot for an image of size bytes and keeps
	// what it holds; ErrBusySlot while it is bootable.
	OpenInactive(size int64) (SlotWriter, error)
	// OpenSlot opens a slot's image for reading, past caches where it can.
	OpenSlot(slot string) (SlotReader, error)
	// Seal records what the inactive slot holds and makes it bootable. Call it
	// only with an image that was read back whole.
	Seal(info SlotInfo) error
	// Free returns how many bytes an image in the inactive slot may have.
	Free() (int64, error)
	// ImagePath is where installers and health checks find a slot's image.
	ImagePath(slot string) string
}

// SlotWriter writes an image. Bytes are on the disk after Sync.
type SlotWriter interface {
	io.WriterAt
	Sync() error
	Close() error
}

// SlotReader reads an image.
type SlotReader interface {
	io.ReaderAt
	io.Closer
}

// Switch is the selection half of a boot driver. Each method is one atomic
// update, on the disk when it returns; repeating it is harmless.
type Switch interface {
	// Facts describes this boot. Active and BootID never change while the driver
	// is open.
	Facts() (BootFacts, error)
	// Arm makes the next boot, and only that, boot slot, which must be bootable.
	Arm(slot string) error
	// Commit makes slot the permanent choice and forgets any one-shot.
	Commit(slot string) error
	// Rollback makes slot (the one to return to) the permanent choice and
	// forgets any one-shot. Unlike Commit the slot may be empty (a factory
	// state).
	Rollback(slot string) error
	// Reboot boots again. It returns ErrReboot when the caller has to end for
	// that, or another error when it could not be asked for.
	Reboot(ctx context.Context) error
}

// Boot is a boot driver: two slots and the choice between them. It is used from
// one goroutine. slottest holds every driver to this contract.
type Boot interface {
	Slots
	Switch
}
