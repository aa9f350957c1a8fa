package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// How webhooks are delivered.
const (
	// WebhookClaim is for how long a replica may deliver without writing how far it
	// came. It is longer than an attempt and the time between two writes.
	WebhookClaim = time.Minute
	// webhookSave is the time between two writes while all goes well: what was
	// delivered since is delivered again after a crash.
	webhookSave = time.Second
	// webhookLinger is how long a claim is kept without an event.
	webhookLinger = 5 * time.Second
	// webhookPace is the time between two looks at the feed when there was nothing.
	webhookPace = 100 * time.Millisecond
	webhookPage = 100 // events read at once
	// saveTimeout bounds what is written when otad stops.
	saveTimeout = 5 * time.Second
)

// firstDelays are those of Standard Webhooks' example ("Deliverability and
// reliability"). After them it is retryDelay: all later events wait for this one,
// and the attempt is what finds out that the receiver is back. It makes about a day
// in all.
var firstDelays = []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute}

const (
	// MaxWebhookAttempts is how often an event is sent before it is given up,
	// MaxRetryDelay the longest time between two attempts, whatever a receiver asks.
	MaxWebhookAttempts = 15
	MaxRetryDelay      = 2 * time.Hour
	// retryJitter is how much of a delay may be added to it.
	retryJitter = 0.1
)

// retryDelay is the time until the next attempt, after so many that failed. asked
// is what the receiver asked for, jitter from 0 to 1.
func retryDelay(failures int, asked time.Duration, jitter float64) time.Duration {
	d := MaxRetryDelay
	if failures <= len(firstDelays) {
		d = firstDelays[max(failures, 1)-1]
	}
	d = max(d, min(asked, MaxRetryDelay))
	return d + time.Duration(float64(d)*retryJitter*jitter)
}

// refusal says why an answer is not a success; nil: it is one ("Delivery success
// and failure").
func refusal(a WebhookAnswer) error {
	if a.Status >= 200 && a.Status <= 299 {
		return nil
	}
	text := fmt.Sprintf("the receiver answered %d %s", a.Status, http.StatusText(a.Status))
	if a.Status >= 300 && a.Status <= 399 {
		text += "; redirects are not followed, change the URL instead"
	}
	return errors.New(strings.TrimSpace(text))
}

// told is an error as it is kept.
func told(err error) string {
	text := strings.ToValidUTF8(strings.ReplaceAll(err.Error(), "\x00", ""), "")
	return cutText(text, MaxWebhookError)
}

// RunWebhooks delivers events to webhooks until ctx ends. All it knows stands in
// the store, so it may be killed anywhere; several replicas may run it, and one of
// them delivers for each webhook.
func (s *Service) RunWebhooks(ctx context.Context) error {
	changed, stop := s.WatchFeed()
	defer stop()
	ended := make(chan string, MaxWebhooks)
	running := map[string]bool{}
	var work sync.WaitGroup
	defer work.Wait()
	for {
		now := s.Now()
		due, next := s.dueWebhooks(ctx, now)
		for _, id := range due {
			if !running[id] {
				running[id] = true
				work.Go(func() {
					s.courier(ctx, id)
					ended <- id
				})
			}
		}
		timer := time.NewTimer(next.Sub(now))
		select {
		case <-changed:
		case <-s.courierWake:
		case id := <-ended:
			delete(running, id)
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
		if !s.rest(ctx, webhookPace, nil) {
			return nil
		}
	}
}

// wakeCouriers has RunWebhooks look soon. It never blocks.
func (s *Service) wakeCouriers() {
	select {
	case s.courierWake <- struct{}{}:
	default:
	}
}

// dueWebhooks returns those that have something to deliver which nobody else
// delivers, and when to look again.
func (s *Service) dueWebhooks(ctx context.Context, now time.Time) (due []string, next time.Time) {
	next = now.Add(s.Poll)
	all, err := s.Store.Webhooks(ctx)
	var end int64
	if err == nil && len(all) > 0 {
		end, err = s.Store.FeedEnd(ctx)
	}
	if err != nil {
		if ctx.Err() == nil {
			s.Log.Error("webhooks can not be looked at, trying again", "error", err)
		}
		return nil, next
	}
	s.noteWebhooks(all, end)
	for _, w := range all {
		switch {
		case w.State != WebhookEnabled || w.Owner != "" && w.Owner != s.presence.replica && w.Until.After(now):
		case w.Due > 0, w.Seq < end && !w.NextAt.After(now):
			due = append(due, w.ID)
		case w.Seq < end && w.NextAt.Before(next):
			next = w.NextAt
		}
	}
	return due, next
}

// courier delivers the events of one webhook while it has the claim.
type courier struct {
	s     *Service
	hook  Webhook
	doing Delivery // what was done since the last save
	saved time.Time
	dirty bool // something was delivered, or given up, since
}

// errOver ends a courier's work.
var errOver = errors.New("nothing to deliver now")

// courier delivers until there is nothing more, the receiver does not take it, or
// the claim is lost.
func (s *Service) courier(ctx context.Context, id string) {
	now := s.Now()
	hook, err := s.Store.ClaimWebhook(ctx, id, s.presence.replica, now, now.Add(WebhookClaim))
	if err == nil {
		c := &courier{s: s, hook: hook, saved: now}
		c.begin()
		err = c.work(ctx)
		if !errors.Is(err, ErrStale) && !errors.Is(err, ErrNotFound) {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTimeout)
			defer cancel()
			err = errors.Join(err, c.save(last, time.Time{}))
		}
	}
	switch {
	case err == nil, errors.Is(err, errOver), ctx.Err() != nil: // over, or stopped
	case errors.Is(err, ErrStale), errors.Is(err, ErrConflict), errors.Is(err, ErrNotFound): // another one's, or deleted
	default:
		s.Log.Error("a webhook can not be delivered, trying again", "webhook", id, "error", err)
		s.rest(ctx, s.Poll, nil)
	}
}

// begin starts a new account of what is done.
func (c *courier) begin() {
	c.doing = Delivery{WebhookID: c.hook.ID, Owner: c.s.presence.replica, WebhookProgress: c.hook.WebhookProgress}
	c.dirty = false
}

// save writes what was done and sees what has changed; until zero gives the claim
// back.
func (c *courier) save(ctx context.Context, until time.Time) error {
	c.doing.Now, c.doing.Until = c.s.Now(), until
	hook, err := c.s.Store.SaveDelivery(ctx, c.doing)
	if err != nil {
		return err
	}
	c.hook, c.saved = hook, c.doing.Now
	c.begin()
	if hook.State != WebhookEnabled {
		return errOver
	}
	return nil
}

// keep is save when it is time.
func (c *courier) keep(ctx context.Context) error {
	if c.s.Now().Sub(c.saved) < webhookSave {
		return nil
	}
	return c.claimOn(ctx)
}

// claimOn is save with the claim for another while.
func (c *courier) claimOn(ctx context.Context) error {
	return c.save(ctx, c.s.Now().Add(WebhookClaim))
}

func (c *courier) work(ctx context.Context) error {
	changed, stop := c.s.WatchFeed()
	defer stop()
	idle := c.s.Now()
	for c.s.Now().Sub(idle) < webhookLinger {
		if c.hook.Due > 0 {
			if err := c.redeliver(ctx); err != nil {
				return err
			}
		}
		if c.doing.NextAt.After(c.s.Now()) {
			return errOver
		}
		events, err := c.page(ctx)
		if err != nil {
			return err
		}
		if len(events) > 0 {
			idle = c.s.Now()
		}
		if err := c.deliverAll(ctx, events); err != nil {
			return err
		}
		if len(events) == webhookPage {
			continue
		}
		if err := c.wait(ctx, changed); err != nil {
			return err
		}
	}
	return errOver
}

// deliverAll delivers a page of the feed, and writes how far it came.
func (c *courier) deliverAll(ctx context.Context, events []RolloutEvent) error {
	for _, e := range events {
		if err := c.keep(ctx); err != nil { // what an operator changed counts from here on
			return err
		}
		if err := c.deliver(ctx, e); err != nil {
			return err
		}
	}
	if c.dirty {
		return c.claimOn(ctx)
	}
	if c.doing.Seq != c.hook.Seq {
		return c.keep(ctx)
	}
	return nil
}

// wait returns when there may be more.
func (c *courier) wait(ctx context.Context, changed <-chan struct{}) error {
	if !c.s.rest(ctx, webhookPace, nil) || !c.s.rest(ctx, webhookSave, changed) {
		return ctx.Err()
	}
	return nil
}

// page returns the next events. What the feed no longer has is noted as lost.
func (c *courier) page(ctx context.Context) ([]RolloutEvent, error) {
	events, err := c.read(ctx)
	next := c.doing.Seq + 1
	if err == nil && len(events) == 0 { // all up to the end is gone, if there is a way to it
		end, e := c.s.Store.FeedEnd(ctx)
		if e != nil || end <= c.doing.Seq {
			return nil, e
		}
		next = end + 1
		events, err = c.read(ctx)
	}
	if err != nil {
		return nil, err
	}
	if len(events) > 0 {
		next = events[0].Seq
	}
	if gap := next - c.doing.Seq - 1; gap > 0 {
		c.doing.Lost, c.doing.LostUpTo = c.doing.Lost+gap, next-1
		c.doing.Seq, c.doing.Failures, c.dirty = next-1, 0, true
		c.s.Log.Warn("a webhook is so far behind that events are no longer kept", "webhook", c.hook.ID, "lost", gap, "up_to", next-1)
	}
	return events, nil
}

// read returns the events behind the last one, or the first that are kept.
func (c *courier) read(ctx context.Context) ([]RolloutEvent, error) {
	events, err := c.s.Store.Feed(ctx, FeedFilter{}, c.doing.Seq, webhookPage)
	if errors.Is(err, ErrDropped) {
		return c.s.Store.Feed(ctx, FeedFilter{}, 0, webhookPage)
	}
	return events, err
}

// deliver makes one attempt at an event, and says with errOver that the next ones
// have to wait.
func (c *courier) deliver(ctx context.Context, e RolloutEvent) error {
	if !c.hook.Wants(e.Event) {
		c.doing.Seq = e.Seq
		return nil
	}
	body, err := webhookBody(e)
	if err != nil {
		return err
	}
	answer, failure, err := c.attempt(ctx, e.Seq, body)
	if err != nil {
		return err
	}
	c.dirty = true
	if failure == nil {
		c.doing.Seq, c.doing.Failures, c.doing.NextAt = e.Seq, 0, time.Time{}
		return nil
	}
	c.doing.Failures++
	if c.doing.Gone { // what is next stays next
		return errOver
	}
	if c.doing.Failures < MaxWebhookAttempts {
		c.doing.NextAt = c.doing.AttemptAt.Add(retryDelay(c.doing.Failures, answer.RetryAfter, rand.Float64()))
		return errOver
	}
	c.doing.Dead = append(c.doing.Dead, DeadLetter{
		WebhookID: c.hook.ID, Seq: e.Seq, Type: EventType(e.Event), Body: string(body), Attempts: c.doing.Failures,
		Status: answer.Status, Error: told(failure), At: c.doing.AttemptAt,
	})
	c.s.Log.Warn("an event was given up for a webhook", "webhook", c.hook.ID, "seq", e.Seq, "error", failure)
	c.doing.Seq, c.doing.Failures, c.doing.NextAt = e.Seq, 0, time.Time{}
	return nil
}

// attempt sends a message and notes what came of it. failure says why it was not
// taken, err that otad stops.
func (c *courier) attempt(ctx context.Context, seq int64, body []byte) (answer WebhookAnswer, failure, err error) {
	secrets, failure := c.s.webhookSecrets(c.hook)
	if failure == nil {
		m := WebhookMessage{URL: c.hook.URL, ID: fmt.Sprintf("%s-%d", c.hook.ID, seq), At: c.s.Now(), Body: body, Secrets: secrets}
		if answer, failure = c.s.Sender.Send(ctx, m); failure == nil {
			failure = refusal(answer)
		}
	}
	if ctx.Err() != nil {
		return answer, nil, ctx.Err()
	}
	p := &c.doing.WebhookProgress
	p.AttemptAt, p.Status, p.Error = c.s.Now(), answer.Status, ""
	switch {
	case failure == nil:
		p.Delivered++
		p.FailingSince = time.Time{}
	case p.FailingSince.IsZero():
		p.FailingSince = p.AttemptAt
	}
	if failure != nil {
		p.Error = told(failure)
	}
	if answer.Status == http.StatusGone {
		c.doing.Gone = true
		c.s.Log.Warn("a webhook's receiver wants no more", "webhook", c.hook.ID)
	}
	return answer, failure, nil
}

// redeliver makes one attempt at each dead letter that is due. With the first that
// fails the others are left as they are: the receiver would not take them either.
func (c *courier) redeliver(ctx context.Context) error {
	due, err := c.s.Store.DeadLetters(ctx, DeadLetterFilter{WebhookID: c.hook.ID, Due: true}, webhookPage)
	if err != nil {
		return err
	}
	for _, l := range due {
		answer, failure, err := c.attempt(ctx, l.Seq, []byte(l.Body))
		if err != nil {
			return err
		}
		if failure != nil {
			l.Attempts, l.Status, l.Error = l.Attempts+1, answer.Status, told(failure)
			c.doing.Dead, c.doing.Spare = append(c.doing.Dead, l), true
			break
		}
		c.doing.Done = append(c.doing.Done, l.Seq)
		c.doing.NextAt = time.Time{} // it is there
		if err := c.keep(ctx); err != nil {
			return err
		}
	}
	return c.claimOn(ctx)
}
