package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
)

const selectToken = `SELECT id, secret_hash, uses, device_glob, hardware, tags, created_at, expires_at, revoked_at FROM enrollment_tokens`

func scanToken(r row) (fleet.EnrollmentToken, error) {
	var t fleet.EnrollmentToken
	err := r.Scan(&t.ID, hashInto{&t.SecretHash}, &t.Uses, &t.DeviceGlob, &t.Hardware, mapInto{&t.Tags},
		timeInto{&t.CreatedAt}, timeInto{&t.ExpiresAt}, timeInto{&t.RevokedAt})
	return t, err
}

// CreateEnrollmentToken implements fleet.TokenStore.
func (s *Store) CreateEnrollmentToken(ctx context.Context, token fleet.EnrollmentToken) error {
	if token.Uses < 0 {
		return fmt.Errorf("%w: enrollment token %s for %d uses", fleet.ErrInvalid, token.ID, token.Uses)
	}
	tags, err := mapText(token.Tags)
	if err != nil {
		return err
	}
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`INSERT INTO enrollment_tokens
			(id, secret_hash, uses, device_glob, hardware, tags, created_at, expires_at, revoked_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			token.ID, hashText(token.SecretHash), token.Uses, token.DeviceGlob, token.Hardware, tags,
			micros(token.CreatedAt), micros(token.ExpiresAt), micros(token.RevokedAt))
		if err == nil && n == 0 {
			return fmt.Errorf("enrollment token %s exists: %w", token.ID, fleet.ErrConflict)
		}
		return err
	})
}

// EnrollmentTokens implements fleet.TokenStore.
func (s *Store) EnrollmentTokens(ctx context.Context) ([]fleet.EnrollmentToken, error) {
	var list []fleet.EnrollmentToken
	err := s.rows(ctx, func(r row) error {
		t, err := scanToken(r)
		list = append(list, t)
		return err
	}, selectToken+` ORDER BY COALESCE(created_at, 0) DESC, id`)
	if err != nil {
		return nil, fmt.Errorf("read enrollment tokens: %w", err)
	}
	return list, nil
}

// RevokeEnrollmentToken implements fleet.TokenStore.
func (s *Store) RevokeEnrollmentToken(ctx context.Context, id string, now time.Time) error {
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE enrollment_tokens SET revoked_at = COALESCE(revoked_at, ?) WHERE id = ?`, micros(now), id)
		if err == nil && n == 0 {
			return notFound("enrollment token %s", id)
		}
		return err
	})
}

// CreateAPIToken implements fleet.TokenStore.
func (s *Store) CreateAPIToken(ctx context.Context, token fleet.APIToken) error {
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`INSERT INTO api_tokens (id, name, secret_hash, created_at, expires_at)
			VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			token.ID, token.Name, hashText(token.SecretHash), micros(token.CreatedAt), micros(token.ExpiresAt))
		if err == nil && n == 0 {
			return fmt.Errorf("API token %s exists: %w", token.ID, fleet.ErrConflict)
		}
		return err
	})
}

// APIToken implements fleet.TokenStore.
func (s *Store) APIToken(ctx context.Context, id string) (fleet.APIToken, error) {
	var t fleet.APIToken
	err := s.row(ctx, `SELECT id, name, secret_hash, created_at, expires_at FROM api_tokens WHERE id = ?`, id).
		Scan(&t.ID, &t.Name, hashInto{&t.SecretHash}, timeInto{&t.CreatedAt}, timeInto{&t.ExpiresAt})
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.APIToken{}, notFound("API token %s", id)
	}
	return t, err
}
