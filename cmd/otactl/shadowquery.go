package main

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/spf13/cobra"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// shadowRow is one device in the answer to a query.
type shadowRow struct {
	ID      string                     `json:"id"`
	Version int64                      `json:"version"`
	Values  map[string]json.RawMessage `json:"values"` // by path; what is not there is left out
}

func newShadowQueryCmd(a *app) *cobra.Command {
	var paths []string
	var limit int
	cmd := &cobra.Command{
		Use: "query SELECTOR", Short: "List the shadows that a selector means", Args: takes("SELECTOR"),
		Long: `query lists the devices that the selector means ('' for all) with the version of
their classic shadow (0: none) and, with --path, values from it. "otactl device
list --help" tells how to write a selector.

A value is JSON. In a table a string has no quotes.`,
		Example: `  otactl shadow query 'shadow.reported.battery < 20' --path reported.battery
  otactl shadow query 'tags.site = "paris"' --path reported.firmware.version --path desired.interval -o jsonl`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return usage("--limit %d: want a number of devices, or 0 for all", limit)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			rows, err := c.queryShadows(cmd.Context(), args[0], paths, limit)
			if err != nil {
				return err
			}
			return printList(a, shadowTable(paths), rows)
		},
	}
	cmd.Flags().StringArrayVar(&paths, "path", nil, "values to show, such as reported.firmware.version; may be repeated")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this many devices (0: all)")
	return cmd
}

func (c *client) queryShadows(ctx context.Context, selector string, paths []string, limit int) ([]shadowRow, error) {
	var rows []shadowRow
	req := &otadv1.QueryShadowsRequest{Selector: selector, Paths: paths}
	for {
		req.PageSize = pageOf(limit, len(rows))
		resp, err := call(ctx, c.shadows.QueryShadows, req)
		if err != nil {
			return nil, err
		}
		for _, r := range resp.GetRows() {
			rows = append(rows, newShadowRow(r, paths))
		}
		if resp.GetNextPageToken() == "" || limit > 0 && len(rows) >= limit {
			return rows, nil
		}
		req.PageToken = resp.GetNextPageToken()
	}
}

func newShadowRow(r *otadv1.ShadowRow, paths []string) shadowRow {
	row := shadowRow{ID: r.GetDeviceId(), Version: r.GetVersion(), Values: map[string]json.RawMessage{}}
	for i, v := range r.GetValues() {
		if i < len(paths) && len(v) > 0 {
			row.Values[paths[i]] = v
		}
	}
	return row
}

func shadowTable(paths []string) view[shadowRow] {
	v := view[shadowRow]{
		name: func(r shadowRow) string { return r.ID },
		columns: []column[shadowRow]{
			{head: "ID", cell: func(r shadowRow) string { return r.ID }},
			{head: "VERSION", cell: func(r shadowRow) string { return strconv.FormatInt(r.Version, 10) }},
		},
	}
	for _, p := range paths {
		v.columns = append(v.columns, column[shadowRow]{head: p, cell: func(r shadowRow) string { return valueText(r.Values[p]) }})
	}
	return v
}

// valueText is a value for a table: a string without its quotes.
func valueText(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}
