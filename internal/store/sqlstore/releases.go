package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const selectRelease = `SELECT manifest, state, index_digest, index_size, created_at, signed_at, withdrawn_at, reason FROM releases`

func scanRelease(r row) (ota.Release, error) {
	var rel ota.Release
	err := r.Scan(jsonInto{&rel.Manifest}, &rel.State, &rel.IndexDigest, &rel.IndexSize,
		timeInto{&rel.CreatedAt}, timeInto{&rel.SignedAt}, timeInto{&rel.WithdrawnAt}, &rel.Reason)
	return rel, err
}

// CreateRelease implements fleet.ReleaseStore.
func (s *Store) CreateRelease(ctx context.Context, r ota.Release) (ota.Release, error) {
	manifest, err := jsonText(r.Manifest)
	if err != nil {
		return ota.Release{}, fmt.Errorf("manifest of release %s: %w", r.ID(), err)
	}
	var kept ota.Release
	err = s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec(`INSERT INTO releases (name, version, manifest, state, index_digest, index_size, created_at)
			VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			r.Name, r.Version, manifest, ota.ReleaseDraft, r.IndexDigest, r.IndexSize, micros(r.CreatedAt))
		if err != nil {
			return err
		}
		if kept, err = scanRelease(t.row(selectRelease+` WHERE name = ? AND version = ?`, r.Name, r.Version)); err != nil {
			return err
		}
		if !kept.SameContent(r) {
			return fmt.Errorf("release %s exists with other content: %w", r.ID(), fleet.ErrConflict)
		}
		return nil
	})
	if err != nil {
		return ota.Release{}, err
	}
	return kept, nil
}

// Release implements fleet.ReleaseStore.
func (s *Store) Release(ctx context.Context, id ota.ReleaseID) (ota.Release, error) {
	r, err := scanRelease(s.row(ctx, selectRelease+` WHERE name = ? AND version = ?`, id.Name, id.Version))
	if errors.Is(err, sql.ErrNoRows) {
		return ota.Release{}, notFound("release %s", id)
	}
	return r, err
}

// Releases implements fleet.ReleaseStore.
func (s *Store) Releases(ctx context.Context) ([]ota.Release, error) {
	var list []ota.Release
	err := s.rows(ctx, func(r row) error {
		rel, err := scanRelease(r)
		list = append(list, rel)
		return err
	}, selectRelease+` ORDER BY COALESCE(created_at, 0) DESC, name, version`)
	if err != nil {
		return nil, fmt.Errorf("read releases: %w", err)
	}
	return list, nil
}

// Metadata implements fleet.TrustStore.
func (s *Store) Metadata(ctx context.Context, role fleet.Role, version int64) (fleet.Metadata, error) {
	m := fleet.Metadata{Role: role}
	query, args := `SELECT version, bytes FROM metadata WHERE role = ? AND version = ?`, []any{role, version}
	if version == 0 {
		query, args = `SELECT version, bytes FROM metadata WHERE role = ? ORDER BY version DESC LIMIT 1`, args[:1]
	}
	err := s.row(ctx, query, args...).Scan(&m.Version, &m.Bytes)
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.Metadata{}, notFound("%s metadata version %d", role, version)
	}
	return m, err
}

// PublishMetadata implements fleet.TrustStore.
func (s *Store) PublishMetadata(ctx context.Context, files []fleet.Metadata, signed []ota.ReleaseID, now time.Time) error {
	return s.writer.do(ctx, func(t *tx) error { return t.publish(files, signed, now) })
}

func (t *tx) publish(files []fleet.Metadata, signed []ota.ReleaseID, now time.Time) error {
	for _, f := range files {
		if err := publish(t, f); err != nil {
			return err
		}
	}
	if len(signed) == 0 {
		return nil
	}
	before, err := t.releases()
	if err != nil {
		return err
	}
	for _, id := range signed {
		if err := markSigned(t, id, now); err != nil {
			return err
		}
	}
	return t.markOpened(before)
}

func (t *tx) releases() (list []ota.Release, err error) {
	err = t.rows(func(r row) error {
		rel, err := scanRelease(r)
		list = append(list, rel)
		return err
	}, selectRelease+` ORDER BY name, version`)
	return list, err
}

// markAt gives one mark to all, which never comes again.
const markAt = `INSERT INTO marks (device_id, mark, reported_at) SELECT d.id, CAST(? AS BIGINT), CAST(NULL AS BIGINT) FROM devices d
	WHERE d.hardware = ? AND d.firmware_digest = ? ORDER BY d.id
	ON CONFLICT (device_id) DO UPDATE SET mark = excluded.mark`

// markOpened has devices looked at whose paths a change of the releases opens, from how
// they stood before.
func (t *tx) markOpened(before []ota.Release) error {
	after, err := t.releases()
	if err != nil {
		return err
	}
	var rollouts []ota.Rollout
	err = t.rows(func(row row) error {
		o, err := scanRollout(row)
		rollouts = append(rollouts, o)
		return err
	}, selectUnended)
	if err != nil {
		return err
	}
	for _, at := range fleet.Opened(rollouts, before, after) {
		if _, err := t.exec(markAt, rand.Int64(), at.Hardware, at.Digest); err != nil {
			return err
		}
	}
	return nil
}

func publish(t *tx, f fleet.Metadata) error {
	var newest int64
	err := t.row(`SELECT COALESCE(MAX(version), 0) FROM metadata WHERE role = ?`, f.Role).Scan(&newest)
	if err != nil {
		return err
	}
	stale := fmt.Errorf("%s metadata version %d after %d: %w", f.Role, f.Version, newest, fleet.ErrStale)
	if f.Version != newest+1 {
		return stale
	}
	content := f.Bytes
	if content == nil {
		content = []byte{}
	}
	n, err := t.exec(`INSERT INTO metadata (role, version, bytes) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, f.Role, f.Version, content)
	if err != nil || n == 0 {
		return cmp.Or(err, stale)
	}
	if old := fleet.Superseded(f.Role, f.Version); old > 0 {
		_, err = t.exec(`DELETE FROM metadata WHERE role = ? AND version <= ?`, f.Role, old)
	}
	return err
}

func markSigned(t *tx, id ota.ReleaseID, now time.Time) error {
	r, err := scanRelease(t.row(selectRelease+` WHERE name = ? AND version = ?`+t.forUpdate("releases"), id.Name, id.Version))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return notFound("release %s", id)
	case err != nil:
		return err
	case r.State == ota.ReleaseWithdrawn:
		return fmt.Errorf("release %s is withdrawn: %w", id, fleet.ErrConflict)
	case r.State == ota.ReleaseSigned:
		return nil
	}
	_, err = t.exec(`UPDATE releases SET state = ?, signed_at = ? WHERE name = ? AND version = ?`,
		ota.ReleaseSigned, micros(now), id.Name, id.Version)
	return err
}
