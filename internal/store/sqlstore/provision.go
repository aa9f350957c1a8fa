package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// Provision implements fleet.DeviceStore.
func (s *Store) Provision(ctx context.Context, d fleet.Device, c fleet.BoundCertificate, tokenID string, now time.Time) (fleet.Device, error) {
	now = stored(now)
	var enrolled fleet.Device
	err := s.writer.do(ctx, func(t *tx) (err error) {
		if err := standsForOther(t, c.ID, d.ID); err != nil {
			return err
		}
		enrolled, err = enroll(t, d, func() (fleet.EnrollmentToken, error) { return tokenByID(t, tokenID) }, now)
		if err != nil {
			return err
		}
		if err := bind(t, enrolled.ID, c.ID, now); err != nil {
			return err
		}
		return t.putCertificate(fleet.Certificate{DeviceID: enrolled.ID, Serial: c.Serial, Ends: c.Ends}, now)
	})
	if err != nil {
		return fleet.Device{}, err
	}
	return enrolled, nil
}

func tokenByID(t *tx, id string) (fleet.EnrollmentToken, error) {
	token, err := scanToken(t.row(selectToken+` WHERE id = ?`+t.forUpdate("enrollment_tokens"), id))
	if errors.Is(err, sql.ErrNoRows) {
		return token, notFound("enrollment token %s", id)
	}
	return token, err
}

// standsForOther is ErrDenied when the certificate stands for another device.
func standsForOther(t *tx, certificateID, deviceID string) error {
	var of string
	err := t.row(`SELECT device_id FROM provisioned WHERE certificate_id = ?`, certificateID).Scan(&of)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil && of != deviceID {
		return fmt.Errorf("certificate %s stands for another device: %w", certificateID, fleet.ErrDenied)
	}
	return err
}

// bind makes the certificate stand for the device.
func bind(t *tx, deviceID, certificateID string, now time.Time) error {
	n, err := t.exec(`INSERT INTO provisioned (certificate_id, device_id, provisioned_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`,
		certificateID, deviceID, micros(now))
	if err != nil {
		return err
	}
	if n == 0 { // again, or another process was quicker
		return standsForOther(t, certificateID, deviceID)
	}
	_, err = t.exec(`DELETE FROM provisioned WHERE device_id = ? AND provisioned_at <= ? AND certificate_id <> ?`,
		deviceID, micros(now.Add(-fleet.ProvisionLife)), certificateID)
	return err
}

const selectProvisioned = `SELECT ` + deviceColumns + ` FROM provisioned p JOIN devices d ON d.id = p.device_id
	LEFT JOIN device_seen l ON l.device_id = d.id
	LEFT JOIN device_connections c ON c.device_id = d.id WHERE p.certificate_id = ?`

// ProvisionedDevice implements fleet.DeviceStore.
func (s *Store) ProvisionedDevice(ctx context.Context, certificateID string) (fleet.Device, error) {
	d, err := scanDevice(s.row(ctx, selectProvisioned, certificateID))
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.Device{}, notFound("certificate %s", certificateID)
	}
	return d, err
}

// EnrollmentToken implements fleet.TokenStore.
func (s *Store) EnrollmentToken(ctx context.Context, id string) (fleet.EnrollmentToken, error) {
	t, err := scanToken(s.row(ctx, selectToken+` WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.EnrollmentToken{}, notFound("enrollment token %s", id)
	}
	return t, err
}
