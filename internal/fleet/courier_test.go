package fleet_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// mailbox is a WebhookSender with the receiver behind it.
type mailbox struct {
	mu    sync.Mutex
	got   []fleet.WebhookMessage
	says  func(m fleet.WebhookMessage) (fleet.WebhookAnswer, error) // nil: it takes everything
	admit error
}

func (b *mailbox) Admit(*url.URL) error { return b.admit }

func (b *mailbox) Send(ctx context.Context, m fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
	b.mu.Lock()
	says := b.says
	b.got = append(b.got, m)
	b.mu.Unlock()
	if says == nil {
		return fleet.WebhookAnswer{Status: 204}, ctx.Err()
	}
	return says(m)
}

func (b *mailbox) answers(says func(m fleet.WebhookMessage) (fleet.WebhookAnswer, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.says = says
}

// take returns the messages since the last time.
func (b *mailbox) take() []fleet.WebhookMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.got
	b.got = nil
	return got
}

func always(status int) func(fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
	return func(fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
		return fleet.WebhookAnswer{Status: status}, nil
	}
}

// seqs are the numbers of events, as bodies and ids agree on them.
func (w *world) seqs(messages []fleet.WebhookMessage) (list []int64) {
	w.t.Helper()
	for _, m := range messages {
		var body struct {
			Type string
			Data struct{ Seq string }
		}
		w.ok(json.Unmarshal(m.Body, &body))
		n, err := strconv.ParseInt(body.Data.Seq, 10, 64)
		w.ok(err)
		if !strings.HasSuffix(m.ID, "-"+body.Data.Seq) || strings.Contains(m.ID, ".") {
			w.t.Errorf("message %s is about event %d", m.ID, n)
		}
		list = append(list, n)
	}
	return list
}

// from is the numbers from one to another.
func from(first, last int64) (list []int64) {
	for n := first; n <= last; n++ {
		list = append(list, n)
	}
	return list
}

// flips makes n events more, of the rollout with this id.
func (w *world) flips(id string, n int) (end int64) {
	w.t.Helper()
	r, err := w.store.Rollout(w.ctx, id)
	if errors.Is(err, fleet.ErrNotFound) {
		rel := ota.Release{Manifest: ota.Manifest{Name: "flips", Version: "1"}, State: ota.ReleaseDraft}
		_, err = w.store.CreateRelease(w.ctx, rel)
		w.ok(err)
		r = ota.Rollout{ID: id, Release: rel.ID(), State: ota.RolloutPaused, Revision: 1, CreatedAt: time.Now(), Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}}}
		w.ok(w.store.CreateRollout(w.ctx, r))
		n--
	} else {
		w.ok(err)
	}
	for range n {
		next := map[ota.RolloutState]ota.RolloutState{ota.RolloutPaused: ota.RolloutScheduled, ota.RolloutScheduled: ota.RolloutPaused}
		r.State = next[r.State]
		r.Reason = "flip"
		w.ok(w.store.Advance(w.ctx, fleet.Advance{Rollout: r, Now: time.Now()}))
		r, err = w.store.Rollout(w.ctx, id)
		w.ok(err)
	}
	end, err = w.store.FeedEnd(w.ctx)
	w.ok(err)
	return end
}

// withMailbox is a world whose webhooks reach a mailbox.
func withMailbox(t *testing.T) (*world, *mailbox) {
	w, box := newWorld(t), &mailbox{}
	w.s.Sender = box
	return w, box
}

func (w *world) webhook(spec fleet.WebhookSpec) fleet.Webhook {
	w.t.Helper()
	if spec.URL == "" {
		spec.URL = "https://example.com/hooks"
	}
	hook, _, err := w.s.CreateWebhook(w.ctx, spec)
	w.ok(err)
	return hook
}

func (w *world) hook(id string) fleet.Webhook {
	w.t.Helper()
	hook, err := w.s.Webhook(w.ctx, id)
	w.ok(err)
	return hook
}

func (w *world) equal(what string, got, want []int64) {
	w.t.Helper()
	if !slices.Equal(got, want) {
		w.t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

// replica is another service over the same store and keys.
func (w *world) replica(store fleet.Store, box fleet.WebhookSender) *fleet.Service {
	c := w.s.Config
	c.Store, c.Sender = store, box
	return fleet.New(c)
}

// Of two replicas one delivers, everything once and in order, signed with the
// secret that was shown once, from the moment on that the webhook was made.
func TestWebhookDeliversInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		before := w.flips("r", 3)
		hook, secret, err := w.s.CreateWebhook(fleet.WithPrincipal(w.ctx, "admin"), fleet.WebhookSpec{URL: "https://example.com/hooks"})
		w.ok(err)
		if hook.CreatedBy != "admin" || hook.Seq != before {
			t.Errorf("made %+v", hook)
		}
		other := w.replica(w.store, box)
		defer w.background(w.s.RunWebhooks, other.RunWebhooks)()
		end := w.flips("r", 250)
		<-time.After(time.Minute)
		messages := box.take()
		w.equal("delivered", w.seqs(messages), from(before+1, end))
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		w.ok(err)
		for _, m := range messages {
			if len(m.Secrets) != 1 || !bytes.Equal(m.Secrets[0], key) || m.URL != hook.URL {
				t.Fatalf("sent %+v", m)
			}
		}
		end = w.flips("r", 2)
		<-time.After(time.Minute)
		w.equal("later ones", w.seqs(box.take()), from(end-1, end))
		if hook = w.hook(hook.ID); hook.Seq != end || hook.Delivered != 252 || hook.Owner != "" {
			t.Errorf("stands at %+v", hook)
		}
	})
}

// What the filter leaves out is passed by, and not sent.
func TestWebhookFilters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		w.flips("r", 1)
		hook := w.webhook(fleet.WebhookSpec{Types: []string{"rollout.paused", "rollout.paused"}, RolloutID: "r"})
		defer w.background(w.s.RunWebhooks)()
		w.flips("q", 150)
		end := w.flips("r", 2) // SCHEDULED, and PAUSED again
		last := w.flips("q", 200)
		<-time.After(time.Minute)
		w.equal("delivered", w.seqs(box.take()), []int64{end})
		if hook = w.hook(hook.ID); hook.Seq != last || len(hook.Types) != 1 {
			t.Errorf("stands at %+v, the end is %d", hook, last)
		}
	})
}

// A receiver that fails gets the event again after longer and longer; what comes
// after it waits, and other webhooks do not.
func TestWebhookWaitsForItsReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		failing := w.webhook(fleet.WebhookSpec{URL: "https://down.example"})
		w.webhook(fleet.WebhookSpec{URL: "https://up.example"})
		failures := 0
		box.answers(func(m fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
			if m.URL == "https://up.example" || strings.HasSuffix(m.ID, "-1") {
				return fleet.WebhookAnswer{Status: 200}, nil
			}
			if failures++; failures <= 4 {
				return fleet.WebhookAnswer{}, errors.New("connection refused")
			}
			return fleet.WebhookAnswer{Status: 200}, nil
		})
		defer w.background(w.s.RunWebhooks)()
		end := w.flips("r", 4)
		<-time.After(time.Minute)
		hook := w.hook(failing.ID)
		if hook.Failures != 2 || hook.Error != "connection refused" || hook.Status != 0 || hook.FailingSince.IsZero() || hook.Seq != 1 || hook.Owner != "" {
			t.Errorf("after a minute: %+v", hook)
		}
		if f := w.s.WebhookFigures(); f.Failing != 1 || f.Enabled != 2 || f.Behind != 3 {
			t.Errorf("figures: %+v", f)
		}
		<-time.After(5 * time.Hour)
		var up, down []fleet.WebhookMessage
		for _, m := range box.take() {
			if m.URL == "https://up.example" {
				up = append(up, m)
			} else {
				down = append(down, m)
			}
		}
		w.equal("to the one that is up", w.seqs(up), from(1, end))
		w.equal("to the one that was down", w.seqs(down), []int64{1, 2, 2, 2, 2, 2, 3, 4})
		// A courier looks by itself a good second after it found nothing; the first
		// retry of the other one is due after five.
		if span := up[3].At.Sub(up[0].At); span > 2*time.Second {
			t.Errorf("the other one waited %s", span)
		}
		for i, least := range []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour} {
			gap := down[i+2].At.Sub(down[i+1].At)
			if gap < least || gap > least+least/5+10*time.Second {
				t.Errorf("attempt %d came after %s, want %s", i+2, gap, least)
			}
		}
		if hook = w.hook(failing.ID); hook.Failures != 0 || !hook.FailingSince.IsZero() || hook.Error != "" || hook.Status != 200 {
			t.Errorf("back: %+v", hook)
		}
	})
}

// What is given up becomes a dead letter, with its body; it is delivered again when
// an operator says so, and stays when the receiver still does not take it.
func TestWebhookDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		hook := w.webhook(fleet.WebhookSpec{})
		box.answers(always(500))
		stop := w.background(w.s.RunWebhooks)
		w.flips("r", 3)
		<-time.After(30 * time.Hour)
		dead, err := w.s.DeadLetters(w.ctx, hook.ID, 0, 10)
		w.ok(err)
		if len(dead) != 1 || dead[0].Seq != 1 || dead[0].Attempts != fleet.MaxWebhookAttempts || dead[0].Status != 500 || dead[0].Error != "the receiver answered 500 Internal Server Error" {
			t.Fatalf("dead: %+v", dead)
		}
		if age := time.Since(dead[0].At); age > 9*time.Hour {
			t.Errorf("given up %s ago", age)
		}
		first := box.take()[0]
		if string(first.Body) != dead[0].Body {
			t.Errorf("the dead letter says %s, the event %s", dead[0].Body, first.Body)
		}

		n, err := w.s.Redeliver(w.ctx, hook.ID, nil)
		w.ok(err)
		<-time.After(time.Second)
		tried := box.take()
		again := w.hook(hook.ID)
		if n != 1 || len(tried) != 1 || tried[0].ID != first.ID || again.Dead != 1 || again.Due != 0 {
			t.Errorf("tried %d of %d again: %+v", len(tried), n, again)
		}
		box.answers(nil)
		_, err = w.s.Redeliver(w.ctx, hook.ID, []int64{1})
		w.ok(err)
		<-time.After(time.Second)
		w.equal("the dead one first, then what waited", w.seqs(box.take()), []int64{1, 2, 3})
		if again = w.hook(hook.ID); again.Dead != 0 || again.Lost != 0 || again.Seq != 3 {
			t.Errorf("left: %+v", again)
		}
		_, err = w.s.Redeliver(w.ctx, hook.ID, []int64{1})
		if !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("again: %v", err)
		}
		if _, err = w.s.Redeliver(w.ctx, hook.ID, make([]int64, fleet.MaxDeadLetters+1)); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("too many: %v", err)
		}
		stop()
	})
}

// A receiver that answers 410 gets nothing more until an operator resumes, and
// then everything; one that asks for time gets it.
func TestWebhookHeedsItsReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		hook := w.webhook(fleet.WebhookSpec{})
		box.answers(always(410))
		defer w.background(w.s.RunWebhooks)()
		w.flips("r", 2)
		<-time.After(time.Hour)
		w.equal("asked once", w.seqs(box.take()), []int64{1})
		if got := w.hook(hook.ID); got.State != fleet.WebhookGone || got.Seq != 0 || got.Dead != 0 {
			t.Errorf("gone: %+v", got)
		}
		if _, err := w.s.Redeliver(w.ctx, hook.ID, nil); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("redeliver: %v", err)
		}
		box.answers(func(fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
			return fleet.WebhookAnswer{Status: 429, RetryAfter: 10 * time.Minute}, nil
		})
		_, err := w.s.ResumeWebhook(w.ctx, hook.ID)
		w.ok(err)
		<-time.After(9 * time.Minute)
		w.equal("asked again", w.seqs(box.take()), []int64{1})
		box.answers(nil)
		<-time.After(3 * time.Minute)
		w.equal("after its time", w.seqs(box.take()), []int64{1, 2})
	})
}

// While it is paused nothing is sent and nothing is lost. An operator may have it
// go on elsewhere.
func TestWebhookPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		hook := w.webhook(fleet.WebhookSpec{Paused: true})
		defer w.background(w.s.RunWebhooks)()
		w.flips("r", 5)
		<-time.After(time.Hour)
		w.equal("paused", w.seqs(box.take()), nil)
		_, err := w.s.ResumeWebhook(w.ctx, hook.ID)
		w.ok(err)
		<-time.After(time.Second)
		w.equal("resumed", w.seqs(box.take()), from(1, 5))
		_, err = w.s.PauseWebhook(w.ctx, hook.ID)
		w.ok(err)
		<-time.After(2 * time.Second)
		w.flips("r", 1)
		<-time.After(time.Hour)
		w.equal("paused again", w.seqs(box.take()), nil)
		after := int64(3)
		_, err = w.s.UpdateWebhook(w.ctx, hook.ID, fleet.WebhookUpdate{After: &after})
		w.ok(err)
		_, err = w.s.ResumeWebhook(w.ctx, hook.ID)
		w.ok(err)
		<-time.After(time.Second)
		w.equal("from 3 on", w.seqs(box.take()), from(4, 6))
		after = 7
		if _, err = w.s.UpdateWebhook(w.ctx, hook.ID, fleet.WebhookUpdate{After: &after}); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("behind an event that is not there: %v", err)
		}
		w.ok(w.s.DeleteWebhook(w.ctx, hook.ID))
		w.flips("r", 1)
		<-time.After(time.Hour)
		w.equal("deleted", w.seqs(box.take()), nil)
	})
}

// A webhook that is so far behind that events are gone says so, and goes on with
// what is there; also when nothing is.
func TestWebhookSaysWhatItLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		w.flips("r", 10)
		zero, three := int64(0), int64(3)
		beginning := w.webhook(fleet.WebhookSpec{URL: "https://a.example", After: &zero})
		middle := w.webhook(fleet.WebhookSpec{URL: "https://b.example", After: &three})
		drop := func(kept int) {
			_, err := w.store.DropFeed(w.ctx, time.Now().Add(-time.Hour), kept, 100)
			w.ok(err)
		}
		drop(4)
		stop := w.background(w.s.RunWebhooks)
		<-time.After(time.Minute)
		stop()
		for id, lost := range map[string]int64{beginning.ID: 6, middle.ID: 3} {
			if got := w.hook(id); got.Lost != lost || got.LostUpTo != 6 || got.LostAt.IsZero() || got.Seq != 10 || got.Delivered != 4 {
				t.Errorf("lost %d: %+v", lost, got)
			}
		}
		box.take()
		w.flips("r", 5)
		drop(0)
		stop = w.background(w.s.RunWebhooks)
		<-time.After(time.Minute)
		stop()
		w.equal("nothing is left", w.seqs(box.take()), nil)
		if got := w.hook(middle.ID); got.Lost != 8 || got.LostUpTo != 15 || got.Seq != 15 {
			t.Errorf("all are gone: %+v", got)
		}
	})
}

// mortal is a store that stops writing deliveries, as one under a replica that was
// killed.
type mortal struct {
	fleet.Store
	mu   sync.Mutex
	left int // saves
}

func (m *mortal) SaveDelivery(ctx context.Context, d fleet.Delivery) (fleet.Webhook, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left--; m.left < 0 {
		return fleet.Webhook{}, errors.New("killed")
	}
	return m.Store.SaveDelivery(ctx, d)
}

// A replica that dies with a claim is followed by another one within a minute,
// which leaves nothing out and is ahead of nothing.
func TestWebhookOutlivesAReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		hook := w.webhook(fleet.WebhookSpec{})
		dying := &mortal{Store: w.store, left: 1}
		other := w.replica(dying, box)
		stop := w.background(other.RunWebhooks)
		w.flips("r", 20)
		<-time.After(10 * time.Second)
		w.equal("the first replica", w.seqs(box.take()), from(1, 20))
		w.flips("r", 20)
		<-time.After(6 * time.Second)
		stop()
		if got := w.hook(hook.ID); got.Seq == 40 || got.Owner == "" {
			t.Fatalf("it did not die: %+v", got)
		}
		defer w.background(w.s.RunWebhooks)()
		<-time.After(2 * time.Minute)
		got := w.seqs(box.take())
		last := int64(20)
		for _, n := range got {
			if n > last+1 {
				t.Fatalf("event %d came after %d", n, last)
			}
			last = max(last, n)
		}
		if last != 40 || w.hook(hook.ID).Seq != 40 {
			t.Errorf("came to %d: %v", last, got)
		}
	})
}

// While a secret changes messages are signed with both. A server with other keys
// than the secret was made with says what to do.
func TestWebhookSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, box := withMailbox(t)
		hook, first, err := w.s.CreateWebhook(w.ctx, fleet.WebhookSpec{URL: "https://example.com"})
		w.ok(err)
		_, second, err := w.s.RotateWebhook(w.ctx, hook.ID, time.Hour)
		w.ok(err)
		signed := func() (list []string) {
			result, err := w.s.TestWebhook(w.ctx, hook.ID)
			w.ok(err)
			if result.Error != "" || result.Status != 204 {
				t.Fatalf("test: %+v", result)
			}
			for _, s := range box.take()[0].Secrets {
				list = append(list, "whsec_"+base64.StdEncoding.EncodeToString(s))
			}
			return list
		}
		if got := signed(); !slices.Equal(got, []string{second, first}) || first == second {
			t.Errorf("signed with %q, want %q and %q", got, second, first)
		}
		<-time.After(time.Hour)
		if got := signed(); !slices.Equal(got, []string{second}) {
			t.Errorf("an hour later with %q", got)
		}
		_, third, err := w.s.RotateWebhook(w.ctx, hook.ID, 0)
		w.ok(err)
		if got := signed(); !slices.Equal(got, []string{third}) {
			t.Errorf("at once with %q", got)
		}
		if _, _, err := w.s.RotateWebhook(w.ctx, hook.ID, fleet.MaxSecretOverlap+1); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("for ever: %v", err)
		}
		stored := w.hook(hook.ID)
		if text := stored.Key.Salt + stored.Key.Sum; strings.Contains(text, third) || len(stored.Key.Salt) != 32 || len(stored.Key.Sum) != 64 {
			t.Errorf("stored: %+v", stored.Key)
		}

		w.s.OnlineKeys.Timestamp.Signer = w.key()
		defer w.background(w.s.RunWebhooks)()
		w.flips("r", 1)
		<-time.After(4 * time.Second)
		if got := w.hook(hook.ID); !strings.Contains(got.Error, "otactl webhook rotate "+hook.ID) || got.Failures != 1 || len(box.take()) > 0 {
			t.Errorf("with other keys: %+v", got)
		}
		_, _, err = w.s.RotateWebhook(w.ctx, hook.ID, time.Hour)
		w.ok(err)
		<-time.After(time.Second)
		w.equal("with a new one", w.seqs(box.take()), []int64{1})
	})
}

func TestBadWebhooksAreRefused(t *testing.T) {
	w, box := withMailbox(t)
	for what, spec := range map[string]fleet.WebhookSpec{
		"no URL": {}, "type": {URL: "https://example.com", Types: []string{"execution.*"}},
		"behind": {URL: "https://example.com", After: ptr(int64(1))}, "before": {URL: "https://example.com", After: ptr(int64(-1))},
	} {
		if _, _, err := w.s.CreateWebhook(w.ctx, spec); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := w.s.CreateWebhook(w.ctx, fleet.WebhookSpec{URL: "https://example.com", RolloutID: "r"}); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("rollout: %v", err)
	}
	hook := w.webhook(fleet.WebhookSpec{})
	box.admit = fleet.ErrDenied
	if _, err := w.s.UpdateWebhook(w.ctx, hook.ID, fleet.WebhookUpdate{URL: ptr("https://10.0.0.1")}); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("private: %v", err)
	}
	if all, err := w.s.Webhooks(w.ctx); err != nil || len(all) != 1 || all[0].URL != hook.URL {
		t.Errorf("there are %+v, %v", all, err)
	}
}

func ptr[T any](v T) *T { return &v }
