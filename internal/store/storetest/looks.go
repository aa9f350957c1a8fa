package storetest

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// running is a device's word about what it runs.
func running(digest string) shadow.Update {
	return shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"name": "app", "version": "1", "digest": digest}})
}

// runs stores it.
func (s *suite) runs(device, digest string, now time.Time) {
	s.Helper()
	_, err := s.UpdateShadow(ctx, device, "", running(digest), now)
	s.must(err)
}

func (s *suite) marked(limit int) []fleet.Marked {
	s.Helper()
	list, err := s.Marked(ctx, limit)
	s.must(err)
	return list
}

// marks names the marked devices.
func (s *suite) marks() (ids []string) {
	s.Helper()
	for _, m := range s.marked(100) {
		ids = append(ids, m.ID)
	}
	return ids
}

// looked is what ota.Compare makes of a marked device whose rollouts all install
// an image with this digest.
func looked(m fleet.Marked, digest string, now time.Time) fleet.Look {
	l := fleet.Look{DeviceID: m.ID, Mark: m.Mark}
	var list []ota.Standing
	before := map[string]ota.Execution{}
	for i, e := range m.Executions {
		before[e.RolloutID] = e
		if i+1 < len(m.Executions) && m.Executions[i+1].RolloutID == e.RolloutID && e.Class != ota.ClassDrifted {
			continue
		}
		list = append(list, ota.Standing{Execution: e, Digest: digest, Rollout: ota.Rollout{ID: e.RolloutID, Release: e.Release, Terms: ota.Terms{Retry: e.Retry}}})
	}
	for _, e := range ota.Compare(list, ota.Running{Digest: m.Firmware().Digest, At: m.ReportedAt}, now) {
		l.Changed = append(l.Changed, fleet.Changed{From: before[e.RolloutID], To: e})
		l.Events = append(l.Events, fleet.Event{Kind: "saw", Data: `{}`})
	}
	return l
}

var lookTests = []test{
	{"marks of one transaction are those of one after the other", func(s *suite) {
		s.follows("f", `tags.k = "x"`)
		do := func(id string) []func() {
			return []func(){
				func() {
					s.must(s.CreateDevice(ctx, fleet.Device{ID: id, Tags: map[string]string{"k": "x"}, CreatedAt: epoch}))
				},
				func() { s.runs(id, "old", at(9)) },
				func() { s.runs(id, "new", at(5)) }, // by the clock of another otad
			}
		}
		s.inOneBatch(do("a")...)
		for _, f := range do("b") {
			f()
		}
		list := s.marked(9)
		s.equal("marked", len(list), 2)
		for _, m := range list {
			s.equal("last word of "+m.ID, m.ReportedAt, keptAt(5))
		}
	}},
	{"a device that says what it runs is marked until it was looked at", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.runs("a", "d", epoch)
		s.runs("c", "d", epoch)
		s.equal("no rollout has come to it", s.marks(), []string(nil))
		s.bound("r", ota.Terms{}, "a", "b", "c")
		s.report("r", "b", ota.Succeeded, epoch)
		s.report("r", "c", ota.Failed, epoch)
		s.runs("c", "d", epoch)
		_, err := s.UpdateShadow(ctx, "a", "", reported("x", "1"), epoch)
		s.must(err)
		_, err = s.UpdateShadow(ctx, "a", "n", running("d"), epoch)
		s.must(err)
		version := int64(9)
		refused := running("d")
		refused.Version = &version
		_, err = s.UpdateShadow(ctx, "a", "", refused, epoch)
		s.wantErr(err, shadow.ErrVersionConflict)
		s.equal("nothing said", s.marks(), []string(nil))
		s.runs("b", "d", at(1))
		s.runs("a", "d", at(2))
		s.equal("marked", s.marks(), []string{"a", "b"})
		first := s.marked(1)
		s.equal("one of them", []any{len(first), first[0].ID, first[0].ReportedAt, first[0].Firmware().Digest}, []any{1, "a", keptAt(2), "d"})
		s.runs("a", "d", at(3)) // the same again, since
		s.must(s.Settle(ctx, []fleet.Look{{DeviceID: "a", Mark: first[0].Mark}}, at(4)))
		s.equal("marked anew", s.marks(), []string{"a", "b"})
		var looks []fleet.Look
		for _, m := range s.marked(100) {
			looks = append(looks, fleet.Look{DeviceID: m.ID, Mark: m.Mark})
		}
		s.must(s.Settle(ctx, looks, at(4)))
		s.equal("looked at", s.marks(), []string(nil))
		s.runs("a", "d", at(5))
		s.must(s.Settle(ctx, looks, at(6)))
		s.equal("a mark never comes again", s.marks(), []string{"a"})
	}},
	{"a device that drifted counts no more as a success, and is due again", func(s *suite) {
		s.enrolled("a", "b")
		r := s.bound("r", ota.Terms{Retry: ota.Retry{Attempts: 2, Backoff: time.Minute}}, "a", "b")
		r.ArmedAt = at(5)
		r = s.open(r, at(5))
		s.report("r", "a", ota.Succeeded, at(1))
		s.report("r", "b", ota.Succeeded, at(1))
		s.runs("a", "old", at(6))
		m := s.marked(100)
		s.equal("what there is to see", m[0].Executions, []ota.Execution{s.execution("r", "a")})
		s.must(s.Settle(ctx, []fleet.Look{looked(m[0], "new", at(7))}, at(7)))
		e := s.execution("r", "a")
		s.equal("drifted", []any{e.Status, e.Class, e.Version, e.DriftedAt, e.Runs, e.RetryAt}, []any{ota.Succeeded, ota.ClassDrifted, int64(2), keptAt(6), "old", keptAt(8)})
		p, err := s.Progress(ctx, r, at(8))
		s.must(err)
		s.equal("counts", p.Stages[0].Finished, map[ota.Class]int{ota.ClassSucceeded: 1, ota.ClassDrifted: 1})
		s.equal("armed by when it drifted", p.Armed.Finished[ota.ClassDrifted], 1)
		s.equal("due", []any{p.Due, p.Stages[0].Retrying}, []any{1, 1})
		events, err := s.Events(ctx, "a", 0, 9)
		s.must(err)
		s.equal("history", []any{len(events), events[0].Kind, events[0].Log, events[0].Received}, []any{1, "saw", fleet.LogServer, keptAt(7)})
		ack, err := s.AppendEvents(ctx, "a", "l", []fleet.Event{{Seq: 1, Kind: "k", Data: "{}"}}, at(8))
		s.must(err)
		s.equal("the device's own log", ack, int64(1))

		s.open(r, at(9), queued(0, 2, "a")...)
		e = s.execution("r", "a")
		s.equal("again", []any{e.Attempt, e.Status}, []any{2, ota.Queued})
		s.runs("a", "new", at(10))
		m = s.marked(100)
		s.equal("both attempts", len(m[0].Executions), 2)
		s.must(s.Settle(ctx, []fleet.Look{looked(m[0], "new", at(11))}, at(11)))
		e = s.execution("r", "a")
		s.equal("it has it", []any{e.Status, e.Class, e.Reason(), e.StartedAt}, []any{ota.Succeeded, ota.ClassSucceeded, ota.ArrivedReason, keptAt(10)})
		ack, err = s.AppendEvents(ctx, "a", "l", []fleet.Event{{Seq: 1, Kind: "k", Data: "{}"}, {Seq: 2, Kind: "k", Data: "{}"}}, at(12))
		s.must(err)
		events, err = s.Events(ctx, "a", 0, 9)
		s.must(err)
		s.equal("the device's own log goes on", []any{ack, len(events), events[0].Position}, []any{int64(2), 4, int64(4)})
	}},
	{"what changed since it was read is not settled", func(s *suite) {
		s.enrolled("a", "b")
		s.bound("r", ota.Terms{}, "a", "b")
		s.runs("a", "new", at(1))
		s.runs("b", "new", at(1))
		m := s.marked(100)
		_, err := s.StartNext(ctx, "a", ota.Starting{}, at(2))
		s.must(err)
		s.must(s.Settle(ctx, []fleet.Look{looked(m[0], "new", at(3)), looked(m[1], "new", at(3))}, at(3)))
		s.equal("it has begun", s.execution("r", "a").Status, ota.InProgress)
		s.equal("the other one", s.execution("r", "b").Status, ota.Succeeded)
		s.equal("still marked", s.marks(), []string{"a"})
		events, err := s.Events(ctx, "a", 0, 9)
		s.must(err)
		s.equal("no event", len(events), 0)
	}},
	{"of those who settle the same at once, one does", func(s *suite) {
		s.enrolled("a")
		s.bound("r", ota.Terms{}, "a")
		s.report("r", "a", ota.Succeeded, epoch)
		s.runs("a", "old", at(1))
		l := looked(s.marked(1)[0], "new", at(2))
		errs := together(8, func(int) error { return s.Settle(ctx, []fleet.Look{l}, at(2)) })
		s.equal("all fine", s.wins(errs, nil), 8)
		events, err := s.Events(ctx, "a", 0, 99)
		s.must(err)
		s.equal("events", len(events), 1)
		s.equal("marks", s.marks(), []string(nil))
	}},
}

// runs has a device say what it runs.
func (w *walk) runs(t *rapid.T) {
	id, digest, now := devices.Draw(t, "device"), rapid.SampledFrom([]string{"old", "new"}).Draw(t, "digest"), w.time(t)
	w.same("runs", func(s fleet.Store) (any, error) {
		_, err := s.UpdateShadow(ctx, id, "", running(digest), now)
		return nil, err
	})
}

// settle looks at some marked devices.
func (w *walk) settle(t *rapid.T) {
	n, now := rapid.IntRange(1, 3).Draw(t, "limit"), w.time(t)
	moves, filling := moving(t), w.gathering
	w.do("settle", func(s fleet.Store) func() (any, error) {
		list, err := s.Marked(ctx, n)
		var looks []fleet.Look
		said := ""
		for _, m := range list {
			l := looked(m, "new", now)
			if l.Moves = moves(m.ID); len(l.Moves) > 0 { // moves are not seen, whether they were made is
				l.Events = append(l.Events, fleet.Event{Kind: "moved", Data: `{}`})
			}
			looks = append(looks, l)
			if m.Mark = 0; filling {
				m.Groups = nil // one may be without its members yet
			}
			said += fmt.Sprintf("%s %s %+v %v %v\n", m.ID, m.ReportedAt, m.Executions, m.Groups, m.Places)
		}
		return func() (any, error) {
			if err != nil {
				return nil, err
			}
			return said, s.Settle(ctx, looks, now)
		}
	})
}
