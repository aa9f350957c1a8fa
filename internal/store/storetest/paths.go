package storetest

import (
	"strings"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

func app(version string) ota.ReleaseID { return ota.ReleaseID{Name: "app", Version: version} }

// pathTests are about devices that pass through releases on their way to that of a
// rollout.
var pathTests = []test{
	{"an opening has devices begin where their way does", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e")
		old, older, unknown := strings.Repeat("1", 64), strings.Repeat("2", 64), strings.Repeat("3", 64)
		for device, digest := range map[string]string{"a": old, "b": older, "c": unknown, "e": older} {
			s.runs(device, digest, at(0))
		}
		r := newRollout("r", 5)
		r.Line = "l"
		r.Release = app("9")
		s.must(s.createRollout(r))
		s.must(s.PutCandidates(ctx, "r", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}, {DeviceID: "c"}, {DeviceID: "d"}, {DeviceID: "e"}}))
		ways := []ota.Way{
			{Position: ota.Position{Hardware: "board-a", Digest: old}},
			{Position: ota.Position{Hardware: "board-a", Digest: older}, Via: []ota.ReleaseID{app("2"), app("3")}},
			{Position: ota.Position{Hardware: "board-b", Digest: unknown}, Via: []ota.ReleaseID{app("4")}},
		}
		r.Cursor = 5
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Open: &fleet.Opening{From: 0, To: 5, Ways: ways}, Now: at(1)}))
		list := s.executions(fleet.ExecutionFilter{RolloutID: "r"})
		s.equal("who has a way", names(list), []string{"r a 1", "r b 1", "r e 1"})
		s.equal("at once", []any{list[0].Release, list[0].Via, list[0].Leg, list[0].Legs()}, []any{app("9"), []ota.ReleaseID(nil), 1, 1})
		s.equal("over others", []any{list[1].Release, list[1].Via, list[1].Leg, list[1].Legs()}, []any{app("2"), []ota.ReleaseID{app("2"), app("3")}, 1, 3})
		passed, err := s.Passed(ctx, "r")
		s.must(err)
		s.equal("passed", passed, []ota.ReleaseID{app("2")})
		passed, err = s.Passed(ctx, "none")
		s.must(err)
		s.equal("nothing passed", passed, []ota.ReleaseID(nil))
	}},
	{"nobody has a way", func(s *suite) {
		s.enrolled("a")
		r := newRollout("r", 1)
		r.Line = "l"
		s.must(s.createRollout(r))
		s.must(s.PutCandidates(ctx, "r", "l", 0, []ota.Candidate{{DeviceID: "a"}}))
		r.Cursor = 1
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Open: &fleet.Opening{From: 0, To: 1, Ways: []ota.Way{}}, Now: at(1)}))
		s.equal("executions", len(s.executions(fleet.ExecutionFilter{})), 0)
	}},
	{"what came a leg is no success, and the next leg is due", func(s *suite) {
		s.enrolled("a")
		via := []ota.ReleaseID{app("2"), app("3")}
		r := s.rollout("r", 1)
		r = s.open(r, at(0), ota.Execution{DeviceID: "a", Attempt: 1, Status: ota.Queued, From: "x", Via: via})
		e, err := s.StartNext(ctx, "a", ota.Starting{}, at(1))
		s.must(err)
		s.equal("the first", e.Release, app("2"))
		e = s.report("r", "a", ota.Succeeded, at(2))
		s.equal("underway", []any{e.Class, e.RetryAt}, []any{ota.ClassUnderway, keptAt(2)})
		p, err := s.Progress(ctx, r, at(2))
		s.must(err)
		s.equal("due", []any{p.Due, p.Stages[0].Retrying, p.Stages[0].Sample(), p.Stages[0].Settled(), p.Total().Total()}, []any{1, 1, 0, false, 1})
		failures, err := s.Failures(ctx, "r", 9)
		s.must(err)
		s.equal("no failure", len(failures), 0)
		members, err := s.Unmatched(ctx, r, 9)
		s.must(err)
		s.equal("not updated yet", len(members), 0)
		stage := 0
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Repeat: &stage, Now: at(9)}))
		s.equal("a repeated stage is nothing to it", s.execution("r", "a").RetryAt, keptAt(2))
		r, err = s.Rollout(ctx, "r")
		s.must(err)

		r = s.open(r, at(3), follow(s.execution("r", "a")))
		e = s.execution("r", "a")
		s.equal("the second", []any{e.Release, e.Via, e.Leg, e.Legs(), e.Attempt, e.From}, []any{app("3"), via[1:], 2, 3, 2, "x"})
		s.report("r", "a", ota.Succeeded, at(4))
		s.open(r, at(5), follow(s.execution("r", "a")))
		e = s.report("r", "a", ota.Succeeded, at(6))
		s.equal("there", []any{e.Release, e.Via, e.Leg, e.Attempt, e.Class, e.RetryAt.IsZero()}, []any{app("1"), []ota.ReleaseID(nil), 3, 3, ota.ClassSucceeded, true})
		passed, err := s.Passed(ctx, "r")
		s.must(err)
		s.equal("passed", passed, via)
	}},
	{"the legs that a device came are there to see", func(s *suite) {
		s.enrolled("a")
		r := s.rollout("r", 1)
		r = s.open(r, at(0), ota.Execution{DeviceID: "a", Attempt: 1, Status: ota.Queued, Via: []ota.ReleaseID{app("2")}})
		s.report("r", "a", ota.Succeeded, at(1))
		s.open(r, at(2), follow(s.execution("r", "a")))
		s.runs("a", "goal", at(3))
		m := s.marked(9)
		s.equal("both", names(m[0].Executions), []string{"r a 1", "r a 2"})
	}},
	{"who arrives by other means goes no way", func(s *suite) {
		s.enrolled("a")
		r := s.rollout("r", 1)
		s.open(r, at(0), ota.Execution{DeviceID: "a", Attempt: 1, Status: ota.Queued, Via: []ota.ReleaseID{app("2")}})
		s.runs("a", "goal", at(1))
		m := s.marked(9)[0]
		from := m.Executions[0]
		list := ota.Compare([]ota.Standing{{Execution: from, Rollout: r, Digest: "leg", Goal: "goal"}}, ota.Running{Digest: "goal", At: at(1)}, at(2))
		s.equal("changed", len(list), 1)
		s.must(s.Settle(ctx, []fleet.Look{{DeviceID: "a", Mark: m.Mark, Changed: []fleet.Changed{{From: from, To: list[0]}}}}, at(2)))
		e := s.execution("r", "a")
		s.equal("there", []any{e.Status, e.Class, e.Release, e.Via, e.Legs()}, []any{ota.Succeeded, ota.ClassSucceeded, app("1"), []ota.ReleaseID(nil), 1})
	}},
	{"a path is not longer than it may be", func(s *suite) {
		s.enrolled("a")
		r := s.rollout("r", 1)
		e := ota.Execution{DeviceID: "a", Attempt: 1, Status: ota.Queued}
		for len(e.Via) < ota.MaxPath {
			e.Via = append(e.Via, app("2"))
		}
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: r, Insert: []ota.Execution{e}, Now: at(0)}), fleet.ErrInvalid)
		e.Via = e.Via[1:]
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Insert: []ota.Execution{e}, Now: at(0)}))
		s.equal("as long as it may be", len(s.execution("r", "a").Via), ota.MaxPath-1)
	}},
}

// follow is the attempt that follows one, as it is inserted.
func follow(e ota.Execution) ota.Execution {
	e = ota.Follow(e, ota.Path{})
	e.Status = ota.Queued
	return e
}
