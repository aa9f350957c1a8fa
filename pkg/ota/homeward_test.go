package ota

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestHomewardProperty: everybody who changed goes back, once, and in reverse order;
// who never stood in line comes before.
func TestHomewardProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 40).Draw(t, "devices")
		var line, never []string
		changed := map[string]string{}
		var home Homeward
		for i := range n {
			id := fmt.Sprintf("d%02d", i)
			in := rapid.IntRange(0, 3).Draw(t, "which")
			if in != 0 {
				line = append(line, id)
			}
			if in == 1 {
				continue
			}
			changed[id] = rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "lane")
			home.Add(id, changed[id])
			if in == 0 {
				never = append(never, id)
			}
		}
		if len(line) > 0 { // who was given a later turn stands in it twice
			line = append(line, rapid.SliceOfN(rapid.SampledFrom(line), 0, 3).Draw(t, "again")...)
		}
		line = rapid.Permutation(line).Draw(t, "line")
		var want []string
		for _, id := range line {
			if _, ok := changed[id]; ok && !slices.Contains(want, id) {
				want = append(want, id)
			}
		}
		want = append(want, never...)
		slices.Reverse(want)
		var got []string
		stages, err := home.Arrange([]Stage{{Size: Size{Percent: 100}}}, slices.Values(line), func(c Candidate) error {
			if got = append(got, c.DeviceID); c.Lane != changed[c.DeviceID] {
				t.Fatalf("%+v, want lane %q", c, changed[c.DeviceID])
			}
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v\n got %v\nwant %v", err, got, want)
		}
		if home.Len() != len(changed) || stages[0].Target != len(changed) {
			t.Fatalf("%d of %d, target %d", home.Len(), len(changed), stages[0].Target)
		}
	})
}

func TestHomewardEndsWithAnError(t *testing.T) {
	var home Homeward
	for _, id := range []string{"a", "b", "c"} {
		home.Add(id, "")
	}
	full, given := errors.New("no room"), 0
	for _, line := range [][]string{nil, {"a", "b", "c"}} {
		given = 0
		_, err := home.Arrange(nil, slices.Values(line), func(Candidate) error {
			if given++; given == 2 {
				return full
			}
			return nil
		})
		if !errors.Is(err, full) || given != 2 {
			t.Errorf("line of %d: %d were given, %v", len(line), given, err)
		}
	}
}

// BenchmarkHomeward arranges a million devices that go back.
func BenchmarkHomeward(b *testing.B) {
	const n = 1_000_000
	b.ReportAllocs()
	for b.Loop() {
		var home Homeward
		for i := range n {
			home.Add(fmt.Sprintf("device-%07d", i), "")
		}
		line := func(yield func(string) bool) {
			for i := range n {
				if !yield(fmt.Sprintf("device-%07d", i*7919%n)) {
					return
				}
			}
		}
		if _, err := home.Arrange(nil, line, func(Candidate) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
