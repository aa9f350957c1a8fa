package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/otad/otad/internal/testserver"
)

// TestRevokedOnAnotherReplica revokes a device through one otad while it is
// connected to the broker, a mosquitto that has just the files that otad writes
// for it, and uses the HTTPS door of another otad on the same PostgreSQL.
func TestRevokedOnAnotherReplica(t *testing.T) {
	t.Parallel()
	var pg testserver.Postgres
	t.Cleanup(pg.Stop)
	database := "OTAD_DATABASE=" + pg.Database(t)
	broker := freeAddr(t)
	flags := func(id string) []string {
		return []string{"--mqtt-broker", "mqtts://localhost:" + port(broker), "--mqtt-client-id", id, "--log-level", "debug"}
	}
	a := prepareSite(t, []string{database}, flags("otad-a")...)
	a.flags = append(a.flags, "--crl-file", a.path("crl.pem"))
	m := a.mosquitto(broker)
	a.startServer()
	a.must("key", "init")
	a.token = strings.TrimSpace(a.must("token", "create", "--uses", "3", "--hardware", hardware, "-q"))
	b := prepareSite(t, []string{database}, flags("otad-b")...)
	for _, dir := range []string{"ca", "keys"} { // replicas share them
		if err := os.CopyFS(b.path("server", dir), os.DirFS(a.path("server", dir))); err != nil {
			t.Fatal(err)
		}
	}
	b.startServer()

	gone, stays := a.subscriber(m, "gone"), a.subscriber(m, "stays")
	if code := b.timestamp(a, "gone"); code != "200" {
		t.Fatalf("before: status %s", code)
	}
	start := time.Now()
	a.must("device", "revoke", "gone", "--yes")
	if code := b.timestamp(a, "gone"); code != "403" {
		t.Errorf("the other replica's HTTPS door: status %s", code)
	}
	until(t, "the session to be ended", func() bool {
		return strings.Contains(m.text(), "Client gone already connected, closing old connection")
	})
	t.Logf("session ended %s after the call", time.Since(start).Round(time.Millisecond))
	until(t, "the broker to refuse the certificate", func() bool { return a.refused(m, "gone") })
	t.Logf("refused by the broker %s after the call", time.Since(start).Round(time.Millisecond))
	until(t, "the subscriber to be out", func() bool { return !m.has("gone") })

	// A deleted device is out the same way, by a list that names no device any more.
	erased := a.subscriber(m, "erased")
	a.must("device", "delete", "erased", "--yes")
	until(t, "the session of the deleted device to be ended", func() bool {
		return strings.Contains(m.text(), "Client erased already connected, closing old connection")
	})
	until(t, "the broker to refuse its certificate", func() bool { return a.refused(m, "erased") })
	if code := b.timestamp(a, "erased"); code != "403" {
		t.Errorf("the other replica's HTTPS door to the deleted device: status %s", code)
	}
	erased.kill()

	// Whoever was not revoked stays, and comes back.
	if n := strings.Count(m.text(), " as stays "); n != 1 || !m.has("stays") {
		t.Errorf("the other device connected %d times", n)
	}
	a.must("shadow", "set", "stays", "interval=30")
	until(t, "the other device to hear", func() bool { return strings.Contains(stays.text(), `"interval":30`) })
	stays.kill()
	if a.refused(m, "stays") {
		t.Error("a certificate that was not revoked is refused")
	}
	gone.kill()
}

// mosquittoProc is a broker whose list of revoked certificates is read again
// whenever it changes, as the path unit of docs/operations.md does it.
type mosquittoProc struct {
	*proc
	addr string
}

// mosquitto starts a broker by the files that otad writes for one.
func (s *site) mosquitto(addr string) *mosquittoProc {
	s.t.Helper()
	crl := s.path("crl.pem")
	otad := func(args ...string) {
		s.t.Helper()
		cmd := exec.Command(bin+"/otad", args...)
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("otad %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	otad("broker", "cert", "--data", s.path("server"), "--hosts", "localhost", "--out", s.path("broker"))
	// The list has to be there when the broker starts; PostgreSQL lets it be made.
	cmd := exec.Command(bin+"/otad", "broker", "crl", "--data", s.path("server"), "--out", crl)
	cmd.Env = append(os.Environ(), s.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("otad broker crl: %v\n%s", err, out)
	}
	otad("broker", "config", "mosquitto", "--listen", port(addr)+" 127.0.0.1", "--certs", s.path("broker"), "--acl-file", s.path("broker", "otad.acl"),
		"--crl-file", crl, "--client-ids", "otad-a,otad-b", "--out", s.path("broker"))
	conf, err := os.ReadFile(s.path("broker", "otad.conf"))
	if err != nil {
		s.t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		conf = append([]byte("user root\n"), conf...) // else it gives up the right to read the files
	}
	file := s.path("broker", "mosquitto.conf")
	if err := os.WriteFile(file, append([]byte("log_type all\n"), conf...), 0o600); err != nil {
		s.t.Fatal(err)
	}
	program, err := testserver.MosquittoBinary()
	if err != nil {
		s.t.Fatal(err)
	}
	m := &mosquittoProc{start(s.t, "mosquitto", s.path("mosquitto.log"), nil, program, "-c", file), addr}
	until(s.t, "mosquitto to run", func() bool { return strings.Contains(m.text(), "running") })
	m.reloadOnChange(crl)
	return m
}

func (m *mosquittoProc) reloadOnChange(file string) {
	last, _ := os.ReadFile(file) // it is there
	tick := time.NewTicker(20 * time.Millisecond)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			if now, err := os.ReadFile(file); err == nil && !bytes.Equal(now, last) {
				last = now
				_ = m.cmd.Process.Signal(syscall.SIGHUP) // it ends with the test
			}
		}
	}()
	m.t.Cleanup(func() {
		tick.Stop()
		close(stop)
		<-stopped
	})
}

// has says whether the device is connected, by what the broker told last.
func (m *mosquittoProc) has(id string) bool {
	for _, line := range slices.Backward(strings.Split(m.text(), "\n")) {
		switch {
		case strings.Contains(line, " as "+id+" "):
			return true
		case strings.Contains(line, "Client "+id+" disconnected"), strings.Contains(line, "Client "+id+" closed"), strings.Contains(line, "error on client "+id):
			return false
		}
	}
	return false
}

// subscriber is an enrolled device with a client that comes back by itself.
func (s *site) subscriber(m *mosquittoProc, id string) *proc {
	s.t.Helper()
	s.enroll(id, "--key-type", "p256")
	p := start(s.t, id, s.path(id+".log"), nil, append([]string{"stdbuf", "-oL", "mosquitto_sub", "-q", "1", "-V", "mqttv311", "-t", "$aws/things/" + id + "/shadow/update/delta"}, s.brokerFlags(m, id)...)...)
	until(s.t, id+" to be connected", func() bool { return m.has(id) })
	return p
}

func (s *site) brokerFlags(m *mosquittoProc, id string) []string {
	return []string{
		"-h", "localhost", "-p", port(m.addr), "-i", id,
		"--cafile", s.path(id, "ca.pem"), "--cert", s.path(id, "device.crt"), "--key", s.path(id, "device.key"),
	}
}

// refused makes one attempt with the device's certificate.
func (s *site) refused(m *mosquittoProc, id string) bool {
	s.t.Helper()
	cmd := exec.Command("mosquitto_pub", append([]string{"-V", "mqttv5", "-q", "1", "-t", "ota/" + id + "/x", "-m", "x"}, s.brokerFlags(m, id)...)...)
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(string(out), "Error") {
		s.t.Fatalf("mosquitto_pub: %v\n%s", err, out)
	}
	return err != nil
}

// timestamp asks for signed metadata with a device's certificate and returns the
// HTTP status.
func (s *site) timestamp(of *site, id string) string {
	s.t.Helper()
	cmd := exec.Command("curl", "-sS", "-o", filepath.Join(s.t.TempDir(), "body"), "-w", "%{http_code}", "--cacert", of.path(id, "ca.pem"),
		"--cert", of.path(id, "device.crt"), "--key", of.path(id, "device.key"), fmt.Sprintf("%s/metadata/timestamp.json", s.at.Device))
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("curl: %v", err)
	}
	return string(out)
}
