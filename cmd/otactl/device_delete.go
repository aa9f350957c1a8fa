package main

import (
	"cmp"
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newDeviceDeleteCmd(a *app) *cobra.Command {
	var yes, force bool
	cmd := &cobra.Command{
		Use: "delete ID...", Short: "Delete devices with all that is their own",
		Long: `delete forgets devices: shadows, tags, group memberships, credentials, events,
uploads, and the session with what waits in it, which is dropped at once. What a
device had still to do ends as REMOVED; what it did stays in the rollouts that it
had part in, and counts there. It can not be taken back.

The certificate of a deleted device stays refused until it ends, and its key is not
taken again. The id is free: another device may enroll under it, with a new key. To
continuous rollouts that is a device that has come back: it gets what it had not
finished. Devices that are in the middle of an install are not deleted but with
--force.

Each device is deleted by itself: where one can not be, the others are all the same.`,
		Example: `  otactl device delete gw-1 gw-2
  otactl device list --select 'tags.site = "closed"' -o name | xargs otactl device delete --yes`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("want at least one device")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				if err := ota.ValidateDeviceID(id); err != nil {
					return err
				}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			what := args[0]
			if len(args) > 1 {
				what = fmt.Sprintf("%d devices", len(args))
			}
			if err := a.confirm(yes, "delete %s with all that is known of it", what); err != nil {
				return err
			}
			return a.deleteDevices(cmd.Context(), c, args, force)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&force, "force", false, "also delete a device that is in the middle of an install")
	return cmd
}

// deleteDevices deletes one after the other, and says of each that can not be why. It
// ends with the first failure that is not about one device.
func (a *app) deleteDevices(ctx context.Context, c *client, ids []string, force bool) error {
	status, left := 0, 0
	for _, id := range ids {
		_, err := call(ctx, c.devices.DeleteDevice, &otadv1.DeleteDeviceRequest{Id: id, Force: force})
		code := connect.CodeOf(err)
		switch {
		case err == nil:
			a.note("deleted %s", id)
		case len(ids) == 1, code != connect.CodeNotFound && code != connect.CodeAlreadyExists:
			return err
		default:
			status, left = cmp.Or(status, a.report(err)), left+1
		}
	}
	if left > 0 {
		return fail(status, "%d of %d devices were not deleted", left, len(ids))
	}
	return nil
}
