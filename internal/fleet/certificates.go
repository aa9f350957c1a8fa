package fleet

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"
)

// Certificate is one that a device was given.
type Certificate struct {
	DeviceID string
	Serial   *big.Int
	Ends     time.Time
}

// RevokedCertificate is one of a revoked device, or of a revoked enrollment token:
// then DeviceID is ClaimName with the token's id, as in the certificate.
type RevokedCertificate struct {
	Certificate
	RevokedAt time.Time
}

// BoundCertificate is one of fleet provisioning, which names no device.
type BoundCertificate struct {
	ID     string // lower-case hex sha256 of the certificate in DER
	Serial *big.Int
	Ends   time.Time
}

// Dates of revocation lists. A broker refuses everybody once its list has
// expired, so a list lives much longer than it takes to be made anew. It begins
// in the past for the sake of brokers whose clock is behind.
const (
	RevocationListLife    = 30 * 24 * time.Hour
	RevocationListRefresh = 24 * time.Hour
	revocationBackdate    = time.Hour
)

// revocation is the signal that a device, or a claim, was revoked on this replica.
const revocation = "revocation"

// issue makes a device's certificate and remembers it before it is handed out:
// what nobody remembers can not be revoked at a broker that is not ours.
func (s *Service) issue(ctx context.Context, csr *x509.CertificateRequest, deviceID string, now time.Time) ([]byte, error) {
	chain, err := s.CA.Issue(csr, deviceID, now)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", deviceID, err)
	}
	leaf, err := leafOf(chain)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", deviceID, err)
	}
	c := Certificate{DeviceID: deviceID, Serial: leaf.SerialNumber, Ends: leaf.NotAfter}
	return chain, s.Store.PutCertificate(ctx, c, now)
}

// leafOf is the first certificate of a chain in PEM that the CA made.
func leafOf(chain []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil, errors.New("the CA returned no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// lists is the newest revocation list of this replica.
type lists struct {
	mu      sync.Mutex
	made    time.Time // zero: none yet
	issued  time.Time // what it is dated
	entries []x509.RevocationListEntry
	pem     []byte
}

// RevocationLists returns the certificates of revoked devices as signed lists in
// PEM (RFC 5280, section 5), for a broker that is not ours. They are made anew
// when another certificate is revoked and after RevocationListRefresh; until then
// the bytes are the same.
func (s *Service) RevocationLists(ctx context.Context) ([]byte, error) {
	l := &s.lists
	l.mu.Lock()
	defer l.mu.Unlock()
	now := s.Now()
	revoked, err := s.Store.RevokedCertificates(ctx, now)
	if err != nil {
		return nil, err
	}
	entries := make([]x509.RevocationListEntry, len(revoked))
	for i, c := range revoked {
		entries[i] = x509.RevocationListEntry{SerialNumber: c.Serial, RevocationTime: c.RevokedAt}
	}
	if age := now.Sub(l.made); !l.made.IsZero() && 0 <= age && age < RevocationListRefresh && slices.EqualFunc(entries, l.entries, sameEntry) {
		return l.pem, nil
	}
	// A broker that holds two lists of one second, which is how finely they are
	// dated, may keep to the older: no two have the same date.
	issued := now.Add(-revocationBackdate).Truncate(time.Second)
	if next := l.issued.Add(time.Second); issued.Before(next) {
		issued = next
	}
	text, err := s.CA.RevocationLists(entries, issued, now.Add(RevocationListLife))
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	l.made, l.issued, l.entries, l.pem = now, issued, entries, text
	return text, nil
}

func sameEntry(a, b x509.RevocationListEntry) bool { return a.SerialNumber.Cmp(b.SerialNumber) == 0 }

// RunRevocationLists gives save every new list, the first at once, until ctx
// ends. A list that could not be saved is saved at the next look. Revocations on
// other replicas are seen within EvictionPoll.
func (s *Service) RunRevocationLists(ctx context.Context, save func(lists []byte) error) error {
	revoked, stop := s.signals.watch(revocation)
	defer stop()
	tick := time.NewTicker(EvictionPoll)
	defer tick.Stop()
	var saved []byte
	for {
		lists, err := s.RevocationLists(ctx)
		if err == nil && !slices.Equal(lists, saved) {
			if err = save(lists); err == nil {
				saved = lists
				s.Log.Info("revocation list written")
			}
		}
		if err != nil && ctx.Err() == nil {
			s.Log.Error("revocation list not written, trying again in a moment", "error", err)
		}
		select {
		case <-revoked:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
