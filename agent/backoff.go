package agent

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of the wait between two attempts at the same thing; the wait is drawn
// from 0 to a bound that doubles (full jitter), so that a fleet that lost its
// server does not come back as one.
const (
	backoffBase = time.Second
	backoffMax  = time.Minute
)

// backoff is the wait after repeated failures. Not for concurrent use.
type backoff struct {
	jitter func(time.Duration) time.Duration
	fails  int
}

func fullJitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

func (b *backoff) reset() { b.fails = 0 }

// next is how long to wait after one more failure.
func (b *backoff) next() time.Duration {
	bound := backoffMax
	if b.fails < 6 {
		bound = min(backoffBase<<b.fails, backoffMax)
		b.fails++
	}
	return b.jitter(bound)
}

// wait waits that long, or until ctx ends, whose error it returns.
func (b *backoff) wait(ctx context.Context) error {
	t := time.NewTimer(b.next())
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
