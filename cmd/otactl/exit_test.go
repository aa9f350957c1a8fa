package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/otad/otad/pkg/ota"
)

// testApp is an app over buffers: no terminal, no environment, a fixed clock.
func testApp() (*app, *bytes.Buffer, *bytes.Buffer) {
	var stdout, stderr bytes.Buffer
	return &app{
		stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr,
		env:      func(string) string { return "" },
		now:      func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) },
		terminal: func(any) bool { return false },
		flags:    globalFlags{output: formatTable},
	}, &stdout, &stderr
}

func TestEveryCodeHasItsExitStatus(t *testing.T) {
	want := map[connect.Code]int{
		connect.CodeCanceled: exitFailed, connect.CodeUnknown: exitFailed, connect.CodeInvalidArgument: exitUsage,
		connect.CodeDeadlineExceeded: exitUnreachable, connect.CodeNotFound: exitNotFound, connect.CodeAlreadyExists: exitConflict,
		connect.CodePermissionDenied: exitDenied, connect.CodeResourceExhausted: exitFailed, connect.CodeFailedPrecondition: exitFailed,
		connect.CodeAborted: exitConflict, connect.CodeOutOfRange: exitUsage, connect.CodeUnimplemented: exitFailed,
		connect.CodeInternal: exitFailed, connect.CodeUnavailable: exitUnreachable, connect.CodeDataLoss: exitFailed,
		connect.CodeUnauthenticated: exitDenied,
	}
	for code := connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
		a, _, stderr := testApp()
		err := fmt.Errorf("do it: %w", connect.NewError(code, errors.New("the server's words")))
		if got := a.report(err); got != want[code] {
			t.Errorf("%s: status %d, want %d", code, got, want[code])
		}
		if first, _, _ := strings.Cut(stderr.String(), "\n"); first != "otactl: do it: the server's words" {
			t.Errorf("%s: %q", code, first)
		}
	}
}

func TestLocalErrorsHaveTheirExitStatus(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{ota.ValidateDeviceID("a/b"), exitUsage},
		{fmt.Errorf("open: %w", fs.ErrNotExist), exitNotFound},
		{context.Canceled, exitFailed},
		{errors.New("any"), exitFailed},
		{fail(exitCondition, "not met"), exitCondition},
		{fmt.Errorf("around: %w", fail(exitConflict, "inner")), exitConflict},
		{hint(fmt.Errorf("around: %w", fail(exitDenied, "inner")), "do %s", "that"), exitDenied},
	} {
		if got := classify(test.err).status; got != test.want {
			t.Errorf("%v: status %d, want %d", test.err, got, test.want)
		}
	}
	if hint(nil, "x") != nil || unreachable(nil, "s", "c") != nil {
		t.Error("no error became one")
	}
}

// What the server misses, or has already, is said where it is listed.
func TestSubjectsHaveARemedy(t *testing.T) {
	for _, test := range []struct {
		code       connect.Code
		text, want string
	}{
		{connect.CodeNotFound, "release gw@9: not found", "otactl firmware list"},
		{connect.CodeNotFound, "plan.yaml: line 2: release gw@9: not found", "otactl firmware list"},
		{connect.CodeNotFound, "rollout r-1: not found", "otactl command list"},
		{connect.CodeNotFound, "execution of rollout r-1 on device gw-1: not found", "otactl rollout devices"},
		{connect.CodeNotFound, "desired.firmware: device gw-1: not found", "otactl device list"},
		{connect.CodeNotFound, "one of the devices a to b: not found", "otactl device list"},
		{connect.CodeNotFound, "group lab: not found", "otactl group list"},
		{connect.CodeNotFound, "credential c of device gw-1: not found", "otactl device credential list"},
		{connect.CodeAlreadyExists, "group lab exists: conflict", "otactl group add"},
		{connect.CodeAlreadyExists, "device gw-1 exists: conflict", "another id"},
		{connect.CodeAlreadyExists, "conflict: group lab is dynamic", ""},
		{connect.CodeInvalidArgument, "selector: the expression ends too early (column 4)", "device list --help"},
		{connect.CodeInvalidArgument, "stage 1: x", ""},
		{connect.CodeNotFound, "index 00: not found", ""},
	} {
		got := classify(connect.NewError(test.code, errors.New(test.text))).hint
		if !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("%s: %q, want %q", test.text, got, test.want)
		}
	}
}

// Whatever state a rollout is in, an operator can do something, or wait.
func TestEveryStateHasANextAct(t *testing.T) {
	seen := map[string]ota.RolloutState{}
	for _, state := range ota.RolloutStates {
		act := rolloutView{ID: "r-1", State: string(state)}.nextAct()
		if act == "" || strings.Contains(act, "ID") {
			t.Errorf("%s: %q", state, act)
		}
		if other, twice := seen[act]; twice && state.Terminal() != other.Terminal() {
			t.Errorf("%s and %s: %q", state, other, act)
		}
		seen[act] = state
	}
	failed := rolloutView{ID: "r-1", State: string(ota.RolloutPaused), Stages: []stageView{{State: string(ota.StageFailed)}}}
	if act := failed.nextAct(); !strings.Contains(act, "--failed-stage repeat") {
		t.Errorf("a failed stage: %q", act)
	}
}

func TestHintReplacesHintAndKeepsText(t *testing.T) {
	a, _, stderr := testApp()
	a.report(hint(hint(connect.NewError(connect.CodeNotFound, errors.New("device x")), "one"), "two"))
	if got, want := stderr.String(), "otactl: device x\notactl: hint: two\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestServerTextCanNotDriveTheTerminal(t *testing.T) {
	a, _, stderr := testApp()
	a.report(connect.NewError(connect.CodeInternal, errors.New("a\x1b]0;owned\x07\u009b2Jb\r\nc")))
	if got := stderr.String(); strings.ContainsAny(got, "\x1b\x07\r\u009b") || !strings.Contains(got, "b \nc") {
		t.Errorf("control characters came through: %q", got)
	}
}

func TestOnlyALostServerIsUnreachable(t *testing.T) {
	lost := connect.NewError(connect.CodeUnavailable, errors.New("dial tcp: refused"))
	if got := classify(unreachable(lost, "https://h:1", "ca.pem")); got.status != exitUnreachable ||
		!strings.Contains(got.Error(), "https://h:1") || !strings.Contains(got.hint, "otad serve") {
		t.Errorf("got %d %q %q", got.status, got, got.hint)
	}
	denied := connect.NewError(connect.CodePermissionDenied, errors.New("no"))
	if got := unreachable(denied, "h", "c"); got != error(denied) {
		t.Errorf("a server's answer became %v", got)
	}
}

func TestUploadAnswers(t *testing.T) {
	for _, test := range []struct {
		status int
		body   string
		want   int
		text   string
	}{
		{http.StatusConflict, `{"code":"already_exists","message":"other bytes"}`, exitConflict, "other bytes"},
		{http.StatusConflict, `{"code":"unauthenticated","message":"the finer word"}`, exitDenied, "the finer word"},
		{http.StatusRequestTimeout, "", exitUnreachable, "Request Timeout"},
		{http.StatusBadRequest, `{"error":{"code":"invalid","message":"bad chunk"}}`, exitUsage, "bad chunk"},
		{http.StatusUnauthorized, "", exitDenied, "Unauthorized"},
		{http.StatusForbidden, "no", exitDenied, "no"},
		{http.StatusRequestEntityTooLarge, "", exitFailed, "Request Entity Too Large"},
		{http.StatusServiceUnavailable, "", exitUnreachable, "Service Unavailable"},
		{http.StatusFound, "elsewhere", exitFailed, "elsewhere"},
	} {
		f := classify(httpError(test.status, []byte(test.body), nil))
		if f.status != test.want || f.Error() != test.text {
			t.Errorf("%d: status %d, %q; want %d, %q", test.status, f.status, f, test.want, test.text)
		}
	}
}

func TestColourOnlyOnATerminal(t *testing.T) {
	a, stdout, _ := testApp()
	if got := a.paint(stdout, red, "x"); got != "x" {
		t.Errorf("colour off a terminal: %q", got)
	}
	a.terminal = func(any) bool { return true }
	if got := a.paint(stdout, red, "x"); got != "\x1b[31mx\x1b[0m" {
		t.Errorf("no colour on a terminal: %q", got)
	}
	a.env = func(name string) string { return map[string]string{"NO_COLOR": "1"}[name] }
	if got := a.paint(stdout, red, "x"); got != "x" {
		t.Errorf("NO_COLOR was not honoured: %q", got)
	}
}

func TestQuietSilencesNotesAndNotWarnings(t *testing.T) {
	a, _, stderr := testApp()
	a.flags.quiet = true
	a.note("note")
	a.warn("careful")
	if diff := cmp.Diff("otactl: warning: careful\n", stderr.String()); diff != "" {
		t.Error(diff)
	}
}

func TestConfirmAsksOnATerminalOnly(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		yes, tty     bool
		want         int
	}{
		{"said beforehand", "", true, false, exitDone},
		{"nobody there", "", false, false, exitUsage},
		{"yes", "y\n", false, true, exitDone},
		{"no", "n\n", false, true, exitFailed},
		{"return alone", "\n", false, true, exitFailed},
		{"end of input", "", false, true, exitFailed},
	} {
		a, _, _ := testApp()
		a.stdin, a.terminal = strings.NewReader(test.answer), func(any) bool { return test.tty }
		got := exitDone
		if err := a.confirm(test.yes, "do it"); err != nil {
			got = classify(err).status
		}
		if got != test.want {
			t.Errorf("%s: status %d, want %d", test.name, got, test.want)
		}
	}
}
