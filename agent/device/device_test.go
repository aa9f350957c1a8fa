package device

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/agent"
	agenthttp "github.com/otad/otad/agent/http"
	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func trustRoot(t *testing.T) []byte {
	t.Helper()
	key := func() signing.Key {
		k, err := signing.NewKey()
		must(t, err)
		return k
	}
	root, targets := signing.RootKey{Signer: key()}, signing.TargetsKey{Signer: key()}
	snapshot, timestamp := signing.OnlineKey{Signer: key()}, signing.OnlineKey{Signer: key()}
	b, err := signing.NewRoot(signing.RootSpec{
		Issued: time.Now().Add(-time.Hour), Expires: time.Now().AddDate(1, 0, 0),
		RootKeys: []signing.PublicKey{root.Public()}, RootThreshold: 1,
		TargetsKeys: []signing.PublicKey{targets.Public()}, TargetsThreshold: 1,
		Snapshot: snapshot.Public(), Timestamp: timestamp.Public(),
	}, root)
	must(t, err)
	return b
}

func TestEnroll(t *testing.T) {
	o := newOffice(t)
	path := filepath.Join(t.TempDir(), "agent")
	must(t, Enroll(t.Context(), o.config(path)))
	for name, mode := range map[string]fs.FileMode{"": 0o700 | fs.ModeDir, keyName: 0o600, settingsName: 0o600, certName: 0o600, caName: 0o600, rootName: 0o600} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
	id, err := dir(path).identity()
	must(t, err)
	if id.DeviceID != deviceID || id.ServerURL != o.url || id.MQTTURL != o.mqtt || !bytes.Equal(id.root, o.root) || !id.ca.Equal(o.cert) {
		t.Errorf("%+v", id)
	}
	if err := Enroll(t.Context(), o.config(path)); !errors.Is(err, ErrEnrolled) || !strings.Contains(err.Error(), deviceID) {
		t.Errorf("a second time: %v", err)
	}
	if len(o.keys) != 1 {
		t.Errorf("the server was asked %d times", len(o.keys))
	}
}

// A device may need a P-256 key, for another TLS stack. Once it is there it stays,
// whatever kind is asked for later.
func TestKeyType(t *testing.T) {
	o := newOffice(t)
	path := filepath.Join(t.TempDir(), "agent")
	c := o.config(path)
	c.KeyType = "rsa"
	if err := Enroll(t.Context(), c); err == nil || !strings.Contains(err.Error(), KeyP256) {
		t.Errorf("an unknown kind: %v", err)
	}
	c.KeyType = KeyP256
	must(t, Enroll(t.Context(), c))
	id, err := dir(path).identity()
	must(t, err)
	first, ok := id.key.Public().(*ecdsa.PublicKey)
	if !ok || first.Curve != elliptic.P256() {
		t.Fatalf("the key is %T", id.key.Public())
	}
	must(t, os.Remove(filepath.Join(path, settingsName)))
	c.KeyType = KeyEd25519
	must(t, Enroll(t.Context(), c))
	id, err = dir(path).identity()
	must(t, err)
	if !first.Equal(id.key.Public()) {
		t.Error("the key changed")
	}
}

// A key that the server would refuse is named before it is asked.
func TestKeyOfAnotherCurve(t *testing.T) {
	o := newOffice(t)
	path := filepath.Join(t.TempDir(), "agent")
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	must(t, os.Mkdir(path, 0o700))
	must(t, os.WriteFile(filepath.Join(path, keyName), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	if err := Enroll(t.Context(), o.config(path)); err == nil || !strings.Contains(err.Error(), "P-256") {
		t.Errorf("%v", err)
	}
	if len(o.keys) != 0 {
		t.Error("the server was asked")
	}
}

// Whatever the moment the power goes, the next attempt ends well with the same
// key: the server never sees the id with another one.
func TestEnrollCutAnywhere(t *testing.T) {
	o := newOffice(t)
	path := filepath.Join(t.TempDir(), "agent")
	o.answer(500) // the server did it, the answer is lost
	if err := Enroll(t.Context(), o.config(path)); !errors.Is(err, agent.ErrUnreachable) {
		t.Fatalf("%v", err)
	}
	if _, err := ReadStatus(path); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("status: %v", err)
	}
	if err := Run(t.Context(), Options{Dir: path}); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("run: %v", err)
	}
	o.answer(0)
	must(t, Enroll(t.Context(), o.config(path)))
	for _, lost := range [][]string{{settingsName}, {certName, settingsName}, {rootName, certName, settingsName}, {caName, rootName, certName, settingsName}} {
		for _, name := range lost {
			must(t, os.Remove(filepath.Join(path, name)))
		}
		must(t, os.WriteFile(filepath.Join(path, "."+settingsName+".new"), []byte("{torn"), 0o600))
		must(t, Enroll(t.Context(), o.config(path)))
	}
	for _, k := range o.keys {
		if !bytes.Equal(k, o.keys[0]) {
			t.Fatal("the device showed another key")
		}
	}
}

func TestDamagedFilesAreNamed(t *testing.T) {
	o := newOffice(t)
	for _, name := range []string{settingsName, keyName, certName, caName, rootName} {
		for _, content := range []string{"", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "\x00\x00"} {
			path := filepath.Join(t.TempDir(), "agent")
			must(t, Enroll(t.Context(), o.config(path)))
			must(t, os.WriteFile(filepath.Join(path, name), []byte(content), 0o600))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err := Run(ctx, Options{Dir: path})
			cancel()
			if err == nil || errors.Is(err, ErrNotEnrolled) {
				t.Errorf("%s = %q: %v", name, content, err)
			}
		}
	}
}

func TestOneAgentPerDirectory(t *testing.T) {
	o := newOffice(t)
	path := filepath.Join(t.TempDir(), "agent")
	must(t, Enroll(t.Context(), o.config(path)))
	lock, err := dir(path).lock()
	must(t, err)
	if err := Run(t.Context(), Options{Dir: path}); !errors.Is(err, ErrRunning) {
		t.Errorf("run: %v", err)
	}
	if err := Enroll(t.Context(), o.config(path)); !errors.Is(err, ErrRunning) {
		t.Errorf("enroll: %v", err)
	}
	if s, err := ReadStatus(path); err != nil || !s.Running {
		t.Errorf("status: %+v, %v", s, err)
	}
	must(t, lock.Close())
	if s, err := ReadStatus(path); err != nil || s.Running {
		t.Errorf("status: %+v, %v", s, err)
	}
}

// An agent without its server runs the application it was made with, and ends
// with it when told to.
func TestRunFactoryImage(t *testing.T) {
	o := newOffice(t)
	path := filepath.Join(t.TempDir(), "agent")
	started := filepath.Join(t.TempDir(), "pid")
	image := filepath.Join(t.TempDir(), "app")
	must(t, os.WriteFile(image, fmt.Appendf(nil, "#!/bin/sh\necho $$ > %s.new && mv %s.new \"$1\"\nexec sleep 600\n", started, started), 0o600))
	c := o.config(path)
	c.Factory = &FactoryImage{Path: image, Name: "gateway", Version: "1.0", Installer: ota.InstallBinary, Run: []string{"{image}", started}}
	must(t, Enroll(t.Context(), c))

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Options{Dir: path, Version: "test"}) }()
	var pid string
	await(t, func() bool {
		b, err := os.ReadFile(started)
		pid = strings.TrimSpace(string(b))
		return err == nil
	})
	await(t, func() bool { s, err := ReadStatus(path); return err == nil && s.Agent != nil && s.Running })
	s, err := ReadStatus(path)
	must(t, err)
	if s.Agent.Firmware.Version != "1.0" || s.DeviceID != deviceID || !s.Expires.After(s.RenewFrom) {
		t.Errorf("%+v", s)
	}
	if _, err := os.Stat("/proc/" + pid); err != nil {
		t.Errorf("application %s: %v", pid, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	if _, err := os.Stat("/proc/" + pid); err == nil {
		t.Errorf("application %s still runs", pid)
	}
}

// await looks again until ok, and not for ever.
func await(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(20 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not come to pass within 20 s")
		}
	}
}

// A restart keeps the process id and the arguments: a supervisor sees nothing.
func TestRestartKeepsTheProcess(t *testing.T) {
	cmd := exec.Command(os.Args[0], "run", "--dir", "somewhere")
	cmd.Env = append(os.Environ(), restartEnv+"=first")
	out, err := cmd.CombinedOutput()
	must(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 2 || lines[0] != lines[1] || !strings.HasSuffix(lines[0], "run --dir somewhere") {
		t.Errorf("%q", lines)
	}
}

// playRestart is what the test binary does as an agent: say who it is, and
// restart once.
func playRestart(stage string) {
	fmt.Println(os.Getpid(), strings.Join(os.Args[1:], " "))
	if stage == "first" {
		os.Setenv(restartEnv, "second")
		fmt.Println(restart())
	}
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		err  error
		exit int
	}{
		{nil, ExitDone},
		{errors.New("x"), ExitFailed},
		{fmt.Errorf("x: %w", ErrNotEnrolled), ExitNotFound},
		{fmt.Errorf("x: %w", ErrEnrolled), ExitConflict},
		{fmt.Errorf("x: %w", agenthttp.ErrDenied), ExitDenied},
		{fmt.Errorf("x: %w", agenthttp.ErrConflict), ExitConflict},
		{fmt.Errorf("x: %w", agenthttp.ErrIdentity), ExitDenied},
		{&agenthttp.RetryError{}, ExitUnreachable},
		{fmt.Errorf("x: %w", enroll.ErrToken), ExitUsage},
		{ota.ValidateDeviceID("a/b"), ExitUsage},
	} {
		if exit, hint := Explain(tc.err); exit != tc.exit || exit > ExitUsage && hint == "" {
			t.Errorf("%v: %d, %q", tc.err, exit, hint)
		}
	}
}
