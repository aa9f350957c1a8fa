package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// planView is what a rollout would do.
type planView struct {
	Firmware   string             `json:"firmware"`
	Command    *commandView       `json:"command,omitempty"`
	Selector   string             `json:"selector"`
	Continuous bool               `json:"continuous,omitempty"` // devices join it later
	Seed       string             `json:"seed"`
	Population int32              `json:"population"`
	Bytes      int64              `json:"bytes"`              // that all devices download at the most
	Duration   string             `json:"duration,omitempty"` // that rate and soak take at the least
	Stages     []plannedStageView `json:"stages"`
	Paths      []plannedPathView  `json:"paths,omitempty"` // how devices come to the release; absent: all at once, whatever they run
	Excluded   []exclusionView    `json:"excluded"`
	Conflicts  []conflictView     `json:"conflicts"`
}

// plannedPathView is devices that come to the release the same way.
type plannedPathView struct {
	Via     []string `json:"via"` // releases that they pass through, in order
	Devices int32    `json:"devices"`
	Sample  []string `json:"sample"` // the first of them
}

// conflictView is another rollout that has work for devices of a plan, or is going to.
type conflictView struct {
	Rollout    string `json:"rollout"`
	Firmware   string `json:"firmware"`
	Priority   int32  `json:"priority"`
	Devices    int32  `json:"devices"`
	Supersedes bool   `json:"supersedes"` // it makes way there: what waits is cancelled
	First      bool   `json:"first"`      // it comes first there; else the plan does
	why        string
}

type plannedStageView struct {
	Size    string   `json:"size"`
	Gate    string   `json:"gate"`
	Soak    string   `json:"soak"`
	Target  int32    `json:"target"`  // cumulative
	Devices int32    `json:"devices"` // new in this stage
	Sample  []string `json:"sample"`  // the first of them
	// Strata are the devices of the stage by stratum; absent without --strata.
	Strata map[string]int32 `json:"strata,omitempty"`
}

type exclusionView struct {
	Reason  string   `json:"reason"`           // not-selected, hardware, current, quarantined, revoked, needs-version
	Detail  string   `json:"detail,omitempty"` // what is missing, and the remedy
	Devices int32    `json:"devices"`
	Sample  []string `json:"sample"`
}

func newPlanView(spec *otadv1.RolloutSpec, p *otadv1.PlanRolloutResponse) planView {
	v := planView{
		Firmware: spec.GetFirmware(), Command: newCommandView(spec.GetCommand()), Selector: spec.GetSelector(), Continuous: spec.GetContinuous(), Seed: p.GetSeed(), Population: p.GetPopulation(), Bytes: p.GetBytes(),
		Stages: []plannedStageView{}, Excluded: []exclusionView{}, Conflicts: []conflictView{},
	}
	if d := p.GetDuration().AsDuration(); d > 0 {
		v.Duration = d.Round(time.Second).String()
	}
	for _, c := range p.GetConflicts() {
		v.Conflicts = append(v.Conflicts, newConflictView(spec, c))
	}
	for _, s := range p.GetStages() {
		v.Stages = append(v.Stages, plannedStageView{
			Size: sizeText(s.GetSpec()), Gate: gateText(s.GetSpec().GetGate()), Soak: soakText(s.GetSpec().GetSoak()),
			Target: s.GetTarget(), Devices: s.GetDevices(), Sample: append([]string{}, s.GetSample()...), Strata: s.GetStrata(),
		})
	}
	for _, e := range p.GetExcluded() {
		v.Excluded = append(v.Excluded, exclusionView{Reason: e.GetReason(), Detail: e.GetDetail(), Devices: e.GetDevices(), Sample: append([]string{}, e.GetSample()...)})
	}
	for _, path := range p.GetPaths() {
		v.Paths = append(v.Paths, plannedPathView{append([]string{}, path.GetVia()...), path.GetDevices(), append([]string{}, path.GetSample()...)})
	}
	return v
}

// newConflictView says who comes first: what makes way does not; else who has the higher
// priority, and of two that have the same the older, which is not the plan.
func newConflictView(spec *otadv1.RolloutSpec, c *otadv1.Conflict) conflictView {
	v := conflictView{Rollout: c.GetRolloutId(), Firmware: c.GetFirmware(), Priority: c.GetPriority(), Devices: c.GetDevices(), Supersedes: c.GetSupersedes()}
	switch own := spec.GetPriority(); {
	case v.Supersedes:
		v.why = "makes way: what has not begun there is cancelled"
	case v.Priority > own:
		v.First, v.why = true, fmt.Sprintf("comes first: it has priority %d, this plan %d", v.Priority, own)
	case v.Priority < own:
		v.why = fmt.Sprintf("comes after this plan: it has priority %d, this plan %d", v.Priority, own)
	default:
		v.First, v.why = true, "comes first: it is older, of the same priority"
	}
	return v
}

// exclusionWords says what a reason means.
var exclusionWords = map[string]string{
	"not-selected": "the selector does not match",
	"hardware":     "the release is for other hardware",
	"current":      "runs this release already",
	"quarantined":  "tried this image, or one on the way to it, and went back; --quarantined lets it in",
	"revoked":      "is revoked",
	// needs-version has a detail
}

func (p planView) download() string {
	if p.Command != nil {
		return ""
	}
	return "at most " + exactSize(p.Bytes) + " in all"
}

func (a *app) printPlan(p planView) error {
	return printOne(a, p, first(p.Firmware, p.Command.text()), func(w io.Writer) error {
		err := writeFields(w, []field{
			{"Firmware", p.Firmware},
			{"Command", p.Command.text()},
			{"Selector", first(p.Selector, rolloutView{Command: p.Command}.everyone())},
			{"Devices", p.devices()},
			{"Download", p.download()},
			{"Takes", prefixed("at least ", p.Duration)},
			{"Seed", p.Seed},
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(w)
		if err := writeTable(w, []string{"STAGE", "SIZE", "DEVICES", "TOTAL", "GATE", "SOAK", "FIRST"}, p.stageRows()); err != nil {
			return err
		}
		if len(p.Paths) > 0 {
			fmt.Fprintln(w)
			if err := writeTable(w, []string{"DEVICES", "PASS THROUGH", "SUCH AS"}, p.pathRows()); err != nil {
				return err
			}
		}
		if len(p.Excluded) > 0 {
			fmt.Fprintln(w)
			if err := writeTable(w, []string{"LEFT OUT", "WHY", "MEANING", "SUCH AS"}, p.excludedRows()); err != nil {
				return err
			}
		}
		if len(p.Conflicts) == 0 {
			return nil
		}
		fmt.Fprintln(w)
		return writeTable(w, []string{"ALSO HAS THEM", "FIRMWARE", "DEVICES", "WHAT HAPPENS"}, p.conflictRows())
	})
}

// devices says how many there are, and that a continuous plan has no end of them.
func (p planView) devices() string {
	if p.Continuous {
		return number(p.Population) + " now; continuous: those that come to match join the last stage, and it ends by otactl rollout finish"
	}
	return number(p.Population)
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func (p planView) conflictRows() [][]string {
	var rows [][]string
	for _, c := range p.Conflicts {
		rows = append(rows, []string{c.Rollout, c.Firmware, number(c.Devices), c.why})
	}
	return rows
}

func (p planView) stageRows() [][]string {
	var rows [][]string
	for i, s := range p.Stages {
		rows = append(rows, []string{
			strconv.Itoa(i + 1), s.Size, number(s.Devices), number(s.Target), s.Gate, s.Soak, sample(s.Sample, int(s.Devices)),
		})
		for _, stratum := range slices.Sorted(maps.Keys(s.Strata)) {
			rows = append(rows, []string{"", "", number(s.Strata[stratum]), "", "", "", "of " + first(stratum, "(none)")})
		}
	}
	return rows
}

func (p planView) pathRows() [][]string {
	var rows [][]string
	for _, path := range p.Paths {
		rows = append(rows, []string{number(path.Devices), first(strings.Join(path.Via, ", then "), "nothing: they take it at once"), sample(path.Sample, int(path.Devices))})
	}
	return rows
}

func (p planView) excludedRows() [][]string {
	var rows [][]string
	for _, e := range p.Excluded {
		rows = append(rows, []string{number(e.Devices), e.Reason, first(e.Detail, exclusionWords[e.Reason]), sample(e.Sample, int(e.Devices))})
	}
	return rows
}

// sample writes the first three ids and how many more there are.
func sample(ids []string, total int) string {
	const shown = 3
	text := strings.Join(ids[:min(len(ids), shown)], " ")
	if more := total - shown; more > 0 && text != "" {
		text += fmt.Sprintf(" +%d", more)
	}
	return text
}
