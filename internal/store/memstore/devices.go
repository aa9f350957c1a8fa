package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
)

// Enroll implements fleet.DeviceStore.
func (s *Store) Enroll(ctx context.Context, d fleet.Device, secretHash [32]byte, now time.Time) (fleet.Device, error) {
	err := s.locked(ctx, func() (err error) {
		d, err = s.enroll(d, func() (fleet.EnrollmentToken, error) { return s.tokenOf(secretHash) }, stored(now))
		return err
	})
	if err != nil {
		return fleet.Device{}, err
	}
	return ownDevice(d), nil
}

// enroll is Enroll by a token that is looked up when it is needed.
func (s *Store) enroll(d fleet.Device, token func() (fleet.EnrollmentToken, error), now time.Time) (fleet.Device, error) {
	old, exists := s.devices[d.ID]
	if exists && old.KeyFingerprint == d.KeyFingerprint && !old.Revoked() {
		return old, nil
	}
	t, err := token()
	switch {
	case err != nil:
		return d, err
	case exists && old.Revoked():
		return d, fmt.Errorf("device %s is revoked: %w", d.ID, fleet.ErrDenied)
	case exists:
		return d, fmt.Errorf("device %s is enrolled with another key: %w", d.ID, fleet.ErrConflict)
	}
	if err := t.Admit(d, now); err != nil {
		return d, err
	}
	if err := s.freshKey(d.KeyFingerprint, now); err != nil {
		return d, err
	}
	t.Uses--
	s.tokens[t.ID] = t
	if t.Hardware != "" {
		d.Hardware = t.Hardware
	}
	d = fleet.Device{ID: d.ID, Hardware: d.Hardware, Tags: t.Tags, KeyFingerprint: d.KeyFingerprint, CreatedAt: now}
	return d, s.changing(d.ID, func() error { s.devices[d.ID] = d; return nil })
}

func (s *Store) tokenOf(secretHash [32]byte) (fleet.EnrollmentToken, error) {
	for _, t := range s.tokens {
		if t.SecretHash == secretHash {
			return t, nil
		}
	}
	return fleet.EnrollmentToken{}, fmt.Errorf("unknown enrollment token: %w", fleet.ErrDenied)
}

// Device implements fleet.DeviceStore.
func (s *Store) Device(ctx context.Context, id string) (fleet.Device, error) {
	var d fleet.Device
	err := s.locked(ctx, func() error {
		var ok bool
		if d, ok = s.devices[id]; !ok {
			return notFound("device %s", id)
		}
		return nil
	})
	return ownDevice(d), err
}

// Devices implements fleet.DeviceStore.
func (s *Store) Devices(ctx context.Context, after string, f func(fleet.DeviceView) bool) error {
	return s.SelectDevices(ctx, fleet.DeviceQuery{After: after}, f)
}

// SelectDevices implements fleet.DeviceStore.
func (s *Store) SelectDevices(ctx context.Context, q fleet.DeviceQuery, f func(fleet.DeviceView) bool) error {
	var views []fleet.DeviceView
	groups := q.Selector.Asks(selector.Groups)
	err := s.locked(ctx, func() error {
		for _, id := range slices.Sorted(maps.Keys(s.devices)) {
			if v := s.view(id, groups); q.Match(v) {
				views = append(views, v)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return each(ctx, views, f)
}

// Survey implements fleet.DeviceStore.
func (s *Store) Survey(ctx context.Context, q fleet.DeviceQuery, tags []string, f func(fleet.Surveyed) bool) error {
	return s.SelectDevices(ctx, q, func(v fleet.DeviceView) bool { return f(fleet.Survey(v, tags)) })
}

// CountDevices implements fleet.DeviceStore.
func (s *Store) CountDevices(ctx context.Context, q fleet.DeviceQuery) (n int, err error) {
	err = s.SelectDevices(ctx, q, func(fleet.DeviceView) bool {
		n++
		return true
	})
	return n, err
}

// IndexFields implements fleet.DeviceStore. Maps need no index.
func (s *Store) IndexFields(ctx context.Context, fields []selector.Field) error {
	return s.locked(ctx, func() error { return fleet.Indexable(fields) })
}

// view is the device with its groups, for those who ask for them.
func (s *Store) view(id string, groups bool) fleet.DeviceView {
	v := s.ungrouped(id)
	if groups {
		v.Groups = s.groupsOf(id)
	}
	return v
}

func (s *Store) ungrouped(id string) fleet.DeviceView {
	v := fleet.DeviceView{Device: ownDevice(s.devices[id])}
	if doc := s.shadows[shadowKey{id, ""}]; doc.Exists() {
		v.Shadow = doc
	}
	return v
}

// ChangeTags implements fleet.DeviceStore.
func (s *Store) ChangeTags(ctx context.Context, id string, set map[string]string, remove []string) error {
	return s.locked(ctx, func() error {
		d, ok := s.devices[id]
		if !ok {
			return notFound("device %s", id)
		}
		tags, err := fleet.MergeTags(d.Tags, set, remove)
		if err != nil {
			return err
		}
		if d.Tags = tags; len(tags) == 0 {
			d.Tags = nil
		}
		return s.changing(id, func() error { s.devices[id] = d; return nil })
	})
}

// RevokeDevice implements fleet.DeviceStore.
func (s *Store) RevokeDevice(ctx context.Context, id string, now time.Time) error {
	return s.locked(ctx, func() error {
		d, ok := s.devices[id]
		if !ok {
			return notFound("device %s", id)
		}
		if !d.Revoked() {
			d.RevokedAt = stored(now)
			s.devices[id] = d
			s.evict(id, fleet.EvictedRevoked, d.RevokedAt)
		}
		s.remove(id, fleet.RevokedReason, stored(now))
		return nil
	})
}

// SeenDevices implements fleet.DeviceStore.
func (s *Store) SeenDevices(ctx context.Context, seen map[string]time.Time) error {
	return s.locked(ctx, func() error {
		for id, t := range seen {
			if d, ok := s.devices[id]; ok && stored(t).After(d.LastSeen) {
				d.LastSeen = stored(t)
				s.devices[id] = d
			}
		}
		return nil
	})
}

// CreateEnrollmentToken implements fleet.TokenStore.
func (s *Store) CreateEnrollmentToken(ctx context.Context, t fleet.EnrollmentToken) error {
	if t.Uses < 0 {
		return fmt.Errorf("%w: enrollment token %s for %d uses", fleet.ErrInvalid, t.ID, t.Uses)
	}
	return s.locked(ctx, func() error {
		for _, old := range s.tokens {
			if old.ID == t.ID || old.SecretHash == t.SecretHash {
				return fmt.Errorf("enrollment token %s exists: %w", t.ID, fleet.ErrConflict)
			}
		}
		s.tokens[t.ID] = ownToken(t)
		return nil
	})
}

// EnrollmentTokens implements fleet.TokenStore.
func (s *Store) EnrollmentTokens(ctx context.Context) ([]fleet.EnrollmentToken, error) {
	var list []fleet.EnrollmentToken
	err := s.locked(ctx, func() error {
		for _, t := range s.tokens {
			list = append(list, ownToken(t))
		}
		return nil
	})
	slices.SortFunc(list, func(a, b fleet.EnrollmentToken) int {
		return newestFirst(a.CreatedAt, b.CreatedAt, a.ID, b.ID)
	})
	return list, err
}

// RevokeEnrollmentToken implements fleet.TokenStore.
func (s *Store) RevokeEnrollmentToken(ctx context.Context, id string, now time.Time) error {
	return s.locked(ctx, func() error {
		t, ok := s.tokens[id]
		if !ok {
			return notFound("enrollment token %s", id)
		}
		if t.RevokedAt.IsZero() {
			t.RevokedAt = stored(now)
			s.tokens[id] = t
		}
		return nil
	})
}

// CreateAPIToken implements fleet.TokenStore.
func (s *Store) CreateAPIToken(ctx context.Context, t fleet.APIToken) error {
	return s.locked(ctx, func() error {
		if _, ok := s.apiTokens[t.ID]; ok {
			return fmt.Errorf("API token %s exists: %w", t.ID, fleet.ErrConflict)
		}
		t.CreatedAt, t.ExpiresAt = stored(t.CreatedAt), stored(t.ExpiresAt)
		s.apiTokens[t.ID] = t
		return nil
	})
}

// APIToken implements fleet.TokenStore.
func (s *Store) APIToken(ctx context.Context, id string) (fleet.APIToken, error) {
	var t fleet.APIToken
	err := s.locked(ctx, func() error {
		var ok bool
		if t, ok = s.apiTokens[id]; !ok {
			return notFound("API token %s", id)
		}
		return nil
	})
	return t, err
}

func ownDevice(d fleet.Device) fleet.Device {
	d.Tags = copied(d.Tags)
	return d
}

func ownToken(t fleet.EnrollmentToken) fleet.EnrollmentToken {
	t.Tags = copied(t.Tags)
	t.CreatedAt, t.ExpiresAt, t.RevokedAt = stored(t.CreatedAt), stored(t.ExpiresAt), stored(t.RevokedAt)
	return t
}

// newestFirst orders by time descending, then by name.
func newestFirst(a, b time.Time, nameA, nameB string) int {
	if c := b.Compare(a); c != 0 {
		return c
	}
	return strings.Compare(nameA, nameB)
}
