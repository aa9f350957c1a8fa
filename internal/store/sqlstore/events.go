package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// AppendEvents implements fleet.EventStore.
func (s *Store) AppendEvents(ctx context.Context, deviceID, log string, events []fleet.Event, now time.Time) (ack int64, err error) {
	err = s.writer.do(ctx, func(t *tx) error {
		ack, err = appendEvents(t, deviceID, log, events, now)
		if errors.Is(err, errForeignKey) {
			return notFound("device %s", deviceID)
		}
		return err
	})
	return ack, err
}

func appendEvents(t *tx, deviceID, log string, events []fleet.Event, now time.Time) (int64, error) {
	var current string
	var seq, position int64
	err := t.row(`SELECT log, seq, position FROM device_event_logs WHERE device_id = ?`+t.forUpdate("device_event_logs"), deviceID).
		Scan(&current, &seq, &position)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	if current != log {
		seq = 0
	}
	fresh := 0
	for fresh < len(events) && events[fresh].Seq <= seq {
		fresh++
	}
	if events = events[fresh:]; len(events) == 0 && current == log {
		return seq, nil
	}
	if len(events) > 0 {
		seq = events[len(events)-1].Seq
	}
	if _, err := t.exec(`INSERT INTO device_event_logs (device_id, log, seq, position) VALUES (?, ?, ?, ?)
		ON CONFLICT (device_id) DO UPDATE SET log = excluded.log, seq = excluded.seq, position = excluded.position`,
		deviceID, log, seq, position+int64(len(events))); err != nil {
		return 0, err
	}
	if err := insertEvents(t, deviceID, log, position, events, now); err != nil {
		return 0, err
	}
	_, err = t.exec(`DELETE FROM device_events WHERE device_id = ? AND position <= ?`, deviceID, position+int64(len(events))-fleet.MaxEventsKept)
	return seq, err
}

const insertEvent = `INSERT INTO device_events (device_id, position, log, seq, at, received_at, kind, data, trace)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`

func insertEvents(t *tx, deviceID, log string, position int64, events []fleet.Event, now time.Time) error {
	for i, e := range events {
		if _, err := t.exec(insertEvent, deviceID, position+int64(i)+1, log, e.Seq, micros(e.At), micros(now), e.Kind, e.Data, e.Trace); err != nil {
			return err
		}
	}
	return nil
}

// Events implements fleet.EventStore.
func (s *Store) Events(ctx context.Context, deviceID string, before int64, limit int) ([]fleet.Event, error) {
	var page []fleet.Event
	err := s.rows(ctx, func(r row) error {
		var e fleet.Event
		err := r.Scan(&e.Position, &e.Log, &e.Seq, timeInto{&e.At}, timeInto{&e.Received}, &e.Kind, &e.Data, &e.Trace)
		page = append(page, e)
		return err
	}, `SELECT position, log, seq, at, received_at, kind, data, trace FROM device_events
		WHERE device_id = ? AND (? = 0 OR position < ?) ORDER BY position DESC LIMIT ?`, deviceID, before, before, limit)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return page, nil
}
