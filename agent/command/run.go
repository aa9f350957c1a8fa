package command

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// path is where programs are looked for, whatever the agent's own PATH is.
const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// linger is how long a program's children may hold its output open after its end.
const linger = time.Second

// program is one run.
type program struct {
	argv  []string
	env   []string // KEY=value, beside path
	limit int      // bytes of output kept
}

// result is how a program that was started ended.
type result struct {
	exit   int // -1: by a signal
	output *ends
}

// run starts a program and waits for its end. When ctx ends first, the whole
// process group is killed and the error is ctx's. A program that ended by
// itself, however, is no error; one that could not be started is.
func (p program) run(ctx context.Context) (result, error) {
	// The kernel ends the program with the thread that started it: if the agent
	// dies, so does the program.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out := &ends{limit: p.limit}
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.Env = append([]string{path, "LANG=C.UTF-8"}, p.env...)
	cmd.WaitDelay = linger
	ownGroup(cmd)
	err := cmd.Run()
	if cmd.Process != nil {
		killGroup(cmd) // children it left behind
	}
	if ctx.Err() != nil {
		return result{exit: -1, output: out}, ctx.Err()
	}
	if cmd.ProcessState == nil {
		return result{}, fmt.Errorf("start %s: %w", p.argv[0], errors.Unwrap(err))
	}
	return result{exit: cmd.ProcessState.ExitCode(), output: out}, nil
}

// ends keeps the first and the last bytes written to it: of limit bytes the first
// half, and a ring of the second.
type ends struct {
	limit int
	head  []byte
	ring  []byte
	at    int // where the ring goes on
	total int64
}

// Write implements io.Writer; it never fails.
func (e *ends) Write(p []byte) (int, error) {
	n := len(p)
	e.total += int64(n)
	if room := e.limit/2 - len(e.head); room > 0 {
		k := min(room, len(p))
		e.head = append(e.head, p[:k]...)
		p = p[k:]
	}
	size := e.limit - e.limit/2
	p = p[max(0, len(p)-size):]
	for _, b := range p {
		if len(e.ring) < size {
			e.ring = append(e.ring, b)
			continue
		}
		e.ring[e.at] = b
		e.at = (e.at + 1) % size
	}
	return n, nil
}

// tail is what the ring holds, in order.
func (e *ends) tail() []byte { return append(e.ring[e.at:len(e.ring):len(e.ring)], e.ring[:e.at]...) }

// text returns what was kept, in the limit, as text that any store takes; what
// was left out between is marked.
func (e *ends) text() string {
	left := e.total - int64(len(e.head)+len(e.ring))
	if left == 0 {
		return clean(string(e.head)+string(e.tail()), e.limit)
	}
	mark := fmt.Sprintf("\n[%d bytes left out]\n", left+markRoom)
	if e.limit < 2*markRoom {
		return clean(string(e.head)+string(e.tail()), e.limit)
	}
	head, tail := e.head[:len(e.head)-markRoom/2], e.tail()[markRoom/2:]
	return clean(string(head), len(head)) + mark + clean(string(tail), len(tail))
}

// markRoom is how many of the kept bytes make room for the mark.
const markRoom = 48

// clean makes valid text of at most limit bytes: what is no character, and what
// controls a terminal, becomes a question mark.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, s)
	for len(s) > limit {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
