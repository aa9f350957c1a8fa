package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newDeviceTagCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "tag ID KEY=VALUE|KEY- ...", Short: "Set and remove tags of a device",
		Long: `tag sets a tag for each KEY=VALUE and removes the one of each KEY-, all at
once. Dynamic groups that ask for tags have or lose the device in the same
moment. Selectors find it by tags.KEY = "VALUE".`,
		Example: "  otactl device tag gw-1 site=paris ring-",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usage("want a device and at least one KEY=VALUE or KEY-")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ota.ValidateDeviceID(args[0]); err != nil {
				return err
			}
			req, err := tagChanges(args[0], args[1:])
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.ChangeTags, req)
			if err != nil {
				return err
			}
			a.note("changed the tags of %s", args[0])
			return a.printDevice(newDeviceView(resp.GetDevice()))
		},
	}
}

// tagChanges reads KEY=VALUE and KEY-. A value may hold anything, also - at its
// end.
func tagChanges(id string, args []string) (*otadv1.ChangeTagsRequest, error) {
	req := &otadv1.ChangeTagsRequest{Id: id, Set: map[string]string{}}
	for _, arg := range args {
		key, value, set := strings.Cut(arg, "=")
		if !set {
			var remove bool
			if key, remove = strings.CutSuffix(arg, "-"); !remove {
				return nil, usage("%q: want KEY=VALUE to set a tag or KEY- to remove it", arg)
			}
		}
		if err := ota.ValidateWord("tag", key); err != nil {
			return nil, err
		}
		if !set {
			req.Remove = append(req.Remove, key)
			continue
		}
		if _, twice := req.Set[key]; twice {
			return nil, usage("tag %s is set twice", key)
		}
		req.Set[key] = value
	}
	return req, nil
}
