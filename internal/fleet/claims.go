package fleet

import (
	"errors"
	"fmt"
	"sync"
)

// ErrBusy: somebody else works on the same thing; try again when they are done.
var ErrBusy = errors.New("busy")

// claims keeps the upload of an image and its verification apart, so that what
// was verified is what stays. Any number may verify one image at once. It holds
// within this process, as a store has one process.
type claims struct {
	mu   sync.Mutex
	held map[string]int // image digest -> number that verify it, or uploading
}

const uploading = -1

func newClaims() *claims { return &claims{held: map[string]int{}} }

// upload claims the image for its writer until release is called.
func (c *claims) upload(digest string) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch n := c.held[digest]; {
	case n == uploading:
		return nil, fmt.Errorf("%w: another upload of image %s is under way; wait for it, or try again in a minute", ErrBusy, digest)
	case n > 0:
		return nil, fmt.Errorf("%w: image %s is being made a release; try again in a minute", ErrBusy, digest)
	}
	c.held[digest] = uploading
	return func() { c.set(digest, func(int) int { return 0 }) }, nil
}

// verify claims the image for one of its readers until release is called.
func (c *claims) verify(digest string) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[digest] == uploading {
		return nil, fmt.Errorf("%w: an upload of image %s is under way; wait for it, or try again in a minute", ErrBusy, digest)
	}
	c.held[digest]++
	return func() { c.set(digest, func(n int) int { return n - 1 }) }, nil
}

func (c *claims) set(digest string, to func(int) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := to(c.held[digest]); n != 0 {
		c.held[digest] = n
	} else {
		delete(c.held, digest)
	}
}
