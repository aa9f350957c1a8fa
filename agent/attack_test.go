package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// refused asserts that the device still runs and holds only what it had, and
// that nothing unverified is in the slot: each byte there is the image's or
// zero.
func refused(t *testing.T, d *device, old, img []byte) {
	t.Helper()
	if got := d.running(); got.Digest != digest(old) {
		t.Fatalf("running %+v", got)
	}
	if !bytes.Equal(d.slotImage("a"), old) {
		t.Fatal("the running slot was changed")
	}
	for i, b := range d.slotImage("b") {
		if b != 0 && (i >= len(img) || b != img[i]) {
			t.Fatalf("unverified byte %#x at %d of the slot", b, i)
		}
	}
}

// TestOneFlippedByte damages every kind of file on the way, one byte at a time.
func TestOneFlippedByte(t *testing.T) {
	old, img := noise(1, 20_000), noise(2, 50_000)
	for _, name := range []string{"image", "gateway/1.0.idx", "timestamp.json", "2.snapshot.json", "2.targets.json", "2.root.json"} {
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			r := newRepo(t)
			r.release("1.0", img, nil)
			r.files["2.root.json"] = bytes.Replace(r.factory, []byte(`"version":1`), []byte(`"version":2`), 1)
			size := len(r.files[name])
			if name == "image" {
				size = len(r.objects[digest(img)])
			}
			if name != "2.root.json" {
				delete(r.files, "2.root.json")
			}
			if size == 0 {
				t.Fatal("no such file")
			}
			for i, at := range []int{0, size / 3, size / 2, size - 1} {
				d := newDevice(t, r, old)
				r.set(func() {
					r.reports = nil
					r.twist = func(got string, b []byte) []byte {
						if got == name {
							b[at] ^= 0x20
						}
						return b
					}
				})
				job := fmt.Sprint("job-", i)
				r.order(job, "1.0", 1)
				v := d.until(job, 1)
				want := ota.Rejected
				if name == "image" {
					want = ota.Failed
				}
				expect(t, v, want, "")
				if v.Details[ota.DetailReason] == "" {
					t.Error("refused without a reason")
				}
				refused(t, d, old, img)
			}
		})
	}
}

// TestSignedByOthersIsRefused: a stolen server signs a release of its own.
func TestSignedByOthersIsRefused(t *testing.T) {
	old, img := noise(1, 20_000), noise(2, 50_000)
	r, thief := newRepo(t), newRepo(t)
	thief.release("1.0", img, nil)
	d := newDevice(t, r, old)
	d.edit = func(c *agent.Config) { c.Source = thief }
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Rejected, "not signed by enough trusted keys")
	refused(t, d, old, nil)
}

func TestManifestMustMatchTheJob(t *testing.T) {
	old, img := noise(1, 20_000), noise(2, 50_000)
	cases := map[string]struct {
		edit   func(*ota.Manifest)
		reason string
	}{
		"other name":        {func(m *ota.Manifest) { m.Name = "camera" }, "names camera@1.0"},
		"other version":     {func(m *ota.Manifest) { m.Version = "0.9" }, "names gateway@0.9"},
		"other image":       {func(m *ota.Manifest) { m.ImageDigest = digest(old) }, "another image"},
		"other size":        {func(m *ota.Manifest) { m.ImageSize++ }, "another image"},
		"unknown installer": {func(m *ota.Manifest) { m.Installer = ota.InstallBinary }, "installer \"binary\""},
		"bad health":        {func(m *ota.Manifest) { m.Health = []byte(`"nonsense"`) }, "health contract"},
		"other hardware":    {func(m *ota.Manifest) { m.HardwareIDs = []string{"pi5"} }, "this device is \"pi4\""},
		"not valid":         {func(m *ota.Manifest) { m.SecurityVersion = -1 }, "security version"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			d := newDevice(t, r, old)
			r.release("1.0", img, c.edit)
			r.order("job-1", "1.0", 1)
			expect(t, d.until("job-1", 1), ota.Rejected, c.reason)
			refused(t, d, old, nil)
			if r.sent != 0 {
				t.Errorf("%d bytes of the image were fetched", r.sent)
			}
		})
	}
}

func TestJobDocumentIsNotTrusted(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 1000))
	r.release("1.0", noise(2, 5000), nil)
	for i, edit := range []func(*agent.Job){
		func(j *agent.Job) { j.Document.Operation = "erase" },
		func(j *agent.Job) { j.Document.Target = "../1.0.idx" },
		func(j *agent.Job) { j.Document.Name = "../../etc" },
		func(j *agent.Job) { j.Document.Version = "9.9"; j.Document.Target = "gateway/9.9.idx" },
	} {
		job := fmt.Sprint("job-", i)
		r.order(job, "1.0", 1)
		r.set(func() { edit(r.job) })
		expect(t, d.until(job, 1), ota.Rejected, "")
	}
}

func TestHardwareMatrix(t *testing.T) {
	models := 10
	if raceEnabled {
		models = 5
	}
	r := newRepo(t)
	img := noise(2, 5000)
	for i := range models {
		r.release(fmt.Sprintf("1.%d", i), img, func(m *ota.Manifest) { m.HardwareIDs = []string{fmt.Sprint("hw", i)} })
	}
	for device := range models {
		d := newDevice(t, r, nil)
		d.edit = func(c *agent.Config) { c.Hardware = fmt.Sprint("hw", device) }
		// The device's own release comes last, so that the others find it empty.
		for k := 1; k <= models; k++ {
			release := (device + k) % models
			job := fmt.Sprintf("job-%d-%d", device, release)
			r.order(job, fmt.Sprintf("1.%d", release), 1)
			want := ota.Rejected
			if release == device {
				want = ota.Succeeded
			}
			expect(t, d.until(job, 1), want, "")
		}
	}
}

func TestSecurityVersionNeverGoesBack(t *testing.T) {
	r := newRepo(t)
	images := map[string][]byte{"1.0": noise(1, 9000), "2.0": noise(2, 9000), "2.1": noise(3, 9000), "3.0": noise(4, 9000)}
	for version, security := range map[string]int64{"1.0": 1, "2.0": 2, "2.1": 2, "3.0": 3} {
		r.release(version, images[version], func(m *ota.Manifest) { m.SecurityVersion = security })
	}
	d := newDevice(t, r, nil)
	step := func(version string, status ota.Status, reason string) {
		t.Helper()
		r.order("to-"+version+"-"+reason, version, 1)
		expect(t, d.until("to-"+version+"-"+reason, 1), status, reason)
	}
	step("2.0", ota.Succeeded, "")
	if s := d.status(); s.Floor != 2 {
		t.Fatalf("the life that committed has floor %d", s.Floor)
	}
	step("1.0", ota.Rejected, "security version 1")
	step("2.1", ota.Succeeded, "") // equal is allowed
	d.health = func(context.Context, string) error { return errors.New("sick") }
	step("3.0", ota.Failed, "sick") // a trial that fails raises nothing
	d.health = healthy
	r.order("back", "2.0", 1)
	expect(t, d.until("back", 1), ota.Succeeded, "")

	// The floor outlives a lost journal: what runs for good says it as well.
	for i := range 2 {
		f, err := d.fs.OpenFile(d.dir+"/journal", 2, 0)
		must(t, err)
		_, err = f.WriteAt(make([]byte, 4096), int64(i)*4096)
		must(t, err)
	}
	r.order("lost", "1.0", 2)
	expect(t, d.until("lost", 2), ota.Rejected, "security version 1")
}

// TestReleaseIsNotInstalledBeforeWhatItNeeds: a server that leaves a release out
// which has to be passed through, or that takes a device the wrong way, is refused.
func TestReleaseIsNotInstalledBeforeWhatItNeeds(t *testing.T) {
	r := newRepo(t)
	images := map[string][]byte{"1.0": noise(1, 9000), "2.0": noise(2, 9000), "3.0": noise(3, 9000), "4.0": noise(4, 9000), "5.0": noise(5, 9000)}
	needs := map[string]func(*ota.Manifest){
		"3.0": func(m *ota.Manifest) { m.MinVersion = "2.0" },
		"4.0": func(m *ota.Manifest) { m.Requires = []ota.ReleaseID{{Name: "bootloader", Version: "3"}} },
		"5.0": func(m *ota.Manifest) { m.MinVersion = "5.0" },
	}
	for version, img := range images {
		r.release(version, img, needs[version])
	}
	d := newDevice(t, r, noise(9, 9000))
	step := func(job, version string, status ota.Status, reason string) {
		t.Helper()
		r.order(job, version, 1)
		expect(t, d.until(job, 1), status, reason)
	}
	step("factory", "3.0", ota.Rejected, "gateway@3.0 needs gateway 2.0 or newer, and gateway@factory runs there, a version that can not be compared")
	step("old", "1.0", ota.Succeeded, "")
	before := r.sent
	step("leap", "3.0", ota.Rejected, "gateway@3.0 needs gateway 2.0 or newer, and gateway@1.0 runs there: install that first")
	if r.sent != before {
		t.Errorf("%d bytes of an image that is refused were fetched", r.sent-before)
	}
	step("through", "2.0", ota.Succeeded, "")
	step("then", "3.0", ota.Succeeded, "")
	step("again", "3.0", ota.Succeeded, "already installed")
	step("other", "4.0", ota.Rejected, "gateway@4.0 needs bootloader 3 or newer, and gateway@3.0 runs there")
	step("nonsense", "5.0", ota.Rejected, "minimum version 5.0")
	step("back", "2.0", ota.Succeeded, "") // which needs nothing
}

func TestDownloadResumesByRange(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 1000))
	img := noise(2, 2_000_000)
	m := r.release("1.0", img, nil)
	r.chop = 150_000
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Succeeded, "")
	if len(r.opened) < 10 {
		t.Fatalf("%d requests: the transfer was to break", len(r.opened))
	}
	for i := 1; i < len(r.opened); i++ {
		if r.opened[i] <= r.opened[i-1] {
			t.Fatalf("request %d starts at %d, the one before at %d", i, r.opened[i], r.opened[i-1])
		}
	}
	if limit := m.ObjectSize + int64(len(r.opened))*80_000; r.sent > limit {
		t.Errorf("%d bytes for an object of %d", r.sent, m.ObjectSize)
	}
}

// TestDownloadResumesAfterRestart kills the agent in the middle of an image.
func TestDownloadResumesAfterRestart(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 1000))
	img := noise(2, 12_000_000)
	m := r.release("1.0", img, nil)
	ctx, stop := context.WithCancel(t.Context())
	const enough = 10_000_000
	r.body = func(_ string, in io.Reader) io.Reader {
		return io.MultiReader(io.LimitReader(in, enough), hang{ctx, stop})
	}
	r.order("job-1", "1.0", 1)
	must(t, d.live(ctx))
	r.set(func() { r.body = nil })
	expect(t, d.until("job-1", 1), ota.Succeeded, "")
	again := r.sent - m.ObjectSize
	if len(r.opened) != 2 || r.opened[1] < 9_000_000 || again > 1_000_000 {
		t.Fatalf("requests at %v, %d bytes fetched twice", r.opened, again)
	}
	t.Logf("resumed at %d of %d; %d bytes were fetched twice", r.opened[1], m.ObjectSize, again)
}

// hang ends a life: it calls stop and then waits as a dead peer does.
type hang struct {
	ctx  context.Context
	stop func()
}

func (h hang) Read([]byte) (int, error) {
	h.stop()
	<-h.ctx.Done()
	return 0, h.ctx.Err()
}

// TestEndlessSource: bytes after the object are not read.
func TestEndlessSource(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 1000))
	m := r.release("1.0", noise(2, 100_000), nil)
	r.body = func(_ string, in io.Reader) io.Reader { return io.MultiReader(in, endless{}) }
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Succeeded, "")
	if r.sent > m.ObjectSize {
		t.Errorf("%d bytes were read of an object of %d", r.sent, m.ObjectSize)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestSlowSourceEnds: a source that never gets anywhere fails the attempt, and
// metadata without end is refused by its cap.
func TestSlowSourceEnds(t *testing.T) {
	r := newRepo(t)
	old := noise(1, 1000)
	d := newDevice(t, r, old)
	img := noise(2, 100_000)
	r.release("1.0", img, nil)
	r.body = func(string, io.Reader) io.Reader { return slow{} }
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Failed, "too slow")
	refused(t, d, old, img)
	r.set(func() {
		r.twist = func(name string, b []byte) []byte {
			if name == "timestamp.json" {
				return make([]byte, 1<<20)
			}
			return b
		}
	})
	r.order("job-2", "1.0", 1)
	expect(t, d.until("job-2", 1), ota.Rejected, "timestamp.json")
}

type slow struct{}

func (slow) Read([]byte) (int, error) { return 0, agent.ErrSlow }

// TestWornStorage: a slot that forgets what was written is never armed.
func TestWornStorage(t *testing.T) {
	r := newRepo(t)
	old, img := noise(1, 1000), noise(2, 100_000)
	d := newDevice(t, r, old)
	d.edit = func(c *agent.Config) { c.Boot = forgetful{c.Boot} }
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Failed, "does not read back")
	refused(t, d, old, img)
	if d.boots != 1 {
		t.Errorf("%d boots", d.boots)
	}
}

type forgetful struct{ agent.Boot }

func (f forgetful) OpenInactive(size int64) (agent.SlotWriter, error) {
	w, err := f.Boot.OpenInactive(size)
	return dropping{w}, err
}

type dropping struct{ agent.SlotWriter }

func (d dropping) WriteAt(p []byte, off int64) (int, error) {
	if off > 50_000 {
		return len(p), nil
	}
	return d.SlotWriter.WriteAt(p, off)
}

func TestNoSpaceIsRefusedBeforeAnythingChanges(t *testing.T) {
	r := newRepo(t)
	old := noise(1, 1000)
	d := newDevice(t, r, old)
	d.edit = func(c *agent.Config) { c.Boot = full{c.Boot} }
	r.release("1.0", noise(2, 100_000), nil)
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Rejected, "no space")
	refused(t, d, old, nil)
}

type full struct{ agent.Boot }

func (full) Free() (int64, error) { return 99_999, nil }

// TestBootChainThatIgnoresTheSelection: after three planned boots that did not
// happen the execution ends, and the one-shot is taken back.
func TestBootChainThatIgnoresTheSelection(t *testing.T) {
	r := newRepo(t)
	old, img := noise(1, 1000), noise(2, 10_000)
	d := newDevice(t, r, old)
	d.edit = func(c *agent.Config) { c.Boot = deaf{c.Boot, fmt.Sprint("boot-", d.boots)} }
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Failed, "boot not attempted")
	if d.boots < 3 || d.boots > 6 {
		t.Errorf("%d boots", d.boots)
	}
	if got := d.running(); got.Digest != digest(old) {
		t.Fatalf("running %+v", got)
	}
}

// deaf is a boot chain that takes a one-shot and never acts on it.
type deaf struct {
	agent.Boot
	id string
}

func (deaf) Arm(string) error { return nil }

func (b deaf) Facts() (agent.BootFacts, error) {
	f, err := b.Boot.Facts()
	f.BootID = b.id
	if f.Slots["b"].Bootable {
		f.OneShot = "b"
	}
	return f, err
}

// TestOfflineAtTheStart: an agent whose server is away waits, says why, and
// goes on by itself.
func TestOfflineAtTheStart(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 1000))
	img := noise(2, 10_000)
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	d.edit = func(c *agent.Config) { c.Source = awaySource{r, new(int)} }
	expect(t, d.until("job-1", 1), ota.Succeeded, "")
	if got := d.running(); got.Digest != digest(img) {
		t.Fatalf("running %+v", got)
	}
}

type awaySource struct {
	*repo
	calls *int
}

func (s awaySource) Metadata(ctx context.Context, name string, limit int64) ([]byte, error) {
	if *s.calls++; *s.calls < 30 {
		return nil, fmt.Errorf("dial: %w", agent.ErrUnreachable)
	}
	return s.repo.Metadata(ctx, name, limit)
}

func TestExpiredTrustIsRefused(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 1000))
	r.release("1.0", noise(2, 10_000), nil)
	d.edit = func(c *agent.Config) { c.Now = func() time.Time { return r.now.Add(100 * time.Hour) } }
	r.order("job-1", "1.0", 1)
	expect(t, d.until("job-1", 1), ota.Rejected, "expired")
}
