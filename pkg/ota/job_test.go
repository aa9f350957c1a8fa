package ota

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestJobDocument(t *testing.T) {
	id, err := ParseReleaseID("gw@1.0")
	if err != nil {
		t.Fatal(err)
	}
	good := NewJobDocument(id, 1)
	if err := good.Validate(); err != nil || good.Target != "gw/1.0.idx" {
		t.Fatalf("%+v: %v", good, err)
	}
	b, err := json.Marshal(good)
	if want := `{"operation":"install","name":"gw","version":"1.0","target":"gw/1.0.idx","attempt":1}`; err != nil || string(b) != want {
		t.Errorf("%s: %v", b, err)
	}
	r := rollout(StagePending)
	r.Release, r.Terms.Quarantined = id, true
	b, err = json.Marshal(JobOf(Execution{Attempt: 1}.Under(r)))
	if want := `{"operation":"install","name":"gw","version":"1.0","target":"gw/1.0.idx","attempt":1,"quarantined":true}`; err != nil || string(b) != want {
		t.Errorf("%s: %v", b, err)
	}
	good.Window = Window{RRule: "FREQ=DAILY;BYHOUR=2", Duration: 3600}
	good.Consent = &Consent{}
	good.Notes = strings.Repeat("n", MaxNotesBytes)
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, breakIt := range map[string]func(*JobDocument){
		"this agent knows install and command": func(d *JobDocument) { d.Operation = "reboot" },
		"does not belong":                      func(d *JobDocument) { d.Target = "gw/2.0.idx" },
		"counted from 1":                       func(d *JobDocument) { d.Attempt = 0 },
		"firmware name":                        func(d *JobDocument) { d.Name = "" },
		"has no command":                       func(d *JobDocument) { d.Command = &Command{Name: "x"} },
		"at most 4096":                         func(d *JobDocument) { d.Notes += "n" },
		"want a text":                          func(d *JobDocument) { d.Notes = "\xff" },
		"101 deferrals":                        func(d *JobDocument) { d.Consent = &Consent{MaxDefers: MaxDefers + 1} },
		"-1 deferrals":                         func(d *JobDocument) { d.Consent = &Consent{MaxDefers: -1} },
		"never opens":                          func(d *JobDocument) { d.Window.RRule = "FREQ=DAILY;BYHOUR=2;UNTIL=19800101" },
		"has a command and no release":         func(d *JobDocument) { d.Operation = OperationCommand },
	} {
		d := good
		breakIt(&d)
		if err := d.Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommandDocument(t *testing.T) {
	command := func() Command {
		return Command{Name: "set-level", Parameters: map[string]string{"level": "3"}, TimeoutSeconds: 86400, MaxOutputBytes: MaxCommandOutput}
	}
	good := NewCommandDocument(command(), 2)
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(good)
	want := `{"operation":"command","attempt":2,"command":{"name":"set-level","parameters":{"level":"3"},"timeoutSeconds":86400,"maxOutputBytes":6144}}`
	if err != nil || string(b) != want {
		t.Errorf("%s: %v", b, err)
	}
	var again JobDocument
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(again, good) {
		t.Errorf("%+v: %v", again, err)
	}
	logs := NewCommandDocument(Command{Name: CommandCollectLogs, UploadURL: "https://otad.example:8444/uploads/1"}, 1)
	if err := logs.Validate(); err != nil {
		t.Error(err)
	}
	for name, breakIt := range map[string]func(*Command){
		`command "a b"`:                func(c *Command) { c.Name = "a b" },
		"17 parameters":                func(c *Command) { c.Parameters = parameters(MaxCommandParameters + 1) },
		`parameter "a-"`:               func(c *Command) { c.Parameters = map[string]string{"a-": ""} },
		"at most 256":                  func(c *Command) { c.Parameters["level"] = strings.Repeat("x", MaxParameterBytes+1) },
		"parameter level: want a text": func(c *Command) { c.Parameters["level"] = "\xff" },
		"-1 seconds":                   func(c *Command) { c.TimeoutSeconds = -1 },
		"86401 seconds":                func(c *Command) { c.TimeoutSeconds = 86401 },
		"6145 bytes":                   func(c *Command) { c.MaxOutputBytes = MaxCommandOutput + 1 },
		"-1 bytes":                     func(c *Command) { c.MaxOutputBytes = -1 },
		"others have none":             func(c *Command) { c.UploadURL = "https://h/" },
		"collect-logs needs one":       func(c *Command) { c.Name = CommandCollectLogs },
		"want https":                   func(c *Command) { c.Name, c.UploadURL = CommandCollectLogs, "http://h/" },
		"want https, a host":           func(c *Command) { c.Name, c.UploadURL = CommandCollectLogs, "https://u:p@h/" },
	} {
		c := command()
		breakIt(&c)
		if err := NewCommandDocument(c, 1).Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := (Command{}); c.Timeout() != time.Minute || c.OutputLimit() != 2048 {
		t.Errorf("defaults: %s, %d", c.Timeout(), c.OutputLimit())
	}
	if c := command(); c.Timeout() != 24*time.Hour || c.OutputLimit() != 6144 {
		t.Errorf("given: %s, %d", c.Timeout(), c.OutputLimit())
	}
}

func parameters(n int) map[string]string {
	all := map[string]string{}
	for i := range n {
		all[fmt.Sprintf("p%d_%s", i, strings.Repeat("k", 60))] = strings.Repeat("\x01", MaxParameterBytes)
	}
	return all
}

// TestLongestJobDocuments: what is valid fits, however it is escaped.
func TestLongestJobDocuments(t *testing.T) {
	install := NewJobDocument(ReleaseID{Name: strings.Repeat("n", 63), Version: strings.Repeat("v", 63)}, math.MaxInt)
	install.Notes = strings.Repeat("\x01", MaxNotesBytes)
	install.Window = Window{RRule: strings.Repeat("R", MaxRuleBytes), Start: layoutStart, Duration: math.MaxInt64, Fetch: FetchAnytime}
	install.Hold, install.Quarantined, install.Consent = true, true, &Consent{MaxDefers: MaxDefers, Deadline: time.Now()}
	command := NewCommandDocument(Command{Name: strings.Repeat("n", 63), Parameters: parameters(MaxCommandParameters), UploadURL: strings.Repeat("u", MaxUploadURLBytes)}, math.MaxInt)
	for _, d := range []JobDocument{install, command} {
		b, err := json.Marshal(d)
		if err != nil || len(b) > MaxJobDocumentBytes {
			t.Errorf("%s has %d bytes: %v", d.Operation, len(b), err)
		}
	}
}

func TestConsentAsks(t *testing.T) {
	now := time.Date(2026, 11, 28, 2, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		consent Consent
		defers  int
		want    bool
	}{
		{Consent{}, 0, false},
		{Consent{MaxDefers: 2}, 1, true},
		{Consent{MaxDefers: 2}, 2, false},
		{Consent{MaxDefers: 2, Deadline: now.Add(time.Second)}, 0, true},
		{Consent{MaxDefers: 2, Deadline: now}, 0, false},
		{DefaultConsent, 9, true},
	} {
		if got := c.consent.Asks(c.defers, now); got != c.want {
			t.Errorf("%+v after %d: %v", c.consent, c.defers, got)
		}
	}
}
