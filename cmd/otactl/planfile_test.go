package main

import (
	"bytes"
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
	got, _, err := parsePlan(b)
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
			{Size: ota.Size{Selector: `tags.ring = "lab"`}, Gate: gate, Soak: time.Minute, State: ota.StagePending},
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

// What a plan file leaves out is as the flags have it; none is said by an empty list,
// and by 0s.
func TestPlanFileDefaults(t *testing.T) {
	flags := rolloutFlags{firmware: "gw@1", stages: defaultStages, gate: "95%", soak: defaultSoak, retry: ota.Retry{Attempts: 1}, abort: []string{defaultAbort}}
	byFlags, err := flags.plan()
	if err != nil {
		t.Fatal(err)
	}
	for _, plan := range []string{"firmware: gw@1", "firmware: gw@1\nstages: [{size: 10%}, {size: 50%}, {size: 100%}]"} {
		byFile, _, err := parsePlan([]byte(plan))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(byFlags.Stages, byFile.Stages) + cmp.Diff(byFlags.Abort, byFile.Abort); diff != "" {
			t.Error(plan, diff)
		}
	}
	all := []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}}
	if r, _, err := parsePlan([]byte("command: {name: reboot}")); err != nil || cmp.Diff(all, r.Stages) != "" {
		t.Errorf("stages of a command %v, %v", r.Stages, err)
	}
	for _, plan := range []string{"firmware: gw@1\nabort: []\nstages: [{size: 100%, soak: 0s}]", "command: {name: reboot}\nstages: [{size: 100%}]"} {
		r, _, err := parsePlan([]byte(plan))
		if err != nil || len(r.Abort) != 0 || r.Stages[0].Soak != 0 {
			t.Errorf("%q: abort %v, soak %v, %v; want none", plan, r.Abort, r.Stages[0].Soak, err)
		}
	}
}

// refusalOf is why a plan file is refused before a server is asked.
func refusalOf(plan string) string {
	r, lines, err := parsePlan([]byte(plan))
	if err == nil {
		lines.file = "p"
		err = lines.locate(r.Ordered().Validate())
	}
	if err == nil {
		return ""
	}
	return plain(strings.TrimPrefix(err.Error(), "p: "))
}

// Every error names the line, whether the file can not be read or the plan can not
// work.
func TestPlanFilesThatAreRefused(t *testing.T) {
	const ( // three lines, all of them right
		plan    = "firmware: gw@1\nstages:\n- size: 100%\n"
		command = "command: {name: x}\nstages:\n- size: 100%\n"
	)
	for text, want := range map[string]string{
		"":                                       "the plan is empty",
		"stages: [{size: 10%}]\n---\nstages: []": "more than one document",
		"stages:\n- size: 10%\n  gates: 5%":      "line 3: field gates is not known in a stage",
		"rates: 5/m":                             "line 1: field rates is not known in a plan",
		"rate: fast":                             "line 1: rate: ",
		"seed: s\ntimeout: 5":                    "line 2: timeout: ",
		"stages:\n- size: 120%":                  "line 2: stage 1: ",
		"stages:\n- size: 5\n- {}\n":             "line 3: stage 2: give either size or select",
		"stages:\n-\n  approval: true\n":         "line 3: stage 1: give either size or select",
		"stages:\n- size: 5\n  select: a":        "line 2: stage 1: give either size or select",
		"stages:\n- size: 5,10":                  "line 2: stage 1: one size for each stage",
		"stages:\n- size: 5\n  gate: 195%":       "line 3: stage 1: ",
		"stages:\n- size: [5]":                   "line 2: want one value",
		"abort: any>5%,failed>3%":                "line 1: `any>5%,...`: want a list, as in [A, B]",
		"abort: \"a`b\\n\"":                      "line 1: `a`b",
		"stages: 5,10%":                          "line 1: `5,10%`: want a list",
		"seed: s\nstages: {size: 5}":             "line 2: want a list",
		"stages: !x 5":                           "line 1: `5`: want a list",
		"stages:\n- 5":                           "line 2: `5`: want keys with values",
		"strata: hardware,site":                  "line 1: `hardwar...`: want a list",
		plan + "strata: ['hardware,site']":       `line 4: stratum "hardware,site": `,
		plan + "retry: {attempts: 2, on: ['failed,silent']}": `line 4: retry on "failed,silent": want`,
		"retry: {attempts: 2, on: failed}":                   "line 1: `failed`: want a list",
		"health: {signals: crash}":                           "line 1: `crash`: want a list",
		"timers: 5m":                                         "line 1: `5m`: want keys with values",
		"timers: [5m]":                                       "line 1: want keys with values",
		"priority: [1]":                                      "line 1: want one value, not a list or keys",
		"approval: {a: b}":                                   "line 1: want one value, not a list or keys",
		"abort:\n- never":                                    "line 2: abort: ",
		"window: FREQ=SECONDLY for 1h":                       "line 1: window: ",
		"consent:\n  deadline: 2026-12-24T00:00:00Z":         "line 1: consent: give maxDefers",
		"start: tomorrow":                                    "line 1: start: ",
		"stages: [":                                          "line 1: ",
		"rate:\nstages: [{size: 5}]":                         "line 1: rate has no value: give one, or leave it out",
		"stages: [{size: 5}]\nabort: ~":                      "line 2: abort has no value",
		"stages:\n-\n- size: 5":                              "line 2: stages has no value",
		"seed: s\napproval: yes":                             `line 2: "yes": want true or false`,
		"priority: 5.7":                                      `line 1: "5.7": want a whole number`,
		"select: 5":                                          "line 1: 5: want a text: put it in quotes",
		"start: 2026-12-01T2:00:00Z":                         "line 1: start: ",
		"timeout: -1h":                                       "line 1: timeout: ",

		"firmware: gw@1\nstages: []":                                     "line 2: 0 stages: ",
		"firmware: gw@1\nstages: [{size: 5}, {size: 5}]":                 "line 2: stages must ascend: stage 2 is 5 after 5; sizes are cumulative",
		"firmware: gw@1\nstages:\n- size: 50%\n- gate: 90%\n  size: 10%": "line 5: stages must ascend: stage 2 is 10% after 50%",
		"firmware: gw@1\nstages:\n- size: 5\n  soak: 2161h":              "line 4: stage 1: soak of 2161h0m0s: want 0 to 2160h0m0s",
		"firmware: gw@1\nstages:\n- &a {size: 5, soak: 2161h}\n- *a":     "line 3: stage 1: soak",
		"stages: [{size: 5}]\nfirmware: gw/1@2":                          "line 2: firmware: ",
		plan + "abort: [any>=1, any>=2, any>=3, any>=4, any>=5, any>=6, any>=7, any>=8, any>=9, any>=1, any>=2, any>=3, any>=4, any>=5, any>=6, any>=7, any>=8]": "line 4: 17 abort rules: at most 16",
		plan + "select: " + strings.Repeat("a", 4097):                            "line 4: selector of 4097 bytes: at most 4096",
		plan + "timeout: 1s":                                                     "line 4: timeout of 1s: want 1m0s to 168h0m0s",
		plan + "rate: 1000000000/m":                                              `line 4: rate: rate "1000000000/m": rate of 1e+09 a minute: want`,
		plan + "inFlight:\n  max: -1":                                            "line 5: -1 in flight: want 0 (no bound) to",
		plan + "inFlight:\n  max: 5\n  perMax: -1":                               "line 6: -1 in flight for each value: want",
		plan + "inFlight:\n  perMax: 1":                                          "line 4: in flight for each value: give the tag key and the number",
		plan + "inFlight:\n  perMax: 1\n  per: a b":                              "line 6: tag key",
		plan + "timers:\n  claim: 1h\n  fetch: 1s":                               "line 6: fetch timer of 1s: want",
		plan + "timers:\n  install: 169h":                                        "line 5: install timer of 169h0m0s: want",
		plan + "retry:\n  attempts: 12":                                          "line 5: 12 attempts: want 1 to 11",
		plan + "retry:\n  attempts: 2\n  backoff: 169h":                          "line 6: retry backoff of 169h0m0s: want",
		plan + "retry:\n  backoff: 1h":                                           "line 4: retry: it needs at least 2 attempts",
		plan + "retry:\n  attempts: 2\n  on:\n  - failed\n  - tired":             `line 8: retry on "tired": want failed,`,
		plan + "retry: {attempts: 2, on: [drifted]}":                             `line 4: retry on "drifted": want`,
		plan + "drift: flow":                                                     `line 4: drift policy "flow": want`,
		plan + "consent:\n  maxDefers: 101":                                      "line 5: consent with 101 deferrals: want 0 to 100",
		plan + "strata:\n- a\n- b\n- a":                                          `line 7: stratum "a" is given twice`,
		plan + "strata: [a b]":                                                   `line 4: stratum "a b": `,
		plan + "strata: [a, b, c, d, e, f, g, h, i]":                             "line 4: 9 strata: at most 8",
		plan + "onAbort: burn":                                                   `line 4: abort policy "burn": want keep or revert`,
		plan + "onPause: dance":                                                  `line 4: pause policy "dance": want`,
		plan + "health:\n  signals: [crash +1%]\n  onFail: cry":                  `line 6: policy of a failed signal "cry": want`,
		plan + "health:\n  onFail: abort":                                        "line 4: health: without a signal",
		plan + "health:\n  signals: [crash +1%]\n  watch: 100000h":               "line 6: health watch of 100000h0m0s: want",
		plan + "health:\n  signals: [crash +1%]\n  wait: 10000h":                 "line 6: health wait of 10000h0m0s: want",
		plan + "health:\n  signals:\n  - crash +1%\n  - crash +2%":               "line 7: health signal crash is given twice",
		"continuous: true\nfirmware: gw@1\nstages:\n- size: 5%\n":                "line 4: the last stage of a continuous rollout is 100%, not 5%",
		"continuous: true\nfirmware: gw@1\nstages:\n- select: a\n- size: 100%\n": "line 4: stage 1 is a selector, and",

		command + "continuous: true":                   "line 4: a command can not be continuous",
		command + "window: FREQ=DAILY;BYHOUR=2 for 1h": "line 4: a command has no window",
		command + "consent: {maxDefers: 1}":            "line 4: a command has no window and asks for no consent",
		command + "health: {signals: [crash +1%]}":     "line 4: a command has no health gate",
		command + "onAbort: revert":                    "line 4: a command installs nothing that could be reverted",
		command + "timers: {fetch: 1h}":                "line 4: timers: those of fetch, install,",
		command + "quarantined: true":                  "line 4: a command knows no quarantine",
	} {
		if got := refusalOf(text); !strings.HasPrefix(got, want) || got == "" || strings.Contains(got, "main.") {
			t.Errorf("%q: %s, want %q", text, got, want)
		}
	}
	for _, fine := range []string{plan, command} {
		if got := refusalOf(fine); got != "" {
			t.Errorf("%q: %s", fine, got)
		}
	}
}

func TestPlanOfACommand(t *testing.T) {
	got, _, err := parsePlan([]byte("command: {name: set-level, parameters: {level: 3, on: true}, timeout: 90s, maxOutput: 100}\nselect: tags.site = \"paris\"\nstages: [{size: 5, gate: 90%}, {size: 100%}]\nrate: 10/m\n"))
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
		"stages: [{size: 1}]\ncommand:\n  parameters: {a: b}":           "line 2: command: give its name",
		"firmware: gw@1\nstages: [{size: 1}]\ncommand: {name: x}":       "line 1: firmware: and a command: make two plans",
		"stages: [{size: 1}]\ncommand: {name: x, argv: [y]}":            "field argv is not known in a command",
		"stages: [{size: 1}]\ncommand: {name: x, parameters: {a: [b]}}": "line 2: want one value",
	} {
		if _, _, err := parsePlan([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
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
	values := []reflect.Type{reflect.TypeFor[text](), reflect.TypeFor[loose]()}
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
		if of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		if of.Kind() == reflect.Struct && !slices.Contains(values, of) {
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
		r, lines, err := parsePlan(b)
		if err == nil && len(r.Stages) > len(b) {
			t.Errorf("%d stages out of %d bytes", len(r.Stages), len(b))
		}
		if n := lines.line("stages[0].size"); err == nil && lines.root != nil && (n < 1 || n > bytes.Count(b, []byte("\n"))+bytes.Count(b, []byte("\r"))+1) {
			t.Errorf("line %d", n)
		}
	})
}
