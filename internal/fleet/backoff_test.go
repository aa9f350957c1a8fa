package fleet

import (
	"fmt"
	"testing"
	"time"
)

// However many names and addresses try, the tables stay small; what is over goes first.
func TestTablesOfTriesAreBounded(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	tries, refusals := newTries(clock), newRefusals(clock)
	for i := range maxFailing + 100 {
		who := try{address: fmt.Sprint("a", i), user: "d"}
		tries.begin(who)
		refusals.note(who.address)
	}
	if u, a, r := len(tries.users), len(tries.addresses), len(refusals.of); u != maxFailing || a != maxFailing || r != maxFailing {
		t.Errorf("%d users, %d addresses, %d refusals; want %d of each", u, a, r, maxFailing)
	}
	now = now.Add(FailureMemory)
	tries.begin(try{"new", "d"})
	refusals.note("new")
	if u, a, r := len(tries.users), len(tries.addresses), len(refusals.of); u != 1 || a != 1 || r != 1 {
		t.Errorf("%d users, %d addresses, %d refusals are left; want 1 of each", u, a, r)
	}
}
