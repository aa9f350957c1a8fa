package main

import (
	"context"
	"fmt"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newShadowWatchCmd(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "watch ID", Short: "Follow the changes of a shadow until interrupted", Args: takes("ID"),
		Long: "watch writes one line for each change, and the whole document a line with -o json or jsonl.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkShadowArgs(args[0], name); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.watchShadow(cmd.Context(), c, args[0], name)
		},
	}
	nameFlag(cmd, &name)
	return cmd
}

func (a *app) watchShadow(ctx context.Context, c *client, id, name string) error {
	stream, err := c.shadows.WatchShadow(ctx, connect.NewRequest(&otadv1.WatchShadowRequest{DeviceId: id, Name: name}))
	if err != nil {
		return c.lost(err)
	}
	defer stream.Close()
	var last shadowDoc
	for stream.Receive() {
		doc, err := parseShadow(stream.Msg().GetDocument())
		if err != nil {
			return err
		}
		if err := a.printChange(last, doc); err != nil {
			return err
		}
		last = doc
	}
	if ctx.Err() != nil {
		return nil // interrupting is how a watch ends
	}
	return c.lost(stream.Err())
}

func (a *app) printChange(before, after shadowDoc) error {
	switch a.flags.output {
	case formatJSON, formatJSONL:
		return writeJSONLine(a.stdout, after.raw)
	case formatYAML:
		fmt.Fprintln(a.stdout, "---")
		return writeYAML(a.stdout, after.raw)
	}
	for _, line := range shadowChanges(before, after) {
		if _, err := fmt.Fprintf(a.stdout, "%s  version %s  %s\n", a.now().Format("15:04:05"), strconv.FormatInt(after.Version, 10), printable(line)); err != nil {
			return err
		}
	}
	return nil
}

// shadowChanges says which leaves differ: "desired.led 1 -> 2".
func shadowChanges(before, after shadowDoc) []string {
	old, now := map[string]string{}, map[string]string{}
	flatten("desired", before.State.Desired, old)
	flatten("reported", before.State.Reported, old)
	flatten("desired", after.State.Desired, now)
	flatten("reported", after.State.Reported, now)
	var lines []string
	for _, p := range sortedKeys(now) {
		switch was, had := old[p]; {
		case !had:
			lines = append(lines, p+" = "+now[p])
		case was != now[p]:
			lines = append(lines, p+" "+was+" -> "+now[p])
		}
	}
	for _, p := range sortedKeys(old) {
		if _, has := now[p]; !has {
			lines = append(lines, p+" removed")
		}
	}
	return lines
}
