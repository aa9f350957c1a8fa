package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// putUpload finds nothing to insert where there is no such attempt.
const putUpload = `INSERT INTO uploads (rollout_id, device_id, attempt, bytes, uploaded_at)
	SELECT rollout_id, device_id, attempt, CAST(? AS BIGINT), CAST(? AS BIGINT) FROM executions WHERE rollout_id = ? AND device_id = ? AND attempt = ?
	ON CONFLICT (rollout_id, device_id, attempt) DO UPDATE SET bytes = excluded.bytes, uploaded_at = excluded.uploaded_at`

// PutUpload implements fleet.UploadStore.
func (s *Store) PutUpload(ctx context.Context, u fleet.Upload) error {
	bytes := any(u.Bytes)
	if u.Bytes == fleet.UploadBegun {
		bytes = nil
	}
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(putUpload, bytes, micros(u.At), u.RolloutID, u.DeviceID, u.Attempt)
		if err == nil && n == 0 {
			return notFound("attempt %d of rollout %s on device %s", u.Attempt, u.RolloutID, u.DeviceID)
		}
		return err
	})
}

const selectUpload = `SELECT rollout_id, device_id, attempt, bytes, uploaded_at FROM uploads`

// Uploads implements fleet.UploadStore.
func (s *Store) Uploads(ctx context.Context, f fleet.UploadFilter, limit int) ([]fleet.Upload, error) {
	query, args := selectUpload+` WHERE bytes IS NOT NULL`, []any{}
	if f.RolloutID != "" {
		query, args = query+` AND rollout_id = ?`, append(args, f.RolloutID)
	}
	if f.DeviceID != "" {
		query, args = query+` AND device_id = ?`, append(args, f.DeviceID)
	}
	query += ` AND (rollout_id, device_id, attempt) > (?, ?, ?) ORDER BY rollout_id, device_id, attempt LIMIT ?`
	return s.uploads(ctx, query, append(args, f.After.RolloutID, f.After.DeviceID, f.After.Attempt, limit)...)
}

// selectOldUploads counts those of each device from the newest on.
const selectOldUploads = `SELECT rollout_id, device_id, attempt, bytes, uploaded_at FROM
	(SELECT u.*, ROW_NUMBER() OVER (PARTITION BY device_id ORDER BY uploaded_at DESC, rollout_id DESC, attempt DESC) AS place FROM uploads u) x
	WHERE uploaded_at <= ? OR place > ? ORDER BY uploaded_at, rollout_id, device_id, attempt LIMIT ?`

// OldUploads implements fleet.UploadStore.
func (s *Store) OldUploads(ctx context.Context, before time.Time, kept, limit int) ([]fleet.Upload, error) {
	return s.uploads(ctx, selectOldUploads, stored(before).UnixMicro(), kept, limit)
}

func (s *Store) uploads(ctx context.Context, query string, args ...any) ([]fleet.Upload, error) {
	var list []fleet.Upload
	err := s.rows(ctx, func(r row) error {
		var u fleet.Upload
		var bytes sql.NullInt64
		err := r.Scan(&u.RolloutID, &u.DeviceID, &u.Attempt, &bytes, timeInto{&u.At})
		if u.Bytes = fleet.UploadBegun; bytes.Valid {
			u.Bytes = bytes.Int64
		}
		list = append(list, u)
		return err
	}, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read uploads: %w", err)
	}
	return list, nil
}

// DropUpload implements fleet.UploadStore.
func (s *Store) DropUpload(ctx context.Context, u fleet.Upload) error {
	return s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec(`DELETE FROM uploads WHERE rollout_id = ? AND device_id = ? AND attempt = ? AND uploaded_at = ?`,
			u.RolloutID, u.DeviceID, u.Attempt, micros(u.At))
		return err
	})
}
