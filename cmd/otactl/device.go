package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// pageSize is how many devices or executions one request asks for.
const pageSize = 500

func newDeviceCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "device", Short: "List, show, create, revoke and delete devices"},
		newDeviceListCmd(a), newDeviceShowCmd(a), newDeviceWhyCmd(a), newDeviceHistoryCmd(a), newDeviceLogsCmd(a), newDeviceCreateCmd(a), newDeviceCredentialCmd(a),
		newDeviceTagCmd(a), newDeviceSetFirmwareCmd(a), newDeviceClearFirmwareCmd(a), newDeviceRevokeCmd(a), newDeviceDeleteCmd(a))
}

// deviceView is a device as -o json shows it. Times are RFC 3339.
type deviceView struct {
	ID             string            `json:"id"`
	Hardware       string            `json:"hardware"`
	Tags           map[string]string `json:"tags"`
	Online         bool              `json:"online"`
	Reachability   string            `json:"reachability"`             // online, offline, or unknown
	Since          *time.Time        `json:"since,omitempty"`          // when it came or went
	OfflineReason  string            `json:"offlineReason,omitempty"`  // why it went
	Firmware       string            `json:"firmware,omitempty"`       // NAME@VERSION that it reports
	FirmwareSHA256 string            `json:"firmwareSha256,omitempty"` // of the raw image in its active slot
	ShadowVersion  int64             `json:"shadowVersion"`
	KeyFingerprint string            `json:"keyFingerprint"` // sha256 of its public key, hex
	CreatedAt      *time.Time        `json:"createdAt,omitempty"`
	LastSeen       *time.Time        `json:"lastSeen,omitempty"`
	RevokedAt      *time.Time        `json:"revokedAt,omitempty"`
	Groups         []string          `json:"groups,omitempty"` // of show
	Drift          *driftView        `json:"drift,omitempty"`  // of show
}

// driftView is what a device was last brought, when it runs another image since.
type driftView struct {
	Rollout  string     `json:"rollout"`
	Firmware string     `json:"firmware"`
	Since    *time.Time `json:"since,omitempty"`
}

func newDriftView(d *otadv1.Drift) *driftView {
	if d == nil {
		return nil
	}
	return &driftView{d.GetRolloutId(), d.GetFirmware(), when(d.GetSince())}
}

// drift says what to look at; empty: the device has not drifted.
func (a *app) drift(d deviceView) string {
	if d.Drift == nil {
		return ""
	}
	return fmt.Sprintf("from %s of rollout %s, seen %s; otactl device why %s", d.Drift.Firmware, d.Drift.Rollout, a.ago(d.Drift.Since), d.ID)
}

func newDeviceView(d *otadv1.Device) deviceView {
	return deviceView{
		ID: d.GetId(), Hardware: d.GetHardware(), Tags: orEmpty(d.GetTags()), Online: d.GetOnline(),
		Firmware: d.GetFirmware(), FirmwareSHA256: d.GetFirmwareSha256(), ShadowVersion: d.GetShadowVersion(),
		KeyFingerprint: d.GetKeyFingerprint(),
		Reachability:   d.GetReachability(), Since: when(d.GetSince()), OfflineReason: d.GetOfflineReason(),
		CreatedAt: when(d.GetCreatedAt()), LastSeen: when(d.GetLastSeen()), RevokedAt: when(d.GetRevokedAt()),
	}
}

// state says in one word whether the device can be reached.
func (d deviceView) state() string {
	switch {
	case d.RevokedAt != nil:
		return "revoked"
	case d.Reachability != "":
		return d.Reachability
	}
	return "unknown" // a server that does not tell
}

func (a *app) deviceTable() view[deviceView] {
	return view[deviceView]{
		name: func(d deviceView) string { return d.ID },
		columns: []column[deviceView]{
			{head: "ID", cell: func(d deviceView) string { return d.ID }},
			{head: "HARDWARE", cell: func(d deviceView) string { return d.Hardware }},
			{head: "STATE", cell: deviceView.state},
			{head: "FIRMWARE", cell: func(d deviceView) string { return d.Firmware }},
			{head: "TAGS", cell: func(d deviceView) string { return tagText(d.Tags) }},
			{head: "SEEN", cell: func(d deviceView) string { return a.ago(d.LastSeen) }},
			{head: "SINCE", wide: true, cell: func(d deviceView) string { return a.ago(d.Since) }},
			{head: "WHY", wide: true, cell: func(d deviceView) string { return d.OfflineReason }},
			{head: "ENROLLED", wide: true, cell: func(d deviceView) string { return a.ago(d.CreatedAt) }},
			{head: "SHADOW", wide: true, cell: func(d deviceView) string { return strconv.FormatInt(d.ShadowVersion, 10) }},
			{head: "KEY", wide: true, cell: func(d deviceView) string { return d.KeyFingerprint }},
		},
	}
}

// deviceList are the options of device list.
type deviceList struct {
	selector string
	limit    int
	count    bool
}

func newDeviceListCmd(a *app) *cobra.Command {
	var l deviceList
	cmd := &cobra.Command{
		Use: "list", Short: "List devices", Args: takes(),
		Long: `list shows the devices in the order of their ids. --select says which, as in

  hardware = "rpi4" AND tags.site = "paris" AND shadow.reported.battery < 20

The fields are id, hardware, online (true or false), lastSeen (a moment in quotes),
groups (groups:"NAME"), tags.KEY, shadow.reported.PATH and shadow.desired.PATH; a key that is not one word stands in quotes. The operators
are = != < <= > >= and : (has), AND, OR (which binds tighter), NOT and
parentheses; "rpi*" stands for every text that begins so, and FIELD:* asks
whether there is one.`,
		Example: `  otactl device list --select 'hardware = "rpi4" AND tags.site = "paris"'
  otactl device list --select 'NOT shadow.reported.firmware.version = "1.4.2"' -o name
  otactl device list --select 'shadow.reported.battery < 20' --count
  otactl device list --select 'lastSeen < "2026-11-01T00:00:00Z" OR NOT lastSeen:*'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.limit < 0 {
				return usage("--limit %d: want a number of devices, or 0 for all", l.limit)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if l.count {
				return a.countDevices(cmd.Context(), c, l.selector)
			}
			devices, err := c.listDevices(cmd.Context(), l.selector, l.limit)
			if err != nil {
				return err
			}
			return printList(a, a.deviceTable(), devices)
		},
	}
	cmd.Flags().StringVar(&l.selector, "select", "", "only the devices that match this selector (AIP-160)")
	cmd.Flags().IntVar(&l.limit, "limit", 0, "at most this many devices (0: all)")
	cmd.Flags().BoolVar(&l.count, "count", false, "only how many there are")
	return cmd
}

func (a *app) countDevices(ctx context.Context, c *client, selector string) error {
	resp, err := call(ctx, c.devices.CountDevices, &otadv1.CountDevicesRequest{Selector: selector})
	if err != nil {
		return err
	}
	type count struct {
		Devices int64 `json:"devices"`
	}
	n := strconv.FormatInt(resp.GetDevices(), 10)
	return printOne(a, count{resp.GetDevices()}, n, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, n)
		return err
	})
}

// listDevices reads page by page, up to limit devices unless that is 0.
func (c *client) listDevices(ctx context.Context, selector string, limit int) ([]deviceView, error) {
	var views []deviceView
	req := &otadv1.ListDevicesRequest{Selector: selector}
	for {
		req.PageSize = pageOf(limit, len(views))
		resp, err := call(ctx, c.devices.ListDevices, req)
		if err != nil {
			return nil, err
		}
		for _, d := range resp.GetDevices() {
			views = append(views, newDeviceView(d))
		}
		if resp.GetNextPageToken() == "" || limit > 0 && len(views) >= limit {
			return views, nil
		}
		req.PageToken = resp.GetNextPageToken()
	}
}

// pageOf is how many rows to ask for after have of limit (0: all).
func pageOf(limit, have int) int32 {
	if limit == 0 {
		return pageSize
	}
	return int32(min(limit-have, pageSize))
}

func newDeviceShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one device", Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ota.ValidateDeviceID(args[0]); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.GetDevice, &otadv1.GetDeviceRequest{Id: args[0]})
			if err != nil {
				return err
			}
			d := newDeviceView(resp.GetDevice())
			d.Groups, d.Drift = resp.GetGroups(), newDriftView(resp.GetDrift())
			return a.printDevice(d)
		},
	}
}

func (a *app) printDevice(d deviceView) error {
	return printOne(a, d, d.ID, func(w io.Writer) error {
		return writeFields(w, []field{
			{"ID", d.ID},
			{"Hardware", d.Hardware},
			{"State", d.state()},
			{"Since", a.ago(d.Since)},
			{"Why", d.OfflineReason},
			{"Tags", tagText(d.Tags)},
			{"Groups", strings.Join(d.Groups, ", ")},
			{"Firmware", d.Firmware},
			{"Drifted", a.drift(d)},
			{"Firmware SHA-256", d.FirmwareSHA256},
			{"Shadow version", strconv.FormatInt(d.ShadowVersion, 10)},
			{"Key fingerprint", d.KeyFingerprint},
			{"Enrolled", a.ago(d.CreatedAt)},
			{"Seen", a.ago(d.LastSeen)},
			{"Revoked", a.ago(d.RevokedAt)},
		})
	})
}

func newDeviceRevokeCmd(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "Lock a device out for good", Args: takes("ID"),
		Long: `revoke locks a device out for good and drops its session. It can not be taken
back: the device has to enroll anew under another id, or 'otactl device delete'
makes room for another device under this one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ota.ValidateDeviceID(args[0]); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := a.confirm(yes, "lock out %s for good", args[0]); err != nil {
				return err
			}
			resp, err := call(cmd.Context(), c.devices.RevokeDevice, &otadv1.RevokeDeviceRequest{Id: args[0]})
			if err != nil {
				return err
			}
			a.note("revoked %s", args[0])
			if a.flags.output == formatTable {
				return nil
			}
			return a.printDevice(newDeviceView(resp.GetDevice()))
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// confirm asks on a terminal before something that can not be undone; where
// nobody can be asked, --yes has to say it.
func (a *app) confirm(yes bool, format string, args ...any) error {
	if yes {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	if !a.terminal(a.stdin) {
		return hint(usage("this would %s", what), "add --yes to do it")
	}
	fmt.Fprintf(a.stderr, "This will %s. Go on? [y/N] ", what)
	var answer string
	if _, err := fmt.Fscanln(a.stdin, &answer); err == nil && (answer == "y" || answer == "Y" || answer == "yes") {
		return nil
	}
	return fail(exitFailed, "not done")
}

// when turns a time of the API into one for output; nil stays nil.
func when(t *timestamppb.Timestamp) *time.Time {
	if t == nil || (t.GetSeconds() == 0 && t.GetNanos() == 0) {
		return nil
	}
	v := t.AsTime().UTC()
	return &v
}

// orEmpty keeps an absent map from being null in the output.
func orEmpty[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}
