package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// Conflict counts devices that another rollout has work for, or is going to have.
type Conflict struct {
	Rollout    ota.Rollout
	Devices    int
	Supersedes bool // it makes way on them; else who has the higher priority comes first, then the older
}

// ErrOutranked: a rollout of a higher priority has the same devices, and another
// release of the same firmware for them.
var ErrOutranked = errors.New("the plan would be undone")

// reach is the devices that a plan reaches.
type reach struct {
	line *ota.Line
	is   []bool // by their numbers in the line
}

func newReach(line *ota.Line) reach { return reach{line, make([]bool, line.Len())} }

// counter returns a function to tell devices to, and the number of those reached that
// it was told, each once.
func (p reach) counter() (tell func(deviceID string) bool, n *int) {
	var left []bool // made when it is needed: mostly it is not
	n = new(int)
	return func(deviceID string) bool {
		if at, ok := p.line.Find(deviceID); ok && p.is[at] {
			if left == nil {
				left = slices.Clone(p.is)
			}
			if left[at] {
				left[at] = false
				*n++
			}
		}
		return true
	}, n
}

// conflicts returns the rollouts that have work for devices that are reached, and
// those of the same firmware that are going to have, in order of their ids.
func (s *Service) conflicts(ctx context.Context, r ota.Rollout, reached reach) ([]Conflict, error) {
	others, err := s.Store.Rollouts(ctx)
	if err != nil {
		return nil, err
	}
	var conflicts []Conflict
	for _, other := range others {
		if other.State.Terminal() || other.Kind() == ota.KindCommand {
			continue
		}
		c, err := s.conflict(ctx, r, other, reached)
		if err != nil {
			return nil, err
		}
		if c.Devices > 0 {
			conflicts = append(conflicts, c)
		}
	}
	slices.SortFunc(conflicts, func(a, b Conflict) int { return strings.Compare(a.Rollout.ID, b.Rollout.ID) })
	return conflicts, nil
}

func (s *Service) conflict(ctx context.Context, r, other ota.Rollout, reached reach) (Conflict, error) {
	tell, n := reached.counter()
	err := s.Store.Unfinished(ctx, other.ID, tell)
	if err == nil && other.Release.Name == r.Release.Name {
		err = s.ahead(ctx, other, outranks(other, r), tell)
	}
	return Conflict{Rollout: other, Devices: *n, Supersedes: r.Supersedes(other)}, err
}

// ahead tells the devices that a rollout has not come to yet; of a continuous one, if
// told, all that it means: it would bring back each that is given another release.
func (s *Service) ahead(ctx context.Context, r ota.Rollout, brings bool, tell func(deviceID string) bool) error {
	switch waits := r.State == ota.RolloutScheduled || r.State == ota.RolloutRunning || r.State == ota.RolloutPaused; {
	case !waits || r.Reverting:
		return nil
	case r.Terms.Continuous && brings, r.StartedAt.IsZero() && r.RevertOf == "":
		return s.meantBy(ctx, r, tell)
	}
	for turn := r.Cursor; ; {
		page, err := s.Store.Candidates(ctx, r.ID, r.Line, turn, turnsPut)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, c := range page {
			tell(c.DeviceID)
		}
		turn += len(page)
	}
}

// meantBy tells the devices that the selector of a rollout means and its release fits.
func (s *Service) meantBy(ctx context.Context, r ota.Rollout, tell func(deviceID string) bool) error {
	release, err := s.Store.Release(ctx, r.Release)
	if err != nil {
		return err
	}
	sel, err := selector.Parse(r.Selector)
	if err != nil {
		return err
	}
	no := false
	return s.Store.Survey(ctx, DeviceQuery{Selector: sel, Revoked: &no}, nil, func(d Surveyed) bool {
		return !release.Fits(d.Hardware) || tell(d.ID)
	})
}

// outranks reports whether other would bring another release of the same firmware to the
// devices of r: after r had its own there, or before.
func outranks(other, r ota.Rollout) bool {
	going := other.State == ota.RolloutScheduled || other.State == ota.RolloutRunning || other.State == ota.RolloutPaused
	return going && !other.Reverting && other.Kind() == ota.KindInstall && r.Kind() == ota.KindInstall &&
		other.Release.Name == r.Release.Name && other.Release != r.Release && other.Priority > r.Priority
}

// outranked refuses a plan of whose conflicts one outranks it.
func outranked(r ota.Rollout, conflicts []Conflict) error {
	for _, c := range conflicts {
		if !outranks(c.Rollout, r) {
			continue
		}
		o, enough := c.Rollout, c.Rollout.Priority
		if o.CreatedAt.After(r.CreatedAt) { // of the same priority it would supersede
			enough++
		}
		return ota.AtField("priority", fmt.Errorf("%w: rollout %s of priority %d has %s for %d of its devices, and this plan, of priority %d, would not keep it from them; give the plan priority %d or more (--priority %[7]d), leave these devices out, or end that one first: otactl rollout %s %[2]s",
			ErrOutranked, o.ID, o.Priority, o.Release, c.Devices, r.Priority, enough, endOf(o)))
	}
	return nil
}

// endOf is the command that ends a rollout.
func endOf(r ota.Rollout) string {
	if r.Terms.Continuous && !r.StartedAt.IsZero() {
		return "finish"
	}
	return "abort"
}

// mayCome refuses a rollout whose devices another one has that outranks it.
func (s *Service) mayCome(ctx context.Context, r ota.Rollout, line *ota.Line) error {
	return s.unrivalled(ctx, r, func() (*ota.Line, error) { return line, nil })
}

// mayComeStill is mayCome for a rollout that was made before: others came since.
func (s *Service) mayComeStill(ctx context.Context, r ota.Rollout) error {
	return s.unrivalled(ctx, r, func() (*ota.Line, error) {
		j, err := s.judgeOf(ctx, r)
		if err != nil {
			return nil, err
		}
		return s.candidates(ctx, j, func(string, Surveyed) {})
	})
}

// overtook reports whether other was made after r and has begun before it: r, which was a
// draft or awaited its approval, would pass by the devices that other has, or had.
// One that is being made has no id yet, and nobody has overtaken it: what began at the same
// moment is not newer.
func overtook(other, r ota.Rollout) bool {
	return r.ID != "" && other.Supersedes(r) && !other.StartedAt.IsZero()
}

// overtaken refuses a rollout of whose devices another that overtook it has one.
func (s *Service) overtaken(ctx context.Context, r, other ota.Rollout, reached reach) error {
	var device string
	err := s.Store.Executions(ctx, ExecutionFilter{RolloutID: other.ID, Latest: true}, func(e ota.Execution) bool {
		if at, ok := reached.line.Find(e.DeviceID); ok && reached.is[at] && e.Status != ota.Canceled && e.Status != ota.Removed {
			device = e.DeviceID
		}
		return device == ""
	})
	if err != nil || device == "" {
		return err
	}
	return ota.AtField("priority", fmt.Errorf("%w: rollout %s of %s was made after this one and has, or had, devices of it, such as %s, which this one would pass by; create the plan anew (otactl rollout create), or give it priority %d or more (--priority %[5]d)",
		ErrOutranked, other.ID, other.Release, device, other.Priority+1))
}

// unrivalled looks at devices, those that find returns, only if there may be a rollout
// that outranks r, or overtook it.
func (s *Service) unrivalled(ctx context.Context, r ota.Rollout, find func() (*ota.Line, error)) error {
	others, err := s.Store.Rollouts(ctx)
	if err != nil {
		return err
	}
	others = slices.DeleteFunc(others, func(o ota.Rollout) bool { return !outranks(o, r) && !overtook(o, r) })
	if len(others) == 0 {
		return nil
	}
	line, err := find()
	if err != nil {
		return err
	}
	reached := newReach(line)
	_, err = line.Arrange(r.Stages, func(t ota.Turn) error {
		reached.is[t.Number()] = true
		return nil
	})
	for _, other := range others {
		var c Conflict
		if err == nil && overtook(other, r) {
			err = s.overtaken(ctx, r, other, reached)
		}
		if err == nil {
			c, err = s.conflict(ctx, r, other, reached)
		}
		if err == nil && c.Devices > 0 {
			err = outranked(r, []Conflict{c})
		}
	}
	return err
}
