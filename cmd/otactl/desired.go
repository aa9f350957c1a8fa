package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newDeviceSetFirmwareCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "set-firmware ID NAME@VERSION", Short: "Say which firmware a device shall run", Args: takes("ID", "NAME@VERSION"),
		Long: `set-firmware writes desired.firmware into the device's shadow. One continuous
rollout brings a release to all devices that desire it: otactl rollout list shows it,
and its rules hold. It ends if more than 10% of them (of at least 10) fail. What comes
later has the last word: a rollout of the same firmware that is made after it brings
its own release to the device. A release that other devices desire still, from before
such a rollout, is refused, since they would be taken back to it too; so is one for a
device that a rollout of higher priority has.`,
		Example: "  otactl device set-firmware gw-1 gateway@1.4.0\n  otactl device why gw-1",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := ota.ParseReleaseID(args[1])
			if err != nil {
				return usage("%w", err)
			}
			if err := a.desireFirmware(cmd.Context(), args[0], map[string]any{"name": id.Name, "version": id.Version}); err != nil {
				return err
			}
			a.note("%s shall run %s: otactl device why %s", args[0], id, args[0])
			return nil
		},
	}
}

func newDeviceClearFirmwareCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "clear-firmware ID", Short: "Desire no firmware of a device any more", Args: takes("ID"),
		Long: `clear-firmware removes desired.firmware from the device's shadow. What waits for
it is cancelled; what the device runs it keeps.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.desireFirmware(cmd.Context(), args[0], nil); err != nil {
				return err
			}
			a.note("no firmware is desired of %s any more", args[0])
			return nil
		},
	}
}

// desireFirmware changes desired.firmware; nil: none.
func (a *app) desireFirmware(ctx context.Context, id string, firmware any) error {
	if err := ota.ValidateDeviceID(id); err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	_, err = call(ctx, c.shadows.UpdateShadow, &otadv1.UpdateShadowRequest{DeviceId: id, Update: shadowUpdate(map[string]any{"firmware": firmware}, 0)})
	return rolloutRemedy(err)
}

// ofGroupDefault are the flags of a rollout that the command itself gives.
var ofGroupDefault = []string{"file", "firmware", "select", "group", "continuous"}

func newGroupSetFirmwareCmd(a *app) *cobra.Command {
	var f rolloutFlags
	cmd := &cobra.Command{
		Use: "set-firmware GROUP NAME@VERSION", Short: "Say which firmware the devices of a group shall run", Args: takes("GROUP", "NAME@VERSION"),
		Long: `set-firmware starts a continuous rollout over the group: those that are in it get
the release by stages, those that come into it later by the same rate and bounds.
It takes the place of the one before, and ends by otactl group clear-firmware.
"otactl rollout create --help" explains the flags.`,
		Example: "  otactl group set-firmware paris gateway@1.4.0 --stages 5,100% --rate 100/m",
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range ofGroupDefault {
				if cmd.Flags().Changed(name) {
					return usage("--%s: the group and its firmware are named by themselves", name)
				}
			}
			f.group, f.firmware, f.continuous = args[0], args[1], true
			return a.startRollout(cmd.Context(), f)
		},
	}
	f.register(cmd)
	for _, name := range ofGroupDefault {
		_ = cmd.Flags().MarkHidden(name) // they are there
	}
	return cmd
}

func newGroupClearFirmwareCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "clear-firmware GROUP", Short: "End what brings firmware to a group", Args: takes("GROUP"),
		Long: `clear-firmware finishes the continuous rollouts over the group. What is queued is
cancelled, devices at work finish, and all keep what they run.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defaults, err := c.groupFirmware(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			for _, r := range defaults {
				if _, err := call(cmd.Context(), c.rollouts.FinishRollout, &otadv1.FinishRolloutRequest{Id: r.ID, Reason: "the group has no firmware any more"}); err != nil {
					return fmt.Errorf("finish rollout %s: %w", r.ID, err)
				}
				a.note("rollout %s of %s is finished", r.ID, r.Firmware)
			}
			if len(defaults) == 0 {
				a.note("group %s has no firmware", args[0])
			}
			return nil
		},
	}
}

// groupFirmware are the continuous rollouts over a group that have not ended.
func (c *client) groupFirmware(ctx context.Context, group string) (list []rolloutView, err error) {
	selector, err := c.selectGroup(ctx, group, "")
	if err != nil {
		return nil, err
	}
	resp, err := call(ctx, c.rollouts.ListRollouts, &otadv1.ListRolloutsRequest{Kind: string(ota.KindInstall)})
	if err != nil {
		return nil, err
	}
	for _, r := range resp.GetRollouts() {
		if keepsUp(r, selector) {
			list = append(list, newRolloutView(r))
		}
	}
	return list, nil
}

// keepsUp reports whether a rollout brings its release to whoever comes to match the
// selector: not one that is being finished, be it that it is held.
func keepsUp(r *otadv1.Rollout, selector string) bool {
	over := r.GetEnding() || ota.RolloutState(r.GetState()).Terminal()
	return r.GetSpec().GetContinuous() && r.GetSpec().GetSelector() == selector && !over
}

// firmwareText is what the rollouts bring, for people.
func firmwareText(list []rolloutView) string {
	var names []string
	for _, r := range list {
		names = append(names, fmt.Sprintf("%s by %s", r.Firmware, r.ID))
	}
	return strings.Join(names, ", ")
}
