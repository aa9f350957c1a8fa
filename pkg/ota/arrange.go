package ota

import (
	"cmp"
	"slices"
)

// MaxSelectorStages is how many stages of a rollout may be selectors.
const MaxSelectorStages = 32

// Candidate is a device that a rollout may reach.
type Candidate struct {
	DeviceID string
	Bucket   uint64
	Stratum  string // its values of the strata, joined in any way that keeps them apart
	Lane     string // its value of what InFlight.Per names
	Meant    uint32 // bit i: the i-th stage that is a selector means it
	Path     uint32 // numbers what it passes through, as whoever made the candidate does
	Stage    int    // set by Arrange
}

// Arrange returns candidates in the order in which they get their turn, with
// their Stage (len(stages): none), and the stages with their Targets: of stage i,
// the number of candidates up to its last one.
//
// Without strata the order is that of the buckets. With strata the devices of
// each stratum are spread evenly over the line, the first of each at its very
// start: whatever part of the line a stage takes, it holds a share of every
// stratum, and the first one holds every stratum if it is large enough. Stages
// take devices from the start of the line in turn; those that a selector means
// leave their place in it.
func Arrange(stages []Stage, candidates []Candidate) ([]Stage, []Candidate) {
	line := lineUp(candidates)
	stages = slices.Clone(stages)
	arranged := make([]Candidate, 0, len(candidates))
	selectors := 0
	for i := range stages {
		s := &stages[i]
		take := func(at place) {
			c := candidates[at.index]
			c.Stage = i
			arranged = append(arranged, c)
		}
		if s.Size.Selector == "" {
			n := min(max(s.Size.Of(len(candidates))-len(arranged), 0), len(line))
			for _, at := range line[:n] {
				take(at)
			}
			line = line[n:]
		} else {
			left := line[:0]
			for _, at := range line {
				if candidates[at.index].Meant&(1<<selectors) != 0 {
					take(at)
				} else {
					left = append(left, at)
				}
			}
			line = left
			selectors++
		}
		s.Target = len(arranged)
	}
	for _, at := range line {
		c := candidates[at.index]
		c.Stage = len(stages)
		arranged = append(arranged, c)
	}
	return stages, arranged
}

// place is where a candidate stands on the line; a million of them are sorted.
type place struct {
	at     float64
	bucket uint64
	index  uint32 // into the candidates
}

// lineUp returns the places in order: the k-th of a stratum of n stands at k/n,
// and buckets order those that stand at the same point.
func lineUp(candidates []Candidate) []place {
	line := make([]place, len(candidates))
	for i, c := range candidates {
		line[i] = place{0, c.Bucket, uint32(i)}
	}
	inOrder := func(a, b place) int {
		switch {
		case a.at != b.at:
			return cmp.Compare(a.at, b.at)
		case a.bucket != b.bucket:
			return cmp.Compare(a.bucket, b.bucket)
		}
		return cmp.Compare(candidates[a.index].DeviceID, candidates[b.index].DeviceID)
	}
	slices.SortFunc(line, inOrder)
	size := map[string]int{}
	for _, c := range candidates {
		size[c.Stratum]++
	}
	if len(size) < 2 {
		return line
	}
	next := make(map[string]int, len(size))
	for i := range line {
		stratum := candidates[line[i].index].Stratum
		line[i].at = float64(next[stratum]) / float64(size[stratum])
		next[stratum]++
	}
	slices.SortFunc(line, inOrder)
	return line
}
