package memstore

import (
	"cmp"
	"context"
	"maps"
	"math/big"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// PutCertificate implements fleet.CertificateStore.
func (s *Store) PutCertificate(ctx context.Context, c fleet.Certificate, now time.Time) error {
	return s.locked(ctx, func() error {
		if _, ok := s.devices[c.DeviceID]; !ok {
			return notFound("device %s", c.DeviceID)
		}
		s.putCertificate(c, now)
		return nil
	})
}

// putCertificate remembers a certificate of a device that is there.
func (s *Store) putCertificate(c fleet.Certificate, now time.Time) {
	for serial, old := range s.certificates {
		if old.DeviceID == c.DeviceID && !old.Ends.After(stored(now)) {
			delete(s.certificates, serial)
		}
	}
	if _, exists := s.certificates[c.Serial.Text(16)]; !exists {
		s.certificates[c.Serial.Text(16)] = ownCertificate(c, c.DeviceID)
	}
}

func ownCertificate(c fleet.Certificate, deviceID string) fleet.Certificate {
	return fleet.Certificate{DeviceID: deviceID, Serial: new(big.Int).Set(c.Serial), Ends: stored(c.Ends)}
}

// claimCertificate is one of an enrollment token.
type claimCertificate struct {
	fleet.Certificate
	token string
}

// PutClaimCertificate implements fleet.CertificateStore.
func (s *Store) PutClaimCertificate(ctx context.Context, tokenID string, c fleet.Certificate, now time.Time) error {
	return s.locked(ctx, func() error {
		if _, err := s.token(tokenID); err != nil {
			return err
		}
		maps.DeleteFunc(s.claims, func(_ string, c claimCertificate) bool { return !c.Ends.After(stored(now)) })
		if _, exists := s.claims[c.Serial.Text(16)]; !exists {
			s.claims[c.Serial.Text(16)] = claimCertificate{ownCertificate(c, fleet.ClaimName+tokenID), tokenID}
		}
		return nil
	})
}

// RevokedCertificates implements fleet.CertificateStore.
func (s *Store) RevokedCertificates(ctx context.Context, now time.Time) ([]fleet.RevokedCertificate, error) {
	var list []fleet.RevokedCertificate
	err := s.locked(ctx, func() error {
		for _, c := range s.certificates {
			if d := s.devices[c.DeviceID]; d.Revoked() && c.Ends.After(stored(now)) {
				c.Serial = new(big.Int).Set(c.Serial)
				list = append(list, fleet.RevokedCertificate{Certificate: c, RevokedAt: d.RevokedAt})
			}
		}
		for _, c := range s.deleted {
			if c.Ends.After(stored(now)) {
				c.Serial = new(big.Int).Set(c.Serial)
				list = append(list, c.RevokedCertificate)
			}
		}
		for _, c := range s.claims {
			if t := s.tokens[c.token]; !t.RevokedAt.IsZero() && c.Ends.After(stored(now)) {
				c.Serial = new(big.Int).Set(c.Serial)
				list = append(list, fleet.RevokedCertificate{Certificate: c.Certificate, RevokedAt: t.RevokedAt})
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b fleet.RevokedCertificate) int {
		return cmp.Or(cmp.Compare(a.DeviceID, b.DeviceID), cmp.Compare(a.Serial.Text(16), b.Serial.Text(16)))
	})
	return list, err
}
