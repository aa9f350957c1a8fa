package storetest

import (
	"maps"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

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
	{"what is not offered ends as it is made", func(s *suite) {
		s.enrolled("a", "b", "c", "d")
		r := newRollout("r", 4)
		r.Terms.Retry = ota.Retry{Attempts: 3, On: []ota.Class{ota.ClassRejected}, Backoff: time.Hour}
		r.Terms.Timers.Claim = time.Hour
		s.must(s.createRollout(r))
		_, err := s.CreateRelease(ctx, release("app", "2"))
		s.must(err)
		via := []ota.ReleaseID{app("2")}
		for _, id := range []string{"a", "b", "c", "d"} {
			r = s.open(r, at(0), ota.Execution{DeviceID: id, Attempt: 1, Status: ota.Queued, Via: via})
		}
		s.withdraw("2", at(1))
		r, err = s.Rollout(ctx, "r")
		s.must(err)
		s.must(s.RevokeDevice(ctx, "c", at(2)))
		s.must(s.DeleteDevice(ctx, fleet.Deletion{DeviceID: "d", Force: true}, at(2)))
		var insert []ota.Execution
		for _, id := range []string{"a", "c", "d"} {
			insert = append(insert, ota.Strand(s.execution("r", id), "sign one", via[0]))
		}
		next := ota.Detour(s.execution("r", "b"), ota.Path{})
		next.Status = ota.Queued
		insert = append(insert, next)
		r = s.open(r, at(3), insert...)

		e := s.execution("r", "a")
		s.equal("refused", []any{e.Status, e.Class, e.Attempt, e.Version, e.Release, e.Expires.IsZero()}, []any{ota.Rejected, ota.ClassRejected, 2, int64(2), app("1"), true})
		s.equal("for this reason", e.Reason(), "no way leads on: sign one (app@2, over which it was to go, is withdrawn)")
		s.equal("at once", []time.Time{e.QueuedAt, e.StartedAt, e.FinishedAt, e.RetryAt}, []time.Time{keptAt(3), keptAt(3), keptAt(3), keptAt(3).Add(2 * time.Hour)})
		s.equal("the other", []any{s.execution("r", "b").Status, s.execution("r", "b").Attempt}, []any{ota.Queued, 2})
		s.equal("revoked", s.execution("r", "c").Status, ota.Removed)
		s.equal("deleted", []any{s.execution("r", "d").RetryAt.IsZero(), s.execution("r", "d").Attempt}, []any{true, 1})
		failures, err := s.Failures(ctx, "r", 9)
		s.must(err)
		s.equal("failures", names(failures), []string{"r a 2"})
		_, err = s.NextExecution(ctx, "a")
		s.wantErr(err, fleet.ErrNotFound)
		p, err := s.Progress(ctx, r, at(4))
		s.must(err)
		s.equal("counts", []any{p.Stages[0].Of(ota.ClassRejected), p.Stages[0].Queued, p.Stages[0].Retrying, p.Total().Total()}, []any{1, 1, 1, 4})
		events, err := s.Feed(ctx, fleet.FeedFilter{RolloutID: "r", DeviceID: "a"}, 0, 99)
		s.must(err)
		told := events[len(events)-1]
		s.equal("told", []any{told.From, told.To, told.Class, told.Attempt, told.Count}, []any{"QUEUED", "REJECTED", ota.ClassRejected, 2, 1})
		s.equal("no continuous rollout", len(s.marked(9)), 0)

		again := ota.Strand(s.execution("r", "b"), "x", ota.ReleaseID{})
		again.Attempt = 2
		r = s.open(r, at(5), again)
		s.equal("what exists is left as it is", s.execution("r", "b").Status, ota.Queued)
		for _, change := range []func(*ota.Execution){
			func(e *ota.Execution) { e.Attempt = 1 },
			func(e *ota.Execution) { e.Details = nil },
			func(e *ota.Execution) { e.Status = ota.Canceled },
		} {
			e := ota.Strand(s.execution("r", "a"), "sign one", via[0])
			change(&e)
			s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: r, Insert: []ota.Execution{e}, Now: at(6)}), fleet.ErrInvalid)
		}
	}},
	{"who is not offered what a continuous rollout brings is looked at", func(s *suite) {
		s.enrolled("a")
		s.turns(s.follows("r", "", "a"), 1, at(0))
		s.report("r", "a", ota.Failed, at(1))
		r := s.rolled("r")
		s.equal("nobody is marked", len(s.marked(9)), 0)
		s.open(r, at(2), ota.Strand(s.execution("r", "a"), "sign one", ota.ReleaseID{}))
		s.equal("marked", len(s.marked(9)), 1)
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

// via draws what a device passes through.
func via(t *rapid.T) []ota.ReleaseID {
	var ids []ota.ReleaseID
	for range rapid.SampledFrom([]int{0, 0, 1, 2, 3}).Draw(t, "legs") {
		ids = append(ids, app(versions.Draw(t, "via")))
	}
	return ids
}

// ways draws those of an opening.
func ways(t *rapid.T) []ota.Way {
	if rapid.Bool().Draw(t, "all at once") {
		return nil
	}
	list := []ota.Way{}
	for _, digest := range rapid.SliceOfNDistinct(digests, 0, 3, rapid.ID).Draw(t, "ways from") {
		list = append(list, ota.Way{Position: ota.Position{Hardware: "h", Digest: digest}, Via: via(t)})
	}
	return list
}

// goOn asks for the attempts that follow newest ones that have ended: of the next leg, on
// another way, or one that is not offered since there is none.
func (w *walk) goOn(t *rapid.T) {
	ended := map[string][]ota.Execution{}
	err := w.stores[0].Executions(ctx, fleet.ExecutionFilter{Latest: true}, func(e ota.Execution) bool {
		if e.Status.Terminal() {
			ended[e.RolloutID] = append(ended[e.RolloutID], e)
		}
		return true
	})
	if err != nil || len(ended) == 0 {
		return
	}
	id := rapid.SampledFrom(slices.Sorted(maps.Keys(ended))).Draw(t, "rollout")
	r, err := w.stores[0].Rollout(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	a := fleet.Advance{Rollout: r, Now: w.time(t)}
	for _, e := range ended[id] {
		path := ota.Path{Via: via(t)}
		switch rapid.IntRange(0, 4).Draw(t, "how") {
		case 0:
			continue
		case 1:
			e = ota.Detour(e, path)
		case 2:
			e = ota.Strand(e, "why", ota.ReleaseID{})
		default:
			e = ota.Follow(e, path)
		}
		if e.Status == "" {
			e.Status = ota.Queued
		}
		a.Insert = append(a.Insert, e)
	}
	w.same("go on", func(s fleet.Store) (any, error) { return nil, s.Advance(ctx, a) })
}
