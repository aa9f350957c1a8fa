package sqlstore

import (
	"context"
	"fmt"
	"strings"

	"github.com/otad/otad/pkg/ota"
)

// viaText is how releases to pass through are kept: NAME@VERSION, with spaces between.
func viaText(via []ota.ReleaseID) string {
	words := make([]string, len(via))
	for i, id := range via {
		words[i] = id.String()
	}
	return strings.Join(words, " ")
}

// viaInto scans what viaText wrote.
type viaInto struct{ via *[]ota.ReleaseID }

func (s viaInto) Scan(v any) error {
	*s.via = nil
	text, ok := v.(string)
	if !ok {
		return fmt.Errorf("releases to pass through are %T", v)
	}
	for _, word := range strings.Fields(text) {
		id, err := ota.ParseReleaseID(word)
		if err != nil {
			return err
		}
		*s.via = append(*s.via, id)
	}
	return nil
}

// releaseInto scans NAME@VERSION; empty is none.
type releaseInto struct{ id *ota.ReleaseID }

func (s releaseInto) Scan(v any) (err error) {
	*s.id = ota.ReleaseID{}
	if text, ok := v.(string); !ok || text != "" {
		*s.id, err = ota.ParseReleaseID(text)
	}
	return err
}

const selectPassed = `SELECT DISTINCT via FROM executions WHERE rollout_id = ? AND via <> '' ORDER BY via`

// Passed implements fleet.ExecutionStore.
func (s *Store) Passed(ctx context.Context, rolloutID string) ([]ota.ReleaseID, error) {
	var list []ota.ReleaseID
	seen := map[ota.ReleaseID]bool{}
	err := s.rows(ctx, func(r row) error {
		var via []ota.ReleaseID
		err := r.Scan(viaInto{&via})
		if len(via) > 0 && !seen[via[0]] {
			seen[via[0]] = true
			list = append(list, via[0])
		}
		return err
	}, selectPassed, rolloutID)
	if err != nil {
		return nil, fmt.Errorf("read what devices of rollout %s pass through: %w", rolloutID, err)
	}
	return list, nil
}
