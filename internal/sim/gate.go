package sim

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// verdict is what the driver lets become of one call of the store.
type verdict int

const (
	pass       verdict = iota
	failBefore         // an error, and no effect
	failAfter          // an effect, and an error
	killBefore         // its server is killed before it
	killAfter          // its server is killed after it
)

// errStore is what a store says that could not be reached.
var errStore = errors.New("the database went away")

// caller is who calls the store: a loop of a server, or one request.
type caller struct {
	label  string
	server *server
}

type callerKey struct{}

func asCaller(ctx context.Context, label string, s *server) context.Context {
	return context.WithValue(ctx, callerKey{}, caller{label, s})
}

// call is one call of the store that waits for its turn.
type call struct {
	caller
	method, about string
	notBefore     time.Time
	turn          chan verdict
}

func (c *call) order(o *call) int {
	return cmp.Or(cmp.Compare(c.label, o.label), cmp.Compare(c.method, o.method), cmp.Compare(c.about, o.about))
}

// gate is where calls wait.
type gate struct {
	mu      sync.Mutex
	waiting []*call
	arrived chan struct{}
}

// enter waits for the turn of a call.
func (g *gate) enter(c *call) verdict {
	c.turn = make(chan verdict, 1)
	g.mu.Lock()
	g.waiting = append(g.waiting, c)
	g.mu.Unlock()
	select {
	case g.arrived <- struct{}{}:
	default:
	}
	return <-c.turn
}

// ready takes out a call that waits, which of those that may go on choose says;
// nil when none may. next is when another one may.
func (g *gate) ready(now time.Time, choose func(n int) int) (c *call, next time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var may []*call
	for _, c := range g.waiting {
		switch {
		case !c.notBefore.After(now) || c.server.ctx.Err() != nil:
			may = append(may, c)
		case next.IsZero() || c.notBefore.Before(next):
			next = c.notBefore
		}
	}
	if len(may) == 0 {
		return nil, next
	}
	slices.SortStableFunc(may, (*call).order)
	c = may[choose(len(may))]
	g.waiting = slices.DeleteFunc(g.waiting, func(o *call) bool { return o == c })
	return c, next
}

// settle says of every call that came since the last time when it may go on.
func (g *gate) settle(at func(c *call) time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	slices.SortStableFunc(g.waiting, (*call).order)
	for _, c := range g.waiting {
		if c.notBefore.IsZero() {
			c.notBefore = at(c)
		}
	}
}
