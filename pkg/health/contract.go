// Package health is how a release says, in its signed manifest, what "it works"
// means. Package agent/health is how a device finds out.
//
// The contract is a JSON object; everything but checks has a default:
//
//	{"hold": "2s", "deadline": "30s", "checks": [
//	  {"running": {}},                             the installer's process is alive
//	  {"command": ["{image}", "--selftest"]},      exits with 0; no shell
//	  {"http": "http://127.0.0.1:8080/healthz"},   answers GET with 2xx
//	  {"tcp": "127.0.0.1:8080"},                   accepts a connection
//	  {"kernel": {}}                               the image is a whole Linux kernel
//	]}
//
// All checks must hold together for hold before deadline is over. In arguments
// {image} stands for the path of the slot's image. Only the device judges: no
// check needs the update server.
package health

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"time"
)

// ErrContract is the class of every error of Parse.
var ErrContract = errors.New("invalid health contract")

// Defaults and limits of a contract.
const (
	DefaultHold     = 2 * time.Second
	DefaultDeadline = 30 * time.Second
	MaxHold         = time.Hour
	MaxDeadline     = 24 * time.Hour
	MaxChecks       = 16
	MaxArguments    = 64
	MaxArgument     = 4096 // bytes
	MaxContract     = 16 << 10
)

// ImageWord is replaced by the path of the slot's image in arguments.
const ImageWord = "{image}"

// Contract is a parsed health contract.
type Contract struct {
	Hold     time.Duration
	Deadline time.Duration
	Checks   []Check
}

// Check is one condition; exactly one field is set.
type Check struct {
	Command []string
	HTTP    string
	TCP     string
	Kernel  bool
	Running bool
}

type contractJSON struct {
	Hold     *string     `json:"hold"`
	Deadline *string     `json:"deadline"`
	Checks   []checkJSON `json:"checks"`
}

type checkJSON struct {
	Command []string  `json:"command"`
	HTTP    *string   `json:"http"`
	TCP     *string   `json:"tcp"`
	Kernel  *struct{} `json:"kernel"`
	Running *struct{} `json:"running"`
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrContract, fmt.Sprintf(format, args...))
}

// Parse reads a contract strictly: unknown fields, unknown checks and values
// out of range are ErrContract. Empty input, and a contract without checks, ask
// that the application runs.
func Parse(b []byte) (Contract, error) {
	if len(b) > MaxContract {
		return Contract{}, bad("%d bytes: at most %d", len(b), MaxContract)
	}
	var in contractJSON
	if len(bytes.TrimSpace(b)) > 0 {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			return Contract{}, bad("%v", err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return Contract{}, bad("bytes after the object")
		}
	}
	c := Contract{}
	var err error
	if c.Hold, err = parseSpan("hold", in.Hold, DefaultHold, MaxHold); err != nil {
		return Contract{}, err
	}
	if c.Deadline, err = parseSpan("deadline", in.Deadline, max(DefaultDeadline, 2*c.Hold), MaxDeadline); err != nil {
		return Contract{}, err
	}
	if c.Deadline <= c.Hold {
		return Contract{}, bad("deadline %s is not after hold %s", c.Deadline, c.Hold)
	}
	if len(in.Checks) > MaxChecks {
		return Contract{}, bad("%d checks: at most %d", len(in.Checks), MaxChecks)
	}
	for i, raw := range in.Checks {
		check, err := raw.parse()
		if err != nil {
			return Contract{}, fmt.Errorf("check %d: %w", i+1, err)
		}
		c.Checks = append(c.Checks, check)
	}
	if len(c.Checks) == 0 {
		c.Checks = []Check{{Running: true}}
	}
	return c, nil
}

func parseSpan(name string, text *string, otherwise, limit time.Duration) (time.Duration, error) {
	if text == nil {
		return otherwise, nil
	}
	d, err := time.ParseDuration(*text)
	if err != nil || d < 0 || d > limit {
		return 0, bad("%s %.40q: want a duration such as \"30s\", at most %s", name, *text, limit)
	}
	return d, nil
}

func (c checkJSON) parse() (Check, error) {
	kinds := 0
	for _, set := range []bool{c.Command != nil, c.HTTP != nil, c.TCP != nil, c.Kernel != nil, c.Running != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return Check{}, bad("has %d kinds: want one of command, http, tcp, kernel, running", kinds)
	}
	switch {
	case c.Command != nil:
		return Check{Command: c.Command}, checkArguments(c.Command)
	case c.HTTP != nil:
		return Check{HTTP: *c.HTTP}, checkURL(*c.HTTP)
	case c.TCP != nil:
		return Check{TCP: *c.TCP}, checkAddress(*c.TCP)
	}
	return Check{Kernel: c.Kernel != nil, Running: c.Running != nil}, nil
}

func checkArguments(argv []string) error {
	if len(argv) == 0 || len(argv) > MaxArguments || argv[0] == "" {
		return bad("command of %d arguments: want 1 to %d, the program first", len(argv), MaxArguments)
	}
	for _, arg := range argv {
		if len(arg) > MaxArgument || bytes.IndexByte([]byte(arg), 0) >= 0 {
			return bad("command argument %.40q: at most %d bytes, none of them zero", arg, MaxArgument)
		}
	}
	return nil
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || len(s) > MaxArgument || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		return bad("http %.80q: want http://HOST:PORT/PATH", s)
	}
	return nil
}

func checkAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		n, convErr := strconv.Atoi(port)
		if convErr == nil && host != "" && n >= 1 && n <= 65535 {
			return nil
		}
	}
	return bad("tcp %.80q: want HOST:PORT", s)
}
