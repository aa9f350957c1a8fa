package e2e

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCommand: an operator has a real agent run what its configuration allows, and
// nothing else, past an install that waits for its window; and collects its logs.
func TestCommand(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for _, id := range []string{"gw-1", "gw-2"} {
		s.enroll(id)
		log := s.path(id + ".app.log")
		if err := os.WriteFile(log, []byte("it is "+id+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.owner(id, map[string]any{
			"actions": map[string]any{"greet": map[string]any{
				"run": []string{"/bin/sh", "-c", `echo "hello $1"; test "$1" != nobody`, "greet", "{who}"}, "parameters": map[string]string{"who": "[a-z;$ ]+"},
			}},
			"logs": map[string]any{"files": []string{log}},
		})
		s.startDevice(id)
	}
	opens := time.Now().AddDate(0, 2, 0)
	s.release("1.0.0", 1000, true)
	install := s.rollout("1.0.0", "--stages", "100%", "--window", fmt.Sprintf("FREQ=YEARLY;BYMONTH=%d;BYMONTHDAY=1;BYHOUR=4 for 1h", opens.Month()))
	until(t, "gw-1 to wait for its window", func() bool { return strings.Contains(s.must("device", "why", "gw-1"), "has not begun: window opens") })

	if out := s.must("command", "run", "gw-1", "greet", "--wait", "-q", "--", "who=a; $b"); out != "hello a; $b\n" {
		t.Errorf("it said %q", out)
	}
	if out, notes, status := s.ctl("command", "run", "gw-1", "greet", "--wait", "--", "who=nobody"); status != 7 || out != "hello nobody\n" || !strings.Contains(notes, "exit status 1") {
		t.Errorf("what failed: %d %s %s", status, out, notes)
	}
	for name, want := range map[string]string{"wipe": "not allowed on this device", "greet": "needs the parameter"} {
		if _, notes, status := s.ctl("command", "run", "gw-1", name, "--wait"); status != 7 || !strings.Contains(notes, want) || !strings.Contains(notes, "rejected") {
			t.Errorf("%s: %d %s", name, status, notes)
		}
	}
	s.must("command", "run", "--all", "--yes", "collect-logs", "--wait", "--max-in-flight", "1", "-q")
	for _, id := range []string{"gw-1", "gw-2"} {
		archive := s.path(id + ".tgz")
		s.must("device", "logs", id, "--out", archive)
		if text, err := inArchive(archive, id+".app.log"); err != nil || text != "it is "+id+"\n" {
			t.Errorf("%s: %q %v", id, text, err)
		}
	}
	s.must("command", "run", "gw-2", "reboot", "--wait", "-q")
	if out := s.must("device", "why", "gw-1"); !strings.Contains(out, install) || !strings.Contains(out, "has not begun: window opens") {
		t.Errorf("the install: %s", out)
	}
	s.check()
}

// inArchive returns the file of a tar in gzip whose name ends so.
func inArchive(path, name string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return "", err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err != nil {
			return "", errors.Join(err, fmt.Errorf("%s is not in %s", name, path))
		}
		if strings.HasSuffix(h.Name, "/"+name) {
			b, err := io.ReadAll(r)
			return string(b), err
		}
	}
}
