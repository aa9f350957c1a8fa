// Package rawimage reads any bytes of a raw image out of its stored object: it
// fetches the chunks around the offset by range, decodes and verifies them, and
// keeps the last few, since whoever reads small blocks comes back to a chunk
// often, and so do others who read the same image.
//
// The object is not trusted: no byte is returned whose chunk does not match the
// index. The index is trusted as the caller named it by its digest. It is a
// reader for devices that can not decode an image themselves; who can should
// fetch the object, which is smaller.
package rawimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/pkg/image"
)

// Memory that a Reader may keep between calls, in bytes.
const (
	MaxCachedChunks  = 8 << 20
	MaxCachedIndexes = 32 << 20 // the largest index alone takes more, and is kept alone
)

// ErrDamaged: the stored object or index is not what it must be.
var ErrDamaged = errors.New("stored image is damaged")

// Image says where the two files of an image lie.
type Image struct {
	Object      string // key of the object
	Index       string // key of the index
	IndexDigest string // lower-case hex sha256 of the index
}

// Reader reads raw images. It may be used concurrently; a call's own memory is
// two chunks.
type Reader struct {
	blobs blob.Store

	mu      sync.Mutex
	indexes *lru[string, *decoder]
	chunks  *lru[place, []byte]
}

// place is a chunk of an image.
type place struct {
	index string // digest
	chunk int
}

// decoder is an index and what decodes under it, one chunk at a time.
type decoder struct {
	ix *image.Index
	mu sync.Mutex
	d  *image.Decoder
}

// New returns a Reader of what lies in blobs.
func New(blobs blob.Store) *Reader {
	return &Reader{
		blobs:   blobs,
		indexes: newLRU[string, *decoder](MaxCachedIndexes),
		chunks:  newLRU[place, []byte](MaxCachedChunks),
	}
}

// ReadAt fills p with the raw bytes from offset. At the end of the image it
// returns what there is, and io.EOF if that is less than p. ErrDamaged when the
// store holds something else than the index says.
func (r *Reader) ReadAt(ctx context.Context, img Image, p []byte, offset int64) (int, error) {
	d, err := r.index(ctx, img)
	if err != nil {
		return 0, err
	}
	if offset < 0 || offset >= d.ix.RawSize {
		return 0, io.EOF
	}
	short := int64(len(p)) > d.ix.RawSize-offset
	if short {
		p = p[:d.ix.RawSize-offset]
	}
	n := 0
	for n < len(p) {
		got, err := r.run(ctx, img, d, p[n:], offset+int64(n))
		n += got
		if err != nil {
			return n, err
		}
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

// index returns the parsed index, from the store the first time.
func (r *Reader) index(ctx context.Context, img Image) (*decoder, error) {
	r.mu.Lock()
	d, ok := r.indexes.get(img.IndexDigest)
	r.mu.Unlock()
	if ok {
		return d, nil
	}
	b, err := r.load(ctx, img.Index)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", img.IndexDigest, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != img.IndexDigest {
		return nil, fmt.Errorf("index %s: %w: digest mismatch", img.IndexDigest, ErrDamaged)
	}
	ix, err := image.ParseIndex(b)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w: %w", img.IndexDigest, ErrDamaged, err)
	}
	d = &decoder{ix: ix, d: image.NewDecoder(ix)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.indexes.put(img.IndexDigest, d, len(b)*2) // parsed it takes about as much again
	return d, nil
}

func (r *Reader) load(ctx context.Context, key string) ([]byte, error) {
	body, err := r.blobs.Open(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }() // reading it gave what there was to know
	b, err := io.ReadAll(io.LimitReader(body, image.MaxIndexBytes+1))
	if err == nil && len(b) > image.MaxIndexBytes {
		err = fmt.Errorf("%w: over %d bytes", ErrDamaged, image.MaxIndexBytes)
	}
	return b, err
}

// run serves the front of p: one chunk that is at hand, or in one range request
// all chunks up to the next one that is.
func (r *Reader) run(ctx context.Context, img Image, d *decoder, p []byte, offset int64) (int, error) {
	first := chunkAt(d.ix, offset)
	start, _ := d.ix.Span(first)
	if raw, ok := r.cached(img, first); ok {
		return copy(p, raw[offset-start:]), nil
	}
	end := first + 1
	for at := start + int64(d.ix.Chunks[first].Raw); at < offset+int64(len(p)) && end < len(d.ix.Chunks); end++ {
		if _, ok := r.cached(img, end); ok {
			break
		}
		at += int64(d.ix.Chunks[end].Raw)
	}
	_, from := d.ix.Span(first)
	_, to := d.ix.Span(end)
	body, err := r.blobs.Open(ctx, img.Object, from, to-from)
	if err != nil {
		return 0, err
	}
	defer func() { _ = body.Close() }()
	n, skip := 0, offset-start
	for chunk := first; chunk < end; chunk++ {
		raw, err := d.decode(body, chunk)
		if err != nil {
			return n, fmt.Errorf("object %s: %w", img.Object, err)
		}
		r.keep(img, chunk, raw)
		n += copy(p[n:], raw[skip:])
		skip = 0
	}
	return n, nil
}

func (r *Reader) cached(img Image, chunk int) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.chunks.get(place{img.IndexDigest, chunk})
}

func (r *Reader) keep(img Image, chunk int, raw []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chunks.put(place{img.IndexDigest, chunk}, raw, len(raw))
}

// decode reads the next chunk off body and returns its verified raw bytes, in
// memory of their own.
func (d *decoder) decode(body io.Reader, chunk int) ([]byte, error) {
	compressed := make([]byte, d.ix.Chunks[chunk].Compressed)
	if _, err := io.ReadFull(body, compressed); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: it ends in chunk %d", ErrDamaged, chunk)
		}
		return nil, fmt.Errorf("read chunk %d: %w", chunk, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	raw, err := d.d.Decode(chunk, compressed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return append(make([]byte, 0, len(raw)), raw...), nil
}

// chunkAt is the chunk that holds the raw byte at offset, which is inside.
func chunkAt(ix *image.Index, offset int64) int {
	return sort.Search(len(ix.Chunks), func(i int) bool {
		end, _ := ix.Span(i + 1)
		return end > offset
	})
}
