package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"slices"
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
		return t.putCertificate(c, now)
	})
}

// putCertificate remembers a certificate of a device that is there.
func (t *tx) putCertificate(c fleet.Certificate, now time.Time) error {
	if _, err := t.exec(`DELETE FROM device_certificates WHERE device_id = ? AND ends_at <= ?`, c.DeviceID, micros(now)); err != nil {
		return err
	}
	_, err := t.exec(`INSERT INTO device_certificates (serial, device_id, ends_at) VALUES (?, ?, ?) ON CONFLICT (serial) DO NOTHING`,
		c.Serial.Text(serialBase), c.DeviceID, micros(c.Ends))
	return err
}

const putClaim = `INSERT INTO claim_certificates (serial, token_id, ends_at)
	SELECT CAST(? AS TEXT), id, CAST(? AS BIGINT) FROM enrollment_tokens WHERE id = ? ON CONFLICT (serial) DO UPDATE SET serial = excluded.serial`

// PutClaimCertificate implements fleet.CertificateStore.
func (s *Store) PutClaimCertificate(ctx context.Context, tokenID string, c fleet.Certificate, now time.Time) error {
	return s.writer.do(ctx, func(t *tx) error {
		if _, err := t.exec(`DELETE FROM claim_certificates WHERE ends_at <= ?`, micros(now)); err != nil {
			return err
		}
		n, err := t.exec(putClaim, c.Serial.Text(serialBase), micros(c.Ends), tokenID)
		if err == nil && n == 0 {
			return notFound("enrollment token %s", tokenID)
		}
		return err
	})
}

// serialBase is how serial numbers are written.
const serialBase = 16

const selectRevokedCertificates = `SELECT c.serial, c.device_id, c.ends_at, d.revoked_at FROM devices d JOIN device_certificates c ON c.device_id = d.id
	WHERE d.revoked_at > 0 AND c.ends_at > ? UNION ALL
	SELECT g.serial, g.device_id, g.ends_at, g.revoked_at FROM deleted_certificates g WHERE g.ends_at > ? UNION ALL
	SELECT k.serial, '` + fleet.ClaimName + `' || k.token_id, k.ends_at, t.revoked_at FROM claim_certificates k JOIN enrollment_tokens t ON t.id = k.token_id
	WHERE k.ends_at > ? AND t.revoked_at IS NOT NULL`

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
	}, selectRevokedCertificates, now.UnixMicro(), now.UnixMicro(), now.UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("read revoked certificates: %w", err)
	}
	slices.SortFunc(list, func(a, b fleet.RevokedCertificate) int {
		return cmp.Or(cmp.Compare(a.DeviceID, b.DeviceID), cmp.Compare(a.Serial.Text(serialBase), b.Serial.Text(serialBase)))
	})
	return list, nil
}
