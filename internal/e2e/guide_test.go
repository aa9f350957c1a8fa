package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// guide writes a program of docs/device-guide.md into dir, so that what people
// copy is what the tests run. The name stands behind the language of its block.
func guide(t *testing.T, name, dir string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/device-guide.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```\\w+ " + regexp.QuoteMeta(name) + "\n(.*?)^```$").FindSubmatch(text)
	if block == nil {
		t.Fatalf("the guide has no block called %s", name)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, block[1], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// home is a directory as the guide has it: the device's files are in dev.
func (s *site) home(id string) string {
	s.t.Helper()
	dir := s.t.TempDir()
	if err := os.Symlink(s.path(id), filepath.Join(dir, "dev")); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// guideSensor runs a program of the guide that keeps a shadow: it takes what was
// wanted while it was away, and what is wanted later, and reports both.
func guideSensor(t *testing.T, s *site, id, program, url string, argv ...string) {
	s.foreign(id)
	s.must("shadow", "set", id, "interval=30")
	dir := s.home(id)
	guide(t, program, dir)
	env := []string{"NODE_PATH=" + modules(t), "PYTHONUNBUFFERED=1"}
	p := startIn(t, dir, program, s.path(id+".log"), env, append(argv, program, url, id)...)
	reported := func(name string, v any) {
		t.Helper()
		until(t, program+" to report", func() bool {
			select {
			case <-p.done:
				t.Fatalf("%s ended: %s", program, p.text())
			default:
			}
			return s.shadow(id).at("state.reported."+name) == v
		})
	}
	reported("interval", 30.0)
	s.must("shadow", "set", id, "mode=eco")
	reported("mode", "eco")
	if got := p.text(); strings.Count(got, "apply") < 2 {
		t.Errorf("it says %q", got)
	}
	s.online(id, true)
	p.kill()
	s.online(id, false)
}

func (s *site) online(id string, want bool) {
	s.t.Helper()
	var d struct{ Online bool }
	until(s.t, id+" to come or go", func() bool {
		s.get(&d, "device", "show", id)
		return d.Online == want
	})
}

// guideShell is the guide's way without any program of ours: enrolled with curl
// and openssl, first words with mosquitto's clients.
func guideShell(t *testing.T, s *site) {
	dir := t.TempDir()
	ca, err := os.ReadFile(s.path("server", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"ca.pem": string(ca), "token": s.token + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, argv ...string) string {
		t.Helper()
		p := startIn(t, dir, name, filepath.Join(dir, name+".log"), nil, append([]string{"bash", name}, argv...)...)
		<-p.done
		if !p.cmd.ProcessState.Success() {
			t.Fatalf("%s: %v\n%s", name, p.cmd.ProcessState, p.text())
		}
		return p.text()
	}
	guide(t, "enroll.sh", dir)
	for range 2 { // again is harmless
		if out := run("enroll.sh", s.at.Device, "sensor-1", hardware); !strings.Contains(out, s.at.MQTT) {
			t.Errorf("enroll.sh says %s", out)
		}
	}
	path := guide(t, "shadow.sh", dir)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("ota.example", "localhost", "8883", port(s.ports[2])).Replace(string(text))
	if err := os.WriteFile(path, []byte(here), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run("shadow.sh"); strings.Count(out, `"temperature":21.5`) != 2 {
		t.Errorf("shadow.sh says %s", out)
	}
	s.shadow("sensor-1").has(t, map[string]any{"state.reported.temperature": 21.5, "state.reported.interval": 30.0})
}
