package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/otad/otad/pkg/ota"
)

// planSchema is the JSON schema of a plan file, for editors.
//
//go:embed plan.schema.json
var planSchema []byte

// maxPlanFile is the largest plan file, in bytes.
const maxPlanFile = 1 << 20

// planFile is a rollout plan as people write it. Whatever can be a flag is
// written as the flag takes it.
type planFile struct {
	Firmware    text         `yaml:"firmware"`
	Command     *planCommand `yaml:"command"`
	Select      text         `yaml:"select"`
	Stages      []planStage  `yaml:"stages"`
	Abort       []text       `yaml:"abort"`
	Rate        text         `yaml:"rate"`
	InFlight    planFlight   `yaml:"inFlight"`
	Timeout     loose        `yaml:"timeout"`
	Timers      planTimers   `yaml:"timers"`
	Retry       planRetry    `yaml:"retry"`
	Window      text         `yaml:"window"`
	Consent     *planConsent `yaml:"consent"`
	Strata      []text       `yaml:"strata"`
	Priority    whole        `yaml:"priority"`
	Seed        loose        `yaml:"seed"`
	Start       text         `yaml:"start"`
	Approval    truth        `yaml:"approval"`
	OnPause     text         `yaml:"onPause"`
	OnAbort     text         `yaml:"onAbort"`
	Drift       text         `yaml:"drift"`
	Health      *planHealth  `yaml:"health"`
	Continuous  truth        `yaml:"continuous"`
	Quarantined truth        `yaml:"quarantined"`
}

type planCommand struct {
	Name       text             `yaml:"name"`
	Parameters map[string]loose `yaml:"parameters"`
	Timeout    loose            `yaml:"timeout"`
	MaxOutput  whole            `yaml:"maxOutput"`
}

// command is nil for a plan of firmware.
func (p *planCommand) command(rd *reader) *ota.Command {
	if p == nil {
		return nil
	}
	if p.Name.line == 0 {
		rd.at(rd.begin("command"), "command", errors.New("give its name"))
	}
	limit := rd.duration(p.Timeout, "command: timeout")
	if limit%time.Second != 0 {
		rd.at(p.Timeout.text, "command: timeout", fmt.Errorf("%s: want whole seconds", limit))
	}
	c := &ota.Command{Name: p.Name.value, TimeoutSeconds: int(limit / time.Second), MaxOutputBytes: int(p.MaxOutput)}
	for key, value := range p.Parameters {
		if value.line == 0 {
			rd.at(rd.begin("command.parameters."+key), "command: parameter "+key, errNoValue)
		}
		if c.Parameters == nil {
			c.Parameters = map[string]string{}
		}
		c.Parameters[key] = value.value
	}
	rd.at(p.Name, "command", c.ValidateOrder())
	return c
}

type planStage struct {
	Size     loose `yaml:"size"`
	Select   text  `yaml:"select"`
	Gate     text  `yaml:"gate"`
	Soak     loose `yaml:"soak"`
	Approval truth `yaml:"approval"`
}

type planFlight struct {
	Max    whole `yaml:"max"`
	Per    text  `yaml:"per"`
	PerMax whole `yaml:"perMax"`
}

type planTimers struct {
	Claim   loose `yaml:"claim"`
	Fetch   loose `yaml:"fetch"`
	Install loose `yaml:"install"`
	Reboot  loose `yaml:"reboot"`
	Health  loose `yaml:"health"`
}

type planRetry struct {
	Attempts whole  `yaml:"attempts"`
	Backoff  loose  `yaml:"backoff"`
	On       []text `yaml:"on"`
}

type planConsent struct {
	MaxDefers *whole `yaml:"maxDefers"`
	Deadline  text   `yaml:"deadline"`
}

type planHealth struct {
	Signals []text `yaml:"signals"`
	Watch   loose  `yaml:"watch"`
	Wait    loose  `yaml:"wait"`
	OnFail  text   `yaml:"onFail"`
}

func (p *planHealth) terms(rd *reader) ota.Health {
	if p == nil {
		return ota.Health{}
	}
	h := ota.Health{Watch: rd.duration(p.Watch, "health: watch"), Wait: rd.duration(p.Wait, "health: wait"), OnFail: ota.HealthPolicy(p.OnFail.value)}
	for _, t := range p.Signals {
		s, err := ota.ParseSignal(t.value)
		rd.at(t, "health", err)
		h.Signals = append(h.Signals, s)
	}
	if !h.Set() {
		rd.at(rd.begin("health"), "health", errors.New("without a signal: say what to compare, as in signals: ['crash +1%']"))
	}
	return h
}

// readPlan reads a plan file; "-" is standard input.
func (a *app) readPlan(path string) (ota.Rollout, planLines, error) {
	b, err := a.readLimited(path, maxPlanFile)
	if err != nil {
		return ota.Rollout{}, planLines{}, err
	}
	r, lines, err := parsePlan(b)
	if err != nil {
		return r, lines, hint(usage("%s: %w", path, err), hintSchema)
	}
	lines.file = path
	return r, lines, nil
}

// hintSchema is the remedy for a plan file that is wrong.
const hintSchema = "otactl rollout schema prints the schema of plan files"

func (a *app) readLimited(path string, limit int64) ([]byte, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, usage("%s is over %d bytes", path, limit)
	}
	return b, err
}

// parsePlan reads a plan, and where it says what; its errors begin with the line. The
// rules of plans are not asked, see ota.Rollout.Validate.
func parsePlan(b []byte) (ota.Rollout, planLines, error) {
	var p planFile
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&p); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the plan is empty")
		}
		return ota.Rollout{}, planLines{}, readable(err)
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return ota.Rollout{}, planLines{}, errors.New("more than one document: write one plan to a file")
	}
	lines := newPlanLines(b)
	if lines.root != nil {
		if err := filled(lines.root, "the plan"); err != nil {
			return ota.Rollout{}, planLines{}, err
		}
	}
	r, err := p.rollout(lines)
	return r, lines, err
}

var errNoValue = errors.New("has no value: give one, or leave it out")

// filled reports what has no value: it would count as left out, and who wrote it meant
// it to bind.
func filled(n *yaml.Node, name string) error {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Value == "" || n.ShortTag() == "!!null" {
			return fmt.Errorf("line %d: %s %w", n.Line, name, errNoValue)
		}
	case yaml.SequenceNode:
		for _, one := range n.Content {
			if err := filled(one, name); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if key.Value == "parameters" && value.Kind == yaml.MappingNode { // of a command, which may be empty texts
				continue
			}
			if err := filled(value, key.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// otherShape is what the parser says of one value in place of a list or a mapping, or
// of one of these in place of the other.
var otherShape = regexp.MustCompile("(?s)cannot unmarshal !\\S+ (`.*?` )?into (\\S+)")

// readable leaves out what only a programmer of the parser understands.
func readable(err error) error {
	s := strings.TrimPrefix(err.Error(), "yaml: ")
	s = strings.TrimPrefix(strings.TrimPrefix(s, "unmarshal errors:\n"), "  ")
	s = otherShape.ReplaceAllStringFunc(s, func(said string) string {
		part := otherShape.FindStringSubmatch(said)
		value := strings.Replace(part[1], "` ", "`: ", 1)
		if strings.HasPrefix(part[2], "[]") {
			return value + "want a list, as in [A, B], or with - before each"
		}
		return value + "want keys with values, as in {key: value}"
	})
	s = strings.ReplaceAll(s, "not found in type main.", "is not known in ")
	for _, name := range []string{"planFile", "planCommand", "planStage", "planFlight", "planTimers", "planRetry", "planConsent", "planHealth"} {
		s = strings.ReplaceAll(s, name, "a "+strings.ToLower(strings.TrimPrefix(name, "plan")))
	}
	return errors.New(strings.ReplaceAll(s, "known in a file", "known in a plan"))
}

// reader notes the first error with its line.
type reader struct {
	lines planLines
	err   error
}

func (r *reader) at(t text, what string, err error) {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("line %d: %s: %w", t.line, what, err)
	}
}

// begin is where a part of the plan begins.
func (r *reader) begin(field string) text { return text{line: r.lines.line(field)} }

func (r *reader) duration(t loose, what string) time.Duration {
	if t.value == "" {
		return 0
	}
	d, err := time.ParseDuration(t.value)
	if err == nil && strings.ContainsAny(t.value, "+-") {
		err = fmt.Errorf("%q: want a duration without a sign, such as 90s", t.value)
	}
	r.at(t.text, what, err)
	return d
}

// strictTime is RFC 3339; the standard library takes an hour of one digit too.
var strictTime = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})$`)

func (r *reader) time(t text, what string) time.Time {
	if t.value == "" {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339, t.value)
	if err == nil && !strictTime.MatchString(t.value) {
		err = fmt.Errorf("%q: want a time such as 2026-12-01T02:00:00+01:00", t.value)
	}
	r.at(t, what, err)
	return at
}

func (p planFile) rollout(lines planLines) (ota.Rollout, error) {
	rd := reader{lines: lines}
	r := ota.Rollout{Selector: p.Select.value, Seed: p.Seed.value, Priority: int(p.Priority), InProgressTimeout: rd.duration(p.Timeout, "timeout")}
	if p.Firmware.value != "" {
		id, err := ota.ParseReleaseID(p.Firmware.value)
		rd.at(p.Firmware, "firmware", err)
		r.Release = id
	}
	sizes, otherwise := defaultStages, ota.Stage{State: ota.StagePending, Gate: ota.Gate{Success: defaultGate}, Soak: defaultSoak}
	if r.Command = p.Command.command(&rd); r.Command != nil {
		sizes, otherwise = defaultCommandStages, ota.Stage{State: ota.StagePending} // as the flags have it
		if p.Firmware.value != "" {
			rd.at(p.Firmware, "firmware", errors.New("and a command: make two plans"))
		}
		for _, t := range []loose{p.Timers.Fetch, p.Timers.Install, p.Timers.Reboot, p.Timers.Health} {
			if t.line > 0 {
				rd.at(t.text, "timers", errors.New("those of fetch, install, reboot and health are of an install: a command has a claim timer and its time-outs"))
			}
		}
	}
	if p.Stages == nil {
		stages, err := ota.ParseStages(sizes, otherwise.Gate, otherwise.Soak)
		rd.at(rd.begin("stages"), "stages", err)
		r.Stages = stages
	}
	for i, s := range p.Stages {
		r.Stages = append(r.Stages, s.stage(&rd, i+1, otherwise))
	}
	if p.Abort == nil && r.Command == nil {
		p.Abort = []text{{value: defaultAbort}}
	}
	for _, t := range p.Abort {
		rule, err := ota.ParseAbortRule(t.value)
		rd.at(t, "abort", err)
		r.Abort = append(r.Abort, rule)
	}
	r.Terms = p.terms(&rd)
	if r.Command != nil {
		setDefault(&r.Terms.Timers.Claim, p.Timers.Claim, defaultClaim)
	} else {
		setDefault(&r.Terms.Timers.Reboot, p.Timers.Reboot, ota.DefaultTimers.Reboot)
		setDefault(&r.Terms.Timers.Health, p.Timers.Health, ota.DefaultTimers.Health)
	}
	return r, rd.err
}

// setDefault gives a value that the file does not.
func setDefault(to *time.Duration, written loose, otherwise time.Duration) {
	if written.line == 0 {
		*to = otherwise
	}
}

// stage is the stage of that number, otherwise as the given one.
func (s planStage) stage(rd *reader, number int, otherwise ota.Stage) ota.Stage {
	what := fmt.Sprintf("stage %d", number)
	at := s.Size.text
	if at.line == 0 {
		at = s.Select
	}
	if at.line == 0 {
		at = rd.begin(fmt.Sprintf("stages[%d]", number-1))
	}
	stage := otherwise
	stage.Approval = bool(s.Approval)
	if s.Soak.value != "" {
		stage.Soak = rd.duration(s.Soak, what+": soak")
	}
	switch {
	case (s.Size.value == "") == (s.Select.value == ""):
		rd.at(at, what, errors.New("give either size or select"))
	case s.Select.value != "":
		stage.Size.Selector = s.Select.value
	default:
		sizes, err := ota.ParseStages(s.Size.value, ota.Gate{}, 0)
		if err == nil && len(sizes) != 1 {
			err = errors.New("one size for each stage")
		}
		if rd.at(at, what, err); err == nil {
			stage.Size = sizes[0].Size
		}
	}
	if s.Gate.value != "" {
		gate, err := ota.ParseGate(s.Gate.value)
		rd.at(s.Gate, what, err)
		stage.Gate = gate
	}
	return stage
}

// What binds an install that does not say, by flags and in a plan file.
const (
	defaultStages = "10%,50%,100%"
	defaultGate   = 0.95 // share that must succeed in a stage
	defaultSoak   = time.Minute
	defaultAbort  = "any>10% min 3"
)

// defaultCommandStages are those of a command that does not say: all of its devices.
const defaultCommandStages = "100%"

func (p planFile) terms(rd *reader) ota.Terms {
	t := ota.Terms{
		Approval: bool(p.Approval), Quarantined: bool(p.Quarantined), OnPause: ota.PausePolicy(p.OnPause.value), OnAbort: ota.AbortPolicy(p.OnAbort.value), Health: p.Health.terms(rd), Start: rd.time(p.Start, "start"),
		Drift: ota.DriftPolicy(p.Drift.value), Continuous: bool(p.Continuous),
		InFlight: ota.InFlight{Max: int(p.InFlight.Max), Per: p.InFlight.Per.value, PerMax: int(p.InFlight.PerMax)},
		Timers: ota.Timers{
			Claim: rd.duration(p.Timers.Claim, "timers: claim"), Fetch: rd.duration(p.Timers.Fetch, "timers: fetch"),
			Install: rd.duration(p.Timers.Install, "timers: install"), Reboot: rd.duration(p.Timers.Reboot, "timers: reboot"),
			Health: rd.duration(p.Timers.Health, "timers: health"),
		},
		Retry: ota.Retry{Attempts: int(p.Retry.Attempts), Backoff: rd.duration(p.Retry.Backoff, "retry: backoff")},
	}
	for _, s := range p.Strata {
		t.Strata = append(t.Strata, s.value)
	}
	if t.Retry.Attempts < 2 && (p.Retry.Backoff.line > 0 || p.Retry.On != nil) {
		rd.at(rd.begin("retry"), "retry", errors.New("it needs at least 2 attempts, with the first"))
	}
	for _, class := range p.Retry.On {
		t.Retry.On = append(t.Retry.On, ota.Class(class.value))
	}
	if p.Rate.value != "" {
		rate, err := ota.ParseRate(p.Rate.value)
		rd.at(p.Rate, "rate", err)
		t.Rate = rate
	}
	if p.Window.value != "" {
		window, err := ota.ParseWindow(p.Window.value)
		rd.at(p.Window, "window", err)
		t.Window = window
	}
	if c := p.Consent; c != nil && c.MaxDefers != nil {
		t.Consent = &ota.Consent{MaxDefers: int(*c.MaxDefers), Deadline: rd.time(c.Deadline, "consent: deadline")}
	} else if c != nil {
		rd.at(rd.begin("consent"), "consent", errors.New("give maxDefers: how often people may put it off"))
	}
	return t
}
