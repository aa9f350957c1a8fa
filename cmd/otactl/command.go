package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newCommandCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{
		Use: "command", Short: "Run commands on devices: reboot, collect-logs, or what a device allows",
		Long: `command runs named actions on devices. Every agent knows reboot and
collect-logs; whatever else it may run stands in its own configuration. A command
is a rollout of another kind: otactl rollout watch, pause, resume and stop-all
work for it too.`,
	}, newCommandRunCmd(a), newCommandListCmd(a), newCommandShowCmd(a), newCommandCancelCmd(a))
}

// commandFlags are the options of command run beside those that it shares with
// rollouts.
type commandFlags struct {
	rolloutFlags
	limit     time.Duration
	maxOutput int
	all, yes  bool
	wait      bool
}

// defaultClaim is how long a device may take to begin a command unless the
// operator says otherwise: one that comes back after weeks should not reboot
// because of yesterday.
const defaultClaim = 24 * time.Hour

func (f *commandFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	f.cmd = cmd
	f.rolloutFlags.maxDefers, f.rolloutFlags.onPause = ota.DefaultConsent.MaxDefers, string(ota.PauseLetFinish)
	fl.StringVar(&f.file, "file", "", "read the command and the plan from this YAML file ('-': standard input)")
	fl.StringVar(&f.selector, "select", "", "the devices that match this selector")
	fl.StringVar(&f.group, "group", "", "only the devices in this group")
	fl.BoolVar(&f.all, "all", false, "every device")
	fl.BoolVar(&f.yes, "yes", false, "do not ask before a command goes to every device")
	fl.DurationVar(&f.limit, "timeout", 0, "how long the command may run on a device, at most 24h (default 1m)")
	fl.IntVar(&f.maxOutput, "max-output", 0, fmt.Sprintf("how many bytes of its output are reported, at most %d (default %d)", ota.MaxCommandOutput, ota.DefaultCommandOutput))
	fl.DurationVar(&f.timers.Claim, "claim-timeout", defaultClaim, "how long a device may take to begin before it counts as timed out (0: for ever)")
	fl.StringVar(&f.stages, "stages", defaultCommandStages, "cumulative sizes of the stages, percentages or numbers of devices")
	fl.StringVar(&f.gate, "gate", "0%", "share of a stage that must succeed before the next one opens, such as '95% min 20'")
	fl.DurationVar(&f.soak, "soak", 0, "how long the gate must hold before the next stage opens")
	fl.StringArrayVar(&f.abort, "abort", nil, "stop when this is true, such as 'failed>5% min 20' (repeat)")
	fl.StringVar(&f.seed, "seed", "", "fixes which devices come first (default: chosen by the server)")
	fl.Int32Var(&f.priority, "priority", 0, "the higher comes first on a device that has several commands")
	fl.StringVar(&f.rate, "rate", "", "how many devices are started, such as 100/m (default: all of a stage)")
	fl.IntVar(&f.maxInFlight, "max-in-flight", 0, "how many devices may be at work at a time (default: all of a stage)")
	fl.StringVar(&f.maxPer, "max-per", "", "the same for each value of a tag or of hardware, such as site=5")
	fl.IntVar(&f.retry.Attempts, "attempts", 1, "how often a device may try in all")
	fl.DurationVar(&f.retry.Backoff, "backoff", 0, "how long to wait before the second attempt, doubled before each further one")
	fl.StringSliceVar(&f.retryOn, "retry-on", nil, "which ends are tried again (default: failed,silent,timed_out)")
	fl.StringSliceVar(&f.strata, "strata", nil, "every stage holds a share of each value of these: hardware or tag keys")
	fl.StringVar(&f.start, "start", "", "not before this time, RFC 3339 (default: at once)")
	fl.BoolVar(&f.approval, "approval", false, "an operator must approve it before it starts")
	fl.BoolVar(&f.dryRun, "dry-run", false, "show who would run it and change nothing")
	fl.BoolVar(&f.wait, "wait", false, "wait for its end and print its output; status 7 unless it succeeded everywhere")
}

func newCommandRunCmd(a *app) *cobra.Command {
	var f commandFlags
	cmd := &cobra.Command{
		Use: "run ID|--select EXPR NAME [-- KEY=VALUE...]", Short: "Run a command on one device, or on many",
		Long: `run has devices run a command, and reports the exit status, the first and the
last of the output, and what the device uploaded. The parameters come after --;
each device's own configuration says which it takes and what they may be. No shell
reads them anywhere.

On one device it is at once; with --select, --group or --all the options of a
rollout bound it. With --file command and plan come from a plan file (otactl rollout
schema): only ID, --select, --group, --all, --seed, --yes, --dry-run and --wait stand
beside it.`,
		Example: `  otactl command run gw-1 reboot
  otactl command run gw-1 set-level --wait -- level=3
  otactl command run --select 'tags.site = "paris"' collect-logs --max-in-flight 10
  otactl command run --all check-disk --stages 1%,100% --gate 90% --abort 'any>=5' --yes
  otactl command run --file check-disk.yaml --group paris`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runCommand(cmd.Context(), &f, args, cmd.ArgsLenAtDash())
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) runCommand(ctx context.Context, f *commandFlags, args []string, dash int) error {
	spec, device, err := f.order(a, args, dash)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	if spec.Selector, err = c.selectGroup(ctx, f.group, spec.Selector); err != nil {
		return err
	}
	if device != "" {
		d, err := call(ctx, c.devices.GetDevice, &otadv1.GetDeviceRequest{Id: device})
		if err != nil {
			return err
		}
		if d.GetDevice().GetRevokedAt() != nil {
			return fail(exitFailed, "device %s is revoked: it runs nothing any more", device)
		}
	}
	if f.dryRun {
		plan, err := call(ctx, c.rollouts.PlanRollout, &otadv1.PlanRolloutRequest{Spec: spec})
		if err != nil {
			return f.refused(err)
		}
		return a.printPlan(newPlanView(spec, plan))
	}
	if f.all {
		if err := a.confirm(f.yes, "run %s on every device", spec.GetCommand().GetName()); err != nil {
			return err
		}
	}
	resp, err := call(ctx, c.rollouts.CreateRollout, &otadv1.CreateRolloutRequest{Spec: spec})
	if err != nil {
		return f.refused(err)
	}
	r := newRolloutView(resp.GetRollout())
	a.note("command %s is %s for %s", r.ID, r.State, count(int(r.Population), "device"))
	if f.wait {
		return a.awaitCommand(ctx, c, r.ID)
	}
	return printOne(a, r, r.ID, a.showRollout(r))
}

// besideCommandFile are the flags that may be given with a plan file.
var besideCommandFile = []string{"file", "select", "group", "all", "seed", "yes", "dry-run", "wait"}

// orderFile is order for a plan file. Its selector says which devices, unless they are
// given beside it; every device has to be.
func (f *commandFlags) orderFile(a *app, args []string, dash int) (spec *otadv1.RolloutSpec, device string, err error) {
	switch given := f.selector != "" || f.group != "" || f.all; {
	case dash >= 0 || len(args) > 1:
		return nil, "", usage("with --file there is only ID: write the command and its parameters into the plan")
	case len(args) == 1 && given, f.all && (f.selector != "" || f.group != ""):
		return nil, "", usage("ID, --select or --group, and --all: give one of them")
	case len(args) == 1:
		device = args[0]
		if err := ota.ValidateDeviceID(device); err != nil {
			return nil, "", err
		}
		f.selector = fmt.Sprintf("id = %q", device)
	}
	r, err := f.fromFile(a, besideCommandFile)
	if err != nil {
		return nil, "", err
	}
	if f.all {
		r.Selector, f.lines.beside["select"] = "", "--all"
	}
	switch {
	case r.Command == nil:
		return nil, "", hint(usage("%s has no command", f.file), "write 'command: {name: NAME}', or start a plan of firmware by otactl rollout create --file")
	case r.Selector == "" && f.group == "" && !f.all:
		return nil, "", hint(usage("which devices?"), "write select into the plan, or give ID, --select, --group or --all")
	}
	if err := f.valid(r); err != nil {
		return nil, "", err
	}
	return specMessage(r), device, nil
}

// order reads what is to run where, by the rules that the server uses too.
func (f *commandFlags) order(a *app, args []string, dash int) (spec *otadv1.RolloutSpec, device string, err error) {
	if f.file != "" {
		return f.orderFile(a, args, dash)
	}
	words, rest := args, []string(nil)
	if dash >= 0 {
		words, rest = args[:dash], args[dash:]
	}
	many := 0
	for _, given := range []bool{f.selector != "" || f.group != "", f.all} {
		if given {
			many++
		}
	}
	switch {
	case many == 0 && len(words) == 2:
		device, words = words[0], words[1:]
		if err := ota.ValidateDeviceID(device); err != nil {
			return nil, "", err
		}
		f.selector = fmt.Sprintf("id = %q", device)
	case many == 0:
		return nil, "", hint(usage("which device, and which command?"), "write ID NAME, or NAME with --select, --group or --all; parameters come after --")
	case many > 1:
		return nil, "", usage("--all beside --select or --group: give one of them")
	case len(words) != 1:
		return nil, "", hint(usage("one command, got %d words", len(words)), "with --select, --group or --all there is only NAME; parameters come after --")
	}
	command, err := f.command(words[0], rest)
	if err != nil {
		return nil, "", err
	}
	r, err := f.plan()
	if err != nil {
		return nil, "", err
	}
	r.Command = command
	if err := f.valid(r); err != nil {
		return nil, "", err
	}
	return specMessage(r), device, nil
}

// command reads the command and its KEY=VALUE parameters.
func (f *commandFlags) command(name string, parameters []string) (*ota.Command, error) {
	if f.limit%time.Second != 0 {
		return nil, usage("--timeout %s: want whole seconds", f.limit)
	}
	c := &ota.Command{Name: name, TimeoutSeconds: int(f.limit / time.Second), MaxOutputBytes: f.maxOutput}
	for _, p := range parameters {
		key, value, ok := strings.Cut(p, "=")
		if !ok {
			return nil, hint(usage("parameter %q", p), "write it as KEY=VALUE; the device's configuration says which there are")
		}
		if _, twice := c.Parameters[key]; twice {
			return nil, usage("parameter %s is given twice", key)
		}
		if c.Parameters == nil {
			c.Parameters = map[string]string{}
		}
		c.Parameters[key] = value
	}
	return c, nil
}

func newCommandListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List commands, newest first", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.rollouts.ListRollouts, &otadv1.ListRolloutsRequest{Kind: string(ota.KindCommand)})
			if err != nil {
				return err
			}
			var views []rolloutView
			for _, r := range resp.GetRollouts() {
				views = append(views, newRolloutView(r))
			}
			return printList(a, a.commandTable(), views)
		},
	}
}

func (a *app) commandTable() view[rolloutView] {
	return view[rolloutView]{
		name: func(r rolloutView) string { return r.ID },
		columns: []column[rolloutView]{
			{head: "ID", cell: func(r rolloutView) string { return r.ID }},
			{head: "COMMAND", cell: func(r rolloutView) string { return r.Command.text() }},
			{head: "STATE", cell: func(r rolloutView) string { return r.State }},
			{head: "DEVICES", cell: func(r rolloutView) string { return number(r.Population) }},
			{head: "SUCCEEDED", cell: func(r rolloutView) string { return number(r.totals().succeeded()) }},
			{head: "FAILED", cell: func(r rolloutView) string { return number(r.totals().bad()) }},
			{head: "CREATED", cell: func(r rolloutView) string { return a.ago(r.CreatedAt) }},
			{head: "SELECTOR", wide: true, cell: func(r rolloutView) string { return r.Selector }},
			{head: "REASON", wide: true, cell: func(r rolloutView) string { return r.Reason }},
		},
	}
}

func newCommandCancelCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "cancel ID", Short: "Cancel a command where it has not begun", Args: takes("ID"),
		Long: `cancel ends a command: devices that have not begun do not run it. Where it runs
already it goes on to its end.`,
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			resp, err := call(ctx, c.rollouts.AbortRollout, &otadv1.AbortRolloutRequest{Id: id, Reason: first(reason, "cancelled by an operator")})
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at it")
	return cmd
}

// commandView is a command as -o json shows it.
type commandView struct {
	Name       string            `json:"name"`
	Parameters map[string]string `json:"parameters,omitempty"`
	Timeout    string            `json:"timeout"` // Go duration
	MaxOutput  int               `json:"maxOutput"`
}

func newCommandView(c *otadv1.Command) *commandView {
	if c == nil {
		return nil
	}
	of := ota.Command{TimeoutSeconds: int(c.GetTimeout().GetSeconds()), MaxOutputBytes: int(c.GetMaxOutput())}
	return &commandView{Name: c.GetName(), Parameters: c.GetParameters(), Timeout: of.Timeout().String(), MaxOutput: of.OutputLimit()}
}

// text is the command as it was typed; empty for none.
func (c *commandView) text() string {
	if c == nil {
		return ""
	}
	return ota.Command{Name: c.Name, Parameters: c.Parameters}.String()
}
