package fleet

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// WebhookSender brings messages to receivers.
type WebhookSender interface {
	// Admit reports a URL to which no message may be sent: ErrInvalid, with the remedy.
	Admit(u *url.URL) error
	// Send makes one attempt, in bounded time. The error says in words why there was
	// no answer; it does not hold the URL.
	Send(ctx context.Context, m WebhookMessage) (WebhookAnswer, error)
}

// WebhookMessage is one message for a receiver.
type WebhookMessage struct {
	URL     string
	ID      string    // the same in every attempt
	At      time.Time // of the attempt
	Body    []byte
	Secrets [][]byte // it is signed with each
}

// WebhookAnswer is what a receiver said.
type WebhookAnswer struct {
	Status     int           // of HTTP
	RetryAfter time.Duration // how long it asks to be left alone; 0: it does not
}

// WebhookSpec is a webhook as it is asked for.
type WebhookSpec struct {
	URL       string
	Types     []string
	RolloutID string
	After     *int64 // begin behind this event; nil: with the next one
	Paused    bool
}

// CreateWebhook makes a webhook and returns its secret, once.
func (s *Service) CreateWebhook(ctx context.Context, spec WebhookSpec) (Webhook, string, error) {
	w := Webhook{
		ID: newID("w-"), URL: spec.URL, Types: spec.Types, RolloutID: spec.RolloutID, State: WebhookEnabled,
		CreatedBy: principal(ctx), CreatedAt: s.Now(), Revision: 1,
	}
	if spec.Paused {
		w.State = WebhookPaused
	}
	if err := s.validWebhook(ctx, &w); err != nil {
		return Webhook{}, "", err
	}
	end, err := s.Store.FeedEnd(ctx)
	if err != nil {
		return Webhook{}, "", err
	}
	w.Seq = end
	if spec.After != nil {
		if w.Seq, err = behind(*spec.After, end); err != nil {
			return Webhook{}, "", err
		}
	}
	secret, err := s.newWebhookKey(&w)
	if err != nil {
		return Webhook{}, "", err
	}
	if err := s.Store.CreateWebhook(ctx, w); err != nil {
		return Webhook{}, "", err
	}
	s.webhookLog(ctx, w, "webhook created")
	s.wakeCouriers()
	w, err = s.Store.Webhook(ctx, w.ID)
	return w, secret, err
}

// behind checks the number of an event behind which to go on.
func behind(after, end int64) (int64, error) {
	if after < 0 || after > end {
		return 0, fmt.Errorf("%w: behind event %d: there are events 1 to %d, or 0 for all that are kept", ErrInvalid, after, end)
	}
	return after, nil
}

// validWebhook checks what an operator says of a webhook, and puts it in order.
func (s *Service) validWebhook(ctx context.Context, w *Webhook) (err error) {
	u, err := webhookURL(w.URL)
	if err != nil {
		return err
	}
	if err := s.Sender.Admit(u); err != nil {
		return err
	}
	if w.Types, err = webhookTypes(w.Types); err != nil {
		return err
	}
	if w.RolloutID == "" {
		return nil
	}
	_, err = s.Store.Rollout(ctx, w.RolloutID)
	return err
}

// Webhook returns one as it stands.
func (s *Service) Webhook(ctx context.Context, id string) (Webhook, error) {
	return s.Store.Webhook(ctx, id)
}

// Webhooks returns all, the oldest first.
func (s *Service) Webhooks(ctx context.Context) ([]Webhook, error) { return s.Store.Webhooks(ctx) }

// changeTries is how often a change is tried that others come before.
const changeTries = 5

// changeWebhook reads a webhook, has f change it, and writes the change.
func (s *Service) changeWebhook(ctx context.Context, id, what string, f func(*WebhookChange) error) (w Webhook, err error) {
	for range changeTries {
		if w, err = s.Store.Webhook(ctx, id); err != nil {
			return w, err
		}
		c := WebhookChange{Webhook: w}
		if err = f(&c); err != nil {
			return w, err
		}
		if err = s.Store.ChangeWebhook(ctx, c); !errors.Is(err, ErrStale) {
			break
		}
	}
	if err != nil {
		return w, err
	}
	s.webhookLog(ctx, w, what)
	s.wakeCouriers()
	return s.Store.Webhook(ctx, id)
}

// webhookLog notes who did what. Of the URL only the host: the rest may be secret.
func (s *Service) webhookLog(ctx context.Context, w Webhook, what string) {
	host := ""
	if u, err := url.Parse(w.URL); err == nil {
		host = u.Host
	}
	s.logger(ctx).Info(what, "webhook", w.ID, "host", host, "by", principal(ctx))
}

// WebhookUpdate is what is to change; nil fields stay.
type WebhookUpdate struct {
	URL       *string
	Types     *[]string
	RolloutID *string
	After     *int64 // go on behind this event
}

// UpdateWebhook changes a webhook. Attempts at the next event begin anew.
func (s *Service) UpdateWebhook(ctx context.Context, id string, u WebhookUpdate) (Webhook, error) {
	return s.changeWebhook(ctx, id, "webhook changed", func(c *WebhookChange) (err error) {
		if u.URL != nil {
			c.URL = *u.URL
		}
		if u.Types != nil {
			c.Types = *u.Types
		}
		if u.RolloutID != nil {
			c.RolloutID = *u.RolloutID
		}
		if u.URL != nil || u.Types != nil || u.RolloutID != nil {
			if err := s.validWebhook(ctx, &c.Webhook); err != nil {
				return err
			}
		}
		c.Anew = true
		if u.After == nil {
			return nil
		}
		end, err := s.Store.FeedEnd(ctx)
		if err != nil {
			return err
		}
		after, err := behind(*u.After, end)
		c.After = &after
		return err
	})
}

// PauseWebhook holds events back; they are sent when it is resumed.
func (s *Service) PauseWebhook(ctx context.Context, id string) (Webhook, error) {
	return s.changeWebhook(ctx, id, "webhook paused", func(c *WebhookChange) error {
		c.State = WebhookPaused
		return nil
	})
}

// ResumeWebhook sends again, at once.
func (s *Service) ResumeWebhook(ctx context.Context, id string) (Webhook, error) {
	return s.changeWebhook(ctx, id, "webhook resumed", func(c *WebhookChange) error {
		c.State, c.Anew = WebhookEnabled, true
		return nil
	})
}

// RotateWebhook gives it a new secret, which is returned once. The old one signs
// beside it for overlap.
func (s *Service) RotateWebhook(ctx context.Context, id string, overlap time.Duration) (w Webhook, secret string, err error) {
	if overlap < 0 || overlap > MaxSecretOverlap {
		return w, "", fmt.Errorf("%w: old secret for %s more: want 0s to %s", ErrInvalid, overlap, MaxSecretOverlap)
	}
	w, err = s.changeWebhook(ctx, id, "webhook given a new secret", func(c *WebhookChange) (err error) {
		c.OldKey, c.OldUntil = c.Key, s.Now().Add(overlap)
		if overlap == 0 {
			c.OldKey, c.OldUntil = WebhookKey{}, time.Time{}
		}
		c.Anew = true
		secret, err = s.newWebhookKey(&c.Webhook)
		return err
	})
	return w, secret, err
}

// DeleteWebhook forgets a webhook, and with it what it did not deliver.
func (s *Service) DeleteWebhook(ctx context.Context, id string) error {
	w, err := s.Store.Webhook(ctx, id)
	if err != nil {
		return err
	}
	if err := s.Store.DeleteWebhook(ctx, id); err != nil {
		return err
	}
	s.webhookLog(ctx, w, "webhook deleted")
	return nil
}

// DeadLetters returns a page of the messages that were given up, at most MaxPage.
func (s *Service) DeadLetters(ctx context.Context, webhookID string, after int64, limit int) ([]DeadLetter, error) {
	if _, err := s.Store.Webhook(ctx, webhookID); err != nil {
		return nil, err
	}
	return s.Store.DeadLetters(ctx, DeadLetterFilter{WebhookID: webhookID, After: after}, min(limit, MaxPage))
}

// Redeliver tries dead letters once more, all when none are named. It returns how
// many there are; ErrNotFound when none of those named is.
func (s *Service) Redeliver(ctx context.Context, webhookID string, seqs []int64) (int, error) {
	if len(seqs) > MaxDeadLetters {
		return 0, fmt.Errorf("%w: %d dead letters at once: at most %d; name none for all", ErrInvalid, len(seqs), MaxDeadLetters)
	}
	w, err := s.Store.Webhook(ctx, webhookID)
	if err != nil {
		return 0, err
	}
	if w.State != WebhookEnabled {
		return 0, fmt.Errorf("%w: webhook %s is %s: resume it first", ErrConflict, w.ID, w.State)
	}
	n, err := s.Store.Redeliver(ctx, webhookID, seqs)
	if err != nil {
		return 0, err
	}
	if n == 0 && len(seqs) > 0 {
		return 0, fmt.Errorf("dead letter %d of webhook %s: %w", seqs[0], webhookID, ErrNotFound)
	}
	s.webhookLog(ctx, w, "dead letters are delivered again")
	s.wakeCouriers()
	return n, nil
}

// dropDeadLetters loses those whose time is over.
func (s *Service) dropDeadLetters(ctx context.Context) {
	for more := true; more; {
		var err error
		now := s.Now()
		if more, err = s.Store.DropDeadLetters(ctx, now.Add(-DeadLetterLife), now, deadDropped); err != nil {
			if ctx.Err() == nil {
				s.Log.Warn("old dead letters were not dropped, trying again later", "error", err)
			}
			return
		}
	}
}

// WebhookFigures is how the webhooks stood when this replica last looked.
type WebhookFigures struct {
	Enabled int
	Failing int   // ENABLED ones whose last attempt failed
	Behind  int64 // events that wait for the one that is furthest behind
	Dead    int   // dead letters
	Lost    int64 // events
}

// WebhookFigures returns them; all zero before the first look.
func (s *Service) WebhookFigures() WebhookFigures {
	if f := s.webhookFigures.Load(); f != nil {
		return *f
	}
	return WebhookFigures{}
}

func (s *Service) noteWebhooks(all []Webhook, end int64) {
	var f WebhookFigures
	for _, w := range all {
		f.Dead += w.Dead
		f.Lost += w.Lost
		if w.State != WebhookEnabled {
			continue
		}
		f.Enabled++
		f.Behind = max(f.Behind, end-w.Seq)
		if !w.FailingSince.IsZero() {
			f.Failing++
		}
	}
	s.webhookFigures.Store(&f)
}

// WebhookTest is what became of a test message.
type WebhookTest struct {
	Status int // of HTTP; 0: there was no answer
	Took   time.Duration
	Error  string // empty: it was taken
}

// TestWebhook sends a message of type webhook.test, and tells what came of it. How
// far the webhook has come does not change.
func (s *Service) TestWebhook(ctx context.Context, id string) (WebhookTest, error) {
	w, err := s.Store.Webhook(ctx, id)
	if err != nil {
		return WebhookTest{}, err
	}
	now := s.Now()
	body, err := json.Marshal(map[string]any{"type": "webhook.test", "timestamp": now.UTC(), "data": map[string]string{"webhookId": w.ID}})
	if err != nil {
		return WebhookTest{}, err
	}
	secrets, err := s.webhookSecrets(w)
	if err != nil {
		return WebhookTest{Error: err.Error()}, nil
	}
	answer, err := s.Sender.Send(ctx, WebhookMessage{URL: w.URL, ID: w.ID + "-" + newID("test-"), At: now, Body: body, Secrets: secrets})
	t := WebhookTest{Status: answer.Status, Took: s.Now().Sub(now)}
	if err == nil {
		err = refusal(answer)
	}
	if err != nil {
		t.Error = told(err)
	}
	return t, ctx.Err()
}

const secretPrefix = "whsec_"

// newWebhookKey gives the webhook a secret of its own, and returns it in the form
// that Standard Webhooks gives it ("Signature scheme": whsec_ and base64).
func (s *Service) newWebhookKey(w *Webhook) (string, error) {
	var salt [16]byte
	_, _ = rand.Read(salt[:]) // never fails, see crypto/rand
	w.Key.Salt = hex.EncodeToString(salt[:])
	secret, err := s.webhookSecret(w.ID, w.Key.Salt)
	if err != nil {
		return "", err
	}
	w.Key.Sum = sumOf(secret)
	return secretPrefix + base64.StdEncoding.EncodeToString(secret), nil
}

func sumOf(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// webhookSecret is made from a key that all replicas can derive and no database
// has, as that of download links is: a signature by the timestamp key over a text
// that is no metadata.
func (s *Service) webhookSecret(id, salt string) ([]byte, error) {
	key, err := s.OnlineKeys.Timestamp.Sign([]byte("otad webhook secret 1"))
	if err != nil {
		return nil, fmt.Errorf("secret of webhook %s: %w", id, err)
	}
	m := hmac.New(sha256.New, key)
	fmt.Fprintf(m, "%s\n%s", id, salt)
	return m.Sum(nil), nil
}

// webhookSecrets are those that messages are signed with now: the webhook's own,
// and the old one while that is good and can be made.
func (s *Service) webhookSecrets(w Webhook) ([][]byte, error) {
	secret, err := s.keptSecret(w.ID, w.Key)
	if err != nil {
		return nil, err
	}
	secrets := [][]byte{secret}
	if s.Now().Before(w.OldUntil) {
		if old, err := s.keptSecret(w.ID, w.OldKey); err == nil {
			secrets = append(secrets, old)
		}
	}
	return secrets, nil
}

// keptSecret is the secret that a key tells of, if this server can make it.
func (s *Service) keptSecret(id string, key WebhookKey) ([]byte, error) {
	secret, err := s.webhookSecret(id, key.Salt)
	if err != nil {
		return nil, err
	}
	if sumOf(secret) != key.Sum {
		return nil, fmt.Errorf("%w: the secret was made with a timestamp key that this server does not have: give the receiver a new one by otactl webhook rotate %s", ErrConflict, id)
	}
	return secret, nil
}
