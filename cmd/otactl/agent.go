package main

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/agent/device"
	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/ota"
)

const (
	defaultAgentDir = "/var/lib/otagent"
	maxTokenFile    = 4 << 10
)

// newAgentCmd is the device agent: the same code as otagent, for a machine that
// has otactl anyway.
func newAgentCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "agent", Short: "Be a device: enroll this machine, run the agent, look at it",
		Long: "The device agent, the same code as otagent (which is smaller, and made for devices)."},
		newAgentEnrollCmd(a), newAgentRunCmd(a), newAgentStatusCmd(a))
}

// agentFailure gives an error of the agent its exit status and hint.
func agentFailure(err error) error {
	if err == nil {
		return nil
	}
	status, remedy := device.Explain(err)
	f := fail(status, "%w", err)
	if remedy == "" {
		return f
	}
	return hint(f, "%s", remedy)
}

func newAgentEnrollCmd(a *app) *cobra.Command {
	var c device.EnrollConfig
	var factory device.FactoryImage
	var token, tokenFile string
	cmd := &cobra.Command{
		Use:   "enroll --server URL --id ID --hardware MODEL --token-file FILE",
		Short: "Make this machine, or a directory of it, a device of a server",
		Args:  takes(),
		Example: `  otactl agent enroll --server https://otad.example:8444 --id gw-1 --hardware rpi4 --token-file token
  otactl agent enroll --server https://localhost:8444 --id gw-2 --hardware rpi4 --dir ./gw-2 \
    --factory app-1.0 --factory-name app --factory-version 1.0 --factory-arg '{image}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if factory.Path != "" {
				c.Factory = &factory
			}
			var err error
			if c.Token, err = a.enrollmentToken(token, tokenFile); err != nil {
				return err
			}
			if err := device.Enroll(cmd.Context(), c); err != nil {
				return agentFailure(fmt.Errorf("enroll %s: %w", c.DeviceID, err))
			}
			a.note("device %s is enrolled in %s; start it with: otactl agent run --dir %s", c.DeviceID, c.Dir, c.Dir)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Dir, "dir", defaultAgentDir, "directory of the agent")
	f.StringVar(&c.ServerURL, "server", "", "URL of the server's device plane, https://host:port")
	f.StringVar(&c.DeviceID, "id", "", "the device's id")
	f.StringVar(&c.Hardware, "hardware", "", "its hardware model")
	f.StringVar(&token, "token", "", "enrollment token (or OTAGENT_TOKEN)")
	f.StringVar(&tokenFile, "token-file", "", "file that holds the enrollment token")
	f.StringVar(&factory.Path, "factory", "", "image to run before the first update")
	f.StringVar(&factory.Name, "factory-name", "", "its firmware name")
	f.StringVar(&factory.Version, "factory-version", "", "its version")
	f.StringVar(&factory.Installer, "factory-installer", ota.InstallBinary, "its installer: "+ota.InstallBinary+" or "+ota.InstallImage)
	f.StringArrayVar(&factory.Run, "factory-arg", nil, "argument of its command line, from the program on; {image} is its path (repeatable)")
	for _, name := range []string{"server", "id", "hardware"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

// enrollmentToken takes the token from the flag, the file or the environment.
func (a *app) enrollmentToken(text, file string) (string, error) {
	if text != "" && file != "" {
		return "", usage("--token or --token-file, not both")
	}
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("token file: %w", err)
		}
		defer func() { _ = f.Close() }() // only read
		b, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
		if err != nil {
			return "", fmt.Errorf("token file: %w", err)
		}
		return string(b), nil
	}
	if text = first(text, a.env("OTAGENT_TOKEN")); text == "" {
		return "", hint(usage("an enrollment token is needed, which starts with %s: --token, --token-file or OTAGENT_TOKEN", enroll.Prefix),
			"otactl token create makes one")
	}
	return text, nil
}

func newAgentRunCmd(a *app) *cobra.Command {
	var o device.Options
	var format, level string
	cmd := &cobra.Command{
		Use: "run", Short: "Run the agent of an enrolled directory until interrupted", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Log, err = device.NewLogger(a.stderr, format, level); err != nil {
				return usage("%w", err)
			}
			o.Version = buildVersion()
			device.Tune(a.env)
			return agentFailure(device.Run(cmd.Context(), o))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", defaultAgentDir, "directory of the agent")
	f.DurationVar(&o.Poll, "poll", 0, "longest wait between two questions for a job (default 15m)")
	f.StringVar(&format, "log-format", "text", "text or json")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// buildVersion is the module version that this program was built from.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}

func newAgentStatusCmd(a *app) *cobra.Command {
	var directory string
	cmd := &cobra.Command{
		Use: "status", Short: "Show what an agent's directory says of it, running or not", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			s, err := device.ReadStatus(directory)
			if err != nil {
				return agentFailure(err)
			}
			return printOne(a, s, s.DeviceID, func(w io.Writer) error { return writeFields(w, agentFields(s)) })
		},
	}
	cmd.Flags().StringVar(&directory, "dir", defaultAgentDir, "directory of the agent")
	return cmd
}

func agentFields(s device.Status) []field {
	running := "no"
	if s.Running {
		running = "yes"
	}
	fields := []field{
		{"Device", s.DeviceID}, {"Hardware", s.Hardware}, {"Server", s.ServerURL}, {"Running", running},
		{"Certificate", "until " + s.Expires.Format(time.DateOnly) + ", renewed from " + s.RenewFrom.Format(time.DateOnly)},
	}
	st := s.Agent
	if st == nil {
		return fields
	}
	job := ""
	if st.JobID != "" {
		job = fmt.Sprintf("%s, attempt %d: %s", st.JobID, st.Attempt, st.Release)
	}
	return append(fields,
		field{"State", string(st.State)},
		field{"Firmware", strings.TrimSpace(fmt.Sprintf("%s %s (slot %s)", st.Firmware.Name, st.Firmware.Version, st.Slot))},
		field{"Job", job}, field{"Reason", st.Reason}, field{"Waiting", st.Waiting}, field{"Last error", st.LastError}, field{"Trust", st.TrustAlarm},
		field{"As of", st.Time.Format(time.RFC3339)})
}
