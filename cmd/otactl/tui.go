package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"connectrpc.com/connect"

	"github.com/otad/otad/pkg/ota"
)

// Exit statuses, as cli.md and the help text promise them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitDenied      = 5
	exitUnreachable = 6
	exitCondition   = 7
)

// failure is an error with an exit status and a remedy. Every error of the
// program ends as one.
type failure struct {
	status int
	hint   string // empty: none
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// fail makes an error with a status.
func fail(status int, format string, args ...any) *failure {
	return &failure{status: status, err: fmt.Errorf(format, args...)}
}

// usage makes an error about the command line itself.
func usage(format string, args ...any) *failure { return fail(exitUsage, format, args...) }

// hint adds the remedy to an error, in place of one it may have.
func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	f := *classify(err)
	f.hint = fmt.Sprintf(format, args...)
	return &f
}

// verdict is what a code of the server means to the caller of otactl.
type verdict struct {
	status int
	hint   string
}

// verdicts is the one table from the server's codes to exit statuses and
// hints. The codes that are not in it are failures without a remedy.
var verdicts = map[connect.Code]verdict{
	connect.CodeInvalidArgument:    {exitUsage, ""},
	connect.CodeOutOfRange:         {exitUsage, ""},
	connect.CodeNotFound:           {exitNotFound, ""},
	connect.CodeAlreadyExists:      {exitConflict, ""},
	connect.CodeAborted:            {exitConflict, "someone else changed it meanwhile; look at it again and repeat"},
	connect.CodeFailedPrecondition: {exitFailed, ""}, // well said, and refused as things stand
	connect.CodeResourceExhausted:  {exitFailed, "the server's limit is reached; send less, or try again later"},
	connect.CodePermissionDenied:   {exitDenied, "this token may not do that; use one that may (--token-file, OTACTL_TOKEN or otactl login)"},
	connect.CodeUnauthenticated:    {exitDenied, "pass a valid API token: --token-file, OTACTL_TOKEN or otactl login; otad serve writes the first one to DATA/admin.token"},
	connect.CodeUnavailable:        {exitUnreachable, ""},
	connect.CodeDeadlineExceeded:   {exitUnreachable, "the server did not answer in time; try again, and look at its log"},
	connect.CodeUnimplemented:      {exitFailed, "this server does not know the request; otactl and otad should be of one version"},
	connect.CodeInternal:           {exitFailed, "the server's log says more"},
}

// classify gives every error its status and hint.
func classify(err error) *failure {
	if f := new(failure); errors.As(err, &f) {
		return &failure{status: f.status, hint: f.hint, err: err}
	}
	if errors.Is(err, context.Canceled) {
		return &failure{status: exitFailed, err: errors.New("interrupted")}
	}
	if ce := new(connect.Error); errors.As(err, &ce) {
		v, ok := verdicts[ce.Code()]
		if !ok {
			v.status = exitFailed
		}
		if remedy := subjectRemedy(ce.Code(), ce.Message()); remedy != "" {
			v.hint = remedy
		}
		return &failure{status: v.status, hint: v.hint, err: errors.New(strings.Replace(err.Error(), ce.Error(), ce.Message(), 1))}
	}
	if errors.Is(err, ota.ErrInvalid) {
		return &failure{status: exitUsage, err: err}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &failure{status: exitNotFound, err: err}
	}
	return &failure{status: exitFailed, err: err}
}

// report writes an error for people and returns its exit status.
func (a *app) report(err error) int {
	f := classify(err)
	fmt.Fprintf(a.stderr, "otactl: %s\n", printable(plain(f.Error())))
	if f.hint != "" {
		fmt.Fprintf(a.stderr, "otactl: hint: %s\n", printable(f.hint))
	}
	return f.status
}

// unreachable says who did not answer, and tells a refused certificate from a
// silent server.
func unreachable(err error, server, caFile string) error {
	ce := new(connect.Error)
	if err == nil || errors.As(err, new(*failure)) || errors.As(err, &ce) && ce.Code() != connect.CodeUnavailable {
		return err
	}
	if errors.As(err, new(*tls.CertificateVerificationError)) {
		return hint(fail(exitDenied, "the certificate of %s is not to be trusted: %w", server, cause(err)),
			"the CA certificate comes from %s; pass the one of this server (otad serve writes it to DATA/ca.pem)", caFile)
	}
	if ce.Code() == connect.CodeUnavailable && connect.IsWireError(err) {
		return err
	}
	return hint(fail(exitUnreachable, "no answer from %s: %w", server, cause(err)),
		"start it with \"otad serve\", or name the right one with --server or OTACTL_SERVER")
}

// cause is what lies below a code that the client made up itself.
func cause(err error) error {
	if ce := new(connect.Error); errors.As(err, &ce) && ce.Unwrap() != nil {
		return ce.Unwrap()
	}
	return err
}

// plain leaves out the name of the error's class where the text that follows
// says more.
func plain(text string) string {
	text = strings.TrimPrefix(strings.TrimPrefix(text, "invalid: "), "invalid state: ")
	return strings.ReplaceAll(text, ": invalid: ", ": ")
}

// paint colours text when the stream is a terminal and NO_COLOR is not set.
func (a *app) paint(stream any, colour, text string) string {
	if !a.terminal(stream) || a.env("NO_COLOR") != "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// Colours of paint.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	amber = "33"
)

// printable keeps what a device or server sent from driving the terminal:
// control characters other than line feed and tab become spaces.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
