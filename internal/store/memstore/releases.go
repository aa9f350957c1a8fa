package memstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// CreateRelease implements fleet.ReleaseStore.
func (s *Store) CreateRelease(ctx context.Context, r ota.Release) (ota.Release, error) {
	r, err := ownRelease(r)
	if err != nil {
		return ota.Release{}, err
	}
	r.State, r.CreatedAt, r.SignedAt, r.WithdrawnAt, r.Reason = ota.ReleaseDraft, stored(r.CreatedAt), time.Time{}, time.Time{}, ""
	err = s.locked(ctx, func() error {
		old, ok := s.releases[r.ID()]
		if !ok {
			s.releases[r.ID()] = r
			return nil
		}
		if !old.SameContent(r) {
			return fmt.Errorf("release %s exists with other content: %w", r.ID(), fleet.ErrConflict)
		}
		r = old
		return nil
	})
	if err != nil {
		return ota.Release{}, err
	}
	return ownRelease(r)
}

// Release implements fleet.ReleaseStore.
func (s *Store) Release(ctx context.Context, id ota.ReleaseID) (ota.Release, error) {
	var r ota.Release
	err := s.locked(ctx, func() error {
		var ok bool
		if r, ok = s.releases[id]; !ok {
			return notFound("release %s", id)
		}
		return nil
	})
	if err != nil {
		return ota.Release{}, err
	}
	return ownRelease(r)
}

// Releases implements fleet.ReleaseStore.
func (s *Store) Releases(ctx context.Context) ([]ota.Release, error) {
	var list []ota.Release
	err := s.locked(ctx, func() error {
		for _, r := range s.releases {
			own, err := ownRelease(r)
			if err != nil {
				return err
			}
			list = append(list, own)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b ota.Release) int {
		if c := newestFirst(a.CreatedAt, b.CreatedAt, a.Name, b.Name); c != 0 {
			return c
		}
		return newestFirst(time.Time{}, time.Time{}, a.Version, b.Version)
	})
	return list, err
}

// Metadata implements fleet.TrustStore.
func (s *Store) Metadata(ctx context.Context, role fleet.Role, version int64) (fleet.Metadata, error) {
	var m fleet.Metadata
	err := s.locked(ctx, func() error {
		for _, f := range s.metadata[role] {
			if version == 0 || f.Version == version {
				m = f // the last one is the newest
			}
		}
		if m.Version == 0 {
			return notFound("%s metadata version %d", role, version)
		}
		return nil
	})
	m.Bytes = bytes.Clone(m.Bytes)
	return m, err
}

// PublishMetadata implements fleet.TrustStore.
func (s *Store) PublishMetadata(ctx context.Context, files []fleet.Metadata, signed []ota.ReleaseID, now time.Time) error {
	return s.locked(ctx, func() error { return s.publish(files, signed, now) })
}

func (s *Store) publish(files []fleet.Metadata, signed []ota.ReleaseID, now time.Time) error {
	metadata, releases := maps.Clone(s.metadata), maps.Clone(s.releases)
	for _, f := range files {
		versions, newest := slices.Clone(metadata[f.Role]), int64(0)
		if len(versions) > 0 {
			newest = versions[len(versions)-1].Version
		}
		if f.Version != newest+1 {
			return fmt.Errorf("%s metadata version %d after %d: %w", f.Role, f.Version, newest, fleet.ErrStale)
		}
		f.Bytes = bytes.Clone(f.Bytes)
		old := fleet.Superseded(f.Role, f.Version)
		metadata[f.Role] = slices.DeleteFunc(append(versions, f), func(m fleet.Metadata) bool { return m.Version <= old })
	}
	for _, id := range signed {
		r, ok := releases[id]
		switch {
		case !ok:
			return notFound("release %s", id)
		case r.State == ota.ReleaseWithdrawn:
			return fmt.Errorf("release %s is withdrawn: %w", id, fleet.ErrConflict)
		case r.State == ota.ReleaseDraft:
			r.State, r.SignedAt = ota.ReleaseSigned, stored(now)
			releases[id] = r
		}
	}
	before := slices.Collect(maps.Values(s.releases))
	s.metadata, s.releases = metadata, releases
	s.markOpened(before)
	return nil
}

// ownRelease copies the manifest by way of its JSON, so that what comes back is
// what any store would give.
func ownRelease(r ota.Release) (ota.Release, error) {
	b, err := json.Marshal(r.Manifest)
	if err != nil {
		return ota.Release{}, fmt.Errorf("manifest of release %s: %w", r.ID(), err)
	}
	r.Manifest = ota.Manifest{}
	return r, json.Unmarshal(b, &r.Manifest)
}
