package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// tell notes events of the running operation.
func (t *tx) tell(events ...ota.Event) {
	t.telling = append(t.telling, events...)
}

// tellMoved notes what became of one execution.
func (t *tx) tellMoved(before, after ota.Execution) {
	if e, moved := ota.Moved(before, after); moved {
		t.tell(e)
	}
}

const (
	takeNumbers = `INSERT INTO feed_marks (name, seq) VALUES ('end', ?) ON CONFLICT (name) DO UPDATE SET seq = feed_marks.seq + excluded.seq RETURNING seq`
	insertFeed  = `INSERT INTO rollout_events (seq, at, rollout_id, kind, stage, device_id, attempt, was, became, class, n, reason, release)
	SELECT v.seq, v.at, v.rollout, v.kind, v.stage, v.device, v.attempt, v.was, v.became, v.class, v.n, v.reason, v.release FROM {rows} WHERE 1 = 1`
)

// flushFeed writes the events of the batch as its very last act: other otad that
// have events wait from here to the commit, so that numbers are given in the order
// of commits and a reader never passes one by that is still to come.
func (t *tx) flushFeed() error {
	events := t.told
	if len(events) == 0 {
		return nil
	}
	var last int64
	if err := t.rows(func(r row) error { return r.Scan(&last) }, takeNumbers, len(events)); err != nil {
		return fmt.Errorf("number events: %w", err)
	}
	seq := make([]int64, len(events))
	for i := range seq {
		seq[i] = last - int64(len(events)) + int64(i) + 1
	}
	text := func(name string, f func(ota.Event) string) Column { return texts(name, list(events, f)) }
	number := func(name string, f func(ota.Event) int) Column {
		return integers(name, list(events, func(e ota.Event) int64 { return int64(f(e)) }))
	}
	_, err := t.bulk(t.write, insertFeed, len(events), nil, integers("seq", seq),
		integers("at", list(events, func(e ota.Event) int64 { return e.At.UnixMicro() })),
		text("rollout", func(e ota.Event) string { return e.RolloutID }), text("kind", func(e ota.Event) string { return string(e.Kind) }),
		number("stage", func(e ota.Event) int { return e.Stage }), text("device", func(e ota.Event) string { return e.DeviceID }),
		number("attempt", func(e ota.Event) int { return e.Attempt }), text("was", func(e ota.Event) string { return e.From }),
		text("became", func(e ota.Event) string { return e.To }), text("class", func(e ota.Event) string { return string(e.Class) }),
		number("n", func(e ota.Event) int { return e.Count }), text("reason", func(e ota.Event) string { return e.Reason }),
		text("release", func(e ota.Event) string { return e.Release.String() }))
	if err != nil {
		return fmt.Errorf("write %d events: %w", len(events), err)
	}
	return nil
}

const selectEvents = `SELECT seq, at, rollout_id, kind, stage, device_id, attempt, was, became, class, n, reason, release FROM rollout_events WHERE seq > ?`

// Feed implements fleet.FeedStore. How far the feed is gone is read last: what was
// dropped while the events were read is noticed.
func (s *Store) Feed(ctx context.Context, f fleet.FeedFilter, after int64, limit int) ([]fleet.RolloutEvent, error) {
	query, args := selectEvents, []any{after}
	if f.RolloutID != "" {
		query, args = query+` AND rollout_id = ?`, append(args, f.RolloutID)
	}
	if f.DeviceID != "" {
		query, args = query+` AND device_id = ? AND device_id <> ''`, append(args, f.DeviceID)
	}
	var events []fleet.RolloutEvent
	err := s.rows(ctx, func(r row) error {
		var e fleet.RolloutEvent
		err := r.Scan(&e.Seq, timeInto{&e.At}, &e.RolloutID, &e.Kind, &e.Stage, &e.DeviceID, &e.Attempt, &e.From, &e.To, &e.Class, &e.Count, &e.Reason, releaseInto{&e.Release})
		events = append(events, e)
		return err
	}, query+` ORDER BY seq LIMIT ?`, append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	dropped, err := s.mark(ctx, "dropped")
	if err != nil {
		return nil, err
	}
	if after > 0 && after < dropped {
		return nil, fmt.Errorf("events up to %d are %w: read on after that one, or from the first that is kept (0)", dropped, fleet.ErrDropped)
	}
	return events, nil
}

// FeedEnd implements fleet.FeedStore.
func (s *Store) FeedEnd(ctx context.Context) (int64, error) { return s.mark(ctx, "end") }

func (s *Store) mark(ctx context.Context, name string) (seq int64, err error) {
	if err = s.row(ctx, `SELECT seq FROM feed_marks WHERE name = ?`, name).Scan(&seq); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("read the feed's mark %s: %w", name, err)
	}
	return seq, nil
}

// DropFeed implements fleet.FeedStore.
func (s *Store) DropFeed(ctx context.Context, before time.Time, kept, limit int) (more bool, err error) {
	end, err := s.FeedEnd(ctx)
	if err != nil {
		return false, err
	}
	before = stored(before)
	cut, n := int64(0), 0
	going := true
	err = s.rows(ctx, func(r row) error {
		var seq int64
		var at time.Time
		err := r.Scan(&seq, timeInto{&at})
		if going = going && (seq <= end-int64(kept) || at.Before(before)); going {
			cut, n = seq, n+1
		}
		return err
	}, `SELECT seq, at FROM rollout_events ORDER BY seq LIMIT ?`, limit)
	if err != nil || n == 0 {
		return false, err
	}
	err = s.writer.do(ctx, func(t *tx) error {
		if _, err := t.exec(`DELETE FROM rollout_events WHERE seq <= ?`, cut); err != nil {
			return err
		}
		_, err := t.exec(`INSERT INTO feed_marks (name, seq) VALUES ('dropped', ?) ON CONFLICT (name) DO UPDATE SET seq = excluded.seq WHERE feed_marks.seq < excluded.seq`, cut)
		return err
	})
	return n == limit, err
}

// feed holds the numbers against the marks.
func (c *checker) feed() error {
	marks := map[string]int64{}
	err := c.each(func(r row) error {
		var name string
		var seq int64
		err := r.Scan(&name, &seq)
		marks[name] = seq
		return err
	}, `SELECT name, seq FROM feed_marks`)
	if err != nil {
		return err
	}
	return c.each(func(r row) error {
		var n int64
		var low, high sql.NullInt64
		if err := r.Scan(&n, &low, &high); err != nil {
			return err
		}
		if n != marks["end"]-marks["dropped"] || n > 0 && (low.Int64 != marks["dropped"]+1 || high.Int64 != marks["end"]) {
			c.say("the feed has %d events, %d to %d, and should have those behind %d up to %d", n, low.Int64, high.Int64, marks["dropped"], marks["end"])
		}
		return nil
	}, `SELECT COUNT(*), MIN(seq), MAX(seq) FROM rollout_events`)
}
