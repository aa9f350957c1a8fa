package storetest

import (
	"strings"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// lined makes a rollout whose first stage is open for the devices, in this order.
func (s *suite) lined(id string, devices ...string) ota.Rollout {
	s.Helper()
	r := newRollout(id, len(devices))
	r.Line = "l"
	s.must(s.createRollout(r))
	var list []ota.Candidate
	for _, d := range devices {
		list = append(list, ota.Candidate{DeviceID: d, Lane: "lane of " + d})
	}
	s.must(s.PutCandidates(ctx, id, "l", 0, list))
	return s.rolled(id)
}

// openings are the ids of the rollouts that are being opened.
func (s *suite) openings() (ids []string) {
	s.Helper()
	list, err := s.Openings(ctx)
	s.must(err)
	for _, r := range list {
		ids = append(ids, r.ID)
	}
	return ids
}

// reached are the executions of a rollout.
func (s *suite) reached(id string) []string {
	s.Helper()
	return names(s.executions(fleet.ExecutionFilter{RolloutID: id}))
}

// due are the devices from a to g whose turn in the rollout comes.
func (s *suite) due(id string) (list []string) {
	s.Helper()
	r := s.rolled(id)
	for _, device := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		due, err := s.Due(ctx, r, device)
		s.must(err)
		if due {
			list = append(list, device)
		}
	}
	return list
}

var turnTests = []test{
	{"a rollout is being opened while turns of its open stage are left, and nothing bounds them", func(s *suite) {
		s.enrolled("a", "b")
		r := s.lined("r", "a", "b")
		s.equal("open", s.openings(), []string{"r"})
		list, err := s.Openings(ctx)
		s.must(err)
		s.equal("as it is", list[0], r)
		for _, c := range []struct {
			what   string
			change func(*ota.Rollout)
			want   []string
		}{
			{"paused", func(r *ota.Rollout) { r.State = ota.RolloutPaused }, nil},
			{"goes on", func(r *ota.Rollout) { r.State = ota.RolloutRunning }, []string{"r"}},
			{"one has had its turn", func(r *ota.Rollout) { r.Cursor = 1 }, []string{"r"}},
			{"all have", func(r *ota.Rollout) { r.Cursor = 2 }, nil},
			{"the next stage waits", func(r *ota.Rollout) { r.Stages[0].State, r.Stages[1].Target = ota.StagePassed, 3 }, nil},
			{"it opens", func(r *ota.Rollout) { r.Stages[1].State = ota.StageOpen }, []string{"r"}},
			{"at a rate", func(r *ota.Rollout) { r.Terms.Rate.PerMinute = 1 }, nil},
		} {
			c.change(&r)
			s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Now: at(1)}))
			r = s.rolled("r")
			s.equal(c.what, s.openings(), c.want)
		}
	}},
	{"a device takes the turn that it is about to have", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e", "f", "g")
		r := s.lined("r", "a", "b", "c", "d", "e", "f")
		r.Cursor, r.Stages[0].Target = 1, 5 // a has lost its turn, f's stage is not open
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Now: epoch}))
		image := strings.Repeat("ab", 32)
		_, err := s.UpdateShadow(ctx, "b", "", shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"digest": image}}), epoch)
		s.must(err)
		s.must(s.RevokeDevice(ctx, "c", epoch))
		o := fleet.Opening{Digest: image}
		s.equal("due", s.due("r"), []string{"b", "c", "d", "e"})
		s.must(s.TakeTurns(ctx, "r", o, []string{"a", "b", "c", "e", "f", "g", "gone"}, epoch))
		s.equal("taken", s.reached("r"), []string{"r e 1"})
		s.equal("e", s.execution("r", "e"), ota.Execution{
			RolloutID: "r", DeviceID: "e", Release: r.Release, Attempt: 1, Leg: 1, Status: ota.Queued, Version: 1, Lane: "lane of e", QueuedAt: kept, UpdatedAt: kept,
		})
		s.must(s.TakeTurns(ctx, "r", o, []string{"e"}, at(1)))
		s.equal("due then", s.due("r"), []string{"b", "c", "d"})
		next, err := s.NextExecution(ctx, "e")
		s.must(err)
		s.equal("it is there once", next.QueuedAt, kept)
		r = s.rolled("r")
		s.equal("the rollout is as it was", []any{r.Cursor, r.Revision}, []any{1, int64(2)})
		for what, o := range map[string]fleet.Opening{"another stage": {Stage: 1}, "no way leads there": {Ways: []ota.Way{}}, "those that run an image only": {Only: []string{strings.Repeat("cd", 32), image}, Digest: image}} {
			if what == "those that run an image only" {
				_, err := s.UpdateShadow(ctx, "d", "", shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"digest": strings.Repeat("ef", 32)}}), epoch)
				s.must(err)
			}
			s.must(s.TakeTurns(ctx, "r", o, []string{"d"}, at(1)))
			s.equal(what, s.reached("r"), []string{"r e 1"})
		}
		step := fleet.Advance{Rollout: r, Now: at(2), Open: &fleet.Opening{From: 1, To: 5, Digest: image}}
		step.Rollout.Cursor = 5
		s.must(s.Advance(ctx, step))
		s.equal("given", s.reached("r"), []string{"r d 1", "r e 1"})
		s.equal("what was taken is its own already", s.execution("r", "e").QueuedAt, kept)
		s.must(s.TakeTurns(ctx, "r", o, []string{"b"}, at(3)))
		s.equal("there is nothing left to take", s.reached("r"), []string{"r d 1", "r e 1"})
		s.wantErr(s.TakeTurns(ctx, "none", o, []string{"b"}, at(3)), fleet.ErrNotFound)
	}},
	{"no turn is taken of a rollout that has stopped", func(s *suite) {
		s.enrolled("a")
		for _, state := range ota.RolloutStates {
			if state == ota.RolloutRunning {
				continue
			}
			id := strings.ToLower(string(state))
			r := s.lined(id, "a")
			if r.State = state; state.Terminal() {
				r.EndedAt = at(1)
			}
			s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Now: epoch}))
			s.must(s.TakeTurns(ctx, id, fleet.Opening{}, []string{"a"}, at(1)))
			s.equal(id, s.reached(id), []string(nil))
			s.equal(id+", due", s.due(id), []string(nil))
		}
	}},
	{"what takes a turn makes older rollouts give way, and gives way to newer ones", func(s *suite) {
		s.enrolled("a", "b")
		old := s.lined("old", "a", "b")
		s.must(s.TakeTurns(ctx, "old", fleet.Opening{}, []string{"a"}, epoch))
		r := newRollout("new", 2)
		r.Line, r.CreatedAt = "l", at(1)
		s.must(s.CreateRollout(ctx, r))
		s.must(s.PutCandidates(ctx, "new", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}}))
		s.must(s.TakeTurns(ctx, "new", fleet.Opening{}, []string{"a", "b"}, at(2)))
		s.equal("new", s.reached("new"), []string{"new a 1", "new b 1"})
		s.equal("old", s.execution("old", "a").Superseded(), "new")
		s.must(s.TakeTurns(ctx, "old", fleet.Opening{}, []string{"b"}, at(3)))
		s.equal("old", s.reached(old.ID), []string{"old a 1"})
	}},
	{"no turn is taken of a release that is withdrawn", func(s *suite) {
		s.enrolled("a")
		s.must(s.createRollout(newRollout("other", 1)))
		s.withdraw("1", at(1))
		s.lined("r", "a")
		s.wantErr(s.TakeTurns(ctx, "r", fleet.Opening{}, []string{"a"}, at(2)), fleet.ErrStale)
		ways := []ota.Way{{Position: ota.Position{Hardware: "board-a"}, Via: []ota.ReleaseID{app("1")}}}
		s.wantErr(s.TakeTurns(ctx, "r", fleet.Opening{Ways: ways}, []string{"a"}, at(2)), fleet.ErrStale)
		s.equal("nothing is made", s.reached("r"), []string(nil))
	}},
	{"a device that left a continuous rollout takes no turn", func(s *suite) {
		s.enrolled("a", "b")
		s.tag("a", "site", "north")
		s.tag("b", "site", "north")
		r := s.follows("r", `tags.site = "north"`, "a", "b")
		s.settled()
		s.equal("open", s.openings(), []string{"r"})
		s.tag("a", "site", "south")
		s.moves("r", ota.MoveLeave)
		s.must(s.TakeTurns(ctx, "r", fleet.Opening{}, []string{"a", "b"}, at(1)))
		s.equal("taken", s.reached("r"), []string{"r b 1"})
		s.tag("a", "site", "north")
		s.moves("r", ota.MoveJoin)
		s.equal("due", s.due("r"), []string{"a"})
		s.must(s.TakeTurns(ctx, "r", fleet.Opening{}, []string{"a"}, at(2)))
		s.equal("it came back", s.reached("r"), []string{"r a 1", "r b 1"})
		s.turns(s.rolled("r"), 2, at(3))
		s.equal("and had its turn", s.reached("r"), []string{"r a 1", "r b 1"})
		s.equal("no more are left", s.openings(), []string(nil))
		s.enrolled("c")
		s.tag("c", "site", "north")
		s.moves("r", ota.MoveJoin)
		s.equal("one has joined", s.openings(), []string{r.ID})
	}},
}
