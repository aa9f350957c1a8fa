package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

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

// Conflict counts devices that another rollout has work for.
type Conflict struct {
	Rollout    ota.Rollout
	Devices    int
	Supersedes bool // what waits there is cancelled; else it comes first or after, by priority and age
}

// previewSample is how many device ids a preview shows for each stage or reason.
const previewSample = 10

// PlanRollout says what CreateRollout would do with r (Release or Command, Selector,
// Seed, Stages, Abort, Priority and Terms set), and changes nothing. ErrNoDevices when
// no device is eligible, ErrUnsigned when the release is not signed.
func (s *Service) PlanRollout(ctx context.Context, r ota.Rollout) (RolloutPreview, error) {
	r, err := s.prepare(r)
	if err != nil {
		return RolloutPreview{}, err
	}
	if err := s.groupsExist(ctx, r); err != nil {
		return RolloutPreview{}, err
	}
	j, err := s.judgeOf(ctx, r)
	if err != nil {
		return RolloutPreview{}, err
	}
	// A command on one device must not count the fleet.
	excluded, list, err := s.survey(ctx, j, r.Kind() == ota.KindInstall)
	if err != nil {
		return RolloutPreview{}, err
	}
	p := RolloutPreview{Rollout: r, Population: len(list), Excluded: excluded}
	stages, list := ota.Arrange(r.Stages, list)
	for _, stage := range stages {
		p.Stages = append(p.Stages, previewStage(r, list, stage.Target, p.Stages))
	}
	reached := list[:stages[len(stages)-1].Target]
	p.Paths = j.previewPaths(reached)
	installs := 0
	if p.Bytes, installs, err = s.load(ctx, j, reached); err != nil {
		return p, err
	}
	p.Duration = r.Terms.Rate.Least(installs)
	for _, stage := range stages {
		p.Duration += stage.Soak
	}
	if r.Kind() == ota.KindInstall { // a command comes first, and takes nobody's place
		p.Conflicts, err = s.conflicts(ctx, r, reached)
	}
	return p, err
}

// survey returns the devices that a rollout may reach, in no order, and why others
// are left out: if there is none, or if told, also those that are not looked at one by
// one. ErrNoDevices: there is none.
func (s *Service) survey(ctx context.Context, j judge, all bool) ([]Exclusion, []ota.Candidate, error) {
	by := map[string]*Exclusion{}
	list, err := s.candidates(ctx, j, func(why string, d Surveyed) { exclude(by, why, j.detail(why, d), d.ID) })
	if err == nil && (all || len(list) == 0) {
		err = s.unselected(ctx, j.selector, by)
	}
	if err != nil {
		return nil, nil, err
	}
	var excluded []Exclusion
	for _, why := range slices.Sorted(maps.Keys(by)) {
		excluded = append(excluded, *by[why])
	}
	if len(list) == 0 && !j.rollout.Terms.Continuous { // somebody may yet join that one
		return nil, nil, noDevices(j.rollout, excluded)
	}
	return excluded, list, nil
}

func previewStage(r ota.Rollout, list []ota.Candidate, target int, before []StagePreview) StagePreview {
	from := 0
	if len(before) > 0 {
		from = before[len(before)-1].Target
	}
	part := list[from:target]
	p := StagePreview{Target: target, Devices: len(part)}
	for _, c := range part[:min(previewSample, len(part))] {
		p.Sample = append(p.Sample, c.DeviceID)
	}
	if len(r.Terms.Strata) > 0 {
		p.Strata = map[string]int{}
		for _, c := range part {
			p.Strata[strings.ReplaceAll(c.Stratum, "\x00", " ")]++
		}
	}
	return p
}

// conflicts returns the rollouts that have work for the devices.
func (s *Service) conflicts(ctx context.Context, r ota.Rollout, list []ota.Candidate) ([]Conflict, error) {
	var reached map[string]bool
	busy := map[string]int{}
	err := s.Store.Executions(ctx, ExecutionFilter{Active: true}, func(e ota.Execution) bool {
		if reached == nil { // only when it is needed: it may be large
			reached = make(map[string]bool, len(list))
			for _, c := range list {
				reached[c.DeviceID] = true
			}
		}
		if reached[e.DeviceID] {
			busy[e.RolloutID]++
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	var conflicts []Conflict
	for _, id := range slices.Sorted(maps.Keys(busy)) {
		other, err := s.Store.Rollout(ctx, id)
		if err != nil {
			return nil, err
		}
		if other.Kind() == ota.KindCommand {
			continue
		}
		conflicts = append(conflicts, Conflict{Rollout: other, Devices: busy[id], Supersedes: r.Supersedes(other)})
	}
	return conflicts, nil
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
	return fmt.Errorf("%w: %s", ErrNoDevices, text)
}

// whatOf names what a rollout brings, for people.
func whatOf(r ota.Rollout) string {
	if r.Command != nil {
		return "command " + r.Command.Name
	}
	return r.Release.String()
}

// ErrNoDevices: a rollout would reach nobody.
var ErrNoDevices = errors.New("nothing to roll out")

// MaxSeedBytes is the longest seed of a rollout.
const MaxSeedBytes = 64

// prepare checks a plan and fills in what the operator left to the server. A
// rollout whose State is DRAFT stays one.
func (s *Service) prepare(r ota.Rollout) (ota.Rollout, error) {
	r = r.Ordered()
	if err := r.Validate(); err != nil {
		return r, err
	}
	sel, err := selector.Parse(r.Selector)
	if err != nil {
		return r, err
	}
	if err := followable(r, sel); err != nil {
		return r, err
	}
	for i, stage := range r.Stages {
		if _, err := selector.Parse(stage.Size.Selector); err != nil {
			return r, fmt.Errorf("stage %d: %w", i+1, err)
		}
	}
	if len(r.Seed) > MaxSeedBytes {
		return r, fmt.Errorf("%w: seed of %d bytes: at most %d", ErrInvalid, len(r.Seed), MaxSeedBytes)
	}
	if r.Seed == "" {
		r.Seed = newID("")
	}
	r.CreatedAt = s.Now()
	if start := r.Terms.Start; start.After(r.CreatedAt.Add(ota.MaxStart)) {
		return r, fmt.Errorf("%w: start at %s: at most %d days ahead", ErrInvalid, start.Format(time.RFC3339), ota.MaxStart/(24*time.Hour))
	}
	if r.State == ota.RolloutDraft {
		return r, nil
	}
	r.State = ota.RolloutDraft
	return ota.Submit(r)
}

// ErrUnsigned: the release stands in no signed targets, so no device would run it.
var ErrUnsigned = errors.New("release is not signed")

// CreateRollout stores a rollout and starts it, unless it is a DRAFT, awaits
// approval or its time.
func (s *Service) CreateRollout(ctx context.Context, r ota.Rollout) (RolloutView, error) {
	r, err := s.prepare(r)
	if err != nil {
		return RolloutView{}, err
	}
	if err := s.groupsExist(ctx, r); err != nil {
		return RolloutView{}, err
	}
	j, err := s.judgeOf(ctx, r)
	if err != nil {
		return RolloutView{}, err
	}
	_, list, err := s.survey(ctx, j, false)
	if err != nil {
		return RolloutView{}, err
	}
	r.ID = newID("r-")
	s.beginning.Store(r.ID, true) // the engine leaves it alone until then
	defer s.Wake()
	defer s.beginning.Delete(r.ID)
	if err := s.Store.CreateRollout(ctx, r); err != nil {
		return RolloutView{}, err
	}
	s.Log.Info("rollout created", "rollout", r.ID, "brings", whatOf(r), "state", r.State, "population", len(list))
	s.begin(ctx, r, list)
	s.follow(ctx, r)
	return s.Rollout(ctx, r.ID)
}

// begin starts a rollout whose time has come with the devices that were just found
// for it, so that they are judged once. What fails here the engine does later.
func (s *Service) begin(ctx context.Context, r ota.Rollout, list []ota.Candidate) {
	now := s.Now()
	// That of a continuous rollout has to follow first: then nobody who changes
	// since is missed.
	if d := ota.Plan(r, ota.Progress{}, now); !d.Arrange {
		return
	}
	stages, list := ota.Arrange(r.Stages, list)
	begun, err := s.lineUp(ctx, r, stages, list, now)
	if err == nil {
		err = s.Store.Advance(ctx, Advance{Rollout: begun, Now: now})
	}
	if errors.Is(err, ErrStale) { // another replica was faster
		if r, err = s.Store.Rollout(ctx, r.ID); err == nil {
			s.dropCandidates(ctx, r)
		}
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("the engine will start the rollout later", "rollout", r.ID, "error", err)
	}
}

// Rollout returns one rollout, with counts of the same moment: had it moved
// between the two readings, it would seem to have outrun its stages.
func (s *Service) Rollout(ctx context.Context, id string) (RolloutView, error) {
	r, err := s.Store.Rollout(ctx, id)
	for err == nil {
		var p ota.Progress
		if p, err = s.Store.Progress(ctx, r, s.Now()); err != nil {
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

// Rollouts returns those of the kind, all if it is empty, newest first.
func (s *Service) Rollouts(ctx context.Context, kind ota.Kind) ([]RolloutView, error) {
	all, err := s.Store.Rollouts(ctx)
	if err != nil {
		return nil, err
	}
	var views []RolloutView
	for _, r := range all {
		if kind != "" && r.Kind() != kind {
			continue
		}
		v, err := s.Rollout(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		views = append(views, v)
	}
	return views, nil
}

// SubmitRollout lets a DRAFT start, or await its approval.
func (s *Service) SubmitRollout(ctx context.Context, id string) (RolloutView, error) {
	return s.operate(ctx, id, ota.Submit)
}

// ApproveRollout approves a rollout that awaits it, or with a stage, counted from
// 1, that stage.
func (s *Service) ApproveRollout(ctx context.Context, id string, stage int) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) {
		if stage != 0 {
			return ota.ApproveStage(r, stage, s.Now())
		}
		return ota.Approve(r, s.Now())
	})
}

// EditRollout replaces the plan of a rollout that has not begun; what was approved
// is to be approved again.
func (s *Service) EditRollout(ctx context.Context, id string, plan ota.Rollout) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) {
		plan.Release, plan.Command = r.Release, r.Command
		if plan.Seed == "" {
			plan.Seed = r.Seed
		}
		plan, err := s.prepare(plan)
		if err == nil {
			err = s.groupsExist(ctx, plan)
		}
		if err != nil {
			return r, err
		}
		return ota.Edit(r, plan)
	})
}

// PauseRollout stops new executions at once. A policy overrides that of the plan.
func (s *Service) PauseRollout(ctx context.Context, id, reason string, policy ota.PausePolicy) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) { return ota.Pause(r, reason, policy) })
}

// ResumeRollout lets a paused rollout go on.
func (s *Service) ResumeRollout(ctx context.Context, id string, failed ota.ResumeAction) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) { return ota.Resume(r, failed, s.Now()) })
}

// AbortRollout cancels what can be cancelled and ends the rollout when what is in
// flight has finished: at once when nothing is. A policy overrides that of the
// plan.
func (s *Service) AbortRollout(ctx context.Context, id, reason string, policy ota.AbortPolicy) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) { return ota.Abort(r, reason, policy, s.Now()) })
}

// FinishRollout ends a continuous rollout: what is queued is cancelled, what is in
// progress finishes.
func (s *Service) FinishRollout(ctx context.Context, id, reason string) (RolloutView, error) {
	return s.operate(ctx, id, func(r ota.Rollout) (ota.Rollout, error) { return ota.Finish(r, reason) })
}

// StopRollouts is the emergency stop: it pauses every rollout that runs, with
// devices in flight held before they install, and returns those that it stopped.
// One that can not be stopped does not keep it from the others. It looks again
// until there is no new one: the engine may just have made a revert.
func (s *Service) StopRollouts(ctx context.Context, reason string) (stopped []string, err error) {
	var failed []error
	tried := map[string]bool{}
	for {
		all, err := s.Store.Rollouts(ctx)
		if err != nil {
			return stopped, errors.Join(append(failed, err)...)
		}
		all = slices.DeleteFunc(all, func(r ota.Rollout) bool { return !r.State.Pausable() || tried[r.ID] })
		if len(all) == 0 {
			return stopped, errors.Join(failed...)
		}
		for _, r := range all {
			tried[r.ID] = true
			switch _, err := s.PauseRollout(ctx, r.ID, reason, ota.PauseHoldBeforeInstall); {
			case err == nil:
				stopped = append(stopped, r.ID)
			case !errors.Is(err, ota.ErrState): // it ended by itself
				failed = append(failed, fmt.Errorf("stop rollout %s: %w", r.ID, err))
			}
		}
	}
}

// follow does what an operator's act asks for besides its record. What fails
// here the engine does later.
func (s *Service) follow(ctx context.Context, r ota.Rollout) {
	defer s.Wake()
	if r.State.Ending() || r.State == ota.RolloutScheduled {
		if _, err := s.advance(ctx, r.ID); err != nil && ctx.Err() == nil {
			s.Log.Warn("the engine will move the rollout later", "rollout", r.ID, "state", r.State, "error", err)
		}
	}
}

// operate applies an operator's act, again if the engine was faster.
func (s *Service) operate(ctx context.Context, id string, act func(ota.Rollout) (ota.Rollout, error)) (RolloutView, error) {
	for {
		r, err := s.Store.Rollout(ctx, id)
		if err != nil {
			return RolloutView{}, err
		}
		next, err := act(r)
		if err != nil {
			return RolloutView{}, err
		}
		step := Advance{Rollout: next, Now: s.Now()}
		err = s.Store.Advance(ctx, step)
		if errors.Is(err, ErrStale) {
			continue
		}
		if err != nil {
			return RolloutView{}, err
		}
		s.Log.Info("rollout changed by an operator", "rollout", id, "state", next.State, "reason", next.Reason)
		s.signals.raise("rollout/" + id)
		s.tellStep(r, step)
		s.follow(ctx, next)
		return s.Rollout(ctx, id)
	}
}
