// Package testserver starts the real servers that tests talk to: Mosquitto as
// the external MQTT broker, versitygw as the S3 store and PostgreSQL as the
// database. They listen on a free loopback port, keep everything in a temporary
// directory and are ended, by process, when the test or its package ends.
//
// It is for tests only and no part of any product binary.
package testserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

const (
	startTries   = 3 // a free port can be taken by someone else before the server has it
	readyTimeout = 20 * time.Second
	pollEvery    = 20 * time.Millisecond
)

// process is a server under test.
type process struct {
	cmd    *exec.Cmd
	out    lockedBuffer
	exited chan struct{}
}

// start runs the command and waits until ready returns nil.
func start(cmd *exec.Cmd, ready func(context.Context) error) (*process, error) {
	p := &process{cmd: cmd, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = dieWithParent()
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(p.exited)
	}()
	if err := p.await(ready); err != nil {
		p.kill()
		return nil, fmt.Errorf("%s did not start: %w\n%s", filepath.Base(cmd.Path), err, p.out.String())
	}
	return p, nil
}

func (p *process) await(ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return errors.New("process ended")
		case <-ctx.Done():
			return fmt.Errorf("not ready after %v: %w", readyTimeout, err)
		case <-tick.C:
		}
	}
}

// kill ends the process without a chance to clean up, as a crash does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// retry starts a server on free ports until one attempt succeeds.
func retry(t testing.TB, attempt func() error) {
	t.Helper()
	var err error
	for range startTries {
		if err = attempt(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func dial(ctx context.Context, addr string) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}

// moduleRoot is the directory of go.mod above the test's working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory")
		}
	}
}

// lockedBuffer collects what a process says while tests read it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns what was written so far.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
