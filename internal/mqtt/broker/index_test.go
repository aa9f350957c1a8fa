package broker

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/otad/otad/internal/mqtt"
)

// TestIndex holds what the index finds against each filter by itself, while
// subscriptions come and go.
func TestIndex(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	path := func(levels ...string) string {
		parts := make([]string, 1+random.IntN(4))
		for i := range parts {
			parts[i] = levels[random.IntN(len(levels))]
		}
		return strings.Join(parts, "/")
	}
	x := newIndex()
	held := map[string]*subscription{}
	for range 5_000 {
		filter := path("a", "b", "$s", "", "+")
		if random.IntN(4) == 0 {
			filter = strings.TrimPrefix(filter+"/#", "/")
		}
		if s := held[filter]; s != nil {
			x.remove(s)
			delete(held, filter)
		} else if filter != "" {
			held[filter] = &subscription{filter: filter}
			x.add(held[filter])
		}
		topic := "a/" + path("a", "b", "$s", "")
		if random.IntN(2) == 0 {
			topic = path("$s", "a", "b")
		}
		var got, want []string
		x.match(topic, func(e *entry) {
			for _, s := range e.subs {
				got = append(got, s.filter)
			}
		})
		for filter := range held {
			if mqtt.Matches(filter, topic) {
				want = append(want, filter)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%q matches %q, want %q", topic, got, want)
		}
	}
	for _, s := range held {
		x.remove(s)
	}
	if len(x.exact) > 0 || !x.root.unused() {
		t.Error("something is left of subscriptions that are gone")
	}
}
