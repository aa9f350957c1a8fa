package fleet

import (
	"context"
	"sync"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Limits of telling devices.
const (
	// DefaultNotifyRate is how many devices a second are told of what changed for
	// many at once: a fleet that is told all at once comes all at once.
	DefaultNotifyRate = 2000
	MaxNotifyRate     = 1_000_000
	// Unpaced as Config.NotifyRate tells them as fast as can be.
	Unpaced = -1
	// tellPage is how many are told between two looks at the clock.
	tellPage = 200
	// maxTellings is how much is remembered to be told, maxTold of how many
	// executions that are named one by one. What is over that is not told: devices
	// ask by themselves when they connect.
	maxTellings = 1000
	maxTold     = 500_000
)

// telling is something that many devices are to be told. It is small: who they are
// is read, a page at a time, when their turn comes.
type telling struct {
	what     tellWhat
	everyone bool // who has something to do, or
	rollout  ota.Rollout
	from, to int                      // those with these turns in its line,
	whole    func(ota.Execution) bool // or those of whose newest attempt this holds,
	list     []ota.Execution          // or these
}

// tellWhat is what became of executions.
type tellWhat string

const (
	tellCome tellWhat = "come" // they are pending now and were not
	tellGone tellWhat = "gone" // they are pending no more, or to be held
	tellAnew tellWhat = "anew" // whatever it was: everything is told
)

// notifier keeps what is to be told.
type notifier struct {
	wake    chan struct{}
	mu      sync.Mutex
	queue   []telling
	told    int // executions in the lists of the queue
	dropped int
}

func newNotifier() *notifier { return &notifier{wake: make(chan struct{}, 1)} }

// add never blocks.
func (n *notifier) add(t telling) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if last := len(n.queue) - 1; last >= 0 && t.goesOn(n.queue[last]) {
		n.queue[last].rollout, n.queue[last].to = t.rollout, t.to
		return
	}
	if len(n.queue) == maxTellings || n.told+len(t.list) > maxTold {
		n.dropped++
		return
	}
	n.queue = append(n.queue, t)
	n.told += len(t.list)
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// goesOn reports whether it is about the turns that come after those of o: the next step
// of a stage that is being opened.
func (t telling) goesOn(o telling) bool {
	turns := func(t telling) bool { return t.to > t.from && t.what == tellCome }
	return turns(t) && turns(o) && t.rollout.ID == o.rollout.ID && t.rollout.Line == o.rollout.Line && t.from == o.to
}

// next takes out what was added first.
func (n *notifier) next() (t telling, dropped int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	dropped, n.dropped = n.dropped, 0
	if len(n.queue) == 0 {
		return t, dropped, false
	}
	t = n.queue[0]
	n.queue[0] = telling{}
	n.queue = n.queue[1:]
	n.told -= len(t.list)
	return t, dropped, true
}

// RunNotifier tells devices what the engine did until ctx ends, off its path and at
// the pace of Config.NotifyRate. What it had not told when it ended nobody
// remembers: so it begins with every device that has something to do, and does it
// again when another replica has fallen silent (RunPresence sees that).
func (s *Service) RunNotifier(ctx context.Context) error {
	p := &pace{rate: s.NotifyRate}
	s.tellAll(ctx, p)
	for {
		t, dropped, ok := s.notifier.next()
		if dropped > 0 {
			s.Log.Warn("too much was to be told: devices ask by themselves later", "not told", dropped)
		}
		switch {
		case ok:
			s.tellMany(ctx, p, t)
		case !s.rest(ctx, s.Poll, s.notifier.wake):
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// tellMany tells whom a telling is about.
func (s *Service) tellMany(ctx context.Context, p *pace, t telling) {
	var err error
	next := s.nextChanged(ctx, t)
	switch {
	case t.everyone:
		s.tellAll(ctx, p)
	case t.whole != nil:
		err = s.tellWhole(ctx, p, t, next)
	case t.list != nil:
		for from := 0; from < len(t.list) && ctx.Err() == nil; from += tellPage {
			s.tellPaced(ctx, p, t.list[from:min(from+tellPage, len(t.list))], next)
		}
	default:
		for turn := t.from; turn < t.to && err == nil && ctx.Err() == nil; turn += tellPage {
			var part []ota.Candidate
			if part, err = s.Store.Candidates(ctx, t.rollout.ID, t.rollout.Line, turn, min(tellPage, t.to-turn)); err == nil {
				s.tellPaced(ctx, p, executionsOf(t.rollout, part), next)
			}
		}
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Error("who is to be told can not be read, devices ask by themselves later", "rollout", t.rollout.ID, "error", err)
	}
}

func executionsOf(r ota.Rollout, part []ota.Candidate) []ota.Execution {
	list := make([]ota.Execution, len(part))
	for i, c := range part {
		list[i] = ota.Execution{RolloutID: r.ID, DeviceID: c.DeviceID}
	}
	return list
}

// tellWhole walks through the newest attempts of a rollout.
func (s *Service) tellWhole(ctx context.Context, p *pace, t telling, next func(ota.Execution, []ota.Execution) bool) error {
	var last ExecutionKey
	for ctx.Err() == nil {
		var page []ota.Execution
		err := s.Store.Executions(ctx, ExecutionFilter{RolloutID: t.rollout.ID, Latest: true, After: last}, func(e ota.Execution) bool {
			last = KeyOf(e)
			if t.whole(e) {
				page = append(page, e)
			}
			return len(page) < tellPage
		})
		if err != nil {
			return err
		}
		s.tellPaced(ctx, p, page, next)
		if len(page) < tellPage {
			return nil
		}
	}
	return nil
}

// tellAll tells every device that has something to do: after a crash nobody
// knows who was told.
func (s *Service) tellAll(ctx context.Context, p *pace) {
	for after := ""; ctx.Err() == nil; {
		ids, err := s.Store.Busy(ctx, after, tellPage)
		if err != nil {
			s.Log.Error("the executions can not be read, devices ask by themselves later", "error", err)
			return
		}
		list := make([]ota.Execution, len(ids))
		for i, id := range ids {
			list[i].DeviceID = id
		}
		s.tellPaced(ctx, p, list, func(ota.Execution, []ota.Execution) bool { return true })
		if len(ids) < tellPage {
			return
		}
		after = ids[len(ids)-1]
	}
}

// tellPaced tells a page, and not before its time.
func (s *Service) tellPaced(ctx context.Context, p *pace, page []ota.Execution, next func(ota.Execution, []ota.Execution) bool) {
	if d := p.wait(time.Now(), len(page)); d > 0 && !s.rest(ctx, d, nil) {
		return
	}
	s.tellEach(ctx, page, next)
}

// pace spreads n things over time.
type pace struct {
	rate int // a second; under 0: no bound
	free time.Time
}

// wait is how long to wait before the next n: not at all for a page's worth.
func (p *pace) wait(now time.Time, n int) time.Duration {
	if p.rate < 0 || n == 0 {
		return 0
	}
	if p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	return p.free.Sub(now) - tellPage*time.Second/time.Duration(p.rate)
}
