package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The clients of other houses are programs: Debian's, Python's and npm's, the
// latter as clients/package-lock.json pins them and scripts/test-tools.sh puts
// them. What runs here of a library is its unmodified self; the drivers in
// clients/ only turn commands into its calls.

// modules is where the npm packages lie.
func modules(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../.cache/clients/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the npm clients are not installed, run make test-tools: %v", err)
	}
	return dir
}

// python is Debian's, which has Debian's paho; another may stand first in PATH.
const python = "/usr/bin/python3"

// driver is one client as a process that speaks lines of JSON.
type driver struct {
	t      *testing.T
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  chan line
	events []line // heard, not yet asked for
	last   int
}

type line struct {
	ID    int
	OK    json.RawMessage
	Error *fault
	Event string
	Body  json.RawMessage
	raw   string
}

// fault is an error as a client's library gives it.
type fault struct {
	Message string
	Modeled struct {
		Code    any
		Message string
	}
}

// drive starts a client.
func drive(t *testing.T, name string, env []string, argv ...string) *driver {
	t.Helper()
	d := &driver{t: t, name: name, cmd: exec.Command(argv[0], argv[1:]...), lines: make(chan line, 1000)}
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	errs, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stderr = errs
	if d.stdin, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go d.read(stdout)
	t.Cleanup(func() {
		_ = d.stdin.Close()
		_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL) // most have ended by themselves
		_ = d.cmd.Wait()
		_ = errs.Close()
		if raw, err := os.ReadFile(errs.Name()); t.Failed() && err == nil {
			t.Logf("%s: unheard events %v\nstderr:\n%s", name, d.heard(), tail(raw, 4000))
		}
	})
	return d
}

func (d *driver) read(r io.Reader) {
	defer close(d.lines)
	for s := bufio.NewScanner(r); s.Scan(); {
		l := line{raw: s.Text()}
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			l.Event = "text" // of a program that is not ours
		}
		d.lines <- l
	}
}

func (d *driver) heard() (all []string) {
	for _, l := range d.events {
		all = append(all, l.raw)
	}
	return all
}

// next returns the next line.
func (d *driver) next(what string) line {
	d.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case l, ok := <-d.lines:
		if !ok {
			d.t.Fatalf("%s ended; wanted %s", d.name, what)
		}
		return l
	case <-timer.C:
		d.t.Fatalf("%s: gave up waiting for %s", d.name, what)
	}
	return line{}
}

// args are the parameters of a command or a call.
type args map[string]any

// try has the client do something and returns what came of it.
func (d *driver) try(do string, more args) (json.RawMessage, *fault) {
	d.t.Helper()
	d.last++
	command := args{"id": d.last, "do": do}
	for k, v := range more {
		command[k] = v
	}
	raw, err := json.Marshal(command)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.stdin.Write(append(raw, '\n')); err != nil {
		d.t.Fatalf("%s: %v", d.name, err)
	}
	for {
		l := d.next(string(raw))
		if l.Event != "" {
			d.events = append(d.events, l)
			continue
		}
		if l.ID != d.last {
			d.t.Fatalf("%s: answer out of turn: %s", d.name, l.raw)
		}
		return l.OK, l.Error
	}
}

// must is try that has to go well.
func (d *driver) must(do string, more args) object {
	d.t.Helper()
	ok, fault := d.try(do, more)
	if fault != nil {
		d.t.Fatalf("%s: %s %v: %+v", d.name, do, more, *fault)
	}
	var o object
	_ = json.Unmarshal(ok, &o) // not every answer is an object
	return o
}

// event waits for the named event with a body that suits.
func (d *driver) event(name string, suits func(object) bool) object {
	d.t.Helper()
	for i := 0; ; i++ {
		if i == len(d.events) {
			d.events = append(d.events, d.next("the event "+name))
		}
		l := d.events[i]
		var o object
		_ = json.Unmarshal(l.Body, &o)
		if l.Event == name && (suits == nil || suits(o)) {
			d.events = append(d.events[:i:i], d.events[i+1:]...)
			return o
		}
	}
}

// end closes the client's input and waits until it has taken its leave. How the
// process ends then is not judged: the native core of the SDK v2 can abort in
// its clean-up.
func (d *driver) end(t *testing.T) {
	t.Helper()
	d.t = t
	if err := d.stdin.Close(); err != nil {
		t.Error(err)
	}
	d.event("closed", nil)
}

// object is JSON that somebody sent.
type object map[string]any

// at returns the value behind names with dots between them, nil for none.
func (o object) at(path string) any {
	var v any = map[string]any(o)
	for _, name := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

// has checks values by their paths. Numbers are written as float64.
func (o object) has(t *testing.T, want map[string]any) {
	t.Helper()
	for path, v := range want {
		if got := o.at(path); !reflect.DeepEqual(got, v) {
			t.Errorf("%s is %#v, want %#v in %v", path, got, v, o)
		}
	}
}

// foreign is a device that has no agent: an enrolled identity with a key of the
// kind that every TLS stack knows.
func (s *site) foreign(id string) {
	s.t.Helper()
	s.enroll(id, "--key-type", "p256")
}

// shadow is what the server has stored.
func (s *site) shadow(id string, more ...string) object {
	s.t.Helper()
	var o object
	s.get(&o, append([]string{"shadow", "get", id}, more...)...)
	return o
}

// files are the flags of Debian's MQTT clients for a device.
func (s *site) files(id string) []string {
	return []string{"-h", "localhost", "-p", port(s.ports[2]), "--cafile", s.path(id, "ca.pem"), "--cert", s.path(id, "device.crt"), "--key", s.path(id, "device.key")}
}

// output runs a program to its end.
func output(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := try(t, argv...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", argv[0], err, out)
	}
	return out
}

// try is output that may end badly.
func try(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", argv[0], err)
	}
	return string(out), nil
}
