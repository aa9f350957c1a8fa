package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
)

const selectWebhook = `SELECT w.id, w.url, w.types, w.rollout_id, w.salt, w.secret_sum, w.old_salt, w.old_sum, w.old_until, w.state, w.created_by,
	w.created_at, w.revision, w.seq, w.failures, w.next_at, w.attempt_at, w.status, w.error, w.failing_since, w.delivered, w.lost, w.lost_up_to, w.lost_at,
	w.owner, w.claimed_until, (SELECT COUNT(*) FROM webhook_dead d WHERE d.webhook_id = w.id),
	(SELECT COUNT(*) FROM webhook_dead d WHERE d.webhook_id = w.id AND d.due = 1) FROM webhooks w`

func scanWebhook(r row) (w fleet.Webhook, err error) {
	err = r.Scan(&w.ID, &w.URL, jsonInto{&w.Types}, &w.RolloutID, &w.Key.Salt, &w.Key.Sum, &w.OldKey.Salt, &w.OldKey.Sum, timeInto{&w.OldUntil}, &w.State, &w.CreatedBy,
		timeInto{&w.CreatedAt}, &w.Revision, &w.Seq, &w.Failures, timeInto{&w.NextAt}, timeInto{&w.AttemptAt}, &w.Status, &w.Error, timeInto{&w.FailingSince},
		&w.Delivered, &w.Lost, &w.LostUpTo, timeInto{&w.LostAt}, &w.Owner, timeInto{&w.Until}, &w.Dead, &w.Due)
	return w, err
}

const insertWebhook = `INSERT INTO webhooks (id, url, types, rollout_id, salt, secret_sum, old_salt, old_sum, old_until, state, created_by, created_at,
	revision, seq, failures, next_at, attempt_at, status, error, failing_since, delivered, lost, lost_up_to, lost_at, owner, claimed_until)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', NULL) ON CONFLICT (id) DO NOTHING`

// CreateWebhook implements fleet.WebhookStore.
func (s *Store) CreateWebhook(ctx context.Context, w fleet.Webhook) error {
	types, err := jsonText(w.Types)
	if err != nil {
		return err
	}
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(insertWebhook, w.ID, w.URL, types, w.RolloutID, w.Key.Salt, w.Key.Sum, w.OldKey.Salt, w.OldKey.Sum, micros(w.OldUntil), w.State,
			w.CreatedBy, micros(w.CreatedAt), w.Revision, w.Seq, w.Failures, micros(w.NextAt), micros(w.AttemptAt), w.Status, w.Error, micros(w.FailingSince),
			w.Delivered, w.Lost, w.LostUpTo, micros(w.LostAt))
		if err == nil && n == 0 {
			return fmt.Errorf("webhook %s exists: %w", w.ID, fleet.ErrConflict)
		}
		if err != nil {
			return err
		}
		var all int
		if err := t.row(`SELECT COUNT(*) FROM webhooks`).Scan(&all); err != nil {
			return err
		}
		if all > fleet.MaxWebhooks {
			return fmt.Errorf("there are %d webhooks already, delete one first: %w", all-1, fleet.ErrConflict)
		}
		return nil
	})
}

// Webhook implements fleet.WebhookStore.
func (s *Store) Webhook(ctx context.Context, id string) (fleet.Webhook, error) {
	return foundWebhook(id, s.row(ctx, selectWebhook+` WHERE w.id = ?`, id))
}

func foundWebhook(id string, r row) (fleet.Webhook, error) {
	w, err := scanWebhook(r)
	if errors.Is(err, sql.ErrNoRows) {
		return w, notFound("webhook %s", id)
	}
	return w, err
}

// Webhooks implements fleet.WebhookStore.
func (s *Store) Webhooks(ctx context.Context) ([]fleet.Webhook, error) {
	var all []fleet.Webhook
	err := s.rows(ctx, func(r row) error {
		w, err := scanWebhook(r)
		all = append(all, w)
		return err
	}, selectWebhook+` ORDER BY w.created_at, w.id`)
	if err != nil {
		return nil, fmt.Errorf("read webhooks: %w", err)
	}
	return all, nil
}

// changed is what an UPDATE of a webhook means that did so many rows: what is not
// there is ErrNotFound, what did not fit is otherwise.
func (t *tx) changed(n int64, err error, id string, otherwise error) error {
	if err != nil || n > 0 {
		return err
	}
	if err := t.webhookIsThere(id); err != nil {
		return err
	}
	return fmt.Errorf("webhook %s: %w", id, otherwise)
}

func (t *tx) webhookIsThere(id string) error {
	var found string
	err := t.row(`SELECT id FROM webhooks WHERE id = ?`, id).Scan(&found)
	if errors.Is(err, sql.ErrNoRows) {
		return notFound("webhook %s", id)
	}
	return err
}

// ChangeWebhook implements fleet.WebhookStore.
func (s *Store) ChangeWebhook(ctx context.Context, c fleet.WebhookChange) error {
	types, err := jsonText(c.Types)
	if err != nil {
		return err
	}
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE webhooks SET url = ?, types = ?, rollout_id = ?, salt = ?, secret_sum = ?, old_salt = ?, old_sum = ?, old_until = ?, state = ?,
			revision = revision + 1 WHERE id = ? AND revision = ?`, c.URL, types, c.RolloutID, c.Key.Salt, c.Key.Sum, c.OldKey.Salt, c.OldKey.Sum,
			micros(c.OldUntil), c.State, c.ID, c.Revision)
		if err := t.changed(n, err, c.ID, fleet.ErrStale); err != nil {
			return err
		}
		if c.Anew || c.After != nil {
			if _, err := t.exec(`UPDATE webhooks SET failures = 0, next_at = NULL WHERE id = ?`, c.ID); err != nil {
				return err
			}
		}
		if c.After != nil {
			_, err = t.exec(`UPDATE webhooks SET seq = ?, owner = '', claimed_until = NULL WHERE id = ?`, *c.After, c.ID)
		}
		return err
	})
}

// DeleteWebhook implements fleet.WebhookStore.
func (s *Store) DeleteWebhook(ctx context.Context, id string) error {
	return s.writer.do(ctx, func(t *tx) error {
		// The row first: it keeps a delivery on another replica from adding to what
		// goes with it.
		if err := t.row(`SELECT id FROM webhooks WHERE id = ?`+t.forUpdate("webhooks"), id).Scan(new(string)); errors.Is(err, sql.ErrNoRows) {
			return notFound("webhook %s", id)
		} else if err != nil {
			return err
		}
		if _, err := t.exec(`DELETE FROM webhook_dead WHERE webhook_id = ?`, id); err != nil {
			return err
		}
		_, err := t.exec(`DELETE FROM webhooks WHERE id = ?`, id)
		return err
	})
}

// ClaimWebhook implements fleet.CourierStore.
func (s *Store) ClaimWebhook(ctx context.Context, id, owner string, now, until time.Time) (w fleet.Webhook, err error) {
	err = s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE webhooks SET owner = ?, claimed_until = ? WHERE id = ? AND state = ? AND (owner IN ('', ?) OR claimed_until <= ?)`,
			owner, micros(until), id, fleet.WebhookEnabled, owner, micros(now))
		if err := t.changed(n, err, id, fmt.Errorf("%w: it is not enabled, or another otad delivers", fleet.ErrConflict)); err != nil {
			return err
		}
		w, err = foundWebhook(id, t.row(selectWebhook+` WHERE w.id = ?`, id))
		return err
	})
	return w, err
}

const saveDelivery = `UPDATE webhooks SET seq = ?, failures = ?, next_at = ?, attempt_at = ?, status = ?, error = ?, failing_since = ?, delivered = ?,
	owner = ?, claimed_until = ? WHERE id = ? AND owner = ?`

// SaveDelivery implements fleet.CourierStore.
func (s *Store) SaveDelivery(ctx context.Context, d fleet.Delivery) (w fleet.Webhook, err error) {
	owner := d.Owner
	if d.Until.IsZero() {
		owner = ""
	}
	err = s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(saveDelivery, d.Seq, d.Failures, micros(d.NextAt), micros(d.AttemptAt), d.Status, d.Error, micros(d.FailingSince), d.Delivered,
			owner, micros(d.Until), d.WebhookID, d.Owner)
		if err := t.changed(n, err, d.WebhookID, fleet.ErrStale); err != nil {
			return err
		}
		if d.Gone {
			if _, err := t.exec(`UPDATE webhooks SET state = ? WHERE id = ? AND state = ?`, fleet.WebhookGone, d.WebhookID, fleet.WebhookEnabled); err != nil {
				return err
			}
		}
		if err := t.lose(d.WebhookID, d.Lost, d.LostUpTo, d.Now); err != nil {
			return err
		}
		if err := t.saveDead(d); err != nil {
			return err
		}
		w, err = foundWebhook(d.WebhookID, t.row(selectWebhook+` WHERE w.id = ?`, d.WebhookID))
		return err
	})
	return w, err
}

// saveDead takes out the dead letters that were delivered and puts in those that
// were given up.
func (t *tx) saveDead(d fleet.Delivery) error {
	for _, seq := range d.Done {
		if _, err := t.exec(`DELETE FROM webhook_dead WHERE webhook_id = ? AND seq = ?`, d.WebhookID, seq); err != nil {
			return err
		}
	}
	if d.Spare {
		if _, err := t.exec(`UPDATE webhook_dead SET due = 0 WHERE webhook_id = ? AND due = 1`, d.WebhookID); err != nil {
			return err
		}
	}
	for _, l := range d.Dead {
		_, err := t.exec(`INSERT INTO webhook_dead (webhook_id, seq, type, body, attempts, status, error, died_at, due) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)
			ON CONFLICT (webhook_id, seq) DO UPDATE SET type = excluded.type, body = excluded.body, attempts = excluded.attempts, status = excluded.status,
			error = excluded.error, died_at = excluded.died_at, due = 0`, d.WebhookID, l.Seq, l.Type, l.Body, l.Attempts, l.Status, l.Error, micros(l.At))
		if err != nil {
			return err
		}
	}
	if len(d.Dead) == 0 {
		return nil
	}
	var n int
	if err := t.row(`SELECT COUNT(*) FROM webhook_dead WHERE webhook_id = ?`, d.WebhookID).Scan(&n); err != nil || n <= fleet.MaxDeadLetters {
		return err
	}
	var up int64
	if err := t.row(`SELECT seq FROM webhook_dead WHERE webhook_id = ? ORDER BY seq LIMIT 1 OFFSET ?`, d.WebhookID, n-fleet.MaxDeadLetters-1).Scan(&up); err != nil {
		return err
	}
	return t.loseDead(d.WebhookID, `seq <= ?`, up, d.Now)
}

// loseDead drops dead letters for good, and says so in their webhook.
func (t *tx) loseDead(id, which string, arg any, now time.Time) error {
	var n, up int64
	if err := t.row(`SELECT COUNT(*), COALESCE(MAX(seq), 0) FROM webhook_dead WHERE webhook_id = ? AND `+which, id, arg).Scan(&n, &up); err != nil || n == 0 {
		return err
	}
	if _, err := t.exec(`DELETE FROM webhook_dead WHERE webhook_id = ? AND `+which, id, arg); err != nil {
		return err
	}
	return t.lose(id, n, up, now)
}

// lose notes that so many events of a webhook are lost.
func (t *tx) lose(id string, n, upTo int64, now time.Time) error {
	if n == 0 {
		return nil
	}
	_, err := t.exec(`UPDATE webhooks SET lost = lost + ?, lost_up_to = CASE WHEN lost_up_to < ? THEN ? ELSE lost_up_to END, lost_at = ? WHERE id = ?`,
		n, upTo, upTo, micros(now), id)
	return err
}

// DeadLetters implements fleet.CourierStore.
func (s *Store) DeadLetters(ctx context.Context, f fleet.DeadLetterFilter, limit int) ([]fleet.DeadLetter, error) {
	query := `SELECT webhook_id, seq, type, body, attempts, status, error, died_at, due FROM webhook_dead WHERE webhook_id = ? AND seq > ?`
	if f.Due {
		query += ` AND due = 1`
	}
	var list []fleet.DeadLetter
	err := s.rows(ctx, func(r row) error {
		var l fleet.DeadLetter
		var due int
		err := r.Scan(&l.WebhookID, &l.Seq, &l.Type, &l.Body, &l.Attempts, &l.Status, &l.Error, timeInto{&l.At}, &due)
		l.Due = due != 0
		list = append(list, l)
		return err
	}, query+` ORDER BY seq LIMIT ?`, f.WebhookID, f.After, limit)
	if err != nil {
		return nil, fmt.Errorf("read dead letters of webhook %s: %w", f.WebhookID, err)
	}
	return list, nil
}

// Redeliver implements fleet.CourierStore.
func (s *Store) Redeliver(ctx context.Context, webhookID string, seqs []int64) (int, error) {
	var n int64
	err := s.writer.do(ctx, func(t *tx) (err error) {
		if err := t.webhookIsThere(webhookID); err != nil {
			return err
		}
		if len(seqs) == 0 {
			n, err = t.exec(`UPDATE webhook_dead SET due = 1 WHERE webhook_id = ?`, webhookID)
			return err
		}
		n, err = t.bulk(t.exec, `UPDATE webhook_dead SET due = 1 WHERE webhook_id = ? AND seq IN (SELECT v.seq FROM {rows})`, len(seqs), []any{webhookID}, integers("seq", seqs))
		return err
	})
	return int(n), err
}

// DropDeadLetters implements fleet.CourierStore.
func (s *Store) DropDeadLetters(ctx context.Context, before, now time.Time, limit int) (more bool, err error) {
	err = s.writer.do(ctx, func(t *tx) error {
		var ids []string
		n, cut := 0, int64(0)
		err := t.rows(func(r row) error {
			var id string
			err := r.Scan(&id, &cut)
			ids = append(ids, id)
			n++
			return err
		}, `SELECT webhook_id, died_at FROM webhook_dead WHERE died_at < ? ORDER BY died_at LIMIT ?`, stored(before).UnixMicro(), limit)
		if err != nil || n == 0 {
			return err
		}
		more = n == limit
		slices.Sort(ids)
		for _, id := range slices.Compact(ids) {
			if err := t.loseDead(id, `died_at <= ?`, cut, now); err != nil {
				return err
			}
		}
		return nil
	})
	return more, err
}

// freeWebhooks takes the claims away that a process had which is no more: nobody
// else has the database open.
func (s *Store) freeWebhooks(ctx context.Context) error {
	return s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec(`UPDATE webhooks SET owner = '', claimed_until = NULL WHERE owner <> ''`)
		return err
	})
}
