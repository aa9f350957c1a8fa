package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newRolloutCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "rollout", Short: "Plan, start, follow and stop rollouts"},
		newRolloutPlanCmd(a), newRolloutCreateCmd(a), newRolloutListCmd(a), newRolloutShowCmd(a), newRolloutDevicesCmd(a),
		newRolloutWatchCmd(a), newRolloutEditCmd(a), newRolloutSubmitCmd(a), newRolloutApproveCmd(a),
		newRolloutStopAllCmd(a), newRolloutSchemaCmd(a), newRolloutPauseCmd(a), newRolloutResumeCmd(a), newRolloutFinishCmd(a), newRolloutAbortCmd(a), newRolloutRevertCmd(a))
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
abort rule that comes true ends it. A device that is not back from its reboot, or has
not proved its health, within an hour each is silent, and counts as a failure
(--reboot-timeout, --health-timeout). Before that a stage waits for it, for ever
unless --timeout or a timer says how long.

With --continuous it follows its selector: devices that come to match it join the
last stage, which is 100%, and those that match no longer leave. It does not end by
itself, see otactl rollout finish.

A plan can be kept in a file, see otactl rollout schema; with --file only
--firmware, --select, --group and --seed may be given beside it.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.startRollout(cmd.Context(), f) },
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the plan and change nothing")
	cmd.Flags().BoolVar(&f.watch, "watch", false, "follow it to its end; status 7 unless it completes")
	cmd.Flags().BoolVar(&f.draft, "draft", false, "only store it; otactl rollout submit starts it")
	return cmd
}

func (a *app) startRollout(ctx context.Context, f rolloutFlags) error {
	spec, err := f.spec(a)
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
			return f.refused(err)
		}
		return a.printPlan(newPlanView(spec, plan))
	}
	resp, err := call(ctx, c.rollouts.CreateRollout, &otadv1.CreateRolloutRequest{Spec: spec, Draft: f.draft})
	if err != nil {
		return f.refused(err)
	}
	r := newRolloutView(resp.GetRollout())
	switch ota.RolloutState(r.State) {
	case ota.RolloutDraft:
		a.note("rollout %s is a draft: otactl rollout submit %s starts it", r.ID, r.ID)
	case ota.RolloutAwaitingApproval:
		a.note("rollout %s awaits approval: %s", r.ID, r.approval())
	case ota.RolloutScheduled:
		a.note("rollout %s is scheduled", r.ID)
	default:
		a.note("rollout %s started for %s", r.ID, count(int(r.Population), "device"))
	}
	if f.watch {
		return a.watchRollout(ctx, c, r.ID)
	}
	return printOne(a, r, r.ID, a.showRollout(r))
}

// refused says in which line of a plan file stands what the server refuses, and what
// to do.
func (f *rolloutFlags) refused(err error) error {
	if err == nil {
		return nil
	}
	return rolloutRemedy(f.lines.locate(err))
}

// rolloutRemedy adds what to look at when the server refuses a plan, by what it is
// about; what is about the priority says itself what to do.
func rolloutRemedy(err error) error {
	switch field := refusedField(err); {
	case connect.CodeOf(err) == connect.CodeNotFound: // it is said where those are that there are
		return err
	case field == "firmware":
		return hint(err, "otactl device list shows the devices, otactl firmware list the releases, for which hardware they are and which are SIGNED")
	case field == "select":
		return hint(err, "otactl device list --select shows whom a selector means")
	}
	return err
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
			return c.stateRemedy(cmd.Context(), args[0], err)
		}
		r := newRolloutView(rollout)
		a.note("rollout %s is %s", r.ID, r.State)
		if a.flags.output == formatTable {
			return nil
		}
		return printOne(a, r, r.ID, a.showRollout(r))
	}
}

func newRolloutEditCmd(a *app) *cobra.Command {
	var f rolloutFlags
	cmd := &cobra.Command{
		Use: "edit ID", Short: "Replace the plan of a rollout that has not begun", Args: takes("ID"),
		Long: `edit replaces the whole plan but its firmware. What was approved is to be
approved again.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := f.spec(a)
			if err != nil {
				return err
			}
			act := a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
				if spec.Selector, err = c.selectGroup(ctx, f.group, spec.Selector); err != nil {
					return nil, err
				}
				resp, err := call(ctx, c.rollouts.EditRollout, &otadv1.EditRolloutRequest{Id: id, Spec: spec})
				return resp.GetRollout(), f.refused(err)
			})
			return act(cmd, args)
		},
	}
	f.register(cmd)
	return cmd
}

func newRolloutSubmitCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "submit ID", Short: "Start a draft, or let it await its approval", Args: takes("ID"),
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			resp, err := call(ctx, c.rollouts.SubmitRollout, &otadv1.SubmitRolloutRequest{Id: id})
			return resp.GetRollout(), err
		}),
	}
}

func newRolloutApproveCmd(a *app) *cobra.Command {
	var stage int32
	var revision int64
	cmd := &cobra.Command{
		Use: "approve ID", Short: "Approve a rollout, or one of its stages", Args: takes("ID"),
		Long: `approve lets a rollout that awaits it start, or with --stage one of its stages
open when its turn comes.

With --revision it approves the plan that you looked at: otactl rollout show has
the number, and the command with it. Where the plan was edited since, it is
refused with status 4. Only an edit raises the number, so it stays the same while
a rollout runs. Without it the plan is approved as it is now.`,
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			if revision < 0 {
				return nil, usage("--revision %d: otactl rollout show %s has the number", revision, id)
			}
			resp, err := call(ctx, c.rollouts.ApproveRollout, &otadv1.ApproveRolloutRequest{Id: id, Stage: stage, Revision: revision})
			if connect.CodeOf(err) == connect.CodeAborted && revision != 0 {
				return nil, hint(err, "otactl rollout show %s has the plan as it is now, and the command that approves it", id)
			}
			if r := resp.GetRollout(); err == nil && stage == 0 {
				a.note("revision %d of its plan is approved", r.GetRevision())
			}
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().Int64Var(&revision, "revision", 0, "the revision of the plan that you looked at (default: as it is now)")
	cmd.Flags().Int32Var(&stage, "stage", 0, "the stage, from 1 (default: the rollout)")
	return cmd
}

func newRolloutStopAllCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "stop-all", Short: "Emergency stop: pause every rollout at once", Args: takes(),
		Long: `stop-all pauses every rollout that starts devices or has some at work: one that
runs or is scheduled, that is paused while devices at work finish, that is being
finished or goes back. No device starts any more, and those in flight are asked
to wait before they activate the new slot. It does not ask. Each rollout goes on
with otactl rollout resume, to what it was doing and by its own plan.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.rollouts.StopRollouts, &otadv1.StopRolloutsRequest{Reason: reason})
			if err != nil {
				return err
			}
			a.note("%s stopped", count(len(resp.GetStopped()), "rollout"))
			err = printList(a, view[string]{
				name: func(id string) string { return id }, columns: []column[string]{{head: "ID", cell: func(id string) string { return id }}},
			}, resp.GetStopped())
			if failed := resp.GetFailed(); err == nil && len(failed) > 0 {
				err = fmt.Errorf("%s not stopped, run it again: %s", count(len(failed), "rollout"), strings.Join(failed, "; "))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at it")
	return cmd
}

func newRolloutSchemaCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON schema of plan files", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(planSchema)
			return err
		},
	}
}

func newRolloutPauseCmd(a *app) *cobra.Command {
	var reason string
	var hold bool
	cmd := &cobra.Command{
		Use: "pause ID", Short: "Start no more devices", Args: takes("ID"),
		Long: `pause starts no more devices. Those in flight finish, or with --hold (or a plan
that says so) wait before they activate the new slot. With --hold it also takes
a rollout that is paused already, or being finished: devices at work wait then.
What the plan says of a pause stays as it is: the next one goes by it again.`,
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			resp, err := call(ctx, c.rollouts.PauseRollout, &otadv1.PauseRolloutRequest{Id: id, Reason: reason, Policy: policyOf(hold)})
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().BoolVar(&hold, "hold", false, "devices in flight wait before they activate")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at it")
	return cmd
}

func policyOf(hold bool) string {
	if hold {
		return string(ota.PauseHoldBeforeInstall)
	}
	return "" // the plan's
}

func newRolloutResumeCmd(a *app) *cobra.Command {
	var stage string
	cmd := &cobra.Command{
		Use: "resume ID", Short: "Let a paused rollout go on", Args: takes("ID"),
		Long: `resume lets a paused rollout go on. A failed stage is never passed by in
silence: --failed-stage repeat tries its unsuccessful devices once more,
--failed-stage skip goes on without them, and the stage says that it was skipped.`,
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			if stage != "" && stage != string(ota.ResumeRepeat) && stage != string(ota.ResumeSkip) {
				return nil, usage("--failed-stage %q: want %s or %s", stage, ota.ResumeRepeat, ota.ResumeSkip)
			}
			resp, err := call(ctx, c.rollouts.ResumeRollout, &otadv1.ResumeRolloutRequest{Id: id, FailedStage: stage})
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().StringVar(&stage, "failed-stage", "", "repeat or skip the stage that failed")
	return cmd
}

func newRolloutFinishCmd(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "finish ID", Short: "End a continuous rollout", Args: takes("ID"),
		Long: `finish ends a continuous rollout, which does not end by itself. Nobody joins it
any more, what is queued is cancelled, and devices at work finish.`,
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			resp, err := call(ctx, c.rollouts.FinishRollout, &otadv1.FinishRolloutRequest{Id: id, Reason: reason})
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at it")
	return cmd
}

func newRolloutAbortCmd(a *app) *cobra.Command {
	var reason string
	var yes, revert, keep bool
	cmd := &cobra.Command{
		Use: "abort ID", Short: "End a rollout; devices keep what they have, or go back", Args: takes("ID"),
		Long: `abort cancels what has not been activated and ends the rollout. Devices keep
what they have installed, or with --revert (or a plan that says so) those that it
has changed go back to what they ran before: one rollout for each such release,
in reverse order. What the plan says of an abort stays as it was written; rollout
show has both. What no signed release has, or what is below the security
version that a device has reached, it does not go back to; the rollout's reason
says which devices stay.`,
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			policy := ""
			switch {
			case revert:
				policy = string(ota.AbortRevert)
			case keep:
				policy = string(ota.AbortKeep)
			}
			if err := a.confirm(yes, "end rollout %s for good", id); err != nil {
				return nil, err
			}
			resp, err := call(ctx, c.rollouts.AbortRollout, &otadv1.AbortRolloutRequest{Id: id, Reason: reason, Policy: policy})
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at it")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&revert, "revert", false, "devices that it has changed go back to what they ran before")
	cmd.Flags().BoolVar(&keep, "keep", false, "devices keep what they have, whatever the plan says")
	cmd.MarkFlagsMutuallyExclusive("revert", "keep")
	return cmd
}

func newRolloutRevertCmd(a *app) *cobra.Command {
	var reason string
	var yes bool
	cmd := &cobra.Command{
		Use: "revert ID", Short: "Bring the devices of a rollout back to what they ran before", Args: takes("ID"),
		Long: `revert brings devices that a rollout has changed back to what each ran before, by
one rollout for each such release, whether it goes on or is COMPLETED or ABORTED:
of one that goes on it is the same as abort --revert. Devices that a newer rollout
of the firmware has been given stay with that. What no signed release has, or what
is below the security version that a device has reached, it does not go back to;
the rollout's reason says which devices stay.`,
		Example: "  otactl rollout revert r-abc --reason 'the modem hangs after three days'",
		RunE: a.rolloutAct(func(ctx context.Context, c *client, id string) (*otadv1.Rollout, error) {
			if err := a.confirm(yes, "bring the devices of rollout %s back to what they ran before", id); err != nil {
				return nil, err
			}
			resp, err := call(ctx, c.rollouts.AbortRollout, &otadv1.AbortRolloutRequest{Id: id, Reason: first(reason, "reverted by an operator"), Policy: string(ota.AbortRevert)})
			return resp.GetRollout(), err
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever looks at it")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func newRolloutListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List rollouts of firmware, newest first", Args: takes(),
		Long: "list shows rollouts of firmware; otactl command list has those of commands.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.rollouts.ListRollouts, &otadv1.ListRolloutsRequest{Kind: string(ota.KindInstall)})
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
			r := newRolloutView(resp.GetRollout())
			return printOne(a, r, r.ID, a.showRollout(r))
		},
	}
}

func newRolloutWatchCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "watch ID", Short: "Follow a rollout to its end", Args: takes("ID"),
		Long: `watch redraws the stages on a terminal, each second, and elsewhere writes a line
for each change. It ends with status 0 when the rollout completes, and with 7 when it is
aborted or pauses because a stage failed its gate. A continuous rollout ends only
by otactl rollout finish.`,
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
	return a.watchWith(ctx, c, id, a.newRolloutWatch())
}

func (a *app) watchWith(ctx context.Context, c *client, id string, w *rolloutWatch) error {
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
	came, over, err := w.follow(func() (rolloutView, bool) {
		if !stream.Receive() {
			return rolloutView{}, false
		}
		return newRolloutView(stream.Msg().GetRollout()), true
	}, cancel)
	if over || err != nil {
		return came, err
	}
	return came, cmp.Or(stream.Err(), errStreamEnded)
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
