package main

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/identity"
	"github.com/otad/otad/internal/mqtt/emqx"
	"github.com/otad/otad/internal/mqtt/mosquitto"
)

// brokerKind is a broker that configuration can be written for.
type brokerKind struct {
	main, acl  string // names of the files
	directory  string // where the broker's machine has its configuration
	configure  func(mosquitto.Config) (main, acl string, err error)
	knowsLists bool // reads revocation lists from a file
}

// brokerKinds has them by name.
var brokerKinds = map[string]brokerKind{
	"mosquitto": {"otad.conf", "otad.acl", "/etc/mosquitto", func(c mosquitto.Config) (string, string, error) {
		acl, err := c.ACL()
		return c.Main(), acl, err
	}, true},
	"emqx": {"otad-emqx.conf", "otad-acl.conf", "/etc/emqx", func(c mosquitto.Config) (string, string, error) {
		e := emqx.Config{
			Listen: c.Listen, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile, ACLFile: c.ACLFile,
			Servers: c.Servers, Publish: c.Publish, Subscribe: c.Subscribe,
		}
		acl, err := e.ACL()
		return e.Main(), acl, err
	}, false},
}

func newBrokerConfigCmd() *cobra.Command {
	kinds := slices.Sorted(maps.Keys(brokerKinds))
	cmd := &cobra.Command{
		Use:   "config " + strings.Join(kinds, "|"),
		Short: "Write the configuration of an external broker",
		Long: "Writes the settings and the rules of the broker, two files, to a directory or to standard output. With\n" +
			"them the broker keeps devices apart as the embedded one does; the topic templates are those of the\n" +
			"server's own configuration.\n\n" +
			"mosquitto: Eclipse Mosquitto 2, otad.conf and otad.acl; the tests run it.\n" +
			"emqx: EMQX 5, otad-emqx.conf for emqx.conf, and otad-acl.conf; after its documentation, not yet run on it.",
		Example: "  otad broker config mosquitto --config /etc/otad/otad.yaml --out mosquitto\n" +
			"  otad broker config emqx --config /etc/otad/otad.yaml --out emqx",
		ValidArgs: kinds,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(kinds, args[0]) {
				return usageError{fmt.Errorf("want the broker to write for: %s", strings.Join(kinds, " or "))}
			}
			return nil
		},
	}
	var c mosquitto.Config
	f := cmd.Flags()
	out := f.String("out", "", "`directory` to write into (default: standard output)")
	certs := f.String("certs", "", "`directory` on the broker's machine with what 'otad broker cert' wrote (default: certs below that of the broker)")
	f.StringVar(&c.ACLFile, "acl-file", "", "`path` of the rules on the broker's machine (default: in the directory of the broker)")
	f.StringVar(&c.Listen, "listen", "8883", "`port` of the devices' listener, or 'PORT ADDRESS'")
	f.StringSliceVar(&c.Servers, "client-ids", nil, "`names` of the otads at the broker (default: the server's own, mqtt-client-id)")
	f.String("crl-file", "", "`path` of the list of revoked certificates on the broker's machine, for mosquitto (default: the server's own setting, or none)")
	topicFlags(f)
	load := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		settings, err := load()
		if err != nil {
			return err
		}
		kind := brokerKinds[args[0]]
		if !kind.knowsLists && f.Changed("crl-file") {
			return usageError{fmt.Errorf("--crl-file: %s reads no list from a file", args[0])}
		}
		if err := brokerSettings(&c, kind, settings, *certs); err != nil {
			return err
		}
		main, acl, err := kind.configure(c)
		if err != nil {
			return usageError{err}
		}
		if *out == "" {
			fmt.Fprintf(cmd.OutOrStdout(), "# %s\n%s\n# %s\n%s", kind.main, main, kind.acl, acl)
			return nil
		}
		// The broker is another user, who reads copies of these; they hold no secret.
		if err := os.MkdirAll(*out, 0o755); err != nil {
			return err
		}
		if err := identity.WritePublicFile(filepath.Join(*out, kind.main), []byte(main)); err != nil {
			return err
		}
		return identity.WritePublicFile(filepath.Join(*out, kind.acl), []byte(acl))
	}
	return cmd
}

// brokerSettings fills in what follows from the server's settings and from where
// the broker keeps its files.
func brokerSettings(c *mosquitto.Config, kind brokerKind, settings config, certs string) error {
	templates, err := settings.templates()
	if err != nil {
		return err
	}
	c.Publish, c.Subscribe, c.CRLFile = templates.Publish(), templates.Subscribe(), settings.CRLFile
	if len(c.Servers) == 0 {
		c.Servers = []string{settings.MQTTClientID}
	}
	for _, name := range c.Servers {
		if !fleet.Reserved(name) {
			return usageError{fmt.Errorf("--client-ids %q: want otad or otad-NAME, which no device can be called", name)}
		}
	}
	if certs == "" {
		certs = path.Join(kind.directory, "certs")
	}
	if c.ACLFile == "" {
		c.ACLFile = path.Join(kind.directory, kind.acl)
	}
	c.CAFile, c.CertFile, c.KeyFile = path.Join(certs, "ca.pem"), path.Join(certs, "broker.pem"), path.Join(certs, "broker.key")
	return nil
}
