package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// PutCertificate implements fleet.CertificateStore.
func (s *Store) PutCertificate(ctx context.Context, c fleet.Certificate, now time.Time) error {
	return s.writer.do(ctx, func(t *tx) error {
		var id string
		err := t.row(`SELECT id FROM devices WHERE id = ?`+t.forUpdate("devices"), c.DeviceID).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return notFound("device %s", c.DeviceID)
		} else if err != nil {
			return err
		}
		if _, err := t.exec(`DELETE FROM device_certificates WHERE device_id = ? AND ends_at <= ?`, c.DeviceID, micros(now)); err != nil {
			return err
		}
		_, err = t.exec(`INSERT INTO device_certificates (serial, device_id, ends_at) VALUES (?, ?, ?) ON CONFLICT (serial) DO NOTHING`,
			c.Serial.Text(serialBase), c.DeviceID, micros(c.Ends))
		return err
	})
}

// serialBase is how serial numbers are written.
const serialBase = 16

const selectRevokedCertificates = `SELECT serial, device_id, ends_at, revoked_at FROM
	(SELECT c.serial, c.device_id, c.ends_at, d.revoked_at FROM devices d JOIN device_certificates c ON c.device_id = d.id
	WHERE d.revoked_at > 0 AND c.ends_at > ? UNION ALL
	SELECT g.serial, g.device_id, g.ends_at, g.revoked_at FROM deleted_certificates g WHERE g.ends_at > ?) x ORDER BY device_id, serial`

// RevokedCertificates implements fleet.CertificateStore.
func (s *Store) RevokedCertificates(ctx context.Context, now time.Time) ([]fleet.RevokedCertificate, error) {
	var list []fleet.RevokedCertificate
	err := s.rows(ctx, func(r row) error {
		var c fleet.RevokedCertificate
		var serial string
		if err := r.Scan(&serial, &c.DeviceID, timeInto{&c.Ends}, timeInto{&c.RevokedAt}); err != nil {
			return err
		}
		var ok bool
		if c.Serial, ok = new(big.Int).SetString(serial, serialBase); !ok {
			return fmt.Errorf("serial number %q of device %s", serial, c.DeviceID)
		}
		list = append(list, c)
		return nil
	}, selectRevokedCertificates, now.UnixMicro(), now.UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("read revoked certificates: %w", err)
	}
	return list, nil
}
