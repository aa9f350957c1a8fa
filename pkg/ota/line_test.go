package ota

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func candidates(n int, stratum func(int) string) []Candidate {
	list := make([]Candidate, n)
	for i := range list {
		id := fmt.Sprintf("d%04d", i)
		list[i] = Candidate{DeviceID: id, Bucket: Bucket("s", id), Stratum: stratum(i)}
	}
	return list
}

func TestArrangeIsByBucketAndReproducible(t *testing.T) {
	stages, _ := ParseStages("1%,10%,100%", Gate{}, 0)
	list := candidates(200, func(int) string { return "" })
	got, line := arrange(stages, list)
	if got[0].Target != 2 || got[1].Target != 20 || got[2].Target != 200 || stages[0].Target != 0 {
		t.Errorf("targets %+v", got)
	}
	if !slices.IsSortedFunc(line, func(a, b arranged) int { return int(min(1, a.Bucket/2)) - int(min(1, b.Bucket/2)) }) {
		t.Error("not by bucket")
	}
	again := candidates(200, func(int) string { return "" })
	slices.Reverse(again)
	if _, other := arrange(stages, again); !slices.Equal(line, other) {
		t.Error("another order of the same devices gives another result")
	}
}

// A canary of a few devices holds one of every hardware model, even of those of
// which there are few.
func TestArrangeSpreadsStrata(t *testing.T) {
	model := func(i int) string {
		switch {
		case i < 3:
			return "rare"
		case i < 103:
			return "some"
		}
		return "most"
	}
	stages, _ := ParseStages("1%,10%,100%", Gate{}, 0)
	_, list := arrange(stages, candidates(1000, model))
	share := func(stage int) map[string]int {
		n := map[string]int{}
		for _, c := range list {
			if c.Stage == stage {
				n[c.Stratum]++
			}
		}
		return n
	}
	if first := share(0); first["rare"] != 1 || first["some"] < 1 || first["most"] < 1 {
		t.Errorf("the first stage holds %v", first)
	}
	if second := share(1); second["some"] < 8 || second["some"] > 10 || second["most"] < 78 {
		t.Errorf("the second stage holds %v", second)
	}
}

func TestArrangeBySelectors(t *testing.T) {
	stages := []Stage{{Size: Size{Count: 2}}, {Size: Size{Selector: "lab"}}, {Size: Size{Selector: "office"}}, {Size: Size{Percent: 50}}, {Size: Size{Percent: 100}}}
	list := candidates(20, func(int) string { return "" })
	for i := range list {
		if i < 6 {
			list[i].Meant |= 1
		}
		if i >= 4 && i < 8 {
			list[i].Meant |= 2
		}
	}
	got, line := arrange(stages, list)
	meant := func(stage int) (lab, office, n int) {
		for _, c := range line {
			if c.Stage == stage {
				lab, office, n = lab+int(c.Meant&1), office+int(c.Meant>>1), n+1
			}
		}
		return lab, office, n
	}
	lab0, _, n0 := meant(0)
	if lab1, _, n1 := meant(1); n0 != 2 || lab1 != n1 || lab0+lab1 != 6 {
		t.Errorf("the lab: %d of %d, then %d of %d", lab0, n0, lab1, n1)
	}
	if lab2, office2, n2 := meant(2); lab2 != 0 || office2 != n2 {
		t.Errorf("the office: %d with %d of the lab, %d", office2, lab2, n2)
	}
	if got[3].Target != 10 || got[4].Target != 20 {
		t.Errorf("targets %+v", got)
	}
	for i, c := range line {
		if i > 0 && c.Stage < line[i-1].Stage || i >= got[c.Stage].Target {
			t.Fatalf("candidate %d is of stage %d", i, c.Stage)
		}
	}
}

// Every candidate of a plan that ends with 100 % has one place, within the
// bounds of its stage.
func TestArrangeProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		stages, candidates := arrange(m.r.Stages, m.devices)
		from := 0
		for i, s := range stages {
			if s.Target < from {
				t.Fatalf("stage %d ends at %d, before %d", i+1, s.Target, from)
			}
			for _, c := range candidates[from:s.Target] {
				if c.Stage != i {
					t.Fatalf("candidate of stage %d in stage %d", c.Stage+1, i+1)
				}
			}
			from = s.Target
		}
		if from != len(m.devices) {
			t.Fatalf("%d of %d have a stage", from, len(m.candidates))
		}
	})
}

// What a Line does without ever having a list of its devices is what arrangeAll does
// with one, for every fleet: of many or no strata, some of one device, with runs that
// are full and not, and stages of all kinds in any order.
func TestLineIsArrangeAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stages := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Stage {
			return Stage{Size: rapid.SampledFrom([]Size{
				{Percent: rapid.Float64Range(.1, 100).Draw(t, "percent")}, {Count: rapid.IntRange(1, 300).Draw(t, "count")}, {Selector: "some"},
			}).Draw(t, "size")}
		}), 1, 6).Draw(t, "stages")
		n := rapid.SampledFrom([]int{0, 1, 20, 300, runPlaces, 2*runPlaces + 5}).Draw(t, "devices")
		strata := rapid.SampledFrom([]int{1, 2, 7, 200}).Draw(t, "strata")
		alike := rapid.SampledFrom([]uint64{1, 1 << 58}).Draw(t, "alike") // many have the same bucket
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		list := candidates(n, func(i int) string { return strconv.Itoa(min(random.IntN(strata), random.IntN(strata))) })
		for i := range list {
			list[i].Bucket /= alike
			list[i].Meant, list[i].Path, list[i].Lane = random.Uint32N(8), random.Uint32N(3), strconv.Itoa(random.IntN(3))
		}
		wantStages, want := arrangeAll(stages, list)
		got, line := arrange(stages, list)
		if diff := gocmp.Diff(wantStages, got); diff != "" {
			t.Fatalf("stages (-want +got):\n%s", diff)
		}
		if want = want[:got[len(got)-1].Target]; !slices.Equal(want, line) {
			t.Fatalf("%d turns are not the %d there should be", len(line), len(want))
		}
	})
}

// An error ends it: nobody else is given a turn.
func TestArrangeEnds(t *testing.T) {
	for _, size := range []Size{{Percent: 100}, {Selector: "all"}} {
		var l Line
		for _, c := range candidates(5, func(int) string { return "" }) {
			c.Meant = 1
			l.Add(c)
		}
		n, enough := 0, errors.New("enough")
		_, err := l.Arrange([]Stage{{Size: size}}, func(Turn) error {
			if n++; n == 2 {
				return enough
			}
			return nil
		})
		if n != 2 || !errors.Is(err, enough) {
			t.Errorf("%s: %d turns, %v", size, n, err)
		}
	}
}

func TestRoster(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfDistinct(rapid.OneOf(rapid.StringMatching(`[a-b0-1]{1,6}`), rapid.StringMatching(`[0-9A-Za-z:_-]{100,128}`)), rapid.ID[string]).Draw(t, "ids")
		slices.Sort(ids)
		var r Roster
		for _, id := range ids {
			r.Add(id)
		}
		c := r.Cursor()
		for i, id := range ids {
			if !c.Next() || c.ID() != id || r.At(i) != id {
				t.Fatalf("the id %d is %q, then %q, not %q", i, c.ID(), r.At(i), id)
			}
			if at, ok := r.Find(id); !ok || at != i {
				t.Fatalf("%q is at %d, %v, not %d", id, at, ok, i)
			}
		}
		if c.Next() || r.Len() != len(ids) {
			t.Fatalf("%d ids, want %d", r.Len(), len(ids))
		}
		other := rapid.StringMatching(`[a-b0-1]{1,6}`).Draw(t, "other")
		if _, ok := r.Find(other); ok != slices.Contains(ids, other) {
			t.Fatalf("%q is there: %v", other, ok)
		}
	})
}

// numbered ids take few bytes, which is why they are kept so.
func TestRosterIsSmall(t *testing.T) {
	var r Roster
	for i := range 10_000 {
		r.Add(fmt.Sprintf("device-%07d", i))
	}
	if n := len(r.text) + 8*len(r.blocks); n > 50_000 {
		t.Errorf("%d bytes for 10,000 ids", n)
	}
}

func BenchmarkLine(b *testing.B) {
	stages, _ := ParseStages("1%,10%,50%,100%", Gate{}, 0)
	list := candidates(1_000_000, func(i int) string { return []string{"a", "b", "c"}[i%3] })
	for b.Loop() {
		var l Line
		for _, c := range list {
			l.Add(c)
		}
		if _, err := l.Arrange(stages, func(Turn) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// arrange is Line.Arrange of candidates in any order, as a list of the turns.
func arrange(stages []Stage, list []Candidate) ([]Stage, []arranged) {
	list = slices.SortedFunc(slices.Values(list), func(a, b Candidate) int { return cmp.Compare(a.DeviceID, b.DeviceID) })
	var l Line
	for _, c := range list {
		l.Add(c)
	}
	var turns []arranged
	stages, err := l.Arrange(stages, func(t Turn) error {
		c := list[t.Number()]
		if i, ok := l.Find(t.DeviceID()); !ok || i != t.Number() {
			panic("the line does not find " + t.DeviceID())
		}
		c.DeviceID, c.Stratum, c.Lane, c.Path = t.DeviceID(), t.Stratum(), t.Lane(), t.Path()
		turns = append(turns, arranged{c, t.Stage})
		return nil
	})
	if err != nil {
		panic(err) // it gave none
	}
	return stages, turns
}

// arranged is a candidate with the index of the stage that it was given; the number
// of stages: none.
type arranged struct {
	Candidate
	Stage int
}

// arrangeAll is what Line.Arrange does, of a list of all candidates: the same in as
// few words as can be.
func arrangeAll(stages []Stage, candidates []Candidate) ([]Stage, []arranged) {
	line := lineUp(candidates)
	stages = slices.Clone(stages)
	list := make([]arranged, 0, len(candidates))
	selectors := 0
	for i := range stages {
		s := &stages[i]
		take := func(at spot) {
			list = append(list, arranged{candidates[at.index], i})
		}
		if s.Size.Selector == "" {
			n := min(max(s.Size.Of(len(candidates))-len(list), 0), len(line))
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
		s.Target = len(list)
	}
	for _, at := range line {
		list = append(list, arranged{candidates[at.index], len(stages)})
	}
	return stages, list
}

// spot is where a candidate stands on the line; the first sort is by the buckets, the second by at.
type spot struct {
	at     float64
	bucket uint64
	index  uint32 // into the candidates
}

// lineUp returns the places in order: the k-th of a stratum of n stands at k/n,
// and buckets order those that stand at the same point.
func lineUp(candidates []Candidate) []spot {
	line := make([]spot, len(candidates))
	for i, c := range candidates {
		line[i] = spot{0, c.Bucket, uint32(i)}
	}
	inOrder := func(a, b spot) int {
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
