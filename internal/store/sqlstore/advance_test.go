package sqlstore

import "testing"

// TestGrewMuch: a database is told when a rollout has given so many turns, and then each
// time that they are several times as many, in whatever steps they are given.
func TestGrewMuch(t *testing.T) {
	for _, c := range []struct {
		from, to int
		want     bool
	}{
		{0, 0, false}, {0, manyRows - 1, false}, {0, manyRows, true}, {manyRows - 1, manyRows, true},
		{manyRows, manyRows, false}, {manyRows, manyRows + 1, false}, {manyRows, manyTimes*manyRows - 1, false},
		{manyRows, manyTimes * manyRows, true}, {manyTimes*manyRows - 1, manyTimes * manyRows, true}, {manyTimes * manyRows, manyTimes*manyRows + 1, false},
		{0, 1_000_000_000, true}, {manyTimes * manyTimes * manyRows, manyTimes*manyTimes*manyTimes*manyRows - 1, false},
	} {
		if got := grewMuch(c.from, c.to); got != c.want {
			t.Errorf("from %d to %d: %v", c.from, c.to, got)
		}
	}
	for _, step := range []int{1000, manyRows, 7777} {
		told := 0
		for at := 0; at < 1_000_000; at += step {
			if grewMuch(at, at+step) {
				told++
			}
		}
		if told != 3 { // 10,000, 80,000 and 640,000
			t.Errorf("in steps of %d: told %d times", step, told)
		}
	}
}
