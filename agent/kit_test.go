package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/boot/file"
	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/agent/disk/disktest"
	imageinstall "github.com/otad/otad/agent/install/image"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

const hardware = "pi4"

// repo is a whole server: what operators signed, what they uploaded, one job,
// and the reports that came back. It is the agent's Source and Transport.
type repo struct {
	tb        testing.TB
	root      signing.RootKey
	operator  signing.TargetsKey
	online    signing.Online
	factory   []byte
	now       time.Time
	wake, up  chan struct{}
	verdicted chan struct{} // closed and made anew on each verdict

	mu       sync.Mutex
	targets  []byte
	snapshot []byte
	stamp    []byte
	files    map[string][]byte // metadata and targets by name
	objects  map[string][]byte // by raw digest
	raw      map[string][]byte // by raw digest
	releases map[ota.ReleaseID]ota.Manifest
	job      *agent.Job
	over     map[string]ota.Status // executions that ended, by job and attempt
	looks    int
	reports  []agent.Report
	events   []agent.Event
	eventLog string
	eventSeq int64
	loseAck  bool
	shadow   map[string]any
	sent     int64 // image bytes handed out
	opened   []int64
	offline  bool
	// announcing is asked before an announcement is taken, with the lock held.
	announcing   func() error
	onStep       map[string]func()                          // called with the lock held, when the step is reported
	announced    bool                                       // one was taken
	loseAnnounce int                                        // so many answers to announcements that were taken do not arrive
	shadows      int                                        // times the shadow was reported
	chop         int                                        // bytes after which an image transfer breaks; 0: never
	twist        func(name string, b []byte) []byte         // damages what is fetched
	body         func(digest string, r io.Reader) io.Reader // replaces image bodies
}

func newKey(tb testing.TB) signing.Key {
	k, err := signing.NewKey()
	must(tb, err)
	return k
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func newRepo(tb testing.TB) *repo {
	r := &repo{
		tb: tb, root: signing.RootKey{Signer: newKey(tb)}, operator: signing.TargetsKey{Signer: newKey(tb)},
		online: signing.Online{Snapshot: signing.OnlineKey{Signer: newKey(tb)}, Timestamp: signing.OnlineKey{Signer: newKey(tb)}},
		now:    time.Now(), wake: make(chan struct{}, 1), verdicted: make(chan struct{}),
		files: map[string][]byte{}, objects: map[string][]byte{}, raw: map[string][]byte{}, releases: map[ota.ReleaseID]ota.Manifest{},
		shadow: map[string]any{}, over: map[string]ota.Status{}, up: make(chan struct{}, 1),
	}
	var err error
	r.factory, err = signing.NewRoot(r.spec(), r.root)
	must(tb, err)
	r.targets, err = signing.NewTargets(r.now.Add(1000*time.Hour), r.operator)
	must(tb, err)
	r.publish()
	return r
}

func (r *repo) spec() signing.RootSpec {
	return signing.RootSpec{
		RootKeys: []signing.PublicKey{r.root.Public()}, RootThreshold: 1,
		TargetsKeys: []signing.PublicKey{r.operator.Public()}, TargetsThreshold: 1,
		Snapshot: r.online.Snapshot.Public(), Timestamp: r.online.Timestamp.Public(),
		Expires: r.now.Add(1000 * time.Hour), Issued: r.now.Add(-time.Hour),
	}
}

func (r *repo) publish() {
	var err error
	r.snapshot, r.stamp, err = r.online.Publish(r.snapshot, r.stamp, r.targets, r.now)
	must(r.tb, err)
	for kind, b := range map[string][]byte{"snapshot": r.snapshot, "targets": r.targets} {
		v, err := signing.Version(b)
		must(r.tb, err)
		r.files[fmt.Sprintf("%d.%s.json", v, kind)] = b
	}
	r.files["timestamp.json"] = r.stamp
}

// release uploads and signs an image; edit may change its manifest.
func (r *repo) release(version string, raw []byte, edit func(*ota.Manifest)) ota.Manifest {
	r.tb.Helper()
	var object bytes.Buffer
	ix, err := image.Encode(context.Background(), &object, bytes.NewReader(raw), image.EncodeOptions{Level: 1})
	must(r.tb, err)
	index, err := ix.MarshalBinary()
	must(r.tb, err)
	m := ota.Manifest{
		Name: "gateway", Version: version, HardwareIDs: []string{hardware}, Installer: ota.InstallImage,
		ImageDigest: hex.EncodeToString(ix.RawDigest[:]), ImageSize: ix.RawSize, ObjectSize: ix.ObjectSize(),
	}
	if edit != nil {
		edit(&m)
	}
	custom, err := json.Marshal(m)
	must(r.tb, err)
	id := ota.ReleaseID{Name: "gateway", Version: version}
	t := signing.Target{Path: id.TargetPath(), Length: int64(len(index)), SHA256: sha256.Sum256(index), Custom: custom}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.targets, err = signing.AddTarget(r.targets, t, r.now.Add(1000*time.Hour), r.operator)
	must(r.tb, err)
	r.publish()
	r.files[t.Path] = index
	r.objects[hex.EncodeToString(ix.RawDigest[:])] = object.Bytes()
	r.raw[hex.EncodeToString(ix.RawDigest[:])] = raw
	r.releases[id] = m
	return m
}

// order makes a job, replacing the one before.
func (r *repo) order(id, version string, attempt int) {
	r.mu.Lock()
	delete(r.over, keyOf(id, attempt))
	r.job = &agent.Job{
		ID: id, Attempt: attempt, Status: ota.Queued, Version: 1,
		Document: ota.NewJobDocument(ota.ReleaseID{Name: "gateway", Version: version}, attempt),
	}
	r.mu.Unlock()
	r.nudge()
}

func (r *repo) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *repo) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// verdicts are the distinct terminal reports on an attempt.
func (r *repo) verdicts(job string, attempt int) []agent.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []agent.Report
	seen := map[int64]bool{}
	for _, p := range r.reports {
		if p.JobID == job && p.Attempt == attempt && p.Status.Terminal() && !seen[p.Seq] {
			seen[p.Seq] = true
			out = append(out, p)
		}
	}
	return out
}

func (r *repo) Next(context.Context) (agent.Job, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.offline {
		return agent.Job{}, false, agent.ErrUnreachable
	}
	if r.job == nil {
		return agent.Job{}, false, nil
	}
	return *r.job, true, nil
}

func keyOf(job string, attempt int) string { return fmt.Sprintf("%s#%d", job, attempt) }

// cancel ends the execution as an abort does, and says so.
func (r *repo) cancel() {
	r.set(func() {
		if r.job != nil {
			r.over[keyOf(r.job.ID, r.job.Attempt)], r.job = ota.Canceled, nil
		}
	})
	r.nudge()
}

// edit changes the document of the job, and says so.
func (r *repo) edit(f func(*ota.JobDocument)) {
	r.set(func() { f(&r.job.Document) })
	r.nudge()
}

func (r *repo) Look(_ context.Context, job string, attempt int) (agent.Job, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looks++
	if r.offline {
		return agent.Job{}, agent.ErrUnreachable
	}
	if s, over := r.over[keyOf(job, attempt)]; over {
		return agent.Job{ID: job, Attempt: attempt, Status: s, Version: 9}, nil
	}
	if r.job == nil || r.job.ID != job || r.job.Attempt != attempt {
		return agent.Job{}, agent.ErrEnded
	}
	return *r.job, nil
}

func (r *repo) Announce(_ context.Context, p agent.Report, version int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.announcing != nil {
		if err := r.announcing(); err != nil {
			return err
		}
	}
	err := r.take(p, version)
	r.announced = r.announced || err == nil
	if err == nil && r.loseAnnounce > 0 {
		r.loseAnnounce--
		return agent.ErrUnreachable
	}
	return err
}

func (r *repo) Connected() <-chan struct{} { return r.up }

func (r *repo) Report(_ context.Context, p agent.Report) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.take(p, 0)
}

// take is what the server does with a report; version 0: of any.
func (r *repo) take(p agent.Report, version int64) error {
	if r.offline {
		return agent.ErrUnreachable
	}
	key, mine := keyOf(p.JobID, p.Attempt), r.job != nil && r.job.ID == p.JobID && r.job.Attempt == p.Attempt
	_, over := r.over[key]
	switch {
	case p.Status == ota.Queued && mine && r.job.Status != ota.Queued:
		return agent.ErrHeld
	case version != 0 && !over && mine && r.job.Version != version:
		return agent.ErrChanged
	}
	r.reports = append(r.reports, p)
	if over {
		return agent.ErrEnded
	}
	if mine {
		r.job.Status = p.Status
		r.job.Version++
	}
	if f := r.onStep[p.Details[ota.DetailStep]]; f != nil {
		f()
	}
	if p.Status.Terminal() {
		if mine {
			r.over[key], r.job = p.Status, nil
		}
		close(r.verdicted)
		r.verdicted = make(chan struct{})
	}
	return nil
}

func (r *repo) ReportShadow(_ context.Context, reported map[string]any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.offline {
		return agent.ErrUnreachable
	}
	r.shadow = reported
	r.shadows++
	return nil
}

// SendEvents stores as the server does: what is behind the last number.
func (r *repo) SendEvents(_ context.Context, log string, events []agent.Event) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.offline {
		return 0, agent.ErrUnreachable
	}
	if r.eventLog != log {
		r.eventLog, r.eventSeq = log, 0
	}
	for _, e := range events {
		if e.Seq > r.eventSeq {
			r.events, r.eventSeq = append(r.events, e), e.Seq
		}
	}
	if r.loseAck { // the answer does not arrive
		r.loseAck = false
		return 0, agent.ErrUnreachable
	}
	return r.eventSeq, nil
}

func (r *repo) Wake() <-chan struct{} { return r.wake }

func (r *repo) get(name string, limit int64) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.offline {
		return nil, agent.ErrUnreachable
	}
	b, ok := r.files[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, agent.ErrNoSuchFile)
	}
	if r.twist != nil {
		b = r.twist(name, bytes.Clone(b))
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has over %d bytes", name, limit)
	}
	return b, nil
}

func (r *repo) Metadata(_ context.Context, name string, limit int64) ([]byte, error) {
	return r.get(name, limit)
}

func (r *repo) Target(_ context.Context, path string, _ [32]byte, limit int64) ([]byte, error) {
	return r.get(path, limit)
}

func (r *repo) Image(ctx context.Context, digest string, offset, _ int64) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.offline {
		return nil, agent.ErrUnreachable
	}
	b, ok := r.objects[digest]
	if !ok {
		return nil, agent.ErrNoSuchFile
	}
	r.opened = append(r.opened, offset)
	if r.twist != nil {
		b = r.twist("image", bytes.Clone(b))
	}
	var body io.Reader = bytes.NewReader(b[offset:])
	if r.chop > 0 {
		body = io.MultiReader(io.LimitReader(body, int64(r.chop)), failing{})
	}
	if r.body != nil {
		body = r.body(digest, body)
	}
	return io.NopCloser(&metered{ctx: ctx, r: r, in: body}), nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, agent.ErrUnreachable }

type metered struct {
	ctx context.Context
	r   *repo
	in  io.Reader
}

func (m *metered) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.in.Read(p)
	m.r.set(func() { m.r.sent += int64(n) })
	return n, err
}

// noise is an image that does not compress, so that its object is as long.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = rnd.Read(b)
	return b
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// healthFunc is a health port that a test answers.
type healthFunc func(ctx context.Context, image string) error

func (healthFunc) Deadline(contract []byte) (time.Duration, error) {
	if bytes.Contains(contract, []byte("nonsense")) {
		return 0, errors.New("invalid health contract: nonsense")
	}
	return time.Minute, nil
}

func (f healthFunc) Check(ctx context.Context, _ []byte, t agent.Trial) error { return f(ctx, t.Image) }

func healthy(context.Context, string) error { return nil }

// device is one device: a disk that outlives its agents.
type device struct {
	tb     testing.TB
	repo   *repo
	fs     disk.FS
	dir    string
	health healthFunc
	edit   func(*agent.Config)
	boots  int
	onBoot func(agent.BootFacts)
}

func newDevice(tb testing.TB, r *repo, factoryImage []byte) *device {
	d := &device{tb: tb, repo: r, fs: disktest.NewMem(), dir: "/var/otad", health: healthy}
	if factoryImage != nil {
		_, err := file.Provision(file.Config{Dir: d.dir + "/boot", FS: d.fs}, bytes.NewReader(factoryImage),
			agent.SlotInfo{Name: "gateway", Version: "factory"})
		must(tb, err)
	}
	return d
}

// life boots once and runs until ctx ends or the agent does.
func (d *device) life(ctx context.Context) error {
	b, err := file.Open(file.Config{Dir: d.dir + "/boot", FS: d.fs})
	if err != nil {
		return err
	}
	defer b.Close()
	d.boots++
	if d.onBoot != nil {
		facts, err := b.Facts()
		if err != nil {
			return err
		}
		d.onBoot(facts)
	}
	cfg := agent.Config{
		Dir: d.dir, DeviceID: "dev-1", Hardware: hardware, FactoryRoot: d.repo.factory,
		Transport: d.repo, Source: d.repo, Boot: b, Health: d.health,
		Installers: map[string]agent.Installer{ota.InstallImage: imageinstall.Installer{}},
		FS:         d.fs, Jitter: func(d time.Duration) time.Duration { return min(d, 5*time.Millisecond) },
		Now: func() time.Time { return d.repo.now.Add(time.Minute) },
	}
	if d.edit != nil {
		d.edit(&cfg)
	}
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// live boots again and again until ctx ends; an error other than a reboot is
// returned.
func (d *device) live(ctx context.Context) error {
	for {
		if err := d.life(ctx); !errors.Is(err, agent.ErrReboot) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// until runs the device until the attempt at the job has a verdict.
func (d *device) until(job string, attempt int) agent.Report {
	d.tb.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- d.live(ctx) }()
	for {
		var again chan struct{}
		d.repo.set(func() { again = d.repo.verdicted })
		if v := d.repo.verdicts(job, attempt); len(v) > 0 {
			stop()
			must(d.tb, <-ended)
			return v[0]
		}
		select {
		case <-again:
		case err := <-ended:
			d.tb.Fatalf("no verdict on job %s: %v", job, err)
		}
	}
}

// running boots once more and returns what then runs.
func (d *device) running() agent.SlotInfo {
	d.tb.Helper()
	b, err := file.Open(file.Config{Dir: d.dir + "/boot", FS: d.fs})
	must(d.tb, err)
	defer b.Close()
	facts, err := b.Facts()
	must(d.tb, err)
	return facts.Slots[facts.Active]
}

// changed is closed on the next verdict.
func (r *repo) changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.verdicted
}

// waitStatus waits until the agent says of itself what ok looks for.
func (d *device) waitStatus(ok func(agent.Status) bool) {
	d.tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for {
		var s agent.Status
		if b, err := disk.ReadFile(d.fs, d.dir+"/status.json", 1<<20); err == nil && json.Unmarshal(b, &s) == nil && ok(s) {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			d.tb.Fatalf("status stays %+v", s)
		}
	}
}

// slotImage is the content of a slot, nil when there is none.
func (d *device) slotImage(slot string) []byte {
	b, err := disk.ReadFile(d.fs, d.dir+"/boot/slots/"+slot+"/image", 1<<30)
	if err != nil {
		return nil
	}
	return b
}

func expect(tb testing.TB, r agent.Report, status ota.Status, reason string) {
	tb.Helper()
	if r.Status != status || !strings.Contains(r.Details[ota.DetailReason], reason) {
		tb.Fatalf("verdict %s %v, want %s because %q", r.Status, r.Details, status, reason)
	}
}
