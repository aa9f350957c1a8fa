package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

type shadowKey struct{ device, name string }

// cachedShadow is a shadow as it stands within a batch.
type cachedShadow struct {
	key       shadowKey
	doc       shadow.Document
	before    shadow.Document // as it stood before the batch, once it is changed
	text      string
	deletedAt time.Time
	known     bool // there is a row
	changed   bool
}

// Shadow implements fleet.ShadowStore.
func (s *Store) Shadow(ctx context.Context, deviceID, name string) (shadow.Document, error) {
	doc, err := s.shadow(ctx, shadowKey{deviceID, name})
	if !errors.Is(err, sql.ErrNoRows) {
		return doc, err
	}
	if _, err := s.Device(ctx, deviceID); err != nil {
		return shadow.Document{}, err
	}
	return shadow.Document{}, fleet.NoShadow(deviceID, name)
}

// shadow reads a shadow; sql.ErrNoRows when there is none. What can not be read
// together with others is read by itself.
func (s *Store) shadow(ctx context.Context, key shadowKey) (doc shadow.Document, err error) {
	if s.shadows != nil {
		switch text, err := s.shadows.get(ctx, key); {
		case err == nil && text == "":
			return doc, sql.ErrNoRows
		case err == nil:
			return shadow.ParseDocument(text)
		case ctx.Err() != nil:
			return doc, ctx.Err()
		}
	}
	err = s.row(ctx, `SELECT document FROM shadows WHERE device_id = ? AND name = ? AND deleted_at IS NULL`,
		key.device, key.name).Scan(documentInto{&doc})
	return doc, err
}

// UpdateShadow implements fleet.ShadowStore.
func (s *Store) UpdateShadow(ctx context.Context, deviceID, name string, u shadow.Update, now time.Time) (shadow.Result, error) {
	var result shadow.Result
	key := shadowKey{deviceID, name}
	err := s.writer.doShadow(ctx, key, func(t *tx) error {
		c, err := t.shadow(key)
		if err != nil {
			return err
		}
		if result, err = shadow.Apply(c.doc, u, stored(now)); err != nil {
			return err
		}
		t.w.text = result.Document.Append(t.w.text[:0])
		t.change(c, cachedShadow{doc: result.Document, text: string(t.w.text)})
		if name == "" && fleet.SaysFirmware(u) {
			t.mark(deviceID, stored(now))
		}
		return nil
	})
	if err != nil {
		return shadow.Result{}, err
	}
	return result, nil
}

// DeleteShadow implements fleet.ShadowStore.
func (s *Store) DeleteShadow(ctx context.Context, deviceID, name string, now time.Time) (shadow.Document, error) {
	var deleted shadow.Document
	key := shadowKey{deviceID, name}
	err := s.writer.doShadow(ctx, key, func(t *tx) error {
		c, err := t.shadow(key)
		if err != nil {
			return err
		}
		if !c.doc.Exists() {
			return fleet.NoShadow(deviceID, name)
		}
		deleted = c.doc
		t.change(c, cachedShadow{doc: c.doc.Deleted(), deletedAt: now})
		return nil
	})
	if err != nil {
		return shadow.Document{}, err
	}
	return deleted, nil
}
