package image

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
)

// gearReach is how many bytes the gear hash depends on: it has 64 bits and
// forgets one with each byte.
const gearReach = 64

// gear is the table of version 1; see the package comment. A change of it makes
// every chunk of every device unknown.
var gear = newGear()

func newGear() *[256]uint64 {
	var table [256]uint64
	for i := range table {
		sum := sha256.Sum256(append([]byte("otad gear 1"), byte(i)))
		table[i] = binary.BigEndian.Uint64(sum[:])
	}
	return &table
}

// Chunker cuts a stream into content-defined chunks. The same bytes and Params
// give the same chunks whatever the sizes of the reads, and a change in the
// middle moves only the chunks around it. It holds one buffer.
type Chunker struct {
	r          io.Reader
	rule       cutRule
	buf        []byte
	start, end int   // what of buf is read and not yet cut
	err        error // what r said last; its bytes come first
}

// chunkerBuffer is the least buffer: large reads keep the moves of its rest few.
const chunkerBuffer = 256 << 10

// maxEmptyReads is how many reads may bring neither a byte nor an error.
const maxEmptyReads = 100

// NewChunker returns a chunker of r, or ErrParams.
func NewChunker(r io.Reader, p Params) (*Chunker, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &Chunker{r: r, rule: newCutRule(p), buf: make([]byte, max(4*int(p.Max), chunkerBuffer))}, nil
}

// Next returns the next chunk, valid until the following call; io.EOF after the
// last; otherwise the error of the reader, in place of the chunks it prevents.
func (c *Chunker) Next() ([]byte, error) {
	if c.end-c.start < c.rule.max && c.err == nil {
		c.fill()
	}
	if c.err != nil && c.err != io.EOF {
		return nil, c.err
	}
	if c.start == c.end {
		return nil, io.EOF
	}
	rest := c.buf[c.start:c.end]
	n := c.rule.cut(rest)
	c.start += n
	return rest[:n:n], nil
}

// fill moves the rest to the front and reads until a largest chunk is there.
func (c *Chunker) fill() {
	c.end = copy(c.buf, c.buf[c.start:c.end])
	c.start = 0
	for empty := 0; c.end < c.rule.max && c.err == nil; {
		n, err := c.r.Read(c.buf[c.end:])
		if n < 0 || n > len(c.buf)-c.end {
			n, err = 0, fmt.Errorf("read of %d bytes returned %d", len(c.buf)-c.end, n)
		}
		c.end += n
		c.err = err
		if empty++; n > 0 {
			empty = 0
		}
		if empty == maxEmptyReads && c.err == nil {
			c.err = io.ErrNoProgress
		}
	}
}

// cutRule is Params made ready: a hash below the threshold ends the chunk,
// which is the same as leading zero bits.
type cutRule struct {
	min, turn, max int // strict up to turn bytes, loose after
	strict, loose  uint64
}

// normalization is by how many bits the rule is stricter before turn and looser
// after it, which draws sizes towards the average. Turning at the average itself
// would give a mean above it, since the loose rule needs some bytes too.
const normalization = 2

func newCutRule(p Params) cutRule {
	k := bits.Len32(p.Avg) - 1
	return cutRule{
		min: int(p.Min), turn: int(max(p.Min, p.Avg-p.Min)), max: int(p.Max),
		strict: 1 << (64 - k - normalization),
		loose:  1 << (64 - k + normalization),
	}
}

// cut returns the length of the first chunk of b. b holds at least a largest
// chunk or reaches to the end of the image.
func (r cutRule) cut(b []byte) int {
	if len(b) > r.max {
		b = b[:r.max]
	}
	if len(b) <= r.min {
		return len(b)
	}
	var h uint64
	table := gear
	for _, x := range b[r.min-gearReach : r.min] {
		h = h<<1 + table[x]
	}
	if h < r.strict {
		return r.min
	}
	middle := min(r.turn, len(b))
	for i, x := range b[r.min:middle] {
		if h = h<<1 + table[x]; h < r.strict {
			return r.min + i + 1
		}
	}
	for i, x := range b[middle:] {
		if h = h<<1 + table[x]; h < r.loose {
			return middle + i + 1
		}
	}
	return len(b)
}
