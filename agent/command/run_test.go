package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// script writes a program.
func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestRunKeepsBothEnds: what a program says at first and at last.
func TestRunKeepsBothEnds(t *testing.T) {
	p := program{argv: []string{script(t, `echo begin; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo end >&2; exit 3`)}, limit: 400}
	r, err := p.run(t.Context())
	if err != nil || r.exit != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	text := r.output.text()
	if !strings.HasPrefix(text, "begin\nline 0\n") || !strings.HasSuffix(text, "line 1999\nend\n") || !strings.Contains(text, "bytes left out]") || len(text) > 400 {
		t.Errorf("%d bytes: %s", len(text), text)
	}
}

// TestEnds: within the limit nothing is lost, beyond it the text is valid and
// no longer than the limit.
func TestEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 300).Draw(t, "limit")
		e := &ends{limit: limit}
		var all []byte
		for _, piece := range rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 0, 100)).Draw(t, "pieces") {
			if n, err := e.Write(piece); n != len(piece) || err != nil {
				t.Fatal(n, err)
			}
			all = append(all, piece...)
		}
		text := e.text()
		if len(text) > limit || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			t.Fatalf("limit %d: %q", limit, text)
		}
		if len(all) <= limit && text != clean(string(all), limit) {
			t.Fatalf("%q, want %q", text, all)
		}
	})
}

// TestRunKillsTheGroup: at the end of its time the children go too.
func TestRunKillsTheGroup(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	p := program{argv: []string{script(t, fmt.Sprintf("sleep 600 & echo $! $$ > %s.new; mv %s.new %s; wait", pids, pids, pids))}, limit: 100}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := p.run(ctx); ended <- err }()
	var child, self int
	await(t, func() bool {
		b, err := os.ReadFile(pids)
		return err == nil && len(b) > 0 && must2(fmt.Sscan(string(b), &child, &self)) == nil
	})
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	await(t, func() bool { return gone(child) && gone(self) })
}

func must2(_ int, err error) error { return err }

// gone reports whether a process has ended; a zombie that nobody reaped has.
func gone(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func await(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(60 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not come to pass within 60 s")
		}
	}
}

func TestRunOfNothing(t *testing.T) {
	for _, argv := range [][]string{{"/does/not/exist"}, {"no-such-program-anywhere"}, {t.TempDir()}} {
		if r, err := (program{argv: argv, limit: 10}).run(t.Context()); err == nil || !strings.Contains(err.Error(), argv[0]) {
			t.Errorf("%v: %+v, %v", argv, r, err)
		}
	}
}

func TestConsentProgram(t *testing.T) {
	q := agent.Question{JobID: "r-1", Release: ota.ReleaseID{Name: "gw", Version: "2.0"}, Notes: "faster\x00; rm -rf /", Left: 3, Deadline: time.Date(2026, 11, 28, 2, 0, 0, 0, time.UTC)}
	for text, want := range map[string]agent.Answer{
		"exit 0":                        {Granted: true},
		"exit 75":                       {},
		"echo 900; exit 75":             {Defer: 15 * time.Minute},
		"echo '  60 seconds'; exit 75":  {Defer: time.Minute},
		"echo -5; exit 75":              {},
		"echo 99999999999999; exit 75":  {},
		"exit 1":                        {Refused: "exit status 1"},
		"echo 'the lathe runs'; exit 2": {Refused: "the lathe runs"},
		"kill -9 $$":                    {Refused: "exit status -1"},
		`test "$OTAGENT_JOB $OTAGENT_NAME $OTAGENT_VERSION $OTAGENT_DEFERRALS_LEFT $OTAGENT_DEADLINE" = "r-1 gw 2.0 3 2026-11-28T02:00:00Z"`: {Granted: true},
		`test "$OTAGENT_NOTES" = "faster; rm -rf /"`: {Granted: true},
		`test -z "$SECRET_OF_THE_AGENT"`:             {Granted: true},
	} {
		t.Setenv("SECRET_OF_THE_AGENT", "x")
		got, err := Consent{Argv: []string{script(t, text)}}.Ask(t.Context(), q)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	if got, err := (Consent{Argv: []string{"/does/not/exist"}}).Ask(t.Context(), q); err == nil || got != (agent.Answer{}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := (Consent{Argv: []string{script(t, "sleep 600")}, Timeout: time.Millisecond}).Ask(t.Context(), q); err == nil || got != (agent.Answer{}) {
		t.Errorf("%+v, %v", got, err)
	}
}
