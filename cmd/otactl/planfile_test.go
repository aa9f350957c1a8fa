package main

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/otad/otad/pkg/ota"
)

func TestPlanFile(t *testing.T) {
	b, err := os.ReadFile("testdata/plan.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parsePlan(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	gate, strict := ota.Gate{Success: 0.95}, ota.Gate{Success: 0.98, MinFinished: 20}
	want := ota.Rollout{
		Release: ota.ReleaseID{Name: "gateway", Version: "1.4.0"}, Selector: `tags.site = "paris"`, Seed: "spring", Priority: 5, InProgressTimeout: 2 * time.Hour,
		Stages: []ota.Stage{
			{Size: ota.Size{Selector: `tags.ring = "lab"`}, Gate: gate, State: ota.StagePending},
			{Size: ota.Size{Count: 5}, Gate: strict, Soak: time.Hour, Approval: true, State: ota.StagePending},
			{Size: ota.Size{Percent: 100}, Gate: gate, Soak: 10 * time.Minute, State: ota.StagePending},
		},
		Abort: []ota.AbortRule{{Class: ota.ClassFailed, Share: 0.05, MinSample: 20}, {Class: ota.ClassAny, Share: 1, Count: 10}},
		Terms: ota.Terms{
			Start: time.Date(2026, 12, 1, 2, 0, 0, 0, time.UTC), Approval: true, Rate: ota.Rate{PerMinute: 100}, InFlight: ota.InFlight{Max: 50, Per: "site", PerMax: 5},
			Timers: ota.Timers{Claim: 24 * time.Hour, Fetch: time.Hour, Install: 10 * time.Minute, Reboot: 10 * time.Minute, Health: 15 * time.Minute},
			Retry:  ota.Retry{Attempts: 3, Backoff: 10 * time.Minute, On: []ota.Class{ota.ClassSilent, ota.ClassTimedOut}}, Strata: []string{"hardware", "site"},
			OnPause: ota.PauseHoldBeforeInstall, OnAbort: ota.AbortRevert,
			Health: ota.Health{
				Signals: []ota.Signal{{Name: "crash", Tolerance: 0.01, MinPairs: 50}, {Name: "shadow.reported.cpu.temp", Margin: 5, Alpha: 0.01}},
				Watch:   30 * time.Minute, Wait: 6 * time.Hour, OnFail: ota.HealthAbort,
			},
			Window:  ota.Window{RRule: "FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2", Duration: 3 * 3600},
			Consent: &ota.Consent{MaxDefers: 3, Deadline: time.Date(2026, 12, 24, 0, 0, 0, 0, time.UTC)}, Quarantined: true,
			Drift: ota.DriftRecord,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Every error names the line.
func TestPlanFilesThatAreRefused(t *testing.T) {
	for plan, want := range map[string]string{
		"":                                           "the plan is empty",
		"stages: [{size: 10%}]\n---\nstages: []":     "more than one document",
		"stages:\n- size: 10%\n  gates: 5%":          "line 3: field gates is not known in a stage",
		"rates: 5/m":                                 "line 1: field rates is not known in a plan",
		"rate: fast":                                 "line 1: rate: ",
		"seed: s\ntimeout: 5":                        "line 2: timeout: ",
		"stages:\n- size: 120%":                      "line 2: stage 1: ",
		"stages:\n- {}\n":                            "stage 1: give either size or select",
		"stages:\n- size: 5\n  select: a":            "line 2: stage 1: give either size or select",
		"stages:\n- size: 5,10":                      "line 2: stage 1: one size for each stage",
		"stages:\n- size: 5\n  gate: 195%":           "line 3: stage 1: ",
		"stages:\n- size: [5]":                       "line 2: want one value",
		"abort:\n- never":                            "line 2: abort: ",
		"window: FREQ=SECONDLY for 1h":               "line 1: window: ",
		"consent:\n  deadline: 2026-12-24T00:00:00Z": "line 2: consent: give maxDefers too",
		"start: tomorrow":                            "line 1: start: ",
		"stages: [":                                  "line 1: ",
	} {
		if _, err := parsePlan([]byte(plan)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "main.") {
			t.Errorf("%q: %v, want %q", plan, err, want)
		}
	}
}

func TestPlanOfACommand(t *testing.T) {
	got, err := parsePlan([]byte("command: {name: set-level, parameters: {level: 3, on: true}, timeout: 90s, maxOutput: 100}\nselect: tags.site = \"paris\"\nstages: [{size: 5, gate: 90%}, {size: 100%}]\nrate: 10/m\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := ota.Rollout{
		Command:  &ota.Command{Name: "set-level", Parameters: map[string]string{"level": "3", "on": "true"}, TimeoutSeconds: 90, MaxOutputBytes: 100},
		Selector: `tags.site = "paris"`, Terms: ota.Terms{Timers: ota.Timers{Claim: defaultClaim}, Rate: ota.Rate{PerMinute: 10}},
		Stages: []ota.Stage{
			{Size: ota.Size{Count: 5}, Gate: ota.Gate{Success: 0.9}, State: ota.StagePending}, {Size: ota.Size{Percent: 100}, State: ota.StagePending},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"stages: [{size: 1}]\ncommand: {name: a b}":                     "line 2: command: ",
		"stages: [{size: 1}]\ncommand: {name: x, timeout: 1500ms}":      "line 2: command: timeout: 1.5s: want whole seconds",
		"stages: [{size: 1}]\ncommand: {timeout: 10s}":                  "line 2: command: give its name",
		"stages: [{size: 1}]\ncommand:\n  parameters: {a: b}":           "line 3: command: give its name",
		"firmware: gw@1\nstages: [{size: 1}]\ncommand: {name: x}":       "line 1: firmware: and a command: make two plans",
		"stages: [{size: 1}]\ncommand: {name: x, argv: [y]}":            "field argv is not known in a command",
		"stages: [{size: 1}]\ncommand: {name: x, parameters: {a: [b]}}": "line 2: want one value",
	} {
		if _, err := parsePlan([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// The schema knows what the reader knows, and no more.
func TestPlanSchema(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(planSchema, &schema); err != nil {
		t.Fatal(err)
	}
	sameFields(t, "plan", reflect.TypeFor[planFile](), schema)
}

func sameFields(t *testing.T, name string, typ reflect.Type, schema map[string]any) {
	t.Helper()
	properties, _ := schema["properties"].(map[string]any)
	if schema["additionalProperties"] != false {
		t.Errorf("%s: the schema lets in any member", name)
	}
	var fields, known []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		key := f.Tag.Get("yaml")
		fields = append(fields, key)
		sub, _ := properties[key].(map[string]any)
		of := f.Type
		if of.Kind() == reflect.Slice {
			of = of.Elem()
			sub, _ = sub["items"].(map[string]any)
		}
		if of.Kind() == reflect.Struct && of != reflect.TypeFor[text]() {
			sameFields(t, key, of, sub)
		}
	}
	for key := range properties {
		known = append(known, key)
	}
	slices.Sort(fields)
	slices.Sort(known)
	if diff := cmp.Diff(fields, known); diff != "" {
		t.Errorf("%s (-reader +schema):\n%s", name, diff)
	}
}

func FuzzParsePlan(f *testing.F) {
	if b, err := os.ReadFile("testdata/plan.yaml"); err == nil {
		f.Add(b)
	}
	f.Add([]byte("stages: &a [*a]"))
	f.Add([]byte("stages: [{size: 5}]\ncommand: {name: x, parameters: {a: 1}, timeout: 90s}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parsePlan(b); err == nil && len(r.Stages) > len(b) {
			t.Errorf("%d stages out of %d bytes", len(r.Stages), len(b))
		}
	})
}
