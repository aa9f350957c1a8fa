package external

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	reconnectFirst = 100 * time.Millisecond
	reconnectMax   = 30 * time.Second
	retryFirst     = 50 * time.Millisecond
	retryMax       = 10 * time.Second

	// stableAfter is how long a connection must have lasted for the next attempt
	// to start from the beginning: two replicas with one client id end each
	// other's connections for ever, and should do so slowly.
	stableAfter = 10 * time.Second
)

// backoff yields waits of full jitter: uniform between 0 and a bound that
// doubles from first to limit.
type backoff struct {
	first, limit time.Duration
	now          func() time.Time

	mu    sync.Mutex
	bound time.Duration
	since time.Time // of the last connection, zero without one
}

func newBackoff(first, limit time.Duration) *backoff {
	return &backoff{first: first, limit: limit, bound: first, now: time.Now}
}

// connected notes that an attempt succeeded.
func (b *backoff) connected() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.since = b.now()
}

// next is the wait before the next attempt.
func (b *backoff) next() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.since.IsZero() && b.now().Sub(b.since) >= stableAfter {
		b.bound = b.first
	}
	b.since = time.Time{}
	wait := rand.N(b.bound)
	b.bound = min(2*b.bound, b.limit)
	return wait
}
