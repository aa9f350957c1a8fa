package image

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Decoder turns chunks of an object into verified raw bytes. It is reusable but
// not safe for concurrent use. Its memory follows the largest chunk of the
// index: one buffer for Decode; Stream adds the buffers of its pipeline, at
// most the larger of pipelineBytes and twice the largest chunk, and a read
// buffer of a compressed chunk or readBuffer.
type Decoder struct {
	ix     *Index
	frames *zstd.Decoder
	maxRaw int // bytes of the largest chunk
	buf    []byte
	stream *pipeline // of Stream, once used
}

// NewDecoder returns a decoder for the object that ix describes.
func NewDecoder(ix *Index) *Decoder {
	d := &Decoder{ix: ix, frames: newFrameDecoder()}
	for _, c := range ix.Chunks {
		d.maxRaw = max(d.maxRaw, int(min(c.Raw, MaxChunkBytes)))
	}
	return d
}

// Decode returns the raw bytes of a chunk, given its bytes in the object. They
// are valid until the next call. It returns ErrChunk, and no bytes, if the
// lengths or the digest do not match the index or there is no such chunk.
func (d *Decoder) Decode(chunk int, compressed []byte) ([]byte, error) {
	if chunk < 0 || chunk >= len(d.ix.Chunks) {
		return nil, fmt.Errorf("%w %d: the image has %d", ErrChunk, chunk, len(d.ix.Chunks))
	}
	if d.buf == nil {
		d.buf = d.newBuffer()
	}
	u, err := d.expand(chunk, compressed, d.buf)
	if err != nil {
		return nil, err
	}
	return u.verify(d.ix)
}

// newBuffer returns room for any chunk.
func (d *Decoder) newBuffer() []byte { return make([]byte, 0, d.maxRaw+frameSlack) }

// unverified holds raw bytes of the right length that nothing vouches for yet.
type unverified struct {
	chunk int
	bytes []byte
}

// expand decompresses a chunk into buf.
func (d *Decoder) expand(chunk int, compressed, buf []byte) (unverified, error) {
	c := d.ix.Chunks[chunk]
	if len(compressed) != int(c.Compressed) || int(c.Raw) > d.maxRaw {
		return unverified{}, fmt.Errorf("%w %d: %d bytes for %d raw: want %d", ErrChunk, chunk, len(compressed), c.Raw, c.Compressed)
	}
	if err := checkFrame(compressed, c.Raw); err != nil {
		return unverified{}, fmt.Errorf("%w %d: %w", ErrChunk, chunk, err)
	}
	raw, err := d.frames.DecodeAll(compressed, buf[:0])
	if err != nil {
		return unverified{}, fmt.Errorf("%w %d: %w", ErrChunk, chunk, err)
	}
	return unverified{chunk: chunk, bytes: raw}, nil
}

// verify is the only way from unverified to raw bytes.
func (u unverified) verify(ix *Index) ([]byte, error) {
	c := ix.Chunks[u.chunk]
	if len(u.bytes) != int(c.Raw) {
		return nil, fmt.Errorf("%w %d: %d raw bytes: want %d", ErrChunk, u.chunk, len(u.bytes), c.Raw)
	}
	if chunkDigest(u.bytes) != c.Digest {
		return nil, fmt.Errorf("%w %d: digest mismatch", ErrChunk, u.chunk)
	}
	return u.bytes, nil
}
