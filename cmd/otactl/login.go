package main

import (
	"github.com/spf13/cobra"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newLoginCmd(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Store a server and its credentials as a context",
		Long: `login checks that the server lets the token in, stores both with the CA
certificate as a context and makes it the current one. The file,
OTACTL_CONFIG_DIR/config.yaml, can be read only by its owner.`,
		Example: "  otactl login --server https://ota.example:8443 --token-file admin.token --ca-file ca.pem",
		Args:    takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := call(cmd.Context(), c.devices.ListDevices, &otadv1.ListDevicesRequest{PageSize: 1}); err != nil {
				return err
			}
			stored, err := a.loadConfig()
			if err != nil {
				return err
			}
			stored.put(storedContext{Name: first(name, a.flags.context, "default"), Server: c.server, Token: c.token, CA: string(c.ca)})
			if err := a.saveConfig(stored); err != nil {
				return err
			}
			a.note("logged in to %s; context %q is current", c.server, stored.Current)
			return nil
		},
	}
	// The local flag takes the place of the global one: here it names what is
	// made, not what is used.
	cmd.Flags().StringVar(&name, "context", "", `name of the context (default "default")`)
	return cmd
}

func newContextCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "context", Short: "List and choose stored servers"},
		newContextListCmd(a), newContextUseCmd(a))
}

// contextView is one stored context; the token is never shown.
type contextView struct {
	Name    string `json:"name"`
	Server  string `json:"server"`
	Current bool   `json:"current"`
}

func newContextListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the stored contexts", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			var views []contextView
			for _, s := range c.Contexts {
				views = append(views, contextView{Name: s.Name, Server: s.Server, Current: s.Name == c.Current})
			}
			return printList(a, view[contextView]{
				name: func(v contextView) string { return v.Name },
				columns: []column[contextView]{
					{head: "CURRENT", cell: func(v contextView) string { return mark(v.Current) }},
					{head: "NAME", cell: func(v contextView) string { return v.Name }},
					{head: "SERVER", cell: func(v contextView) string { return v.Server }},
				},
			}, views)
		},
	}
}

func newContextUseCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: takes("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			if c.find(args[0]) == nil {
				return hint(fail(exitNotFound, "no context %q", args[0]), "otactl context list shows those there are")
			}
			c.Current = args[0]
			if err := a.saveConfig(c); err != nil {
				return err
			}
			a.note("context %q is current", c.Current)
			return nil
		},
	}
}

func mark(on bool) string {
	if on {
		return "*"
	}
	return ""
}
