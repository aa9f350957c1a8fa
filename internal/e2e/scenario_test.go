package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/otad/otad/internal/testserver"
)

// TestWholePath is the main job, on everything embedded and on S3 with an
// external broker: the same words, the same outcome.
func TestWholePath(t *testing.T) {
	t.Run("SQLite, directory, embedded broker", func(t *testing.T) {
		t.Parallel()
		wholePath(t, newSite(t, nil))
	})
	t.Run("S3 and mosquitto", func(t *testing.T) {
		t.Parallel()
		wholePath(t, newExternalSite(t))
	})
}

func wholePath(t *testing.T, s *site) {
	s.addDevices(4)
	s.release("1.0.0", 200_000, true)
	s.ends(s.rollout("1.0.0", "--stages", "100%"), "COMPLETED")
	s.allRun("1.0.0")

	s.release("1.1.0", 200_000, true)
	r := s.ends(s.rollout("1.1.0", "--stages", "25%,50%,100%"), "COMPLETED")
	for i, want := range []int{1, 2, 4} {
		if r.Stages[i].Target != want || r.Stages[i].State != "PASSED" {
			t.Errorf("stage %d: %+v", i+1, r.Stages[i])
		}
	}
	s.allRun("1.1.0")

	s.revert()

	s.release("1.2.0", 200_000, false) // properly signed, but not healthy
	r = s.ends(s.rollout("1.2.0", "--stages", "25%,100%", "--abort", "any>0%"), "ABORTED")
	if n := r.Stages[0].Counts.Finished["rolled_back"]; n != 1 || r.Stages[1].State != "PENDING" || len(r.Failures) != 1 {
		t.Errorf("%d rolled back, second stage %+v, failures %+v", n, r.Stages[1], r.Failures)
	} else if !strings.Contains(r.Failures[0].Reason, "bad sector") {
		t.Errorf("the device does not say why: %q", r.Failures[0].Reason)
	}
	s.allRun("1.1.0")
	s.shadowsAndPresence()
	s.check()
}

// revert brings half of the devices to a release and back to the one before.
func (s *site) revert() {
	s.t.Helper()
	s.release("1.1.5", 200_000, true)
	id := s.rollout("1.1.5", "--stages", "50%,100%", "--approve-stages", "2", "--on-abort", "revert")
	until(s.t, "the first stage to pass", func() bool { return s.show(id).Stages[0].State == "PASSED" })
	s.must("rollout", "abort", id, "--yes", "--reason", "nobody likes it")
	r := s.ends(id, "ROLLED_BACK")
	if r.Reason != "nobody likes it; 2 devices go back to app@1.1.0" || r.Stages[1].State != "FAILED" && r.Stages[1].State != "PENDING" {
		s.t.Errorf("%+v", r)
	}
	s.allRun("1.1.0")
}

func (s *site) shadowsAndPresence() {
	s.t.Helper()
	var doc struct {
		State struct {
			Desired  map[string]any
			Reported struct {
				Firmware struct{ Name, Version, Digest string }
			}
		}
		Version int64
	}
	until(s.t, "the shadow to tell 1.1.0", func() bool {
		s.get(&doc, "shadow", "get", "gw-1")
		return doc.State.Reported.Firmware.Version == "1.1.0"
	})
	s.must("shadow", "set", "gw-1", "interval=30", "mode=eco")
	s.get(&doc, "shadow", "get", "gw-1")
	if doc.State.Desired["interval"] != 30.0 || doc.State.Desired["mode"] != "eco" {
		s.t.Errorf("desired %v", doc.State.Desired)
	}
	var d struct {
		Online   bool
		Firmware string
	}
	s.get(&d, "device", "show", "gw-1")
	if !d.Online || d.Firmware != "app@1.1.0" {
		s.t.Errorf("gw-1: %+v", d)
	}
	s.devices["gw-1"].kill()
	until(s.t, "the killed device to be offline", func() bool {
		s.get(&d, "device", "show", "gw-1")
		return !d.Online
	})
	s.startDevice("gw-1")
}

// newExternalSite is a server that keeps images in a real S3 server and speaks
// through a real mosquitto, which trusts otad's own CA.
func newExternalSite(t *testing.T) *site {
	t.Helper()
	gateway := testserver.VersityGW(t)
	env := []string{"OTAD_S3_ACCESS_KEY=" + gateway.AccessKey, "OTAD_S3_SECRET_KEY=" + gateway.SecretKey}
	broker := freeAddr(t)
	s := prepareSite(t, env, "--s3-endpoint", "http://"+gateway.Endpoint, "--s3-bucket", "firmware", "--s3-create-bucket=true", "--s3-region", gateway.Region,
		"--mqtt-broker", "mqtts://localhost:"+port(broker))
	out, err := exec.Command(bin+"/otad", "broker", "cert", "--data", s.path("server"), "--hosts", "localhost,127.0.0.1", "--out", s.path("broker")).CombinedOutput()
	if err != nil {
		t.Fatalf("otad broker cert: %v\n%s", err, out)
	}
	startMosquitto(t, s.path("broker"), broker)
	s.startServer()
	s.must("key", "init")
	s.token = strings.TrimSpace(s.must("token", "create", "--uses", "50", "--hardware", hardware, "-q"))
	return s
}

// startMosquitto runs Debian's broker with the configuration of
// docs/operations.md.
func startMosquitto(t *testing.T, dir, addr string) {
	t.Helper()
	acl := "user otad\ntopic readwrite $aws/things/#\ntopic readwrite ota/#\n\npattern readwrite $aws/things/%u/#\npattern readwrite ota/%u/#\n"
	conf := []string{
		"listener " + port(addr) + " 127.0.0.1", "cafile " + dir + "/ca.pem", "certfile " + dir + "/broker.pem", "keyfile " + dir + "/broker.key",
		"require_certificate true", "use_identity_as_username true", "use_username_as_clientid true", "allow_anonymous false",
		"acl_file " + dir + "/acl", "set_tcp_nodelay true", "max_packet_size 262144", "persistence false",
	}
	if os.Geteuid() == 0 {
		conf = append(conf, "user root")
	}
	for name, text := range map[string]string{"acl": acl, "mosquitto.conf": strings.Join(conf, "\n") + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		program = "/usr/sbin/mosquitto" // where Debian puts it
	}
	start(t, "mosquitto", filepath.Join(dir, "log"), nil, program, "-c", filepath.Join(dir, "mosquitto.conf"))
}

// TestWhileTheBrokerIsAway: the first start of a server that can not reach its
// broker yet. The operator and HTTPS are served, the broker's list of revoked
// certificates is there, readiness says what is missing, and it ends when asked to.
func TestWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	s := prepareSite(t, nil)
	p := start(t, "otad", s.path("otad.log"), nil, bin+"/otad", "serve", "--data", s.path("server"), "--hosts", "localhost", "--crl-file", s.path("crl.pem"),
		"--api-listen", s.ports[0], "--device-listen", s.ports[1], "--mqtt-broker", "mqtts://"+s.ports[2])
	s.at.API, s.at.Device = "https://"+s.ports[0], "https://localhost:"+port(s.ports[1])
	for _, file := range []string{s.path("server", "ca.pem"), s.path("server", "admin.token"), s.path("crl.pem")} {
		until(t, file, func() bool { _, err := os.Stat(file); return err == nil })
	}
	s.must("key", "init")
	s.token = strings.TrimSpace(s.must("token", "create", "--hardware", hardware, "-q"))
	s.enroll("gw-1")
	if code := s.timestamp(s, "gw-1"); code != "200" {
		t.Errorf("signed metadata: status %s", code)
	}
	if code, text := s.ready(); code != "503" || !strings.Contains(text, "broker: not ready") {
		t.Errorf("readiness: status %s, %s", code, text)
	}
	if _, err := os.Stat(s.path("server", "addresses.json")); err == nil {
		t.Error("it says that devices can come")
	}
	p.stop()
}

// ready is what /readyz answers.
func (s *site) ready() (code, text string) {
	s.t.Helper()
	out := output(s.t, "curl", "-sS", "-w", "%{http_code}", "--cacert", s.path("server", "ca.pem"), s.at.API+"/readyz")
	cut := max(0, len(out)-3)
	return out[cut:], out[:cut]
}

// TestBadInput is what an operator can get wrong: a clear text, the right
// status, and nothing changed.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.enroll("gw-1")
	s.release("1.0.0", 1000, true)
	s.must("firmware", "upload", s.firmware("2.0.0", 1000, true), "--name", "app", "--version", "2.0.0", "--hardware", hardware, "--draft")
	upload := func(file, version string) []string {
		return []string{"firmware", "upload", file, "--name", "app", "--version", version, "--hardware", hardware, "--installer", "binary"}
	}
	big := `{"blob":"` + strings.Repeat("x", 9000) + `"}`
	bigFile := s.path("big.json")
	if err := os.WriteFile(bigFile, []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	before := s.snapshot()
	for _, c := range []struct {
		name   string
		args   []string
		status int
		says   string
	}{
		{"unknown firmware file", upload("/no/such/file", "3.0.0"), 3, "no such file"},
		{"duplicate version with other content", upload(s.firmware("other", 1000, true), "1.0.0"), 4, "1.0.0"},
		{"unsigned release", []string{"rollout", "create", "--firmware", "app@2.0.0"}, 1, "sign"},
		{"unknown release", []string{"rollout", "create", "--firmware", "app@9"}, 3, "app@9"},
		{"selector that does not parse", []string{"rollout", "create", "--firmware", "app@1.0.0", "--select", `hardware = = "x"`}, 2, "^"},
		{"zero devices", []string{"rollout", "create", "--firmware", "app@1.0.0", "--select", `id = "nobody"`}, 1, "no device"},
		{"over 100 percent", []string{"rollout", "create", "--firmware", "app@1.0.0", "--stages", "50%,101%"}, 2, "101%"},
		{"not ascending", []string{"rollout", "create", "--firmware", "app@1.0.0", "--stages", "50%,10%"}, 2, "ascend"},
		{"device id with a slash", []string{"shadow", "get", "gw/1"}, 2, "device id"},
		{"device id with a hash", []string{"shadow", "set", "gw#", "a=1"}, 2, "device id"},
		{"device id with a plus", []string{"device", "show", "+"}, 2, "device id"},
		{"oversized shadow", []string{"shadow", "set", "gw-1", "-f", bigFile}, 2, "at most 8192"},
		{"unknown device", []string{"shadow", "set", "gw-9", "a=1"}, 3, "gw-9"},
		{"unknown rollout", []string{"rollout", "abort", "r-nope", "--yes"}, 3, "r-nope"},
	} {
		out, errOut, status := s.ctl(c.args...)
		if status != c.status || !strings.Contains(errOut, c.says) || !strings.Contains(errOut, "otactl: ") {
			t.Errorf("%s: status %d, want %d with %q\n%s%s", c.name, status, c.status, c.says, out, errOut)
		}
	}
	if after := s.snapshot(); after != before {
		t.Errorf("bad input changed something:\n%s\n%s", before, after)
	}
	s.badCredentials()
	s.check()
}

// snapshot is everything an operator sees, to compare.
func (s *site) snapshot() string {
	s.t.Helper()
	var all strings.Builder
	for _, args := range [][]string{{"firmware", "list"}, {"rollout", "list"}, {"device", "list"}} {
		var v any
		s.get(&v, args...)
		raw, err := json.Marshal(v)
		if err != nil {
			s.t.Fatal(err)
		}
		all.Write(raw)
	}
	return all.String()
}

func (s *site) badCredentials() {
	t := s.t
	t.Helper()
	cmd := exec.Command(bin+"/otactl", "firmware", "sign", "app@2.0.0", "--yes")
	cmd.Env = append(os.Environ(), "OTACTL_SERVER="+s.at.API, "OTACTL_CA_FILE="+s.path("server", "ca.pem"),
		"OTACTL_TOKEN_FILE="+s.path("server", "admin.token"), "OTACTL_CONFIG_DIR="+s.path("operator"), "OTACTL_PASSPHRASE=wrong wrong wrong")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "passphrase") {
		t.Errorf("wrong passphrase: %v\n%s", err, out)
	}
	stranger := s.path("stranger.token")
	if err := os.WriteFile(stranger, []byte("otat_0123456789abcdef_"+strings.Repeat("A", 43)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, status := s.ctl("device", "list", "--token-file", stranger); status != 5 || !strings.Contains(errOut, "token") {
		t.Errorf("unknown token: status %d\n%s", status, errOut)
	}
	if _, errOut, status := s.ctl("device", "list", "--server", "https://127.0.0.1:1"); status != 6 || !strings.Contains(errOut, "127.0.0.1:1") {
		t.Errorf("unreachable server: status %d\n%s", status, errOut)
	}
	enroll := exec.Command(bin+"/otagent", "enroll", "--server", s.at.Device, "--id", "gw-7", "--hardware", hardware, "--dir", s.path("gw-7"))
	used := strings.TrimSpace(s.must("token", "create", "--device", "cam-*", "-q"))
	enroll.Env = append(os.Environ(), "OTAGENT_TOKEN="+used)
	if out, err := enroll.CombinedOutput(); err == nil || enroll.ProcessState.ExitCode() != 5 {
		t.Errorf("token for other devices: %v\n%s", err, out)
	}
}
