package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// DigestSize is the length of the digest of a chunk, in bytes.
const DigestSize = 16

// Chunk is one piece of an image: how long it is in the object and raw, and the
// first 16 bytes of the sha256 of its raw bytes.
type Chunk struct {
	Compressed, Raw uint32 // bytes
	Digest          [DigestSize]byte
}

// chunkDigest is the digest of a chunk with these raw bytes.
func chunkDigest(raw []byte) [DigestSize]byte {
	sum := sha256.Sum256(raw)
	return [DigestSize]byte(sum[:])
}

// Index says what an image consists of. Those from ParseIndex and Encode are
// valid and answer Span at once; they are read-only and safe for concurrent
// use. A hand-made one is checked by MarshalBinary and Verify.
type Index struct {
	RawSize   int64    // bytes
	RawDigest [32]byte // sha256 of the raw image
	Params    Params
	Chunks    []Chunk

	marks []mark // offsets of every markEvery-th chunk, from the first
}

// mark is a place in the image, raw and in the object.
type mark struct{ raw, object int64 }

// markEvery trades memory for the length of the walk in Span: 16 bytes for 64
// chunks of 24 bytes each.
const markEvery = 64

// Layout of an encoded index; see the package comment.
const (
	magic         = "otadidx\x01"
	headerBytes   = 64
	trailerBytes  = 4
	minEntryBytes = 1 + 1 + DigestSize
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MarshalBinary encodes the index, or returns ErrIndex or ErrLimit if it is not
// one that ParseIndex accepts.
func (ix *Index) MarshalBinary() ([]byte, error) {
	if err := ix.validate(); err != nil {
		return nil, err
	}
	size := ix.encodedSize()
	if size > MaxIndexBytes {
		return nil, indexTooLarge(len(ix.Chunks))
	}
	b := append(make([]byte, 0, size), magic...)
	b = binary.BigEndian.AppendUint64(b, uint64(ix.RawSize))
	b = append(b, ix.RawDigest[:]...)
	for _, v := range [...]uint32{ix.Params.Min, ix.Params.Avg, ix.Params.Max, uint32(len(ix.Chunks))} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	for _, c := range ix.Chunks {
		b = binary.AppendUvarint(b, uint64(c.Compressed))
		b = binary.AppendUvarint(b, uint64(c.Raw))
		b = append(b, c.Digest[:]...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

// ParseIndex decodes an index. It returns ErrIndex unless b is exactly what
// MarshalBinary makes of the result: every count, size and sum is checked. It
// keeps nothing of b and allocates no more than len(b) justifies.
func ParseIndex(b []byte) (*Index, error) {
	if len(b) < headerBytes+minEntryBytes+trailerBytes || len(b) > MaxIndexBytes {
		return nil, fmt.Errorf("%w: %d bytes: want %d to %d", ErrIndex, len(b), headerBytes+minEntryBytes+trailerBytes, MaxIndexBytes)
	}
	if string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: no index of version 1: it begins with %q", ErrIndex, b[:len(magic)])
	}
	body, trailer := b[:len(b)-trailerBytes], b[len(b)-trailerBytes:]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(trailer) {
		return nil, fmt.Errorf("%w: checksum mismatch: the bytes are damaged, fetch them again", ErrIndex)
	}
	count := int64(binary.BigEndian.Uint32(b[60:]))
	if count > int64(len(body)-headerBytes)/minEntryBytes {
		return nil, fmt.Errorf("%w: %d chunks in %d bytes", ErrIndex, count, len(b))
	}
	ix := &Index{
		RawSize:   int64(binary.BigEndian.Uint64(b[8:])),
		RawDigest: [32]byte(b[16:48]),
		Params: Params{
			Min: binary.BigEndian.Uint32(b[48:]),
			Avg: binary.BigEndian.Uint32(b[52:]),
			Max: binary.BigEndian.Uint32(b[56:]),
		},
		Chunks: make([]Chunk, count),
	}
	if err := parseChunks(body[headerBytes:], ix.Chunks); err != nil {
		return nil, err
	}
	if err := ix.validate(); err != nil {
		return nil, err
	}
	ix.seal()
	return ix, nil
}

// parseChunks fills chunks from b, which must hold them and nothing more.
func parseChunks(b []byte, chunks []Chunk) error {
	var err error
	for i := range chunks {
		c := &chunks[i]
		if c.Compressed, b, err = cutUvarint(b); err != nil {
			return fmt.Errorf("%w: chunk %d: compressed length: %w", ErrIndex, i, err)
		}
		if c.Raw, b, err = cutUvarint(b); err != nil {
			return fmt.Errorf("%w: chunk %d: raw length: %w", ErrIndex, i, err)
		}
		if len(b) < DigestSize {
			return fmt.Errorf("%w: chunk %d: cut short", ErrIndex, i)
		}
		c.Digest, b = [DigestSize]byte(b), b[DigestSize:]
	}
	if len(b) > 0 {
		return fmt.Errorf("%w: %d bytes after the last chunk", ErrIndex, len(b))
	}
	return nil
}

var (
	errVarint    = errors.New("not a 32-bit uvarint")
	errCanonical = errors.New("not the shortest uvarint")
)

// cutUvarint takes a length off the front of b, in its shortest form only.
func cutUvarint(b []byte) (v uint32, rest []byte, err error) {
	x, n := binary.Uvarint(b)
	if n <= 0 || x > 1<<32-1 {
		return 0, nil, errVarint
	}
	if n != uvarintSize(uint32(x)) {
		return 0, nil, errCanonical
	}
	return uint32(x), b[n:], nil
}

// uvarintSize is the length of v as a uvarint.
func uvarintSize(v uint32) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// validate checks every value and sum.
func (ix *Index) validate() error {
	if err := ix.Params.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrIndex, err)
	}
	if ix.RawSize < 1 || ix.RawSize > MaxImageBytes {
		return fmt.Errorf("%w: image of %d bytes: want 1 to %d", ErrIndex, ix.RawSize, MaxImageBytes)
	}
	var end mark
	for i, c := range ix.Chunks {
		last := i == len(ix.Chunks)-1
		switch {
		case c.Raw == 0 || c.Raw > ix.Params.Max || c.Raw < ix.Params.Min && !last:
			return fmt.Errorf("%w: chunk %d has %d raw bytes: want %d to %d", ErrIndex, i, c.Raw, ix.Params.Min, ix.Params.Max)
		case c.Compressed < minFrameBytes || c.Compressed > c.Raw+MaxChunkOverhead:
			return fmt.Errorf("%w: chunk %d has %d bytes in the object: want %d to %d", ErrIndex, i, c.Compressed, minFrameBytes, c.Raw+MaxChunkOverhead)
		}
		end.add(c)
	}
	if end.raw != ix.RawSize {
		return fmt.Errorf("%w: the chunks have %d raw bytes, the image %d", ErrIndex, end.raw, ix.RawSize)
	}
	if end.object > MaxImageBytes {
		return fmt.Errorf("%w: object of %d bytes: at most %d", ErrIndex, end.object, MaxImageBytes)
	}
	return nil
}

// encodedSize is the length of the encoded index.
func (ix *Index) encodedSize() int {
	size := headerBytes + trailerBytes
	for _, c := range ix.Chunks {
		size += c.encodedSize()
	}
	return size
}

func (c Chunk) encodedSize() int {
	return uvarintSize(c.Compressed) + uvarintSize(c.Raw) + DigestSize
}

func indexTooLarge(chunks int) error {
	return fmt.Errorf("%w: %d chunks need an index of over %d bytes: use a larger average chunk", ErrLimit, chunks, MaxIndexBytes)
}

func (m *mark) add(c Chunk) {
	m.raw += int64(c.Raw)
	m.object += int64(c.Compressed)
}

// seal records the marks; Chunks must not change afterwards.
func (ix *Index) seal() {
	ix.marks = make([]mark, 0, len(ix.Chunks)/markEvery+1)
	var at mark
	for i, c := range ix.Chunks {
		if i%markEvery == 0 {
			ix.marks = append(ix.marks, at)
		}
		at.add(c)
	}
	if len(ix.Chunks)%markEvery == 0 {
		ix.marks = append(ix.marks, at)
	}
}

// Span returns where a chunk begins in the raw image and in the object; with
// chunk == len(Chunks), where both end. It panics if chunk is outside 0 to
// len(Chunks). It takes at most 63 additions, or, on a hand-made index, as many
// as there are chunks before.
func (ix *Index) Span(chunk int) (rawOffset, objectOffset int64) {
	before := ix.Chunks[:chunk:len(ix.Chunks)]
	var at mark
	if len(ix.marks) == len(ix.Chunks)/markEvery+1 {
		at = ix.marks[chunk/markEvery]
		before = before[chunk/markEvery*markEvery:]
	}
	for _, c := range before {
		at.add(c)
	}
	return at.raw, at.object
}

// ObjectSize returns the length of the object in bytes.
func (ix *Index) ObjectSize() int64 {
	_, size := ix.Span(len(ix.Chunks))
	return size
}

// Equal reports whether two valid indexes describe the same image, cut and
// compressed alike.
func (ix *Index) Equal(other *Index) bool {
	a, errA := ix.MarshalBinary()
	b, errB := other.MarshalBinary()
	return errA == nil && errB == nil && bytes.Equal(a, b)
}
