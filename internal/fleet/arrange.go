package fleet

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// Why a device gets no execution.
const (
	ExcludedSelector    = "not-selected"
	ExcludedHardware    = "hardware"
	ExcludedCurrent     = "current"     // it reports to run the image already
	ExcludedQuarantined = "quarantined" // the image, or one on the way to it, was tried on it and rolled back
	ExcludedRevoked     = "revoked"
	// ExcludedVersion: it does not run what the release needs, and no signed release
	// leads there from what it runs, see ota.Paths.
	ExcludedVersion = "needs-version"
)

// judge says which devices a rollout may reach, and what it needs to know of them.
type judge struct {
	rollout     ota.Rollout
	release     ota.Release
	selector    selector.Selector
	quarantined map[string]map[string]bool // devices by the digest of an image
	ways        *ways
	routes      *routes        // numbers the paths of candidates
	tagged      map[string]int // candidates that have a tag, by the keys that the plan asks for
}

// judgeOf reads what a rollout's plan refers to.
func (s *Service) judgeOf(ctx context.Context, r ota.Rollout) (j judge, err error) {
	j.rollout, j.routes, j.tagged = r, &routes{}, map[string]int{}
	for _, key := range j.tags() {
		j.tagged[key] = 0
	}
	if j.selector, err = s.selector(ctx, r.Selector); err != nil {
		return j, err
	}
	if r.Kind() == ota.KindCommand {
		return j, nil // what follows is about firmware
	}
	if j.release, err = s.signed(ctx, r.Release); err != nil {
		return j, err
	}
	if j.ways, err = s.waysTo(ctx, j.release); err != nil || r.Terms.Quarantined {
		return j, err
	}
	images := j.ways.passed()
	images[j.release.ImageDigest] = true
	j.quarantined, err = s.quarantined(ctx, images)
	return j, err
}

// meant tells which devices the stages mean that are selectors. It is asked for
// devices in ascending order of their ids.
type meant []*ota.Cursor

// meant asks the store, once for each of those stages.
func (s *Service) meant(ctx context.Context, stages []ota.Stage) (meant, error) {
	var m meant
	for _, stage := range stages {
		if stage.Size.Selector == "" {
			continue
		}
		sel, err := s.selector(ctx, stage.Size.Selector)
		if err != nil {
			return nil, err
		}
		var ids ota.Roster
		err = s.Store.Survey(ctx, DeviceQuery{Selector: sel}, nil, func(d Surveyed) bool {
			ids.Add(d.ID)
			return true
		})
		if err != nil {
			return nil, err
		}
		m = append(m, ids.Cursor())
	}
	return m, nil
}

// by is the Meant of a device, see ota.Candidate.
func (m meant) by(id string) (bits uint32) {
	for i, c := range m {
		for c.ID() < id && c.Next() {
		}
		if c.ID() == id {
			bits |= 1 << i
		}
	}
	return bits
}

// quarantined returns the devices that tried one of these images and went back, by
// image, whichever release or rollout it was part of.
func (s *Service) quarantined(ctx context.Context, images map[string]bool) (map[string]map[string]bool, error) {
	releases, err := s.Store.Releases(ctx)
	if err != nil {
		return nil, err
	}
	image, passes := map[ota.ReleaseID]string{}, map[ota.ReleaseID]bool{} // not of a command: it has no release
	for _, r := range releases {
		if images[r.ImageDigest] {
			image[r.ID()] = r.ImageDigest
		}
		passes[r.ID()] = len(r.Needs()) > 0
	}
	rollouts, err := s.Store.Rollouts(ctx)
	if err != nil {
		return nil, err
	}
	devices := map[string]map[string]bool{}
	for _, r := range rollouts {
		if image[r.Release] == "" && !passes[r.Release] {
			continue
		}
		err := s.Store.WentBack(ctx, r.ID, func(e ota.Execution) bool {
			if digest := image[e.Release]; digest != "" {
				if devices[digest] == nil {
					devices[digest] = map[string]bool{}
				}
				devices[digest][e.DeviceID] = true
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return devices, nil
}

// exclude says why a device that is selected and not revoked is not eligible; ""
// when it is.
func (j judge) exclude(d Surveyed) string {
	switch {
	case j.rollout.Kind() == ota.KindCommand:
		return ""
	case !j.release.Fits(d.Hardware):
		return ExcludedHardware
	case d.Digest == j.release.ImageDigest:
		return ExcludedCurrent
	case j.quarantined[j.release.ImageDigest][d.ID]:
		return ExcludedQuarantined
	}
	path := j.ways.from(d.Hardware, d.Digest)
	if path.Stay != "" {
		return ExcludedVersion
	}
	for _, id := range path.Via {
		if j.quarantined[j.ways.images[id]][d.ID] {
			return ExcludedQuarantined
		}
	}
	return ""
}

// detail is what there is to say of a device beside the word for why it is
// excluded: what it needs, and the remedy.
func (j judge) detail(why string, d Surveyed) string {
	if why != ExcludedVersion {
		return ""
	}
	return j.ways.from(d.Hardware, d.Digest).Stay
}

func (j judge) candidate(d Surveyed, m meant) ota.Candidate {
	return ota.Candidate{
		DeviceID: d.ID, Bucket: ota.Bucket(j.rollout.Seed, d.ID), Stratum: stratumOf(j.rollout, d), Lane: laneOf(j.rollout, d),
		Meant: m.by(d.ID), Path: j.routes.number(j.ways.from(d.Hardware, d.Digest).Via),
	}
}

// laneOf is a device's value of what InFlight.Per names.
func laneOf(r ota.Rollout, d Surveyed) string {
	if r.Terms.InFlight.Per == "" {
		return ""
	}
	return valueOf(d, r.Terms.InFlight.Per)
}

// stratumOf is a device's values of the strata.
func stratumOf(r ota.Rollout, d Surveyed) string {
	values := make([]string, len(r.Terms.Strata))
	for i, key := range r.Terms.Strata {
		values[i] = valueOf(d, key)
	}
	return strings.Join(values, "\x00")
}

// tags are those that it asks for.
func (j judge) tags() []string {
	var keys []string
	for _, key := range append(slices.Clone(j.rollout.Terms.Strata), j.rollout.Terms.InFlight.Per) {
		if key != "" && key != ota.ByHardware {
			keys = append(keys, key)
		}
	}
	return keys
}

// valueOf is the device's value of a tag, or its hardware model.
func valueOf(d Surveyed, key string) string {
	if key == ota.ByHardware {
		return d.Hardware
	}
	return d.Tags[key]
}

// candidates returns the devices that the rollout may reach, and tells excluded why it
// may not reach others that the selector means. Of the fleet it holds in memory what
// ota.Line does, and no more.
func (s *Service) candidates(ctx context.Context, j judge, excluded func(why string, d Surveyed)) (*ota.Line, error) {
	m, err := s.meant(ctx, j.rollout.Stages)
	if err != nil {
		return nil, err
	}
	line, no := &ota.Line{}, false
	keys := slices.Sorted(maps.Keys(j.tagged))
	err = s.Store.Survey(ctx, DeviceQuery{Selector: j.selector, Revoked: &no}, keys, func(d Surveyed) bool {
		if why := j.exclude(d); why != "" {
			excluded(why, d)
		} else {
			line.Add(j.candidate(d, m))
			for _, key := range keys {
				if d.Tags[key] != "" {
					j.tagged[key]++
				}
			}
		}
		return true
	})
	return line, err
}

// arrange puts the devices of a rollout in order, stores the line and returns the
// rollout as it begins. Whoever writes that first wins; another line is dropped.
func (s *Service) arrange(ctx context.Context, r ota.Rollout, now time.Time) (ota.Rollout, error) {
	if r.RevertOf != "" {
		return s.arrangeReturn(ctx, r, now)
	}
	j, err := s.judgeOf(ctx, r)
	if err != nil {
		return r, err
	}
	line, err := s.candidates(ctx, j, func(string, Surveyed) {})
	if err != nil {
		return r, err
	}
	return s.lineUp(ctx, r, line, now)
}

// lineUp stores those who have a turn in some stage: nobody else ever has one.
func (s *Service) lineUp(ctx context.Context, r ota.Rollout, line *ota.Line, now time.Time) (ota.Rollout, error) {
	q := queue{s: s, rollout: r.ID, name: newID("")}
	stages, err := line.Arrange(r.Stages, func(t ota.Turn) error {
		return q.put(ctx, ota.Candidate{DeviceID: t.DeviceID(), Lane: t.Lane()})
	})
	if err == nil {
		err = q.flush(ctx)
	}
	if err != nil {
		return r, err
	}
	return ota.Begin(r, stages, line.Len(), q.name, now), nil
}

// queue stores a line as it comes, some candidates at a time.
type queue struct {
	s             *Service
	rollout, name string
	turn          int // of the first of the part
	part          []ota.Candidate
}

func (q *queue) put(ctx context.Context, c ota.Candidate) error {
	q.part = append(q.part, c)
	if len(q.part) < turnsPut {
		return nil
	}
	return q.flush(ctx)
}

func (q *queue) flush(ctx context.Context) error {
	err := q.s.Store.PutCandidates(ctx, q.rollout, q.name, q.turn, q.part)
	q.turn, q.part = q.turn+len(q.part), q.part[:0]
	return err
}

// turnsPut is how many candidates are stored in one transaction.
const turnsPut = 10_000

// dropped is how many candidates are dropped in one transaction.
const dropped = 20_000

// dropCandidates forgets lines that nobody needs: all when the rollout has ended.
// What is left by a crash goes when it ends.
func (s *Service) dropCandidates(ctx context.Context, r ota.Rollout) {
	keep := r.Line
	if r.State.Terminal() {
		keep = ""
	}
	for more := true; more; {
		var err error
		if more, err = s.Store.DropCandidates(ctx, r.ID, keep, dropped); err != nil {
			s.Log.Warn("candidates of a rollout could not be dropped", "rollout", r.ID, "error", err)
			return
		}
	}
}
