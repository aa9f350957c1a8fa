package memstore

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// CreateWebhook implements fleet.WebhookStore.
func (s *Store) CreateWebhook(ctx context.Context, w fleet.Webhook) error {
	return s.locked(ctx, func() error {
		if _, ok := s.webhooks[w.ID]; ok {
			return fmt.Errorf("webhook %s exists: %w", w.ID, fleet.ErrConflict)
		}
		if n := len(s.webhooks); n >= fleet.MaxWebhooks {
			return fmt.Errorf("there are %d webhooks already, delete one first: %w", n, fleet.ErrConflict)
		}
		w.Types = slices.Clone(w.Types)
		w.CreatedAt, w.OldUntil, w.LostAt = stored(w.CreatedAt), stored(w.OldUntil), stored(w.LostAt)
		w.WebhookProgress = storedProgress(w.WebhookProgress)
		w.Owner, w.Until = "", time.Time{}
		s.webhooks[w.ID] = w
		s.dead[w.ID] = map[int64]fleet.DeadLetter{}
		return nil
	})
}

func storedProgress(p fleet.WebhookProgress) fleet.WebhookProgress {
	p.NextAt, p.AttemptAt, p.FailingSince = stored(p.NextAt), stored(p.AttemptAt), stored(p.FailingSince)
	return p
}

// webhook is one as it is given out; mu is held.
func (s *Store) webhook(id string) (fleet.Webhook, error) {
	w, ok := s.webhooks[id]
	if !ok {
		return w, notFound("webhook %s", id)
	}
	w.Types = slices.Clone(w.Types)
	w.Dead = len(s.dead[id])
	for _, l := range s.dead[id] {
		if l.Due {
			w.Due++
		}
	}
	return w, nil
}

// Webhook implements fleet.WebhookStore.
func (s *Store) Webhook(ctx context.Context, id string) (w fleet.Webhook, err error) {
	err = s.locked(ctx, func() error { w, err = s.webhook(id); return err })
	return w, err
}

// Webhooks implements fleet.WebhookStore.
func (s *Store) Webhooks(ctx context.Context) (all []fleet.Webhook, err error) {
	err = s.locked(ctx, func() error {
		for id := range s.webhooks {
			w, err := s.webhook(id)
			if err != nil {
				return err
			}
			all = append(all, w)
		}
		slices.SortFunc(all, func(a, b fleet.Webhook) int {
			return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
		})
		return nil
	})
	return all, err
}

// ChangeWebhook implements fleet.WebhookStore.
func (s *Store) ChangeWebhook(ctx context.Context, c fleet.WebhookChange) error {
	return s.locked(ctx, func() error {
		w, ok := s.webhooks[c.ID]
		if !ok {
			return notFound("webhook %s", c.ID)
		}
		if w.Revision != c.Revision {
			return fmt.Errorf("webhook %s: %w", c.ID, fleet.ErrStale)
		}
		w.Revision++
		w.URL, w.Types, w.RolloutID = c.URL, slices.Clone(c.Types), c.RolloutID
		w.Key, w.OldKey, w.OldUntil, w.State = c.Key, c.OldKey, stored(c.OldUntil), c.State
		if c.Anew || c.After != nil {
			w.Failures, w.NextAt = 0, time.Time{}
		}
		if c.After != nil {
			w.Seq, w.Owner, w.Until = *c.After, "", time.Time{}
		}
		s.webhooks[c.ID] = w
		return nil
	})
}

// DeleteWebhook implements fleet.WebhookStore.
func (s *Store) DeleteWebhook(ctx context.Context, id string) error {
	return s.locked(ctx, func() error {
		if _, ok := s.webhooks[id]; !ok {
			return notFound("webhook %s", id)
		}
		delete(s.webhooks, id)
		delete(s.dead, id)
		return nil
	})
}

// ClaimWebhook implements fleet.CourierStore.
func (s *Store) ClaimWebhook(ctx context.Context, id, owner string, now, until time.Time) (w fleet.Webhook, err error) {
	err = s.locked(ctx, func() error {
		w, ok := s.webhooks[id]
		if !ok {
			return notFound("webhook %s", id)
		}
		if w.State != fleet.WebhookEnabled || w.Owner != "" && w.Owner != owner && w.Until.After(stored(now)) {
			return fmt.Errorf("webhook %s: %w: it is not enabled, or another otad delivers", id, fleet.ErrConflict)
		}
		w.Owner, w.Until = owner, stored(until)
		s.webhooks[id] = w
		return nil
	})
	if err != nil {
		return fleet.Webhook{}, err
	}
	return s.Webhook(ctx, id)
}

// SaveDelivery implements fleet.CourierStore.
func (s *Store) SaveDelivery(ctx context.Context, d fleet.Delivery) (saved fleet.Webhook, err error) {
	err = s.locked(ctx, func() error {
		w, ok := s.webhooks[d.WebhookID]
		if !ok {
			return notFound("webhook %s", d.WebhookID)
		}
		if w.Owner != d.Owner {
			return fmt.Errorf("webhook %s: %w", d.WebhookID, fleet.ErrStale)
		}
		w.WebhookProgress, w.Until = storedProgress(d.WebhookProgress), stored(d.Until)
		if d.Until.IsZero() {
			w.Owner = ""
		}
		if d.Gone && w.State == fleet.WebhookEnabled {
			w.State = fleet.WebhookGone
		}
		s.webhooks[w.ID] = w
		s.lose(w.ID, d.Lost, d.LostUpTo, d.Now)
		s.saveDead(d)
		saved, err = s.webhook(w.ID)
		return err
	})
	return saved, err
}

func (s *Store) saveDead(d fleet.Delivery) {
	dead := s.dead[d.WebhookID]
	for _, seq := range d.Done {
		delete(dead, seq)
	}
	for seq, l := range dead {
		if d.Spare {
			l.Due = false
			dead[seq] = l
		}
	}
	for _, l := range d.Dead {
		l.WebhookID, l.At, l.Due = d.WebhookID, stored(l.At), false
		dead[l.Seq] = l
	}
	if n := len(dead) - fleet.MaxDeadLetters; n > 0 && len(d.Dead) > 0 {
		s.loseDead(d.WebhookID, slices.Sorted(maps.Keys(dead))[:n], d.Now)
	}
}

func (s *Store) loseDead(id string, seqs []int64, now time.Time) {
	for _, seq := range seqs {
		delete(s.dead[id], seq)
		s.lose(id, 1, seq, now)
	}
}

// lose notes that so many events of a webhook are lost.
func (s *Store) lose(id string, n, upTo int64, now time.Time) {
	if n == 0 {
		return
	}
	w := s.webhooks[id]
	w.Lost, w.LostUpTo, w.LostAt = w.Lost+n, max(w.LostUpTo, upTo), stored(now)
	s.webhooks[id] = w
}

// DeadLetters implements fleet.CourierStore.
func (s *Store) DeadLetters(ctx context.Context, f fleet.DeadLetterFilter, limit int) (list []fleet.DeadLetter, err error) {
	err = s.locked(ctx, func() error {
		dead := s.dead[f.WebhookID]
		for _, seq := range slices.Sorted(maps.Keys(dead)) {
			if l := dead[seq]; len(list) < limit && seq > f.After && (l.Due || !f.Due) {
				list = append(list, l)
			}
		}
		return nil
	})
	return list, err
}

// Redeliver implements fleet.CourierStore.
func (s *Store) Redeliver(ctx context.Context, webhookID string, seqs []int64) (n int, err error) {
	err = s.locked(ctx, func() error {
		if _, ok := s.webhooks[webhookID]; !ok {
			return notFound("webhook %s", webhookID)
		}
		for seq, l := range s.dead[webhookID] {
			if len(seqs) == 0 || slices.Contains(seqs, seq) {
				l.Due = true
				s.dead[webhookID][seq] = l
				n++
			}
		}
		return nil
	})
	return n, err
}

// DropDeadLetters implements fleet.CourierStore.
func (s *Store) DropDeadLetters(ctx context.Context, before, now time.Time, limit int) (more bool, err error) {
	err = s.locked(ctx, func() error {
		var old []fleet.DeadLetter
		for _, dead := range s.dead {
			for _, l := range dead {
				if l.At.Before(stored(before)) {
					old = append(old, l)
				}
			}
		}
		slices.SortFunc(old, func(a, b fleet.DeadLetter) int { return a.At.Compare(b.At) })
		more = len(old) >= limit && limit > 0
		if len(old) > limit {
			cut := old[limit-1].At
			old = slices.DeleteFunc(old, func(l fleet.DeadLetter) bool { return l.At.After(cut) })
		}
		for _, l := range old {
			s.loseDead(l.WebhookID, []int64{l.Seq}, now)
		}
		return nil
	})
	return more, err
}

func (s *Store) checkWebhooks(say func(string, ...any)) {
	for id, w := range s.webhooks {
		if w.Seq < 0 || w.Seq > s.feed.end {
			say("webhook %s stands behind event %d of %d", id, w.Seq, s.feed.end)
		}
		if (w.Owner == "") != w.Until.IsZero() {
			say("webhook %s is claimed by %q until %s", id, w.Owner, w.Until)
		}
		if n := len(s.dead[id]); n > fleet.MaxDeadLetters {
			say("%d dead letters of webhook %s are kept", n, id)
		}
	}
}
