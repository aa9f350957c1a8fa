package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"github.com/otad/otad/internal/fleet"
)

// ChangeTags implements fleet.DeviceStore.
func (s *Store) ChangeTags(ctx context.Context, id string, set map[string]string, remove []string) error {
	key := shadowKey{device: id}
	return s.writer.doShadow(ctx, key, func(t *tx) error {
		c, err := t.shadow(key) // before the device, as whoever updates it
		if err != nil {
			return err
		}
		before, err := t.lockedFacts(id)
		if err != nil {
			return err
		}
		if err := t.stillNoShadow(c); err != nil {
			return err
		}
		tags, err := fleet.MergeTags(before.Tags, set, remove)
		if err != nil {
			return err
		}
		text, err := mapText(tags)
		if err != nil {
			return err
		}
		if _, err = t.exec(`UPDATE devices SET tags = ? WHERE id = ?`, text, id); err == nil {
			t.retag(before)
		}
		return err
	})
}

func (t *tx) lockedFacts(id string) (fleet.Device, error) {
	d := fleet.Device{ID: id}
	err := t.row(`SELECT hardware, tags FROM devices WHERE id = ?`+t.forUpdate("devices"), id).Scan(&d.Hardware, mapInto{&d.Tags})
	if errors.Is(err, sql.ErrNoRows) {
		return d, notFound("device %s", id)
	}
	return d, err
}

// stillNoShadow looks again for a shadow that was not there to be locked: who
// made it meanwhile held on to the device where a group asks for both.
func (t *tx) stillNoShadow(c *cachedShadow) error {
	if c.known || c.changed {
		return nil
	}
	now, err := t.readShadow(c.key)
	if err == nil && now.known {
		return t.fail(errRaced)
	}
	return err
}

// retag keeps what the device was before the batch.
func (t *tx) retag(before fleet.Device) {
	if t.retagged == nil {
		t.retagged = map[string]fleet.Device{}
	}
	if _, twice := t.retagged[before.ID]; !twice {
		t.retagged[before.ID] = before
	}
}
