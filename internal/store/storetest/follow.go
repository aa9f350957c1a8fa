package storetest

import (
	"fmt"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// following is a continuous rollout that is about to be arranged.
func following(id, selector string) ota.Rollout {
	r := newRollout(id, 0)
	r.Selector, r.State, r.Follows, r.Terms.Continuous, r.Population = selector, ota.RolloutScheduled, true, true, 0
	r.Stages = []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}}
	return r
}

// begun puts devices in line and begins.
func begun(s fleet.Store, r ota.Rollout, now time.Time, devices ...string) error {
	var list []ota.Candidate
	for _, d := range devices {
		list = append(list, ota.Candidate{DeviceID: d})
	}
	if err := s.PutCandidates(ctx, r.ID, "l", 0, list); err != nil {
		return err
	}
	r.Stages[0].Target = len(list)
	r = ota.Begin(r, r.Stages, len(list), "l", now)
	r.Stages[0].State = ota.StageOpen
	return s.Advance(ctx, fleet.Advance{Rollout: r, Now: now})
}

// follows makes a rollout that follows and has begun with the devices.
func (s *suite) follows(id, selector string, devices ...string) ota.Rollout {
	s.Helper()
	r := following(id, selector)
	s.must(s.createRollout(r))
	s.must(begun(s, r, epoch, devices...))
	return s.rolled(id)
}

func (s *suite) rolled(id string) ota.Rollout {
	s.Helper()
	r, err := s.Rollout(ctx, id)
	s.must(err)
	return r
}

// turns gives the next devices in line their turn.
func (s *suite) turns(r ota.Rollout, n int, now time.Time) ota.Rollout {
	s.Helper()
	step := fleet.Advance{Rollout: r, Now: now, Open: &fleet.Opening{From: r.Cursor, To: r.Cursor + n, Digest: strings.Repeat("ab", 32)}}
	step.Rollout.Cursor += n
	s.must(s.Advance(ctx, step))
	return s.rolled(r.ID)
}

// moves settles every mark, with a move of each device in a rollout's line.
func (s *suite) moves(id string, move ota.Move) {
	s.Helper()
	var looks []fleet.Look
	for _, m := range s.marked(100) {
		looks = append(looks, fleet.Look{DeviceID: m.ID, Mark: m.Mark, Moves: []fleet.Moved{{RolloutID: id, Move: move, Lane: "lane of " + m.ID}}})
	}
	s.must(s.Settle(ctx, looks, epoch))
}

// settled lets go of every mark and names the devices that had one.
func (s *suite) settled() (ids []string) {
	s.Helper()
	var looks []fleet.Look
	for _, m := range s.marked(100) {
		ids, looks = append(ids, m.ID), append(looks, fleet.Look{DeviceID: m.ID, Mark: m.Mark})
	}
	s.must(s.Settle(ctx, looks, epoch))
	return ids
}

func (s *suite) line(r ota.Rollout) (list []string) {
	s.Helper()
	line, err := s.Candidates(ctx, r.ID, r.Line, 0, 100)
	s.must(err)
	for _, c := range line {
		list = append(list, c.DeviceID)
	}
	return list
}

func (s *suite) tag(device, key, value string) {
	s.Helper()
	s.must(s.ChangeTags(ctx, device, map[string]string{key: value}, nil))
}

var followTests = []test{
	{"who comes to match a continuous rollout, or no longer matches, is marked", func(s *suite) {
		s.enrolled("a", "b")
		r := s.follows("r", `tags.site = "north" OR shadow.reported.mode = "x"`)
		s.enrolled("c")
		s.equal("enrolled, and does not match", s.settled(), []string(nil))
		s.must(s.CreateDevice(ctx, fleet.Device{ID: "d", Tags: map[string]string{"site": "north"}, CreatedAt: epoch}))
		s.equal("made, and matches", s.settled(), []string{"d"})
		s.tag("a", "site", "south")
		s.equal("another tag", s.settled(), []string(nil))
		s.tag("a", "site", "north")
		s.equal("comes by its tag", s.settled(), []string{"a"})
		s.tag("a", "other", "x")
		s.equal("it matches as before", s.settled(), []string(nil))
		s.update("b", "", "mode", "x")
		s.equal("comes by its shadow", s.settled(), []string{"b"})
		s.update("b", "", "other", "x")
		s.update("b", "named", "mode", "y")
		s.equal("what it does not ask for", s.settled(), []string(nil))
		s.runs("b", strings.Repeat("1", 64), at(1))
		s.equal("runs another image", s.settled(), []string{"b"})
		s.runs("b", strings.Repeat("1", 64), at(2))
		s.runs("c", strings.Repeat("1", 64), at(2))
		s.equal("runs the same, and does not match", s.settled(), []string(nil))
		_, err := s.DeleteShadow(ctx, "b", "", at(3))
		s.must(err)
		s.equal("goes by its shadow", s.settled(), []string{"b"})
		s.must(s.ChangeTags(ctx, "a", nil, []string{"site"}))
		s.equal("goes by its tag", s.settled(), []string{"a"})
		r.State, r.Follows = ota.RolloutFinishing, false
		s.open(r, at(4))
		s.tag("a", "site", "north")
		s.equal("it follows no more", s.settled(), []string(nil))
	}},
	{"a continuous rollout that asks for groups follows them", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "lab", CreatedAt: epoch}, []string{"a"}))
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "free", CreatedAt: epoch}, []string{"a"}))
		s.group("north", `tags.site = "north"`)
		r := s.follows("r", `groups:"lab" OR groups:"north"`, "a")
		s.must(s.ChangeMembers(ctx, "free", []string{"b"}, nil))
		s.equal("another group", s.settled(), []string(nil))
		s.must(s.ChangeMembers(ctx, "lab", []string{"b"}, []string{"a", "nobody"}))
		s.equal("a static one", s.settled(), []string{"a", "b"})
		s.tag("c", "site", "north")
		s.equal("a dynamic one", s.settled(), []string{"c"})
		s.update("c", "", "x", "y")
		s.equal("nothing of it", s.settled(), []string(nil))
		s.runs("c", strings.Repeat("1", 64), at(1))
		s.equal("another image", s.settled(), []string{"c"})
		s.must(s.CreateDevice(ctx, fleet.Device{ID: "d", CreatedAt: epoch}))
		s.equal("a new device", s.settled(), []string{"d"})
		s.wantErr(s.DeleteGroup(ctx, "lab"), fleet.ErrConflict)
		s.wantErr(s.DeleteGroup(ctx, "north"), fleet.ErrConflict)
		s.must(s.DeleteGroup(ctx, "free"))
		other := s.follows("other", `groups:"to come"`)
		s.wantErr(s.CreateGroup(ctx, fleet.Group{Name: "to come", CreatedAt: epoch}, nil), fleet.ErrConflict)
		other.State, other.Follows = ota.RolloutFinishing, false
		s.open(other, at(1))
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "to come", CreatedAt: epoch}, nil))
		r.State, r.Follows = ota.RolloutFinishing, false
		s.open(r, at(1))
		s.must(s.DeleteGroup(ctx, "lab"))
	}},
	{"who joins a continuous rollout gets one turn at the end of its line", func(s *suite) {
		r := following("r", "")
		s.must(s.createRollout(r))
		s.must(begun(s, r, epoch))
		s.enrolled("a", "b", "c")
		s.equal("marked", s.marks(), []string{"a", "b", "c"})
		m := s.marked(100)
		look := func(i int) fleet.Look {
			return fleet.Look{DeviceID: m[i].ID, Mark: m[i].Mark, Moves: []fleet.Moved{{RolloutID: "r", Move: ota.MoveJoin, Lane: "x"}}}
		}
		errs := together(8, func(i int) error { return s.Settle(ctx, []fleet.Look{look(i % 2), look(2)}, at(1)) })
		s.equal("all fine", s.wins(errs, nil), 8)
		r = s.rolled("r")
		s.equal("three turns", []any{len(s.line(r)), r.Stages[0].Target, r.Population, s.marks()}, []any{3, 3, 3, []string(nil)})
		s.equal("it has moved", r.Revision > 2, true)
		r = s.turns(r, 3, at(2))
		s.equal("executions", []any{s.execution("r", "a").Lane, len(s.executions(fleet.ExecutionFilter{}))}, []any{"x", 3})
		s.report("r", "a", ota.Succeeded, at(3))
		s.runs("a", strings.Repeat("ab", 32), at(3))
		s.moves("r", ota.MoveJoin)
		again := s.rolled("r")
		s.equal("it has had its execution", []any{len(s.line(again)), again.Stages[0].Target, again.Population}, []any{3, 3, 3})
		s.equal("places", s.placed("a"), []fleet.Place{{RolloutID: "r", Turn: again.Cursor - 3 + index(s.line(r), "a")}})
	}},
	{"who lost its turn and joins again gets another", func(s *suite) {
		s.enrolled("a", "b")
		s.runs("a", strings.Repeat("ab", 32), epoch) // it runs the image
		r := s.follows("r", "", "a", "b")
		s.turns(r, 2, at(1))
		s.equal("one", names(s.executions(fleet.ExecutionFilter{})), []string{"r b 1"})
		s.runs("a", strings.Repeat("1", 64), at(2))
		s.moves("r", ota.MoveJoin)
		s.update("a", "", "x", "y")
		r = s.rolled("r")
		s.equal("another turn", []any{s.line(r), r.Stages[0].Target, r.Population}, []any{[]string{"a", "b", "a"}, 3, 2})
		s.equal("its place", s.placed("a"), []fleet.Place{{RolloutID: "r", Turn: 2}})
		turn, ok, err := s.Turn(ctx, "r", r.Line, "a")
		s.must(err)
		s.equal("its last turn", []any{turn, ok}, []any{2, true})
		s.runs("a", strings.Repeat("2", 64), at(3))
		s.moves("r", ota.MoveJoin)
		r = s.rolled("r")
		s.equal("it is still to come", []any{s.line(r), r.Stages[0].Target}, []any{[]string{"a", "b", "a"}, 3})
		s.turns(r, 1, at(4))
		s.equal("both", names(s.executions(fleet.ExecutionFilter{})), []string{"r a 1", "r b 1"})
	}},
	{"who has left gets no turn and no further attempt until it is back", func(s *suite) {
		s.enrolled("a", "b", "c")
		for _, id := range []string{"a", "b", "c"} {
			s.tag(id, "site", "north")
		}
		r := following("r", `tags.site = "north"`)
		r.Terms.Retry = ota.Retry{Attempts: 3}
		s.must(s.createRollout(r))
		s.must(begun(s, r, epoch, "a", "b", "c"))
		r = s.turns(s.rolled("r"), 1, at(1))
		_, err := s.StartNext(ctx, "a", ota.Starting{}, at(1))
		s.must(err)
		for _, id := range []string{"a", "b"} {
			s.tag(id, "site", "south")
		}
		s.moves("r", ota.MoveLeave)
		r = s.turns(s.rolled("r"), 2, at(2))
		s.equal("no turn", names(s.executions(fleet.ExecutionFilter{})), []string{"r a 1", "r c 1"})
		s.report("r", "a", ota.Failed, at(3)) // it was at work, and would be tried again
		s.report("r", "c", ota.Failed, at(3))
		r = s.open(s.rolled("r"), at(4), queued(0, 2, "a", "c")...)
		s.equal("no attempt", []any{s.execution("r", "a").Attempt, s.execution("r", "c").Attempt, s.execution("r", "a").RetryAt.IsZero()}, []any{1, 2, true})
		s.report("r", "c", ota.Failed, at(5))
		stage := 0
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Repeat: &stage, Now: at(6)}))
		s.equal("repeated", []any{s.execution("r", "a").RetryAt, s.execution("r", "c").RetryAt}, []any{time.Time{}, keptAt(6)})
		for _, id := range []string{"a", "b"} {
			s.tag(id, "site", "north")
		}
		s.moves("r", ota.MoveJoin)
		s.equal("back", [][]fleet.Place{s.placed("a"), s.placed("b")}, [][]fleet.Place{{{RolloutID: "r", Turn: 0}}, {{RolloutID: "r", Turn: 3}}})
		r = s.open(s.rolled("r"), at(7), queued(0, 2, "a")...)
		s.turns(r, 1, at(8))
		s.equal("both go on", []any{s.execution("r", "a").Attempt, s.execution("r", "b").Attempt}, []any{2, 1})
	}},
	{"who changed while a continuous rollout was arranged is marked when it begins", func(s *suite) {
		s.enrolled("a", "b")
		r := following("r", `tags.site = "north"`)
		s.must(s.createRollout(r))
		s.tag("a", "site", "north")
		s.moves("r", ota.MoveLater)
		s.equal("looked at", s.marks(), []string(nil))
		got := s.rolled("r")
		s.equal("nothing moved", []any{got.Revision, got.Stages[0].Target}, []any{int64(1), 0})
		s.tag("b", "site", "north")
		late := fleet.Look{DeviceID: "b", Mark: s.marked(1)[0].Mark, Moves: []fleet.Moved{{RolloutID: "r", Move: ota.MoveLater}}}
		s.must(begun(s, got, at(1), "b"))
		s.must(s.Settle(ctx, []fleet.Look{late}, at(2)))
		s.equal("marked, and still", s.marks(), []string{"a", "b"})
		s.equal("the look came too late", s.line(s.rolled("r")), []string{"b"})
		s.moves("r", ota.MoveJoin)
		got = s.rolled("r")
		s.equal("line", []any{s.line(got), got.Population}, []any{[]string{"b", "a"}, 2})
	}},
	{"who awaits a rollout is marked when that ceases to follow", func(s *suite) {
		s.enrolled("a", "b")
		r := s.follows("r", `tags.site = "north"`)
		r.Idle = true
		r = s.open(r, at(1))
		s.tag("a", "site", "north")
		s.moves("r", ota.MoveAwait)
		got := s.rolled("r")
		s.equal("it rests, with an empty line", []any{s.marks(), s.line(got), got.Idle, got.Revision}, []any{[]string(nil), []string(nil), true, r.Revision})
		s.tag("b", "site", "north")
		late := fleet.Look{DeviceID: "b", Mark: s.marked(1)[0].Mark, Moves: []fleet.Moved{{RolloutID: "r", Move: ota.MoveAwait}}}
		got.State, got.Follows, got.Idle = ota.RolloutFinishing, false, false
		s.open(got, at(2))
		s.must(s.Settle(ctx, []fleet.Look{late}, at(3)))
		s.equal("marked again, and still", s.marks(), []string{"a", "b"})
	}},
	{"whom a rollout lets go is marked for those that it supersedes", func(s *suite) {
		s.enrolled("a", "b")
		s.must(s.createRollout(newRollout("alone", 1)))
		s.open(s.rolled("alone"), at(1), queued(0, 1, "a")...)
		s.cancel(s.rolled("alone"), at(2), 9)
		s.equal("nobody follows", s.marks(), []string(nil))
		s.follows("r", `tags.site = "north"`)
		newer := newRollout("s", 1)
		newer.CreatedAt = at(3)
		s.must(s.createRollout(newer))
		s.open(s.rolled("s"), at(4), queued(0, 1, "a")...)
		s.equal("cancelled", s.cancel(s.rolled("s"), at(5), 9), []string{"a"})
		s.equal("marked", s.marks(), []string{"a"})
	}},
	{"an idle rollout does not move until something has happened to it", func(s *suite) {
		s.enrolled("a", "b")
		r := s.follows("r", `tags.site = "north"`, "a")
		s.turns(r, 1, at(1))
		s.report("r", "a", ota.Succeeded, at(2))
		idle := func() ota.Rollout {
			r := s.rolled("r")
			r.Idle = true
			return s.open(r, at(3))
		}
		moving := func() []string {
			ids, err := s.Moving(ctx)
			s.must(err)
			return ids
		}
		before := idle()
		s.equal("idle", []any{moving(), before.Idle}, []any{[]string(nil), true})
		s.tag("b", "site", "north")
		s.equal("a mark moves nothing", moving(), []string(nil))
		s.moves("r", ota.MoveJoin)
		s.equal("somebody joins", moving(), []string{"r"})
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: before, Now: at(4)}), fleet.ErrStale)
		before = idle()
		s.runs("a", "old", at(5))
		m := s.marked(1)
		s.must(s.Settle(ctx, []fleet.Look{looked(m[0], "new", at(6))}, at(6)))
		s.equal("drifted", []any{s.execution("r", "a").Class, moving()}, []any{ota.ClassDrifted, []string{"r"}})
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: before, Now: at(7)}), fleet.ErrStale)
	}},
	{"a rollout whose selector can not be read does not follow it", func(s *suite) {
		s.wantErr(s.createRollout(following("r", "tags.site ~ 1")), fleet.ErrInvalid)
		r := following("r", "tags.site ~ 1")
		r.Follows = false
		s.must(s.createRollout(r))
		r.Follows = true
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: r, Now: epoch}), fleet.ErrInvalid)
		s.enrolled("a")
	}},
	{"a look by which a device leaves is void when it was given its turn meanwhile", func(s *suite) {
		s.enrolled("a")
		s.tag("a", "site", "north")
		r := s.follows("r", `tags.site = "north"`, "a")
		s.settled()
		s.tag("a", "site", "south")
		look := fleet.Look{DeviceID: "a", Mark: s.marked(1)[0].Mark, Moves: []fleet.Moved{{RolloutID: "r", Move: ota.MoveLeave}}}
		s.turns(r, 1, at(1))
		s.must(s.Settle(ctx, []fleet.Look{look}, at(2)))
		s.equal("still marked, in its place, with its attempt", []any{len(s.marked(1)), s.placed("a"), s.execution("r", "a").Status}, []any{1, []fleet.Place{{RolloutID: "r"}}, ota.Queued})
		queued := s.execution("r", "a")
		gone := queued
		gone.Status, gone.Version, gone.FinishedAt, gone.UpdatedAt = ota.Canceled, queued.Version+1, keptAt(3), keptAt(3)
		look.Changed, look.Mark = []fleet.Changed{{From: queued, To: gone}}, s.marked(1)[0].Mark
		s.must(s.Settle(ctx, []fleet.Look{look}, at(3)))
		s.equal("gone", []any{len(s.marked(1)), s.execution("r", "a").Status}, []any{0, ota.Canceled})
	}},
	{"of two looks at a device the newer one counts", func(s *suite) {
		s.enrolled("a")
		r := s.follows("r", `tags.site = "north"`)
		s.tag("a", "site", "north")
		first := s.marked(1)[0]
		s.tag("a", "site", "south")
		s.moves("r", ota.MoveLeave)
		s.must(s.Settle(ctx, []fleet.Look{{DeviceID: "a", Mark: first.Mark, Moves: []fleet.Moved{{RolloutID: "r", Move: ota.MoveJoin}}}}, at(1)))
		s.equal("the line is empty", s.line(s.rolled(r.ID)), []string(nil))
	}},
	{"a rollout that is finished cancels what waits and nothing else", func(s *suite) {
		s.enrolled("a", "b")
		r := s.follows("r", "", "a", "b")
		r = s.turns(r, 2, at(1))
		_, err := s.StartNext(ctx, "a", ota.Starting{Details: step(ota.StepFetching)}, at(2))
		s.must(err)
		r.State, r.Reason, r.Follows = ota.RolloutFinishing, "done", false
		r = s.open(r, at(3))
		s.equal("cancelled", s.cancel(r, at(4), 9), []string{"b"})
		s.equal("at work", []any{s.execution("r", "a").Status, s.execution("r", "b").Status}, []any{ota.InProgress, ota.Canceled})
		ids, err := s.Moving(ctx)
		s.must(err)
		s.equal("it moves to its end", ids, []string{"r"})
	}},
	{"a rollout that is held while it finishes stays so until it is resumed", func(s *suite) {
		s.enrolled("a", "b")
		r := s.follows("r", "", "a", "b")
		r = s.turns(r, 2, at(1))
		_, err := s.StartNext(ctx, "a", ota.Starting{Details: step(ota.StepFetching)}, at(2))
		s.must(err)
		finishing, err := ota.Finish(r, "done")
		s.must(err)
		held, err := ota.Pause(s.open(finishing, at(3)), "fire", ota.PauseHoldBeforeInstall)
		s.must(err)
		s.open(held, at(4))
		r = s.rolled("r")
		s.equal("it is kept what it was", []any{r.State, r.Finishes(), r.Holds(), r.Reason}, []any{ota.RolloutPaused, true, true, held.Reason})
		ids, err := s.Moving(ctx)
		s.must(err)
		s.equal("it does not move", ids, []string(nil))
		a, err := s.NextExecution(ctx, "a")
		s.must(err)
		s.equal("who is at work is asked to hold", []any{a.Status, a.Hold}, []any{ota.InProgress, true})
		_, err = s.StartNext(ctx, "b", ota.Starting{}, at(5))
		s.wantErr(err, fleet.ErrNotFound)
		s.equal("what waits is not cancelled", s.execution("r", "b").Status, ota.Queued)
		r, err = ota.Resume(r, "", at(6))
		s.must(err)
		r = s.open(r, at(6))
		s.equal("cancelled when it goes on", s.cancel(r, at(7), 9), []string{"b"})
		s.equal("and it holds nobody", s.execution("r", "a").Hold, false)
	}},
}

func index(list []string, what string) int {
	for i, v := range list {
		if v == what {
			return i
		}
	}
	return -1
}

// placed is where a device stands, as a look sees it.
func (s *suite) placed(device string) []fleet.Place {
	s.Helper()
	s.runs(device, strings.Repeat("e", 64), at(90))
	s.runs(device, strings.Repeat("f", 64), at(91))
	for _, m := range s.marked(100) {
		if m.ID == device {
			return m.Places
		}
	}
	return nil
}

// follow makes a rollout that follows, begins it, or gives devices their turn.
func (w *walk) follow(t *rapid.T) {
	now := w.time(t)
	r, err := w.stores[0].Rollout(ctx, "f")
	if err != nil {
		r = following("f", `tags.k = "x" OR groups:"north"`)
		r.CreatedAt = now
		r.Release.Version = versions.Draw(t, "version")
		r.Terms.Retry.Attempts = 3
		w.same("follow", func(s fleet.Store) (any, error) { return nil, s.CreateRollout(ctx, r) })
		return
	}
	list := rapid.SliceOfNDistinct(devices, 0, 3, rapid.ID).Draw(t, "devices")
	n := rapid.IntRange(0, 3).Draw(t, "turns")
	stop := rapid.IntRange(0, 9).Draw(t, "stop") == 0
	by := ways(t)
	w.do("follow", func(s fleet.Store) func() (any, error) {
		r, err := s.Rollout(ctx, "f")
		if err == nil && r.StartedAt.IsZero() {
			err = begun(s, r, now, list...)
			return func() (any, error) { return nil, err }
		}
		if err != nil {
			return func() (any, error) { return nil, err }
		}
		step := fleet.Advance{Rollout: r, Now: now}
		step.Rollout.Cursor = min(r.Cursor+n, r.Stages[0].Target)
		step.Open = &fleet.Opening{From: r.Cursor, To: step.Rollout.Cursor, Digest: strings.Repeat("ab", 32), Ways: by}
		step.Rollout.Idle = step.Rollout.Cursor == r.Stages[0].Target
		if stop {
			step.Rollout.State, step.Rollout.Follows = ota.RolloutFinishing, false
		}
		return func() (any, error) { return nil, s.Advance(ctx, step) }
	})
}

// moving draws what a look says of a device in the line of the rollout that follows.
func moving(t *rapid.T) func(string) []fleet.Moved {
	moves := map[string]ota.Move{}
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		moves[id] = rapid.SampledFrom([]ota.Move{ota.MoveStay, ota.MoveJoin, ota.MoveJoin, ota.MoveLeave, ota.MoveAwait, ota.MoveLater}).Draw(t, "move of "+id)
	}
	return func(id string) []fleet.Moved {
		if moves[id] == ota.MoveStay {
			return nil
		}
		return []fleet.Moved{{RolloutID: "f", Move: moves[id], Lane: fmt.Sprint("lane of ", id)}}
	}
}
