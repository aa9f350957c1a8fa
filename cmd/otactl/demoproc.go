package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// processes are the server and the devices of a demo. One that ends by itself
// ends the demo.
type processes struct {
	cancel context.CancelFunc

	mu       sync.Mutex
	running  []*exec.Cmd
	stopping bool
	err      error // why the demo was cancelled
	ended    sync.WaitGroup
}

func newProcesses(cancel context.CancelFunc) *processes { return &processes{cancel: cancel} }

// startTimeout is how long the server may take until it listens.
const startTimeout = 30 * time.Second

// findOtad looks for the server beside this executable, then in PATH.
func findOtad(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "otad")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("otad")
	return path, hint(err, "make build puts otad beside otactl; or name it with --otad")
}

// start runs a command with its output in a log file. It dies with this process
// even if that is killed.
func (p *processes) start(what, logPath string, argv ...string) error {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	p.ended.Go(func() {
		// The death signal is tied to the thread that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.reaped(what, logPath, cmd.Wait())
		}
		_ = log.Close() // the child wrote it
	})
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", what, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = append(p.running, cmd)
	return nil
}

func (p *processes) reaped(what, logPath string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping || p.err != nil {
		return
	}
	p.err = hint(fail(exitFailed, "%s ended by itself: %v", what, err), "its log: %s", lastLine(logPath))
	p.cancel()
}

// failure is why the demo was cancelled, nil when it was not by a process.
func (p *processes) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// stop ends all processes and waits for them, devices first.
func (p *processes) stop() error {
	p.mu.Lock()
	p.stopping = true
	running := p.running
	p.mu.Unlock()
	for i := len(running) - 1; i >= 0; i-- {
		_ = running[i].Process.Signal(syscall.SIGTERM) // one that is gone needs none
	}
	done := make(chan struct{})
	go func() { p.ended.Wait(); close(done) }()
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
	}
	for _, cmd := range running {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	<-done
	return errors.New("some processes did not stop when asked and were killed")
}

func (p *processes) startOtad(ctx context.Context, otad, data, log string) error {
	err := p.start("otad", log, otad, "serve", "--data", data, "--hosts", "localhost",
		"--api-listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return awaitFile(ctx, filepath.Join(data, "addresses.json"))
}

// awaitFile waits until a file is there.
func awaitFile(ctx context.Context, path string) error {
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for %s: %w", filepath.Base(path), err)
		}
	}
}

// agentsSpec says which agents to start.
type agentsSpec struct {
	n                  int
	dir, server, token string
}

// startAgents enrolls and starts each agent as a process of this executable.
func (p *processes) startAgents(ctx context.Context, s agentsSpec) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i := range s.n {
		group.Go(func() error {
			id := deviceName(i + 1)
			dir := filepath.Join(s.dir, id)
			enroll := exec.CommandContext(ctx, self, "agent", "enroll", "--server", s.server, "--id", id, "--hardware", demoHardware, "--dir", dir)
			enroll.Env = append(os.Environ(), "OTAGENT_TOKEN="+s.token) // a command line is visible to everybody
			if out, err := enroll.CombinedOutput(); err != nil {
				return fmt.Errorf("enroll %s: %w: %s", id, err, bytes.TrimSpace(out))
			}
			return p.start("agent "+id, dir+".log", self, "agent", "run", "--dir", dir)
		})
	}
	return group.Wait()
}

// lastLine returns the end of a log, for an error text.
func lastLine(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	raw = bytes.TrimSpace(raw)
	if i := bytes.LastIndexByte(raw, '\n'); i >= 0 {
		raw = raw[i+1:]
	}
	return string(raw[:min(len(raw), 500)])
}
