package storetest

import (
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// happened is the feed after a number, in words.
func (s *suite) happened(f fleet.FeedFilter, after int64, limit int) (list []string) {
	s.Helper()
	events, err := s.Feed(ctx, f, after, limit)
	s.must(err)
	for _, e := range events {
		list = append(list, fmt.Sprintf("%d %s %s/%d %s %s>%s %d %s", e.Seq, e.RolloutID, e.Kind, e.Stage, e.DeviceID, e.From, e.To, e.Count, e.Reason))
	}
	return list
}

var feedTests = []test{
	{"tells what one step did as one event, and what a device did as its own", func(s *suite) {
		s.enrolled("a", "b", "c")
		r := newRollout("r", 3)
		r.State, r.Stages[0].State = ota.RolloutScheduled, ota.StagePending
		s.must(s.createRollout(r))
		r.State, r.Stages[0].State = ota.RolloutRunning, ota.StageOpen
		r = s.open(r, at(1), queued(0, 1, "a", "b", "c")...)
		_, err := s.StartNext(ctx, "a", ota.Starting{}, at(2))
		s.must(err)
		s.report("r", "a", ota.InProgress, at(2)) // a step is no change of state
		_, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "a", Status: ota.Failed, Details: map[string]string{ota.DetailReason: "no space"}}, at(3))
		s.must(err)
		s.must(s.RevokeDevice(ctx, "b", at(4)))
		r.State, r.Reason = ota.RolloutAborting, "stop"
		r = s.open(r, at(5))
		_, err = s.Cancel(ctx, r, at(5), 10)
		s.must(err)
		s.equal("feed", s.happened(fleet.FeedFilter{}, 0, 100), []string{
			"1 r rollout/0  >SCHEDULED 0 ", "2 r rollout/0  SCHEDULED>RUNNING 0 ", "3 r stage/1  PENDING>OPEN 0 ", "4 r execution/1  >QUEUED 3 ",
			"5 r execution/1 a QUEUED>IN_PROGRESS 1 ", "6 r execution/1 a IN_PROGRESS>FAILED 1 no space", "7 r execution/1 b QUEUED>REMOVED 1 the device was revoked",
			"8 r rollout/0  RUNNING>ABORTING 0 stop", "9 r execution/1  QUEUED>CANCELED 1 stop",
		})
		s.equal("of a device", s.happened(fleet.FeedFilter{DeviceID: "a"}, 5, 100), []string{"6 r execution/1 a IN_PROGRESS>FAILED 1 no space"})
		s.equal("a page", len(s.happened(fleet.FeedFilter{RolloutID: "r"}, 2, 3)), 3)
		s.equal("of another rollout", len(s.happened(fleet.FeedFilter{RolloutID: "q"}, 0, 3)), 0)
		events, err := s.Feed(ctx, fleet.FeedFilter{}, 5, 1)
		s.must(err)
		s.equal("one", events, []fleet.RolloutEvent{{Seq: 6, Event: ota.Event{
			At: keptAt(3), RolloutID: "r", Kind: ota.EventExecution, Stage: 1, DeviceID: "a", Attempt: 1, From: "IN_PROGRESS", To: "FAILED", Class: ota.ClassFailed, Count: 1, Reason: "no space",
		}}})
		end, err := s.FeedEnd(ctx)
		s.must(err)
		s.equal("end", end, int64(9))
	}},
	{"tells nothing of what was not done", func(s *suite) {
		s.enrolled("a")
		r := s.open(s.rollout("r", 1), epoch, queued(0, 1, "a")...)
		end, err := s.FeedEnd(ctx)
		s.must(err)
		stale := r
		stale.State, stale.Revision = ota.RolloutPaused, r.Revision-1
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: stale, Now: epoch}), fleet.ErrStale)
		bad := r
		bad.State = ota.RolloutPaused
		s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: bad, Insert: queued(0, 1, "nobody"), Now: epoch}), fleet.ErrNotFound)
		s.wantErr(s.CreateRollout(ctx, r), fleet.ErrConflict)
		_, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "a", Status: ota.Succeeded, ExpectedVersion: 9}, epoch)
		s.wantErr(err, ota.ErrVersionMismatch)
		after, err := s.FeedEnd(ctx)
		s.must(err)
		s.equal("end", after, end)
	}},
	{"a reader passes nothing by while many write", func(s *suite) {
		const n = 60
		ids := make([]string, n)
		for i := range ids {
			ids[i] = fmt.Sprintf("d%02d", i)
		}
		s.enrolled(ids...)
		s.open(s.rollout("r", n), epoch, queued(0, 1, ids...)...)
		read, done := make(chan int64), make(chan struct{})
		go func() {
			last := int64(0)
			for stopped := false; ; {
				events, err := s.Feed(ctx, fleet.FeedFilter{}, last, 7)
				if err != nil {
					s.Error(err)
				}
				for _, e := range events {
					if e.Seq != last+1 {
						s.Errorf("event %d after %d", e.Seq, last)
					}
					last = e.Seq
				}
				if stopped && len(events) == 0 {
					read <- last
					return
				}
				select {
				case <-done:
					stopped = true
				default:
				}
			}
		}()
		errs := together(n, func(i int) error {
			if _, err := s.StartNext(ctx, ids[i], ota.Starting{}, at(1)); err != nil {
				return err
			}
			_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: ids[i], Status: ota.Succeeded}, at(2))
			return err
		})
		close(done)
		s.equal("done", s.wins(errs, nil), n)
		last := <-read
		end, err := s.FeedEnd(ctx)
		s.must(err)
		s.equal("read up to", last, end)
		for _, id := range ids {
			events, err := s.Feed(ctx, fleet.FeedFilter{DeviceID: id}, 0, 9)
			s.must(err)
			s.equal("in order", []string{events[0].To, events[1].To}, []string{"IN_PROGRESS", "SUCCEEDED"})
		}
	}},
	{"forgets the first, and says so to who asks for them", func(s *suite) {
		s.enrolled("a")
		r := s.open(s.rollout("r", 1), at(0), queued(0, 1, "a")...) // 3 events, the first two at its creation
		for i := range 5 {
			r.State = []ota.RolloutState{ota.RolloutPaused, ota.RolloutRunning}[i%2]
			r = s.open(r, at(i+1))
		}
		drop := func(before time.Time, kept, limit int) bool {
			more, err := s.DropFeed(ctx, before, kept, limit)
			s.must(err)
			return more
		}
		s.equal("young and few", drop(at(-1), 8, 10), false)
		s.equal("all are there", len(s.happened(fleet.FeedFilter{}, 0, 10)), 8)
		s.equal("too many", drop(at(-1), 6, 10), false)
		s.equal("there are more", drop(at(2), 8, 1), true)
		s.equal("too old", drop(at(2), 8, 10), false)
		s.equal("left", s.happened(fleet.FeedFilter{}, 0, 10)[0], "5 r rollout/0  PAUSED>RUNNING 0 ")
		_, err := s.Feed(ctx, fleet.FeedFilter{}, 3, 10)
		s.wantErr(err, fleet.ErrDropped)
		s.equal("from the last that is gone", len(s.happened(fleet.FeedFilter{}, 4, 10)), 4)
		s.equal("all", drop(at(99), 8, 10), false)
		r.State = ota.RolloutRunning
		s.equal("the numbers go on", s.happened(fleet.FeedFilter{}, 8, 10), []string(nil))
		s.open(r, at(100))
		s.equal("the numbers go on", len(s.happened(fleet.FeedFilter{}, 0, 10)), 1)
	}},
}
