package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// A device that runs another image than it was brought says so, and where to look.
func TestDeviceShowsItsDrift(t *testing.T) {
	a, stdout, _ := testApp()
	d := newDeviceView(&otadv1.Device{Id: "gw-1", Firmware: "gateway@1.0.0"})
	if err := a.printDevice(d); err != nil || strings.Contains(stdout.String(), "Drifted") {
		t.Errorf("%v\n%s", err, stdout)
	}
	d.Drift = newDriftView(&otadv1.Drift{RolloutId: "r-1", Firmware: "gateway@1.4.0", Since: timestamppb.New(a.now().Add(-3 * time.Hour))})
	if err := a.printDevice(d); err != nil {
		t.Fatal(err)
	}
	if want := "from gateway@1.4.0 of rollout r-1, seen 3h ago; otactl device why gw-1"; !strings.Contains(stdout.String(), want) {
		t.Errorf("want %q in\n%s", want, stdout)
	}
}

// TestOutputShapes holds what scripts rely on against testdata/golden. Set
// OTACTL_UPDATE_GOLDEN to write the files anew.
func TestOutputShapes(t *testing.T) {
	ago := func(d time.Duration) *timestamppb.Timestamp {
		return timestamppb.New(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(-d))
	}
	devices := []deviceView{
		newDeviceView(&otadv1.Device{
			Id: "gw-1", Hardware: "rpi4", Tags: map[string]string{"site": "paris", "floor": "2"}, Online: true, Reachability: "online", KeyFingerprint: "ab12",
			CreatedAt: ago(72 * time.Hour), LastSeen: ago(3 * time.Minute), Firmware: "gateway@1.0.0", FirmwareSha256: "cd34", ShadowVersion: 7,
		}),
		newDeviceView(&otadv1.Device{Id: "gw-2\x1b[31m", Hardware: "rpi4", Reachability: "offline", Since: ago(time.Minute), OfflineReason: "revoked", CreatedAt: ago(time.Hour), RevokedAt: ago(time.Minute)}),
	}
	spec := func(percent float64) *otadv1.StageSpec {
		return &otadv1.StageSpec{Percent: percent, Gate: &otadv1.Gate{Success: 0.95}, Soak: durationpb.New(time.Minute)}
	}
	rollout := newRolloutView(&otadv1.Rollout{
		Id: "r1", Firmware: "gateway@1.1.0", Selector: `tags.site = "paris"`, Seed: "s", State: "PAUSED", Reason: "stage 2 failed its gate",
		Population: 30, Revision: 2, CreatedAt: ago(2 * time.Hour), Abort: []*otadv1.AbortRule{{Class: "any", Share: 0.1, MinSample: 3}},
		Stages: []*otadv1.Stage{
			{Spec: spec(10), State: "PASSED", Target: 3, Counts: &otadv1.Counts{Finished: map[string]int32{"succeeded": 3}}, OpenedAt: ago(2 * time.Hour)},
			{Spec: spec(100), State: "FAILED", Target: 30, Counts: &otadv1.Counts{Queued: 4, InProgress: 2, Retrying: 3, Finished: map[string]int32{"succeeded": 19, "rolled_back": 1, "silent": 1, "underway": 2}}},
		},
	})
	failures := []executionView{newExecutionView(&otadv1.Execution{
		DeviceId: "gw-9", Stage: 2, Attempt: 1, Status: "FAILED", Class: "rolled_back", Reason: "health: no answer", FinishedAt: ago(5 * time.Minute),
	})}
	atWork := []executionView{newExecutionView(&otadv1.Execution{
		DeviceId: "gw-7", Stage: 2, Attempt: 1, Status: "IN_PROGRESS", Step: "rebooting", StepAt: ago(25 * time.Minute), ExpiresAt: ago(-35 * time.Minute),
	}), newExecutionView(&otadv1.Execution{
		DeviceId: "gw-8", Stage: 2, Attempt: 2, Status: "IN_PROGRESS", Step: "waiting", Reason: "window opens at 02:00", StepAt: ago(3 * time.Minute),
	})}
	plan := newPlanView(&otadv1.RolloutSpec{Firmware: "gateway@1.1.0"}, &otadv1.PlanRolloutResponse{
		Population: 5, Bytes: 5 << 20, Seed: "s",
		Stages: []*otadv1.PlannedStage{
			{Spec: &otadv1.StageSpec{Count: 1, Gate: &otadv1.Gate{Success: 1, MinFinished: 1}, Soak: durationpb.New(0)}, Target: 1, Devices: 1, Sample: []string{"gw-3"}},
			{Spec: spec(100), Target: 5, Devices: 4, Sample: []string{"gw-1", "gw-2", "gw-4", "gw-5"}},
		},
		Paths: []*otadv1.PlannedPath{
			{Devices: 3, Sample: []string{"gw-1", "gw-2", "gw-3"}},
			{Via: []string{"gateway@1.0.0", "gateway@1.0.5"}, Devices: 2, Sample: []string{"gw-4", "gw-5"}},
		},
		Excluded: []*otadv1.Exclusion{
			{Reason: "hardware", Devices: 2, Sample: []string{"cam-1", "cam-2"}},
			{Reason: "needs-version", Devices: 1, Sample: []string{"gw-7"}, Detail: "gateway@1.1.0 needs gateway 1.0.5 or newer, and no release has the image that they say they run: upload it as one"},
		},
	})
	for _, test := range []struct {
		golden, format string
		print          func(*app) error
	}{
		{"device_list.txt", formatTable, func(a *app) error { return printList(a, a.deviceTable(), devices) }},
		{"device_list_wide.txt", formatWide, func(a *app) error { return printList(a, a.deviceTable(), devices) }},
		{"device_list.json", formatJSON, func(a *app) error { return printList(a, a.deviceTable(), devices) }},
		{"device_list.jsonl", formatJSONL, func(a *app) error { return printList(a, a.deviceTable(), devices) }},
		{"device_list.yaml", formatYAML, func(a *app) error { return printList(a, a.deviceTable(), devices) }},
		{"device_show.txt", formatTable, func(a *app) error { return a.printDevice(devices[0]) }},
		{"rollout_list.txt", formatTable, func(a *app) error { return printList(a, a.rolloutTable(), []rolloutView{rollout}) }},
		{"rollout_show.txt", formatTable, func(a *app) error {
			r := rollout
			r.Failures, r.AtWork = failures, atWork
			return printOne(a, r, r.ID, a.showRollout(r))
		}},
		{"rollout_show.json", formatJSON, func(a *app) error {
			r := rollout
			r.Failures, r.AtWork = failures, atWork
			return printOne(a, r, r.ID, nil)
		}},
		{"rollout_plan.txt", formatTable, func(a *app) error { return a.printPlan(plan) }},
		{"rollout_plan.json", formatJSON, func(a *app) error { return a.printPlan(plan) }},
	} {
		t.Run(test.golden, func(t *testing.T) {
			a, stdout, _ := testApp()
			a.flags.output = test.format
			if err := test.print(a); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "golden", test.golden)
			if os.Getenv("OTACTL_UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(path, stdout.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), stdout.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEmptyListIsAnEmptyArray(t *testing.T) {
	for format, want := range map[string]string{formatJSON: "[]\n", formatYAML: "[]\n", formatJSONL: "", formatName: "", formatTable: ""} {
		a, stdout, _ := testApp()
		a.flags.output = format
		if err := printList(a, a.deviceTable(), nil); err != nil || stdout.String() != want {
			t.Errorf("%s: %q, %v", format, stdout, err)
		}
	}
}

func TestYAMLKeepsStringsStrings(t *testing.T) {
	a, stdout, _ := testApp()
	a.flags.output = formatYAML
	v := map[string]any{"a": "true", "b": "1.10", "c": "null", "d": true, "e": 1.5, "f": []string{}, "g": "two\nlines", "h": ""}
	if err := printOne(a, v, "", nil); err != nil {
		t.Fatal(err)
	}
	want := "a: \"true\"\nb: \"1.10\"\nc: \"null\"\nd: true\ne: 1.5\nf: []\ng: |-\n  two\n  lines\nh: \"\"\n"
	if diff := cmp.Diff(want, stdout.String()); diff != "" {
		t.Error(diff)
	}
}

func TestSizesAndAges(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 5 << 40: "5.0 TiB", 1 << 62: "4096.0 PiB"} {
		if got := byteSize(n); got != want {
			t.Errorf("byteSize(%d) = %q, want %q", n, got, want)
		}
	}
	a, _, _ := testApp()
	at := func(d time.Duration) *time.Time { v := a.now().Add(d); return &v }
	for _, test := range []struct {
		at   *time.Time
		want string
	}{
		{nil, ""}, {new(time.Time), ""}, {at(-59 * time.Second), "59s ago"}, {at(-time.Minute), "1m ago"},
		{at(-47 * time.Hour), "47h ago"}, {at(-48 * time.Hour), "2d ago"}, {at(90 * time.Minute), "in 1h"},
	} {
		if got := a.ago(test.at); got != test.want {
			t.Errorf("ago(%v) = %q, want %q", test.at, got, test.want)
		}
	}
}
