package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/internal/identity"
)

// version is set by the linker.
var version = "devel"

// usageError is a fault of the command line: exit status 2.
type usageError struct{ error }

func exitCode(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "otad",
		Short:         "Server for firmware updates over the air and device management",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newServeCmd(), newCheckCmd(), newBrokerCmd())
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q", cmd.CommandPath(), args[0])}
	}
	return nil
}

func newBrokerCmd() *cobra.Command {
	broker := &cobra.Command{Use: "broker", Short: "Help to run an external MQTT broker"}
	var hosts []string
	cert := &cobra.Command{
		Use:   "cert --hosts NAME[,NAME] --out DIR",
		Short: "Write a server certificate for the broker, signed by this server's CA",
		Long: "Writes DIR/broker.pem, DIR/broker.key and DIR/ca.pem. Devices trust no other CA than this\n" +
			"server's, so the broker needs a certificate of it. It lives a year. The broker has to be able to read\n" +
			"its key, which nobody else may: install -o mosquitto -m 0600 DIR/broker.key /etc/mosquitto/certs/",
		Args: noArgs,
	}
	out := cert.Flags().String("out", "", "directory to write into")
	cert.Flags().StringSliceVar(&hosts, "hosts", nil, "names and addresses of the broker")
	load := configFlags(cert)
	cert.RunE = func(cmd *cobra.Command, _ []string) error {
		if *out == "" || len(hosts) == 0 {
			return usageError{errors.New("--hosts and --out are needed")}
		}
		c, err := load()
		if err != nil {
			return err
		}
		ca, err := identity.Open(c.path("ca"), time.Now())
		if err != nil {
			return err
		}
		return ca.WriteServer(*out, "broker", hosts, time.Now())
	}
	broker.AddCommand(cert, newBrokerConfigCmd(), newBrokerCRLCmd())
	return broker
}
