package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// RolloutView is a rollout with where its executions stand.
type RolloutView struct {
	ota.Rollout
	Progress ota.Progress
}

// RolloutPreview says what a rollout would do.
type RolloutPreview struct {
	Rollout    ota.Rollout
	Population int
	Stages     []StagePreview
	Excluded   []Exclusion
	Bytes      int64 // that all devices together download at the most
}

// StagePreview is one stage of a preview.
type StagePreview struct {
	Target  int      // cumulative
	Devices int      // new in this stage
	Sample  []string // the first of them
}

// Exclusion counts devices that the rollout would leave out, for one reason.
type Exclusion struct {
	Reason  string
	Devices int
	Sample  []string
}

// previewSample is how many device ids a preview shows for each stage or reason.
const previewSample = 10

// PlanRollout says what CreateRollout would do with r (Release, Selector, Seed,
// Stages, Abort and Priority set), and changes nothing. ErrConflict when no
// device is eligible or the release is not signed.
func (s *Service) PlanRollout(ctx context.Context, r ota.Rollout) (RolloutPreview, error) {
	r, c, err := s.prepare(ctx, r)
	if err != nil {
		return RolloutPreview{}, err
	}
	p := RolloutPreview{Rollout: r}
	excluded := map[string]*Exclusion{}
	no := false
	err = s.Store.SelectDevices(ctx, DeviceQuery{Selector: c.sel, Revoked: &no}, func(v DeviceView) bool {
		if why := c.exclude(v); why != "" {
			exclude(excluded, why, v.ID)
		} else {
			p.Population++
		}
		return true
	})
	if err == nil {
		err = s.unselected(ctx, c.sel, excluded)
	}
	if err != nil {
		return RolloutPreview{}, err
	}
	for _, why := range slices.Sorted(maps.Keys(excluded)) {
		p.Excluded = append(p.Excluded, *excluded[why])
	}
	if p.Population == 0 {
		return RolloutPreview{}, noDevices(p)
	}
	p.Bytes = int64(p.Population) * (c.release.ObjectSize + c.release.IndexSize)
	return s.previewStages(ctx, c, p)
}

func exclude(excluded map[string]*Exclusion, why, id string) {
	e := excluded[why]
	if e == nil {
		e = &Exclusion{Reason: why}
		excluded[why] = e
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
			exclude(excluded, why, v.ID)
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

func noDevices(p RolloutPreview) error {
	text := "no device is eligible for " + p.Rollout.Release.String()
	for _, e := range p.Excluded {
		text += fmt.Sprintf("; %d %s", e.Devices, map[string]string{
			ExcludedSelector: "not selected", ExcludedHardware: "of other hardware",
			ExcludedCurrent: "run it already", ExcludedRevoked: "revoked",
		}[e.Reason])
	}
	if len(p.Excluded) == 0 {
		text += "; no device is enrolled"
	}
	return fmt.Errorf("%w: %s", ErrNoDevices, text)
}

// ErrNoDevices: a rollout would reach nobody.
var ErrNoDevices = errors.New("nothing to roll out")

func (s *Service) previewStages(ctx context.Context, c candidates, p RolloutPreview) (RolloutPreview, error) {
	last := 0
	for _, stage := range p.Rollout.Stages {
		target := stage.Size.Of(p.Population)
		p.Stages = append(p.Stages, StagePreview{Target: target, Devices: max(target-last, 0)})
		last = max(last, target)
	}
	want := 0 // enough ids to show the first of every stage
	for _, stage := range p.Stages {
		if stage.Devices > 0 {
			want = max(want, stage.Target-stage.Devices+min(stage.Devices, previewSample))
		}
	}
	ids, err := s.pick(ctx, c, want)
	if err != nil {
		return RolloutPreview{}, err
	}
	for i := range p.Stages {
		from := min(p.Stages[i].Target-p.Stages[i].Devices, len(ids))
		to := min(from+min(p.Stages[i].Devices, previewSample), len(ids))
		p.Stages[i].Sample = ids[from:to]
	}
	return p, nil
}

// MaxSeedBytes is the longest seed of a rollout.
const MaxSeedBytes = 64

// prepare checks a plan and fills in what the operator left to the server.
func (s *Service) prepare(ctx context.Context, r ota.Rollout) (ota.Rollout, candidates, error) {
	if err := r.Validate(); err != nil {
		return r, candidates{}, err
	}
	sel, err := selector.Parse(r.Selector)
	if err != nil {
		return r, candidates{}, err
	}
	release, err := s.Store.Release(ctx, r.Release)
	if err != nil {
		return r, candidates{}, err
	}
	if release.State != ota.ReleaseSigned {
		return r, candidates{}, fmt.Errorf("%w: release %s is %s; sign it first: otactl firmware sign %s", ErrUnsigned, r.Release, release.State, r.Release)
	}
	if len(r.Seed) > MaxSeedBytes {
		return r, candidates{}, fmt.Errorf("%w: seed of %d bytes: at most %d", ErrInvalid, len(r.Seed), MaxSeedBytes)
	}
	if r.Seed == "" {
		r.Seed = newID("")
	}
	r.State, r.CreatedAt = ota.RolloutRunning, s.Now()
	r.ArmedAt = r.CreatedAt
	return r, candidates{rollout: r, release: release, sel: sel}, nil
}

// ErrUnsigned: the release stands in no signed targets, so no device would run it.
var ErrUnsigned = errors.New("release is not signed")

// CreateRollout starts a rollout.
func (s *Service) CreateRollout(ctx context.Context, r ota.Rollout) (RolloutView, error) {
	p, err := s.PlanRollout(ctx, r)
	if err != nil {
		return RolloutView{}, err
	}
	r = p.Rollout
	r.ID, r.Population = newID("r-"), p.Population
	if err := s.Store.CreateRollout(ctx, r); err != nil {
		return RolloutView{}, err
	}
	s.Log.Info("rollout created", "rollout", r.ID, "release", r.Release.String(), "population", r.Population)
	s.Wake()
	return s.Rollout(ctx, r.ID)
}

// Rollout returns one rollout, with counts of the same moment: had it moved
// between the two readings, it would seem to have outrun its stages.
func (s *Service) Rollout(ctx context.Context, id string) (RolloutView, error) {
	r, err := s.Store.Rollout(ctx, id)
	for err == nil {
		var p ota.Progress
		if p, err = s.Store.Progress(ctx, r); err != nil {
			break
		}
		var again ota.Rollout
		if again, err = s.Store.Rollout(ctx, id); err != nil {
			break
		}
		if again.Revision == r.Revision {
			return RolloutView{Rollout: r, Progress: p}, nil
		}
		r = again
	}
	return RolloutView{}, err
}

// Rollouts returns all, newest first.
func (s *Service) Rollouts(ctx context.Context) ([]RolloutView, error) {
	all, err := s.Store.Rollouts(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]RolloutView, len(all))
	for i, r := range all {
		if views[i], err = s.Rollout(ctx, r.ID); err != nil {
			return nil, err
		}
	}
	return views, nil
}

// PauseRollout stops new executions at once.
func (s *Service) PauseRollout(ctx context.Context, id, reason string) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, bool, error) {
		r, err := ota.Pause(r, reason)
		return r, false, err
	})
}

// ResumeRollout lets a paused rollout go on.
func (s *Service) ResumeRollout(ctx context.Context, id string, failed ota.ResumeAction) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, bool, error) {
		r, err := ota.Resume(r, failed, s.Now())
		return r, false, err
	})
}

// AbortRollout cancels what is queued and ends the rollout when what is in
// flight has finished: at once when nothing is.
func (s *Service) AbortRollout(ctx context.Context, id, reason string) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, bool, error) {
		r, err := ota.Abort(r, reason, s.Now())
		return r, true, err
	})
}

// follow does what an operator's act asks for besides its record. What fails
// here the engine does later.
func (s *Service) follow(ctx context.Context, r ota.Rollout) {
	defer s.Wake()
	if r.State == ota.RolloutAborting {
		if _, err := s.advance(ctx, r.ID); err != nil {
			s.Log.Warn("rollout is aborting, the engine will end it", "rollout", r.ID, "error", err)
		}
	}
}

// operate applies an operator's act, again if the engine was faster.
func (s *Service) operate(ctx context.Context, id string, act func(ota.Rollout) (next ota.Rollout, cancel bool, err error)) (RolloutView, error) {
	for {
		r, err := s.Store.Rollout(ctx, id)
		if err != nil {
			return RolloutView{}, err
		}
		next, cancel, err := act(r)
		if err != nil {
			return RolloutView{}, err
		}
		step := Advance{Rollout: next, CancelQueued: cancel, Now: s.Now()}
		err = s.Store.Advance(ctx, step)
		if errors.Is(err, ErrStale) {
			continue
		}
		if err != nil {
			return RolloutView{}, err
		}
		s.Log.Info("rollout changed by an operator", "rollout", id, "state", next.State, "reason", next.Reason)
		s.signals.raise("rollout/" + id)
		s.tellStep(ctx, r, step)
		s.follow(ctx, next)
		return s.Rollout(ctx, id)
	}
}
