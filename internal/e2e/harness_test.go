// Package e2e tests the whole path with the programs themselves: otad, otactl
// and otagent as processes, over TLS on loopback, with real brokers and stores.
package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/otad/otad/internal/testserver"
)

// bin holds the programs under test, built once.
var bin string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "otad-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// With the flags of make check as to compiling: what it compiled is used again.
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", dir+"/", "../../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	bin = dir
	return m.Run()
}

// patience is how long anything may take before a test gives up on it.
const patience = 90 * time.Second

// until waits for a condition of another process; there is nothing to be woken
// by, so it looks again and again.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("gave up waiting for %s", what)
		}
	}
}

// proc is one running program.
type proc struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func start(t *testing.T, name, log string, env []string, argv ...string) *proc {
	t.Helper()
	return startIn(t, "", name, log, env, argv...)
}

// startIn is start in a directory.
func startIn(t *testing.T, dir, name, log string, env []string, argv ...string) *proc {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	p := &proc{t: t, name: name, log: log, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, f, f
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.kill()
		if _, again := told.LoadOrStore(log, true); t.Failed() && !again {
			raw, _ := os.ReadFile(log)
			t.Logf("%s:\n%s", name, tail(raw, 16000))
		}
	})
	return p
}

// told are the logs that failed tests have shown: who is killed and started again
// goes on with the same.
var told sync.Map

// text is what the program has written so far.
func (p *proc) text() string {
	raw, _ := os.ReadFile(p.log) // made at the start
	return string(raw)
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// kill ends the program and its children without a word, as a power cut does.
func (p *proc) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may be gone already
	<-p.done
}

// stop asks the program to end.
func (p *proc) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.t.Fatalf("%s did not stop", p.name)
	}
}

// site is one server with its operator and devices.
type site struct {
	t       *testing.T
	dir     string
	flags   []string
	env     []string // of the server
	server  *proc
	ports   [3]string
	plain   string // address of plain MQTT, for sites that have it
	devices map[string]*proc
	at      struct{ API, Device, MQTT string }
	token   string
}

const hardware = "e2e"

// newSite starts a server with extra flags and initialises its keys.
func newSite(t *testing.T, env []string, flags ...string) *site {
	t.Helper()
	s := prepareSite(t, env, flags...)
	s.startServer()
	s.must("key", "init")
	s.token = strings.TrimSpace(s.must("token", "create", "--uses", "50", "--hardware", hardware, "-q"))
	return s
}

func prepareSite(t *testing.T, env []string, flags ...string) *site {
	s := &site{t: t, dir: t.TempDir(), flags: flags, env: env, devices: map[string]*proc{}}
	for i := range s.ports { // fixed for the site's life, so that a restarted server is found again
		s.ports[i] = freeAddr(t)
	}
	return s
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := testserver.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func (s *site) path(name ...string) string { return filepath.Join(append([]string{s.dir}, name...)...) }

func (s *site) startServer() {
	s.t.Helper()
	_ = os.Remove(s.path("server", "addresses.json")) // of an earlier run
	argv := append([]string{bin + "/otad", "serve", "--data", s.path("server"), "--hosts", "localhost,127.0.0.1", "--log-format", "text",
		"--api-listen", s.ports[0], "--device-listen", s.ports[1], "--mqtt-listen", s.ports[2]}, s.flags...)
	s.server = start(s.t, "otad", s.path("otad.log"), s.env, argv...)
	until(s.t, "the server to listen", func() bool {
		select {
		case <-s.server.done:
			s.t.Fatal("otad ended at its start")
		default:
		}
		raw, err := os.ReadFile(s.path("server", "addresses.json"))
		return err == nil && json.Unmarshal(raw, &s.at) == nil
	})
}

// operator is the environment that lets otactl in.
func (s *site) operator() []string {
	return []string{
		"OTACTL_SERVER=" + s.at.API, "OTACTL_CA_FILE=" + s.path("server", "ca.pem"),
		"OTACTL_TOKEN_FILE=" + s.path("server", "admin.token"), "OTACTL_CONFIG_DIR=" + s.path("operator"), "OTACTL_PASSPHRASE=correct horse",
	}
}

// metrics is what the server shows of itself.
func (s *site) metrics() string {
	s.t.Helper()
	raw, err := os.ReadFile(s.path("server", "admin.token"))
	if err != nil {
		s.t.Fatal(err)
	}
	return output(s.t, "curl", "-sSf", "--cacert", s.path("server", "ca.pem"), "-H", "Authorization: Bearer "+strings.TrimSpace(string(raw)), s.at.API+"/metrics")
}

// ctl runs otactl and returns what it wrote and its exit status.
func (s *site) ctl(args ...string) (stdout, stderr string, status int) {
	s.t.Helper()
	cmd := exec.Command(bin+"/otactl", args...)
	cmd.Env = append(os.Environ(), s.operator()...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func (s *site) must(args ...string) string {
	s.t.Helper()
	out, errOut, status := s.ctl(args...)
	if status != 0 {
		s.t.Fatalf("otactl %s: status %d\n%s%s", strings.Join(args, " "), status, out, errOut)
	}
	return out
}

// get runs otactl with -o json and reads the answer.
// unreachable is the exit status of otactl when the server does not answer in time. On
// a machine with far too much to do that happens; a question may be asked again.
const unreachable, timesAsked = 6, 5

// get asks for something.
func (s *site) get(to any, args ...string) {
	s.t.Helper()
	args = append(args, "-o", "json")
	out, errOut, status := s.ctl(args...)
	for asked := 1; status == unreachable && asked < timesAsked; asked++ {
		out, errOut, status = s.ctl(args...)
	}
	if status != 0 {
		s.t.Fatalf("otactl %s: status %d\n%s%s", strings.Join(args, " "), status, out, errOut)
	}
	if err := json.Unmarshal([]byte(out), to); err != nil {
		s.t.Fatalf("otactl %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// enroll makes a device; it is not started.
func (s *site) enroll(id string, more ...string) {
	s.t.Helper()
	cmd := exec.Command(bin+"/otagent", append([]string{"enroll", "--server", s.at.Device, "--id", id, "--hardware", hardware, "--dir", s.path(id)}, more...)...)
	cmd.Env = append(os.Environ(), "OTAGENT_TOKEN="+s.token)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("enroll %s: %v\n%s", id, err, out)
	}
}

func (s *site) startDevice(id string) {
	s.t.Helper()
	s.devices[id] = start(s.t, id, s.path(id+".log"), nil, bin+"/otagent", "run", "--dir", s.path(id), "--log-format", "text")
}

func (s *site) addDevices(n int) []string {
	s.t.Helper()
	var ids []string
	for i := range n {
		id := fmt.Sprintf("gw-%d", i+1)
		s.enroll(id)
		s.startDevice(id)
		ids = append(ids, id)
	}
	return ids
}

// firmware is an application: a shell script, since a device's operating system
// runs those as well, of a chosen size so that a download can be interrupted.
func (s *site) firmware(version string, size int, healthy bool) string {
	s.t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "#!/bin/sh\n# application %s\n", version)
	if healthy {
		fmt.Fprint(&b, "case \"$1\" in check) exit 0;; esac\nexec sleep 100000\n")
	} else {
		fmt.Fprint(&b, "case \"$1\" in check) echo bad sector; exit 1;; esac\nexec sleep 100000\n")
	}
	fmt.Fprint(&b, "exit 0\n")
	b.Write(noise(version, max(size-b.Len(), 0)))
	path := s.path("app-" + version)
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// noise is text that does not compress well and is the same for a seed.
func noise(seed string, n int) []byte {
	out := make([]byte, n)
	x := uint64(len(seed)) + 0x9e3779b97f4a7c15
	for _, c := range seed {
		x = (x ^ uint64(c)) * 0x100000001b3
	}
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x)
	}
	return out
}

// contract is how a device finds out whether an application is healthy: what is has
// time for it on a busy machine too, what is not is waited for.
func contract(healthy bool) string {
	deadline := "15s"
	if healthy {
		deadline = patience.String()
	}
	return fmt.Sprintf(`{"hold":"1s","deadline":%q,"checks":[{"running":{}},{"command":["{image}","check"]}]}`, deadline)
}

// release uploads and signs an application.
func (s *site) release(version string, size int, healthy bool, extra ...string) {
	s.t.Helper()
	health := s.path("health.json")
	if err := os.WriteFile(health, []byte(contract(healthy)), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.must(append([]string{"firmware", "upload", s.firmware(version, size, healthy), "--name", "app", "--version", version,
		"--hardware", hardware, "--installer", "binary", "--health", health}, extra...)...)
}

// rollout starts one and returns its id.
func (s *site) rollout(version string, args ...string) string {
	s.t.Helper()
	return strings.TrimSpace(s.must(append([]string{"rollout", "create", "--firmware", "app@" + version, "--soak", "0s", "-o", "name", "-q"}, args...)...))
}

type rolloutJSON struct {
	ID, State, Reason string
	Stages            []struct {
		State  string
		Target int
		Counts struct {
			Queued, InProgress int
			Finished           map[string]int
		}
	}
	Failures []struct {
		DeviceID, Status, Class, Reason string
	}
}

func (s *site) show(id string) rolloutJSON {
	s.t.Helper()
	var r rolloutJSON
	s.get(&r, "rollout", "show", id)
	return r
}

// ends waits until the rollout is in the state.
func (s *site) ends(id, state string) rolloutJSON {
	s.t.Helper()
	var r rolloutJSON
	until(s.t, "rollout "+id+" to be "+state, func() bool {
		r = s.show(id)
		if (r.State == "COMPLETED" || r.State == "ABORTED" || r.State == "ROLLED_BACK") && r.State != state {
			s.t.Fatalf("rollout %s is %s: %s %+v", id, r.State, r.Reason, r.Failures)
		}
		return r.State == state
	})
	return r
}

// runs says which version stands in a device's active slot, by its bytes.
func (s *site) runs(id string) string {
	s.t.Helper()
	f, err := os.Open(s.path(id, "current", "image"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	} else if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 200)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		s.t.Fatal(err)
	}
	if m := regexp.MustCompile(`application (\S+)`).FindSubmatch(head[:n]); m != nil {
		return string(m[1])
	}
	return ""
}

func (s *site) allRun(version string) {
	s.t.Helper()
	for id := range s.devices {
		if got := s.runs(id); got != version {
			s.t.Errorf("%s runs %q, want %q", id, got, version)
		}
	}
}

// status is what the agent last wrote about itself.
func (s *site) status(id string) (st struct{ State, Reason, LastError string }) {
	raw, err := os.ReadFile(s.path(id, "state", "status.json"))
	if err == nil {
		_ = json.Unmarshal(raw, &st) // written atomically; a wrong one fails what waits for it
	}
	return st
}

// check stops the server and runs the invariant checker over its store.
func (s *site) check() {
	s.t.Helper()
	for _, d := range s.devices {
		d.stop()
	}
	s.server.stop()
	cmd := exec.Command(bin+"/otad", append([]string{"check", "--data", s.path("server")}, s3Flags(s.flags)...)...)
	cmd.Env = append(os.Environ(), s.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Errorf("otad check: %v\n%s", err, out)
	}
}

// s3Flags picks the flags that check takes too.
func s3Flags(flags []string) []string {
	var out []string
	for i, f := range flags {
		if strings.HasPrefix(f, "--s3-") && !strings.Contains(f, "=") {
			out = append(out, f, flags[i+1])
		}
	}
	return out
}

func port(addr string) string {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err) // our own listener's address
	}
	if _, err := strconv.Atoi(p); err != nil {
		panic(err)
	}
	return p
}
