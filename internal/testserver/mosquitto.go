package testserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/otad/otad/internal/mqtt/mosquitto"
)

// ServerName is the common name under which otad connects to Broker.
const ServerName = "otad"

// Broker is a running Mosquitto with two TLS listeners. Devices have their
// certificates from the PKI given, and their client id is their certificate's
// common name, whatever they claim. otad has a listener and an authority of
// its own: its replicas need several client ids under one name, and no device
// certificate may get near it.
type Broker struct {
	DeviceAddr string // host:port
	ServerAddr string // host:port, for otad

	t       testing.TB
	servers *PKI
	bin     string
	conf    string
	proc    *process
}

// Mosquitto starts Debian's Mosquitto until the test ends. extra lines are
// appended to its configuration.
func Mosquitto(t testing.TB, devices *PKI, extra ...string) *Broker {
	t.Helper()
	bin, err := MosquittoBinary()
	if err != nil {
		t.Fatal(err)
	}
	b := &Broker{t: t, servers: NewPKI(t), bin: bin}
	dir := t.TempDir()
	retry(t, func() error {
		if err := b.configure(dir, devices, extra); err != nil {
			return err
		}
		return b.start()
	})
	t.Cleanup(func() { b.proc.kill() })
	return b
}

// ServerTLS is the client configuration of otad.
func (b *Broker) ServerTLS() *tls.Config { return b.servers.ClientTLS(ServerName) }

// Kill ends the broker as a crash does; everything it held is gone.
func (b *Broker) Kill() { b.proc.kill() }

// Restart starts it again on the same ports.
func (b *Broker) Restart() {
	b.t.Helper()
	if err := b.start(); err != nil {
		b.t.Fatal(err)
	}
}

// Log is what the broker wrote since its last start.
func (b *Broker) Log() string { return b.proc.out.String() }

func (b *Broker) start() error {
	p, err := start(exec.Command(b.bin, "-c", b.conf), func(ctx context.Context) error {
		return errors.Join(dial(ctx, b.DeviceAddr), dial(ctx, b.ServerAddr))
	})
	if err != nil {
		return err
	}
	b.proc = p
	return nil
}

// MosquittoBinary is the broker's program. It also looks where Debian puts it,
// which is on no user's PATH.
func MosquittoBinary() (string, error) {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"} {
		if bin, err := exec.LookPath(name); err == nil {
			return bin, nil
		}
	}
	return "", errors.New("this test needs a real MQTT broker; install mosquitto: apt-get install mosquitto")
}

func (b *Broker) configure(dir string, devices *PKI, extra []string) error {
	var err error
	if b.DeviceAddr, err = FreeAddr(); err != nil {
		return err
	}
	if b.ServerAddr, err = FreeAddr(); err != nil {
		return err
	}
	host, port, _ := strings.Cut(b.DeviceAddr, ":")
	rules := mosquitto.Config{
		Listen: port + " " + host, CAFile: devices.WriteCA(dir, "devices-ca"), ACLFile: filepath.Join(dir, "acl"), Servers: []string{ServerName},
		Publish: []string{"sensors/{device}/#"}, Subscribe: []string{"sensors/{device}/command"},
	}
	rules.CertFile, rules.KeyFile = WriteKeyPair(b.t, dir, "devices", devices.Server())
	acl, err := rules.ACL()
	if err != nil {
		return err
	}
	if err := os.WriteFile(rules.ACLFile, []byte(acl), 0o600); err != nil {
		return err
	}
	lines := []string{
		"log_dest stderr",
		"log_type all",
		"retain_available false",
	}
	if os.Geteuid() == 0 {
		lines = append(lines, "user root") // else it gives up the right to read the files
	}
	lines = append(lines, extra...)
	lines = append(lines, rules.Main()) // what "otad broker config mosquitto" writes
	lines = append(lines, listener(b.t, dir, "servers", b.ServerAddr, b.servers)...)
	b.conf = filepath.Join(dir, "mosquitto.conf")
	return os.WriteFile(b.conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

func listener(t testing.TB, dir, name, addr string, pki *PKI) []string {
	host, port, _ := strings.Cut(addr, ":")
	cert, key := WriteKeyPair(t, dir, name, pki.Server())
	return []string{
		fmt.Sprintf("listener %s %s", port, host),
		"cafile " + pki.WriteCA(dir, name+"-ca"),
		"certfile " + cert,
		"keyfile " + key,
		"require_certificate true",
		"use_identity_as_username true",
	}
}
