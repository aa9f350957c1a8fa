// Package slottest holds every boot driver to the contract of agent.Boot: what
// each call promises, and that no power cut in a whole update leaves a device
// that boots anything but the old image or the new one, whole.
package slottest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"testing"

	"github.com/otad/otad/agent"
)

// Device is a device under test. Its storage outlives its boots.
type Device interface {
	// Boot ends the boot before, if there is one, and boots.
	Boot() (agent.Boot, error)
	// CutAt cuts the power during the n-th operation on the storage from now on;
	// 0 never does.
	CutAt(n int)
	// Cut reports whether the power was cut.
	Cut() bool
	// PowerOn brings the storage back as a power cut may leave it; round chooses
	// among the ways.
	PowerOn(round int)
}

// Rounds is how many ways of losing what was not durable are tried for each cut.
const Rounds = 3

// Run runs the suite. Fresh makes a device whose active slot holds the factory
// image, or nothing when that is nil.
func Run(t *testing.T, fresh func(t *testing.T, factory []byte) Device) {
	s := suite{fresh: fresh, old: pattern(1, 9_000), img: pattern(2, 20_000)}
	t.Run("factory", s.factory)
	t.Run("empty factory", s.emptyFactory)
	t.Run("trial is once", s.trialIsOnce)
	t.Run("commit stays", s.commitStays)
	t.Run("rollback", s.rollback)
	t.Run("busy slots", s.busySlots)
	t.Run("unbootable disarms", s.unbootableDisarms)
	t.Run("repeats are harmless", s.repeats)
	t.Run("writing resumes", s.writingResumes)
	t.Run("power cuts", s.powerCuts)
}

type suite struct {
	fresh    func(t *testing.T, factory []byte) Device
	old, img []byte
}

func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)*seed + byte(i>>8) + seed
	}
	return b
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func boot(t *testing.T, d Device) agent.Boot {
	t.Helper()
	b, err := d.Boot()
	must(t, err)
	return b
}

func facts(t *testing.T, b agent.Boot) agent.BootFacts {
	t.Helper()
	f, err := b.Facts()
	must(t, err)
	return f
}

// write does everything up to a sealed image in the inactive slot.
func write(b agent.Boot, img []byte) error {
	if err := b.MarkUnbootable(); err != nil {
		return err
	}
	w, err := b.OpenInactive(int64(len(img)))
	if err != nil {
		return err
	}
	for at := 0; at < len(img); at += 4096 {
		if _, err := w.WriteAt(img[at:min(at+4096, len(img))], int64(at)); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	if err := errors.Join(w.Sync(), w.Close()); err != nil {
		return err
	}
	return b.Seal(agent.SlotInfo{Name: "gateway", Version: "2", Digest: digest(img), Size: int64(len(img))})
}

func content(b agent.Boot, slot string, size int64) ([]byte, error) {
	r, err := b.OpenSlot(slot)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(io.NewSectionReader(r, 0, size))
	return got, errors.Join(err, r.Close())
}

func (s suite) factory(t *testing.T) {
	d := s.fresh(t, s.old)
	b := boot(t, d)
	f := facts(t, b)
	info := f.Slots[f.Active]
	if f.Selected != f.Active || f.OneShot != "" || f.Inactive == f.Active || !info.Bootable || info.Digest != digest(s.old) {
		t.Fatalf("factory state %+v", f)
	}
	if f.Slots[f.Inactive].Bootable {
		t.Fatal("the empty slot is bootable")
	}
	got, err := content(b, f.Active, info.Size)
	if err != nil || !bytes.Equal(got, s.old) {
		t.Fatalf("active slot reads %d bytes, %v", len(got), err)
	}
	if free, err := b.Free(); err != nil || free < int64(len(s.img)) {
		t.Fatalf("free %d, %v", free, err)
	}
	if again := facts(t, boot(t, d)); again.BootID == f.BootID || f.BootID == "" {
		t.Fatalf("boot id %q, then %q", f.BootID, again.BootID)
	}
}

func (s suite) emptyFactory(t *testing.T) {
	d := s.fresh(t, nil)
	b := boot(t, d)
	f := facts(t, b)
	if f.Slots[f.Active].Bootable || f.Active != f.Selected {
		t.Fatalf("empty device %+v", f)
	}
	must(t, write(b, s.img))
	must(t, b.Arm(f.Inactive))
	b = boot(t, d)
	if now := facts(t, b); now.Active != f.Inactive {
		t.Fatalf("armed slot did not boot: %+v", now)
	}
	must(t, b.Rollback(f.Active)) // also to an empty slot
	if now := facts(t, boot(t, d)); now.Active != f.Active {
		t.Fatalf("after the rollback %+v", now)
	}
}

func (s suite) trialIsOnce(t *testing.T) {
	d := s.fresh(t, s.old)
	b := boot(t, d)
	f := facts(t, b)
	must(t, write(b, s.img))
	must(t, b.Arm(f.Inactive))
	if armed := facts(t, b); armed.OneShot != f.Inactive || armed.Selected != f.Active || armed.Active != f.Active {
		t.Fatalf("armed: %+v", armed)
	}
	if err := b.Reboot(t.Context()); !errors.Is(err, agent.ErrReboot) {
		t.Fatalf("reboot: %v", err)
	}
	if trial := facts(t, boot(t, d)); trial.Active != f.Inactive || trial.Selected != f.Active || trial.OneShot != "" {
		t.Fatalf("trial: %+v", trial)
	}
	if after := facts(t, boot(t, d)); after.Active != f.Active {
		t.Fatalf("a second boot without a commit: %+v", after)
	}
}

func (s suite) commitStays(t *testing.T) {
	d := s.fresh(t, s.old)
	b := boot(t, d)
	f := facts(t, b)
	must(t, write(b, s.img))
	must(t, b.Arm(f.Inactive))
	b = boot(t, d)
	must(t, b.Commit(f.Inactive))
	for range 2 {
		now := facts(t, boot(t, d))
		if now.Active != f.Inactive || now.Selected != f.Inactive || now.Inactive != f.Active {
			t.Fatalf("committed: %+v", now)
		}
		if info := now.Slots[now.Active]; info.Digest != digest(s.img) || info.Size != int64(len(s.img)) || info.Version != "2" {
			t.Fatalf("committed slot: %+v", info)
		}
	}
}

func (s suite) rollback(t *testing.T) {
	d := s.fresh(t, s.old)
	b := boot(t, d)
	f := facts(t, b)
	must(t, write(b, s.img))
	must(t, b.Arm(f.Inactive))
	must(t, b.Rollback(f.Active)) // taken back before it was tried
	b = boot(t, d)
	if now := facts(t, b); now.Active != f.Active || now.OneShot != "" {
		t.Fatalf("rolled back before the trial: %+v", now)
	}
	must(t, b.Arm(f.Inactive))
	b = boot(t, d)
	must(t, b.Rollback(f.Active))
	if now := facts(t, boot(t, d)); now.Active != f.Active || now.Slots[now.Active].Digest != digest(s.old) {
		t.Fatalf("rolled back in the trial: %+v", now)
	}
}

func (s suite) busySlots(t *testing.T) {
	d := s.fresh(t, s.old)
	b := boot(t, d)
	f := facts(t, b)
	if err := b.Arm(f.Inactive); err == nil {
		t.Error("an empty slot was armed")
	}
	if err := b.Commit(f.Inactive); err == nil {
		t.Error("an empty slot was committed")
	}
	for _, slot := range []string{"", "c", "../a"} {
		if b.Arm(slot) == nil || b.Commit(slot) == nil || b.Rollback(slot) == nil {
			t.Errorf("slot %q was taken", slot)
		}
	}
	must(t, write(b, s.img))
	if _, err := b.OpenInactive(10); !errors.Is(err, agent.ErrBusySlot) {
		t.Errorf("open of a bootable slot: %v", err)
	}
	must(t, b.Arm(f.Inactive))
	b = boot(t, d)
	// In the trial the old slot is inactive, but it is the one to return to.
	if err := b.MarkUnbootable(); !errors.Is(err, agent.ErrBusySlot) {
		t.Errorf("the selected slot was made unbootable: %v", err)
	}
}

func (s suite) unbootableDisarms(t *testing.T) {
	d := s.fresh(t, s.old)
	b := boot(t, d)
	f := facts(t, b)
	must(t, write(b, s.img))
	must(t, b.Arm(f.Inactive))
	must(t, b.MarkUnbootable())
	now := facts(t, boot(t, d))
	if now.Active != f.Active || now.Slots[f.Inactive].Bootable {
		t.Fatalf("unbootable: %+v", now)
	}
}

func (s suite) repeats(t *testing.T) {
	d := s.fresh(t, s.old)
	b := boot(t, d)
	f := facts(t, b)
	must(t, b.MarkUnbootable())
	must(t, b.MarkUnbootable())
	must(t, write(b, s.img))
	must(t, b.Arm(f.Inactive))
	must(t, b.Arm(f.Inactive))
	b = boot(t, d)
	must(t, b.Commit(f.Inactive))
	must(t, b.Commit(f.Inactive))
	if now := facts(t, boot(t, d)); now.Active != f.Inactive {
		t.Fatalf("after repeats: %+v", now)
	}
}

// writingResumes: opening again keeps what was synced.
func (s suite) writingResumes(t *testing.T) {
	d := s.fresh(t, s.old)
	b := boot(t, d)
	f := facts(t, b)
	half := int64(len(s.img) / 2)
	must(t, b.MarkUnbootable())
	w, err := b.OpenInactive(int64(len(s.img)))
	must(t, err)
	_, err = w.WriteAt(s.img[:half], 0)
	must(t, errors.Join(err, w.Sync()))
	d.CutAt(1)
	_, err = w.WriteAt(s.img[half:], half)
	if err == nil || !d.Cut() {
		t.Fatal("the power was not cut")
	}
	d.PowerOn(0)
	b = boot(t, d)
	must(t, b.MarkUnbootable())
	w, err = b.OpenInactive(int64(len(s.img)))
	must(t, err)
	must(t, w.Close())
	got, err := content(b, f.Inactive, half)
	if err != nil || !bytes.Equal(got, s.img[:half]) {
		t.Fatalf("synced bytes are lost: %d, %v", len(got), err)
	}
}

// powerCuts goes through a whole update with a commit, and one with a rollback,
// and cuts the power during every operation.
func (s suite) powerCuts(t *testing.T) {
	points := 0
	for round := range Rounds {
		for cut := 1; ; cut++ {
			d := s.fresh(t, s.old)
			boot(t, d)
			d.CutAt(cut)
			err := s.update(d)
			if err != nil && !d.Cut() {
				t.Fatal(err)
			}
			if !d.Cut() {
				d.CutAt(0)
				break
			}
			points++
			d.PowerOn(round)
			for range 2 {
				s.checkBoot(t, d, cut)
			}
		}
	}
	t.Logf("%d cuts, 0 bricks", points)
}

func (s suite) update(d Device) error {
	for _, keep := range []bool{false, true} {
		b, err := d.Boot()
		if err != nil {
			return err
		}
		f, err := b.Facts()
		if err != nil {
			return err
		}
		if err := errors.Join(write(b, s.img)); err != nil {
			return err
		}
		if err := b.Arm(f.Inactive); err != nil {
			return err
		}
		if b, err = d.Boot(); err != nil {
			return err
		}
		if keep {
			err = b.Commit(f.Inactive)
		} else {
			err = b.Rollback(f.Active)
		}
		if err != nil {
			return err
		}
	}
	_, err := d.Boot()
	return err
}

func (s suite) checkBoot(t *testing.T, d Device, cut int) {
	t.Helper()
	b := boot(t, d)
	f := facts(t, b)
	for slot, info := range f.Slots {
		if !info.Bootable {
			if slot == f.Active {
				t.Fatalf("cut %d: the active slot is not bootable: %+v", cut, f)
			}
			continue
		}
		got, err := content(b, slot, info.Size)
		if err != nil || digest(got) != info.Digest || !bytes.Equal(got, s.old) && !bytes.Equal(got, s.img) {
			t.Fatalf("cut %d: slot %s is bootable and not whole: %v", cut, slot, err)
		}
	}
}
