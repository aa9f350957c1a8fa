package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// PutCredential implements fleet.CredentialStore.
func (s *Store) PutCredential(ctx context.Context, c fleet.Credential) error {
	return s.writer.do(ctx, func(t *tx) error {
		if err := freeForCredential(t, c); err != nil {
			return err
		}
		if c.Kind == fleet.CredentialPassword {
			n, err := t.exec(`DELETE FROM device_credentials WHERE device_id = ? AND kind = ?`, c.DeviceID, c.Kind)
			if err != nil {
				return err
			}
			if n > 0 {
				if err := evict(t, c.DeviceID, fleet.EvictedCredential, c.CreatedAt); err != nil {
					return err
				}
			}
		}
		var n int
		if err := t.row(`SELECT COUNT(*) FROM device_credentials WHERE device_id = ?`, c.DeviceID).Scan(&n); err != nil {
			return err
		}
		if n >= fleet.MaxCredentials {
			return fmt.Errorf("device %s has %d credentials already, delete one first: %w", c.DeviceID, n, fleet.ErrConflict)
		}
		_, err := t.exec(`INSERT INTO device_credentials (id, device_id, kind, secret, key_id, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
			c.ID, c.DeviceID, c.Kind, c.Secret, c.KeyID, micros(c.CreatedAt))
		return err
	})
}

// freeForCredential sees that the device is there, and locks it, and that
// neither the credential's id nor its key is.
func freeForCredential(t *tx, c fleet.Credential) error {
	var revoked time.Time
	err := t.row(`SELECT revoked_at FROM devices WHERE id = ?`+t.forUpdate("devices"), c.DeviceID).Scan(timeInto{&revoked})
	if errors.Is(err, sql.ErrNoRows) || err == nil && !revoked.IsZero() {
		return notFound("device %s", c.DeviceID)
	} else if err != nil {
		return err
	}
	var id string
	err = t.row(`SELECT id FROM device_credentials WHERE id = ?`, c.ID).Scan(&id)
	if err == nil {
		return fmt.Errorf("credential %s exists: %w", c.ID, fleet.ErrConflict)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if c.Kind == fleet.CredentialPassword {
		return nil
	}
	err = t.row(`SELECT id FROM device_credentials WHERE device_id = ? AND kind = ? AND secret = ?`, c.DeviceID, c.Kind, c.Secret).Scan(&id)
	if err == nil {
		return fmt.Errorf("device %s has this key as credential %s: %w", c.DeviceID, id, fleet.ErrConflict)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return nil
}

func evict(t *tx, deviceID, reason string, at time.Time) error {
	_, err := t.exec(`INSERT INTO device_evictions (device_id, evicted_at, reason) VALUES (?, ?, ?)
		ON CONFLICT (device_id) DO UPDATE SET evicted_at = excluded.evicted_at, reason = excluded.reason
		WHERE device_evictions.evicted_at <= excluded.evicted_at`, deviceID, micros(at), reason)
	return err
}

const selectCredentials = `SELECT id, device_id, kind, secret, key_id, created_at FROM device_credentials WHERE device_id = ? ORDER BY created_at, id`

// Credentials implements fleet.CredentialStore.
func (s *Store) Credentials(ctx context.Context, deviceID string) ([]fleet.Credential, error) {
	var list []fleet.Credential
	err := s.rows(ctx, func(r row) error {
		var c fleet.Credential
		err := r.Scan(&c.ID, &c.DeviceID, &c.Kind, &c.Secret, &c.KeyID, timeInto{&c.CreatedAt})
		list = append(list, c)
		return err
	}, selectCredentials, deviceID)
	if err != nil {
		return nil, fmt.Errorf("read credentials of device %s: %w", deviceID, err)
	}
	return list, nil
}

// DeleteCredential implements fleet.CredentialStore.
func (s *Store) DeleteCredential(ctx context.Context, deviceID, id string, now time.Time) error {
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`DELETE FROM device_credentials WHERE device_id = ? AND id = ?`, deviceID, id)
		if err == nil && n == 0 {
			return notFound("credential %s of device %s", id, deviceID)
		}
		if err != nil {
			return err
		}
		return evict(t, deviceID, fleet.EvictedCredential, now)
	})
}

const selectEvictions = `SELECT device_id, reason, evicted_at FROM device_evictions WHERE evicted_at >= ? ORDER BY device_id`

// Evictions implements fleet.CredentialStore.
func (s *Store) Evictions(ctx context.Context, since time.Time) ([]fleet.Eviction, error) {
	var list []fleet.Eviction
	err := s.rows(ctx, func(r row) error {
		var e fleet.Eviction
		err := r.Scan(&e.DeviceID, &e.Reason, timeInto{&e.At})
		list = append(list, e)
		return err
	}, selectEvictions, since.UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("read evictions: %w", err)
	}
	return list, nil
}

// CreateIssuer implements fleet.CredentialStore.
func (s *Store) CreateIssuer(ctx context.Context, i fleet.Issuer) error {
	keys, err := jsonText(i.Keys)
	if err != nil {
		return err
	}
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`INSERT INTO jwt_issuers (name, keys, device_glob, created_at) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING`,
			i.Name, keys, i.DeviceGlob, micros(i.CreatedAt))
		if err == nil && n == 0 {
			return fmt.Errorf("JWT issuer %s exists, delete it first: %w", i.Name, fleet.ErrConflict)
		}
		if err != nil {
			return err
		}
		var all int
		if err := t.row(`SELECT COUNT(*) FROM jwt_issuers`).Scan(&all); err != nil {
			return err
		}
		if all > fleet.MaxIssuers {
			return fmt.Errorf("there are %d JWT issuers already, delete one first: %w", all-1, fleet.ErrConflict)
		}
		return nil
	})
}

// Issuers implements fleet.CredentialStore.
func (s *Store) Issuers(ctx context.Context) ([]fleet.Issuer, error) {
	var list []fleet.Issuer
	err := s.rows(ctx, func(r row) error {
		var i fleet.Issuer
		err := r.Scan(&i.Name, jsonInto{&i.Keys}, &i.DeviceGlob, timeInto{&i.CreatedAt})
		list = append(list, i)
		return err
	}, `SELECT name, keys, device_glob, created_at FROM jwt_issuers ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read JWT issuers: %w", err)
	}
	return list, nil
}

// DeleteIssuer implements fleet.CredentialStore.
func (s *Store) DeleteIssuer(ctx context.Context, name string) error {
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`DELETE FROM jwt_issuers WHERE name = ?`, name)
		if err == nil && n == 0 {
			return notFound("JWT issuer %s", name)
		}
		return err
	})
}
