package fleet_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/blob/dir"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/identity"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
	"github.com/otad/otad/pkg/signing"
)

// notes is a Publisher that remembers whom it told what.
type notes struct {
	mu        sync.Mutex
	next      map[string]*ota.Execution
	said      map[string][]string // by device, in order
	evictions []fleet.Eviction
}

func (n *notes) NotifyNext(_ context.Context, id string, e *ota.Execution) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next[id] = e
	words := "next none"
	if e != nil {
		words = "next " + e.Release.Version
	}
	n.said[id] = append(n.said[id], words)
	return nil
}

func (n *notes) NotifyJobs(_ context.Context, id string, pending []ota.Execution) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	words := "jobs"
	for _, e := range pending {
		words += " " + e.Release.Version
	}
	n.said[id] = append(n.said[id], words)
	return nil
}

// take returns what a device was told since the last time.
func (n *notes) take(id string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	said := strings.Join(n.said[id], ", ")
	delete(n.said, id)
	return said
}

func (n *notes) ShadowUpdated(context.Context, string, string, shadow.Result) error { return nil }

func (n *notes) Evict(e fleet.Eviction) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.evictions = append(n.evictions, e)
}

// ended returns whose sessions were ended, in order.
func (n *notes) ended() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for _, e := range n.evictions {
		_, issuer, _ := strings.Cut(e.Voucher, " ")
		ids = append(ids, e.DeviceID+issuer)
	}
	return ids
}

// world is a service over the readable store, with an operator beside it.
type world struct {
	t       *testing.T
	ctx     context.Context
	s       *fleet.Service
	store   fleet.Store
	notes   *notes
	targets signing.TargetsKey
	name    string       // of the firmware that release makes
	need    string       // what that needs, see needing
	health  string       // the contract of releases that are made
	install sync.Mutex   // held while an installer works, and by who looks at what it did
	seq     atomic.Int64 // of the last event
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, ctx: t.Context(), name: "gw", store: memstore.New(), notes: &notes{next: map[string]*ota.Execution{}, said: map[string][]string{}}}
	blobs, err := dir.New(t.TempDir())
	w.ok(err)
	ca, err := identity.Open(t.TempDir(), time.Now())
	w.ok(err)
	w.s = fleet.New(fleet.Config{
		Store: w.store, Blobs: blobs, Publisher: w.notes, CA: ca, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		OnlineKeys: signing.Online{Snapshot: signing.OnlineKey{Signer: w.key()}, Timestamp: signing.OnlineKey{Signer: w.key()}},
	})
	w.initTrust()
	return w
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) key() signing.Key {
	k, err := signing.NewKey()
	w.ok(err)
	return k
}

func (w *world) initTrust() {
	w.t.Helper()
	rootKey := signing.RootKey{Signer: w.key()}
	w.targets = signing.TargetsKey{Signer: w.key()}
	root, err := signing.NewRoot(signing.RootSpec{
		RootKeys: []signing.PublicKey{rootKey.Public()}, TargetsKeys: []signing.PublicKey{w.targets.Public()},
		RootThreshold: 1, TargetsThreshold: 1, Snapshot: w.s.OnlineKeys.Snapshot.Public(), Timestamp: w.s.OnlineKeys.Timestamp.Public(),
		Expires: time.Now().Add(1000 * time.Hour),
	}, rootKey)
	w.ok(err)
	first, err := signing.NewTargets(time.Now().Add(1000*time.Hour), w.targets)
	w.ok(err)
	w.ok(w.s.InitTrust(w.ctx, root, first))
}

// draft uploads an image of some bytes as a release.
func (w *world) draft(version string, raw []byte) (ota.Release, []byte, error) {
	w.t.Helper()
	return w.drafted(version, raw, 0)
}

// drafted is draft with a security version.
func (w *world) drafted(version string, raw []byte, security int64) (ota.Release, []byte, error) {
	w.t.Helper()
	var object bytes.Buffer
	ix, err := image.Encode(w.ctx, &object, bytes.NewReader(raw), image.EncodeOptions{Params: image.DefaultParams(int64(len(raw))), Level: 1})
	w.ok(err)
	index, err := ix.MarshalBinary()
	w.ok(err)
	digest := hex.EncodeToString(ix.RawDigest[:])
	if _, err := w.s.UploadImage(w.ctx, digest, &object); err != nil && !errors.Is(err, fleet.ErrConflict) {
		w.t.Fatal(err)
	}
	m := ota.Manifest{
		Name: w.name, Version: version, HardwareIDs: []string{"rpi4"}, Installer: ota.InstallImage,
		ImageDigest: digest, ImageSize: ix.RawSize, ObjectSize: ix.ObjectSize(), SecurityVersion: security, MinVersion: w.need,
	}
	if id, err := ota.ParseReleaseID(w.need); err == nil {
		m.MinVersion, m.Requires = "", []ota.ReleaseID{id}
	}
	if w.health != "" {
		m.Health = json.RawMessage(w.health)
	}
	r, err := w.s.CreateRelease(w.ctx, m, index)
	return r, index, err
}

// sign returns the next targets with the release in it.
func (w *world) sign(r ota.Release, index []byte) []byte {
	w.t.Helper()
	info, err := w.s.Trust(w.ctx)
	w.ok(err)
	custom, err := json.Marshal(r.Manifest)
	w.ok(err)
	next, err := signing.AddTarget(info.Targets, signing.Target{
		Path: r.ID().TargetPath(), Length: int64(len(index)), SHA256: sha256.Sum256(index), Custom: custom,
	}, time.Now().Add(1000*time.Hour), w.targets)
	w.ok(err)
	return next
}

func (w *world) release(version string) ota.Release {
	w.t.Helper()
	r, index, err := w.draft(version, []byte("firmware "+version))
	w.ok(err)
	_, signed, err := w.s.PublishTargets(w.ctx, w.sign(r, index))
	w.ok(err)
	if len(signed) != 1 {
		w.t.Fatalf("signed %v", signed)
	}
	return r
}

func (w *world) token(t fleet.EnrollmentToken) [32]byte {
	w.t.Helper()
	_, secret, err := w.s.CreateEnrollmentToken(w.ctx, t)
	w.ok(err)
	return secret
}

func csr(t *testing.T, cn string) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func (w *world) enroll(n int, hardware string) []string {
	w.t.Helper()
	secret := w.token(fleet.EnrollmentToken{Uses: n, Hardware: hardware})
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%03d", hardware, i)
		_, err := w.s.Enroll(w.ctx, fleet.Enrollment{DeviceID: ids[i], Secret: secret, CSR: csr(w.t, ids[i])})
		w.ok(err)
	}
	return ids
}

func (w *world) stages(s string) []ota.Stage {
	w.t.Helper()
	stages, err := ota.ParseStages(s, ota.Gate{Success: 1}, time.Minute)
	w.ok(err)
	return stages
}

// device plays one agent for ever: it asks, installs and reports. outcome says
// how an installation ends.
func (w *world) device(ctx context.Context, id string, outcome func(e ota.Execution) ota.Report) {
	for ctx.Err() == nil {
		if e, err := w.s.StartNext(ctx, id, ota.Starting{}); err == nil {
			<-time.After(10 * time.Second) // virtual: the install
			r := outcome(e)
			r.RolloutID, r.DeviceID, r.Attempt = e.RolloutID, id, e.Attempt
			if _, err := w.s.Report(ctx, r); err != nil && ctx.Err() == nil {
				w.t.Errorf("%s: report: %v", id, err)
			}
		}
		select {
		case <-time.After(7 * time.Second):
		case <-ctx.Done():
		}
	}
}

// run starts engines and devices, and stops them when the rollout has come to
// rest. It returns how it stands.
func (w *world) run(id string, engines int, devices []string, outcome func(ota.Execution) ota.Report) fleet.RolloutView {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.ctx)
	var wg sync.WaitGroup
	for range engines {
		wg.Go(func() { _ = w.s.RunEngine(ctx) })
	}
	for _, d := range devices {
		wg.Go(func() { w.device(ctx, d, outcome) })
	}
	var v fleet.RolloutView
	for range 10_000 {
		<-time.After(time.Second) // virtual
		var err error
		v, err = w.s.Rollout(w.ctx, id)
		w.ok(err)
		w.checkSizes(v)
		if v.State.Terminal() || v.State == ota.RolloutPaused {
			break
		}
	}
	cancel()
	wg.Wait()
	faults, err := w.store.Check(w.ctx)
	w.ok(err)
	for _, f := range faults {
		w.t.Error(f)
	}
	return v
}

func (w *world) checkSizes(v fleet.RolloutView) {
	w.t.Helper()
	target := 0
	for _, s := range v.Stages {
		target = max(target, s.Target)
	}
	if n := v.Progress.Total().Total(); n > target {
		w.t.Fatalf("%d executions, the stages allow %d", n, target)
	}
}

func succeed(ota.Execution) ota.Report { return ota.Report{Status: ota.Succeeded} }

func TestRolloutReachesEveryDeviceByStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		ids := w.enroll(20, "rpi4")
		w.enroll(3, "other")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("10%,50%,100%"), Seed: "x"})
		w.ok(err)
		if v.Population != 20 {
			t.Fatalf("population %d", v.Population)
		}
		v = w.run(v.ID, 2, ids, succeed) // two replicas on one store
		if v.State != ota.RolloutCompleted || v.Progress.Total().Of(ota.ClassSucceeded) != 20 {
			t.Fatalf("%s: %+v", v.State, v.Progress.Total())
		}
		for i, want := range []int{2, 10, 20} {
			if v.Stages[i].Target != want || v.Stages[i].EndedAt.Sub(v.Stages[i].SoakingAt) < time.Minute {
				t.Errorf("stage %d: %+v", i+1, v.Stages[i])
			}
		}
	})
}

func TestCanaryStopsABadRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		ids := w.enroll(20, "rpi4")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{
			Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("10%,100%"), Abort: []ota.AbortRule{{Class: ota.ClassAny}},
		})
		w.ok(err)
		v = w.run(v.ID, 2, ids, func(ota.Execution) ota.Report {
			return ota.Report{Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(ota.ClassRolledBack)}}
		})
		total := v.Progress.Total()
		if v.State != ota.RolloutAborted || total.Total() > 2 || total.Of(ota.ClassRolledBack) < 1 {
			t.Fatalf("%s: %+v", v.State, total)
		}
	})
}

func TestFailedGatePausesAndRepeatRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		ids := w.enroll(10, "rpi4")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("50%,100%")})
		w.ok(err)
		v = w.run(v.ID, 1, ids, func(e ota.Execution) ota.Report {
			if e.DeviceID > "rpi4-003" {
				return ota.Report{Status: ota.Failed}
			}
			return ota.Report{Status: ota.Succeeded}
		})
		if v.State != ota.RolloutPaused || v.Stages[0].State != ota.StageFailed || v.Stages[1].State != ota.StagePending {
			t.Fatalf("%s, stages %s %s", v.State, v.Stages[0].State, v.Stages[1].State)
		}
		failed := v.Progress.Total().Of(ota.ClassFailed)
		if _, err := w.s.ResumeRollout(w.ctx, v.ID, ""); !errors.Is(err, ota.ErrState) {
			t.Fatalf("resumed past a failed stage in silence: %v", err)
		}
		_, err = w.s.ResumeRollout(w.ctx, v.ID, ota.ResumeRepeat)
		w.ok(err)
		var retried atomic.Int64
		v = w.run(v.ID, 1, ids, func(e ota.Execution) ota.Report {
			if e.Attempt == 2 {
				retried.Add(1)
			}
			return ota.Report{Status: ota.Succeeded}
		})
		if v.State != ota.RolloutCompleted || int(retried.Load()) != failed || v.Progress.Total().Total() != 10 {
			t.Fatalf("%s, %d of %d retried, %+v", v.State, retried.Load(), failed, v.Progress.Total())
		}
	})
}

func TestRevokingADeviceLetsItsRolloutGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		ids := w.enroll(4, "rpi4")
		dead := ids[3]
		stages, err := ota.ParseStages("100%", ota.Gate{Success: 0.9}, 0)
		w.ok(err)
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: stages})
		w.ok(err)
		go func() {
			<-time.After(time.Hour) // virtual: the operator gives it up
			if _, err := w.s.RevokeDevice(w.ctx, dead); err != nil {
				t.Error(err)
			}
		}()
		v = w.run(v.ID, 1, ids[:3], succeed)
		if v.State != ota.RolloutCompleted || v.Progress.Total().Finished[ota.ClassNone] != 1 || v.EndedAt.Sub(v.CreatedAt) < time.Hour {
			t.Fatalf("%s after %s: %+v", v.State, v.EndedAt.Sub(v.CreatedAt), v.Progress.Total())
		}
	})
}

func TestPauseAndAbortHoldBackWhatIsQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		ids := w.enroll(5, "rpi4")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%")})
		w.ok(err)
		defer w.background(w.s.RunNotifier)()
		ctx, cancel := context.WithCancel(w.ctx)
		done := make(chan error, 1)
		go func() { done <- w.s.RunEngine(ctx) }()
		synctest.Wait()
		if w.notes.next[ids[0]] == nil {
			t.Fatal("the device was not told of its job")
		}
		_, err = w.s.PauseRollout(w.ctx, v.ID, "lunch", "")
		w.ok(err)
		if _, err := w.s.StartNext(w.ctx, ids[0], ota.Starting{}); !errors.Is(err, fleet.ErrNotFound) {
			t.Fatalf("a paused rollout started a device: %v", err)
		}
		_, err = w.s.ResumeRollout(w.ctx, v.ID, "")
		w.ok(err)
		started, err := w.s.StartNext(w.ctx, ids[0], ota.Starting{})
		w.ok(err)
		_, err = w.s.AbortRollout(w.ctx, v.ID, "wrong colour", "")
		w.ok(err)
		if _, err := w.s.StartNext(w.ctx, ids[1], ota.Starting{}); !errors.Is(err, fleet.ErrNotFound) {
			t.Fatalf("an aborted rollout started a device: %v", err)
		}
		_, err = w.s.Report(w.ctx, ota.Report{RolloutID: started.RolloutID, DeviceID: ids[0], Status: ota.Succeeded})
		w.ok(err)
		<-time.After(time.Second) // the engine looks so often at the most
		synctest.Wait()
		v, err = w.s.Rollout(w.ctx, v.ID)
		w.ok(err)
		if v.State != ota.RolloutAborted || v.Progress.Total().Finished[ota.ClassNone] != 4 {
			t.Fatalf("%s: %+v", v.State, v.Progress.Total())
		}
		cancel()
		w.ok(<-done)
	})
}

func TestPlanSaysWhoAndWhyNot(t *testing.T) {
	w := newWorld(t)
	r := w.release("1.0")
	ids := w.enroll(10, "rpi4")
	w.enroll(4, "other")
	_, err := w.s.RevokeDevice(w.ctx, ids[0])
	w.ok(err)
	if len(w.notes.ended()) != 1 {
		t.Error("the revoked device keeps its session")
	}
	u := shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"name": "gw", "version": "1.0", "digest": r.ImageDigest}})
	_, err = w.s.UpdateShadow(w.ctx, ids[1], "", u)
	w.ok(err)
	plan := ota.Rollout{Release: r.ID(), Selector: `NOT id = "rpi4-002"`, Stages: w.stages("25%,100%"), Seed: "s"}
	p, err := w.s.PlanRollout(w.ctx, plan)
	w.ok(err)
	got := map[string]int{}
	for _, e := range p.Excluded {
		got[e.Reason] = e.Devices
	}
	if p.Population != 7 || got["revoked"] != 1 || got["current"] != 1 || got["not-selected"] != 1 || got["hardware"] != 4 {
		t.Fatalf("population %d, excluded %v", p.Population, got)
	}
	again, err := w.s.PlanRollout(w.ctx, plan)
	w.ok(err)
	if p.Stages[0].Devices != 2 || fmt.Sprint(p.Stages) != fmt.Sprint(again.Stages) || len(p.Stages[1].Sample) != 5 {
		t.Fatalf("stages %+v, again %+v", p.Stages, again.Stages)
	}
	plan.Stages = w.stages("1%,2%,50%,100%") // the second adds nobody, and is skipped
	for i := range plan.Stages {
		plan.Stages[i].Soak = time.Hour
	}
	if p, err = w.s.PlanRollout(w.ctx, plan); err != nil || p.Stages[1].Devices != 0 || p.Duration != 3*time.Hour {
		t.Fatalf("takes %s, stages %+v: %v", p.Duration, p.Stages, err)
	}
	if all, err := w.s.Rollouts(w.ctx, ""); err != nil || len(all) != 0 {
		t.Fatalf("planning made %d rollouts, %v", len(all), err)
	}
}

func TestRolloutRefusals(t *testing.T) {
	w := newWorld(t)
	w.release("1.0")
	_, _, err := w.draft("2.0", []byte("not signed"))
	w.ok(err)
	gw := func(v string) ota.ReleaseID { return ota.ReleaseID{Name: "gw", Version: v} }
	if _, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: gw("1.0"), Stages: w.stages("100%")}); !errors.Is(err, fleet.ErrNoDevices) {
		t.Errorf("no devices: %v", err)
	}
	w.enroll(1, "rpi4")
	for name, c := range map[string]struct {
		r    ota.Rollout
		want error
	}{
		"unsigned":   {ota.Rollout{Release: gw("2.0"), Stages: w.stages("100%")}, fleet.ErrUnsigned},
		"unknown":    {ota.Rollout{Release: gw("9"), Stages: w.stages("100%")}, fleet.ErrNotFound},
		"no stages":  {ota.Rollout{Release: gw("1.0")}, fleet.ErrInvalid},
		"no matches": {ota.Rollout{Release: gw("1.0"), Stages: w.stages("100%"), Selector: `id = "x"`}, fleet.ErrNoDevices},
	} {
		if _, err := w.s.CreateRollout(w.ctx, c.r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: gw("1.0"), Stages: w.stages("100%"), Selector: `id = `}); err == nil {
		t.Error("a selector that does not parse was taken")
	}
	if all, err := w.s.Rollouts(w.ctx, ""); err != nil || len(all) != 0 {
		t.Fatalf("a refused plan left %d rollouts, %v", len(all), err)
	}
}

func TestUploadsAreNotBelieved(t *testing.T) {
	w := newWorld(t)
	raw := bytes.Repeat([]byte("firmware"), 10_000)
	r, index, err := w.draft("1.0", raw)
	w.ok(err)
	if again, _, err := w.draft("1.0", raw); err != nil || again.CreatedAt != r.CreatedAt {
		t.Errorf("the same content again: %v", err)
	}
	if _, _, err := w.draft("1.0", []byte("other")); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("other content under the version: %v", err)
	}
	// An upload can not touch an object that a release stands on.
	if _, err := w.s.UploadImage(w.ctx, r.ImageDigest, bytes.NewReader(nil)); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("upload over a release's object: %v", err)
	}
	// A damaged object makes no release.
	var object bytes.Buffer
	ix, err := image.Encode(w.ctx, &object, bytes.NewReader([]byte("third")), image.EncodeOptions{Params: image.DefaultParams(5), Level: 1})
	w.ok(err)
	third, err := ix.MarshalBinary()
	w.ok(err)
	damaged := object.Bytes()
	damaged[len(damaged)-1] ^= 1
	digest := hex.EncodeToString(ix.RawDigest[:])
	_, err = w.s.UploadImage(w.ctx, digest, bytes.NewReader(damaged))
	w.ok(err)
	m := r.Manifest
	m.Version, m.ImageDigest, m.ImageSize, m.ObjectSize = "3.0", digest, ix.RawSize, ix.ObjectSize()
	if _, err := w.s.CreateRelease(w.ctx, m, third); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("damaged object: %v", err)
	}
	if _, err := w.s.CreateRelease(w.ctx, m, index); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("index of another image: %v", err)
	}
	failing := io.MultiReader(bytes.NewReader(damaged[:2]), errReader{})
	if _, err := w.s.UploadImage(w.ctx, digest, failing); err == nil {
		t.Error("an upload that broke off was stored")
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestTrustIsTheOperators(t *testing.T) {
	w := newWorld(t)
	r, index, err := w.draft("1.0", []byte("firmware"))
	w.ok(err)
	good := w.sign(r, index)
	operator := w.targets
	w.targets = signing.TargetsKey{Signer: w.key()}
	if _, _, err := w.s.PublishTargets(w.ctx, w.sign(r, index)); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("targets of a stranger: %v", err)
	}
	w.targets = operator
	other := r
	other.SecurityVersion = 7
	if _, _, err := w.s.PublishTargets(w.ctx, w.sign(other, index)); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("targets that differ from the release: %v", err)
	}
	other = r
	other.Version = "9.9"
	if _, _, err := w.s.PublishTargets(w.ctx, w.sign(other, index)); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("targets of no release: %v", err)
	}
	_, _, err = w.s.PublishTargets(w.ctx, good)
	w.ok(err)
	if _, _, err := w.s.PublishTargets(w.ctx, good); !errors.Is(err, fleet.ErrStale) {
		t.Errorf("the same version again: %v", err)
	}
	info, err := w.s.Trust(w.ctx)
	w.ok(err)
	if err := w.s.InitTrust(w.ctx, info.Root, info.Targets); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a second root: %v", err)
	}
	before, err := w.s.MetadataFile(w.ctx, fleet.RoleTimestamp, 0)
	w.ok(err)
	w.ok(w.s.RefreshTrust(w.ctx))
	after, err := w.s.MetadataFile(w.ctx, fleet.RoleTimestamp, 0)
	w.ok(err)
	if bytes.Equal(before, after) {
		t.Error("the timestamp was not signed anew")
	}
}

func TestEnrollmentRefusals(t *testing.T) {
	w := newWorld(t)
	secret := w.token(fleet.EnrollmentToken{Uses: 1, DeviceGlob: "gw-*", Hardware: "rpi4", Tags: map[string]string{"site": "paris"}})
	enroll := func(id string, secret [32]byte, csr []byte) (fleet.Enrolled, error) {
		return w.s.Enroll(w.ctx, fleet.Enrollment{DeviceID: id, Secret: secret, CSR: csr})
	}
	for name, c := range map[string]struct {
		id   string
		csr  []byte
		want error
	}{
		"wildcard": {"+", csr(t, "+"), fleet.ErrInvalid}, "slash": {"gw-1/x", csr(t, "gw-1/x"), fleet.ErrInvalid},
		"reserved": {fleet.ReservedDeviceID, csr(t, "otad"), fleet.ErrInvalid}, "replica": {"otad-2", csr(t, "otad-2"), fleet.ErrInvalid}, "other name": {"gw-1", csr(t, "gw-2"), fleet.ErrInvalid},
		"no request": {"gw-1", []byte("x"), fleet.ErrInvalid}, "glob": {"cam-1", csr(t, "cam-1"), fleet.ErrDenied},
	} {
		if _, err := enroll(c.id, secret, c.csr); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := enroll("gw-1", [32]byte{1}, csr(t, "gw-1")); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("unknown token: %v", err)
	}
	mine := csr(t, "gw-1")
	done, err := enroll("gw-1", secret, mine)
	w.ok(err)
	if done.Device.Hardware != "rpi4" || done.Device.Tags["site"] != "paris" || len(done.Root) == 0 {
		t.Fatalf("%+v", done.Device)
	}
	if _, err := enroll("gw-1", secret, mine); err != nil {
		t.Errorf("the same key again: %v", err)
	}
	if _, err := enroll("gw-1", secret, csr(t, "gw-1")); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("another key: %v", err)
	}
	if _, err := enroll("gw-2", secret, csr(t, "gw-2")); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("used-up token: %v", err)
	}
	block, _ := pem.Decode(done.Certificate)
	cert, err := x509.ParseCertificate(block.Bytes)
	w.ok(err)
	if _, err := w.s.AdmitCertificate(w.ctx, cert); err != nil {
		t.Errorf("its certificate: %v", err)
	}
	if chain, err := w.s.Renew(w.ctx, "gw-1", mine); err != nil || len(chain) == 0 {
		t.Errorf("renewal: %v", err)
	}
	if _, err := w.s.Renew(w.ctx, "gw-1", csr(t, "gw-1")); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("renewal with another key: %v", err)
	}
	_, err = w.s.RevokeDevice(w.ctx, "gw-1")
	w.ok(err)
	if _, err := w.s.AdmitCertificate(w.ctx, cert); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("revoked: %v", err)
	}
}

func TestAPITokens(t *testing.T) {
	w := newWorld(t)
	token, err := w.s.CreateAPIToken(w.ctx, "ci")
	w.ok(err)
	if got, err := w.s.Authenticate(w.ctx, token); err != nil || got.Name != "ci" {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "otat_", token[:len(token)-1], token + "A", "x" + token, "otat_00_" + token[len(token)-43:]} {
		if _, err := w.s.Authenticate(w.ctx, bad); !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
