package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/identity"
	"github.com/otad/otad/internal/mqtt/mosquitto"
)

// The names of the files that broker config writes.
const (
	mosquittoConf = "otad.conf"
	mosquittoACL  = "otad.acl"
)

func newBrokerConfigCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config mosquitto",
		Short: "Write the configuration of an external broker",
		Long: "Writes " + mosquittoConf + " and " + mosquittoACL + " for Eclipse Mosquitto, to a directory or to standard output. With them\n" +
			"the broker keeps devices apart as the embedded one does; the topic templates are those of the\n" +
			"server's own configuration.",
		Example:   "  otad broker config mosquitto --config /etc/otad/otad.yaml --out mosquitto",
		ValidArgs: []string{"mosquitto"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] != "mosquitto" {
				return usageError{fmt.Errorf("want the broker to write for: mosquitto")}
			}
			return nil
		},
	}
	var c mosquitto.Config
	f := cmd.Flags()
	out := f.String("out", "", "`directory` to write into (default: standard output)")
	certs := f.String("certs", "/etc/mosquitto/certs", "`directory` on the broker's machine with what 'otad broker cert' wrote")
	f.StringVar(&c.ACLFile, "acl-file", "/etc/mosquitto/"+mosquittoACL, "`path` of the ACL on the broker's machine")
	f.StringVar(&c.Listen, "listen", "8883", "`port` of the devices' listener, or 'PORT ADDRESS'")
	f.StringSliceVar(&c.Servers, "client-ids", []string{fleet.ReservedDeviceID}, "`names` of the otads at the broker, as in --mqtt-client-id")
	f.String("crl-file", "", "`path` of the list of revoked certificates on the broker's machine (default: none, or the server's own setting)")
	topicFlags(f)
	load := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		settings, err := load()
		if err != nil {
			return err
		}
		templates, err := settings.templates()
		if err != nil {
			return err
		}
		c.CRLFile = settings.CRLFile
		c.Publish, c.Subscribe = templates.Publish(), templates.Subscribe()
		for _, name := range c.Servers {
			if !fleet.Reserved(name) {
				return usageError{fmt.Errorf("--client-ids %q: want otad or otad-NAME, which no device can be called", name)}
			}
		}
		c.CAFile, c.CertFile, c.KeyFile = path.Join(*certs, "ca.pem"), path.Join(*certs, "broker.pem"), path.Join(*certs, "broker.key")
		acl, err := c.ACL()
		if err != nil {
			return usageError{err}
		}
		if *out == "" {
			fmt.Fprintf(cmd.OutOrStdout(), "# %s\n%s\n# %s\n%s", mosquittoConf, c.Main(), mosquittoACL, acl)
			return nil
		}
		if err := os.MkdirAll(*out, 0o700); err != nil {
			return err
		}
		if err := identity.WriteFile(filepath.Join(*out, mosquittoConf), []byte(c.Main())); err != nil {
			return err
		}
		return identity.WriteFile(filepath.Join(*out, mosquittoACL), []byte(acl))
	}
	return cmd
}
