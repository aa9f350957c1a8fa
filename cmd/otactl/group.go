package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newGroupCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{
		Use: "group", Short: "Keep named sets of devices",
		Long: `A group is static, with members that are listed, or dynamic: then its members are
at every moment the devices that its selector means. Selectors ask for a group by
groups:"NAME".`,
	}, newGroupCreateCmd(a), newGroupListCmd(a), newGroupShowCmd(a), newGroupAddCmd(a), newGroupRemoveCmd(a), newGroupSetFirmwareCmd(a), newGroupClearFirmwareCmd(a), newGroupDeleteCmd(a))
}

// groupView is a group as -o json shows it.
type groupView struct {
	Name      string     `json:"name"`
	Dynamic   bool       `json:"dynamic"`
	Selector  string     `json:"selector,omitempty"`
	Members   int64      `json:"members"`
	Building  bool       `json:"building,omitempty"`
	CreatedAt *time.Time `json:"createdAt,omitempty"`
	Devices   []string   `json:"devices,omitempty"`  // of show
	Firmware  string     `json:"firmware,omitempty"` // of show: what continuous rollouts bring to it
}

func newGroupView(g *otadv1.Group) groupView {
	return groupView{Name: g.GetName(), Dynamic: g.GetDynamic(), Selector: g.GetSelector(), Members: g.GetMembers(), Building: g.GetBuilding(), CreatedAt: when(g.GetCreatedAt())}
}

func (g groupView) kind() string {
	if g.Dynamic {
		return "dynamic"
	}
	return "static"
}

func (g groupView) size() string {
	n := strconv.FormatInt(g.Members, 10)
	if g.Building {
		n += ", more are being found"
	}
	return n
}

func (a *app) groupTable() view[groupView] {
	return view[groupView]{
		name: func(g groupView) string { return g.Name },
		columns: []column[groupView]{
			{head: "NAME", cell: func(g groupView) string { return g.Name }},
			{head: "KIND", cell: groupView.kind},
			{head: "MEMBERS", cell: groupView.size},
			{head: "SELECTOR", cell: func(g groupView) string { return g.Selector }},
			{head: "CREATED", wide: true, cell: func(g groupView) string { return a.ago(g.CreatedAt) }},
		},
	}
}

func newGroupCreateCmd(a *app) *cobra.Command {
	var selector string
	var devices []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a group", Args: takes("NAME"),
		Long: `create makes a dynamic group with --select, else a static one of the --devices.
"otactl device list --help" tells how to write a selector.`,
		Example: `  otactl group create low-battery --select 'shadow.reported.battery < 20'
  otactl group create lab --devices gw-1,gw-2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dynamic := cmd.Flags().Changed("select")
			if dynamic && len(devices) > 0 {
				return hint(usage("--select and --devices together"), "a group with a selector finds its members by itself: leave one out")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.groups.CreateGroup, &otadv1.CreateGroupRequest{Name: args[0], Dynamic: dynamic, Selector: selector, Devices: devices})
			if err != nil {
				return err
			}
			return a.printGroup(newGroupView(resp.GetGroup()))
		},
	}
	cmd.Flags().StringVar(&selector, "select", "", "the devices that match this selector, from now on ('' for all)")
	cmd.Flags().StringSliceVar(&devices, "devices", nil, "ids of the members, with commas")
	return cmd
}

func (a *app) printGroup(g groupView) error {
	return printOne(a, g, g.Name, func(w io.Writer) error {
		selector := g.Selector
		if g.Dynamic && selector == "" {
			selector = "(all devices)"
		}
		return writeFields(w, []field{
			{"Name", g.Name}, {"Kind", g.kind()}, {"Selector", selector},
			{"Members", g.size()}, {"Firmware", g.Firmware}, {"Created", a.ago(g.CreatedAt)},
		})
	})
}

func newGroupListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List groups", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.groups.ListGroups, &otadv1.ListGroupsRequest{})
			if err != nil {
				return err
			}
			var views []groupView
			for _, g := range resp.GetGroups() {
				views = append(views, newGroupView(g))
			}
			return printList(a, a.groupTable(), views)
		},
	}
}

func newGroupShowCmd(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a group and its members", Args: takes("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return usage("--limit %d: want a number of members, or 0 for all", limit)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.groups.GetGroup, &otadv1.GetGroupRequest{Name: args[0]})
			if err != nil {
				return err
			}
			g := newGroupView(resp.GetGroup())
			defaults, err := c.groupFirmware(cmd.Context(), g.Name)
			if err != nil {
				return err
			}
			g.Firmware = firmwareText(defaults)
			if g.Devices, err = c.groupMembers(cmd.Context(), g.Name, limit); err != nil {
				return err
			}
			if a.flags.output != formatTable && a.flags.output != formatWide {
				return printOne(a, g, g.Name, nil)
			}
			if err := a.printGroup(g); err != nil || len(g.Devices) == 0 {
				return err
			}
			fmt.Fprintln(a.stdout)
			for _, id := range g.Devices {
				fmt.Fprintln(a.stdout, printable(id))
			}
			if more := g.Members - int64(len(g.Devices)); limit > 0 && more > 0 {
				a.note("and %d more", more)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "at most this many members (0: all)")
	return cmd
}

func (c *client) groupMembers(ctx context.Context, name string, limit int) (ids []string, err error) {
	req := &otadv1.ListGroupMembersRequest{Name: name}
	for {
		req.PageSize = pageOf(limit, len(ids))
		resp, err := call(ctx, c.groups.ListGroupMembers, req)
		if err != nil {
			return nil, err
		}
		ids = append(ids, resp.GetDevices()...)
		if resp.GetNextPageToken() == "" || limit > 0 && len(ids) >= limit {
			return ids, nil
		}
		req.PageToken = resp.GetNextPageToken()
	}
}

func newGroupAddCmd(a *app) *cobra.Command {
	return newGroupChangeCmd(a, "add", "Add devices to a static group", func(r *otadv1.ChangeGroupMembersRequest, ids []string) { r.Add = ids })
}

func newGroupRemoveCmd(a *app) *cobra.Command {
	return newGroupChangeCmd(a, "remove", "Remove devices from a static group", func(r *otadv1.ChangeGroupMembersRequest, ids []string) { r.Remove = ids })
}

func newGroupChangeCmd(a *app, verb, short string, set func(*otadv1.ChangeGroupMembersRequest, []string)) *cobra.Command {
	use := verb + " NAME DEVICE..."
	return &cobra.Command{
		Use: use, Short: short,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return hint(usage("want the group and at least one device"), "usage: otactl group %s", use)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args[1:] {
				if err := ota.ValidateDeviceID(id); err != nil {
					return err
				}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			req := &otadv1.ChangeGroupMembersRequest{Name: args[0]}
			set(req, args[1:])
			resp, err := call(cmd.Context(), c.groups.ChangeGroupMembers, req)
			if err != nil {
				return err
			}
			return a.printGroup(newGroupView(resp.GetGroup()))
		},
	}
}

func newGroupDeleteCmd(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a group; its devices stay", Args: takes("NAME"),
		Long: `delete removes the group, not its devices. A selector that asks for it, as that of
a rollout may, means nobody by it from then on.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := a.confirm(yes, "delete the group %s", args[0]); err != nil {
				return err
			}
			if _, err := call(cmd.Context(), c.groups.DeleteGroup, &otadv1.DeleteGroupRequest{Name: args[0]}); err != nil {
				return err
			}
			a.note("deleted %s", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// selectGroup narrows a selector to a group that exists.
func (c *client) selectGroup(ctx context.Context, group, selector string) (string, error) {
	if group == "" {
		return selector, nil
	}
	if err := ota.ValidateWord("group", group); err != nil {
		return "", usage("--group: %w", err)
	}
	if _, err := call(ctx, c.groups.GetGroup, &otadv1.GetGroupRequest{Name: group}); err != nil {
		return "", err
	}
	if selector == "" {
		return fmt.Sprintf("groups:%q", group), nil
	}
	return fmt.Sprintf("groups:%q AND (%s)", group, selector), nil
}
