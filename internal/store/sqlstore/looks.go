package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// mark has a device looked at again, which said at that moment what it runs.
func (t *tx) mark(deviceID string, at time.Time) {
	if t.marked == nil {
		t.marked = map[string]anyMark{}
	}
	m := t.marked[deviceID]
	if !at.IsZero() {
		m.reported = at // the last word counts, whatever the clock of its otad
	}
	t.marked[deviceID] = m
}

// insertMarks passes by devices on which nothing could change: a word counts only
// against what was there before it. Those that a continuous rollout looks at are
// marked anyway, and one that is marked remembers its last word: marks of one batch
// are written together, and those of two must come to the same.
const insertMarks = `INSERT INTO marks (device_id, mark, reported_at) SELECT v.device, v.mark, v.at FROM {rows}
	WHERE v.anyway = 1 AND EXISTS (SELECT 1 FROM devices d WHERE d.id = v.device) OR EXISTS (SELECT 1 FROM executions e WHERE e.device_id = v.device AND e.latest = 1 AND e.status IN ('QUEUED', 'SUCCEEDED'))
	OR EXISTS (SELECT 1 FROM marks k WHERE k.device_id = v.device)
	ON CONFLICT (device_id) DO UPDATE SET mark = excluded.mark, reported_at = COALESCE(excluded.reported_at, marks.reported_at)`

// flushMarks writes the marks of the batch in order, so that two otad that lock
// rows do not wait for each other. A mark is a number that never comes again: who
// settles one can not take another one away.
func (t *tx) flushMarks() error {
	ids := slices.Sorted(maps.Keys(t.marked))
	_, err := t.bulk(t.write, insertMarks, len(ids), nil,
		texts("device", ids),
		integers("mark", list(ids, func(string) int64 { return rand.Int64() })),
		times("at", list(ids, func(id string) time.Time { return t.marked[id].reported })),
		integers("anyway", list(ids, func(id string) int64 { return truth(t.marked[id].anyway) })))
	if err != nil {
		return fmt.Errorf("mark %d devices: %w", len(ids), err)
	}
	return nil
}

const selectMarked = `SELECT ` + viewColumns + itsGroups + `, k.mark, k.reported_at FROM marks k JOIN devices d ON d.id = k.device_id
	LEFT JOIN shadows s ON s.device_id = d.id AND s.name = '' AND s.deleted_at IS NULL` + withSeen + ` ORDER BY k.device_id LIMIT ?`

// Marked implements fleet.LookStore.
func (s *Store) Marked(ctx context.Context, limit int) ([]fleet.Marked, error) {
	var marked []fleet.Marked
	at := map[string]int{}
	err := s.rows(ctx, func(r row) error {
		var m fleet.Marked
		err := scanViewAnd(r, &m.DeviceView, &m.Mark, timeInto{&m.ReportedAt})
		at[m.ID], marked = len(marked), append(marked, m)
		return err
	}, selectMarked, limit)
	if err == nil && len(marked) > 0 {
		err = s.executionsOf(ctx, slices.Sorted(maps.Keys(at)), func(e ota.Execution) {
			m := &marked[at[e.DeviceID]]
			m.Executions = append(m.Executions, e)
		})
	}
	if err == nil && len(marked) > 0 {
		err = s.placesOf(ctx, slices.Sorted(maps.Keys(at)), func(deviceID string, p fleet.Place) {
			m := &marked[at[deviceID]]
			m.Places = append(m.Places, p)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read marked devices: %w", err)
	}
	return marked, nil
}

// executionsOf calls f for the newest attempts on the devices, and for older ones
// that drifted, went back or came a leg, by rollout.
func (s *Store) executionsOf(ctx context.Context, ids []string, f func(ota.Execution)) error {
	return s.ofDevices(ctx, ids, func(r row) error {
		e, err := scanExecution(r)
		f(e)
		return err
	}, selectExecution+` JOIN {rows} ON v.device = e.device_id WHERE e.latest = 1 OR e.class IN ('drifted', 'rolled_back', 'underway') OR e.went_back_at IS NOT NULL ORDER BY e.device_id, e.rollout_id, e.attempt`)
}

// placesOf calls f for the places of the devices in lines that are followed.
func (s *Store) placesOf(ctx context.Context, ids []string, f func(deviceID string, p fleet.Place)) error {
	return s.ofDevices(ctx, ids, func(r row) error {
		var id string
		var p fleet.Place
		var standing int
		err := r.Scan(&id, &p.RolloutID, &p.Turn, &standing)
		p.Left = standing == 0
		f(id, p)
		return err
	}, selectPlaces)
}

// ofDevices calls f for each row of a query over rows of devices.
func (s *Store) ofDevices(ctx context.Context, ids []string, f func(row) error, query string) error {
	text := s.config.Dialect.over(query, []Column{texts("device", ids)}, len(ids))
	args := []any{ids}
	if s.config.Dialect.Chunks != nil {
		args = list(ids, func(id string) any { return id })
	}
	return s.adhoc(ctx, f, Condition{SQL: text, Args: args})
}

// Settle implements fleet.LookStore.
func (s *Store) Settle(ctx context.Context, looks []fleet.Look, now time.Time) error {
	looks = slices.Clone(looks)
	slices.SortFunc(looks, func(a, b fleet.Look) int { return strings.Compare(a.DeviceID, b.DeviceID) })
	return s.writer.doAlone(ctx, func(t *tx) error {
		f, err := t.lockFollowed(looks)
		if err != nil {
			return err
		}
		var settled []fleet.Look
		for _, l := range looks {
			done, err := t.settle(f, l, now)
			if err != nil {
				return fmt.Errorf("settle device %s: %w", l.DeviceID, err)
			}
			if done {
				f.touch(l)
				settled = append(settled, l)
			}
		}
		if err := t.putFollowed(f); err != nil {
			return err
		}
		return t.unmark(settled)
	})
}

// settle writes what was decided of a device, unless what it stands on has
// changed.
func (t *tx) settle(f followed, l fleet.Look, now time.Time) (bool, error) {
	if f.late(l) {
		return false, nil
	}
	if there, err := t.stays(l.DeviceID); !there || err != nil {
		return false, err
	}
	if len(l.Moves) > 0 {
		if same, err := t.sameMark(l); !same || err != nil {
			return false, err
		}
	}
	for _, c := range l.Changed {
		e, err := scanExecution(t.row(selectNewest+t.forUpdate("e"), c.From.RolloutID, c.From.DeviceID))
		if errors.Is(err, sql.ErrNoRows) || err == nil && !fleet.SameStanding(e, c.From) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	if over, err := t.overtaken(f, l); over || err != nil {
		return false, err
	}
	for _, c := range l.Changed {
		if err := t.putExecution(c.From, c.To); err != nil {
			return false, err
		}
	}
	for _, m := range l.Moves {
		if err := t.move(f, l.DeviceID, m); err != nil {
			return false, err
		}
	}
	return true, t.serverEvents(l.DeviceID, l.Events, now)
}

// stays reports whether the device is there, and keeps it until the transaction ends.
func (t *tx) stays(deviceID string) (bool, error) {
	var one int
	err := t.row(`SELECT 1 FROM devices WHERE id = ?`+t.w.dialect.ForKey, deviceID).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

const deleteMarks = `DELETE FROM marks WHERE (device_id, mark) IN (SELECT v.device, v.mark FROM {rows})`

func (t *tx) unmark(looks []fleet.Look) error {
	_, err := t.bulk(t.exec, deleteMarks, len(looks), nil,
		texts("device", list(looks, func(l fleet.Look) string { return l.DeviceID })),
		integers("mark", list(looks, func(l fleet.Look) int64 { return l.Mark })))
	return err
}

// serverEvents appends to the history of a device what otad saw. The number that
// the device's own log has come to stays.
func (t *tx) serverEvents(deviceID string, events []fleet.Event, now time.Time) error {
	if len(events) == 0 {
		return nil
	}
	if _, err := t.exec(`INSERT INTO device_event_logs (device_id, log, seq, position) VALUES (?, '', 0, ?)
		ON CONFLICT (device_id) DO UPDATE SET position = device_event_logs.position + excluded.position`, deviceID, len(events)); err != nil {
		return err
	}
	var position int64
	if err := t.row(`SELECT position FROM device_event_logs WHERE device_id = ?`, deviceID).Scan(&position); err != nil {
		return err
	}
	first := position - int64(len(events))
	for i := range events {
		events[i].Seq = first + int64(i) + 1
	}
	if err := insertEvents(t, deviceID, fleet.LogServer, first, events, now); err != nil {
		return err
	}
	_, err := t.exec(`DELETE FROM device_events WHERE device_id = ? AND position <= ?`, deviceID, position-fleet.MaxEventsKept)
	return err
}
