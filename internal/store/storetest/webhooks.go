package storetest

import (
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

func newWebhook(id string) fleet.Webhook {
	return fleet.Webhook{
		ID: id, URL: "https://example.com/" + id, Types: []string{"rollout", "execution.failed"}, RolloutID: "r", Key: fleet.WebhookKey{Salt: "0a", Sum: "0b"},
		State: fleet.WebhookEnabled, CreatedBy: "admin", CreatedAt: kept, Revision: 1,
	}
}

// happenings makes n events in the feed.
func (s *suite) happenings(n int) {
	s.Helper()
	r := s.rollout("r", 1) // two of them
	for i := range n - 2 {
		r.State = []ota.RolloutState{ota.RolloutPaused, ota.RolloutRunning}[i%2]
		r = s.open(r, at(i))
	}
	end, err := s.FeedEnd(ctx)
	s.must(err)
	s.equal("events", end, int64(n))
}

func (s *suite) webhookOf(id string) fleet.Webhook {
	s.Helper()
	w, err := s.Webhook(ctx, id)
	s.must(err)
	return w
}

func (s *suite) claim(id, owner string, now int) fleet.Webhook {
	s.Helper()
	w, err := s.ClaimWebhook(ctx, id, owner, at(now), at(now+30))
	s.must(err)
	return w
}

func letter(seq int64, died time.Time) fleet.DeadLetter {
	return fleet.DeadLetter{Seq: seq, Type: "rollout.paused", Body: `{"n":1}`, Attempts: 15, Status: 500, Error: "it said 500", At: died}
}

func (s *suite) dead(f fleet.DeadLetterFilter) (seqs []int64) {
	s.Helper()
	list, err := s.DeadLetters(ctx, f, fleet.MaxDeadLetters)
	s.must(err)
	for _, l := range list {
		seqs = append(seqs, l.Seq)
	}
	return seqs
}

var webhookTests = []test{
	{"keeps what it is given, and changes what an operator changes", func(s *suite) {
		s.happenings(5)
		w := newWebhook("w")
		w.OldKey, w.OldUntil, w.Seq = fleet.WebhookKey{Salt: "0c", Sum: "0d"}, at(9), 3
		s.must(s.CreateWebhook(ctx, w))
		w.OldUntil = keptAt(9)
		s.equal("as created", s.webhookOf("w"), w)
		s.wantErr(s.CreateWebhook(ctx, w), fleet.ErrConflict)
		_, err := s.Webhook(ctx, "v")
		s.wantErr(err, fleet.ErrNotFound)

		c := fleet.WebhookChange{Webhook: w}
		c.URL, c.Types, c.RolloutID, c.State = "https://example.com/other", nil, "", fleet.WebhookPaused
		c.Key, c.OldKey, c.OldUntil = fleet.WebhookKey{Salt: "0e", Sum: "0f"}, fleet.WebhookKey{}, time.Time{}
		c.Seq, c.Delivered, c.CreatedBy = 1, 99, "somebody" // are not an operator's
		s.must(s.ChangeWebhook(ctx, c))
		want := c.Webhook
		want.Seq, want.Delivered, want.CreatedBy, want.Revision = 3, 0, "admin", 2
		s.equal("as changed", s.webhookOf("w"), want)
		s.wantErr(s.ChangeWebhook(ctx, c), fleet.ErrStale)
		c.ID = "v"
		s.wantErr(s.ChangeWebhook(ctx, c), fleet.ErrNotFound)

		second := newWebhook("a")
		second.CreatedAt = keptAt(1)
		s.must(s.CreateWebhook(ctx, second))
		all, err := s.Webhooks(ctx)
		s.must(err)
		s.equal("oldest first", []string{all[0].ID, all[1].ID}, []string{"w", "a"})
		s.must(s.DeleteWebhook(ctx, "w"))
		s.wantErr(s.DeleteWebhook(ctx, "w"), fleet.ErrNotFound)
		all, err = s.Webhooks(ctx)
		s.must(err)
		s.equal("left", len(all), 1)
	}},
	{"there are no more than so many", func(s *suite) {
		for i := range fleet.MaxWebhooks {
			s.must(s.CreateWebhook(ctx, newWebhook(fmt.Sprint("w", i))))
		}
		s.wantErr(s.CreateWebhook(ctx, newWebhook("one-more")), fleet.ErrConflict)
		_, err := s.Webhook(ctx, "one-more")
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"one delivers at a time", func(s *suite) {
		s.must(s.CreateWebhook(ctx, newWebhook("w")))
		w := s.claim("w", "a", 0)
		s.equal("owner", []any{w.Owner, w.Until}, []any{"a", keptAt(30)})
		_, err := s.ClaimWebhook(ctx, "w", "b", at(29), at(59))
		s.wantErr(err, fleet.ErrConflict)
		s.claim("w", "a", 10)
		_, err = s.ClaimWebhook(ctx, "w", "b", at(39), at(69))
		s.wantErr(err, fleet.ErrConflict)
		s.claim("w", "b", 40)
		_, err = s.SaveDelivery(ctx, fleet.Delivery{WebhookID: "w", Owner: "a", Now: at(41), Until: at(71)})
		s.wantErr(err, fleet.ErrStale)
		w, err = s.SaveDelivery(ctx, fleet.Delivery{WebhookID: "w", Owner: "b", Now: at(41)})
		s.must(err)
		s.equal("given back", []any{w.Owner, w.Until}, []any{"", time.Time{}})
		_, err = s.SaveDelivery(ctx, fleet.Delivery{WebhookID: "w", Owner: "b", Now: at(41)})
		s.wantErr(err, fleet.ErrStale)
		s.claim("w", "a", 42)
		_, err = s.ClaimWebhook(ctx, "v", "a", at(42), at(72))
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.SaveDelivery(ctx, fleet.Delivery{WebhookID: "v", Owner: "a", Now: at(42)})
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"of two that claim at once one wins", func(s *suite) {
		s.must(s.CreateWebhook(ctx, newWebhook("w")))
		for round := range 5 {
			now := round * 60
			errs := together(8, func(i int) error {
				_, err := s.ClaimWebhook(ctx, "w", fmt.Sprint("replica ", i), at(now), at(now+30))
				return err
			})
			s.equal("winners", s.wins(errs, fleet.ErrConflict), 1)
		}
	}},
	{"a claim is for what is enabled, and ends when the place changes", func(s *suite) {
		s.happenings(5)
		w := newWebhook("w")
		s.must(s.CreateWebhook(ctx, w))
		s.claim("w", "a", 0)
		w.State = fleet.WebhookPaused
		s.must(s.ChangeWebhook(ctx, fleet.WebhookChange{Webhook: w}))
		w, err := s.SaveDelivery(ctx, fleet.Delivery{WebhookID: "w", Owner: "a", Now: at(1), Until: at(31), WebhookProgress: fleet.WebhookProgress{Seq: 2, Failures: 3, NextAt: at(99)}})
		s.must(err)
		s.equal("who delivers sees it", w.State, fleet.WebhookPaused)
		_, err = s.ClaimWebhook(ctx, "w", "a", at(2), at(32))
		s.wantErr(err, fleet.ErrConflict)
		w.State = fleet.WebhookEnabled
		s.must(s.ChangeWebhook(ctx, fleet.WebhookChange{Webhook: w, Anew: true}))
		w = s.webhookOf("w")
		s.equal("anew", []any{w.Seq, w.Failures, w.NextAt, w.Owner}, []any{int64(2), 0, time.Time{}, "a"})
		after := int64(4)
		s.must(s.ChangeWebhook(ctx, fleet.WebhookChange{Webhook: w, After: &after}))
		w = s.webhookOf("w")
		s.equal("elsewhere", []any{w.Seq, w.Owner, w.Until}, []any{int64(4), "", time.Time{}})
		_, err = s.SaveDelivery(ctx, fleet.Delivery{WebhookID: "w", Owner: "a", Now: at(3), WebhookProgress: fleet.WebhookProgress{Seq: 3}})
		s.wantErr(err, fleet.ErrStale)
	}},
	{"writes how far it came, and that the receiver is gone", func(s *suite) {
		s.happenings(9)
		s.must(s.CreateWebhook(ctx, newWebhook("w")))
		s.claim("w", "a", 0)
		p := fleet.WebhookProgress{
			Seq: 7, Failures: 2, NextAt: keptAt(50), AttemptAt: keptAt(40), Status: 503, Error: "it said 503", FailingSince: keptAt(20),
			Delivered: 5,
		}
		w, err := s.SaveDelivery(ctx, fleet.Delivery{WebhookID: "w", Owner: "a", Now: at(1), Until: at(31), Lost: 3, LostUpTo: 4})
		s.must(err)
		s.equal("lost", []any{w.Lost, w.LostUpTo, w.LostAt}, []any{int64(3), int64(4), keptAt(1)})
		w, err = s.SaveDelivery(ctx, fleet.Delivery{WebhookID: "w", Owner: "a", Now: at(41), Until: at(71), WebhookProgress: p, Gone: true, Lost: 2, LostUpTo: 7})
		s.must(err)
		want := newWebhook("w")
		want.WebhookProgress, want.State, want.Owner, want.Until = p, fleet.WebhookGone, "a", keptAt(71)
		want.Lost, want.LostUpTo, want.LostAt = 5, 7, keptAt(41)
		s.equal("as saved", w, want)
		s.equal("as stored", s.webhookOf("w"), want)
	}},
	{"dead letters are kept, tried again, and lost when there are too many", func(s *suite) {
		s.happenings(9)
		s.must(s.CreateWebhook(ctx, newWebhook("w")))
		s.must(s.CreateWebhook(ctx, newWebhook("v")))
		s.claim("w", "a", 0)
		save := func(d fleet.Delivery) fleet.Webhook {
			d.WebhookID, d.Owner, d.Now, d.Until = "w", "a", at(1), at(31)
			w, err := s.SaveDelivery(ctx, d)
			s.must(err)
			return w
		}
		w := save(fleet.Delivery{Dead: []fleet.DeadLetter{letter(5, at(3)), letter(2, at(1))}})
		s.equal("counts", []int{w.Dead, w.Due}, []int{2, 0})
		list, err := s.DeadLetters(ctx, fleet.DeadLetterFilter{WebhookID: "w"}, 1)
		s.must(err)
		want := letter(2, keptAt(1))
		want.WebhookID = "w"
		s.equal("the first", list, []fleet.DeadLetter{want})
		s.equal("behind it", s.dead(fleet.DeadLetterFilter{WebhookID: "w", After: 2}), []int64{5})

		n, err := s.Redeliver(ctx, "w", []int64{5, 6})
		s.must(err)
		s.equal("one of them is there", n, 1)
		s.equal("due", s.dead(fleet.DeadLetterFilter{WebhookID: "w", Due: true}), []int64{5})
		w = save(fleet.Delivery{Spare: true})
		s.equal("counts", []int{w.Dead, w.Due}, []int{2, 0})
		n, err = s.Redeliver(ctx, "w", nil)
		s.must(err)
		s.equal("all", n, 2)
		w = save(fleet.Delivery{Done: []int64{2}, Dead: []fleet.DeadLetter{letter(5, at(4))}})
		s.equal("one was taken, one not", []int{w.Dead, w.Due}, []int{1, 0})
		_, err = s.Redeliver(ctx, "u", nil)
		s.wantErr(err, fleet.ErrNotFound)

		many := fleet.Delivery{}
		for i := range fleet.MaxDeadLetters {
			many.Dead = append(many.Dead, letter(int64(i+6), at(10)))
		}
		w = save(many)
		s.equal("the first is lost", []any{w.Dead, w.Lost, w.LostUpTo, w.LostAt}, []any{fleet.MaxDeadLetters, int64(1), int64(5), keptAt(1)})
		s.equal("of the other", len(s.dead(fleet.DeadLetterFilter{WebhookID: "v"})), 0)
		s.must(s.DeleteWebhook(ctx, "w"))
		s.equal("they go with it", len(s.dead(fleet.DeadLetterFilter{WebhookID: "w"})), 0)
	}},
	{"dead letters are lost when they are old", func(s *suite) {
		s.happenings(9)
		for _, id := range []string{"w", "v"} {
			s.must(s.CreateWebhook(ctx, newWebhook(id)))
			s.claim(id, "a", 0)
			_, err := s.SaveDelivery(ctx, fleet.Delivery{WebhookID: id, Owner: "a", Now: at(1), Dead: []fleet.DeadLetter{letter(1, at(1)), letter(2, at(2)), letter(3, at(3))}})
			s.must(err)
		}
		more, err := s.DropDeadLetters(ctx, at(3), at(100), 100)
		s.must(err)
		s.equal("more", more, false)
		for _, id := range []string{"w", "v"} {
			w := s.webhookOf(id)
			s.equal("left", []any{s.dead(fleet.DeadLetterFilter{WebhookID: id}), w.Lost, w.LostUpTo, w.LostAt}, []any{[]int64{3}, int64(2), int64(2), keptAt(100)})
		}
		more, err = s.DropDeadLetters(ctx, at(99), at(100), 1)
		s.must(err)
		s.equal("there may be more", more, true)
	}},
}
