package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/otad/otad/agent/device"
	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/ota"
)

const usageText = `otagent keeps the firmware of this device up to date from an otad server.

  otagent enroll --server URL --id ID --hardware MODEL (--token T | --token-file FILE) [--dir DIR]
                 [--key-type ed25519|p256]
                 [--factory FILE --factory-name NAME --factory-version V [-- ARG...]]
  otagent run    [--dir DIR] [--log-format text|json] [--log-level LEVEL]
  otagent status [--dir DIR] [-o table|json]
  otagent version

The zone of the wall clock, the program that is asked for consent, and the actions
that the server may run are set in DIR/agent.json: timezone, consent, actions, logs.

A token comes from "otactl token create"; it may also stand in OTAGENT_TOKEN.
Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 denied,
6 unreachable.
`

const (
	defaultDir   = "/var/lib/otagent"
	maxTokenFile = 4 << 10
)

// usageError is a fault of the command line.
type usageError struct{ text string }

func (u usageError) Error() string { return u.text }

func usage(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// program is the process's surroundings.
type program struct {
	stdout, stderr io.Writer
	env            func(string) string
}

// run executes one command line and returns the exit status.
func (p program) run(ctx context.Context, args []string) int {
	err := p.command(ctx, args)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return device.ExitDone
	}
	status, hint := device.Explain(err)
	if errors.As(err, new(usageError)) {
		status, hint = device.ExitUsage, "otagent help shows the commands and their flags"
	}
	fmt.Fprintf(p.stderr, "otagent: %v\n", err)
	if hint != "" {
		fmt.Fprintf(p.stderr, "otagent: hint: %s\n", hint)
	}
	return status
}

func (p program) command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usage("what to do? enroll, run, status or version")
	}
	switch verb, rest := args[0], args[1:]; verb {
	case "enroll":
		return p.enroll(ctx, rest)
	case "run":
		return p.serve(ctx, rest)
	case "status":
		return p.status(rest)
	case "version", "--version":
		_, err := fmt.Fprintf(p.stdout, "otagent %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	case "help", "-h", "--help":
		_, err := io.WriteString(p.stdout, usageText)
		return err
	default:
		return usage("unknown command %q", verb)
	}
}

// flags makes a flag set that leaves errors to us.
func (p program) flags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	return f
}

// parse reads the flags of a command that takes no arguments but those that more
// allows.
func (p program) parse(f *flag.FlagSet, args []string, more bool) error {
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		_, _ = io.WriteString(p.stdout, usageText)
		return err
	}
	if err != nil {
		return usage("%s: %v", f.Name(), err)
	}
	if f.NArg() > 0 && !more {
		return usage("%s takes no arguments, got %q", f.Name(), f.Arg(0))
	}
	return nil
}

func (p program) enroll(ctx context.Context, args []string) error {
	var c device.EnrollConfig
	var factory device.FactoryImage
	f := p.flags("enroll")
	f.StringVar(&c.Dir, "dir", defaultDir, "")
	f.StringVar(&c.ServerURL, "server", p.env("OTAGENT_SERVER"), "")
	f.StringVar(&c.DeviceID, "id", "", "")
	f.StringVar(&c.Hardware, "hardware", "", "")
	f.StringVar(&c.KeyType, "key-type", device.KeyEd25519, "")
	token := f.String("token", "", "")
	tokenFile := f.String("token-file", "", "")
	f.StringVar(&factory.Path, "factory", "", "")
	f.StringVar(&factory.Name, "factory-name", "", "")
	f.StringVar(&factory.Version, "factory-version", "", "")
	f.StringVar(&factory.Installer, "factory-installer", ota.InstallBinary, "")
	if err := p.parse(f, args, true); err != nil {
		return err
	}
	if factory.Path != "" {
		factory.Run = f.Args()
		c.Factory = &factory
	} else if f.NArg() > 0 {
		return usage("enroll takes no arguments without --factory, got %q", f.Arg(0))
	}
	for _, need := range []struct{ flag, value string }{{"--server", c.ServerURL}, {"--id", c.DeviceID}, {"--hardware", c.Hardware}} {
		if need.value == "" {
			return usage("enroll needs %s", need.flag)
		}
	}
	if c.KeyType != device.KeyEd25519 && c.KeyType != device.KeyP256 {
		return usage("--key-type %q: want %s, or %s for TLS stacks without it", c.KeyType, device.KeyEd25519, device.KeyP256)
	}
	var err error
	if c.Token, err = p.token(*token, *tokenFile); err != nil {
		return err
	}
	if err := device.Enroll(ctx, c); err != nil {
		return fmt.Errorf("enroll %s: %w", c.DeviceID, err)
	}
	fmt.Fprintf(p.stderr, "device %s is enrolled with %s in %s; start it with: otagent run --dir %s\n", c.DeviceID, c.ServerURL, c.Dir, c.Dir)
	return nil
}

// token takes the token from the flag, the file or the environment.
func (p program) token(text, file string) (string, error) {
	if text != "" && file != "" {
		return "", usage("--token or --token-file, not both")
	}
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("token file: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
		if err != nil {
			return "", fmt.Errorf("token file: %w", err)
		}
		return string(b), nil
	}
	if text == "" {
		text = p.env("OTAGENT_TOKEN")
	}
	if text == "" {
		return "", usage("enroll needs a token that starts with %s: --token, --token-file or OTAGENT_TOKEN", enroll.Prefix)
	}
	return text, nil
}

func (p program) serve(ctx context.Context, args []string) error {
	o := device.Options{Version: version}
	f := p.flags("run")
	f.StringVar(&o.Dir, "dir", defaultDir, "")
	f.DurationVar(&o.Poll, "poll", 0, "")
	format := f.String("log-format", "text", "")
	level := f.String("log-level", "info", "")
	if err := p.parse(f, args, false); err != nil {
		return err
	}
	var err error
	if o.Log, err = device.NewLogger(p.stderr, *format, *level); err != nil {
		return usage("%v", err)
	}
	device.Tune(p.env)
	return device.Run(ctx, o)
}

func (p program) status(args []string) error {
	f := p.flags("status")
	dir := f.String("dir", defaultDir, "")
	format := f.String("o", "table", "")
	if err := p.parse(f, args, false); err != nil {
		return err
	}
	if *format != "table" && *format != "json" {
		return usage("output format %q: want table or json", *format)
	}
	s, err := device.ReadStatus(*dir)
	if err != nil {
		return err
	}
	if *format == "json" {
		e := json.NewEncoder(p.stdout)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	return table(p.stdout, s)
}

// table shows a status to people.
func table(w io.Writer, s device.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(t, "%s\t%v\n", name, value) }
	row("Device", s.DeviceID)
	row("Hardware", s.Hardware)
	row("Server", s.ServerURL)
	row("Running", yes(s.Running))
	row("Certificate", fmt.Sprintf("until %s, renewed from %s", s.Expires.Format(time.DateOnly), s.RenewFrom.Format(time.DateOnly)))
	if a := s.Agent; a != nil {
		row("State", a.State)
		row("Firmware", strings.TrimSpace(fmt.Sprintf("%s %s (slot %s)", a.Firmware.Name, a.Firmware.Version, a.Slot)))
		if a.JobID != "" {
			row("Job", fmt.Sprintf("%s, attempt %d: %s", a.JobID, a.Attempt, a.Release))
		}
		for _, r := range []struct{ name, text string }{{"Reason", a.Reason}, {"Waiting", a.Waiting}, {"Last error", a.LastError}, {"Trust", a.TrustAlarm}} {
			if r.text != "" {
				row(r.name, r.text)
			}
		}
		row("Reports waiting", a.Pending)
		row("As of", a.Time.Format(time.RFC3339))
	}
	return t.Flush()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
