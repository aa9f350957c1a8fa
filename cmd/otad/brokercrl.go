package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/identity"
)

func newBrokerCRLCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "crl [--out FILE]",
		Short: "Write the list of revoked device certificates for an external broker",
		Long: "Writes the certificates of revoked devices as lists that this server's CA signs, to a file or to\n" +
			"standard output. A running server does it by itself with --crl-file, and answers with the same at\n" +
			"/crl.pem of its device port; this command is for PostgreSQL, or for a stopped server.\n\n" +
			"The broker has to be told to read the file again (mosquitto: SIGHUP). A list is good for 30 days,\n" +
			"after which the broker lets nobody in.",
		Example: "  otad broker crl --config /etc/otad/otad.yaml --out /var/lib/otad-crl/crl.pem",
		Args:    noArgs,
	}
	out := cmd.Flags().String("out", "", "`file` to write (default: standard output)")
	load := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		lists, err := revocationLists(cmd.Context(), c)
		if err != nil {
			return err
		}
		if *out == "" {
			_, err = cmd.OutOrStdout().Write(lists)
			return err
		}
		return identity.WritePublicFile(*out, lists)
	}
	return cmd
}

func revocationLists(ctx context.Context, c config) (lists []byte, err error) {
	if err := storeIsThere(c); err != nil {
		return nil, err
	}
	ca, err := identity.Open(c.path("ca"), time.Now())
	if err != nil {
		return nil, err
	}
	store, err := openStore(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("%w; a running server writes the list with --crl-file, and gives it to whoever asks for /crl.pem of its device port", err)
	}
	f := fleet.New(fleet.Config{Store: store, CA: ca, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	lists, err = f.RevocationLists(ctx)
	return lists, errors.Join(err, store.Close())
}
