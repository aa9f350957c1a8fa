package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// RolloutEvent is an event in the feed of rollouts. Numbers rise by one in the
// order of commits: who has read up to one has missed nothing before it.
type RolloutEvent struct {
	Seq int64 // from 1
	ota.Event
}

// ErrDropped: the feed is asked for from a place that it no longer keeps. What was
// missed can be read from the rollouts themselves.
var ErrDropped = errors.New("no longer kept")

// Limits of the feed.
const (
	// FeedLife is how long events are kept, MaxFeed how many.
	FeedLife = 30 * 24 * time.Hour
	MaxFeed  = 1_000_000
	// MaxEventReason is how much of a reason an event holds.
	MaxEventReason = 500
	feedSweep      = 10 * time.Minute
	feedDropped    = 10_000 // in one transaction
)

// FeedFilter narrows the feed; zero fields do not narrow.
type FeedFilter struct {
	RolloutID string
	DeviceID  string // what one step does to many devices is not of one
}

// FeedStore keeps the feed. Whatever changes a rollout or an execution writes its
// events in the same transaction, as ota.Changes, Moved and MovedTogether have
// them, in the order of ota.InOrder.
type FeedStore interface {
	// Feed returns up to limit events after the number, in order. Once it has
	// returned one, no event with a lower number ever appears. ErrDropped: after is
	// not 0 and events behind it have been dropped.
	Feed(ctx context.Context, f FeedFilter, after int64, limit int) ([]RolloutEvent, error)
	// FeedEnd is the number of the last event; 0: there was none.
	FeedEnd(ctx context.Context) (int64, error)
	// DropFeed forgets up to limit of the first events: those before the moment, and
	// those that are not among the last kept. It says whether there may be more.
	DropFeed(ctx context.Context, before time.Time, kept, limit int) (more bool, err error)
}

// Feed returns a page of the feed after the number, at most MaxPage.
func (s *Service) Feed(ctx context.Context, f FeedFilter, after int64, limit int) ([]RolloutEvent, error) {
	if after < 0 {
		return nil, fmt.Errorf("%w: event %d: they are counted from 1", ErrInvalid, after)
	}
	return s.Store.Feed(ctx, f, after, min(limit, MaxPage))
}

// FeedEnd is the number of the last event.
func (s *Service) FeedEnd(ctx context.Context) (int64, error) { return s.Store.FeedEnd(ctx) }

// WatchFeed returns a channel that receives after every change of any rollout on
// this replica, and a func that ends the watch.
func (s *Service) WatchFeed() (<-chan struct{}, func()) { return s.signals.watch(anyRollout) }

// RunFeed drops events and dead letters whose time is over until ctx ends. Several replicas may run
// it.
func (s *Service) RunFeed(ctx context.Context) error {
	tick := time.NewTicker(feedSweep)
	defer tick.Stop()
	for {
		for more := true; more; {
			var err error
			if more, err = s.Store.DropFeed(ctx, s.Now().Add(-FeedLife), MaxFeed, feedDropped); err != nil {
				if ctx.Err() == nil {
					s.Log.Warn("old events were not dropped, trying again later", "error", err)
				}
				break
			}
		}
		s.dropDeadLetters(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Told is an event as it is kept: a reason may come from a device.
func Told(e ota.Event) ota.Event {
	e.Reason = cutText(e.Reason, MaxEventReason)
	return e
}

// cutText is the beginning of a text, of at most so many bytes.
func cutText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && text[most]&0xC0 == 0x80 { // not within a character
		most--
	}
	return text[:most]
}
