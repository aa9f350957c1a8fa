package memstore

import (
	"maps"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// changing changes a device, or makes it, and marks it if a continuous rollout has to
// look at it then.
func (s *Store) changing(id string, f func() error) error {
	var before fleet.DeviceView
	if _, ok := s.devices[id]; ok {
		before = s.view(id, true)
	}
	if err := f(); err != nil {
		return err
	}
	if _, ok := s.devices[id]; !ok {
		return nil
	}
	after := s.view(id, true)
	for _, sel := range s.followed() {
		if fleet.MustLook(sel, before, after) {
			s.markAnyway(id)
		}
	}
	return nil
}

// followed are the selectors of the rollouts that follow.
func (s *Store) followed() map[string]selector.Selector {
	list := map[string]selector.Selector{}
	for id, r := range s.rollouts {
		if r.Follows {
			list[id], _ = selector.Parse(r.Selector)
		}
	}
	return list
}

// askedBy returns the first continuous rollout that asks for the group; empty: none.
func (s *Store) askedBy(group string) string {
	followed := s.followed()
	for _, id := range slices.Sorted(maps.Keys(followed)) {
		if fleet.AsksGroup(followed[id], group) {
			return id
		}
	}
	return ""
}

func (s *Store) markAnyway(device string) {
	s.lastMark++
	s.marks[device] = mark{s.lastMark, s.marks[device].reported}
}

// following does what it takes that a rollout begins with the devices that changed
// while it was arranged, or ceases to follow and lets those go that await it.
func (s *Store) following(old, r ota.Rollout) {
	begins := r.Follows && old.StartedAt.IsZero() && !r.StartedAt.IsZero()
	if begins || old.Follows && !r.Follows {
		for id := range s.relooks[r.ID] {
			s.markAnyway(id)
		}
		delete(s.relooks, r.ID)
	}
}

// letGo has a device looked at again that lost what r had for it: a rollout that goes on
// and that r supersedes may have passed it by, or made way.
func (s *Store) letGo(r ota.Rollout, device string) {
	for _, o := range s.rollouts {
		if (o.Follows || o.State == ota.RolloutRunning || o.State == ota.RolloutPaused) && r.Supersedes(o) {
			s.markAnyway(device)
			return
		}
	}
}

// late reports whether a look has a device wait for what has come to pass.
func (s *Store) late(l fleet.Look) bool {
	return slices.ContainsFunc(l.Moves, func(m fleet.Moved) bool { return m.Late(s.rollouts[m.RolloutID]) })
}

// places are where a device stands in the lines of rollouts that follow.
func (s *Store) places(device string) (list []fleet.Place) {
	for _, id := range slices.Sorted(maps.Keys(s.rollouts)) {
		r := s.rollouts[id]
		if turn, ok := s.turn(r, device); r.Follows && ok {
			list = append(list, fleet.Place{RolloutID: id, Turn: turn, Left: s.left[attempt{rollout: id, device: device}]})
		}
	}
	return list
}

// turn is the last one that the device has in the rollout's line.
func (s *Store) turn(r ota.Rollout, device string) (turn int, ok bool) {
	turn = -1
	for n, c := range s.lines[line{r.ID, r.Line}] {
		if c.DeviceID == device {
			turn = max(turn, n)
		}
	}
	return turn, turn >= 0
}

// move makes a move of a device.
func (s *Store) move(device string, m fleet.Moved) {
	r := s.rollouts[m.RolloutID]
	turn, there := s.turn(r, device)
	at, reached := attempt{rollout: r.ID, device: device}, len(s.executions[r.ID][device]) > 0
	switch {
	case !r.Follows:
		return
	case r.StartedAt.IsZero() || m.Move == ota.MoveAwait:
		if s.relooks[r.ID] == nil {
			s.relooks[r.ID] = map[string]bool{}
		}
		s.relooks[r.ID][device] = true
		return
	case m.Move == ota.MoveLeave:
		if there {
			s.left[at] = true
		}
	default:
		delete(s.left, at)
		devices := 0
		if !there {
			devices = 1
		}
		if !reached && (!there || turn < r.Cursor) {
			s.lines[line{r.ID, r.Line}] = grown(s.lines[line{r.ID, r.Line}])
			s.lines[line{r.ID, r.Line}][r.Stages[len(r.Stages)-1].Target] = ota.Candidate{DeviceID: device, Lane: m.Lane}
			r = ota.Joined(r, 1, devices)
		}
	}
	s.rollouts[r.ID] = r
}

func grown(l map[int]ota.Candidate) map[int]ota.Candidate {
	if l == nil {
		return map[int]ota.Candidate{}
	}
	return l
}

// touched returns the rollouts that follow and that a look has changed.
func (s *Store) touched(l fleet.Look) map[string]bool {
	ids := map[string]bool{}
	for _, c := range l.Changed {
		if s.rollouts[c.From.RolloutID].Follows {
			ids[c.From.RolloutID] = true
		}
	}
	for _, m := range l.Moves {
		if r := s.rollouts[m.RolloutID]; r.Follows && !r.StartedAt.IsZero() && m.Move != ota.MoveAwait {
			ids[m.RolloutID] = true
		}
	}
	return ids
}

// revise has a rollout looked at again by the engine.
func (s *Store) revise(id string) {
	r := ota.Joined(s.rollouts[id], 0, 0)
	r.Revision++
	s.rollouts[id] = r
}

// gone reports whether the device has left the rollout: it is given nothing more.
func (s *Store) gone(r ota.Rollout, device string) bool {
	return r.Terms.Continuous && s.left[attempt{rollout: r.ID, device: device}]
}

// checkLine holds the line of a continuous rollout against its stages.
func (s *Store) checkLine(r ota.Rollout, say func(string, ...any)) {
	if !r.Follows || r.StartedAt.IsZero() {
		return
	}
	l, devices := s.lines[line{r.ID, r.Line}], map[string]bool{}
	target := r.Stages[len(r.Stages)-1].Target
	for turn, c := range l {
		devices[c.DeviceID] = true
		if turn >= target {
			say("rollout %s has turn %d, over its target %d", r.ID, turn, target)
		}
	}
	if len(l) != target || len(devices) != r.Population {
		say("rollout %s has %d turns for %d devices beside a target of %d and a population of %d", r.ID, len(l), len(devices), target, r.Population)
	}
	for id := range s.executions[r.ID] {
		if !devices[id] {
			say("rollout %s has an execution on device %s, which does not stand in its line", r.ID, id)
		}
	}
}

// overtaken reports whether a look by which a device leaves a rollout that follows
// has been overtaken, see fleet.Look.
func (s *Store) overtaken(l fleet.Look) bool {
	return slices.ContainsFunc(l.Moves, func(m fleet.Moved) bool {
		e, err := s.newest(m.RolloutID, l.DeviceID)
		return err == nil && s.rollouts[m.RolloutID].Follows && l.Overtaken(m, e)
	})
}
