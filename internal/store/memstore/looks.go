package memstore

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// mark is why a device is to be looked at.
type mark struct {
	number   int64
	reported time.Time
}

// mark has a device looked at again, which said at that moment what it runs, unless
// nothing could change on it: a word counts only against what was there before it. One
// that is marked remembers the word too.
func (s *Store) mark(device string, at time.Time) {
	if _, marked := s.marks[device]; marked {
		s.lastMark++
		s.marks[device] = mark{s.lastMark, stored(at)}
		return
	}
	for _, devices := range s.executions {
		attempts := devices[device]
		if n := len(attempts); n > 0 && (attempts[n-1].Status == ota.Queued || attempts[n-1].Status == ota.Succeeded) {
			s.lastMark++
			s.marks[device] = mark{s.lastMark, stored(at)}
			return
		}
	}
}

// Marked implements fleet.LookStore.
func (s *Store) Marked(ctx context.Context, limit int) (list []fleet.Marked, err error) {
	err = s.locked(ctx, func() error {
		for _, id := range slices.Sorted(maps.Keys(s.marks)) {
			if len(list) == limit {
				break
			}
			m := fleet.Marked{DeviceView: s.view(id, true), Mark: s.marks[id].number, ReportedAt: s.marks[id].reported, Places: s.places(id)}
			for _, rollout := range slices.Sorted(maps.Keys(s.executions)) {
				attempts := s.executions[rollout][id]
				for i, e := range attempts {
					if i == len(attempts)-1 || e.Class == ota.ClassDrifted || e.Class == ota.ClassUnderway || e.WentBack() {
						m.Executions = append(m.Executions, ownExecution(e.Under(s.rollouts[rollout])))
					}
				}
			}
			list = append(list, m)
		}
		return nil
	})
	return list, err
}

// Settle implements fleet.LookStore.
func (s *Store) Settle(ctx context.Context, looks []fleet.Look, now time.Time) error {
	return s.locked(ctx, func() error {
		touched := map[string]bool{}
		for _, l := range looks {
			changed := func(c fleet.Changed) bool {
				e, err := s.newest(c.From.RolloutID, c.From.DeviceID)
				return err != nil || !fleet.SameStanding(e, c.From)
			}
			if slices.ContainsFunc(l.Changed, changed) || len(l.Moves) > 0 && s.marks[l.DeviceID].number != l.Mark || s.late(l) || s.overtaken(l) || !s.there(l.DeviceID) {
				continue
			}
			for id := range s.touched(l) {
				touched[id] = true
			}
			for _, c := range l.Changed {
				s.put(settled(c.To))
			}
			for _, m := range l.Moves {
				s.move(l.DeviceID, m)
			}
			s.serverEvents(l.DeviceID, l.Events, now)
			if s.marks[l.DeviceID].number == l.Mark {
				delete(s.marks, l.DeviceID)
			}
		}
		for id := range touched {
			s.revise(id)
		}
		return nil
	})
}

// settled is an execution with the times as a store keeps them.
func settled(e ota.Execution) ota.Execution {
	for _, t := range []*time.Time{&e.StartedAt, &e.StepAt, &e.UpdatedAt, &e.FinishedAt, &e.RetryAt, &e.DriftedAt} {
		*t = stored(*t)
	}
	return e
}

// serverEvents appends to the history of a device what otad saw.
func (s *Store) serverEvents(device string, events []fleet.Event, now time.Time) {
	if len(events) == 0 {
		return
	}
	l := s.events[device]
	l.events = slices.Clone(l.events)
	for _, e := range events {
		l.position++
		e.Log, e.Seq, e.Position, e.At, e.Received = fleet.LogServer, l.position, l.position, stored(e.At), stored(now)
		l.events = append(l.events, e)
	}
	l.events = l.events[max(0, len(l.events)-fleet.MaxEventsKept):]
	s.events[device] = l
}
