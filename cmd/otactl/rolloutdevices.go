package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newRolloutDevicesCmd(a *app) *cobra.Command {
	var active, failed bool
	var limit int
	cmd := &cobra.Command{
		Use: "devices ID", Short: "List the devices that a rollout has reached, each attempt", Args: takes("ID"),
		Example: `  otactl rollout devices r-abc --active
  otactl rollout devices r-abc --failed -o name
  otactl rollout devices r-abc -o jsonl | jq 'select(.class == "silent") | .device'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return usage("--limit %d: want a number of attempts, or 0 for all", limit)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			var views []executionView
			err = c.eachExecution(cmd.Context(), &otadv1.ListExecutionsRequest{RolloutId: args[0], Active: active, EveryAttempt: !failed}, func(e *otadv1.Execution) bool {
				if v := newExecutionView(e); !failed || v.unsuccessful() {
					views = append(views, v)
				}
				return limit == 0 || len(views) < limit
			})
			if err != nil {
				return err
			}
			return printList(a, a.executionTable(), views)
		},
	}
	cmd.Flags().BoolVar(&active, "active", false, "only attempts that are not finished")
	cmd.Flags().BoolVar(&failed, "failed", false, "only devices whose last attempt ended without success, and that attempt")
	cmd.MarkFlagsMutuallyExclusive("active", "failed")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this many (0: all)")
	return cmd
}

// eachExecution calls f with the executions that are asked for, page by page,
// until f returns false.
func (c *client) eachExecution(ctx context.Context, req *otadv1.ListExecutionsRequest, f func(*otadv1.Execution) bool) error {
	req.PageSize = pageSize
	for {
		resp, err := call(ctx, c.rollouts.ListExecutions, req)
		if err != nil {
			return err
		}
		for _, e := range resp.GetExecutions() {
			if !f(e) {
				return nil
			}
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return nil
		}
	}
}

// unsuccessful reports whether it ended so that it counts against the rollout, and no
// further attempt is to come.
func (e executionView) unsuccessful() bool {
	return slices.Contains(ota.Unsuccessful, ota.Class(e.Class)) && e.RetryAt == nil
}

// legText says on which leg of how many a device is; empty for a command.
func (e executionView) legText() string {
	if e.Leg == 0 || e.Firmware == "" {
		return ""
	}
	return fmt.Sprintf("%d of %d", e.Leg, int(e.Leg)+len(e.Via))
}

func (a *app) executionTable() view[executionView] {
	return view[executionView]{
		name: func(e executionView) string { return e.Device },
		columns: []column[executionView]{
			{head: "DEVICE", cell: func(e executionView) string { return e.Device }},
			{head: "STAGE", cell: func(e executionView) string { return strconv.Itoa(int(e.Stage)) }},
			{head: "ATTEMPT", cell: func(e executionView) string { return strconv.Itoa(int(e.Attempt)) }},
			{head: "FIRMWARE", wide: true, cell: func(e executionView) string { return e.Firmware }},
			{head: "LEG", wide: true, cell: executionView.legText},
			{head: "STATUS", cell: func(e executionView) string { return e.Status }},
			{head: "CLASS", wide: true, cell: func(e executionView) string { return e.Class }},
			{head: "STEP", cell: func(e executionView) string { return e.Step }},
			{head: "UPDATED", cell: func(e executionView) string { return a.ago(e.UpdatedAt) }},
			{head: "REASON", cell: func(e executionView) string { return e.Reason }},
		},
	}
}
