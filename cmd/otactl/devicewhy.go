package main

import (
	"fmt"
	"io"
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
	Cause    string     `json:"cause"`             // why, in a word
	Why      string     `json:"why"`
	Since    *time.Time `json:"since,omitempty"`
	Until    *time.Time `json:"until,omitempty"` // when that ends by itself
	Remedy   string     `json:"remedy"`
}

func newDeviceWhyCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "why ID", Short: "Say why a device does not update, and what to do", Args: takes("ID"),
		Long: `why shows every rollout that has not ended, what it means for the device, what
it waits for, since when and until when, and what to do about it. Of those that
have ended it shows the last that the device has drifted from, and the last one
that left it without a firmware, where no other brings it that. What is for other
hardware is left out, unless its selector means the device or there is no other.`,
		Example: "  otactl device why gw-1\n  otactl device why gw-1 -o json | jq -r '.[] | .cause + \": \" + .remedy'",
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
				views = append(views, becauseView{
					b.GetRolloutId(), b.GetFirmware(), b.GetCommand(), b.GetState(), b.GetStatus(), b.GetCause(),
					b.GetWhy(), when(b.GetSince()), when(b.GetUntil()), b.GetRemedy(),
				})
			}
			if len(views) == 0 {
				a.note("nothing holds it, and nothing is to come; 'otactl device history %s' shows what was, 'otactl rollout create' brings it a release", args[0])
			}
			if f := a.flags.output; f == formatTable || f == formatWide {
				return a.printBecause(a.stdout, views)
			}
			return printList(a, view[becauseView]{name: func(b becauseView) string { return b.Rollout }}, views)
		},
	}
}

// printBecause writes a paragraph for each: sentences do not fit into columns.
func (a *app) printBecause(w io.Writer, views []becauseView) error {
	for i, b := range views {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		err := writeFields(w, []field{
			{"Rollout", fmt.Sprintf("%s, %s", b.Rollout, b.State)},
			{"Brings", first(b.Firmware, b.Command)},
			{"Status", b.Status},
			{"Why", b.Why},
			{"Since", a.moment(b.Since)},
			{"Until", a.moment(b.Until)},
			{"Do", b.Remedy},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// moment is a time, and how far away that is.
func (a *app) moment(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s)", rfc3339(t), a.ago(t))
}
