package fleet_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// shaky is a store that fails now and then, before or after it has done what it
// was asked for, and always once its replica is dead.
type shaky struct {
	fleet.Store
	dead   atomic.Bool
	faulty *atomic.Bool
	draw   func(n int) int
}

var errShaky = errors.New("the database went away")

func (s *shaky) call(f func() error) error {
	if s.dead.Load() {
		return errShaky
	}
	fate := 99
	if s.faulty.Load() {
		fate = s.draw(25)
	}
	if fate == 0 {
		return errShaky
	}
	if err := f(); err != nil || fate != 1 {
		return err
	}
	return errShaky
}

func (s *shaky) Webhooks(ctx context.Context) (all []fleet.Webhook, err error) {
	return all, s.call(func() error { all, err = s.Store.Webhooks(ctx); return err })
}

func (s *shaky) Feed(ctx context.Context, f fleet.FeedFilter, after int64, limit int) (list []fleet.RolloutEvent, err error) {
	return list, s.call(func() error { list, err = s.Store.Feed(ctx, f, after, limit); return err })
}

func (s *shaky) ClaimWebhook(ctx context.Context, id, owner string, now, until time.Time) (w fleet.Webhook, err error) {
	return w, s.call(func() error { w, err = s.Store.ClaimWebhook(ctx, id, owner, now, until); return err })
}

func (s *shaky) SaveDelivery(ctx context.Context, d fleet.Delivery) (w fleet.Webhook, err error) {
	return w, s.call(func() error { w, err = s.Store.SaveDelivery(ctx, d); return err })
}

// moody is a receiver that takes its time, refuses, and does not answer.
type moody struct {
	mailbox
	taken []fleet.WebhookMessage
	draw  func(n int) int
}

func (m *moody) Send(_ context.Context, msg fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
	<-time.After(time.Duration(m.draw(3000)) * time.Millisecond)
	mood := m.draw(20)
	m.mu.Lock()
	defer m.mu.Unlock()
	if mood == 0 {
		return fleet.WebhookAnswer{Status: 503, RetryAfter: time.Minute}, nil
	}
	m.taken = append(m.taken, msg)
	if mood == 1 { // and the answer is lost
		return fleet.WebhookAnswer{}, errors.New("connection reset")
	}
	return fleet.WebhookAnswer{Status: 200}, nil
}

// Two replicas that are killed and started at any moment, over a store that fails
// and with a receiver that does, leave nothing out, put nothing before its turn,
// and lose nothing.
func TestWebhooksOutliveChaos(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) { chaos(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func chaos(t *testing.T, seed uint64) {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 3))
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	w, box := newWorld(t), &moody{draw: draw}
	w.s.Sender = box
	hook := w.webhook(fleet.WebhookSpec{})
	var faulty atomic.Bool
	faulty.Store(true)
	type life struct {
		store *shaky
		stop  func()
	}
	live := func() life {
		store := &shaky{Store: w.store, faulty: &faulty, draw: draw}
		return life{store, w.background(w.replica(store, box).RunWebhooks)}
	}
	lives := []life{live(), live()}
	for range 30 {
		w.flips("r", 1+draw(20))
		<-time.After(time.Duration(draw(60_000)) * time.Millisecond)
		one := &lives[draw(2)]
		one.store.dead.Store(draw(2) == 0) // else it stops in order
		one.stop()
		*one = live()
	}
	faulty.Store(false)
	end := w.flips("r", 1)
	for _, l := range lives {
		defer l.stop()
	}
	for range 100 {
		if w.hook(hook.ID).Seq == end {
			break
		}
		<-time.After(time.Hour)
	}
	box.mu.Lock()
	defer box.mu.Unlock()
	high := int64(0)
	for _, n := range w.seqs(box.taken) {
		if n > high+1 {
			t.Fatalf("event %d came after %d", n, high)
		}
		high = max(high, n)
	}
	if got := w.hook(hook.ID); high != end || got.Seq != end || got.Dead != 0 || got.Lost != 0 {
		t.Errorf("came to %d of %d: %+v", high, end, got)
	}
}
