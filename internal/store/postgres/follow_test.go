package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// followed is how many devices come and go.
const followed = 8

// follow has a continuous rollout begin, and its devices come and go, be looked at
// and get their turns, in every replica at once. In the end those that match have
// had their turn, once, and the others nothing that waits.
func (r *race) follow(t *testing.T) {
	ctx := t.Context()
	for i := range followed {
		must(t, r.stores[0].CreateDevice(ctx, fleet.Device{ID: fmt.Sprint("f", i), Hardware: "h", CreatedAt: time.Now()}))
	}
	o := replicaRollout("f")
	o.State, o.Selector, o.Terms.Continuous = ota.RolloutScheduled, `tags.go = "yes"`, true
	o.Stages = []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}}
	must(t, r.stores[0].CreateRollout(ctx, o))
	sel, err := selector.Parse(o.Selector)
	must(t, err)
	errs := r.all(func(s *sqlstore.Store, i int) error {
		if i == 0 {
			return arrange(ctx, s, sel)
		}
		for range 30 {
			id := fmt.Sprint("f", rand.IntN(followed))
			err := s.ChangeTags(ctx, id, map[string]string{"go": []string{"yes", "no"}[rand.IntN(2)]}, nil)
			if i%2 == 0 {
				err = errors.Join(err, look(ctx, s, sel))
			}
			switch i % 5 {
			case 0:
				err = errors.Join(err, turns(ctx, s))
			case 1:
				err = errors.Join(err, s.TakeTurns(ctx, "f", fleet.Opening{}, []string{id}, time.Now()))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	must(t, errors.Join(errs...))
	for more := true; more; {
		must(t, look(ctx, r.stores[1], sel))
		marked, err := r.stores[1].Marked(ctx, 1)
		must(t, err)
		more = len(marked) > 0
	}
	must(t, turns(ctx, r.stores[2]))
	got, err := r.stores[0].Rollout(ctx, "f")
	must(t, err)
	if got.Cursor != got.Stages[0].Target || got.Population > followed {
		line, err := r.stores[0].Candidates(ctx, "f", got.Line, 0, 99)
		t.Errorf("cursor %d, target %d, population %d: %v %v", got.Cursor, got.Stages[0].Target, got.Population, line, err)
	}
	for i := range followed {
		d, err := r.stores[0].Device(ctx, fmt.Sprint("f", i))
		must(t, err)
		e, err := r.stores[0].Execution(ctx, "f", d.ID)
		if err != nil && !errors.Is(err, fleet.ErrNotFound) {
			t.Fatal(err)
		}
		due := e.Status == ota.Queued || !e.RetryAt.IsZero()
		if means := d.Tags["go"] == "yes"; means != due {
			t.Errorf("%s goes: %v, and its execution is %q, to be made again at %s", d.ID, means, e.Status, e.RetryAt)
		}
	}
}

// arrange arranges the rollout while everybody changes.
func arrange(ctx context.Context, s *sqlstore.Store, sel selector.Selector) error {
	o, err := s.Rollout(ctx, "f")
	if err != nil {
		return err
	}
	o.Follows = true
	if err := s.Advance(ctx, fleet.Advance{Rollout: o, Now: time.Now()}); err != nil {
		return err
	}
	var list []ota.Candidate
	err = s.Survey(ctx, fleet.DeviceQuery{Selector: sel}, nil, func(d fleet.Surveyed) bool {
		list = append(list, ota.Candidate{DeviceID: d.ID})
		return true
	})
	if err == nil {
		err = s.PutCandidates(ctx, "f", "l", 0, list)
	}
	if err == nil {
		o, err = s.Rollout(ctx, "f")
	}
	if err != nil {
		return err
	}
	o.Stages[0].Target = len(list)
	o = ota.Begin(o, o.Stages, len(list), "l", time.Now())
	o.Stages[0].State, o.Stages[0].OpenedAt = ota.StageOpen, o.StartedAt
	return s.Advance(ctx, fleet.Advance{Rollout: o, Now: time.Now()})
}

// look settles what is marked, as the service does.
func look(ctx context.Context, s *sqlstore.Store, sel selector.Selector) error {
	marked, err := s.Marked(ctx, 50)
	if err != nil {
		return err
	}
	o, err := s.Rollout(ctx, "f")
	if err != nil {
		return err
	}
	var looks []fleet.Look
	for _, m := range marked {
		l := fleet.Look{DeviceID: m.ID, Mark: m.Mark}
		b := ota.Belonging{Meant: sel.Match(fleet.Facts(m.DeviceView)), Eligible: true}
		for _, p := range m.Places {
			b.InLine, b.Turn, b.Left = true, p.Turn, p.Left
		}
		for _, e := range m.Executions {
			if e.RolloutID == "f" {
				b.Newest = &e
			}
		}
		move, e := ota.MoveLater, (*ota.Execution)(nil)
		if !o.StartedAt.IsZero() {
			move, e = ota.MoveOf(o, b, time.Now())
		}
		if e != nil {
			l.Changed = append(l.Changed, fleet.Changed{From: *b.Newest, To: *e})
		}
		if move != ota.MoveStay {
			l.Moves = append(l.Moves, fleet.Moved{RolloutID: "f", Move: move})
		}
		looks = append(looks, l)
	}
	return s.Settle(ctx, looks, time.Now())
}

// turns gives everybody in line a turn, unless somebody else moves the rollout.
func turns(ctx context.Context, s *sqlstore.Store) error {
	o, err := s.Rollout(ctx, "f")
	if err != nil || o.StartedAt.IsZero() || o.Cursor == o.Stages[0].Target {
		return err
	}
	step := fleet.Advance{Rollout: o, Now: time.Now(), Open: &fleet.Opening{From: o.Cursor, To: o.Stages[0].Target}}
	step.Rollout.Cursor = o.Stages[0].Target
	if err := s.Advance(ctx, step); !errors.Is(err, fleet.ErrStale) {
		return err
	}
	return nil
}
