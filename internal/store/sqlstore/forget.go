package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const (
	selectForgotten = `SELECT key_fingerprint, revoked_at FROM devices WHERE id = ?`

	// keepRefused remembers the certificates of a device that is about to go.
	keepRefused = `INSERT INTO deleted_certificates (serial, device_id, key_fingerprint, ends_at, revoked_at)
	SELECT serial, device_id, CAST(? AS TEXT), ends_at, CAST(? AS BIGINT) FROM device_certificates WHERE device_id = ? AND ends_at > ? ON CONFLICT (serial) DO NOTHING`
	dropRefused = `DELETE FROM deleted_certificates WHERE ends_at <= ?`

	selectDeletedKey = `SELECT device_id FROM deleted_certificates WHERE key_fingerprint = ? AND ends_at > ? ORDER BY device_id LIMIT 1`

	// evictDeleted comes after any other one, whatever clock that went by: nobody has
	// seen it yet.
	evictDeleted = `INSERT INTO device_evictions (device_id, evicted_at, reason) VALUES (?, ?, ?) ON CONFLICT (device_id) DO UPDATE SET reason = excluded.reason,
	evicted_at = CASE WHEN device_evictions.evicted_at < excluded.evicted_at THEN excluded.evicted_at ELSE device_evictions.evicted_at + 1 END`

	dropEvictions = `DELETE FROM device_evictions WHERE evicted_at < ? AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.id = device_evictions.device_id)`

	// partUpdated ends the pairs that the device is in without a result.
	partUpdated = `UPDATE health_pairs SET partner_id = '', outcomes = ? WHERE outcomes = '' AND (device_id = ? OR partner_id = ?)`
	// selectSucceeded is what a rollout that compares devices may want a pair for.
	selectSucceeded = selectExecution + ` WHERE e.device_id = ? AND e.latest = 1 AND e.status = 'SUCCEEDED' AND e.class <> 'underway' AND r.ended_at IS NULL`

	// leaveLines has the device leave continuous rollouts.
	leaveLines = `UPDATE candidates SET standing = 0 WHERE device_id = ? AND standing = 1
	AND (rollout_id, line) IN (SELECT id, line FROM rollouts WHERE follows = 1)`

	// dateUploads has the next sweep find what the device uploaded.
	dateUploads = `UPDATE uploads SET uploaded_at = 0, bytes = NULL WHERE device_id = ?`
)

// belongings are the tables of which a device has rows, in the order in which these
// are dropped: marks before what a look holds after them, and what others write with
// a lock on the device last.
var belongings = []string{"shadows", "relooks", "device_events", "device_event_logs", "group_members", "device_credentials",
	"device_connections", "device_seen", "provisioned", "device_certificates"}

// DeleteDevice implements fleet.DeviceStore.
func (s *Store) DeleteDevice(ctx context.Context, d fleet.Deletion, now time.Time) error {
	now = stored(now)
	return s.writer.doAlone(ctx, func(t *tx) error {
		if err := t.keepOut(t.w.dialect.Revoke); err != nil {
			return err
		}
		key, revoked, err := t.forDelete(d.DeviceID)
		if err != nil {
			return err
		}
		if revoked.IsZero() {
			revoked = now
		}
		if err := t.endOf(d, now); err != nil {
			return err
		}
		if err := t.refuse(d.DeviceID, key, revoked, now); err != nil {
			return err
		}
		if err := t.unpair(d.DeviceID); err != nil {
			return err
		}
		return t.drop(d.DeviceID)
	})
}

// forDelete holds the device, the key of which it returns and when it was revoked, and
// its shadows: these first, as whoever updates them.
func (t *tx) forDelete(id string) (key string, revoked time.Time, err error) {
	shadows, err := t.lockedShadows(id)
	if err != nil {
		return "", time.Time{}, err
	}
	err = t.row(selectForgotten+t.w.dialect.ForDelete, id).Scan(&key, timeInto{&revoked})
	if errors.Is(err, sql.ErrNoRows) {
		return "", time.Time{}, notFound("device %s", id)
	}
	if err != nil {
		return "", time.Time{}, err
	}
	again, err := t.lockedShadows(id)
	if err == nil && len(again) > len(shadows) { // one was made meanwhile
		err = t.fail(errRaced)
	}
	return key, revoked, err
}

// lockedShadows returns the names of the device's shadows, held where there are others.
func (t *tx) lockedShadows(deviceID string) (names []string, err error) {
	err = t.rows(func(r row) error {
		var name string
		err := r.Scan(&name)
		names = append(names, name)
		return err
	}, `SELECT name FROM shadows WHERE device_id = ? ORDER BY name`+t.forUpdate("shadows"), deviceID)
	return names, err
}

// endOf ends what the device has to do, unless that keeps it from being deleted. The
// mark goes first: who settles a look holds it before the executions.
func (t *tx) endOf(d fleet.Deletion, now time.Time) error {
	if _, err := t.exec(`DELETE FROM marks WHERE device_id = ?`, d.DeviceID); err != nil {
		return err
	}
	open, err := t.openOn(d.DeviceID)
	if err != nil {
		return err
	}
	for _, e := range open {
		if err := d.Refuses(e); err != nil {
			return err
		}
	}
	return t.remove(d.DeviceID, open, ota.DeletedReason, now)
}

// refuse keeps the device out, wherever it is connected now and with whatever
// certificate it comes.
func (t *tx) refuse(id, key string, revoked, now time.Time) error {
	if _, err := t.exec(evictDeleted, id, micros(now), fleet.EvictedDeleted); err != nil {
		return err
	}
	if _, err := t.exec(dropEvictions, micros(now.Add(-fleet.DeletionMemory))); err != nil {
		return err
	}
	if _, err := t.exec(dropRefused, micros(now)); err != nil {
		return err
	}
	_, err := t.exec(keepRefused, key, micros(revoked), id, micros(now))
	return err
}

// unpair has no rollout that compares devices wait for this one.
func (t *tx) unpair(id string) error {
	if _, err := t.exec(partUpdated, fleet.PairAlone, id, id); err != nil {
		return err
	}
	var succeeded []ota.Execution
	err := t.rows(func(r row) error {
		e, err := scanExecution(r)
		succeeded = append(succeeded, e)
		return err
	}, selectSucceeded, id)
	if err != nil {
		return err
	}
	for _, e := range succeeded {
		r, err := scanRollout(t.row(selectRollout+` WHERE id = ?`, e.RolloutID))
		if err != nil {
			return err
		}
		if len(r.Terms.Health.Signals) == 0 {
			continue
		}
		if err := t.putPairs(r.ID, []fleet.Pair{fleet.Unpaired(e)}); err != nil {
			return err
		}
	}
	return nil
}

// drop drops the device with all that is its own.
func (t *tx) drop(id string) error {
	for _, statement := range []string{leaveLines, dateUploads} {
		if _, err := t.exec(statement, id); err != nil {
			return err
		}
	}
	for _, table := range belongings {
		if _, err := t.exec(`DELETE FROM `+table+` WHERE device_id = ?`, id); err != nil {
			return err
		}
	}
	_, err := t.exec(`DELETE FROM devices WHERE id = ?`, id)
	if errors.Is(err, errForeignKey) { // another otad gave it something meanwhile
		return t.fail(errRaced)
	}
	if err != nil {
		return err
	}
	t.forget(id)
	return nil
}

// forget drops what the batch gathered of a device that it has deleted.
func (t *tx) forget(id string) {
	for key := range t.shadows {
		if key.device == id {
			delete(t.shadows, key)
		}
	}
	t.dirty = slices.DeleteFunc(t.dirty, func(c *cachedShadow) bool { return c.key.device == id })
	t.enrolled = slices.DeleteFunc(t.enrolled, func(d fleet.Device) bool { return d.ID == id })
	delete(t.retagged, id)
	delete(t.marked, id)
}

// freshKey reports a key that was that of a device which was deleted.
func freshKey(t *tx, key string, now time.Time) error {
	if key == "" {
		return nil
	}
	var of string
	err := t.row(selectDeletedKey, key, micros(now)).Scan(&of)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil {
		err = fleet.DeletedKey(of)
	}
	return err
}

// openOn returns, locked, what the device has to do, or will have again.
func (t *tx) openOn(id string) (open []ota.Execution, err error) {
	err = t.rows(func(r row) error {
		e, err := scanExecution(r)
		open = append(open, e)
		return err
	}, selectOpen+t.forUpdate("e"), id)
	return open, err
}

// remove ends and counts what a device has to do.
func (t *tx) remove(id string, open []ota.Execution, reason string, now time.Time) error {
	for _, before := range open {
		after, _ := ota.Remove(before, reason, stored(now))
		after.RetryAt = time.Time{}
		if err := t.recounted(before, after); err != nil {
			return err
		}
	}
	e, _ := ota.Remove(ota.Execution{Status: ota.Queued}, reason, now)
	details, err := mapText(e.Details)
	if err != nil {
		return err
	}
	if _, err = t.exec(removeActive, e.Status, e.Class, details, micros(e.UpdatedAt), micros(e.FinishedAt), id); err != nil {
		return fmt.Errorf("remove executions of device %s: %w", id, err)
	}
	_, err = t.exec(`UPDATE executions SET retry_at = NULL WHERE device_id = ? AND retry_at IS NOT NULL`, id)
	return err
}
