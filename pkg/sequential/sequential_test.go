package sequential

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// TestNobodyGetsRichUnderTheNull is what Ville's inequality asks for: whatever
// happened, the next pair raises the evidence by nothing on average, if the
// difference is within the tolerance.
func TestNobodyGetsRichUnderTheNull(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Pairs{
			Worse: rapid.IntRange(0, 300).Draw(t, "worse"), Same: rapid.IntRange(0, 3000).Draw(t, "same"), Better: rapid.IntRange(0, 300).Draw(t, "better"),
		}
		tolerance := rapid.Float64Range(0, 1).Draw(t, "tolerance")
		better := rapid.Float64Range(0, 1).Draw(t, "P(better)")
		worse := min(1-better, better+tolerance) * rapid.SampledFrom([]float64{1, 1, 0.5}).Draw(t, "part")
		now := p.Evidence(tolerance)
		next := worse*math.Exp(Pairs{p.Worse + 1, p.Same, p.Better}.Evidence(tolerance)-now) +
			(1-worse-better)*math.Exp(Pairs{p.Worse, p.Same + 1, p.Better}.Evidence(tolerance)-now) +
			better*math.Exp(Pairs{p.Worse, p.Same, p.Better + 1}.Evidence(tolerance)-now)
		if next > 1+1e-9 {
			t.Fatalf("%+v at %g: worse %g, better %g multiply the evidence by %g", p, tolerance, worse, better, next)
		}
	})
}

func TestBeforeTheFirstPairThereIsNoEvidence(t *testing.T) {
	if e := (Pairs{}).Evidence(0.1); math.Abs(e) > 1e-12 {
		t.Errorf("%g", e)
	}
	if p := (Pairs{}).P(0.1); math.Abs(p-1) > 1e-12 {
		t.Errorf("p %g", p)
	}
	if low, high := (Pairs{}).AtLeast(0.05), (Pairs{}).AtMost(0.05); low > -0.99 || high < 0.99 {
		t.Errorf("from %g to %g", low, high)
	}
	if d := (Pairs{}).Difference(); d != 0 {
		t.Errorf("difference %g", d)
	}
}

// alarms is the probability, without any simulation, that a test that looks after
// each of n pairs ever alarms.
func alarms(worse, better, tolerance, alpha float64, n int) float64 {
	at := map[Pairs]float64{{}: 1}
	alarmed := 0.0
	for range n {
		next := make(map[Pairs]float64, len(at)+2*n)
		for p, weight := range at {
			if weight < 1e-9 {
				alarmed += weight // too little to follow: counted as the worst
				continue
			}
			for _, way := range []struct {
				to   Pairs
				prob float64
			}{
				{Pairs{p.Worse + 1, p.Same, p.Better}, worse},
				{Pairs{p.Worse, p.Same + 1, p.Better}, 1 - worse - better},
				{Pairs{p.Worse, p.Same, p.Better + 1}, better},
			} {
				switch {
				case way.prob == 0:
				case way.to.Evidence(tolerance) >= -math.Log(alpha):
					alarmed += weight * way.prob
				default:
					next[way.to] += weight * way.prob
				}
			}
		}
		at = next
	}
	return alarmed
}

// TestFalseAlarmsOverAllLooks: at the edge of the hypothesis, where false alarms
// are the most likely, 100 looks together alarm with at most alpha.
func TestFalseAlarmsOverAllLooks(t *testing.T) {
	for _, c := range []struct{ worse, better, tolerance, alpha float64 }{
		{0.5, 0.5, 0, 0.05}, {0.02, 0.02, 0, 0.05}, {0.03, 0.02, 0.01, 0.05}, {0.15, 0.05, 0.1, 0.05}, {0.2, 0, 0.2, 0.05}, {0.3, 0.3, 0, 0.2}, {0.11, 0.01, 0.1, 0.01},
	} {
		if got := alarms(c.worse, c.better, c.tolerance, c.alpha, 100); got > c.alpha {
			t.Errorf("%+v: a false alarm with %.4f", c, got)
		}
	}
}

// TestPower: what the test finds, and how soon.
func TestPower(t *testing.T) {
	for _, c := range []struct {
		name              string
		first, second     float64 // shares that have it
		tolerance         float64
		pairs             int
		wanted, atTheMost float64
	}{
		{"everybody crashes", 1, 0, 0.01, 10, 1, 1},
		{"half crash", 0.5, 0.01, 0.01, 25, 0.8, 1},
		{"a fifth crash, of the others one in a hundred", 0.2, 0.01, 0.01, 90, 0.8, 1},
		{"a tenth reboot, of the others too", 0.1, 0.1, 0.01, 150, 0, 0.05},
	} {
		worse, better := c.first*(1-c.second), c.second*(1-c.first)
		if got := alarms(worse, better, c.tolerance, 0.05, c.pairs); got < c.wanted || got > c.atTheMost {
			t.Errorf("%s: found with %.3f within %d pairs", c.name, got, c.pairs)
		}
	}
}

// TestStreams looks at long streams, which can not be counted out: 1,000 streams
// of 4,000 pairs, a look after each.
func TestStreams(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	stream := func(first, second, tolerance float64) (alarmed bool) {
		var p Pairs
		for range 4000 {
			a, b := rng.Float64() < first, rng.Float64() < second
			switch {
			case a == b:
				p.Same++
				continue // no more evidence than before
			case a:
				p.Worse++
			default:
				p.Better++
			}
			if p.Evidence(tolerance) >= -math.Log(0.05) {
				return true
			}
		}
		return false
	}
	share := func(first, second, tolerance float64, n int) float64 {
		alarmed := 0
		for range n {
			if stream(first, second, tolerance) {
				alarmed++
			}
		}
		return float64(alarmed) / float64(n)
	}
	if got := share(0.05, 0.05, 0, 1000); got > 0.05 {
		t.Errorf("null: %.3f of the streams alarm", got)
	}
	if got := share(0.05, 0.02, 0.005, 200); got < 0.9 {
		t.Errorf("5 %% instead of 2 %%: %.3f of the streams alarm", got)
	}
}

func TestBoundsHoldTheDifference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Pairs{
			Worse: rapid.IntRange(0, 500).Draw(t, "worse"), Same: rapid.IntRange(0, 500).Draw(t, "same"), Better: rapid.IntRange(0, 500).Draw(t, "better"),
		}
		alpha := rapid.Float64Range(0.001, 0.3).Draw(t, "alpha")
		low, high := p.AtLeast(alpha), p.AtMost(alpha)
		if d := p.Difference(); low > d || high < d {
			t.Fatalf("%+v: %g is not from %g to %g", p, d, low, high)
		}
		if low > 0 != (p.Evidence(0) >= -math.Log(alpha)) && math.Abs(low) > 1e-6 {
			t.Fatalf("%+v: at least %g, evidence %g", p, low, p.Evidence(0))
		}
		more := Pairs{p.Worse + 1, p.Same, p.Better}
		if more.Evidence(0.1) < p.Evidence(0.1) || p.Evidence(0.2) > p.Evidence(0.1)+1e-9 {
			t.Fatalf("%+v: evidence is not monotone", p)
		}
	})
}

func TestToleranceIsAShare(t *testing.T) {
	p := Pairs{Worse: 50}
	if p.Evidence(-3) != p.Evidence(0) || p.Evidence(3) != p.Evidence(1) || p.Evidence(1) > 0 {
		t.Errorf("%g %g %g %g", p.Evidence(-3), p.Evidence(0), p.Evidence(3), p.Evidence(1))
	}
}
