package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// feedView is one event of the feed, as -o json shows it.
type feedView struct {
	Seq     int64      `json:"seq"` // from 1, without a gap
	At      *time.Time `json:"at"`
	Rollout string     `json:"rollout,omitempty"`
	Release string     `json:"release,omitempty"` // that it is about; of no rollout then
	Kind    string     `json:"kind"`              // release, rollout, stage or execution
	Stage   int32      `json:"stage,omitempty"`
	Device  string     `json:"device,omitempty"`
	Attempt int32      `json:"attempt,omitempty"`
	From    string     `json:"from,omitempty"`
	To      string     `json:"to"`
	Class   string     `json:"class,omitempty"`
	Count   int32      `json:"count,omitempty"` // executions
	Reason  string     `json:"reason,omitempty"`
}

func newFeedView(e *otadv1.RolloutEvent) feedView {
	return feedView{
		e.GetSeq(), when(e.GetAt()), e.GetRolloutId(), e.GetRelease(), e.GetKind(), e.GetStage(), e.GetDeviceId(), e.GetAttempt(),
		e.GetFrom(), e.GetTo(), e.GetClass(), e.GetCount(), e.GetReason(),
	}
}

// what says in words what went where.
func (e feedView) what() string {
	text := "rollout"
	switch e.Kind {
	case "release":
		text = e.Release
	case "stage":
		text = fmt.Sprintf("stage %d", e.Stage)
	case "execution":
		if text = count(int(e.Count), "device"); e.Device != "" {
			text = e.Device
		}
		text = fmt.Sprintf("stage %d: %s", e.Stage, text)
	}
	if e.Attempt > 1 {
		text += fmt.Sprintf(" (attempt %d)", e.Attempt)
	}
	return text
}

func newEventCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{
		Use: "event", Short: "List and follow what happens to rollouts and commands",
		Long: `event shows every change of state of rollouts, their stages and executions, and
releases that are withdrawn, in the order in which it happened. Events are numbered without a gap: a program that
keeps the last number it has taken goes on behind it with --after and misses
nothing. What one step does to many devices is one event with their number.

The server keeps a million events, for 30 days. What devices say happens on them
is in otactl device history.`,
	}, newEventListCmd(a), newEventWatchCmd(a))
}

// feedFlags narrow what is shown.
type feedFlags struct {
	rollout, device string
	after           int64
}

func (f *feedFlags) register(cmd *cobra.Command, otherwise string) {
	cmd.Flags().StringVar(&f.rollout, "rollout", "", "only of this rollout or command")
	cmd.Flags().StringVar(&f.device, "device", "", "only of this device; what one step does to many is not of one")
	cmd.Flags().Int64Var(&f.after, "after", -1, "only behind the event with this number, 0 for all (default: "+otherwise+")")
}

func newEventListCmd(a *app) *cobra.Command {
	var f feedFlags
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List events, the oldest first", Args: takes(),
		Example: "  otactl event list --rollout r-abc -o jsonl",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usage("-n %d: want at least 1", limit)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			views, err := c.feed(cmd.Context(), f, limit)
			if err != nil {
				return feedRemedy(err)
			}
			return printList(a, a.feedTable(), views)
		},
	}
	f.register(cmd, "from the first that is kept")
	cmd.Flags().IntVarP(&limit, "limit", "n", 1000, "how many events at most")
	return cmd
}

func (c *client) feed(ctx context.Context, f feedFlags, limit int) ([]feedView, error) {
	var views []feedView
	req := &otadv1.ListEventsRequest{RolloutId: f.rollout, DeviceId: f.device, After: max(f.after, 0)}
	for len(views) < limit {
		req.PageSize = int32(min(pageSize, limit-len(views)))
		resp, err := call(ctx, c.events.ListEvents, req)
		if err != nil {
			return nil, err
		}
		for _, e := range resp.GetEvents() {
			views = append(views, newFeedView(e))
			req.After = e.GetSeq()
		}
		if len(resp.GetEvents()) < int(req.GetPageSize()) {
			break
		}
	}
	return views, nil
}

// feedRemedy says how to go on where events are gone.
func feedRemedy(err error) error {
	if connect.CodeOf(err) != connect.CodeOutOfRange {
		return err
	}
	return hint(err, "--after 0 begins with the first that is kept; what was missed is in otactl rollout show")
}

func (a *app) feedTable() view[feedView] {
	return view[feedView]{
		name: func(e feedView) string { return strconv.FormatInt(e.Seq, 10) },
		columns: []column[feedView]{
			{head: "SEQ", cell: func(e feedView) string { return strconv.FormatInt(e.Seq, 10) }},
			{head: "AGE", cell: func(e feedView) string { return a.ago(e.At) }},
			{head: "ROLLOUT", cell: func(e feedView) string { return e.Rollout }},
			{head: "WHAT", cell: feedView.what},
			{head: "FROM", cell: func(e feedView) string { return e.From }},
			{head: "TO", cell: func(e feedView) string { return e.To }},
			{head: "REASON", cell: func(e feedView) string { return e.Reason }},
			{head: "CLASS", wide: true, cell: func(e feedView) string { return e.Class }},
		},
	}
}

func newEventWatchCmd(a *app) *cobra.Command {
	var f feedFlags
	cmd := &cobra.Command{
		Use: "watch", Short: "Follow events as they happen", Args: takes(),
		Long: `watch writes a line for each event, an object for each with -o json or jsonl. A
server that is lost is asked again, and nothing is missed meanwhile. It ends when it
is interrupted.`,
		Example: "  otactl event watch -o jsonl --after 41",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return feedRemedy(a.watchFeed(cmd.Context(), c, f))
		},
	}
	f.register(cmd, "from now on")
	return cmd
}

func (a *app) watchFeed(ctx context.Context, c *client, f feedFlags) error {
	began := false
	for tries := 0; ; tries++ {
		seen, err := a.followFeed(ctx, c, &f)
		if seen {
			tries, began = 0, true
		}
		lost := connect.CodeOf(err) == connect.CodeUnavailable || errors.Is(err, errStreamEnded)
		if !began || !lost || tries >= maxReconnects {
			return c.lost(err)
		}
		a.note("lost the server, asking again")
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

// followFeed shows one stream, and keeps in f how far it came.
func (a *app) followFeed(ctx context.Context, c *client, f *feedFlags) (seen bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &otadv1.WatchEventsRequest{RolloutId: f.rollout, DeviceId: f.device}
	if f.after >= 0 {
		req.After = &f.after
	}
	stream, err := c.events.WatchEvents(ctx, connect.NewRequest(req))
	if err != nil {
		return false, err
	}
	defer func() {
		cancel() // or Close would wait for what still comes
		_ = stream.Close()
	}()
	for stream.Receive() {
		seen = true
		for _, e := range stream.Msg().GetEvents() {
			if err := a.writeEvent(newFeedView(e)); err != nil {
				return seen, err
			}
		}
		f.after = stream.Msg().GetAfter()
	}
	if err := stream.Err(); err != nil {
		return seen, err
	}
	return seen, errStreamEnded
}

func (a *app) writeEvent(e feedView) error {
	switch a.flags.output {
	case formatJSON, formatJSONL:
		return writeJSONLine(a.stdout, e)
	case formatYAML:
		fmt.Fprintln(a.stdout, "---")
		return writeYAML(a.stdout, e)
	case formatName:
		_, err := fmt.Fprintln(a.stdout, e.Seq)
		return err
	}
	line := fmt.Sprintf("%d  %s  %s  %s: %s", e.Seq, e.At.In(time.Local).Format(time.TimeOnly), first(e.Rollout, "-"), e.what(), strings.TrimPrefix(e.From+" > "+e.To, " > "))
	if e.Reason != "" {
		line += ": " + e.Reason
	}
	_, err := fmt.Fprintln(a.stdout, strings.ReplaceAll(printable(line), "\n", " "))
	return err
}
