package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

const deviceColumns = `d.id AS id, d.hardware, d.tags, d.key_fingerprint, d.created_at, d.revoked_at, l.seen_at, ` + connectionColumns

const selectDevice = `SELECT ` + deviceColumns + ` FROM devices d
	LEFT JOIN device_seen l ON l.device_id = d.id
	LEFT JOIN device_connections c ON c.device_id = d.id WHERE d.id = ?`

// scanDevice scans deviceColumns and what comes behind them.
func scanDevice(r row, more ...any) (fleet.Device, error) {
	var d fleet.Device
	var c connectionInto
	dest := append([]any{&d.ID, &d.Hardware, mapInto{&d.Tags}, &d.KeyFingerprint,
		timeInto{&d.CreatedAt}, timeInto{&d.RevokedAt}, timeInto{&d.LastSeen}}, c.dest()...)
	err := r.Scan(append(dest, more...)...)
	d.Connection = c.connection()
	return d, err
}

// Enroll implements fleet.DeviceStore.
func (s *Store) Enroll(ctx context.Context, d fleet.Device, secretHash [32]byte, now time.Time) (fleet.Device, error) {
	var enrolled fleet.Device
	err := s.writer.do(ctx, func(t *tx) (err error) {
		enrolled, err = enroll(t, d, func() (fleet.EnrollmentToken, error) { return tokenOf(t, secretHash) }, stored(now))
		return err
	})
	if err != nil {
		return fleet.Device{}, err
	}
	return enrolled, nil
}

// enroll is Enroll by a token that is looked up when it is needed.
func enroll(t *tx, d fleet.Device, find func() (fleet.EnrollmentToken, error), now time.Time) (fleet.Device, error) {
	old, err := scanDevice(t.row(selectDevice, d.ID))
	exists := err == nil
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fleet.Device{}, err
	}
	if exists && old.KeyFingerprint == d.KeyFingerprint && !old.Revoked() {
		return old, nil
	}
	token, err := find()
	switch {
	case err != nil:
		return fleet.Device{}, err
	case exists && old.Revoked():
		return fleet.Device{}, fmt.Errorf("device %s is revoked: %w", d.ID, fleet.ErrDenied)
	case exists:
		return fleet.Device{}, fmt.Errorf("device %s is enrolled with another key: %w", d.ID, fleet.ErrConflict)
	}
	if err := token.Admit(d, now); err != nil {
		return fleet.Device{}, err
	}
	if err := freshKey(t, d.KeyFingerprint, now); err != nil {
		return fleet.Device{}, err
	}
	d = fleet.Device{ID: d.ID, Hardware: d.Hardware, Tags: token.Tags, KeyFingerprint: d.KeyFingerprint, CreatedAt: now}
	if token.Hardware != "" {
		d.Hardware = token.Hardware
	}
	return d, create(t, d, token)
}

// create writes the device and counts the token's use.
func create(t *tx, d fleet.Device, token fleet.EnrollmentToken) error {
	tags, err := mapText(d.Tags)
	if err != nil {
		return err
	}
	if _, err := t.exec(`UPDATE enrollment_tokens SET uses = uses - 1 WHERE id = ?`, token.ID); err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO devices (id, hardware, tags, key_fingerprint, created_at) VALUES (?, ?, ?, ?, ?)`,
		d.ID, d.Hardware, tags, d.KeyFingerprint, micros(d.CreatedAt))
	if err == nil {
		t.enrolled = append(t.enrolled, d)
	}
	return err
}

func tokenOf(t *tx, secretHash [32]byte) (fleet.EnrollmentToken, error) {
	token, err := scanToken(t.row(selectToken+` WHERE secret_hash = ?`+t.forUpdate("enrollment_tokens"), hashText(secretHash)))
	if errors.Is(err, sql.ErrNoRows) {
		return token, fmt.Errorf("unknown enrollment token: %w", fleet.ErrDenied)
	}
	return token, err
}

// Device implements fleet.DeviceStore.
func (s *Store) Device(ctx context.Context, id string) (fleet.Device, error) {
	d, err := scanDevice(s.row(ctx, selectDevice, id))
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.Device{}, notFound("device %s", id)
	}
	return d, err
}

func scanView(r row) (v fleet.DeviceView, err error) {
	err = scanViewAnd(r, &v)
	return v, err
}

// scanViewAnd scans a view and what comes behind its columns.
func scanViewAnd(r row, v *fleet.DeviceView, more ...any) (err error) {
	var groups sql.NullString
	v.Device, err = scanDevice(r, append([]any{documentInto{&v.Shadow}, &groups}, more...)...)
	if groups.String != "" {
		v.Groups = strings.Split(groups.String, ",")
	}
	return err
}

// documentInto scans a stored shadow; NULL is none.
type documentInto struct{ d *shadow.Document }

func (s documentInto) Scan(v any) (err error) {
	switch v := v.(type) {
	case nil:
	case string:
		*s.d, err = shadow.ParseDocument(v)
	case []byte:
		*s.d, err = shadow.ParseDocument(string(v))
	default:
		err = fmt.Errorf("shadow of type %T", v)
	}
	return err
}

const removeActive = `UPDATE executions SET status = ?, class = ?, details = ?, version = version + 1, updated_at = ?, finished_at = ?, step = '', expires_at = NULL, expires_as = ''
	WHERE device_id = ? AND latest = 1 AND status IN ('QUEUED', 'IN_PROGRESS')`

// RevokeDevice implements fleet.DeviceStore.
func (s *Store) RevokeDevice(ctx context.Context, id string, now time.Time) error {
	return s.writer.doAlone(ctx, func(t *tx) error {
		if err := t.keepOut(t.w.dialect.Revoke); err != nil {
			return err
		}
		var revoked time.Time
		err := t.row(`SELECT revoked_at FROM devices WHERE id = ?`+t.forUpdate("devices"), id).Scan(timeInto{&revoked})
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return notFound("device %s", id)
		case err != nil:
			return err
		case revoked.IsZero():
			if _, err := t.exec(`UPDATE devices SET revoked_at = ? WHERE id = ?`, micros(now), id); err != nil {
				return err
			}
			if err := evict(t, id, fleet.EvictedRevoked, now); err != nil {
				return err
			}
		}
		open, err := t.openOn(id)
		if err != nil {
			return err
		}
		return t.remove(id, open, fleet.RevokedReason, now)
	})
}

const selectOpen = selectExecution + ` WHERE e.device_id = ? AND e.latest = 1 AND (e.status IN ('QUEUED', 'IN_PROGRESS') OR e.retry_at IS NOT NULL)`

// CreateDevice implements fleet.DeviceStore.
func (s *Store) CreateDevice(ctx context.Context, d fleet.Device) error {
	tags, err := mapText(d.Tags)
	if err != nil {
		return err
	}
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`INSERT INTO devices (id, hardware, tags, key_fingerprint, created_at) VALUES (?, ?, ?, '', ?) ON CONFLICT (id) DO NOTHING`,
			d.ID, d.Hardware, tags, micros(d.CreatedAt))
		if err == nil && n == 0 {
			return fmt.Errorf("device %s exists: %w", d.ID, fleet.ErrConflict)
		}
		if err == nil {
			t.enrolled = append(t.enrolled, d)
		}
		return err
	})
}

const raiseSeen = `INSERT INTO device_seen (device_id, seen_at) SELECT d.id, v.at FROM {rows} JOIN devices d ON d.id = v.device WHERE 1 = 1
	ON CONFLICT (device_id) DO UPDATE SET seen_at = excluded.seen_at WHERE device_seen.seen_at < excluded.seen_at`

// SeenDevices implements fleet.DeviceStore.
func (s *Store) SeenDevices(ctx context.Context, seen map[string]time.Time) error {
	ids := make([]string, 0, len(seen))
	for id, at := range seen {
		if !at.IsZero() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids) // two processes that lock rows in one order do not wait for each other
	return s.writer.do(ctx, func(t *tx) error {
		_, err := t.bulk(t.exec, raiseSeen, len(ids), nil,
			texts("device", ids), integers("at", list(ids, func(id string) int64 { return seen[id].UnixMicro() })))
		return err
	})
}
