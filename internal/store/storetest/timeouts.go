package storetest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// timed makes a rollout with a timeout, and an execution for each device.
func (s *suite) timed(id string, timeout time.Duration, devices ...string) ota.Rollout {
	s.Helper()
	r := newRollout(id, len(devices))
	r.InProgressTimeout = timeout
	s.must(s.createRollout(r))
	return s.open(r, epoch, queued(0, 1, devices...)...)
}

// expire is Expire, with the ended ones as "rollout device".
func (s *suite) expire(now time.Time) (ended string, next time.Time) {
	s.Helper()
	list, next, err := s.Expire(ctx, now)
	s.must(err)
	var out []string
	for _, e := range list {
		s.equal("returned as stored", e, s.execution(e.RolloutID, e.DeviceID))
		s.equal("status", e.Status, ota.TimedOut)
		out = append(out, e.RolloutID+" "+e.DeviceID)
	}
	return strings.Join(out, ", "), next
}

var timeoutTests = []test{
	{"nothing is due where nothing has a timer", func(s *suite) {
		s.enrolled("d")
		s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		s.report("r", "d", ota.InProgress, epoch)
		ended, next := s.expire(epoch.Add(1000 * time.Hour))
		s.equal("ended", ended, "")
		s.equal("next", next.IsZero(), true)
	}},
	{"the rollout's timeout runs from the start", func(s *suite) {
		s.enrolled("d", "e")
		s.timed("r", time.Hour, "d", "e")
		r, err := s.Rollout(ctx, "r")
		s.must(err)
		s.equal("timeout", r.InProgressTimeout, time.Hour)
		started := s.report("r", "d", ota.InProgress, epoch.Add(time.Minute))
		s.equal("expires", started.Expires, kept.Add(61*time.Minute))
		s.equal("stored", s.execution("r", "d"), started)
		again := s.report("r", "d", ota.InProgress, epoch.Add(30*time.Minute))
		s.equal("expires", again.Expires, kept.Add(61*time.Minute))
		ended, next := s.expire(epoch.Add(61*time.Minute - time.Microsecond))
		s.equal("ended", ended, "")
		s.equal("next", next, kept.Add(61*time.Minute))
		ended, next = s.expire(epoch.Add(61 * time.Minute))
		s.equal("ended", ended, "r d")
		s.equal("next", next.IsZero(), true)
		want := again
		want.Status, want.Class, want.Version, want.Expires, want.ExpiresAs = ota.TimedOut, ota.ClassTimedOut, 4, time.Time{}, ota.ClassNone
		want.UpdatedAt, want.FinishedAt = kept.Add(61*time.Minute), kept.Add(61*time.Minute)
		s.equal("stands", s.execution("r", "d"), want)
		s.equal("a QUEUED one has no timer", s.execution("r", "e").Status, ota.Queued)
		ended, _ = s.expire(epoch.Add(100 * time.Hour))
		s.equal("again", ended, "")
		p, err := s.Progress(ctx, r, epoch)
		s.must(err)
		s.equal("timed out", p.Stages[0].Finished[ota.ClassTimedOut], 1)
		s.equal("next of d", s.next("d"), "")
		e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.Succeeded}, epoch.Add(62*time.Minute))
		s.wantErr(err, ota.ErrTerminal)
		s.equal("a late report gets the state", e, want)
	}},
	{"a step's timer replaces the one before it, below the rollout's", func(s *suite) {
		s.enrolled("d")
		s.timed("r", time.Hour, "d")
		first, err := s.StartNext(ctx, "d", ota.Starting{StepTimeout: 5 * time.Minute}, epoch)
		s.must(err)
		s.equal("started", first.Expires, kept.Add(5*time.Minute))
		for _, c := range []struct{ step, want time.Duration }{
			{0, 5 * time.Minute}, {10 * time.Minute, 11 * time.Minute}, {2 * time.Hour, time.Hour}, {time.Minute, 2 * time.Minute}, {ota.NoStepTimeout, time.Hour},
		} {
			e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.InProgress, StepTimeout: c.step}, epoch.Add(time.Minute))
			s.must(err)
			s.equal(fmt.Sprintf("step of %s", c.step), e.Expires, kept.Add(c.want))
			s.equal("stored", s.execution("r", "d"), e)
		}
		_, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.InProgress, StepTimeout: time.Second}, epoch)
		s.wantErr(err, ota.ErrInvalid)
		_, next := s.expire(epoch)
		s.equal("next", next, kept.Add(time.Hour))
	}},
	{"what ends otherwise has no timer any more", func(s *suite) {
		s.enrolled("d", "e", "f")
		s.timed("r", time.Hour, "d", "e", "f")
		for _, d := range []string{"d", "e", "f"} {
			s.report("r", d, ota.InProgress, epoch)
		}
		s.report("r", "d", ota.Succeeded, epoch)
		s.must(s.RevokeDevice(ctx, "e", epoch))
		s.equal("removed", s.execution("r", "e").Expires.IsZero(), true)
		ended, next := s.expire(epoch.Add(2 * time.Hour))
		s.equal("ended", ended, "r f")
		s.equal("next", next.IsZero(), true)
	}},
	{"those due first end first", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.timed("r", 0, "a", "b", "c")
		for i, d := range []string{"b", "c", "a"} {
			_, err := s.StartNext(ctx, d, ota.Starting{StepTimeout: time.Duration(i+1) * time.Minute}, epoch)
			s.must(err)
		}
		ended, next := s.expire(epoch.Add(2 * time.Minute))
		s.equal("ended", ended, "r b, r c")
		s.equal("next", next, kept.Add(3*time.Minute))
	}},
	{"many end in several calls", func(s *suite) {
		const n = fleet.MaxExpired + 30
		var ids []string
		for i := range n {
			ids = append(ids, fmt.Sprintf("d%04d", i))
		}
		for some := range slices.Chunk(ids, 100) {
			s.enrolled(some...)
		}
		s.timed("r", time.Hour, ids...)
		errs := together(n, func(i int) error {
			_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: ids[i], Status: ota.InProgress}, epoch.Add(time.Duration(i)*time.Second))
			return err
		})
		s.equal("started", s.wins(errs, nil), n)
		now := epoch.Add(100 * time.Hour)
		first, next, err := s.Expire(ctx, now)
		s.must(err)
		s.equal("in the first call", len(first), fleet.MaxExpired)
		s.equal("next", next, kept.Add(time.Hour+fleet.MaxExpired*time.Second))
		rest, next, err := s.Expire(ctx, now)
		s.must(err)
		s.equal("in the second", len(rest), n-fleet.MaxExpired)
		s.equal("next", next.IsZero(), true)
		for i, e := range append(first, rest...) {
			s.equal("order", e.DeviceID, ids[i])
		}
	}},
	{"of two at once, one ends it", func(s *suite) {
		s.enrolled("d")
		s.timed("r", time.Minute, "d")
		s.report("r", "d", ota.InProgress, epoch)
		ended := make([]int, 8)
		errs := together(len(ended), func(i int) error {
			list, _, err := s.Expire(ctx, epoch.Add(time.Hour))
			ended[i] = len(list)
			return err
		})
		s.equal("calls", s.wins(errs, nil), len(errs))
		total := 0
		for _, n := range ended {
			total += n
		}
		s.equal("ended", total, 1)
		s.equal("version", s.execution("r", "d").Version, int64(3))
	}},
	{"a timeout is fixed when the rollout is made", func(s *suite) {
		s.enrolled("d")
		r := s.timed("r", time.Hour, "d")
		r.InProgressTimeout = time.Minute
		r = s.open(r, epoch)
		s.equal("timeout", r.InProgressTimeout, time.Hour)
		s.equal("of the execution", s.execution("r", "d").Timeout, time.Hour)
	}},
}
