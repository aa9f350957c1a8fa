package main

import (
	"time"

	"github.com/spf13/cobra"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// becauseView is one rollout that concerns a device, as -o json shows it.
type becauseView struct {
	Rollout  string     `json:"rollout"`
	Firmware string     `json:"firmware"`
	Command  string     `json:"command,omitempty"` // where the rollout is of one
	State    string     `json:"state"`             // of the rollout
	Status   string     `json:"status,omitempty"`  // of its execution on the device
	Why      string     `json:"why"`
	Until    *time.Time `json:"until,omitempty"` // when that ends by itself
}

func newDeviceWhyCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "why ID", Short: "Say what holds a device now, and until when", Args: takes("ID"),
		Long: `why shows every rollout that has not ended, what it means for the device, and
what it waits for.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.ExplainDevice, &otadv1.ExplainDeviceRequest{Id: args[0]})
			if err != nil {
				return err
			}
			views := []becauseView{}
			for _, b := range resp.GetBecause() {
				views = append(views, becauseView{b.GetRolloutId(), b.GetFirmware(), b.GetCommand(), b.GetState(), b.GetStatus(), b.GetWhy(), when(b.GetUntil())})
			}
			if len(views) == 0 {
				a.note("no rollout is under way")
			}
			return printList(a, a.becauseTable(), views)
		},
	}
}

func (a *app) becauseTable() view[becauseView] {
	return view[becauseView]{
		name: func(b becauseView) string { return b.Rollout },
		columns: []column[becauseView]{
			{head: "ROLLOUT", cell: func(b becauseView) string { return b.Rollout }},
			{head: "BRINGS", cell: func(b becauseView) string { return first(b.Firmware, b.Command) }},
			{head: "STATUS", cell: func(b becauseView) string { return first(b.Status, "-") }},
			{head: "WHY", cell: func(b becauseView) string { return b.Why }},
			{head: "UNTIL", cell: func(b becauseView) string { return first(rfc3339(b.Until), "-") }},
		},
	}
}
