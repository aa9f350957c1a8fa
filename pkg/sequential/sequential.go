// Package sequential tests whether one group does worse than another while the
// data are still coming in, and may be asked as often as one likes.
//
// Members of both groups are compared in pairs of like with like; of each pair
// only counts whether the first did worse, the same or better. The hypothesis is
// that the difference of the shares (worse minus better) is at most a tolerance. The
// evidence against it is a nonnegative supermartingale under every such
// hypothesis, whatever the shares are and were: the capital of somebody who bets on
// each pair, averaged over how boldly he bets. By Ville's inequality (Étude
// critique de la notion de collectif, 1939) it ever reaches 1/alpha with a
// probability of at most alpha. So the error is bounded over all looks together,
// and neither a number of looks nor a size has to be fixed before.
//
// It is the mixture sequential probability ratio test of Robbins (1970), as Johari,
// Pekelis and Walsh (Always Valid Inference, arXiv 1512.04922) put it to use for
// comparisons, with the ratio replaced by the bets of Waudby-Smith and Ramdas
// (Estimating means of bounded random variables by betting, JRSS B 2024): these
// need no variance and no normal approximation, and hold for three pairs as for
// three million.
//
// What it asks for is that a pair does not know of the others: nobody stands in two
// pairs, and what was seen of a pair stays as it was seen.
package sequential

import "math"

// Pairs counts pairs by how the first of a pair did beside the second.
type Pairs struct{ Worse, Same, Better int }

// N is how many pairs there are.
func (p Pairs) N() int { return p.Worse + p.Same + p.Better }

// Difference is the share of the first that did worse minus that of those that did
// better, from -1 to 1; 0 without pairs. Of pairs in which each has something or not
// it is the difference of both shares.
func (p Pairs) Difference() float64 {
	if p.N() == 0 {
		return 0
	}
	return float64(p.Worse-p.Better) / float64(p.N())
}

// bets is how many stakes the evidence is averaged over: from smallest to largest,
// as parts of what may be lost at all, each so many times the one before.
const (
	bets     = 24
	smallest = 0.01
	largest  = 0.98
)

// Evidence is the natural logarithm of the evidence against the difference being
// at most the tolerance, from 0 to 1. A test with a false alarm rate of alpha
// alarms when it reaches -ln(alpha), at any look.
func (p Pairs) Evidence(tolerance float64) float64 {
	tolerance = min(max(tolerance, 0), 1)
	return p.against(tolerance)
}

// against is Evidence for any tolerance over -1.
func (p Pairs) against(tolerance float64) float64 {
	var logs [bets]float64
	top := math.Inf(-1)
	stake := smallest / (1 + tolerance)
	factor := math.Pow(largest/smallest, 1.0/(bets-1))
	for i := range logs {
		logs[i] = float64(p.Worse)*math.Log1p(stake*(1-tolerance)) +
			float64(p.Same)*math.Log1p(-stake*tolerance) +
			float64(p.Better)*math.Log1p(-stake*(1+tolerance))
		top = max(top, logs[i])
		stake *= factor
	}
	sum := 0.0
	for _, l := range logs {
		sum += math.Exp(l - top)
	}
	return top + math.Log(sum/bets)
}

// P is the p-value of the difference being at most the tolerance. It is always
// valid: it may be looked at after every pair.
func (p Pairs) P(tolerance float64) float64 { return min(1, math.Exp(-p.Evidence(tolerance))) }

// AtLeast is the difference that the pairs prove: the largest one that the test at
// alpha rejects, at every look together; -1 when they prove nothing.
func (p Pairs) AtLeast(alpha float64) float64 {
	low, high := -1.0, 1.0
	for range 40 {
		middle := (low + high) / 2
		if p.against(middle) >= -math.Log(alpha) {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

// AtMost is the difference that the pairs leave possible, as AtLeast the other way
// round; 1 when they exclude nothing.
func (p Pairs) AtMost(alpha float64) float64 {
	return -Pairs{Worse: p.Better, Same: p.Same, Better: p.Worse}.AtLeast(alpha)
}
