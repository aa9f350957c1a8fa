package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

type shadowKey struct{ device, name string }

// cachedShadow is a shadow as it stands within a batch.
type cachedShadow struct {
	key       shadowKey
	doc       shadow.Document
	text      string
	deletedAt time.Time
	changed   bool
}

// Shadow implements fleet.ShadowStore.
func (s *Store) Shadow(ctx context.Context, deviceID, name string) (shadow.Document, error) {
	var doc shadow.Document
	err := s.row(ctx, `SELECT document FROM shadows WHERE device_id = ? AND name = ? AND deleted_at IS NULL`,
		deviceID, name).Scan(documentInto{&doc})
	if !errors.Is(err, sql.ErrNoRows) {
		return doc, err
	}
	if _, err := s.Device(ctx, deviceID); err != nil {
		return shadow.Document{}, err
	}
	return shadow.Document{}, fleet.NoShadow(deviceID, name)
}

// UpdateShadow implements fleet.ShadowStore.
func (s *Store) UpdateShadow(ctx context.Context, deviceID, name string, u shadow.Update, now time.Time) (shadow.Result, error) {
	var result shadow.Result
	err := s.writer.do(ctx, func(t *tx) error {
		c, err := t.shadow(shadowKey{deviceID, name})
		if err != nil {
			return err
		}
		if result, err = shadow.Apply(c.doc, u, stored(now)); err != nil {
			return err
		}
		// Encoded here, not at the end: a document that can not be stored is
		// this operation's fault alone.
		text, err := result.Document.MarshalJSON()
		if err != nil {
			return fmt.Errorf("shadow %q of device %s: %w", name, deviceID, err)
		}
		t.change(c, cachedShadow{doc: result.Document, text: string(text)})
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
	err := s.writer.do(ctx, func(t *tx) error {
		c, err := t.shadow(shadowKey{deviceID, name})
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

// shadow reads a shadow, once in a batch.
func (t *tx) shadow(key shadowKey) (*cachedShadow, error) {
	if c, ok := t.shadows[key]; ok {
		return c, nil
	}
	c, err := t.readShadow(key)
	if err != nil {
		return nil, err
	}
	if t.shadows == nil {
		t.shadows = map[shadowKey]*cachedShadow{}
	}
	t.shadows[key] = c
	return c, nil
}

func (t *tx) readShadow(key shadowKey) (*cachedShadow, error) {
	c := &cachedShadow{key: key}
	var version int64
	var text string
	err := t.row(`SELECT version, deleted_at, document FROM shadows WHERE device_id = ? AND name = ?`+t.forUpdate("shadows"),
		key.device, key.name).Scan(&version, timeInto{&c.deletedAt}, &text)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return c, t.deviceExists(key.device)
	case err != nil:
		return nil, err
	case text == "":
		c.doc = shadow.Document{Version: version}
		return c, nil
	}
	if err := c.doc.UnmarshalJSON([]byte(text)); err != nil {
		return nil, fmt.Errorf("shadow %q of device %s: %w", key.name, key.device, err)
	}
	return c, nil
}

func (t *tx) deviceExists(id string) error {
	var one int
	err := t.row(`SELECT 1 FROM devices WHERE id = ?`, id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return notFound("device %s", id)
	}
	return err
}

// change sets what c is to be when the batch is committed.
func (t *tx) change(c *cachedShadow, to cachedShadow) {
	if !c.changed {
		t.dirty = append(t.dirty, c)
	}
	c.doc, c.text, c.deletedAt, c.changed = to.doc, to.text, to.deletedAt, true
}

// flush writes the shadows that the batch changed.
func (t *tx) flush() error {
	for _, c := range t.dirty {
		_, err := t.write(`INSERT INTO shadows (device_id, name, version, deleted_at, document) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (device_id, name) DO UPDATE
			SET version = excluded.version, deleted_at = excluded.deleted_at, document = excluded.document`,
			c.key.device, c.key.name, c.doc.Version, micros(c.deletedAt), c.text)
		if err != nil {
			return fmt.Errorf("write shadow %q of device %s: %w", c.key.name, c.key.device, err)
		}
	}
	return nil
}
