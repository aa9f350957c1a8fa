package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// PutCredential implements fleet.CredentialStore.
func (s *Store) PutCredential(ctx context.Context, c fleet.Credential) error {
	c.CreatedAt = stored(c.CreatedAt)
	return s.locked(ctx, func() error {
		if d, ok := s.devices[c.DeviceID]; !ok || d.Revoked() {
			return notFound("device %s", c.DeviceID)
		}
		for _, all := range s.credentials {
			if slices.ContainsFunc(all, func(o fleet.Credential) bool { return o.ID == c.ID }) {
				return fmt.Errorf("credential %s exists: %w", c.ID, fleet.ErrConflict)
			}
		}
		var kept []fleet.Credential
		replaced := false
		for _, o := range s.credentials[c.DeviceID] {
			switch {
			case c.Kind == fleet.CredentialPassword && o.Kind == c.Kind:
				replaced = true
				continue
			case o.Kind == c.Kind && o.Secret == c.Secret:
				return fmt.Errorf("device %s has this key as credential %s: %w", c.DeviceID, o.ID, fleet.ErrConflict)
			}
			kept = append(kept, o)
		}
		if len(kept) >= fleet.MaxCredentials {
			return fmt.Errorf("device %s has %d credentials already, delete one first: %w", c.DeviceID, len(kept), fleet.ErrConflict)
		}
		s.credentials[c.DeviceID] = append(kept, c)
		if replaced {
			s.evict(c.DeviceID, fleet.EvictedCredential, c.CreatedAt)
		}
		return nil
	})
}

// evict notes that the device's sessions have to end; the newest counts.
func (s *Store) evict(deviceID, reason string, at time.Time) {
	if !at.Before(s.evictions[deviceID].At) {
		s.evictions[deviceID] = fleet.Eviction{DeviceID: deviceID, Reason: reason, At: at}
	}
}

// Credentials implements fleet.CredentialStore.
func (s *Store) Credentials(ctx context.Context, deviceID string) ([]fleet.Credential, error) {
	var list []fleet.Credential
	err := s.locked(ctx, func() error {
		list = slices.Clone(s.credentials[deviceID])
		return nil
	})
	slices.SortFunc(list, func(a, b fleet.Credential) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, err
}

// DeleteCredential implements fleet.CredentialStore.
func (s *Store) DeleteCredential(ctx context.Context, deviceID, id string, now time.Time) error {
	return s.locked(ctx, func() error {
		before := s.credentials[deviceID]
		after := slices.DeleteFunc(slices.Clone(before), func(c fleet.Credential) bool { return c.ID == id })
		if len(after) == len(before) {
			return notFound("credential %s of device %s", id, deviceID)
		}
		s.credentials[deviceID] = after
		s.evict(deviceID, fleet.EvictedCredential, stored(now))
		return nil
	})
}

// Evictions implements fleet.CredentialStore.
func (s *Store) Evictions(ctx context.Context, since time.Time) ([]fleet.Eviction, error) {
	var list []fleet.Eviction
	err := s.locked(ctx, func() error {
		for _, e := range s.evictions {
			if !e.At.Before(stored(since)) {
				list = append(list, e)
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b fleet.Eviction) int { return strings.Compare(a.DeviceID, b.DeviceID) })
	return list, err
}

// CreateIssuer implements fleet.CredentialStore.
func (s *Store) CreateIssuer(ctx context.Context, i fleet.Issuer) error {
	i.Keys, i.CreatedAt = slices.Clone(i.Keys), stored(i.CreatedAt)
	return s.locked(ctx, func() error {
		if _, ok := s.issuers[i.Name]; ok {
			return fmt.Errorf("JWT issuer %s exists, delete it first: %w", i.Name, fleet.ErrConflict)
		}
		if len(s.issuers) >= fleet.MaxIssuers {
			return fmt.Errorf("there are %d JWT issuers already, delete one first: %w", len(s.issuers), fleet.ErrConflict)
		}
		s.issuers[i.Name] = i
		return nil
	})
}

// Issuers implements fleet.CredentialStore.
func (s *Store) Issuers(ctx context.Context) ([]fleet.Issuer, error) {
	var list []fleet.Issuer
	err := s.locked(ctx, func() error {
		for _, name := range slices.Sorted(maps.Keys(s.issuers)) {
			i := s.issuers[name]
			i.Keys = slices.Clone(i.Keys)
			list = append(list, i)
		}
		return nil
	})
	return list, err
}

// DeleteIssuer implements fleet.CredentialStore.
func (s *Store) DeleteIssuer(ctx context.Context, name string) error {
	return s.locked(ctx, func() error {
		if _, ok := s.issuers[name]; !ok {
			return notFound("JWT issuer %s", name)
		}
		delete(s.issuers, name)
		return nil
	})
}

// CreateDevice implements fleet.DeviceStore.
func (s *Store) CreateDevice(ctx context.Context, d fleet.Device) error {
	return s.locked(ctx, func() error {
		if _, ok := s.devices[d.ID]; ok {
			return fmt.Errorf("device %s exists: %w", d.ID, fleet.ErrConflict)
		}
		return s.changing(d.ID, func() error {
			s.devices[d.ID] = ownDevice(fleet.Device{ID: d.ID, Hardware: d.Hardware, Tags: d.Tags, CreatedAt: stored(d.CreatedAt)})
			return nil
		})
	})
}

// SaveConnections implements fleet.PresenceStore.
func (s *Store) SaveConnections(ctx context.Context, heard map[string]fleet.Connection) error {
	return s.locked(ctx, func() error {
		for id, c := range heard {
			c.Since, c.Began = stored(c.Since), stored(c.Began)
			if d, ok := s.devices[id]; ok && c.Overrides(d.Connection) {
				d.Connection = c
				s.devices[id] = d
			}
		}
		return nil
	})
}

// EndConnections implements fleet.PresenceStore.
func (s *Store) EndConnections(ctx context.Context, reason string, now time.Time) error {
	return s.locked(ctx, func() error {
		for id, d := range s.devices {
			if d.Connection.Connected {
				d.Connection.Connected, d.Connection.Since, d.Connection.Reason = false, stored(now), reason
				s.devices[id] = d
			}
		}
		return nil
	})
}

// Beat implements fleet.PresenceStore.
func (s *Store) Beat(ctx context.Context, replica string, now time.Time) error {
	return s.locked(ctx, func() error {
		s.replicas[replica] = stored(now)
		maps.DeleteFunc(s.replicas, func(_ string, at time.Time) bool { return now.Sub(at) > fleet.ReplicaMemory })
		return nil
	})
}

// Replicas implements fleet.PresenceStore.
func (s *Store) Replicas(ctx context.Context) (map[string]time.Time, error) {
	var all map[string]time.Time
	err := s.locked(ctx, func() error {
		all = maps.Clone(s.replicas)
		return nil
	})
	return all, err
}
