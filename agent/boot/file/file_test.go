package file_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/boot/file"
	"github.com/otad/otad/agent/boot/slottest"
	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/agent/disk/disktest"
)

const dir = "/var/otad/boot"

// device is a driver on a disk in memory.
type device struct {
	mem  *disktest.Mem
	open *file.Boot
}

func (d *device) Boot() (agent.Boot, error) {
	b, err := file.Open(file.Config{Dir: dir, FS: d.mem})
	if err != nil {
		return nil, err
	}
	d.open = b
	return b, nil
}

func (d *device) CutAt(n int) { d.mem.CutAt(n) }
func (d *device) Cut() bool   { return d.mem.Dead() }
func (d *device) PowerOn(round int) {
	d.mem = d.mem.Crash([]disktest.Survival{disktest.Lost, disktest.Kept, disktest.Torn}[round], uint64(d.mem.Ops()))
}

func TestSlots(t *testing.T) {
	slottest.Run(t, func(t *testing.T, factory []byte) slottest.Device {
		d := &device{mem: disktest.NewMem()}
		if factory != nil {
			if _, err := file.Provision(file.Config{Dir: dir, FS: d.mem}, bytes.NewReader(factory), agent.SlotInfo{Name: "gateway", Version: "1"}); err != nil {
				t.Fatal(err)
			}
		}
		return d
	})
}

func TestRealDisk(t *testing.T) {
	root := t.TempDir() + "/boot"
	cfg := file.Config{Dir: root}
	info, err := file.Provision(cfg, bytes.NewReader([]byte("factory")), agent.SlotInfo{Name: "gateway", Version: "1"})
	if err != nil || info.Size != 7 {
		t.Fatalf("%+v %v", info, err)
	}
	again, err := file.Provision(cfg, bytes.NewReader([]byte("other")), agent.SlotInfo{Name: "gateway", Version: "2"})
	if err != nil || again.Version != "1" {
		t.Fatalf("provisioned twice: %+v %v", again, err)
	}
	b, err := file.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Open(cfg); !errors.Is(err, disk.ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
	if target, err := os.Readlink(root + "/current"); err != nil || target != "slots/a" {
		t.Fatalf("%q %v", target, err)
	}
	if got, err := os.ReadFile(root + "/current/image"); err != nil || string(got) != "factory" {
		t.Fatalf("%q %v", got, err)
	}
	for path, want := range map[string]os.FileMode{root: 0o700, root + "/slots/a/image": 0o600, root + "/slots/a/meta.json": 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v", path, st, err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err = file.Open(cfg); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestStrayFiles: whatever stands in the small files, a device boots what was
// sealed.
func TestStrayFiles(t *testing.T) {
	for name, text := range map[string]string{"try": "../a", "slots/b/meta.json": "{", "slots/a/meta.json.new": "x"} {
		root := t.TempDir()
		cfg := file.Config{Dir: root}
		if _, err := file.Provision(cfg, bytes.NewReader([]byte("factory")), agent.SlotInfo{}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := file.Open(cfg)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f, err := b.Facts(); err != nil || f.Active != file.SlotA || !f.Slots[file.SlotA].Bootable {
			t.Errorf("%s: %+v %v", name, f, err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
