package testserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// saveTimeout is more than it takes to write a small file.
const saveTimeout = 20 * time.Second

// PlainBroker is a running Mosquitto that lets everybody in, over TCP and
// WebSocket, with all topics. It keeps what it stores over a Restart.
type PlainBroker struct {
	Addr      string // host:port
	WebSocket string // host:port

	t    testing.TB
	bin  string
	conf string
	proc *process
}

// PlainMosquitto starts Debian's Mosquitto without credentials until the test
// ends. extra lines are appended to its configuration.
func PlainMosquitto(t testing.TB, extra ...string) *PlainBroker {
	t.Helper()
	bin, err := MosquittoBinary()
	if err != nil {
		t.Fatal(err)
	}
	b := &PlainBroker{t: t, bin: bin}
	dir := t.TempDir()
	retry(t, func() error {
		if err := b.configure(dir, extra); err != nil {
			return err
		}
		return b.start()
	})
	t.Cleanup(func() { b.proc.kill() })
	return b
}

// Kill ends the broker as a crash does.
func (b *PlainBroker) Kill() { b.proc.kill() }

// Start starts it again, on the same ports and with what it had stored.
func (b *PlainBroker) Start() error { return b.start() }

// Save makes it write all that it holds, which it does by itself some time after it
// has acknowledged. It writes a new file and renames it, between two packets, so a
// file that was not there before has everything acknowledged by now.
func (b *PlainBroker) Save() error {
	file := filepath.Join(filepath.Dir(b.conf), "mosquitto.db")
	var before time.Time // inodes come again, times do not
	if old, err := os.Stat(file); err == nil {
		before = old.ModTime()
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), saveTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for { // one that comes within a tick of the file system's clock does not show
		if err := b.proc.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			return err
		}
		if now, err := os.Stat(file); err == nil && now.ModTime().After(before) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("mosquitto did not write %s within %s", file, saveTimeout)
		}
	}
}

// Resident is its memory in bytes.
func (b *PlainBroker) Resident() (int64, error) { return Resident(b.proc.cmd.Process.Pid) }

// Resident is the memory of a process in bytes, as Linux tells it.
func Resident(pid int) (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no memory: it is ending", pid)
}

func (b *PlainBroker) configure(dir string, extra []string) error {
	var err error
	if b.Addr, err = FreeAddr(); err != nil {
		return err
	}
	if b.WebSocket, err = FreeAddr(); err != nil {
		return err
	}
	lines := []string{
		"log_dest none",
		"set_tcp_nodelay true",
		"allow_anonymous true",
		"max_packet_size 262144",
		"max_inflight_messages 1000",
		"max_queued_messages 0",
		"max_queued_bytes 0",
		"persistence_location " + dir + "/",
	}
	if os.Geteuid() == 0 {
		lines = append(lines, "user root")
	}
	lines = append(lines, extra...)
	for _, addr := range []string{b.Addr, b.WebSocket} {
		host, port, _ := strings.Cut(addr, ":")
		lines = append(lines, fmt.Sprintf("listener %s %s", port, host))
	}
	lines = append(lines, "protocol websockets")
	b.conf = filepath.Join(dir, "mosquitto.conf")
	return os.WriteFile(b.conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

func (b *PlainBroker) start() error {
	p, err := start(exec.Command(b.bin, "-c", b.conf), func(ctx context.Context) error {
		return errors.Join(dial(ctx, b.Addr), dial(ctx, b.WebSocket))
	})
	if err != nil {
		return err
	}
	b.proc = p
	return nil
}
