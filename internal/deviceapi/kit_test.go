package deviceapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/blob/dir"
	"github.com/otad/otad/internal/deviceapi"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/identity"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
	"github.com/otad/otad/pkg/signing"
)

// deaf is a Publisher that nobody listens to.
type deaf struct{}

func (deaf) NotifyJobs(context.Context, string, []ota.Execution) error          { return nil }
func (deaf) NotifyNext(context.Context, string, *ota.Execution) error           { return nil }
func (deaf) ShadowUpdated(context.Context, string, string, shadow.Result) error { return nil }
func (deaf) Evict(fleet.Eviction)                                               {}

// clock is the limiter's time.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// plane is the device plane behind a real TLS listener, as otad serves it.
type plane struct {
	*testing.T
	fleet *fleet.Service
	ca    *identity.CA
	clock *clock
	url   string
	logs  *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (p *plane) ok(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{T: t, clock: &clock{t: time.Now()}, logs: &lockedBuffer{}}
	blobs, err := dir.New(t.TempDir())
	p.ok(err)
	p.ca, err = identity.Open(t.TempDir(), time.Now())
	p.ok(err)
	log := slog.New(slog.NewTextHandler(p.logs, nil))
	p.fleet = fleet.New(fleet.Config{
		Store: memstore.New(), Blobs: blobs, Publisher: deaf{}, CA: p.ca, Now: time.Now, Log: log, MQTTURL: "mqtts://broker:8883",
		OnlineKeys: signing.Online{Snapshot: signing.OnlineKey{Signer: p.key()}, Timestamp: signing.OnlineKey{Signer: p.key()}},
	})
	p.url = p.serve(deviceapi.New(deviceapi.Config{Fleet: p.fleet, Blobs: blobs, Log: log, Now: p.clock.now}))
	return p
}

func (p *plane) serve(h http.Handler) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	p.ok(err)
	s := &http.Server{Handler: h, TLSConfig: p.ca.Server([]string{"localhost", "127.0.0.1"}, time.Now), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	s.TLSConfig.ClientAuth, s.TLSConfig.ClientCAs = tls.VerifyClientCertIfGiven, p.ca.Devices()
	done := make(chan error, 1)
	go func() { done <- s.ServeTLS(l, "", "") }()
	p.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			p.Error(err)
		}
	})
	return "https://" + l.Addr().String()
}

func (p *plane) key() signing.Key {
	k, err := signing.NewKey()
	p.ok(err)
	return k
}

// initTrust makes root and targets and returns the targets key.
func (p *plane) initTrust() signing.TargetsKey {
	p.Helper()
	root, targets := signing.RootKey{Signer: p.key()}, signing.TargetsKey{Signer: p.key()}
	expires := time.Now().Add(1000 * time.Hour)
	file, err := signing.NewRoot(signing.RootSpec{
		RootKeys: []signing.PublicKey{root.Public()}, TargetsKeys: []signing.PublicKey{targets.Public()}, RootThreshold: 1, TargetsThreshold: 1,
		Snapshot: p.fleet.OnlineKeys.Snapshot.Public(), Timestamp: p.fleet.OnlineKeys.Timestamp.Public(), Expires: expires,
	}, root)
	p.ok(err)
	first, err := signing.NewTargets(expires, targets)
	p.ok(err)
	p.ok(p.fleet.InitTrust(p.Context(), file, first))
	return targets
}

// release stores a draft of raw and returns it with its object and index.
func (p *plane) release(raw []byte) (r ota.Release, object, index []byte) {
	p.Helper()
	return p.releaseAs("gw", "1.0", raw)
}

func (p *plane) releaseAs(name, version string, raw []byte) (r ota.Release, object, index []byte) {
	p.Helper()
	var b bytes.Buffer
	ix, err := image.Encode(p.Context(), &b, bytes.NewReader(raw), image.EncodeOptions{Params: image.DefaultParams(int64(len(raw))), Level: 1})
	p.ok(err)
	index, err = ix.MarshalBinary()
	p.ok(err)
	digest := hex.EncodeToString(ix.RawDigest[:])
	object = bytes.Clone(b.Bytes())
	_, err = p.fleet.UploadImage(p.Context(), digest, &b)
	p.ok(err)
	r, err = p.fleet.CreateRelease(p.Context(), ota.Manifest{
		Name: name, Version: version, HardwareIDs: []string{"rpi4"}, Installer: ota.InstallImage,
		ImageDigest: digest, ImageSize: ix.RawSize, ObjectSize: ix.ObjectSize(),
	}, index)
	p.ok(err)
	return r, object, index
}

func (p *plane) token(t fleet.EnrollmentToken) string {
	p.Helper()
	_, secret, err := p.fleet.CreateEnrollmentToken(p.Context(), t)
	p.ok(err)
	return base64.RawURLEncoding.EncodeToString(secret[:])
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csr(t testing.TB, cn string, key any) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// client trusts the server and shows the certificate, if any.
func (p *plane) client(certs ...tls.Certificate) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.ca.RootPEM())
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableCompression: true, ForceAttemptHTTP2: true,
	}
	if len(certs) > 0 { // shown whatever the server asks for
		transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	p.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// code is the error code of the answer.
func (r reply) code(t testing.TB) string {
	t.Helper()
	var doc struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal(r.body, &doc); err != nil || doc.Error.Message == "" {
		t.Fatalf("%d: %q is no error of the protocol: %v", r.status, r.body, err)
	}
	return doc.Error.Code
}

func (p *plane) do(c *http.Client, method, path, body string, header ...string) reply {
	p.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(p.Context(), method, p.url+path, content)
	p.ok(err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	p.ok(err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	p.ok(err)
	return reply{res.StatusCode, res.Header, b}
}

func (p *plane) enrollBody(token, id, hardware, csr string) string {
	b, err := json.Marshal(map[string]string{"token": token, "deviceId": id, "hardware": hardware, "csr": csr})
	p.ok(err)
	return string(b)
}

// enrolled is a device with its client.
func (p *plane) enrolled(id string) (*http.Client, ed25519.PrivateKey) {
	p.Helper()
	key := newKey(p)
	r := p.do(p.client(), "POST", "/enroll", p.enrollBody(p.token(fleet.EnrollmentToken{}), id, "rpi4", csr(p, id, key)))
	if r.status != http.StatusOK {
		p.Fatalf("enroll %s: %d %s", id, r.status, r.body)
	}
	var answer struct{ Certificate string }
	p.ok(json.Unmarshal(r.body, &answer))
	return p.client(pair(p, answer.Certificate, key)), key
}

func pair(t testing.TB, chain string, key ed25519.PrivateKey) tls.Certificate {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair([]byte(chain), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issued is a certificate of the CA for a name that need not be enrolled.
func issued(t testing.TB, ca *identity.CA, id string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	block, _ := pem.Decode([]byte(csr(t, id, key)))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(request, id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pair(t, string(chain), key)
}

// devices are the ids that are stored.
func (p *plane) devices() (ids []string) {
	p.ok(p.fleet.Store.Devices(p.Context(), "", func(v fleet.DeviceView) bool {
		ids = append(ids, v.ID)
		return true
	}))
	return ids
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func p384(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
