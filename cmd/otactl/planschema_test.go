package main

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

// planValidator is another reading of the schema of plan files, that of an editor.
func planValidator(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(planSchema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("plan.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("plan.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// asJSON is what a YAML document says to who knows JSON; false: there is not one
// document, or it can not be read.
func asJSON(b []byte) (any, bool) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	if d.Decode(&doc) != nil || !errors.Is(d.Decode(new(any)), io.EOF) {
		return nil, false
	}
	v, err := jsonValue(doc.Content[0])
	return v, err == nil
}

func jsonValue(n *yaml.Node) (v any, err error) {
	switch n.Kind {
	case yaml.AliasNode:
		return nil, errors.New("an alias, which may mean itself")
	case yaml.SequenceNode:
		list := []any{}
		for _, c := range n.Content {
			if v, err = jsonValue(c); err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		object := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if _, twice := object[key]; twice {
				return nil, errors.New("a key twice")
			}
			if object[key], err = jsonValue(n.Content[i+1]); err != nil {
				return nil, err
			}
		}
		return object, nil
	}
	if tag := n.ShortTag(); tag == "!!str" || tag == "!!timestamp" { // YAML 1.2 has no times
		return n.Value, nil
	}
	err = n.Decode(&v)
	return v, err
}

// beyondSchema are the kinds of refusals that a schema can not know. What else otactl
// refuses, the schema refuses too.
var beyondSchema = map[string]*regexp.Regexp{
	"the release is given beside the file":          regexp.MustCompile(`firmware name ""`),
	"sizes do not ascend":                           regexp.MustCompile(`stages must ascend|the last stage of a continuous rollout`),
	"a duration, or a number in a text, is too big": regexp.MustCompile(`: want (0|1s|1m0s|1m|5m) to |of at most .* a minute: want|rate of .* a minute: want|rate factor|whole seconds|command timeout of|is not a number from 1|alpha|tolerance of|a rate of 0|invalid duration "[0-9]{15,}`),
	"a signal twice":                                regexp.MustCompile(`is given twice`),
	"a recurrence rule that can not be meant":       regexp.MustCompile(`recurrence rule|opens again after|never opens|window (start|duration)|"(for|from|fetch)" is given twice`),
	"a day that no calendar has":                    regexp.MustCompile(`(start|deadline): .*(parsing time|out of range)`),
	"bytes are counted, not characters":             regexp.MustCompile(`selector of [0-9]+ bytes|a text of at most 256 bytes`),
	"a number written in a way that JSON has not":   regexp.MustCompile(`"(0x|[0-9.]+e|0o|[0-9]*_|[0-9]+\.0)|missing unit in duration`),
}

func kindBeyondSchema(refusal string) string {
	for _, kind := range slices.Sorted(maps.Keys(beyondSchema)) {
		if beyondSchema[kind].MatchString(refusal) {
			return kind
		}
	}
	return ""
}

// errorer is what tests and property tests have in common.
type errorer interface {
	Helper()
	Errorf(format string, args ...any)
}

// agree holds the schema against what otactl itself reads.
func agree(t errorer, schema *jsonschema.Schema, plan string) (refused bool, kind string) {
	t.Helper()
	doc, ok := asJSON([]byte(plan))
	if !ok {
		return false, ""
	}
	byReader, bySchema := refusalOf(plan), schema.Validate(doc)
	switch {
	case bySchema != nil && byReader == "":
		t.Errorf("the schema refuses what otactl takes:\n%s\n%v", plan, bySchema)
	case bySchema == nil && byReader != "":
		if kind = kindBeyondSchema(byReader); kind == "" {
			t.Errorf("the schema takes what otactl refuses:\n%s\n%s", plan, byReader)
		}
	}
	return bySchema != nil, kind
}

// Every plan of the documentation is one, by the schema and by otactl.
func TestPlansOfTheDocumentation(t *testing.T) {
	schema := planValidator(t)
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	adrs, err := filepath.Glob("../../docs/adr/*.md")
	if err != nil {
		t.Fatal(err)
	}
	plans := map[string]string{}
	for _, file := range append(append(files, adrs...), "../../README.md") {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range yamlBlock.FindAllSubmatch(b, -1) {
			if topStages.Match(block[1]) {
				plans[file+": "+string(block[1])] = string(block[1])
			}
		}
	}
	if len(plans) < 2 {
		t.Errorf("the documentation has %d whole plans, want one of a release and one of a command", len(plans))
	}
	example, err := os.ReadFile("testdata/plan.yaml")
	if err != nil {
		t.Fatal(err)
	}
	plans["testdata/plan.yaml"] = string(example)
	for name, plan := range plans {
		if refused, _ := agree(t, schema, plan); refused || refusalOf(plan) != "" {
			t.Errorf("%s\nis refused: %s", name, refusalOf(plan))
		}
	}
}

var (
	yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")
	topStages = regexp.MustCompile(`(?m)^ *stages:`)
)

// What is wrong in a plan is seen in an editor.
func TestPlanSchemaRefuses(t *testing.T) {
	schema := planValidator(t)
	const (
		plan    = "firmware: gw@1\nstages: [{size: 100%}]\n"
		command = "command: {name: x}\nstages: [{size: 100%}]\n"
	)
	for _, good := range []string{
		plan, command, "{}", "firmware: gw@1", "firmware: gw@1\ncontinuous: true", "command: {name: x}", "stages: [{size: 5}, {size: '10 %'}]", plan + "abort: []",
		plan + "timeout: 0", plan + "timers: {reboot: 0s, health: 0}", plan + "inFlight: {max: 0}", plan + "retry: {attempts: 1}", plan + "seed: 2026", plan + "priority: -1",
		plan + "continuous: false", command + "continuous: false", command + "timers: {claim: 1h}", command + "onAbort: keep",
		plan + "rate: 0.5/s", plan + "rate: 1e3/m", plan + "window: freq=daily;byhour=2 from 2026-12-01T02:00 for 2h fetch anytime",
		plan + "consent: {maxDefers: 0}", plan + "start: 2026-12-01T02:00:00.5+01:00", "command: {name: x, parameters: {a: '', b: 1.5, c: true}}\nstages: [{size: 1}]",
		"firmware: gw@1\ncontinuous: true\nstages: [{size: 5}, {size: 100%}]", plan + "health: {signals: ['crash +1% alpha 1% min 50', 'shadow.reported.a -1e3']}",
	} {
		if refused, _ := agree(t, schema, good); refused || strings.Contains(good, "gw@1") && refusalOf(good) != "" {
			t.Errorf("%s\nis refused: %s", good, refusalOf(good))
		}
	}
	for _, bad := range []string{
		"null", "[]", "stages: []", "stages: ", "stages: [null]", "stages: [{}]", "stages: [{size: 5, select: a}]", "stages: [{approval: true}]",
		"stages: [{size: 150%}]", "stages: [{size: 0%}]", "stages: [{size: 0.00 %}]", "stages: [{size: 0}]", "stages: [{size: -5}]", "stages: [{size: 5.5}]", "stages: [{size: '5,10'}]",
		"stages: [{size: true}]", "stages: [{size: 5000000000}]", "stages: [{size: ''}]", "stages: [{select: ''}]", "stages: [{select: 5}]", "stages: [{size: [5]}]",
		"stages: [{size: 5, gate: 195%}]", "stages: [{size: 5, gate: 95}]", "stages: [{size: 5, gate: 95% min 0}]", "stages: [{size: 5, gate: 95% max 3}]",
		"stages: [{size: 5, soak: 5}]", "stages: [{size: 5, soak: -1m}]", "stages: [{size: 5, soak: soon}]", "stages: [{size: 5, soak: }]", "stages: [{size: 5, approval: yes}]", "stages: [{size: 5, gates: 5%}]",
		plan + "command: {name: x}", "firmware: gw\nstages: [{size: 5}]", "firmware: gw/1@2\nstages: [{size: 5}]", "firmware: gw@1..2\nstages: [{size: 5}]", "firmware: ''\nstages: [{size: 5}]",
		"command: {}\nstages: [{size: 5}]", "command: {name: a b}\nstages: [{size: 5}]", "command: {name: 5}\nstages: [{size: 5}]", "command: {name: x, argv: [y]}\nstages: [{size: 5}]", "command: {name: x, maxOutput: 6145}\nstages: [{size: 5}]",
		"command: {name: x, parameters: {a: }}\nstages: [{size: 5}]", "command: {name: x, parameters: {a-b: 1}}\nstages: [{size: 5}]", "command: {name: x, parameters: }\nstages: [{size: 5}]", "command: {name: x, parameters: {a: [b]}}\nstages: [{size: 5}]",
		command + "continuous: true", command + "window: FREQ=DAILY;BYHOUR=2 for 1h", command + "consent: {maxDefers: 1}", command + "health: {signals: [crash +1%]}",
		command + "onAbort: revert", command + "timers: {fetch: 1h}", command + "timers: {health: 0s}", command + "quarantined: true",
		plan + "abort: ", plan + "abort: any>=3", plan + "abort: [any]", plan + "abort: [any>=0]", plan + "abort: [any>101%]", plan + "abort: [succeeded>5%]", plan + "abort: ['']",
		plan + "rate: ", plan + "rate: 100", plan + "rate: fast", plan + "rate: 100/y", plan + "rate: -1/m", plan + "rate: 10/m x2 per 50 others max 1000/m", plan + "rate: 10/m x2",
		plan + "inFlight: {max: -1}", plan + "inFlight: {max: 1.5}", plan + "inFlight: {per: site}", plan + "inFlight: {perMax: 5}", plan + "inFlight: {per: site, perMax: 0}", plan + "inFlight: {per: a b, perMax: 5}", plan + "inFlight: {max: 10000001}",
		plan + "timeout: 5", plan + "timers: {reset: 1h}", plan + "timers: {claim: 1h -5m}", plan + "retry: {attempts: 12}", plan + "retry: {backoff: 1h}", plan + "retry: {attempts: 1, on: [silent]}", plan + "retry: {attempts: 3, on: [drifted]}",
		plan + "window: ''", plan + "window: FREQ=DAILY;BYHOUR=2", plan + "window: FREQ=SECONDLY for 1h", plan + "window: BYHOUR=2 for 1h", plan + "window: FREQ=DAILY;BYHOUR=2 for 1h fetch never", plan + "window: FREQ=DAILY;BYHOUR=2 for 3",
		plan + "consent: {}", plan + "consent: {maxDefers: 101}", plan + "consent: {deadline: 2026-12-24T00:00:00Z}", plan + "consent: {maxDefers: 1, deadline: 2026-12-24}",
		plan + "strata: [a b]", plan + "strata: [a, a]", plan + "strata: [a, b, c, d, e, f, g, h, i]", plan + "priority: high", plan + "priority: 1.5", plan + "priority: 5000000000", plan + "seed: ", plan + "start: tomorrow", plan + "start: 2026-12-01 02:00:00",
		plan + "onPause: dance", plan + "onAbort: burn", plan + "drift: flow", plan + "approval: on", plan + "quarantined: 1", plan + "retries: 5",
		plan + "health: {}", plan + "health: {watch: 10m}", plan + "health: {signals: []}", plan + "health: {signals: [crash 1]}", plan + "health: {signals: [crash +101%]}", plan + "health: {signals: [temp +1%]}",
		plan + "health: {signals: [shadow.reported.a +1%]}", plan + "health: {signals: [shadow.reported..a 1]}", plan + "health: {signals: [crash +1% min 5 min 6]}", plan + "health: {signals: [crash +1%], onFail: cry}",
		"firmware: gw@1\ncontinuous: true\nstages: [{size: 5%}]", "firmware: gw@1\ncontinuous: true\nstages: [{select: a}, {size: 100%}]",
	} {
		if refused, _ := agree(t, schema, bad); !refused {
			t.Errorf("the schema takes %s\notactl: %s", bad, refusalOf(bad))
		}
	}
}

// Whatever is combined, right or wrong, the schema refuses nothing that otactl takes, and
// takes what otactl refuses only where a schema can not know better.
func TestPlanSchemaAgreesWithTheReader(t *testing.T) {
	schema := planValidator(t)
	kinds := map[string]bool{}
	rapid.Check(t, func(rt *rapid.T) {
		var plan strings.Builder
		for _, field := range slices.Sorted(maps.Keys(planValues)) {
			if rapid.IntRange(0, 3).Draw(rt, "with "+field) > 0 {
				continue
			}
			plan.WriteString(field + ": " + rapid.SampledFrom(planValues[field]).Draw(rt, field) + "\n")
		}
		if _, kind := agree(rt, schema, plan.String()); kind != "" {
			kinds[kind] = true
		}
	})
	if len(kinds) == 0 {
		t.Error("the plans that were drawn have nothing that a schema can not know")
	}
}

// planValues are values of each part of a plan, every second about right.
var planValues = map[string][]string{
	"firmware":    {"gw@1", "gw@1.0-rc.1", "gw", "5", "''", "gw@1..2"},
	"command":     {"{name: x}", "{name: reboot, timeout: 90s}", "{name: x, timeout: 1500ms}", "{name: x, parameters: {a: 1, b: }}", "{}", "{name: x, timeout: 25h}", "{name: x, maxOutput: 6144}"},
	"select":      {"a = 1", "'5'", "5", "''", "null", "\"" + strings.Repeat("é", 3000) + "\""},
	"stages":      {"[{size: 5}]", "[{size: 5%}, {size: 100%}]", "[{size: 100%}, {size: 5%}]", "[{select: a}, {size: 50%}]", "[{size: 0}]", "[]", "[{size: 1, soak: 1m, gate: 5%}, {size: 1e3}]", "[{size: 5, soak: 2161h, approval: false}]", "[{size: 100%}, {size: 500}]", "[{size: 0x10}]", "[{size: 9999999999}]", "[{size: '9999999999'}]"},
	"abort":       {"[any>=3]", "['failed > 5 % min 20']", "[any>5%]", "[]", "[any>-1]", "null", "[any>=9999999999]"},
	"rate":        {"100/m", "10/m x2 per 50 succeeded max 1000/m", "10/m x20 per 50 succeeded max 1000/m", "1e10/m", "0/m", "5", "10/m x2 per 50 notified max 5/m"},
	"inFlight":    {"{max: 5}", "{per: site, perMax: 1}", "{}", "{perMax: 0}", "{per: site}", "{max: 5.0}", "{max: 0x10}"},
	"timeout":     {"2h", "0", "0s", "0.0", "169h", "1s", "-1h", "1.5.5h", "99999999999999999999h", "00"},
	"timers":      {"{claim: 24h}", "{reboot: 0}", "{fetch: 1s}", "{health: 15m, install: 1h}", "{claim: soon}"},
	"retry":       {"{attempts: 3, backoff: 10m, on: [silent]}", "{attempts: 2}", "{attempts: 0}", "{on: []}", "{attempts: 2, backoff: 200h}", "{backoff: 0s}", "{attempts: 2, on: [silent, silent]}"},
	"window":      {"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "freq=daily;byhour=2 for 1h", "FREQ=DAILY for 1h", "FREQ=DAILY;BYHOUR=2 for 48h", "for 1h", "FREQ=DAILY;BYHOUR=2 for 1h for 2h", "FREQ=DAILY;BYHOUR=25 for 1h", "FREQ=DAILY;BYHOUR=2 from noon for 1h"},
	"consent":     {"{maxDefers: 3}", "{maxDefers: 3, deadline: 2026-12-24T00:00:00Z}", "{}", "{maxDefers: 3, deadline: 2026-02-30T00:00:00Z}", "{maxDefers: 101}"},
	"strata":      {"[hardware]", "[]", "[a, a]", "[5]", "null"},
	"priority":    {"5", "-5", "0x10", "5.0", "'5'", "5000000000"},
	"seed":        {"spring", "2026", "true", "''", "null"},
	"start":       {"2026-12-01T02:00:00Z", "2026-02-30T02:00:00Z", "2026-12-01", "5", "2026-12-01T02:00:00+25:00", "2026-12-01T2:00:00Z", "2026-12-01T02:00:60Z"},
	"approval":    {"true", "false", "yes", "1"},
	"onPause":     {"let-finish", "hold-before-install", "true"},
	"onAbort":     {"keep", "revert", "''"},
	"drift":       {"requeue", "record", "5"},
	"health":      {"{signals: [crash +1%]}", "{signals: [crash +1%, crash +2%]}", "{signals: [crash +100%]}", "{signals: [offline 0% alpha 60%]}", "{}", "{signals: ['shadow.reported.a.b -5'], watch: 10m}", "{signals: [reboot +1%], wait: 10000h}"},
	"continuous":  {"true", "false", "off"},
	"quarantined": {"true", "false", "~"},
}
