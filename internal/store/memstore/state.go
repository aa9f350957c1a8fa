package memstore

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/otad/otad/internal/fleet"
)

// SaveState stores values for the embedded broker and deletes the keys whose
// value is nil, all of it or nothing. See fleet.ValidState for limits.
func (s *Store) SaveState(ctx context.Context, set map[string][]byte) error {
	if err := fleet.ValidState(set); err != nil {
		return err
	}
	return s.locked(ctx, func() error {
		for key, value := range set {
			if value == nil {
				delete(s.state, key)
				continue
			}
			s.state[key] = bytes.Clone(value)
		}
		return nil
	})
}

// LoadState calls f for every key, in ascending order of its bytes. f's error
// ends it and comes back. f owns the value.
func (s *Store) LoadState(ctx context.Context, f func(key string, value []byte) error) error {
	var state map[string][]byte
	err := s.locked(ctx, func() error {
		state = maps.Clone(s.state)
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(state)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f(key, bytes.Clone(state[key])); err != nil {
			return err
		}
	}
	return nil
}
