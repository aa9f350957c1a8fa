package main

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// eventView is a device's event as -o json shows it.
type eventView struct {
	Position int64           `json:"position"`
	At       *time.Time      `json:"at,omitempty"` // by the device's clock
	Received *time.Time      `json:"receivedAt"`
	Kind     string          `json:"kind"`
	Data     json.RawMessage `json:"data"`
	Trace    string          `json:"trace,omitempty"`
	Log      string          `json:"log"`
	Seq      int64           `json:"seq"`
}

func newEventView(e *otadv1.DeviceEvent) eventView {
	v := eventView{
		Position: e.GetPosition(), At: when(e.GetAt()), Received: when(e.GetReceivedAt()), Kind: e.GetKind(),
		Data: json.RawMessage(e.GetData()), Trace: e.GetTrace(), Log: e.GetLog(), Seq: e.GetSeq(),
	}
	if !json.Valid(v.Data) {
		v.Data = json.RawMessage("{}")
	}
	return v
}

func newDeviceHistoryCmd(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "history ID", Short: "Show what a device says happened on it", Args: takes("ID"),
		Long: `history shows the events that a device sent, the newest first: starts, steps of
updates, alarms. The server keeps the newest 500 of each device.`,
		Example: `  otactl device history gw-1 -n 20
  otactl device history gw-1 -o jsonl | jq 'select(.kind == "rollback")'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ota.ValidateDeviceID(args[0]); err != nil {
				return err
			}
			if limit < 1 {
				return usage("-n %d: want at least 1", limit)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			events, err := c.history(cmd.Context(), args[0], limit)
			if err != nil {
				return err
			}
			return printList(a, a.historyTable(), events)
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "how many events at most")
	return cmd
}

func (c *client) history(ctx context.Context, id string, limit int) ([]eventView, error) {
	var views []eventView
	req := &otadv1.ListDeviceEventsRequest{Id: id, PageSize: int32(min(limit, pageSize))}
	for {
		resp, err := call(ctx, c.devices.ListDeviceEvents, req)
		if err != nil {
			return nil, err
		}
		for _, e := range resp.GetEvents() {
			views = append(views, newEventView(e))
		}
		if len(views) >= limit || resp.GetNextPageToken() == "" {
			return views[:min(len(views), limit)], nil
		}
		req.PageToken = resp.GetNextPageToken()
	}
}

func (a *app) historyTable() view[eventView] {
	return view[eventView]{
		name: func(e eventView) string { return strconv.FormatInt(e.Position, 10) },
		columns: []column[eventView]{
			{head: "RECEIVED", cell: func(e eventView) string { return a.ago(e.Received) }},
			{head: "KIND", cell: func(e eventView) string { return e.Kind }},
			{head: "DATA", cell: func(e eventView) string { return string(e.Data) }},
			{head: "AT", wide: true, cell: func(e eventView) string { return a.ago(e.At) }},
			{head: "TRACE", wide: true, cell: func(e eventView) string { return e.Trace }},
			{head: "LOG", wide: true, cell: func(e eventView) string { return e.Log + "/" + strconv.FormatInt(e.Seq, 10) }},
		},
	}
}
