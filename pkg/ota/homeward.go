package ota

import (
	"iter"
	"slices"
)

// Homeward is the line of a revert: the devices that go back, at some 15 bytes each.
// The zero value is empty.
type Homeward struct {
	ids   Roster
	lanes []uint32 // of each, its place among the names
	names []string
	named map[string]uint32
}

// Add adds a device that goes back, with its lane. They come in ascending order of
// their ids.
func (h *Homeward) Add(deviceID, lane string) {
	name, ok := h.named[lane]
	if !ok {
		if h.named == nil {
			h.named = map[string]uint32{}
		}
		name = uint32(len(h.names))
		h.named[lane], h.names = name, append(h.names, lane)
	}
	h.ids.Add(deviceID)
	h.lanes = append(h.lanes, name)
}

// Len is how many there are.
func (h *Homeward) Len() int { return h.ids.Len() }

// Arrange calls give for each in the order in which they get their turn, and returns
// the revert's stages: who came last in the line of the rollout goes back first. Those
// that never stood in it come before. An error of give ends it.
func (h *Homeward) Arrange(stages []Stage, line iter.Seq[string], give func(Candidate) error) ([]Stage, error) {
	order, stood := make([]uint32, 0, h.Len()), newMarks(h.Len())
	for id := range line {
		i, ok := h.ids.Find(id)
		if n := uint32(i); ok && !stood.has(n) {
			stood.set(n)
			order = append(order, n)
		}
	}
	turn := func(n uint32) error {
		return give(Candidate{DeviceID: h.ids.At(int(n)), Lane: h.names[h.lanes[n]]})
	}
	for i := h.Len() - 1; i >= 0; i-- {
		if n := uint32(i); !stood.has(n) {
			if err := turn(n); err != nil {
				return nil, err
			}
		}
	}
	for _, n := range slices.Backward(order) {
		if err := turn(n); err != nil {
			return nil, err
		}
	}
	stages = slices.Clone(stages)
	for i := range stages {
		stages[i].Target = h.Len()
	}
	return stages, nil
}
