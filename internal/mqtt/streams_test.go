package mqtt_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/fxamacker/cbor/v2"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/blob/dir"
	"github.com/otad/otad/internal/blob/s3"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/broker"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/internal/testserver"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
)

// site is a server with one release and a job for each of its devices.
type site struct {
	t     *testing.T
	store fleet.Store
	fleet *fleet.Service
	pub   *mqtt.Publisher
	raw   []byte
	files map[int][]byte // by the id in the stream
}

func newSite(t *testing.T, blobs blob.Store, raw []byte, devices ...string) *site {
	t.Helper()
	s := &site{t: t, store: memstore.New(), pub: &mqtt.Publisher{Now: time.Now}, raw: raw, files: map[int][]byte{}}
	s.fleet = fleet.New(fleet.Config{Store: s.store, Blobs: blobs, Publisher: s.pub, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	s.release()
	_, secret, err := s.fleet.CreateEnrollmentToken(t.Context(), fleet.EnrollmentToken{Uses: len(devices)})
	s.ok(err)
	stages, err := ota.ParseStages("100%", ota.Gate{Success: 1}, 0)
	s.ok(err)
	now := time.Now()
	r := ota.Rollout{ID: "r-1", Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Seed: "s", Stages: stages, State: ota.RolloutRunning, Population: len(devices), CreatedAt: now, ArmedAt: now}
	s.ok(s.store.CreateRollout(t.Context(), r))
	r, err = s.store.Rollout(t.Context(), "r-1")
	s.ok(err)
	r.Stages[0].State, r.Stages[0].Target, r.Stages[0].OpenedAt = ota.StageOpen, len(devices), now
	step := fleet.Advance{Rollout: r, Now: now}
	for _, id := range devices {
		_, err := s.store.Enroll(t.Context(), fleet.Device{ID: id, Hardware: "rpi4", KeyFingerprint: strings.Repeat("a", 64), CreatedAt: now}, hash(secret), now)
		s.ok(err)
		step.Insert = append(step.Insert, ota.Execution{
			RolloutID: "r-1", DeviceID: id, Release: r.Release, Attempt: 1, Status: ota.Queued, Version: 1, QueuedAt: now, UpdatedAt: now,
		})
	}
	s.ok(s.store.Advance(t.Context(), step))
	return s
}

// release stores the image as a release, and metadata beside it.
func (s *site) release() {
	s.t.Helper()
	ctx := s.t.Context()
	var object bytes.Buffer
	ix, err := image.Encode(ctx, &object, bytes.NewReader(s.raw), image.EncodeOptions{Level: 1})
	s.ok(err)
	index, err := ix.MarshalBinary()
	s.ok(err)
	digest := hex.EncodeToString(ix.RawDigest[:])
	_, err = s.fleet.UploadImage(ctx, digest, bytes.NewReader(object.Bytes()))
	s.ok(err)
	_, err = s.fleet.CreateRelease(ctx, ota.Manifest{
		Name: "gw", Version: "1.0", HardwareIDs: []string{"rpi4"}, Installer: ota.InstallImage,
		ImageDigest: digest, ImageSize: ix.RawSize, ObjectSize: ix.ObjectSize(),
	}, index)
	s.ok(err)
	s.files[fleet.StreamImage], s.files[fleet.StreamIndex], s.files[fleet.StreamObject] = s.raw, index, object.Bytes()
	for _, f := range []struct {
		id      int
		role    fleet.Role
		version int64
	}{
		{fleet.StreamRoots + 1, fleet.RoleRoot, 1}, {fleet.StreamRoots + 2, fleet.RoleRoot, 2}, {fleet.StreamTargets, fleet.RoleTargets, 1},
		{fleet.StreamSnapshot, fleet.RoleSnapshot, 1}, {fleet.StreamTimestamp, fleet.RoleTimestamp, 1},
	} {
		s.files[f.id] = fmt.Appendf(nil, "%s of version %d %s", f.role, f.version, strings.Repeat("x", 300*f.id))
		s.ok(s.store.PublishMetadata(ctx, []fleet.Metadata{{Role: f.role, Version: f.version, Bytes: s.files[f.id]}}, nil, time.Now()))
	}
}

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) endpoint(b mqtt.Broker) *mqtt.Endpoint {
	s.pub.Broker = b
	return mqtt.NewEndpoint(b, s.fleet, slog.New(slog.DiscardHandler), time.Now)
}

func directory(t *testing.T) blob.Store {
	t.Helper()
	b, err := dir.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sample is compressible and not periodic.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.UintN(16))
	}
	return b
}

const streams = "$aws/things/gw-1/streams/r-1/"

func TestStreamFilesAreThoseOfTheRelease(t *testing.T) {
	stores := map[string]func(*testing.T) blob.Store{"dir": directory, "s3": func(t *testing.T) blob.Store {
		srv := testserver.VersityGW(t)
		b, err := s3.New(t.Context(), s3.Config{
			Endpoint: srv.Endpoint, AccessKey: srv.AccessKey, SecretKey: srv.SecretKey, Region: srv.Region, Bucket: "streams", CreateBucket: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, open(t), sample(300<<10+17), "gw-1")
			f := &fixture{t: t, out: &outgoing{}}
			f.e = s.endpoint(f.out)
			sent := f.send(streams+"describe/json", `{"c":"t"}`)
			var d struct {
				C string
				S int
				D string
				R []struct{ F, Z int }
			}
			s.ok(json.Unmarshal(sent[0].Payload, &d))
			if sent[0].Topic != streams+"description/json" || d.C != "t" || d.S != 1 || d.D == "" || len(d.R) != len(s.files) {
				t.Fatalf("%s", topics(sent))
			}
			for _, file := range d.R {
				if file.Z != len(s.files[file.F]) {
					t.Errorf("file %d has %d bytes, described as %d", file.F, len(s.files[file.F]), file.Z)
				}
				var got []byte
				for len(got) < file.Z {
					for _, m := range f.send(streams+"get/cbor", string(cborOf(t, map[string]any{"f": file.F, "l": 5000, "o": len(got) / 5000}))) {
						var block struct {
							F int    `cbor:"f"`
							L int    `cbor:"l"`
							I int    `cbor:"i"`
							P []byte `cbor:"p"`
						}
						s.ok(cbor.Unmarshal(m.Payload, &block))
						if m.Topic != streams+"data/cbor" || m.QoS != 0 || block.F != file.F || block.L != len(block.P) || block.I != len(got)/5000 {
							t.Fatalf("%s: block %d of file %d, %d bytes, QoS %d", m.Topic, block.I, block.F, block.L, m.QoS)
						}
						got = append(got, block.P...)
					}
				}
				if !bytes.Equal(got, s.files[file.F]) {
					t.Errorf("file %d differs", file.F)
				}
			}
		})
	}
}

func cborOf(t *testing.T, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStreamsAreTheOwnJobsOnly(t *testing.T) {
	s := newSite(t, directory(t), sample(10_000), "gw-1", "gw-2")
	f := &fixture{t: t, out: &outgoing{}}
	f.e = s.endpoint(f.out)
	rejected := func(topic, payload, code string) {
		t.Helper()
		sent := f.send(topic, payload)
		var got struct{ O, M, C string }
		if len(sent) != 1 || json.Unmarshal(sent[0].Payload, &got) != nil || got.O != code || got.M == "" || got.C != "t" ||
			!strings.HasSuffix(sent[0].Topic, "/rejected/json") {
			t.Errorf("%s %s: %s, want %s", topic, payload, topics(sent), code)
		}
	}
	get := `{"c":"t","f":0,"l":256}`
	for _, op := range []string{"describe", "get"} {
		rejected("$aws/things/gw-1/streams/r-2/"+op+"/json", get, "ResourceNotFound")
		rejected("$aws/things/gw-3/streams/r-1/"+op+"/json", get, "ResourceNotFound")
		rejected("$aws/things/gw-1/streams/a b/"+op+"/json", get, "InvalidTopic")
	}
	rejected(streams+"get/json", `{"c":"t","f":9,"l":256}`, "ResourceNotFound")
	rejected(streams+"get/json", `{"c":"t","f":18,"l":256}`, "ResourceNotFound") // root version 3
	rejected(streams+"get/json", `{"c":"t","f":256,"l":256}`, "InvalidRequest")
	rejected(streams+"get/json", `{"c":"t","f":-1,"l":256}`, "InvalidRequest")
	_, err := s.fleet.Report(t.Context(), ota.Report{RolloutID: "r-1", DeviceID: "gw-1", Status: ota.Succeeded})
	s.ok(err)
	rejected(streams+"get/json", get, "Unauthorized")
	rejected(streams+"describe/json", get, "Unauthorized")
	if sent := f.send("$aws/things/gw-2/streams/r-1/get/json", get); len(sent) != 40 {
		t.Errorf("the other device got %d blocks", len(sent))
	}
	for _, topic := range []string{streams + "get/xml", streams + "data/json", streams + "rejected/json", "$aws/things/gw-1/streams/r-1/get"} {
		if sent := f.send(topic, get); len(sent) > 0 {
			t.Errorf("%s: answered %s", topic, topics(sent))
		}
	}
}

func TestDamagedImageIsAnInternalError(t *testing.T) {
	blobs := directory(t)
	s := newSite(t, blobs, sample(10_000), "gw-1")
	object := bytes.Clone(s.files[fleet.StreamObject])
	object[len(object)/2] ^= 1
	_, err := blobs.Put(t.Context(), "images/"+hexSum(s.raw), bytes.NewReader(object), 1<<20)
	s.ok(err)
	f := &fixture{t: t, out: &outgoing{}}
	f.e = s.endpoint(f.out)
	sent := f.send(streams+"get/json", `{"f":0,"l":8192}`)
	if len(sent) != 1 || !strings.Contains(string(sent[0].Payload), `"InternalError"`) {
		t.Errorf("%s", topics(sent))
	}
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// stuck is storage that answers no read from hold until held is closed.
type stuck struct {
	blob.Store
	held chan struct{} // nil: it answers

	mu          sync.Mutex
	reads, most int
}

func (s *stuck) hold() { s.held, s.most = make(chan struct{}), 0 }

func (s *stuck) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.reads++
	s.most = max(s.most, s.reads)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.reads--
		s.mu.Unlock()
	}()
	if s.held != nil {
		select {
		case <-s.held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.Store.Open(ctx, key, offset, length)
}

// silent is a broker that takes what is published.
type silent struct {
	mu   sync.Mutex
	sent map[string]int // by topic
}

func (b *silent) Subscribe(context.Context, []string, mqtt.Handler) error { return nil }
func (b *silent) Publish(_ context.Context, m mqtt.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sent == nil {
		b.sent = map[string]int{}
	}
	b.sent[m.Topic]++
	return nil
}
func (b *silent) Reply(ctx context.Context, _, answer mqtt.Message) error {
	return b.Publish(ctx, answer)
}
func (b *silent) Listening(string) bool { return true }
func (b *silent) Evict(mqtt.Eviction)   {}
func (b *silent) Close() error          { return nil }

// However many devices ask, and whatever the storage does: a bounded number of
// reads, one request of each device at a time, and everybody else is answered.
func TestStreamsDoNotHoldUpOthers(t *testing.T) {
	devices := []string{"calm"}
	for i := range 3 * fleet.MaxStreamReads {
		devices = append(devices, fmt.Sprint("busy-", i))
	}
	synctest.Test(t, func(t *testing.T) {
		store := &stuck{Store: directory(t)}
		s := newSite(t, store, sample(300<<10), devices...)
		store.hold()
		out := &silent{}
		e := s.endpoint(out)
		var wg sync.WaitGroup
		send := func(topic, payload string) error {
			return e.Handle(context.Background(), mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: 1})
		}
		for _, id := range devices[1:] {
			for range 3 { // the second and third wait for the first
				wg.Go(func() {
					if err := send("$aws/things/"+id+"/streams/r-1/get/json", `{"f":2,"l":256}`); err != nil {
						t.Error(err)
					}
				})
			}
		}
		synctest.Wait()
		if store.reads != fleet.MaxStreamReads {
			t.Errorf("%d reads at a time, want %d", store.reads, fleet.MaxStreamReads)
		}
		for _, topic := range []string{"$aws/things/calm/jobs/$next/get", "$aws/things/calm/shadow/get"} {
			if err := send(topic, `{}`); err != nil {
				t.Error(err)
			}
		}
		if out.sent["$aws/things/calm/jobs/$next/get/accepted"] != 1 || out.sent["$aws/things/calm/shadow/get/rejected"] != 1 {
			t.Errorf("the others were not answered: %v", out.sent)
		}
		close(store.held)
		wg.Wait()
		if store.most > fleet.MaxStreamReads {
			t.Errorf("%d reads at a time", store.most)
		}
		for _, id := range devices[1:] {
			if got := out.sent["$aws/things/"+id+"/streams/r-1/data/json"]; got != 3*mqtt.MaxBlocksInFlight {
				t.Errorf("%s: %d blocks", id, got)
			}
		}
	})
}

// One device at a time: two requests do not share the line.
func TestStreamRequestsOfADeviceAreInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &stuck{Store: directory(t)}
		e := newSite(t, store, sample(100_000), "gw-1").endpoint(&silent{})
		store.hold()
		get := mqtt.Message{Topic: streams + "get/json", Payload: []byte(`{"f":2,"l":256}`)}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := e.Handle(context.Background(), get); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		gone, leave := context.WithCancel(context.Background())
		leave()
		if err := e.Handle(gone, get); !errors.Is(err, context.Canceled) {
			t.Errorf("a request whose device has gone: %v", err)
		}
		close(store.held)
		wg.Wait()
		if store.most != 1 {
			t.Errorf("%d requests of one device at a time", store.most)
		}
	})
}

// firmware is a real file: a kernel when one lies in the cache, else a program
// of the Go tool chain's size, this one.
func firmware(t *testing.T) []byte {
	t.Helper()
	path, err := os.Executable()
	if kernels, _ := filepath.Glob("../../.cache/kernels/*"); len(kernels) > 0 {
		path = kernels[0]
	}
	if err == nil {
		var b []byte
		if b, err = os.ReadFile(path); err == nil {
			return b
		}
	}
	t.Fatal(err)
	return nil
}

// A device that has nothing but MQTT, an uncertain line and no idea of order.
func TestWholeFirmwareByMQTTWithLosses(t *testing.T) {
	pki := testserver.NewPKI(t)
	s := newSite(t, directory(t), firmware(t), "gw-1")
	b, err := broker.New(t.Context(), broker.Config{
		TLS: pki.ServerTLS(), TLSAddr: "127.0.0.1:0",
		Authenticate: func(_ context.Context, c broker.Credentials) (mqtt.Identity, error) {
			id := c.Certificates[0].Subject.CommonName
			return mqtt.Identity{Name: id, Device: true, Access: mqtt.DeviceAccess(id, nil)}, nil
		},
	})
	s.ok(err)
	defer func() { _ = b.Close() }()
	s.ok(s.endpoint(b).Serve(t.Context()))
	nc, err := tls.Dial("tcp", b.Addr(), pki.ClientTLS("gw-1"))
	s.ok(err)
	got := make(chan *paho.Publish, mqtt.MaxBlocksInFlight)
	cli := paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(nc),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			got <- p.Packet
			return true, nil
		}},
	})
	_, err = cli.Connect(t.Context(), &paho.Connect{ClientID: "gw-1", KeepAlive: 30, CleanStart: true})
	s.ok(err)
	defer func() { _ = cli.Disconnect(&paho.Disconnect{}) }()
	_, err = cli.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{
		{Topic: streams + "data/+"}, {Topic: streams + "rejected/+"},
	}})
	s.ok(err)

	d := &download{t: t, size: len(s.raw), missing: map[int]bool{}, file: make([]byte, len(s.raw)), rnd: rand.New(rand.NewPCG(7, 7))}
	for i := range (d.size + blockSize - 1) / blockSize {
		d.missing[i] = true
	}
	start := time.Now()
	for len(d.missing) > 0 {
		format, payload, wanted := d.request()
		_, err := cli.Publish(t.Context(), &paho.Publish{Topic: streams + "get/" + format, Payload: payload})
		s.ok(err)
		for range wanted {
			select {
			case m := <-got:
				d.take(m)
			case <-time.After(time.Minute):
				t.Fatalf("no block for a minute, %d missing", len(d.missing))
			}
		}
	}
	if hexSum(d.file) != hexSum(s.raw) {
		t.Fatal("the file differs")
	}
	t.Logf("%d bytes in %s, %d requests, %d blocks lost", d.size, time.Since(start).Round(time.Millisecond), d.requests, d.lost)
	if d.lost == 0 {
		t.Error("nothing was lost: the test shows nothing")
	}
}

const blockSize = 4096

// download is the device's side: what it has, and what it asks for next.
type download struct {
	t              *testing.T
	size           int
	missing        map[int]bool
	file           []byte
	rnd            *rand.Rand
	requests, lost int
}

// request asks for up to 32 missing blocks in a window anywhere, now in JSON, now
// in CBOR.
func (d *download) request() (format string, payload []byte, wanted int) {
	d.requests++
	anchor := 0
	for i := range d.missing { // in no order
		anchor = i
		break
	}
	first := max(0, anchor-d.rnd.IntN(40))
	bits := make([]byte, 8)
	for k := range 8 * len(bits) {
		if d.missing[first+k] && wanted < 32 {
			bits[k/8] |= 1 << (k % 8)
			wanted++
		}
	}
	if d.rnd.IntN(2) == 0 {
		return "json", fmt.Appendf(nil, `{"s": 1,"f": 0,"l": %d,"o": %d,"n": 32,"b":"0x%x"}`, blockSize, first, bits), wanted
	}
	return "cbor", cborOf(d.t, map[string]any{"c": "rdy", "f": 0, "l": blockSize, "o": first, "n": 32, "b": bits}), wanted
}

func (d *download) take(m *paho.Publish) {
	d.t.Helper()
	var block struct {
		F, L, I int
		P       []byte
	}
	read := json.Unmarshal
	if strings.HasSuffix(m.Topic, "/cbor") {
		read = cbor.Unmarshal
	}
	if err := read(m.Payload, &block); err != nil || !strings.Contains(m.Topic, "/data/") || len(block.P) != block.L {
		d.t.Fatalf("%s: %.200s: %v", m.Topic, m.Payload, err)
	}
	if d.rnd.IntN(10) == 0 {
		d.lost++
		return
	}
	if !d.missing[block.I] {
		d.t.Fatalf("block %d was not asked for", block.I)
	}
	delete(d.missing, block.I)
	if block.I*blockSize+block.L > d.size {
		d.t.Fatalf("block %d ends past the file", block.I)
	}
	copy(d.file[block.I*blockSize:], block.P)
}
