package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// A stage is open with one commit; its executions are made after that, ota.MaxTaken in a
// step. A device that asks meanwhile does not wait for them: it takes its turn.

const (
	// maxTurns is how many devices take their turn in one transaction.
	maxTurns = 1000
	// lookAgain is how long nobody looks at what is being opened when that failed.
	lookAgain = time.Second
)

// turns has devices take their turn when they ask.
type turns struct {
	// giving has one element, held by who writes turns: the store would keep the others
	// waiting for the row of the rollout, and what they hold there with them.
	giving  chan struct{}
	mu      sync.Mutex
	looked  time.Time     // when open was read, or begun to be
	looking chan struct{} // closed when it is; nil: nobody reads it
	open    []opening
	asked   []*taking // what is to be written, one for each rollout
	writing bool
}

// opening is a rollout that is ota.Rollout.Opening, and the opening of its stage.
type opening struct {
	rollout ota.Rollout
	of      Opening
}

// taking are devices that take their turn together.
type taking struct {
	opening
	devices []string
	done    chan struct{}
}

// takeTurn gives the device its turn in every stage that is being opened. It is no
// failure if that can not be: the device is told when its turn has come to it.
func (s *Service) takeTurn(ctx context.Context, deviceID string) {
	var with []*taking
	for _, o := range s.openings(ctx) {
		due, err := s.Store.Due(ctx, o.rollout, deviceID)
		if err != nil {
			s.logger(ctx).Warn("where a device stands in line can not be read, it is told when its turn comes", "rollout", o.rollout.ID, "device", deviceID, "error", err)
		}
		if due {
			with = append(with, s.turns.ask(o, deviceID))
		}
	}
	if len(with) == 0 {
		return
	}
	if s.turns.lead() {
		go s.takeTurns(context.WithoutCancel(ctx)) // until nobody waits
	}
	for _, t := range with {
		select {
		case <-t.done:
		case <-ctx.Done():
			return
		}
	}
}

// openings are the rollouts that are being opened, as they were lookEvery ago at most,
// or since a step was made here.
func (s *Service) openings(ctx context.Context) []opening {
	t := s.turns
	for {
		open, under, leads := t.known()
		if leads {
			return s.lookForOpenings(ctx, under)
		}
		if under == nil {
			return open
		}
		select {
		case <-under:
		case <-ctx.Done():
			return nil
		}
	}
}

// known returns what is being opened if that is fresh. Otherwise the caller waits for who
// reads it, or reads it itself.
func (t *turns) known() (open []opening, under chan struct{}, leads bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.looking != nil:
		return nil, t.looking, false
	case time.Since(t.looked) < lookEvery:
		return t.open, nil, false
	}
	t.looked, t.looking = time.Now(), make(chan struct{})
	return nil, t.looking, true
}

func (s *Service) lookForOpenings(ctx context.Context, under chan struct{}) []opening {
	open, err := s.readOpenings(ctx)
	t := s.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looking, t.open = nil, open
	close(under)
	switch {
	case ctx.Err() != nil: // who asked has gone: the next looks
		t.looked = time.Time{}
	case err != nil:
		t.looked = time.Now().Add(lookAgain - lookEvery)
		s.logger(ctx).Warn("the rollouts that are being opened can not be read, devices are told when their turn comes", "error", err)
	}
	return open
}

func (s *Service) readOpenings(ctx context.Context) (open []opening, err error) {
	list, err := s.Store.Openings(ctx)
	for _, r := range list {
		stage, _, _ := r.OpenTurns()
		o := opening{r, Opening{Stage: stage}}
		if unready := s.turn(ctx, r, &o.of); unready != nil {
			err = errors.Join(err, unready)
			continue
		}
		open = append(open, o)
	}
	return open, err
}

func newTurns() *turns { return &turns{giving: make(chan struct{}, 1)} }

// give runs f while nobody else here gives turns.
func (t *turns) give(ctx context.Context, f func() error) error {
	select {
	case t.giving <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.giving }()
	return f()
}

// lookAnew has the next that asks see what is being opened now.
func (t *turns) lookAnew() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.looked = time.Time{}
}

// ask puts the device down for the next transaction of the rollout.
func (t *turns) ask(o opening, deviceID string) *taking {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.asked, func(a *taking) bool { return a.rollout.ID == o.rollout.ID })
	if i < 0 {
		i = len(t.asked)
		t.asked = append(t.asked, &taking{opening: o, done: make(chan struct{})})
	}
	t.asked[i].devices = append(t.asked[i].devices, deviceID)
	return t.asked[i]
}

// lead reports whether nobody writes what was put down: then the caller has to.
func (t *turns) lead() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	leads := !t.writing
	t.writing = true
	return leads
}

// next takes out what is to be written, of which leads reported that there is some.
func (t *turns) next() *taking {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.asked[0]
	t.asked = t.asked[1:]
	return next
}

// leads reports whether something is left to be written, for who writes it: otherwise
// the next that asks has to.
func (t *turns) leads() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing = len(t.asked) > 0
	return t.writing
}

// takeTurns writes what was put down until nothing is left. Who asks while this waits
// for a step of the engine goes with the others.
func (s *Service) takeTurns(ctx context.Context) {
	for s.turns.leads() {
		var t *taking
		err := s.turns.give(ctx, func() error {
			t = s.turns.next()
			slices.Sort(t.devices)
			for devices := range slices.Chunk(slices.Compact(t.devices), maxTurns) {
				if err := s.Store.TakeTurns(ctx, t.rollout.ID, t.of, devices, s.Now()); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrStale) {
			s.logger(ctx).Warn("devices could not take their turn early, they are told when it comes", "rollout", t.rollout.ID, "devices", len(t.devices), "error", err)
		}
		close(t.done)
		s.signals.raise("rollout/" + t.rollout.ID)
	}
}
