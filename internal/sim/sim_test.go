package sim

import (
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

var (
	seed  = flag.Uint64("seed", 0, "run this seed alone, and say what happens")
	first = flag.Uint64("first", 1, "the first seed")
	seeds = flag.Uint64("seeds", 0, "how many seeds (0: 2000, fewer with the race detector)")
	long  = flag.Duration("long", 0, "go on for so long instead")
)

// TestRollouts lives through many histories.
func TestRollouts(t *testing.T) {
	if *seed != 0 {
		history(t, *seed, t.Logf)
		return
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one goroutine runs at a time anyway
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	n := *seeds
	if n == 0 {
		n = usual
	}
	calls, changes, took, began, seed := 0, 0, 0, time.Now(), *first
	for ; !t.Failed() && (seed < *first+n && *long == 0 || time.Since(began) < *long); seed++ {
		s := history(t, seed, nil)
		calls += s.Calls
		changes += s.Changes
		took += s.check.tookTurns
	}
	t.Logf("seeds %d to %d: %d calls of the store, %d changes, %d turns that devices took themselves", *first, seed-1, calls, changes, took)
	if seed-*first >= usual && took == 0 {
		t.Error("no device asked before its turn was given to it: that is not tested")
	}
}

func history(t *testing.T, seed uint64, trace func(string, ...any)) (s *Sim) {
	cryptotest.SetGlobalRandom(t, seed) // ids come from crypto/rand
	synctest.Test(t, func(t *testing.T) {
		var broken []string
		s, broken = Run(seed, trace)
		for _, b := range broken {
			t.Error(b)
		}
		if len(broken) > 0 {
			t.Errorf("again: go test ./internal/sim -run 'TestRollouts$' -v -seed %d", seed)
		}
	})
	return s
}

// TestASeedIsOneHistory repeats seeds, to the last step.
func TestASeedIsOneHistory(t *testing.T) {
	for seed := range uint64(5) {
		var told [2][]string
		for i := range told {
			history(t, seed+1, func(format string, args ...any) { told[i] = append(told[i], fmt.Sprintf(format, args...)) })
		}
		if len(told[0]) < 100 || !slices.Equal(told[0], told[1]) {
			at := 0
			for at < min(len(told[0]), len(told[1])) && told[0][at] == told[1][at] {
				at++
			}
			t.Errorf("seed %d: %d and %d steps, the same up to %d: %s", seed+1, len(told[0]), len(told[1]), at, told[0][max(0, at-1):min(at+2, len(told[0]))])
		}
	}
}
