package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// RolloutPreview says what a rollout would do.
type RolloutPreview struct {
	Rollout    ota.Rollout
	Population int
	Stages     []StagePreview
	Paths      []PathPreview // none: every device takes the release at once, whatever it runs
	Excluded   []Exclusion
	Conflicts  []Conflict
	Bytes      int64         // that all devices together download at the most
	Duration   time.Duration // that rate and soak take at the least
}

// StagePreview is one stage of a preview.
type StagePreview struct {
	Target  int            // cumulative
	Devices int            // new in this stage
	Strata  map[string]int // its devices by stratum; nil without strata
	Sample  []string       // the first of them
}

// PathPreview counts devices that come to the release the same way.
type PathPreview struct {
	Via     []ota.ReleaseID // that they pass through, in order; none: they take it at once
	Devices int
	Sample  []string
}

// Exclusion counts devices that the rollout would leave out, for one reason.
type Exclusion struct {
	Reason  string
	Detail  string // what the reason leaves open, with the remedy; may be empty
	Devices int
	Sample  []string
}

// previewSample is how many device ids a preview shows for each stage or reason.
const previewSample = 10

// PlanRollout says what CreateRollout would do with r (Release or Command, Selector,
// Seed, Stages, Abort, Priority and Terms set), and changes nothing. ErrNoDevices when
// no device is eligible, ErrUntagged when none has a tag that the plan goes by, ErrUnsigned
// when the release is not signed, ErrOutranked when a rollout of a higher priority has
// another release of the firmware for its devices.
func (s *Service) PlanRollout(ctx context.Context, r ota.Rollout) (RolloutPreview, error) {
	r, err := s.prepare(r)
	if err != nil {
		return RolloutPreview{}, err
	}
	if err := s.possible(ctx, r); err != nil {
		return RolloutPreview{}, err
	}
	j, err := s.judgeOf(ctx, r)
	if err != nil {
		return RolloutPreview{}, err
	}
	j.rollout.Terms.InFlight = ota.InFlight{} // lanes are not shown, and of some fleets there are many
	// A command on one device must not count the fleet.
	excluded, line, err := s.survey(ctx, j, r.Kind() == ota.KindInstall)
	if err == nil {
		err = untagged(r, j, line)
	}
	if err != nil {
		return RolloutPreview{}, err
	}
	p := RolloutPreview{Rollout: r, Population: line.Len(), Excluded: excluded, Stages: make([]StagePreview, len(r.Stages))}
	reached, paths := newReach(line), pathPreviews{routes: j.routes}
	stages, err := line.Arrange(r.Stages, func(t ota.Turn) error {
		reached.is[t.Number()] = true
		p.Stages[t.Stage].add(t)
		paths.add(t)
		return nil
	})
	if err != nil {
		return p, err
	}
	for i, stage := range stages {
		p.Stages[i].finish(r, stage)
		if p.Stages[i].Devices > 0 { // else there is nothing to soak
			p.Duration += stage.Soak
		}
	}
	if j.ways != nil {
		p.Paths = paths.list
	}
	installs := 0
	if p.Bytes, installs, err = s.load(ctx, j, stages[len(stages)-1].Target, p.Paths); err != nil {
		return p, err
	}
	p.Duration += r.Terms.Rate.Least(installs)
	if r.Kind() == ota.KindInstall { // a command comes first, and takes nobody's place
		p.Conflicts, err = s.conflicts(ctx, r, reached)
	}
	if err == nil {
		err = outranked(r, p.Conflicts)
	}
	return p, err
}

// add counts a device of the stage.
func (p *StagePreview) add(t ota.Turn) {
	p.Devices++
	if len(p.Sample) < previewSample {
		p.Sample = append(p.Sample, t.DeviceID())
	}
	if p.Strata == nil {
		p.Strata = map[string]int{}
	}
	p.Strata[t.Stratum()]++
}

// finish is for when all were added.
func (p *StagePreview) finish(r ota.Rollout, stage ota.Stage) {
	counted := p.Strata
	p.Target, p.Strata = stage.Target, nil
	if len(r.Terms.Strata) == 0 {
		return
	}
	p.Strata = map[string]int{}
	for stratum, n := range counted {
		p.Strata[strings.ReplaceAll(stratum, "\x00", " ")] += n
	}
}

// pathPreviews are the paths of candidates, in the order in which the first of each
// gets its turn.
type pathPreviews struct {
	routes *routes
	list   []PathPreview
	at     map[uint32]int
}

// add counts a device.
func (p *pathPreviews) add(t ota.Turn) {
	i, ok := p.at[t.Path()]
	if !ok {
		if p.at == nil {
			p.at = map[uint32]int{}
		}
		i = len(p.list)
		p.at[t.Path()], p.list = i, append(p.list, PathPreview{Via: p.routes.via[t.Path()]})
	}
	path := &p.list[i]
	path.Devices++
	if len(path.Sample) < previewSample {
		path.Sample = append(path.Sample, t.DeviceID())
	}
}

// load is how many bytes so many devices that go these paths download at the most, all
// together, and how many installs they make; a command is as many, and downloads
// nothing.
func (s *Service) load(ctx context.Context, j judge, devices int, paths []PathPreview) (bytes int64, installs int, err error) {
	bytes, installs = int64(devices)*(j.release.ObjectSize+j.release.IndexSize), devices
	for _, p := range paths {
		for _, id := range p.Via {
			r, err := s.Store.Release(ctx, id)
			if err != nil {
				return 0, 0, err
			}
			bytes += int64(p.Devices) * (r.ObjectSize + r.IndexSize)
			installs += p.Devices
		}
	}
	return bytes, installs, nil
}

// survey returns the devices that a rollout may reach, and why others
// are left out: if there is none, or if told, also those that are not looked at one by
// one. ErrNoDevices: there is none.
func (s *Service) survey(ctx context.Context, j judge, all bool) ([]Exclusion, *ota.Line, error) {
	by := map[string]*Exclusion{}
	line, err := s.candidates(ctx, j, func(why string, d Surveyed) { exclude(by, why, j.detail(why, d), d.ID) })
	if err == nil && (all || line.Len() == 0) {
		err = s.unselected(ctx, j.selector, by)
	}
	if err != nil {
		return nil, nil, err
	}
	var excluded []Exclusion
	for _, why := range slices.Sorted(maps.Keys(by)) {
		excluded = append(excluded, *by[why])
	}
	if line.Len() == 0 && !j.rollout.Terms.Continuous { // somebody may yet join that one
		return nil, nil, noDevices(j.rollout, excluded)
	}
	if err := emptyStage(j.rollout, line); err != nil || line.Len() == 0 {
		return excluded, line, err
	}
	return excluded, line, s.tellNumbers(ctx, j)
}

// untagged refuses a plan that tells devices apart by a tag that none of them has, as one
// that is misspelt: all would be of one stratum, or share one bound.
func untagged(r ota.Rollout, j judge, line *ota.Line) error {
	none := func(key string) bool {
		n, asked := j.tagged[key]
		return asked && n == 0 && line.Len() > 0
	}
	refuse := func(field, key, flag string) error {
		return ota.AtField(field, fmt.Errorf("%w: no device of it (of %d) has the tag %s, by which %s tells them apart; correct the key, leave it out, or tag the devices: otactl device tag ID %[3]s=VALUE",
			ErrUntagged, line.Len(), key, flag))
	}
	for i, key := range r.Terms.Strata {
		if none(key) {
			return refuse(fmt.Sprintf("strata[%d]", i), key, "strata (--strata)")
		}
	}
	if key := r.Terms.InFlight.Per; none(key) {
		return refuse("inFlight.per", key, "the bound in flight (--max-per)")
	}
	return nil
}

// emptyStage refuses a plan with a stage that is a selector and would get no device: it
// would prove nothing, which nobody means who writes one.
func emptyStage(r ota.Rollout, line *ota.Line) error {
	if !slices.ContainsFunc(r.Stages, func(s ota.Stage) bool { return s.Size.Selector != "" }) {
		return nil
	}
	stages, err := line.Arrange(r.Stages, func(ota.Turn) error { return nil })
	if err != nil {
		return err
	}
	before := 0
	for i, s := range stages {
		if s.Size.Selector != "" && s.Target == before {
			return ota.AtField(fmt.Sprintf("stages[%d].select", i), fmt.Errorf("%w: stage %d means no device that the rollout reaches and that no stage before it has; correct its selector, or leave the stage out", ErrNoDevices, i+1))
		}
		before = s.Target
	}
	return nil
}

func exclude(excluded map[string]*Exclusion, why, detail, id string) {
	e := excluded[why+detail]
	if e == nil {
		e = &Exclusion{Reason: why, Detail: detail}
		excluded[why+detail] = e
	}
	e.Devices++
	if len(e.Sample) < previewSample {
		e.Sample = append(e.Sample, id)
	}
}

// unselected counts the devices that are not looked at one by one: those that
// are revoked, and those that the selector does not mean.
func (s *Service) unselected(ctx context.Context, sel selector.Selector, excluded map[string]*Exclusion) error {
	no, yes := false, true
	queries := map[string]DeviceQuery{ExcludedRevoked: {Revoked: &yes}}
	if !sel.All() {
		queries[ExcludedSelector] = DeviceQuery{Selector: sel.Not(), Revoked: &no}
	}
	for why, q := range queries {
		n, err := s.Store.CountDevices(ctx, q)
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		err = s.Store.SelectDevices(ctx, q, func(v DeviceView) bool {
			exclude(excluded, why, "", v.ID)
			return len(excluded[why].Sample) < previewSample
		})
		if err != nil {
			return err
		}
		if e := excluded[why]; e != nil {
			e.Devices = max(n, len(e.Sample))
		}
	}
	return nil
}

func noDevices(r ota.Rollout, excluded []Exclusion) error {
	text := "no device is eligible for " + whatOf(r)
	for _, e := range excluded {
		text += fmt.Sprintf("; %d %s", e.Devices, map[string]string{
			ExcludedSelector: "not selected", ExcludedHardware: "of other hardware",
			ExcludedCurrent: "run it already", ExcludedRevoked: "revoked", ExcludedQuarantined: "tried this image, or one on the way to it, and went back",
			ExcludedVersion: "do not run what it needs",
		}[e.Reason])
		if e.Detail != "" {
			text += ": " + e.Detail
		}
	}
	if len(excluded) == 0 {
		text += "; no device is enrolled"
	}
	return ota.AtField(emptiedBy(r, excluded), fmt.Errorf("%w: %s", ErrNoDevices, text))
}

// emptiedBy is the part of the plan that leaves nobody: the selector, unless it means
// devices that the release is not for, or none is left out.
func emptiedBy(r ota.Rollout, excluded []Exclusion) string {
	fits := func(e Exclusion) bool { return e.Reason == ExcludedSelector || e.Reason == ExcludedRevoked }
	switch bySelector := slices.ContainsFunc(excluded, func(e Exclusion) bool { return e.Reason == ExcludedSelector }); {
	case bySelector && !slices.ContainsFunc(excluded, func(e Exclusion) bool { return !fits(e) }):
		return "select"
	case r.Command != nil:
		return "command"
	}
	return "firmware"
}

// whatOf names what a rollout brings, for people.
func whatOf(r ota.Rollout) string {
	if r.Command != nil {
		return "command " + r.Command.Name
	}
	return r.Release.String()
}
