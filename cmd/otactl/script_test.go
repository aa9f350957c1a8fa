package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	agenthttp "github.com/otad/otad/agent/http"
)

// patience is how long anything may take before a session gives up on it.
const patience = time.Minute

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"otactl": main})
}

// TestScripts runs the sessions that need no server.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Files:       scripts(t, false),
		Setup:       isolate,
		Cmds:        commandsOfScripts,
		WorkdirRoot: t.TempDir(), // its own stays behind when only some sessions are asked for
	})
}

// TestServerScripts runs the sessions server_*.txtar, each against an otad of
// its own.
func TestServerScripts(t *testing.T) {
	otad := filepath.Join(t.TempDir(), "otad")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", otad, "../otad")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make check compiles, which is used again
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build otad: %v\n%s", err, out)
	}
	testscript.Run(t, testscript.Params{
		Files: scripts(t, true),
		Setup: func(env *testscript.Env) error {
			if err := isolate(env); err != nil {
				return err
			}
			return startServer(env, otad)
		},
		Cmds:        commandsOfScripts,
		WorkdirRoot: t.TempDir(),
	})
}

func scripts(t *testing.T, server bool) []string {
	t.Helper()
	all, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, f := range all {
		if strings.HasPrefix(filepath.Base(f), "server_") == server {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		t.Fatal("no scripts found")
	}
	return files
}

// isolate keeps a session off the configuration of whoever runs the tests.
func isolate(env *testscript.Env) error {
	env.Setenv("OTACTL_CONFIG_DIR", filepath.Join(env.WorkDir, "config"))
	env.Setenv("OTACTL_PASSPHRASE", "correct horse battery")
	// Under the race detector every process would wait a second before it ends.
	env.Setenv("GORACE", "atexit_sleep_ms=0")
	return nil
}

// startServer runs otad over $WORK/data until the session ends, and tells the
// session where it is.
func startServer(env *testscript.Env, otad string) error {
	data := filepath.Join(env.WorkDir, "data")
	log, err := os.Create(filepath.Join(env.WorkDir, "otad.log"))
	if err != nil {
		return err
	}
	cmd := exec.Command(otad, "serve", "--data", data, "--hosts", "localhost,127.0.0.1",
		"--api-listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0", "--webhook-allow", "127.0.0.1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	env.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	api, err := serverAddress(data, ended)
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w\n%s", err, text)
	}
	env.Setenv("OTACTL_SERVER", api)
	env.Setenv("OTACTL_TOKEN_FILE", filepath.Join(data, "admin.token"))
	env.Setenv("OTACTL_CA_FILE", filepath.Join(data, "ca.pem"))
	return nil
}

// serverAddress waits for the file that otad writes once it listens.
func serverAddress(data string, ended <-chan struct{}) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		raw, err := os.ReadFile(filepath.Join(data, "addresses.json"))
		var addresses struct{ API string }
		if err == nil && json.Unmarshal(raw, &addresses) == nil && addresses.API != "" {
			return addresses.API, nil
		}
		select {
		case <-ended:
			return "", errors.New("otad ended before it listened")
		case <-ctx.Done():
			return "", errors.New("otad did not listen in time")
		case <-tick.C:
		}
	}
}

var commandsOfScripts = map[string]func(*testscript.TestScript, bool, []string){
	"status":  checkStatus,
	"mkimage": makeImage,
	"mode":    checkMode,
	"await":   awaitText,
	"enroll":  enrollDevice,
	"setenv":  setEnv,
	"receive": receiveWebhooks,
}

// checkStatus is "status N COMMAND...": it runs a command and demands its exit
// status, where exec knows only success and failure.
func checkStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s ended with status %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// makeImage is "mkimage FILE BYTES SEED": half of the bytes are text that
// compresses, half are not, the same for the same seed.
func makeImage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: mkimage FILE BYTES SEED")
	}
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	seed, err := strconv.ParseUint(args[2], 10, 64)
	ts.Check(err)
	raw := make([]byte, 0, size)
	for x := seed*2654435761 + 1; len(raw) < size; {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		if len(raw)/4096%2 == 0 {
			raw = append(raw, byte(x))
		} else {
			raw = append(raw, "firmware text "...)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), raw[:size], 0o644))
}

// checkMode is "mode 0600 FILE...".
func checkMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode OCTAL FILE...")
	}
	want, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if info.Mode().Perm() != os.FileMode(want) {
			ts.Fatalf("%s has mode %o, want %o", name, info.Mode().Perm(), want)
		}
	}
}

// enrollDevice is "enroll ID TOKENFILE [HARDWARE]": a device asks the server of
// the session for its certificate, as the agent does.
func enrollDevice(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: enroll ID TOKENFILE [HARDWARE]")
	}
	var addresses struct{ Device string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("data/addresses.json")), &addresses))
	_, key, err := ed25519.GenerateKey(nil)
	ts.Check(err)
	_, err = agenthttp.Enroll(context.Background(), agenthttp.Options{
		ServerURL: addresses.Device, Token: ts.ReadFile(args[1]), DeviceID: args[0], Hardware: strings.Join(args[2:], ""), Key: key,
	})
	ts.Check(err)
}

// setEnv is "setenv NAME FILE": the variable becomes the file's only line.
func setEnv(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: setenv NAME FILE")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// awaitText is "await FILE TEXT": it waits until a file that another command
// writes holds the text.
func awaitText(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE TEXT")
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		raw, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && strings.Contains(string(raw), args[1]) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			ts.Fatalf("%s does not hold %q:\n%s", args[0], args[1], raw)
		}
	}
}

// receiveWebhooks is "receive NAME FILE": a receiver of webhooks, whose URL is put
// into the environment, writes what comes into a file and takes it, unless the path
// ends in a status to answer with.
func receiveWebhooks(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: receive NAME FILE")
	}
	file, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			_, err = fmt.Fprintf(file, "%s %s\n", r.Header.Get("webhook-id"), body)
		}
		status, number := strconv.Atoi(filepath.Base(r.URL.Path))
		switch {
		case err != nil:
			w.WriteHeader(http.StatusInternalServerError)
		case number == nil:
			w.WriteHeader(status)
		}
	}))
	ts.Defer(func() {
		server.Close()
		_ = file.Close() // a test's
	})
	ts.Setenv(args[0], server.URL)
}
