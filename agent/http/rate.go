package http

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"sync"
	"time"

	"github.com/otad/otad/agent"
)

// The slowest peer that is worth waiting for: less than MinRate bytes a second
// on average over a window of RateWindow spent waiting for it ends the transfer.
const (
	MinRate    = 1000
	RateWindow = 60 * time.Second
)

const windowBytes = MinRate * int64(RateWindow/time.Second)

// body reads a reply under the minimum rate. Only the time inside Read counts:
// a slow disk on our side is not the peer's fault.
type body struct {
	io.ReadCloser
	caller context.Context // whose end is the caller's wish
	ctx    context.Context // the request's; cancel ends a blocked Read
	cancel context.CancelCauseFunc
	url    *url.URL

	mu      sync.Mutex
	timer   *time.Timer
	reading bool
	since   time.Time     // when the current Read began, or the window rolled in it
	waited  time.Duration // spent in Reads in this window
	got     int64         // bytes in this window
}

func newBody(caller, ctx context.Context, cancel context.CancelCauseFunc, u *url.URL, r io.ReadCloser) *body {
	b := &body{ReadCloser: r, caller: caller, ctx: ctx, cancel: cancel, url: u}
	b.timer = time.AfterFunc(RateWindow, b.windowOver)
	b.timer.Stop()
	return b
}

// Read fails with agent.ErrSlow, with the caller's context error, or with
// agent.ErrUnreachable.
func (b *body) Read(p []byte) (int, error) {
	b.begin()
	n, err := b.ReadCloser.Read(p)
	b.end(n)
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, networkError(b.caller, b.ctx, b.url, err)
}

// Close ends the request; it is safe to call more than once.
func (b *body) Close() error {
	b.mu.Lock()
	b.timer.Stop()
	b.reading = false
	b.mu.Unlock()
	b.cancel(nil)
	return b.ReadCloser.Close()
}

func (b *body) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading, b.since = true, time.Now()
	b.timer.Reset(RateWindow - b.waited)
}

func (b *body) end(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer.Stop()
	b.reading = false
	b.waited += time.Since(b.since)
	b.got += int64(n)
	if b.waited >= RateWindow {
		b.roll()
	}
}

func (b *body) windowOver() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.reading || b.waited+time.Since(b.since) < RateWindow {
		return // the timer of a Read that came back just now
	}
	b.roll()
	b.since = time.Now()
	b.timer.Reset(RateWindow)
}

// roll judges the window that is over and starts the next.
func (b *body) roll() {
	if b.got < windowBytes {
		b.cancel(fmt.Errorf("%w: %d bytes in %s, want %d", agent.ErrSlow, b.got, RateWindow, windowBytes))
	}
	b.got, b.waited = 0, 0
}
