package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// connectionColumns are those of a device's connection, c, that may be missing.
const connectionColumns = `c.connected, c.since_at, c.began_at, c.reason, c.replica`

// connectionInto scans connectionColumns.
type connectionInto struct {
	connected       sql.NullInt64
	since, began    time.Time
	reason, replica sql.NullString
}

func (c *connectionInto) dest() []any {
	return []any{&c.connected, timeInto{&c.since}, timeInto{&c.began}, &c.reason, &c.replica}
}

func (c *connectionInto) connection() fleet.Connection {
	return fleet.Connection{
		Connected: c.connected.Int64 != 0, Since: c.since, Began: c.began, Reason: c.reason.String, Replica: c.replica.String,
	}
}

// The condition is fleet.Connection.Overrides.
const putConnection = `INSERT INTO device_connections (device_id, connected, since_at, began_at, reason, replica)
	SELECT d.id, v.connected, v.since_at, v.began_at, v.reason, v.replica FROM {rows} JOIN devices d ON d.id = v.device WHERE 1 = 1
	ON CONFLICT (device_id) DO UPDATE SET connected = excluded.connected, since_at = excluded.since_at, began_at = excluded.began_at,
		reason = excluded.reason, replica = excluded.replica
	WHERE device_connections.began_at <= excluded.began_at`

// connectionsAtOnce is how many are written in one operation, so that a fleet
// that comes back does not keep everybody else from writing.
const connectionsAtOnce = 1000

// SaveConnections implements fleet.PresenceStore.
func (s *Store) SaveConnections(ctx context.Context, heard map[string]fleet.Connection) error {
	ids := make([]string, 0, len(heard))
	for id := range heard {
		ids = append(ids, id)
	}
	slices.Sort(ids) // two processes that lock rows in one order do not wait for each other
	for part := range slices.Chunk(ids, connectionsAtOnce) {
		err := s.writer.do(ctx, func(t *tx) error {
			_, err := t.bulk(t.exec, putConnection, len(part), nil, texts("device", part),
				integers("connected", list(part, func(id string) int64 { return flag(heard[id].Connected) })),
				times("since_at", list(part, func(id string) time.Time { return heard[id].Since })),
				times("began_at", list(part, func(id string) time.Time { return heard[id].Began })),
				texts("reason", list(part, func(id string) string { return heard[id].Reason })),
				texts("replica", list(part, func(id string) string { return heard[id].Replica })))
			return err
		})
		if err != nil {
			return fmt.Errorf("write connections: %w", err)
		}
	}
	return nil
}

// EndConnections implements fleet.PresenceStore.
func (s *Store) EndConnections(ctx context.Context, reason string, now time.Time) error {
	err := s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec(`UPDATE device_connections SET connected = 0, since_at = ?, reason = ? WHERE connected = 1`, micros(now), reason)
		return err
	})
	if err != nil {
		return fmt.Errorf("end connections: %w", err)
	}
	return nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Beat implements fleet.PresenceStore.
func (s *Store) Beat(ctx context.Context, replica string, now time.Time) error {
	return s.writer.do(ctx, func(t *tx) error {
		if _, err := t.exec(`INSERT INTO replicas (name, beat_at) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET beat_at = excluded.beat_at`, replica, micros(now)); err != nil {
			return err
		}
		_, err := t.exec(`DELETE FROM replicas WHERE beat_at < ?`, micros(now.Add(-fleet.ReplicaMemory)))
		return err
	})
}

// Replicas implements fleet.PresenceStore.
func (s *Store) Replicas(ctx context.Context) (map[string]time.Time, error) {
	all := map[string]time.Time{}
	err := s.rows(ctx, func(r row) error {
		var name string
		var at time.Time
		err := r.Scan(&name, timeInto{&at})
		all[name] = at
		return err
	}, `SELECT name, beat_at FROM replicas`)
	if err != nil {
		return nil, fmt.Errorf("read replicas: %w", err)
	}
	return all, nil
}
