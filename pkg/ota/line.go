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
}

// Line is the devices of a rollout, to be put in the order in which they get their
// turn. It keeps about twenty bytes for each, and sorts them while they come in. It
// is for one goroutine.
type Line struct {
	ids     Roster
	kinds   []kind // of candidates; few
	numbers map[kind]uint32
	strata  []stratum
	named   map[string]int // strata
}

// kind is what many candidates have in common.
type kind struct {
	stratum    int
	lane       string
	meant, way uint32
}

// stratum is the places of its devices in runs of runPlaces, each in order once it is
// full.
type stratum struct {
	name string
	n    int
	runs [][]place
}

const runPlaces = 4096

// place is what of a candidate is not in its kind. Its index is that in the ids, so
// it orders devices as their ids do.
type place struct {
	bucket      uint64
	index, kind uint32
}

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(p.bucket, o.bucket), cmp.Compare(p.index, o.index))
}

// Add adds a candidate. Candidates come in ascending order of their ids.
func (l *Line) Add(c Candidate) {
	k := l.kind(kind{l.stratum(c.Stratum), c.Lane, c.Meant, c.Path})
	l.strata[l.kinds[k].stratum].add(place{c.Bucket, uint32(l.ids.Len()), k})
	l.ids.Add(c.DeviceID)
}

// Len is how many candidates there are.
func (l *Line) Len() int { return l.ids.Len() }

// Find returns the number of the candidate with this id, see Turn.Number.
func (l *Line) Find(deviceID string) (number int, ok bool) { return l.ids.Find(deviceID) }

func (l *Line) stratum(name string) int {
	i, ok := l.named[name]
	if !ok {
		if l.named == nil {
			l.named = map[string]int{}
		}
		i = len(l.strata)
		l.named[name], l.strata = i, append(l.strata, stratum{name: name})
	}
	return i
}

func (l *Line) kind(k kind) uint32 {
	if n := len(l.kinds); n > 0 && l.kinds[n-1] == k {
		return uint32(n - 1) // as often, like the one before
	}
	i, ok := l.numbers[k]
	if !ok {
		if l.numbers == nil {
			l.numbers = map[kind]uint32{}
		}
		i = uint32(len(l.kinds))
		l.numbers[k], l.kinds = i, append(l.kinds, k)
	}
	return i
}

func (s *stratum) add(p place) {
	s.n++
	last := len(s.runs) - 1
	switch {
	case last < 0:
		s.runs, last = [][]place{nil}, 0 // it may be a small one
	case len(s.runs[last]) == runPlaces:
		s.runs, last = append(s.runs, make([]place, 0, runPlaces)), last+1
	}
	s.runs[last] = append(s.runs[last], p)
	if len(s.runs[last]) == runPlaces {
		slices.SortFunc(s.runs[last], place.compare)
	}
}

// Turn is a candidate that has one.
type Turn struct {
	line  *Line
	place place
	Stage int // its index
}

// DeviceID is the id of the device.
func (t Turn) DeviceID() string { return t.line.ids.At(t.Number()) }

// Number tells the candidate from others of the line: from 0 to its Len.
func (t Turn) Number() int { return int(t.place.index) }

// Stratum is the candidate's.
func (t Turn) Stratum() string { return t.line.strata[t.kind().stratum].name }

// Lane is the candidate's.
func (t Turn) Lane() string { return t.kind().lane }

// Path is the candidate's.
func (t Turn) Path() uint32 { return t.kind().way }

func (t Turn) kind() kind { return t.line.kinds[t.place.kind] }

// Arrange calls give for each candidate that has a turn, in the order of the turns,
// and returns the stages with their Targets: of stage i, the number of candidates up
// to its last one. An error of give ends it.
//
// Without strata the order is that of the buckets. With strata the devices of
// each stratum are spread evenly over the line, the first of each at its very
// start: whatever part of the line a stage takes, it holds a share of every
// stratum, and the first one holds every stratum if it is large enough. Stages
// take devices from the start of the line in turn; those that a selector means
// leave their place in it.
func (l *Line) Arrange(stages []Stage, give func(Turn) error) ([]Stage, error) {
	stages = slices.Clone(stages)
	w, gone := l.walk(), newMarks(l.Len()) // gone: to a stage that is a selector
	given, selectors := 0, 0
	turn := func(p place, stage int) error {
		given++
		return give(Turn{l, p, stage})
	}
	for i := range stages {
		s := &stages[i]
		if s.Size.Selector == "" {
			for n := s.Size.Of(l.Len()); given < n; {
				p, ok := w.next()
				if !ok {
					break
				}
				if gone.has(p.index) {
					continue
				}
				if err := turn(p, i); err != nil {
					return nil, err
				}
			}
		} else {
			ahead := w.clone()
			for p, ok := ahead.next(); ok; p, ok = ahead.next() {
				if l.kinds[p.kind].meant&(1<<selectors) == 0 || gone.has(p.index) {
					continue
				}
				gone.set(p.index)
				if err := turn(p, i); err != nil {
					return nil, err
				}
			}
			selectors++
		}
		s.Target = given
	}
	return stages, nil
}

// walk goes along the line: a heap of the strata, that with the next place first.
type walk []queue

// queue is what is left of a stratum, in order: a heap of its runs.
type queue struct {
	runs    [][]place
	next, n int // the number of its first place, and how many it had
}

func (l *Line) walk() walk {
	w := make(walk, len(l.strata))
	for i, s := range l.strata {
		slices.SortFunc(s.runs[len(s.runs)-1], place.compare) // the others are in order
		w[i] = queue{runs: slices.Clone(s.runs), n: s.n}
		heapify(w[i].runs, earlierRun)
	}
	heapify(w, earlierQueue)
	return w
}

func (w walk) clone() walk {
	w = slices.Clone(w)
	for i := range w {
		w[i].runs = slices.Clone(w[i].runs)
	}
	return w
}

// at is where the first place of a queue stands on the line: the k-th of a stratum of
// n at k/n.
func (q queue) at() float64 { return float64(q.next) / float64(q.n) }

// earlierQueue orders places by where they stand, and those that stand at the same
// point as without strata.
func earlierQueue(a, b queue) bool {
	if at, other := a.at(), b.at(); at != other {
		return at < other
	}
	return earlierRun(a.runs[0], b.runs[0])
}

func earlierRun(a, b []place) bool { return a[0].compare(b[0]) < 0 }

// next takes the next place.
func (w *walk) next() (p place, ok bool) {
	if len(*w) == 0 {
		return place{}, false
	}
	q := &(*w)[0]
	p = q.runs[0][0]
	q.next++
	if q.runs[0] = q.runs[0][1:]; len(q.runs[0]) == 0 {
		q.runs = drop(q.runs)
	}
	sink(q.runs, 0, earlierRun)
	if len(q.runs) == 0 {
		*w = drop(*w)
	}
	sink(*w, 0, earlierQueue)
	return p, true
}

// drop takes the first out of a heap, which is to sink then.
func drop[T any](heap []T) []T {
	last := len(heap) - 1
	heap[0] = heap[last]
	return heap[:last]
}

func heapify[T any](heap []T, earlier func(a, b T) bool) {
	for i := len(heap)/2 - 1; i >= 0; i-- {
		sink(heap, i, earlier)
	}
}

// sink puts the element with this index where it belongs below itself.
func sink[T any](heap []T, i int, earlier func(a, b T) bool) {
	for {
		first := i
		for _, child := range []int{2*i + 1, 2*i + 2} {
			if child < len(heap) && earlier(heap[child], heap[first]) {
				first = child
			}
		}
		if first == i {
			return
		}
		heap[i], heap[first] = heap[first], heap[i]
		i = first
	}
}

// marks is a set of numbers.
type marks []uint64

func newMarks(n int) marks { return make(marks, n/64+1) }

func (m marks) set(i uint32) { m[i/64] |= 1 << (i % 64) }

func (m marks) has(i uint32) bool { return m[i/64]&(1<<(i%64)) != 0 }
