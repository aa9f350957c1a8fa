package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/internal/fleet"
)

func newCheckCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the invariants of the store, of a stopped server if it is a file; exit status 1 when one is broken",
		Args:  noArgs,
	}
	load := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		if err := c.validateImages(); err != nil {
			return err
		}
		faults, err := check(cmd.Context(), c)
		if err != nil {
			return err
		}
		for _, f := range faults {
			fmt.Fprintln(cmd.OutOrStdout(), f)
		}
		if len(faults) > 0 {
			return fmt.Errorf("%d broken invariants", len(faults))
		}
		fmt.Fprintln(cmd.OutOrStdout(), "ok")
		return nil
	}
	return cmd
}

func check(ctx context.Context, c config) ([]string, error) {
	if err := storeIsThere(c); err != nil {
		return nil, err
	}
	blobs, err := openBlobs(ctx, c)
	if err != nil {
		return nil, err
	}
	store, err := openStore(ctx, c)
	if err != nil {
		return nil, err
	}
	f := fleet.New(fleet.Config{Store: store, Blobs: blobs, Now: time.Now})
	faults, err := f.Check(ctx)
	return faults, errors.Join(err, store.Close())
}

// storeIsThere keeps commands that only look from making an empty store.
func storeIsThere(c config) error {
	if c.Database != "" {
		return nil
	}
	if _, err := os.Stat(c.path("otad.db")); err != nil {
		return fmt.Errorf("no store in %s: %w", c.Data, err)
	}
	return nil
}
