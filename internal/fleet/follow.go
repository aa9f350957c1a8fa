package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
)

// MustLook reports whether a continuous rollout with this selector has to look at a
// device that was changed, or made: before has no ID then. Where groups are asked for,
// whatever it asks for is enough: somebody else may be changing the groups meanwhile.
func MustLook(sel selector.Selector, before, after DeviceView) bool {
	if before.ID == "" {
		return sel.Asks(selector.Groups) || sel.Match(Facts(after))
	}
	reflashed := ReportedDigest(before.Shadow) != ReportedDigest(after.Shadow)
	if sel.Asks(selector.Groups) {
		return reflashed || !slices.Equal(before.Groups, after.Groups) || slices.ContainsFunc(sel.Fields(), func(f selector.Field) bool { return differ(f, before, after) })
	}
	is := sel.Match(Facts(after))
	return is && reflashed || is != sel.Match(Facts(before))
}

// differ reports whether what a field stands for has changed.
func differ(f selector.Field, a, b DeviceView) bool {
	switch f.Source {
	case selector.Tags:
		return !maps.Equal(a.Tags, b.Tags)
	case selector.Desired:
		return changed(a.Shadow.Desired, b.Shadow.Desired, f.Path)
	case selector.Reported:
		return changed(a.Shadow.Reported, b.Shadow.Reported, f.Path)
	}
	return false
}

func changed(a, b shadow.Object, path []string) bool {
	x, hadX := a.At(path...)
	y, hadY := b.At(path...)
	return hadX != hadY || !x.Equal(y)
}

// Opened returns where devices stand which continuous rollouts have to look at, since
// the releases changed and with them their paths. Whoever changes releases marks them.
func Opened(rollouts []ota.Rollout, before, after []ota.Release) (positions []ota.Position) {
	for _, r := range rollouts {
		if !r.Terms.Continuous || r.State.Terminal() {
			continue
		}
		i := slices.IndexFunc(after, func(o ota.Release) bool { return o.ID() == r.Release })
		if i < 0 || after[i].State != ota.ReleaseSigned {
			continue
		}
		for _, at := range ota.Opened(after[i], before, after) {
			if !slices.Contains(positions, at) {
				positions = append(positions, at)
			}
		}
	}
	return positions
}

// AsksGroup reports whether the selector asks for this group, or for any.
func AsksGroup(sel selector.Selector, name string) bool { return asksGroup(sel.Root(), name) }

// groupsOf are the groups that are asked for.
func groupsOf(n selector.Node) (names []string) {
	switch n := n.(type) {
	case selector.And:
		return append(groupsOf(n.Left), groupsOf(n.Right)...)
	case selector.Or:
		return append(groupsOf(n.Left), groupsOf(n.Right)...)
	case selector.Not:
		return groupsOf(n.Of)
	case selector.Comparison:
		if n.Field.Source == selector.Groups {
			names = append(names, n.Value.Text)
		}
	}
	return names
}

func asksGroup(n selector.Node, name string) bool {
	switch n := n.(type) {
	case selector.And:
		return asksGroup(n.Left, name) || asksGroup(n.Right, name)
	case selector.Or:
		return asksGroup(n.Left, name) || asksGroup(n.Right, name)
	case selector.Not:
		return asksGroup(n.Of, name)
	case selector.Comparison:
		return n.Field.Source == selector.Groups && (n.Anything() || n.Value.Text == name)
	}
	return false
}

// FollowedGroup is why a group can not be made or deleted: the devices in it would
// join or leave the rollout without anybody's saying so.
func FollowedGroup(name, rollout string) error {
	return fmt.Errorf("%w: continuous rollout %s asks for group %s: end it first with 'otactl rollout finish %[2]s', or abort it", ErrConflict, rollout, name)
}

// Followable reports why a rollout can not follow its selector. It is one of the rules
// of CreateRollout and Advance: whoever changes a device has to be able to read it.
func Followable(r ota.Rollout) error {
	if !r.Follows {
		return nil
	}
	if _, err := selector.Parse(r.Selector); err != nil {
		return fmt.Errorf("%w: rollout %s: %w", ErrInvalid, r.ID, err)
	}
	return nil
}

// followable reports why the selector of a continuous rollout can not be followed.
func followable(r ota.Rollout, sel selector.Selector) error {
	switch {
	case !r.Terms.Continuous:
		return nil
	case sel.Asks(selector.Online):
		return fmt.Errorf("%w: a continuous rollout can not ask who is online: that is not followed, and a device that is offline keeps its place; leave it out of the selector", ErrInvalid)
	case sel.Asks(selector.LastSeen):
		return fmt.Errorf("%w: a continuous rollout can not ask when a device was seen: that is not followed, and changes with every message; leave it out of the selector, or make a rollout that is not continuous", ErrInvalid)
	case AsksGroup(sel, anyGroup):
		return fmt.Errorf("%w: a continuous rollout can not ask for any group: groups come and go; name those that are meant, as in groups:\"lab\"", ErrInvalid)
	}
	return nil
}

// anyGroup is the name of no group, see ota.ValidateWord.
const anyGroup = "*"

// groupsExist reports a group that a continuous rollout asks for and that there is
// not: when it is made, nobody who is in it then would be looked at.
func (s *Service) groupsExist(ctx context.Context, r ota.Rollout) error {
	if !r.Terms.Continuous {
		return nil
	}
	sel, err := selector.Parse(r.Selector)
	if err != nil {
		return err
	}
	for _, name := range groupsOf(sel.Root()) {
		if _, err := s.Store.Group(ctx, name); err != nil {
			return fmt.Errorf("a continuous rollout asks for groups that there are: %w", err)
		}
	}
	return nil
}

// finishOlder finishes the continuous rollouts whose place r takes, before it opens
// its first stage.
func (s *Service) finishOlder(ctx context.Context, r ota.Rollout) error {
	all, err := s.Store.Rollouts(ctx)
	if err != nil {
		return err
	}
	for _, o := range all {
		if !r.TakesPlaceOf(o) {
			continue
		}
		_, err := s.operate(ctx, o.ID, func(o ota.Rollout) (ota.Rollout, error) {
			if !r.TakesPlaceOf(o) { // meanwhile
				return o, ota.ErrState
			}
			return ota.MakeWay(o, r)
		})
		if err != nil && !errors.Is(err, ota.ErrState) {
			return fmt.Errorf("finish rollout %s: %w", o.ID, err)
		}
	}
	return nil
}

// follower is a rollout that Follows, with what it takes to hold devices against it.
type follower struct {
	ota.Rollout
	release ota.Release
	ways    *ways
	sel     selector.Selector
}

// followers are those of the rollouts that Follow.
func (s *Service) followers(ctx context.Context, rollouts []ota.Rollout, releases []ota.Release) (list []follower, err error) {
	for _, r := range rollouts {
		if !r.Follows {
			continue
		}
		f := follower{Rollout: r}
		if f.sel, err = selector.Parse(r.Selector); err != nil {
			return nil, fmt.Errorf("rollout %s: %w", r.ID, err)
		}
		if i := slices.IndexFunc(releases, func(o ota.Release) bool { return o.ID() == r.Release }); i >= 0 {
			f.release = releases[i]
		}
		// Of releases that need each other in a circle nobody gets one: the step that
		// would give a device its turn says so.
		if f.ways, err = s.waysTo(ctx, f.release); err != nil && !errors.Is(err, ota.ErrInvalid) {
			return nil, fmt.Errorf("rollout %s: %w", r.ID, err)
		}
		list = append(list, f)
	}
	return list, nil
}

// follow adds to a look what continuous rollouts make of the device. What was decided
// of its executions before comes first.
func (w watched) follow(m Marked, l *Look, now time.Time) {
	for _, f := range w.followers {
		if f.StartedAt.IsZero() { // it is being arranged
			l.Moves = append(l.Moves, Moved{RolloutID: f.ID, Move: ota.MoveLater})
			continue
		}
		b := w.belonging(f, m, *l)
		if newer := w.newer(f, m); b.Meant && b.Eligible && newer != "" {
			l.Moves = append(l.Moves, Moved{RolloutID: newer, Move: ota.MoveAwait})
			continue
		}
		move, e := ota.MoveOf(f.Rollout, b, now)
		if e != nil {
			l.change(m, *e)
		}
		if move != ota.MoveStay {
			l.Moves = append(l.Moves, Moved{f.ID, move, laneOf(f.Rollout, Survey(m.DeviceView, judge{rollout: f.Rollout}.tags()))})
		}
	}
}

// belonging is how a device stands to a rollout, after what was decided already.
func (w watched) belonging(f follower, m Marked, l Look) ota.Belonging {
	b := ota.Belonging{Meant: f.sel.Match(Facts(m.DeviceView))}
	for _, p := range m.Places {
		if p.RolloutID == f.ID {
			b.InLine, b.Turn, b.Left = true, p.Turn, p.Left
		}
	}
	j := judge{rollout: f.Rollout, release: f.release, ways: f.ways, quarantined: map[string]map[string]bool{}}
	for _, e := range m.Executions {
		o := w.rollouts[e.RolloutID]
		if i := slices.IndexFunc(l.Changed, func(c Changed) bool { return c.From.RolloutID == e.RolloutID && c.From.Attempt == e.Attempt }); i >= 0 {
			e = l.Changed[i].To // a newer rollout, which comes first here, may have let it go
		}
		switch {
		case e.RolloutID == f.ID:
			b.Newest = &e // they come by attempt
		case e.WentBack() && !f.Terms.Quarantined:
			j.quarantined[w.digests[e.Release]] = map[string]bool{m.ID: true}
		}
		if o.Supersedes(f.Rollout) && e.Status != ota.Canceled && e.Status != ota.Removed {
			b.Superseded = true
		}
	}
	b.Eligible = j.exclude(Survey(m.DeviceView, nil)) == ""
	return b
}

// newer names a newer continuous rollout that brings the device what it runs already:
// as long as that follows, the older one does not bring it back. Empty: none does.
func (w watched) newer(f follower, m Marked) string {
	runs := ReportedDigest(m.Shadow)
	for _, o := range w.followers {
		if runs != "" && o.Supersedes(f.Rollout) && o.release.ImageDigest == runs && o.sel.Match(Facts(m.DeviceView)) {
			return o.ID
		}
	}
	return ""
}

// change notes what becomes of an execution, in place of what was decided before.
func (l *Look) change(m Marked, to ota.Execution) {
	for i, c := range l.Changed {
		if c.To.RolloutID == to.RolloutID {
			l.Changed[i].To = to
			return
		}
	}
	for _, e := range slices.Backward(m.Executions) {
		if e.RolloutID == to.RolloutID {
			l.Changed = append(l.Changed, Changed{From: e, To: to})
			return
		}
	}
}
