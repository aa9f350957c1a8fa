package binary

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script makes an app out of a shell script, as a slot holds it: not
// executable.
func script(t *testing.T, text string, run ...string) agent.App {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, []byte("#!/bin/sh\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return agent.App{Manifest: ota.Manifest{Run: run}, Image: image, LogPath: filepath.Join(dir, "app.log")}
}

func start(t *testing.T, app agent.App) agent.Process {
	t.Helper()
	p, err := Installer{}.Start(t.Context(), app)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(15 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: waited in vain", what)
		}
	}
}

func read(name string) string {
	b, _ := os.ReadFile(name)
	return string(b)
}

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) }

// zombie: a grandchild that nobody reaps is dead all the same.
func zombie(pid int) bool {
	return strings.Contains(read("/proc/"+strconv.Itoa(pid)+"/stat"), ") Z ")
}

func TestArgumentsPassNoShell(t *testing.T) {
	app := script(t, `for a in "$@"; do echo "[$a]"; done; exec sleep 60`, "{image}", "--at", "x{image}y", "$(reboot); `id`", "*")
	p := start(t, app)
	eventually(t, "output", func() bool { return strings.Contains(read(app.LogPath), "[*]") })
	want := "[--at]\n[x" + app.Image + "y]\n[$(reboot); `id`]\n[*]\n"
	if got := read(app.LogPath); got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	if !p.Alive() {
		t.Error("does not count as alive")
	}
	p.Stop()
	if p.Alive() {
		t.Error("counts as alive after Stop")
	}
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	app := script(t, `sleep 60 & trap 'echo bye; exit 0' TERM; echo child $!; while :; do sleep 0.05; done`)
	p := start(t, app)
	var child int
	eventually(t, "child", func() bool {
		_, text, _ := strings.Cut(read(app.LogPath), "child ")
		n, err := strconv.Atoi(strings.TrimSpace(text))
		child = n
		return err == nil && strings.HasSuffix(text, "\n")
	})
	p.Stop()
	eventually(t, "the child to end", func() bool { return gone(child) })
	if !strings.Contains(read(app.LogPath), "bye") {
		t.Error("the program was not asked to end")
	}
}

func TestRestartsAfterDeath(t *testing.T) {
	app := script(t, `echo run; [ -f "$1" ] && exec sleep 60; : > "$1"; exit 3`, "{image}", "{image}.flag")
	var crashed atomic.Value
	app.Crashed = func(err error) { crashed.Store(err.Error()) }
	p := start(t, app)
	eventually(t, "death", func() bool { return !p.Alive() })
	eventually(t, "restart", func() bool { return strings.Count(read(app.LogPath), "run\n") == 2 && p.Alive() })
	if why, _ := crashed.Load().(string); !strings.Contains(why, "exit status 3") {
		t.Errorf("told as %q", why)
	}
}

func TestStopWhileWaitingForARestart(t *testing.T) {
	p := start(t, script(t, "exit 1"))
	eventually(t, "death", func() bool { return !p.Alive() })
	began := time.Now()
	p.Stop()
	if took := time.Since(began); took > Grace {
		t.Errorf("took %s", took)
	}
}

func TestWhatCanNotRun(t *testing.T) {
	app := script(t, "")
	if err := os.WriteFile(app.Image, []byte("\x7fELF damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Installer{}).Start(t.Context(), app); !errors.Is(err, syscall.ENOEXEC) {
		t.Errorf("a damaged executable: %v", err)
	}
	app.Image += "-missing"
	if _, err := (Installer{}).Start(t.Context(), app); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing image: %v", err)
	}
	app = script(t, "", "/does/not/exist")
	if _, err := (Installer{}).Start(t.Context(), app); !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing program: %v", err)
	}
}

func TestLogIsBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "app.log")
	l, err := openLog(name)
	if err != nil {
		t.Fatal(err)
	}
	line := append(bytes.Repeat([]byte("x"), 9_999), '\n')
	for range 5 * MaxLog / len(line) {
		if n, err := l.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{name, name + ".1"} {
		st, err := os.Stat(f)
		if err != nil || st.Size() > MaxLog || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st, err)
		}
	}
}
