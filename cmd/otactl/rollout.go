package main

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newRolloutCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "rollout", Short: "Plan, start, follow and stop rollouts"},
		newRolloutPlanCmd(a), newRolloutCreateCmd(a), newRolloutListCmd(a), newRolloutShowCmd(a),
		newRolloutWatchCmd(a), newRolloutPauseCmd(a), newRolloutResumeCmd(a), newRolloutAbortCmd(a))
}

// rolloutFlags are the options of plan and create, as typed.
type rolloutFlags struct {
	firmware, selector, group, stages, gate, seed string
	abort                                         []string
	soak, timeout                                 time.Duration
	priority                                      int32
	dryRun, watch                                 bool
}

func (f *rolloutFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.firmware, "firmware", "", "the signed release to install, NAME@VERSION (required)")
	fl.StringVar(&f.selector, "select", "", "only the devices that match this selector (default: every device the release fits)")
	fl.StringVar(&f.group, "group", "", "only the devices in this group")
	fl.StringVar(&f.stages, "stages", "10%,50%,100%", "cumulative sizes of the stages, percentages or numbers of devices")
	fl.StringVar(&f.gate, "gate", "95%", "share of a stage that must succeed before the next one opens, such as '95% min 20'")
	fl.DurationVar(&f.soak, "soak", time.Minute, "how long the gate must hold before the next stage opens")
	fl.StringArrayVar(&f.abort, "abort", []string{"any>10% min 3"}, "stop when this is true, such as 'failed>5% min 20' or 'rolled_back>=3' (repeat; '' for none)")
	fl.StringVar(&f.seed, "seed", "", "fixes which devices come first (default: chosen by the server)")
	fl.DurationVar(&f.timeout, "timeout", 0, "how long a device may be at it before it counts as timed out, 1m to 168h (default: for ever)")
	fl.Int32Var(&f.priority, "priority", 0, "the higher comes first on a device that has several rollouts")
}

// spec checks the whole plan by the rules that the server uses too, so that a
// wrong one never leaves this machine.
func (f *rolloutFlags) spec() (*otadv1.RolloutSpec, error) {
	if f.firmware == "" {
		return nil, hint(usage("which firmware?"), "add --firmware NAME@VERSION; otactl firmware list shows the releases")
	}
	id, err := ota.ParseReleaseID(f.firmware)
	if err != nil {
		return nil, usage("--firmware: %w", err)
	}
	gate, err := ota.ParseGate(f.gate)
	if err != nil {
		return nil, usage("--gate: %w", err)
	}
	r := ota.Rollout{Release: id, Selector: f.selector, Seed: f.seed, Priority: int(f.priority), InProgressTimeout: f.timeout}
	if r.Stages, err = ota.ParseStages(f.stages, gate, f.soak); err != nil {
		return nil, hint(usage("--stages: %w", err), "write ascending sizes up to 100%%, such as --stages 1%%,10%%,50%%,100%%")
	}
	for _, text := range f.abort {
		if text == "" {
			continue
		}
		rule, err := ota.ParseAbortRule(text)
		if err != nil {
			return nil, usage("--abort: %w", err)
		}
		r.Abort = append(r.Abort, rule)
	}
	if err := r.Validate(); err != nil {
		return nil, usage("%w", err)
	}
	return specMessage(r), nil
}

func specMessage(r ota.Rollout) *otadv1.RolloutSpec {
	spec := &otadv1.RolloutSpec{Firmware: r.Release.String(), Selector: r.Selector, Seed: r.Seed, Priority: int32(r.Priority)}
	if r.InProgressTimeout > 0 {
		spec.InProgressTimeout = durationpb.New(r.InProgressTimeout)
	}
	for _, s := range r.Stages {
		spec.Stages = append(spec.Stages, &otadv1.StageSpec{
			Percent: s.Size.Percent, Count: int32(s.Size.Count), Soak: durationpb.New(s.Soak),
			Gate: &otadv1.Gate{Success: s.Gate.Success, MinFinished: int32(s.Gate.MinFinished)},
		})
	}
	for _, rule := range r.Abort {
		spec.Abort = append(spec.Abort, &otadv1.AbortRule{
			Class: string(rule.Class), Share: rule.Share, MinSample: int32(rule.MinSample), Count: int32(rule.Count),
		})
	}
	return spec
}

const rolloutExample = `  otactl rollout plan --firmware gateway@1.4.0 --select 'tags.site = "paris"'
  otactl rollout create --firmware gateway@1.4.0 --stages 5,10%,100% --gate 98% --soak 1h --timeout 2h --abort 'rolled_back>=3' --watch`

func newRolloutPlanCmd(a *app) *cobra.Command {
	var f rolloutFlags
	cmd := &cobra.Command{
		Use: "plan", Short: "Show what a rollout would do, and change nothing", Args: takes(), Example: rolloutExample,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.dryRun = true
			return a.startRollout(cmd.Context(), f)
		},
	}
	f.register(cmd)
	return cmd
}

func newRolloutCreateCmd(a *app) *cobra.Command {
	var f rolloutFlags
	cmd := &cobra.Command{
		Use: "create", Short: "Start a rollout", Args: takes(), Example: rolloutExample,
		Long: `create starts a rollout. Each stage opens when the one before has met its gate
for the soak time; a stage that can not meet it any more pauses the rollout, an
abort rule that comes true ends it. Without --timeout a stage waits for a device
that started and fell silent until it is back, or revoked.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.startRollout(cmd.Context(), f) },
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the plan and change nothing")
	cmd.Flags().BoolVar(&f.watch, "watch", false, "follow it to its end; status 7 unless it completes")
	return cmd
}

func (a *app) startRollout(ctx context.Context, f rolloutFlags) error {
	spec, err := f.spec()
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
	if f.dryRun {
		plan, err := call(ctx, c.rollouts.PlanRollout, &otadv1.PlanRolloutRequest{Spec: spec})
		if err != nil {
			return rolloutRemedy(err)
		}
		return a.printPlan(newPlanView(spec, plan))
	}
	resp, err := call(ctx, c.rollouts.CreateRollout, &otadv1.CreateRolloutRequest{Spec: spec})
	if err != nil {
		return rolloutRemedy(err)
	}
	r := newRolloutView(resp.GetRollout())
	a.note("rollout %s started for %s", r.ID, count(int(r.Population), "device"))
	if f.watch {
		return a.watchRollout(ctx, c, r.ID)
	}
	return printOne(a, r, r.ID, a.showRollout(r, nil))
}

// rolloutRemedy adds what to look at when the server can not plan a rollout: no
// device selected, or a release that is not signed.
func rolloutRemedy(err error) error {
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		return err
	}
	return hint(err, "otactl device list shows the devices, otactl firmware list which releases are SIGNED")
}

// rolloutAct is a command that changes a running rollout.
func (a *app) rolloutAct(do func(context.Context, *client, string) (*otadv1.Rollout, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		rollout, err := do(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		r := newRolloutView(rollout)
		a.note("rollout %s is %s", r.ID, r.State)
		if a.flags.output == formatTable {
			return nil
		}
		return printOne(a, r, r.ID, a.showRollout(r, nil))
	}
}

func newRolloutPauseCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "pause ID", Short: "Start no more devices; those in flight finish", Args: takes("ID"),
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			resp, err := call(ctx, c.rollouts.PauseRollout, &otadv1.PauseRolloutRequest{Id: id, Reason: reason})
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at it")
	return cmd
}

func newRolloutResumeCmd(a *app) *cobra.Command {
	var stage string
	cmd := &cobra.Command{
		Use: "resume ID", Short: "Let a paused rollout go on", Args: takes("ID"),
		Long: `resume lets a paused rollout go on. A failed stage is never passed by in
silence: --failed-stage repeat tries its unsuccessful devices once more,
--failed-stage skip goes on without them.`,
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			if stage != "" && stage != string(ota.ResumeRepeat) && stage != string(ota.ResumeSkip) {
				return nil, usage("--failed-stage %q: want %s or %s", stage, ota.ResumeRepeat, ota.ResumeSkip)
			}
			resp, err := call(ctx, c.rollouts.ResumeRollout, &otadv1.ResumeRolloutRequest{Id: id, FailedStage: stage})
			if connect.CodeOf(err) == connect.CodeFailedPrecondition && stage == "" {
				err = hint(err, "if a stage has failed, add --failed-stage repeat or --failed-stage skip")
			}
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().StringVar(&stage, "failed-stage", "", "repeat or skip the stage that failed")
	return cmd
}

func newRolloutAbortCmd(a *app) *cobra.Command {
	var reason string
	var yes bool
	cmd := &cobra.Command{
		Use: "abort ID", Short: "End a rollout; devices keep what they have", Args: takes("ID"),
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			if err := a.confirm(yes, "end rollout %s for good", id); err != nil {
				return nil, err
			}
			resp, err := call(ctx, c.rollouts.AbortRollout, &otadv1.AbortRolloutRequest{Id: id, Reason: reason})
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at it")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func newRolloutListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List rollouts, newest first", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.rollouts.ListRollouts, &otadv1.ListRolloutsRequest{})
			if err != nil {
				return err
			}
			var views []rolloutView
			for _, r := range resp.GetRollouts() {
				views = append(views, newRolloutView(r))
			}
			return printList(a, a.rolloutTable(), views)
		},
	}
}

func newRolloutShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a rollout with its stages and last failures", Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.rollouts.GetRollout, &otadv1.GetRolloutRequest{Id: args[0]})
			if err != nil {
				return err
			}
			failures, err := c.lastFailures(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			r := newRolloutView(resp.GetRollout())
			r.Failures = failures
			return printOne(a, r, r.ID, a.showRollout(r, failures))
		},
	}
}

// maxFailures is how many failed executions show lists.
const maxFailures = 10

// lastFailures returns the executions of a rollout that ended badly, the newest
// first.
func (c *client) lastFailures(ctx context.Context, id string) ([]executionView, error) {
	var last []executionView
	req := &otadv1.ListExecutionsRequest{RolloutId: id, PageSize: pageSize}
	for {
		resp, err := call(ctx, c.rollouts.ListExecutions, req)
		if err != nil {
			return nil, err
		}
		for _, e := range resp.GetExecutions() {
			if v := newExecutionView(e); v.unsuccessful() {
				last = newest(append(last, v), maxFailures)
			}
		}
		if resp.GetNextPageToken() == "" {
			return last, nil
		}
		req.PageToken = resp.GetNextPageToken()
	}
}

func newRolloutWatchCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "watch ID", Short: "Follow a rollout to its end", Args: takes("ID"),
		Long: `watch redraws the stages on a terminal and elsewhere writes a line for each
change. It ends with status 0 when the rollout completes, and with 7 when it is
aborted or pauses because a stage failed its gate.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.watchRollout(cmd.Context(), c, args[0])
		},
	}
}

// maxReconnects is how often in a row a watch asks a lost server again.
const maxReconnects = 10

func (a *app) watchRollout(ctx context.Context, c *client, id string) error {
	w := a.newRolloutWatch()
	for tries := 0; ; tries++ {
		seen, err := a.followRollout(ctx, c, id, w)
		if seen {
			tries = 0
		}
		lost := connect.CodeOf(err) == connect.CodeUnavailable || errors.Is(err, errStreamEnded)
		if err == nil || !w.started || !lost || tries >= maxReconnects {
			return c.lost(err)
		}
		a.note("lost the server, asking again")
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

// errStreamEnded is a stream that ended before the rollout did, as when the
// server stops.
var errStreamEnded = errors.New("the server ended the stream")

// followRollout shows one stream of changes. It returns nil when the rollout
// completed, and whether anything came.
func (a *app) followRollout(ctx context.Context, c *client, id string, w *rolloutWatch) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rollouts.WatchRollout(ctx, connect.NewRequest(&otadv1.WatchRolloutRequest{Id: id}))
	if err != nil {
		return false, err
	}
	defer func() {
		cancel() // or Close would wait for what still comes
		_ = stream.Close()
	}()
	seen := false
	for stream.Receive() {
		seen = true
		r := newRolloutView(stream.Msg().GetRollout())
		if err := w.show(r); err != nil {
			return seen, err
		}
		if over, err := r.outcome(); over {
			return seen, err
		}
	}
	if err := stream.Err(); err != nil {
		return seen, err
	}
	return seen, errStreamEnded
}

// wait passes a time, or ends early with the context's error.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
