package api_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/otad/otad/internal/api"
	"github.com/otad/otad/internal/blob/dir"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/identity"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/internal/testserver"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
	"github.com/otad/otad/pkg/signing"
	"github.com/otad/otad/proto/otad/v1/otadv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deaf is a Publisher that nobody listens to.
type deaf struct{}

func (deaf) NotifyJobs(context.Context, string, []ota.Execution) error          { return nil }
func (deaf) NotifyNext(context.Context, string, *ota.Execution) error           { return nil }
func (deaf) ShadowUpdated(context.Context, string, string, shadow.Result) error { return nil }
func (deaf) Evict(fleet.Eviction)                                               {}

// flaky is a store that can be told to fail.
type flaky struct {
	fleet.Store
	tokens, releases atomic.Pointer[error] // what their calls fail with
}

var errDisk = errors.New("disk on fire")

func (f *flaky) APIToken(ctx context.Context, id string) (fleet.APIToken, error) {
	if fault := f.tokens.Load(); fault != nil {
		return fleet.APIToken{}, *fault
	}
	return f.Store.APIToken(ctx, id)
}

func (f *flaky) Releases(ctx context.Context) ([]ota.Release, error) {
	if fault := f.releases.Load(); fault != nil {
		return nil, *fault
	}
	return f.Store.Releases(ctx)
}

// plane is the operator plane behind a real TLS listener.
type plane struct {
	*testing.T
	fleet   *fleet.Service
	store   *flaky
	ca      *identity.CA
	url     string
	token   string
	http    *http.Client // shows the token
	targets signing.TargetsKey
	engine  func()                      // starts it
	pipes   map[string]*testserver.Pipe // by address; nil: it listens on loopback
}

func (p *plane) ok(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	return openPlane(t, nil)
}

// newBubblePlane is for a synctest bubble.
func newBubblePlane(t *testing.T) *plane {
	t.Helper()
	return openPlane(t, map[string]*testserver.Pipe{})
}

func openPlane(t *testing.T, pipes map[string]*testserver.Pipe) *plane {
	t.Helper()
	p := &plane{T: t, store: &flaky{Store: memstore.New()}, pipes: pipes}
	blobs, err := dir.New(t.TempDir())
	p.ok(err)
	p.ca, err = identity.Open(t.TempDir(), time.Now())
	p.ok(err)
	log := slog.New(slog.DiscardHandler)
	p.fleet = fleet.New(fleet.Config{
		Store: p.store, Blobs: blobs, Publisher: deaf{}, CA: p.ca, Now: time.Now, Log: log, DeviceURL: "https://devices:8444",
		OnlineKeys: signing.Online{Snapshot: signing.OnlineKey{Signer: p.key()}, Timestamp: signing.OnlineKey{Signer: p.key()}},
	})
	p.token, err = p.fleet.CreateAPIToken(t.Context(), "test")
	p.ok(err)
	metrics := http.NewServeMux()
	metrics.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "figures") })
	p.url = p.serve(api.New(p.fleet, log, metrics))
	p.http = p.client(p.token)
	p.engine = func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.fleet.RunEngine(ctx) }()
		p.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				p.Error(err)
			}
		})
	}
	return p
}

func (p *plane) serve(h http.Handler) string {
	l, address := p.listen()
	s := &http.Server{Handler: h, TLSConfig: p.ca.Server([]string{"127.0.0.1"}, time.Now), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan error, 1)
	go func() { done <- s.ServeTLS(l, "", "") }()
	p.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			p.Error(err)
		}
	})
	return "https://" + address
}

func (p *plane) listen() (net.Listener, string) {
	if p.pipes != nil {
		address := fmt.Sprint("127.0.0.1:", len(p.pipes)+1)
		p.pipes[address] = testserver.NewPipe()
		return p.pipes[address], address
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	p.ok(err)
	return l, l.Addr().String()
}

// transport leads to what listens.
func (p *plane) transport(http2 bool) *http.Transport {
	t := &http.Transport{TLSClientConfig: p.tls(), ForceAttemptHTTP2: http2}
	if p.pipes != nil {
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			return p.pipes[address].Dial(ctx, network, address)
		}
	}
	p.Cleanup(t.CloseIdleConnections)
	return t
}

func (p *plane) tls() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.ca.RootPEM())
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// bearer shows a token with every request.
type bearer struct {
	*http.Transport
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.Transport.RoundTrip(r)
}

func (p *plane) client(token string) *http.Client {
	return &http.Client{Transport: bearer{p.transport(true), token}}
}

// http1 is p.http without HTTP/2.
func (p *plane) http1() *http.Client {
	return &http.Client{Transport: bearer{p.transport(false), p.token}}
}

func (p *plane) devices() otadv1connect.DeviceServiceClient {
	return otadv1connect.NewDeviceServiceClient(p.http, p.url)
}
func (p *plane) shadows() otadv1connect.ShadowServiceClient {
	return otadv1connect.NewShadowServiceClient(p.http, p.url)
}
func (p *plane) firmware() otadv1connect.FirmwareServiceClient {
	return otadv1connect.NewFirmwareServiceClient(p.http, p.url)
}
func (p *plane) rollouts() otadv1connect.RolloutServiceClient {
	return otadv1connect.NewRolloutServiceClient(p.http, p.url)
}
func (p *plane) trust() otadv1connect.TrustServiceClient {
	return otadv1connect.NewTrustServiceClient(p.http, p.url)
}

// call makes a unary call.
func call[Req, Res any](p *plane, f func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	res, err := f(p.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// must is call for what works.
func must[Req, Res any](p *plane, f func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) *Res {
	p.Helper()
	res, err := call(p, f, req)
	p.ok(err)
	return res
}

// refused is call for what fails with the code, and a text that holds the words.
func refused[Req, Res any](p *plane, f func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req, code connect.Code, words string) {
	p.Helper()
	if _, err := call(p, f, req); connect.CodeOf(err) != code || !strings.Contains(err.Error(), words) {
		p.Errorf("%T: %v, want %s with %q", req, err, code, words)
	}
}

func (p *plane) key() signing.Key {
	k, err := signing.NewKey()
	p.ok(err)
	return k
}

// root returns a first root and empty targets.
func (p *plane) root() (file, first []byte) {
	p.Helper()
	root := signing.RootKey{Signer: p.key()}
	p.targets = signing.TargetsKey{Signer: p.key()}
	expires := time.Now().Add(1000 * time.Hour)
	file, err := signing.NewRoot(signing.RootSpec{
		RootKeys: []signing.PublicKey{root.Public()}, TargetsKeys: []signing.PublicKey{p.targets.Public()}, RootThreshold: 1, TargetsThreshold: 1,
		Snapshot: p.fleet.OnlineKeys.Snapshot.Public(), Timestamp: p.fleet.OnlineKeys.Timestamp.Public(), Expires: expires,
	}, root)
	p.ok(err)
	first, err = signing.NewTargets(expires, p.targets)
	p.ok(err)
	return file, first
}

func (p *plane) initTrust() {
	p.Helper()
	root, first := p.root()
	p.ok(p.fleet.InitTrust(p.Context(), root, first))
}

// made is an image as an operator has it before the upload.
type made struct {
	object, index []byte
	manifest      ota.Manifest
}

func (m made) manifestJSON(p *plane) []byte {
	b, err := json.Marshal(m.manifest)
	p.ok(err)
	return b
}

func (p *plane) make(version, raw string) made {
	p.Helper()
	var object bytes.Buffer
	ix, err := image.Encode(p.Context(), &object, strings.NewReader(raw), image.EncodeOptions{Params: image.DefaultParams(int64(len(raw))), Level: 1})
	p.ok(err)
	index, err := ix.MarshalBinary()
	p.ok(err)
	return made{object.Bytes(), index, ota.Manifest{
		Name: "gw", Version: version, HardwareIDs: []string{"rpi4"}, Installer: ota.InstallImage,
		ImageDigest: hex.EncodeToString(ix.RawDigest[:]), ImageSize: ix.RawSize, ObjectSize: ix.ObjectSize(),
	}}
}

// sign returns the next targets with m in it.
func (p *plane) sign(m made) []byte {
	p.Helper()
	info, err := p.fleet.Trust(p.Context())
	p.ok(err)
	next, err := signing.AddTarget(info.Targets, signing.Target{
		Path: m.manifest.ID().TargetPath(), Length: int64(len(m.index)), SHA256: sha256.Sum256(m.index), Custom: m.manifestJSON(p),
	}, time.Now().Add(1000*time.Hour), p.targets)
	p.ok(err)
	return next
}

// signed is a release that can be rolled out.
func (p *plane) signed(version string) made {
	p.Helper()
	m := p.make(version, "firmware "+version)
	_, err := p.fleet.UploadImage(p.Context(), m.manifest.ImageDigest, bytes.NewReader(m.object))
	p.ok(err)
	_, err = p.fleet.CreateRelease(p.Context(), m.manifest, m.index)
	p.ok(err)
	_, _, err = p.fleet.PublishTargets(p.Context(), p.sign(m))
	p.ok(err)
	return m
}

func (p *plane) enroll(ids ...string) {
	p.Helper()
	_, secret, err := p.fleet.CreateEnrollmentToken(p.Context(), fleet.EnrollmentToken{Uses: len(ids), Hardware: "rpi4"})
	p.ok(err)
	for _, id := range ids {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		p.ok(err)
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
		p.ok(err)
		_, err = p.fleet.Enroll(p.Context(), fleet.Enrollment{DeviceID: id, Secret: secret, CSR: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})})
		p.ok(err)
	}
}
