package memstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// feed is what happened to rollouts.
type feed struct {
	events  []fleet.RolloutEvent
	end     int64
	dropped int64
}

// tell notes events of the running operation.
func (s *Store) tell(events ...ota.Event) { s.telling = append(s.telling, events...) }

// tellAll puts the events of an operation that succeeded into the feed.
func (s *Store) tellAll() {
	for _, e := range ota.InOrder(s.telling) {
		e.At = stored(e.At)
		s.feed.end++
		s.feed.events = append(s.feed.events, fleet.RolloutEvent{Seq: s.feed.end, Event: fleet.Told(e)})
	}
}

// Feed implements fleet.FeedStore.
func (s *Store) Feed(ctx context.Context, f fleet.FeedFilter, after int64, limit int) (list []fleet.RolloutEvent, err error) {
	err = s.locked(ctx, func() error {
		if after > 0 && after < s.feed.dropped {
			return fmt.Errorf("events up to %d are %w", s.feed.dropped, fleet.ErrDropped)
		}
		for _, e := range s.feed.events[max(0, min(after-s.feed.dropped, int64(len(s.feed.events)))):] {
			if len(list) < limit && (f.RolloutID == "" || e.RolloutID == f.RolloutID) && (f.DeviceID == "" || e.DeviceID == f.DeviceID) {
				list = append(list, e)
			}
		}
		return nil
	})
	return list, err
}

// FeedEnd implements fleet.FeedStore.
func (s *Store) FeedEnd(ctx context.Context) (end int64, err error) {
	err = s.locked(ctx, func() error { end = s.feed.end; return nil })
	return end, err
}

// DropFeed implements fleet.FeedStore.
func (s *Store) DropFeed(ctx context.Context, before time.Time, kept, limit int) (more bool, err error) {
	err = s.locked(ctx, func() error {
		n := 0
		for _, e := range s.feed.events {
			if n == limit || e.Seq > s.feed.end-int64(kept) && !e.At.Before(stored(before)) {
				break
			}
			n++
		}
		s.feed.events = slices.Clone(s.feed.events[n:])
		s.feed.dropped += int64(n)
		more = n == limit && n > 0
		return nil
	})
	return more, err
}
