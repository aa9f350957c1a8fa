package storetest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

const togetherDevices = 30

// many is devices of which each has an execution of "a", at work, and one of "b".
func (s *suite) many() (ids []string, b ota.Rollout) {
	s.Helper()
	for i := range togetherDevices {
		ids = append(ids, fmt.Sprintf("d%02d", i))
	}
	s.enrolled(ids...)
	s.open(s.rollout("a", len(ids)), epoch, queued(0, 1, ids...)...)
	b = s.open(s.rollout("b", len(ids)), epoch.Add(time.Second), queued(0, 1, ids...)...)
	for _, id := range ids {
		s.report("a", id, ota.InProgress, epoch)
	}
	return ids, b
}

// allAtOnce has f run for each device at the same time, often enough that the writers
// have much to do in one batch.
func (s *suite) allAtOnce(ids []string, fs ...func(id string)) {
	var all sync.WaitGroup
	start := make(chan struct{})
	for _, id := range ids {
		for _, f := range fs {
			all.Go(func() {
				<-start
				f(id)
			})
		}
	}
	close(start)
	all.Wait()
}

var togetherTests = []test{
	{"what devices say at the same time counts once, and one is at work", func(s *suite) {
		ids, _ := s.many()
		var mu sync.Mutex
		accepted, begun := map[string]int{}, map[string]bool{}
		finish := func(id string) {
			if _, err := s.Report(ctx, ota.Report{RolloutID: "a", DeviceID: id, Status: ota.Succeeded, ExpectedVersion: 2}, epoch.Add(time.Minute)); err == nil {
				mu.Lock()
				accepted[id]++
				mu.Unlock()
			} else if !errors.Is(err, ota.ErrTerminal) && !errors.Is(err, ota.ErrVersionMismatch) {
				s.Error(err)
			}
		}
		next := func(id string) {
			e, err := s.StartNext(ctx, id, ota.Starting{}, epoch.Add(time.Minute))
			if err != nil || e.Status != ota.InProgress {
				s.Errorf("device %s starts %v: %v", id, e, err)
			}
			mu.Lock()
			begun[id] = begun[id] || e.RolloutID == "b"
			mu.Unlock()
		}
		start := func(id string) {
			_, err := s.Report(ctx, ota.Report{RolloutID: "b", DeviceID: id, Status: ota.InProgress}, epoch.Add(time.Minute))
			if err != nil && !errors.Is(err, ota.ErrTransition) {
				s.Error(err)
			}
			mu.Lock()
			begun[id] = begun[id] || err == nil
			mu.Unlock()
		}
		say := func(id string) {
			if _, err := s.UpdateShadow(ctx, id, "", shadow.NewUpdate(nil, map[string]any{"n": 1.0}), epoch); err != nil {
				s.Error(err)
			}
		}
		s.allAtOnce(ids, finish, next, say, start, finish, next)
		for _, id := range ids {
			s.equal(id+" is taken once", accepted[id], 1)
			a, b := s.execution("a", id), s.execution("b", id)
			s.equal("a on "+id, []any{a.Status, a.Version}, []any{ota.Succeeded, int64(3)})
			want := ota.Queued
			if begun[id] {
				want = ota.InProgress
			}
			s.equal("b on "+id, b.Status, want)
		}
	}},
	{"nothing starts after a pause", func(s *suite) {
		ids, b := s.many()
		for _, id := range ids {
			s.report("a", id, ota.Succeeded, epoch)
		}
		inProgress := func() (n int) {
			for _, e := range s.executions(fleet.ExecutionFilter{RolloutID: "b"}) {
				if e.Status == ota.InProgress {
					n++
				}
			}
			return n
		}
		var paused atomic.Int64
		b.State = ota.RolloutPaused
		s.allAtOnce(ids, func(id string) {
			if id == ids[len(ids)/2] {
				if err := s.Advance(ctx, fleet.Advance{Rollout: b, Now: epoch}); err != nil {
					s.Error(err)
				}
				paused.Store(int64(inProgress()))
			}
		}, func(id string) {
			if _, err := s.StartNext(ctx, id, ota.Starting{}, epoch); err != nil && !errors.Is(err, fleet.ErrNotFound) {
				s.Error(err)
			}
		})
		s.equal("at work when the pause was stored, and later", int64(inProgress()), paused.Load())
	}},
}
