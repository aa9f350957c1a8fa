// Package binary is the installer of releases that are one executable: it runs
// the slot's image as a process group of its own, starts it again when it dies,
// and ends it with all its children before another slot is booted.
//
// Arguments come from the signed manifest and never pass a shell. Output goes
// to a log file of bounded size. It is not an init system: one program, no
// dependencies, no sockets.
package binary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/otad/otad/agent"
)

// Bounds of supervision.
const (
	// Grace is how long a program may take to end after SIGTERM.
	Grace = 5 * time.Second
	// restartBase and restartMax bound the doubling wait before a restart; a
	// program that lived for steadyAfter starts over at the base.
	restartBase = time.Second
	restartMax  = time.Minute
	steadyAfter = time.Minute
	// busyRetries is how often a start is tried again while another process
	// still has the file open for writing (ETXTBSY).
	busyRetries = 20
	busyWait    = 50 * time.Millisecond
)

const imageWord = "{image}"

// Installer implements agent.Installer.
type Installer struct {
	Log *slog.Logger // nil: discarded
}

var _ agent.Installer = Installer{}

// Start makes the image executable, runs it and watches over it until Stop. It
// fails when the program can not be started at all.
func (in Installer) Start(ctx context.Context, app agent.App) (agent.Process, error) {
	image, err := filepath.Abs(app.Image)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(image, 0o700); err != nil {
		return nil, fmt.Errorf("make the image executable: %w", err)
	}
	out, err := openLog(app.LogPath)
	if err != nil {
		return nil, err
	}
	p := &process{crashed: app.Crashed, argv: arguments(app.Manifest.Run, image), out: out, log: in.Log, stop: make(chan struct{}), done: make(chan struct{})}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	started := make(chan error, 1)
	go p.supervise(ctx, started)
	if err := <-started; err != nil {
		<-p.done
		return nil, err
	}
	return p, nil
}

func arguments(run []string, image string) []string {
	if len(run) == 0 {
		return []string{image}
	}
	argv := make([]string, len(run))
	for i, a := range run {
		argv[i] = strings.ReplaceAll(a, imageWord, image)
	}
	return argv
}

type process struct {
	argv []string
	out  *logFile
	log  *slog.Logger
	// crashed may be nil.
	crashed func(error)
	alive   atomic.Bool
	once    sync.Once
	stop    chan struct{}
	done    chan struct{}
}

// Alive implements agent.Process.
func (p *process) Alive() bool { return p.alive.Load() }

// Stop implements agent.Process.
func (p *process) Stop() {
	p.once.Do(func() { close(p.stop) })
	<-p.done
}

// supervise runs the program until Stop. The goroutine keeps its thread, since
// the kernel ends the program with the thread that started it (if the agent
// dies, so does the program: the next agent starts its own).
func (p *process) supervise(ctx context.Context, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	defer p.out.Close()
	wait := restartBase
	for first := true; ; first = false {
		began := time.Now()
		cmd, err := p.spawn(ctx, first)
		if first {
			started <- err
			if err != nil {
				return
			}
		}
		if err == nil {
			err = p.watch(cmd)
			if err == nil {
				return
			}
		}
		if time.Since(began) >= steadyAfter {
			wait = restartBase
		}
		if p.crashed != nil {
			p.crashed(err)
		}
		p.log.Warn("application ended", "argv0", p.argv[0], "err", err, "restartIn", wait)
		t := time.NewTimer(wait)
		select {
		case <-p.stop:
			t.Stop()
			return
		case <-t.C:
		}
		wait = min(2*wait, restartMax)
	}
}

// spawn starts the program; ctx limits only the first start.
func (p *process) spawn(ctx context.Context, first bool) (*exec.Cmd, error) {
	for try := 0; ; try++ {
		cmd := exec.Command(p.argv[0], p.argv[1:]...)
		cmd.Stdout, cmd.Stderr = p.out, p.out
		cmd.WaitDelay = time.Second
		cmd.SysProcAttr = ownGroup()
		err := cmd.Start()
		if err == nil {
			p.alive.Store(true)
			return cmd, nil
		}
		if !errors.Is(err, syscall.ETXTBSY) || try == busyRetries {
			return nil, err
		}
		t := time.NewTimer(busyWait)
		select {
		case <-t.C:
		case <-p.stop:
			t.Stop()
			return nil, err
		case <-whileFirst(ctx, first):
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

func whileFirst(ctx context.Context, first bool) <-chan struct{} {
	if first {
		return ctx.Done()
	}
	return nil
}

// watch waits for the program's end. It returns nil when Stop ended it.
func (p *process) watch(cmd *exec.Cmd) error {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer p.alive.Store(false)
	select {
	case err := <-ended:
		p.alive.Store(false)
		killGroup(cmd, syscall.SIGKILL) // children it left behind
		if err == nil {
			err = errors.New("exit status 0")
		}
		return err
	case <-p.stop:
	}
	killGroup(cmd, syscall.SIGTERM)
	t := time.NewTimer(Grace)
	defer t.Stop()
	select {
	case <-ended:
		killGroup(cmd, syscall.SIGKILL)
	case <-t.C:
		killGroup(cmd, syscall.SIGKILL)
		<-ended
	}
	return nil
}

func killGroup(cmd *exec.Cmd, sig syscall.Signal) {
	_ = syscall.Kill(-cmd.Process.Pid, sig) // gone already: all the better
}
