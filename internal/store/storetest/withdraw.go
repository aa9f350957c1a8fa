package storetest

import (
	"fmt"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// withdraw withdraws app@VERSION.
func (s *suite) withdraw(version string, now time.Time) fleet.Withdrawn {
	s.Helper()
	done, err := s.Withdraw(ctx, fleet.Withdrawal{Release: app(version), Reason: "hangs", Now: now})
	s.must(err)
	return done
}

const withdrawnOne = "release app@1 is withdrawn: hangs"

var withdrawTests = []test{
	{"a release that is withdrawn stays so", func(s *suite) {
		_, err := s.Withdraw(ctx, fleet.Withdrawal{Release: app("1"), Reason: "hangs", Now: at(0)})
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.CreateRelease(ctx, release("app", "1"))
		s.must(err)
		_, err = s.Withdraw(ctx, fleet.Withdrawal{Release: app("1"), Now: at(0)})
		s.wantErr(err, ota.ErrInvalid)
		want := release("app", "1")
		want.State, want.WithdrawnAt, want.Reason = ota.ReleaseWithdrawn, keptAt(1), "hangs"
		s.equal("withdrawn", s.withdraw("1", at(1)).Release, want)
		got, err := s.Withdraw(ctx, fleet.Withdrawal{Release: app("1"), Reason: "another", Now: at(2)})
		s.must(err)
		s.equal("again", got.Release, want)
		r, err := s.Release(ctx, app("1"))
		s.must(err)
		s.equal("stored", r, want)
		r, err = s.CreateRelease(ctx, release("app", "1"))
		s.must(err)
		s.equal("uploaded again", r.State, ota.ReleaseWithdrawn)
		s.wantErr(s.PublishMetadata(ctx, nil, []ota.ReleaseID{app("1")}, at(3)), fleet.ErrConflict)
		events, err := s.Feed(ctx, fleet.FeedFilter{}, 0, 9)
		s.must(err)
		s.equal("told", events, []fleet.RolloutEvent{{Seq: 1, Event: ota.Event{
			At: keptAt(1), Release: app("1"), Kind: ota.EventRelease, From: "DRAFT", To: "WITHDRAWN", Reason: "hangs",
		}}})
	}},
	{"targets without it are published with it, or nothing is done", func(s *suite) {
		_, err := s.CreateRelease(ctx, release("app", "1"))
		s.must(err)
		_, err = s.CreateRelease(ctx, release("app", "2"))
		s.must(err)
		file := func(version int64) []fleet.Metadata {
			return []fleet.Metadata{{Role: fleet.RoleTargets, Version: version, Bytes: []byte("t")}}
		}
		s.must(s.PublishMetadata(ctx, file(1), []ota.ReleaseID{app("1")}, at(0)))
		_, err = s.Withdraw(ctx, fleet.Withdrawal{Release: app("1"), Reason: "hangs", Files: file(1), Now: at(1)})
		s.wantErr(err, fleet.ErrStale)
		r, err := s.Release(ctx, app("1"))
		s.must(err)
		s.equal("not withdrawn", r.State, ota.ReleaseSigned)
		_, err = s.Withdraw(ctx, fleet.Withdrawal{Release: app("1"), Reason: "hangs", Files: file(2), Signed: []ota.ReleaseID{app("2")}, Now: at(1)})
		s.must(err)
		r, err = s.Release(ctx, app("2"))
		s.must(err)
		s.equal("signed with it", r.State, ota.ReleaseSigned)
		_, err = s.Withdraw(ctx, fleet.Withdrawal{Release: app("1"), Reason: "hangs", Files: file(3), Now: at(1)})
		s.must(err)
		m, err := s.Metadata(ctx, fleet.RoleTargets, 0)
		s.must(err)
		s.equal("published once more", m.Version, int64(3))
	}},
	{"withdrawing aborts the rollouts of the release in the same step", func(s *suite) {
		s.enrolled("a", "b")
		r := s.open(s.rollout("r", 2), at(0), queued(0, 1, "a", "b")...)
		_, err := s.StartNext(ctx, "a", ota.Starting{}, at(0))
		s.must(err)
		over := s.rollout("over", 1)
		over.State, over.EndedAt = ota.RolloutAborted, at(0)
		s.must(s.Advance(ctx, fleet.Advance{Rollout: over, Now: at(0)}))
		other := newRollout("other", 1)
		other.Release = app("2")
		s.must(s.createRollout(other))
		before, err := s.FeedEnd(ctx)
		s.must(err)

		done := s.withdraw("1", at(1))
		s.equal("ended", len(done.Rollouts), 1)
		s.equal("before", done.Rollouts[0].Before.State, ota.RolloutRunning)
		got, err := s.Rollout(ctx, "r")
		s.must(err)
		s.equal("as returned", done.Rollouts[0].After, got)
		s.equal("aborted", []any{got.State, got.Reason, got.Stages[0].State, got.Revision}, []any{ota.RolloutAborting, withdrawnOne, ota.StageFailed, r.Revision + 1})
		told := s.happened(fleet.FeedFilter{}, before, 9)
		for i, want := range []string{"  release/0  DRAFT>WITHDRAWN 0 hangs", " r rollout/0  RUNNING>ABORTING 0 " + withdrawnOne, " r stage/1  OPEN>FAILED 0 "} {
			s.equal("told", told[i], fmt.Sprint(before+int64(i)+1, want))
		}
		s.equal("nothing else", len(told), 3)
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: r, Now: at(2)}), fleet.ErrStale)
		_, err = s.NextExecution(ctx, "b")
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "b", Status: ota.InProgress}, at(2))
		s.wantErr(err, ota.ErrTransition)
		for id, state := range map[string]ota.RolloutState{"over": ota.RolloutAborted, "other": ota.RolloutRunning} {
			r, err := s.Rollout(ctx, id)
			s.must(err)
			s.equal(id, r.State, state)
		}
	}},
	{"nothing is made of a release that is withdrawn", func(s *suite) {
		s.enrolled("a", "b")
		r := s.rollout("r", 2)
		r.Line = "l"
		s.must(s.PutCandidates(ctx, "r", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}}))
		late := newRollout("late", 2) // made while the release is being withdrawn
		late.Line = "l"
		s.withdraw("1", at(1))
		s.must(s.createRollout(late))
		s.must(s.PutCandidates(ctx, "late", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}}))
		for _, a := range []fleet.Advance{
			{Insert: queued(0, 1, "a")},
			{Open: &fleet.Opening{From: 0, To: 1}},
			{Open: &fleet.Opening{From: 0, To: 1, Ways: []ota.Way{{Position: ota.Position{Hardware: "board-a"}}}}},
		} {
			a.Rollout, a.Now = late, at(2)
			s.wantErr(s.Advance(ctx, a), fleet.ErrStale)
		}
		goal := newRollout("goal", 2)
		goal.Release, goal.Line = app("2"), "l"
		s.must(s.createRollout(goal))
		s.must(s.PutCandidates(ctx, "goal", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}}))
		insert := queued(0, 1, "a")
		insert[0].Via = []ota.ReleaseID{app("1")}
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: goal, Insert: insert, Now: at(2)}), fleet.ErrStale)
		ways := []ota.Way{{Position: ota.Position{Hardware: "board-a"}, Via: []ota.ReleaseID{app("1")}}}
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: goal, Open: &fleet.Opening{From: 0, To: 1, Ways: ways}, Now: at(2)}), fleet.ErrStale)
		s.equal("executions", len(s.executions(fleet.ExecutionFilter{})), 0)
		insert[0].Via = []ota.ReleaseID{app("3"), app("1")} // that is for another day
		s.must(s.Advance(ctx, fleet.Advance{Rollout: goal, Insert: insert, Now: at(2)}))
	}},
	{"who was to pass through it goes another way", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e", "f")
		over := []ota.ReleaseID{app("1"), app("2")}
		insert := queued(0, 1, "a", "b", "c", "d", "e", "f")
		for i := range 3 {
			insert[i].Via = over // a, b, c
		}
		insert[3].Via = over[:1]                   // d
		insert[4].Via = []ota.ReleaseID{app("10")} // e; f goes there at once
		_, err := s.CreateRelease(ctx, release("app", "1"))
		s.must(err)
		r := newRollout("r", 6)
		r.Release = app("3")
		s.must(s.createRollout(r))
		r = s.open(r, at(0), insert...)
		for device, step := range map[string]ota.Step{"b": ota.StepFetching, "c": ota.StepRebooting} {
			_, err := s.StartNext(ctx, device, ota.Starting{Details: map[string]string{ota.DetailStep: string(step)}}, at(0))
			s.must(err)
		}
		done := s.withdraw("1", at(1))
		s.equal("ended", len(done.Rollouts), 0)
		s.equal("rerouted", []any{len(done.Rerouted), done.Rerouted[0], done.Rerouted[1].DeviceID, done.Rerouted[1].StartedAt, done.Rerouted[2].DeviceID}, []any{
			3, ota.Execution{RolloutID: "r", DeviceID: "a", Status: ota.Canceled, QueuedAt: keptAt(0)}, "b", keptAt(0), "d",
		})
		for device, status := range map[string]ota.Status{"a": ota.Canceled, "b": ota.Canceled, "c": ota.InProgress, "d": ota.Canceled, "e": ota.Queued, "f": ota.Queued} {
			e := s.execution("r", device)
			s.equal(device, e.Status, status)
			if status == ota.Canceled {
				s.equal(device, []any{e.Reason(), e.RetryAt, e.Step(), e.Expires.IsZero()}, []any{withdrawnOne, keptAt(1), ota.Step(""), true})
			}
		}
		got, err := s.Rollout(ctx, "r")
		s.must(err)
		s.equal("it goes on", []any{got.State, got.Revision}, []any{ota.RolloutRunning, r.Revision + 1})
		p, err := s.Progress(ctx, got, at(1))
		s.must(err)
		s.equal("due", []any{p.Due, p.Stages[0].Retrying, p.Stages[0].Queued, p.Stages[0].InProgress, p.Stages[0].Finished[ota.ClassNone]}, []any{3, 3, 2, 1, 3})
		next := ota.Detour(s.execution("r", "a"), ota.Path{Via: over[1:]})
		next.Status = ota.Queued
		s.open(got, at(2), next)
		e := s.execution("r", "a")
		s.equal("on another way", []any{e.Attempt, e.Release, e.Status}, []any{2, app("2"), ota.Queued})
	}},
	{"who was left to a rollout of it is looked at", func(s *suite) {
		s.enrolled("a")
		r := newRollout("r", 1)
		r.Follows, r.Terms.Continuous, r.StartedAt, r.Selector = true, true, kept, ""
		r.Stages = r.Stages[1:]
		r.Stages[0].State = ota.StageOpen
		s.must(s.createRollout(r))
		s.runs("a", strings.Repeat("1", 64), at(0))
		m := s.marked(9)[0]
		s.must(s.Settle(ctx, []fleet.Look{{DeviceID: "a", Mark: m.Mark, Moves: []fleet.Moved{{RolloutID: "r", Move: ota.MoveAwait}}}}, at(0)))
		s.equal("nobody is marked", len(s.marked(9)), 0)
		s.withdraw("1", at(1))
		s.equal("marked", len(s.marked(9)), 1)
	}},
	{"who stands where a path is opened is looked at", func(s *suite) {
		s.enrolled("a", "b", "c")
		image := func(n string) string { return strings.Repeat(n, 64) }
		needy := func(version, least, digest string) ota.ReleaseID {
			r := release("app", version)
			r.MinVersion, r.ImageDigest = least, digest
			_, err := s.CreateRelease(ctx, r)
			s.must(err)
			return r.ID()
		}
		one, two, three := needy("1", "", image("1")), needy("2", "", image("2")), needy("3", "2", image("3"))
		s.must(s.PublishMetadata(ctx, nil, []ota.ReleaseID{one, three}, at(0)))
		r := newRollout("r", 0)
		r.Release, r.Follows, r.Terms.Continuous, r.StartedAt, r.Selector = three, true, true, kept, ""
		r.Stages = r.Stages[1:]
		r.Stages[0].State = ota.StageOpen
		s.must(s.CreateRollout(ctx, r))
		for device, digest := range map[string]string{"a": image("1"), "b": image("9")} {
			s.runs(device, digest, at(0))
		}
		for _, m := range s.marked(9) {
			s.must(s.Settle(ctx, []fleet.Look{{DeviceID: m.ID, Mark: m.Mark}}, at(0)))
		}
		s.equal("nobody", len(s.marked(9)), 0)
		s.must(s.PublishMetadata(ctx, nil, []ota.ReleaseID{two}, at(1)))
		m := s.marked(9)
		s.equal("marked", []any{len(m), m[0].ID}, []any{1, "a"})
		s.must(s.Settle(ctx, []fleet.Look{{DeviceID: "a", Mark: m[0].Mark}}, at(1)))
		again := needy("1.9", "", image("4"))
		s.must(s.PublishMetadata(ctx, nil, []ota.ReleaseID{again}, at(2)))
		s.equal("that leads nowhere new", len(s.marked(9)), 0)
	}},
	{"withdrawn by two at once, one counts", func(s *suite) {
		s.enrolled("a")
		s.open(s.rollout("r", 1), at(0), queued(0, 1, "a")...)
		errs := together(8, func(i int) error {
			if i%2 == 0 {
				_, err := s.Withdraw(ctx, fleet.Withdrawal{Release: app("1"), Reason: "hangs", Now: at(1)})
				return err
			}
			_, _ = s.StartNext(ctx, "a", ota.Starting{}, at(1))
			return nil
		})
		s.equal("succeeded", s.wins(errs, fleet.ErrStale), 8)
		events, err := s.Feed(ctx, fleet.FeedFilter{RolloutID: "r"}, 0, 99)
		s.must(err)
		n := 0
		for _, e := range events {
			if e.To == string(ota.RolloutAborting) {
				n++
			}
		}
		s.equal("aborted", n, 1)
	}},
}
