package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlite"
	"github.com/otad/otad/internal/testserver"
	"github.com/otad/otad/pkg/shadow"
	"github.com/otad/otad/pkg/signing"
	otadv1 "github.com/otad/otad/proto/otad/v1"
	"github.com/otad/otad/proto/otad/v1/otadv1connect"
)

// asOtad in the environment makes the test binary be otad.
const asOtad = "TEST_BINARY_IS_OTAD"

func TestMain(m *testing.M) {
	if os.Getenv(asOtad) != "" {
		main()
		os.Exit(0)
	}
	code := m.Run()
	database.Stop()
	os.Exit(code)
}

// database is the PostgreSQL of the tests that ask for one.
var database testserver.Postgres

// otad is a running server process.
type otad struct {
	t       *testing.T
	cmd     *exec.Cmd
	out     string // what it said until it was ready
	at      addresses
	roots   *x509.CertPool
	shadows otadv1connect.ShadowServiceClient
	devices otadv1connect.DeviceServiceClient
}

func serveArgs(data string, more ...string) []string {
	return append([]string{"serve", "--data", data, "--api-listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0", "--hosts", "127.0.0.1"}, more...)
}

func start(t *testing.T, data string) *otad {
	t.Helper()
	o := &otad{t: t, cmd: exec.Command(os.Args[0], serveArgs(data)...)}
	o.cmd.Env = append(os.Environ(), asOtad+"=1")
	if testing.Verbose() {
		o.cmd.Stderr = os.Stderr
	}
	stdout, err := o.cmd.StdoutPipe()
	must(t, err)
	must(t, o.cmd.Start())
	t.Cleanup(func() { _ = o.cmd.Process.Kill(); _ = o.cmd.Wait() }) // it may have ended
	for s := bufio.NewScanner(stdout); !strings.Contains(o.out, "otactl login"); {
		if !s.Scan() {
			t.Fatalf("otad ended before it was ready: %v", o.cmd.Wait())
		}
		o.out += s.Text() + "\n"
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }() // ends with the process
	o.connect(data)
	return o
}

func (o *otad) connect(data string) {
	o.t.Helper()
	b, err := os.ReadFile(filepath.Join(data, "addresses.json"))
	must(o.t, err)
	must(o.t, json.Unmarshal(b, &o.at))
	token, err := os.ReadFile(filepath.Join(data, "admin.token"))
	must(o.t, err)
	ca, err := os.ReadFile(filepath.Join(data, "ca.pem"))
	must(o.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	o.t.Cleanup(transport.CloseIdleConnections)
	auth := connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			r.Header().Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
			return next(ctx, r)
		}
	})
	o.roots = roots
	o.shadows = otadv1connect.NewShadowServiceClient(&http.Client{Transport: transport}, o.at.API, connect.WithInterceptors(auth))
	o.devices = otadv1connect.NewDeviceServiceClient(&http.Client{Transport: transport}, o.at.API, connect.WithInterceptors(auth))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// withDevice makes a data directory whose store knows gw-1; the store is the
// database of the environment, if that names one.
func withDevice(t *testing.T) string {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	must(t, os.Mkdir(data, 0o700))
	s, err := openStore(t.Context(), config{Data: data, Database: os.Getenv("OTAD_DATABASE")})
	must(t, err)
	must(t, s.CreateEnrollmentToken(t.Context(), fleet.EnrollmentToken{ID: "t", Uses: 1}))
	_, err = s.Enroll(t.Context(), fleet.Device{ID: "gw-1", KeyFingerprint: "k"}, [32]byte{}, time.Now())
	must(t, err)
	must(t, s.Close())
	return data
}

// TestNothingAcknowledgedIsLost, however the server ends in the middle of its
// work and wherever it keeps things; a stop that is asked for ends it well.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run("sqlite/"+end.String(), func(t *testing.T) { endUnderLoad(t, end) })
		t.Run("postgres/"+end.String(), func(t *testing.T) {
			t.Setenv("OTAD_DATABASE", database.Database(t))
			endUnderLoad(t, end)
		})
	}
}

func endUnderLoad(t *testing.T, end syscall.Signal) {
	t.Helper()
	data := withDevice(t)
	o := start(t, data)
	const writers, enough = 8, 100
	acknowledged := make([]int64, writers)
	var total atomic.Int64
	var load sync.WaitGroup
	plenty := make(chan struct{})
	for w := range writers {
		load.Go(func() {
			for n := int64(1); ; n++ {
				_, err := o.shadows.UpdateShadow(context.Background(), connect.NewRequest(&otadv1.UpdateShadowRequest{
					DeviceId: "gw-1", Name: fmt.Sprintf("n%d", w), Update: fmt.Appendf(nil, `{"state":{"desired":{"n":%d}}}`, n),
				}))
				if err != nil {
					return // the server is going
				}
				acknowledged[w] = n
				if total.Add(1) == enough {
					close(plenty)
				}
			}
		})
	}
	<-plenty
	must(t, o.cmd.Process.Signal(end))
	load.Wait()
	if err := o.cmd.Wait(); (err == nil) != (end == syscall.SIGTERM) {
		t.Errorf("after %s: %v", end, err)
	}
	again := start(t, data)
	for w, n := range acknowledged {
		res, err := again.shadows.GetShadow(t.Context(), connect.NewRequest(&otadv1.GetShadowRequest{DeviceId: "gw-1", Name: fmt.Sprintf("n%d", w)}))
		if n == 0 && connect.CodeOf(err) == connect.CodeNotFound {
			continue // this writer had no turn before the end
		}
		must(t, err)
		var doc struct {
			Version int64
			State   struct{ Desired struct{ N int64 } }
		}
		must(t, json.Unmarshal(res.Msg.GetDocument(), &doc))
		// One more may have become durable without its answer arriving.
		if got := doc.State.Desired.N; got != n && got != n+1 || doc.Version != got {
			t.Errorf("writer %d: version %d says %d, acknowledged was %d", w, doc.Version, got, n)
		}
	}
	must(t, again.cmd.Process.Signal(syscall.SIGTERM))
	must(t, again.cmd.Wait())
	if out, err := run(t.Context(), "check", "--data", data); err != nil {
		t.Errorf("%s%v", out, err)
	}
}

// Replicas on one database may not all run the embedded broker: they would overwrite
// each other's sessions.
func TestASecondEmbeddedBrokerOnOneDatabaseIsRefused(t *testing.T) {
	t.Setenv("OTAD_DATABASE", database.Database(t))
	first := start(t, withDevice(t))
	data := filepath.Join(t.TempDir(), "second")
	_, err := run(t.Context(), serveArgs(data)...)
	if err == nil || exitCode(err) != 1 || !strings.Contains(err.Error(), "another otad") || !strings.Contains(err.Error(), "--mqtt-broker") || !strings.Contains(err.Error(), "operations.md") {
		t.Fatalf("a second one: %v", err)
	}
	must(t, first.cmd.Process.Kill())
	_ = first.cmd.Wait() // which says that it was killed
	start(t, data)       // in its place
}

func TestASecondOtadIsRefused(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	o := start(t, data)
	for _, args := range [][]string{serveArgs(data), {"check", "--data", data}} {
		if _, err := run(t.Context(), args...); err == nil || exitCode(err) != 1 || !strings.Contains(err.Error(), "in use by another otad") || !strings.Contains(err.Error(), "stop it") {
			t.Errorf("%s: %v", args[0], err)
		}
	}
	other := filepath.Join(t.TempDir(), "other")
	taken := serveArgs(other, "--api-listen", strings.TrimPrefix(o.at.API, "https://"))
	if _, err := run(t.Context(), taken...); err == nil || !strings.Contains(err.Error(), "another otad running") {
		t.Errorf("the address is taken: %v", err)
	}
	for _, words := range []string{"otactl login --server " + o.at.API, "--token-file " + data, "otad devel is ready"} {
		if !strings.Contains(o.out, words) {
			t.Errorf("the announcement lacks %q:\n%s", words, o.out)
		}
	}
}

func TestLostOnlineKeysAreSeenAtTheStart(t *testing.T) {
	data := withDevice(t)
	s, err := sqlite.Open(t.Context(), filepath.Join(data, "otad.db"))
	must(t, err)
	root := foreignRoot(t)
	must(t, errors.Join(s.PublishMetadata(t.Context(), []fleet.Metadata{{Role: fleet.RoleRoot, Version: 1, Bytes: root}}, nil, time.Now()), s.Close()))
	if _, err := run(t.Context(), serveArgs(data)...); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("%v", err)
	}
}

// foreignRoot names other online keys than any that a server makes.
func foreignRoot(t *testing.T) []byte {
	t.Helper()
	key := func() signing.Key {
		k, err := signing.NewKey()
		must(t, err)
		return k
	}
	root := signing.RootKey{Signer: key()}
	file, err := signing.NewRoot(signing.RootSpec{
		RootKeys: []signing.PublicKey{root.Public()}, TargetsKeys: []signing.PublicKey{signing.TargetsKey{Signer: key()}.Public()},
		RootThreshold: 1, TargetsThreshold: 1, Expires: time.Now().Add(time.Hour),
		Snapshot: signing.OnlineKey{Signer: key()}.Public(), Timestamp: signing.OnlineKey{Signer: key()}.Public(),
	}, root)
	must(t, err)
	return file
}

func TestCheckSeesATamperedStore(t *testing.T) {
	data := withDevice(t)
	path := filepath.Join(data, "otad.db")
	s, err := sqlite.Open(t.Context(), path)
	must(t, err)
	_, err = s.UpdateShadow(t.Context(), "gw-1", "", shadow.NewUpdate(map[string]any{"k": "v"}, nil), time.Now())
	must(t, errors.Join(err, s.Close()))
	if out, err := run(t.Context(), "check", "--data", data); err != nil || out != "ok\n" {
		t.Fatalf("%q, %v", out, err)
	}
	db, err := sql.Open("sqlite", path)
	must(t, err)
	_, err = db.Exec(`UPDATE shadows SET version = 9`)
	must(t, errors.Join(err, db.Close()))
	cmd := exec.Command(os.Args[0], "check", "--data", data)
	cmd.Env = append(os.Environ(), asOtad+"=1")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "version 9") || !strings.Contains(string(exit.Stderr), "1 broken invariant") {
		t.Fatalf("%q, %v", out, err)
	}
	if _, err := run(t.Context(), "check", "--data", filepath.Join(data, "none")); err == nil || exitCode(err) != 1 || !strings.Contains(err.Error(), "no store") {
		t.Errorf("no store: %v", err)
	}
}
