package sim

import (
	"container/heap"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/ota"
)

// Sim is one history.
type Sim struct {
	rng      *rand.Rand
	store    fleet.Store // as it is, without faults
	gate     *gate
	check    *checker
	servers  []*server
	agents   []*agent
	agent    map[string]*agent
	releases []firmware
	began    time.Time
	jumped   atomic.Int64 // how far the clocks of the servers are ahead
	calm     bool         // the faults are over
	listened bool         // the last rollout was made
	changed  *change      // by the call that was let through last
	moved    bool         // something changed since it was last asked whether all has ended
	running  sync.WaitGroup

	mu     sync.Mutex
	events events
	seq    int
	trace  func(format string, args ...any) // nil: none
	// Calls and Changes count what the servers asked of the store.
	Calls, Changes int
}

// How long things take, in virtual time.
const (
	stormy  = 2 * time.Hour      // faults and operators act so long
	patient = 7 * 24 * time.Hour // and then everything ends within this

	spinning = 20_000 // so many steps at one moment are too many
)

// server is one replica of otad, from its start to its death.
type server struct {
	name string
	s    *fleet.Service
	ctx  context.Context
	kill context.CancelFunc
}

func newSim(seed uint64) *Sim {
	s := &Sim{
		rng: rand.New(rand.NewPCG(seed, seed)), store: memstore.New(), gate: &gate{arrived: make(chan struct{}, 1)},
		agent: map[string]*agent{}, began: time.Now(),
	}
	s.check = newChecker(s)
	return s
}

// Run lives through the history of a seed, inside a bubble of synctest, and
// returns what was broken in it, in words. Trace, if not nil, is told what
// happens.
func Run(seed uint64, trace func(format string, args ...any)) (s *Sim, broken []string) {
	s = newSim(seed)
	s.trace = trace
	s.populate()
	poll := time.Duration(s.rng.IntN(200)+60) * time.Second
	s.servers = []*server{nil, nil}
	for i := range s.servers {
		s.start(i, 1, poll)
	}
	s.schedule(poll)
	s.drive(func() bool { return false }, s.began.Add(stormy))
	s.moved = true
	if len(s.check.broken) == 0 {
		s.becalm(poll)
		if !s.drive(s.ended, time.Now().Add(patient)) && len(s.check.broken) == 0 {
			s.check.say("it never ends: %s", s.unfinished())
		}
		s.check.whole()
	}
	s.stop()
	return s, s.check.broken
}

func (s *Sim) log(format string, args ...any) {
	if s.trace != nil {
		s.trace("%9.3f "+format, append([]any{time.Since(s.began).Seconds()}, args...)...)
	}
}

// start starts a replica; life tells it from those that had its place before.
func (s *Sim) start(i, life int, poll time.Duration) {
	r := &server{name: fmt.Sprintf("otad-%d.%d", i+1, life)}
	r.ctx, r.kill = context.WithCancel(context.Background())
	s.log("%s starts", r.name)
	r.s = fleet.New(fleet.Config{
		Store: faulty{s.store, s}, Publisher: publisher{s}, Now: s.now, Log: slog.New(slog.DiscardHandler), Poll: poll,
	})
	s.servers[i] = r
	s.running.Go(func() { _ = r.s.RunEngine(asCaller(r.ctx, r.name+" engine", r)) })
	s.running.Go(func() { _ = r.s.RunNotifier(asCaller(r.ctx, r.name+" notifier", r)) })
	s.running.Go(func() { _ = r.s.RunTimeouts(asCaller(r.ctx, r.name+" timeouts", r)) })
	s.running.Go(func() { _ = r.s.RunLooks(asCaller(r.ctx, r.name+" looks", r)) })
}

// now is what the clocks of the servers say.
func (s *Sim) now() time.Time { return time.Now().Add(time.Duration(s.jumped.Load())) }

// request is what a replica is asked to do; its answer is the execution that it
// is about, if it is about one.
type request func(ctx context.Context, r *fleet.Service) (ota.Execution, error)

// request makes a request to a replica, and calls reply in the driver when it is
// answered.
func (s *Sim) request(label string, do request, reply func(ota.Execution, error)) {
	r := s.servers[s.rng.IntN(len(s.servers))]
	if r.ctx.Err() != nil {
		s.after(time.Second, func() { reply(ota.Execution{}, errStore) })
		return
	}
	s.mu.Lock()
	s.seq++
	ctx := asCaller(r.ctx, fmt.Sprintf("%s #%d", label, s.seq), r)
	s.mu.Unlock()
	s.running.Go(func() {
		e, err := do(ctx, r.s)
		s.after(0, func() { reply(e, err) })
	})
}

// drive lets time go by until done, or then. It reports whether done.
func (s *Sim) drive(done func() bool, until time.Time) bool {
	var last time.Time
	for calls := 0; ; calls++ {
		synctest.Wait()
		if len(s.check.broken) > 0 {
			return false
		}
		if s.moved {
			if s.moved = false; done() {
				return true
			}
		}
		next := until
		now := time.Now()
		if now.After(last) {
			last, calls = now, 0
		} else if calls > spinning {
			s.check.say("it spins: %d steps within one moment", calls)
			continue
		}
		s.gate.settle(func(c *call) time.Time { return now.Add(s.slowness(c)) })
		if c, at := s.gate.ready(now, s.rng.IntN); c != nil {
			s.let(c)
			continue
		} else if !at.IsZero() && at.Before(next) {
			next = at
		}
		if e, at := s.due(now); e != nil {
			e()
			continue
		} else if !at.IsZero() && at.Before(next) {
			next = at
		}
		if !now.Before(until) {
			return false
		}
		timer := time.NewTimer(next.Sub(now))
		select {
		case <-timer.C:
		case <-s.gate.arrived:
		}
		timer.Stop()
	}
}

// slowness is how long a call waits for the store. A step that gives turns is one of
// many, and some devices ask before it is theirs.
func (s *Sim) slowness(c *call) time.Duration {
	if c.method == givesTurns && s.one(4) {
		return s.upTo(20 * time.Minute)
	}
	if s.calm || s.rng.IntN(50) > 0 {
		return 0
	}
	return time.Duration(s.rng.IntN(20_000)) * time.Millisecond
}

// let lets a call through, and looks at what it changed.
func (s *Sim) let(c *call) {
	v := pass
	switch n := s.rng.IntN(4000); {
	case c.server.ctx.Err() != nil:
		v = killBefore
	case s.calm:
	case n < 20:
		v = failBefore
	case n < 40:
		v = failAfter
	case n < 46:
		v = killBefore
	case n < 52:
		v = killAfter
	}
	s.Calls++
	if v != pass || s.trace != nil && c.method != "Moving" && c.method != "Rollout" && c.method != "Progress" && c.method != "Marked" {
		s.log("%s: %s %s %s", c.label, c.method, c.about, [...]string{"", "fails", "fails after its effect", "is killed", "is killed after its effect"}[v])
	}
	s.changed = nil
	c.turn <- v
	synctest.Wait()
	if s.changed != nil {
		s.Changes++
		s.moved = true
		s.check.changed(*s.changed)
	}
}

// stop kills the replicas and waits for them.
func (s *Sim) stop() {
	for _, r := range s.servers {
		r.kill()
	}
	ended := make(chan struct{})
	go func() { s.running.Wait(); close(ended) }()
	for {
		synctest.Wait()
		if c, _ := s.gate.ready(time.Now(), func(int) int { return 0 }); c != nil {
			c.turn <- killBefore
			continue
		}
		<-ended
		return
	}
}

// after has f called by the driver in d.
func (s *Sim) after(d time.Duration, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	heap.Push(&s.events, event{time.Now().Add(d), s.seq, f})
	select {
	case s.gate.arrived <- struct{}{}:
	default:
	}
}

// due takes out what is to happen now; nil: nothing is. at is when the next is.
func (s *Sim) due(now time.Time) (f func(), at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.events) == 0 {
		return nil, time.Time{}
	}
	if at = s.events[0].at; at.After(now) {
		return nil, at
	}
	return heap.Pop(&s.events).(event).do, at
}

type event struct {
	at  time.Time
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	*e = (*e)[:last]
	return x
}

// rollouts returns how all rollouts stand, newest first.
func (s *Sim) rollouts() []ota.Rollout {
	list, err := s.store.Rollouts(context.Background())
	if err != nil {
		panic(err)
	}
	return list
}
