package storetest

import (
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

var rolloutTests = []test{
	{"are kept as they are and listed newest first", func(s *suite) {
		a := s.rollout("a", 3)
		b := newRollout("b", 3)
		b.CreatedAt = kept.Add(time.Second)
		s.must(s.createRollout(b))
		got, err := s.Rollout(ctx, "a")
		s.must(err)
		s.equal("rollout", got, a)
		list, err := s.Rollouts(ctx)
		s.must(err)
		s.equal("rollouts", list, []ota.Rollout{b, a})
		s.wantErr(s.CreateRollout(ctx, a), fleet.ErrConflict)
		_, err = s.Rollout(ctx, "nobody")
		s.wantErr(err, fleet.ErrNotFound)
		c := newRollout("c", 3)
		c.Release.Version = "none"
		s.wantErr(s.CreateRollout(ctx, c), fleet.ErrNotFound)
	}},
	{"of replicas that advance one revision, one wins", func(s *suite) {
		s.enrolled("a", "b", "c", "d")
		r := s.rollout("r", 1)
		devices := []string{"a", "b", "c", "d"}
		errs := together(len(devices), func(i int) error {
			return s.Advance(ctx, fleet.Advance{Rollout: r, Insert: queued(0, 1, devices[i]), Now: epoch})
		})
		s.equal("winners", s.wins(errs, fleet.ErrStale), 1)
		s.equal("executions", len(s.executions(fleet.ExecutionFilter{})), 1)
		got, err := s.Rollout(ctx, "r")
		s.must(err)
		s.equal("revision", got.Revision, r.Revision+1)
	}},
	{"advancing writes the step as a whole", func(s *suite) {
		s.enrolled("a", "b")
		r := s.rollout("r", 2)
		step := r
		step.State, step.Reason, step.ArmedAt = ota.RolloutPaused, "look", epoch.Add(time.Second)
		step.Stages = append([]ota.Stage(nil), r.Stages...)
		step.Stages[0].State, step.Stages[0].EndedAt = ota.StageFailed, epoch
		got := s.open(step, epoch, queued(0, 1, "a", "b")...)
		step.Revision++
		step.ArmedAt, step.Stages[0].EndedAt = kept.Add(time.Second), kept
		s.equal("rollout", got, step)
		s.equal("execution", s.execution("r", "b"), ota.Execution{
			RolloutID: "r", DeviceID: "b", Release: r.Release, Attempt: 1, Leg: 1, Status: ota.Queued, Version: 1, QueuedAt: kept, UpdatedAt: kept,
		})
	}},
	{"a step that can not be written changes nothing", func(s *suite) {
		s.enrolled("a")
		r := s.rollout("r", 2)
		bad := map[string]struct {
			insert []ota.Execution
			want   error
		}{
			"unknown device":      {queued(0, 1, "a", "nobody"), fleet.ErrNotFound},
			"unknown device, 2":   {append(queued(0, 1, "a"), queued(0, 2, "nobody")...), fleet.ErrNotFound},
			"stage out of range":  {append(queued(0, 1, "a"), queued(2, 1, "a")...), fleet.ErrInvalid},
			"attempt 0":           {queued(0, 0, "a"), fleet.ErrInvalid},
			"attempt before done": {append(queued(0, 1, "a"), queued(0, 2, "a")...), fleet.ErrInvalid},
			"attempt 2 first":     {queued(0, 2, "a"), fleet.ErrInvalid},
			"not queued":          {[]ota.Execution{{DeviceID: "a", Attempt: 1, Status: ota.InProgress}}, fleet.ErrInvalid},
			"other rollout":       {[]ota.Execution{{RolloutID: "x", DeviceID: "a", Attempt: 1, Status: ota.Queued}}, fleet.ErrInvalid},
		}
		for name, b := range bad {
			step := r
			step.Reason = "must not be written"
			if err := s.Advance(ctx, fleet.Advance{Rollout: step, Insert: b.insert, Now: epoch}); err == nil {
				s.Fatalf("%s: no error", name)
			} else {
				s.wantErr(err, b.want)
			}
		}
		got, err := s.Rollout(ctx, "r")
		s.must(err)
		s.equal("rollout", got, r)
		s.equal("executions", len(s.executions(fleet.ExecutionFilter{})), 0)
		r.ID = "nobody"
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: r, Now: epoch}), fleet.ErrNotFound)
	}},
	{"an execution that exists is left as it is", func(s *suite) {
		s.enrolled("a", "b")
		r := s.open(s.rollout("r", 2), epoch, queued(0, 1, "a")...)
		done := s.report("r", "a", ota.Succeeded, epoch)
		s.open(r, epoch.Add(time.Hour), queued(1, 1, "a", "b")...)
		s.equal("execution", s.execution("r", "a"), done)
		s.equal("new one", s.execution("r", "b").QueuedAt, kept.Add(time.Hour))
	}},
	{"a large stage opens whole", func(s *suite) {
		const n = 1203
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: n})
		ids := make([]string, n)
		errs := together(n, func(i int) error {
			ids[i] = fmt.Sprintf("d%04d", n-i)
			_, err := s.Enroll(ctx, fleet.Device{ID: ids[i]}, secret(1), epoch)
			return err
		})
		s.equal("enrolled", s.wins(errs, nil), n)
		r := s.open(s.rollout("r", n), epoch, queued(0, 1, ids...)...)
		s.equal("executions", len(s.executions(fleet.ExecutionFilter{RolloutID: "r"})), n)
		p, err := s.Progress(ctx, r, epoch)
		s.must(err)
		s.equal("queued", p.Stages[0].Queued, n)
	}},
	{"Cancel cancels every queued one and no other", func(s *suite) {
		s.enrolled("a", "b", "c", "d")
		r := s.open(s.rollout("r", 4), epoch, queued(0, 1, "a", "b", "c")...)
		other := s.open(s.rollout("other", 4), epoch, queued(0, 1, "d")...)
		running := s.report("r", "b", ota.InProgress, epoch)
		done := s.report("r", "c", ota.Failed, epoch)
		r.State, r.Reason = ota.RolloutAborting, `why "not"`
		r = s.open(r, epoch, queued(0, 1, "d")...)
		s.equal("one", len(s.cancel(r, epoch.Add(time.Second), 1)), 1)
		s.equal("the other", len(s.cancel(r, epoch.Add(time.Second), 9)), 1)
		s.equal("none", s.cancel(r, epoch.Add(time.Second), 9), []string(nil))
		for _, device := range []string{"a", "d"} {
			e := s.execution("r", device)
			s.equal("status", e.Status, ota.Canceled)
			s.equal("reason", e.Reason(), `why "not"`)
			s.equal("version", e.Version, int64(2))
			s.equal("finished at", e.FinishedAt, kept.Add(time.Second))
		}
		s.equal("running", s.execution("r", "b"), running)
		s.equal("done", s.execution("r", "c"), done)
		s.equal("of another rollout", s.execution(other.ID, "d").Status, ota.Queued)
	}},
	{"revoking a device ends what it has not finished", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.open(s.rollout("r", 3), epoch, queued(0, 1, "a", "b", "c")...)
		s.report("r", "b", ota.InProgress, epoch)
		done := s.report("r", "c", ota.Succeeded, epoch)
		for _, device := range []string{"a", "b", "c"} {
			s.must(s.RevokeDevice(ctx, device, epoch.Add(time.Second)))
		}
		for i, device := range []string{"a", "b"} {
			e := s.execution("r", device)
			s.equal("status", e.Status, ota.Removed)
			s.equal("reason", e.Reason(), fleet.RevokedReason)
			s.equal("version", e.Version, int64(2+i))
			s.equal("finished at", e.FinishedAt, kept.Add(time.Second))
		}
		s.equal("done", s.execution("r", "c"), done)
	}},
	{"progress counts the newest attempt only", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e", "f")
		r := s.open(s.rollout("r", 6), epoch, queued(0, 1, "a", "b", "c", "d")...)
		r = s.open(r, epoch, queued(1, 1, "e", "f")...)
		s.report("r", "a", ota.Failed, epoch.Add(time.Second))
		s.report("r", "b", ota.Succeeded, epoch.Add(time.Second))
		s.report("r", "c", ota.InProgress, epoch.Add(time.Second))
		s.report("r", "e", ota.Rejected, epoch.Add(3*time.Second))
		r = s.open(r, epoch.Add(2*time.Second), queued(0, 2, "a")...)
		r.ArmedAt = epoch.Add(time.Second)
		r = s.open(r, epoch)
		p, err := s.Progress(ctx, r, epoch)
		s.must(err)
		s.equal("progress", p, ota.Progress{
			Stages: []ota.Counts{
				{Queued: 2, InProgress: 1, Finished: map[ota.Class]int{ota.ClassSucceeded: 1}},
				{Queued: 1, Finished: map[ota.Class]int{ota.ClassRejected: 1}},
			},
			Armed: ota.Counts{Finished: map[ota.Class]int{ota.ClassRejected: 1}},
		})
		r.ArmedAt = time.Time{}
		r = s.open(r, epoch)
		p, err = s.Progress(ctx, r, epoch)
		s.must(err)
		s.equal("armed from the start", p.Armed.Finished, map[ota.Class]int{ota.ClassRejected: 1, ota.ClassSucceeded: 1})
		s.equal("older attempts", names(s.executions(fleet.ExecutionFilter{DeviceID: "a"})), []string{"r a 1", "r a 2"})
		r.ID = "nobody"
		_, err = s.Progress(ctx, r, epoch)
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"what ends in the microsecond in which a rollout was armed ended before", func(s *suite) {
		s.enrolled("a")
		s.must(s.RevokeDevice(ctx, "a", epoch))
		r := s.open(s.rollout("r", 1), epoch, queued(0, 1, "a")...) // armed at kept
		p, err := s.Progress(ctx, r, epoch)
		s.must(err)
		s.equal("removed, and not armed", p, ota.Progress{
			Stages: []ota.Counts{{Finished: map[ota.Class]int{ota.ClassNone: 1}}, {Finished: map[ota.Class]int{}}}, Armed: ota.Counts{Finished: map[ota.Class]int{}},
		})
	}},
	{"an attempt that a step has twice is made and counted once", func(s *suite) {
		s.enrolled("a")
		r := s.open(s.rollout("r", 1), epoch, queued(0, 1, "a", "a")...)
		s.report("r", "a", ota.Failed, at(1))
		r = s.open(r, at(2), queued(0, 2, "a", "a")...)
		p, err := s.Progress(ctx, r, at(2))
		s.must(err)
		s.equal("progress", p.Total(), ota.Counts{Queued: 1, Finished: map[ota.Class]int{}})
		s.equal("attempts", names(s.executions(fleet.ExecutionFilter{})), []string{"r a 1", "r a 2"})
	}},
	{"a step makes other rollouts with itself, or nothing", func(s *suite) {
		r := s.rollout("r", 1)
		var made []ota.Rollout
		for _, id := range []string{"r-b", "r-a"} {
			v := newRollout(id, 0)
			v.RevertOf, v.State, v.Revision = "r", ota.RolloutScheduled, 0
			made = append(made, v)
		}
		step := r
		step.State, step.Reverting = ota.RolloutRollingBack, true
		other := newRollout("x", 0)
		other.Release.Version = "none"
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: step, Create: append(made, other), Now: epoch}), fleet.ErrNotFound)
		_, err := s.Rollout(ctx, "r-a")
		s.wantErr(err, fleet.ErrNotFound)
		errs := together(4, func(int) error { return s.Advance(ctx, fleet.Advance{Rollout: step, Create: made, Now: epoch}) })
		s.equal("winners", s.wins(errs, fleet.ErrStale), 1)
		got, err := s.Rollout(ctx, "r-a")
		s.must(err)
		s.equal("made", got, made[1])
		r, err = s.Rollout(ctx, "r")
		s.must(err)
		s.equal("reverting", r.Reverting, true)
		p, err := s.Progress(ctx, r, epoch)
		s.must(err)
		s.equal("reverts", p.Reverts, []ota.Revert{{ID: "r-a", State: ota.RolloutScheduled}, {ID: "r-b", State: ota.RolloutScheduled}})
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: r, Create: made[:1], Now: epoch}), fleet.ErrConflict)
		got.State, got.EndedAt = ota.RolloutAborted, epoch
		s.must(s.Advance(ctx, fleet.Advance{Rollout: got, Now: epoch}))
		p, err = s.Progress(ctx, r, epoch)
		s.must(err)
		s.equal("one ended", p.Reverts[0].State, ota.RolloutAborted)
		r.Reverting = false
		p, err = s.Progress(ctx, r, epoch)
		s.must(err)
		s.equal("of one that is not reverted", len(p.Reverts), 0)
	}},
	{"an execution keeps what its device ran before", func(s *suite) {
		s.enrolled("a", "b")
		insert := queued(0, 1, "a", "b")
		insert[0].From = "before"
		r := s.open(s.rollout("r", 2), epoch, insert...)
		s.equal("from", []string{s.execution("r", "a").From, s.execution("r", "b").From}, []string{"before", ""})
		s.equal("reported", s.report("r", "a", ota.Failed, epoch).From, "before")
		insert = queued(0, 2, "a")
		insert[0].From = "before"
		s.open(r, epoch, insert...)
		s.equal("again", s.execution("r", "a").From, "before")
	}},
	{"progress of a rollout without executions is zero", func(s *suite) {
		p, err := s.Progress(ctx, s.rollout("r", 0), epoch)
		s.must(err)
		s.equal("stages", len(p.Stages), 2)
		s.equal("total", p.Total().Total(), 0)
	}},
}
