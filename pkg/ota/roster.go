package ota

import "sort"

// rosterBlock is how many ids of a roster follow each other before one is written
// out whole.
const rosterBlock = 16

// Roster is a list of device ids in ascending order that takes few bytes for each: an
// id is kept as what it does not share with the one before it, so those of a million
// devices that are numbered take four megabytes.
type Roster struct {
	text   []byte // of each id: how long the shared part is, how long the rest, the rest
	blocks []int  // where each block begins in text
	last   string
	n      int
}

// Add appends an id, which comes after all that are there; of what ValidateDeviceID
// allows, a length fits into a byte.
func (r *Roster) Add(id string) {
	shared := 0
	if r.n%rosterBlock == 0 {
		r.blocks = append(r.blocks, len(r.text))
	} else {
		for shared < min(len(id), len(r.last)) && id[shared] == r.last[shared] {
			shared++
		}
	}
	r.text = append(r.text, byte(shared), byte(len(id)-shared))
	r.text = append(r.text, id[shared:]...)
	r.last = id
	r.n++
}

// Len is how many ids there are.
func (r *Roster) Len() int { return r.n }

// At returns an id by its place, counted from 0.
func (r *Roster) At(i int) string {
	c := r.from(i / rosterBlock)
	for range i%rosterBlock + 1 {
		c.Next()
	}
	return string(c.id)
}

// Find returns the place of an id.
func (r *Roster) Find(id string) (place int, ok bool) {
	block := sort.Search(len(r.blocks), func(i int) bool { return r.head(i) > id }) - 1
	if block < 0 {
		return 0, false
	}
	c := r.from(block)
	for place = block * rosterBlock; c.Next(); place++ {
		if string(c.id) >= id {
			return place, string(c.id) == id
		}
	}
	return 0, false
}

// head is the first id of a block.
func (r *Roster) head(block int) string {
	at := r.blocks[block]
	return string(r.text[at+2 : at+2+int(r.text[at+1])])
}

// Cursor goes through a roster from its start.
func (r *Roster) Cursor() *Cursor { return r.from(0) }

func (r *Roster) from(block int) *Cursor {
	if block >= len(r.blocks) {
		return &Cursor{}
	}
	return &Cursor{rest: r.text[r.blocks[block]:]}
}

// Cursor is a place in a roster: first before its first id.
type Cursor struct {
	rest []byte
	id   []byte
}

// Next goes on to the next id; false: there is none.
func (c *Cursor) Next() bool {
	if len(c.rest) == 0 {
		return false
	}
	shared, more := int(c.rest[0]), int(c.rest[1])
	c.id = append(c.id[:shared], c.rest[2:2+more]...)
	c.rest = c.rest[2+more:]
	return true
}

// ID is the id there.
func (c *Cursor) ID() string { return string(c.id) }
