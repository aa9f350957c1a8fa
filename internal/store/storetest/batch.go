package storetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/memstore"
)

// gatherer is a store that can do several things in one transaction: what it then
// does for one caller another one must not see half of, nor undo.
type gatherer interface {
	// Together runs calls of the store's methods with what they write in one
	// transaction, in their order.
	Together(calls ...func())
}

// inOneBatch runs the calls with what they write in one transaction, one after the
// other in a store that has no batches.
func (s *suite) inOneBatch(calls ...func()) {
	if g, ok := s.Store.(gatherer); ok {
		g.Together(calls...)
		return
	}
	for _, f := range calls {
		f()
	}
}

// call is one thing to do to a store: what comes first and by itself, and what may be
// done together with others.
type call struct {
	what    string
	prepare func(fleet.Store) func() (any, error)
}

// deed is what was done together, and in which order if not in that of the calls.
type deed struct {
	calls    []call
	order    []int
	unmarked map[string]bool // see evened
}

// maxTogether is how many things are done together: memstore does them in every order
// if need be.
const maxTogether = 4

// run does the calls as runAs does, and leaves no group without its members.
func run(s fleet.Store, calls []call, order []int) []string {
	answers := runAs(s, calls, order)
	groups, err := s.Groups(ctx)
	for _, g := range groups {
		err = errors.Join(err, fleet.FillGroup(ctx, s, g.Name))
	}
	return append(answers, answer("groups", err))
}

// runAs does the calls in an order, nil: as they come, or together where the store
// can, and returns the answers by call.
func runAs(s fleet.Store, calls []call, order []int) []string {
	answers := make([]string, len(calls))
	fs := make([]func(), len(calls))
	for i, c := range calls {
		f := c.prepare(s)
		fs[i] = func() { answers[i] = answer(f()) }
	}
	if g, ok := s.(gatherer); ok && len(calls) > 1 {
		g.Together(fs...)
		return answers
	}
	for i := range fs {
		if order != nil {
			i = order[i]
		}
		fs[i]()
	}
	return answers
}

// batch draws some things and does them together. Answers and contents must be those
// of memstore, which does one after the other, in some order: for the callers all of
// it happens at the same time. Where that of the calls will do it is taken for granted,
// so what can not be seen in contents may not depend on it.
func (w *walk) batch(t *rapid.T) {
	calls := w.gather(t)
	if len(calls) == 0 {
		return
	}
	first, got := run(w.stores[0], calls, nil), run(w.stores[1], calls, nil)
	why := w.compared(calls, first, got)
	if why == "" {
		w.past = append(w.past, deed{calls, nil, w.evened()})
		return
	}
	for order := range orders(len(calls)) {
		m := w.replayed()
		if answers := run(m, calls, order); !slices.Equal(answers, got) {
			continue
		}
		w.stores[0] = m
		if w.difference() == "" {
			w.past = append(w.past, deed{calls, order, w.evened()})
			return
		}
	}
	w.Fatalf("what was done together is what no order would do; in that of the calls:\n%s", why)
}

func (w *walk) gather(t *rapid.T) []call {
	actions := w.actions()
	names := rapid.SampledFrom(slices.Sorted(maps.Keys(actions)))
	w.gathering = true
	defer func() { w.gathering, w.gathered = false, nil }()
	for range rapid.IntRange(2, maxTogether).Draw(t, "together") {
		actions[names.Draw(t, "action")](t)
	}
	return w.gathered
}

// compared says how answers or contents differ; empty: they do not.
func (w *walk) compared(calls []call, want, got []string) string {
	d := w.difference()
	if slices.Equal(want, got) && d == "" {
		return ""
	}
	said := ""
	for i, c := range calls {
		said += fmt.Sprintf("%s: %s\n", c.what, got[i])
		if want[i] != got[i] {
			said += fmt.Sprintf("memstore: %s\n", want[i])
		}
	}
	return said + d
}

// evened takes away the marks that only one store has, and says whose: a device that was
// changed and changed back in one transaction need not be looked at, and memstore, which
// saw it in between, marks it.
func (w *walk) evened() map[string]bool {
	ids := map[string]bool{}
	first, _ := standing(w.stores[0])
	second, _ := standing(w.stores[1])
	for id := range first {
		ids[id] = first[id] != second[id]
	}
	for id := range second {
		ids[id] = first[id] != second[id]
	}
	for _, s := range w.stores {
		unmark(s, ids)
	}
	return ids
}

func unmark(s fleet.Store, ids map[string]bool) {
	_, looks := standing(s)
	looks = slices.DeleteFunc(looks, func(l fleet.Look) bool { return !ids[l.DeviceID] })
	if len(looks) > 0 {
		_ = s.Settle(ctx, looks, epoch) // if it can not, the marks will differ
	}
}

// replayed is memstore as it was before what is done now.
func (w *walk) replayed() fleet.Store {
	m := memstore.New()
	for _, s := range w.past {
		run(m, s.calls, s.order)
		unmark(m, s.unmarked)
	}
	return m
}

// orders yields every order of n things.
func orders(n int) func(yield func([]int) bool) {
	return func(yield func([]int) bool) {
		order := make([]int, n)
		var place func(at int, left []int) bool
		place = func(at int, left []int) bool {
			if at == n {
				return yield(slices.Clone(order))
			}
			for i, v := range left {
				order[at] = v
				if !place(at+1, slices.Concat(left[:i], left[i+1:])) {
					return false
				}
			}
			return true
		}
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		place(0, all)
	}
}
