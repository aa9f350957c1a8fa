package sqlstore

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/otad/otad/internal/fleet"
)

// SaveState stores values for the embedded broker, each under its key, and
// deletes the keys whose value is nil: all of it or, on an error, nothing. When
// it returns nil that is durable. Of what is asked for at the same time, the
// last word on a key is written, once. See fleet.ValidState for limits.
func (s *Store) SaveState(ctx context.Context, set map[string][]byte) error {
	return s.saveState(ctx, set, nil)
}

// saveState is SaveState, of the owner of a claim unless that is nil.
func (s *Store) saveState(ctx context.Context, set map[string][]byte, owner []byte) error {
	if err := fleet.ValidState(set); err != nil {
		return err
	}
	return s.writer.do(ctx, func(t *tx) error {
		if owner != nil {
			if err := t.owns(owner); err != nil {
				return err
			}
		}
		if t.state == nil {
			t.state = make(map[string][]byte, len(set))
		}
		maps.Copy(t.state, set)
		return nil
	})
}

// LoadState calls f for every key, in ascending order of its bytes. f's error
// ends it and comes back. f owns the value; it must not call the store.
func (s *Store) LoadState(ctx context.Context, f func(key string, value []byte) error) error {
	var refused error
	err := s.rows(ctx, func(r row) error {
		var key string
		var value []byte
		if err := r.Scan(&key, &value); err != nil {
			return err
		}
		if value == nil {
			value = []byte{}
		}
		refused = f(key, value)
		return refused
	}, `SELECT key, value FROM broker_state WHERE key <> ? ORDER BY key`, ownerKey)
	if err != nil && refused == nil {
		return fmt.Errorf("read broker state: %w", err)
	}
	return err
}

const putState = `INSERT INTO broker_state (key, value) SELECT v.key, v.value FROM {rows} WHERE 1 = 1
	ON CONFLICT (key) DO UPDATE SET value = excluded.value`

const dropState = `DELETE FROM broker_state WHERE key IN (SELECT v.key FROM {rows})`

// flushState writes what the batch wants kept for the broker.
func (t *tx) flushState() error {
	var put, drop []string
	for _, key := range slices.Sorted(maps.Keys(t.state)) {
		if t.state[key] == nil {
			drop = append(drop, key)
		} else {
			put = append(put, key)
		}
	}
	if _, err := t.bulk(t.write, dropState, len(drop), nil, texts("key", drop)); err != nil {
		return fmt.Errorf("delete broker state: %w", err)
	}
	values := list(put, func(key string) []byte { return t.state[key] })
	if _, err := t.bulk(t.write, putState, len(put), nil, texts("key", put), blobs("value", values)); err != nil {
		return fmt.Errorf("write broker state: %w", err)
	}
	return nil
}
