package ota

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseRate(t *testing.T) {
	for s, want := range map[string]Rate{
		"100/m": {PerMinute: 100}, "2/s": {PerMinute: 120}, "6/h": {PerMinute: 0.1}, "144/d": {PerMinute: 0.1},
		"10/m x2 per 50 succeeded max 1000/m": {PerMinute: 10, Factor: 2, Each: 50, Of: RateBySucceeded, Max: 1000},
		"1/s x1.5 per 1 notified max 2/s":     {PerMinute: 60, Factor: 1.5, Each: 1, Of: RateByNotified, Max: 120},
	} {
		r, err := ParseRate(s)
		if err != nil || cmp.Diff(want, r) != "" {
			t.Errorf("%s: %+v, %v", s, r, err)
		}
		if again, err := ParseRate(r.String()); err != nil || again != r {
			t.Errorf("%s reads back from %q as %+v, %v", s, r, again, err)
		}
	}
	for _, s := range []string{
		"", "0/m", "-1/m", "NaN/m", "Inf/m", "10", "10/y", "x/m", "0.5/d", "1e12/m", "+1/m", "0x1p3/m", "1_0/m", "1/m 2/m", "10/m x1 per 5 notified max 20/m",
		"10/m x11 per 5 notified max 20/m", "10/m x2 per 0 notified max 20/m", "10/m x2 per 5 others max 20/m", "10/m x2 per 5 notified max 5/m",
		"10/m 2 per 5 notified max 20/m", "10/m x2 by 5 notified max 20/m", "0/m x2 per 5 notified max 20/m",
	} {
		if r, err := ParseRate(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q is read as %+v, %v", s, r, err)
		}
	}
}

func TestRateGrows(t *testing.T) {
	r := Rate{PerMinute: 10, Factor: 2, Each: 50, Of: RateBySucceeded, Max: 100}
	for succeeded, want := range map[int]float64{0: 10, 49: 10, 50: 20, 100: 40, 150: 80, 200: 100, 1 << 30: 100} {
		if got := r.At(counts(7, 0, succeeded, 90)); got != want {
			t.Errorf("%g a minute after %d, want %g", got, succeeded, want)
		}
	}
	r.Of = RateByNotified
	if got := r.At(counts(20, 20, 5, 5)); got != 20 {
		t.Errorf("%g a minute after 50 notified", got)
	}
}

// A device that is asked for when the rate says so is made then: none is lost to
// rounding, and none comes early.
func TestPaceKeepsTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rate{PerMinute: math.Exp(rapid.Float64Range(math.Log(MinRate), math.Log(1e6)).Draw(t, "log rate"))}
		now, at, made := t0, t0, 0
		for range 50 {
			n, next, again := r.pace(Counts{}, at, now, 1<<40)
			made += n
			at = next.Truncate(time.Microsecond) // as a store keeps it
			if !again.After(now) {
				t.Fatalf("again at %v, which is not after %v", again, now)
			}
			now = again
		}
		elapsed := now.Sub(t0).Minutes()
		if least := math.Floor(elapsed*r.PerMinute*0.99) - 1; float64(made) < least {
			t.Fatalf("%d made in %.3f minutes at %g a minute", made, elapsed, r.PerMinute)
		}
		if most := math.Ceil(r.PerMinute/60) + elapsed*r.PerMinute + 1; float64(made) > most*1.001 {
			t.Fatalf("%d made in %.3f minutes at %g a minute", made, elapsed, r.PerMinute)
		}
	})
}

func TestTermsValidate(t *testing.T) {
	good := Terms{
		Rate: Rate{PerMinute: 5}, InFlight: InFlight{Max: 50, Per: "site", PerMax: 5}, OnPause: PauseHoldBeforeInstall, Strata: []string{"hardware", "site"},
		Timers: Timers{Claim: MaxClaim, Fetch: MaxTimeout, Install: MinTimeout}, Retry: Retry{Attempts: MaxAttempts, Backoff: MaxBackoff, On: []Class{ClassRejected}},
	}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]Terms{
		"rate":             {Rate: Rate{PerMinute: -1}},
		"rate without":     {Rate: Rate{Factor: 2}},
		"in flight":        {InFlight: InFlight{Max: -1}},
		"too many":         {InFlight: InFlight{Max: MaxInFlight + 1}},
		"per without max":  {InFlight: InFlight{Per: "site"}},
		"max without per":  {InFlight: InFlight{PerMax: 1}},
		"per a bad key":    {InFlight: InFlight{Per: "a b", PerMax: 1}},
		"claim":            {Timers: Timers{Claim: MaxClaim + 1}},
		"short fetch":      {Timers: Timers{Fetch: time.Second}},
		"long reboot":      {Timers: Timers{Reboot: MaxTimeout + 1}},
		"attempts":         {Retry: Retry{Attempts: MaxAttempts + 1}},
		"backoff":          {Retry: Retry{Attempts: 2, Backoff: MaxBackoff + 1}},
		"negative backoff": {Retry: Retry{Attempts: 2, Backoff: -1}},
		"backoff of none":  {Retry: Retry{Backoff: time.Hour}},
		"retry class":      {Retry: Retry{Attempts: 2, On: []Class{ClassSucceeded}}},
		"stratum twice":    {Strata: []string{"a", "a"}},
		"bad stratum":      {Strata: []string{"a/b"}},
		"strata":           {Strata: []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"}},
		"pause":            {OnPause: "stop"},
	} {
		if err := bad.validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
