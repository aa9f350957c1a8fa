package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/bits"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// EncodeOptions tune Encode; the zero value means the defaults.
type EncodeOptions struct {
	// Params of the chunking. Zero: DefaultParams of SizeHint, or, without a
	// hint, of what is seen of the image: the same as with its true size up to
	// 8 GiB.
	Params Params
	// SizeHint is the size of the raw image in bytes, if known.
	SizeHint int64
	// Level is a zstd level, 1 to MaxLevel, mapped to the nearest of the four that
	// the library has (1, 3, 7, 11). Zero: DefaultLevel.
	Level int
	// Workers compress at the same time, at most MaxWorkers. Zero: one per
	// available processor, up to defaultWorkers. The output does not depend on it.
	Workers int
	// Progress is called in the caller's goroutine with the raw bytes done so
	// far, after each write to the object.
	Progress func(rawBytes int64)
}

// Ranges of EncodeOptions.
const (
	// DefaultLevel is the library's best. On real images it makes the object 4 to
	// 7 % smaller than level 3 and encodes 15 MB a CPU second instead of 125: an
	// image is encoded once and fetched by every device.
	DefaultLevel = 11
	MaxLevel     = 22
	MaxWorkers   = 64
)

// defaultWorkers bounds memory on large machines: a worker of the best level
// has tables of about 35 MB.
const defaultWorkers = 8

// batchBytes of raw chunks go through the pipeline together, at least one.
const batchBytes = 256 << 10

// withDefaults fills in the zero values, except Params, and checks the ranges.
func (o EncodeOptions) withDefaults() (EncodeOptions, error) {
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if o.Workers == 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), defaultWorkers)
	}
	if o.Level < 1 || o.Level > MaxLevel {
		return o, fmt.Errorf("%w: level %d: want 1 to %d", ErrParams, o.Level, MaxLevel)
	}
	if o.Workers < 1 || o.Workers > MaxWorkers {
		return o, fmt.Errorf("%w: %d workers: want 1 to %d", ErrParams, o.Workers, MaxWorkers)
	}
	if o.SizeHint < 0 {
		return o, fmt.Errorf("%w: size of %d bytes", ErrParams, o.SizeHint)
	}
	if o.SizeHint > MaxImageBytes {
		return o, imageTooLarge()
	}
	return o, nil
}

func imageTooLarge() error {
	return fmt.Errorf("%w: over %d bytes: split the image into several artifacts", ErrLimit, MaxImageBytes)
}

// Encode cuts and compresses the raw image in one pass: it writes the object
// and returns its index. Memory is constant, a few batches of batchBytes per
// worker plus the compressors' tables; the output is the same for the same
// image, Params and Level. It returns ErrEmpty for an image of no bytes, ErrLimit
// over a limit of the format, ErrParams, or the error of a reader, a writer or
// the context; what object received is then worthless.
//
// Encode returns when its goroutines have ended, so raw must return from Read
// when ctx is cancelled.
func Encode(ctx context.Context, object io.Writer, raw io.Reader, opts EncodeOptions) (*Index, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if opts.Params == (Params{}) {
		if opts.Params, raw, err = chooseParams(raw, opts.SizeHint); err != nil {
			return nil, err
		}
	}
	chunker, err := NewChunker(raw, opts.Params)
	if err != nil {
		return nil, err
	}
	s := &sink{object: object, progress: opts.Progress, whole: sha256.New(), indexBytes: headerBytes + trailerBytes}
	if err := encodeAll(ctx, chunker, s, opts); err != nil {
		return nil, err
	}
	if s.rawSize == 0 {
		return nil, ErrEmpty
	}
	ix := &Index{RawSize: s.rawSize, RawDigest: [32]byte(s.whole.Sum(nil)), Params: opts.Params, Chunks: s.chunks}
	ix.seal()
	return ix, nil
}

// chooseParams returns the default parameters and a reader of the whole image.
// Without a hint it looks whether the image is a small one.
func chooseParams(raw io.Reader, hint int64) (Params, io.Reader, error) {
	if hint > 0 {
		return DefaultParams(hint), raw, nil
	}
	var head bytes.Buffer
	n, err := io.CopyN(&head, raw, smallImage)
	if err != nil && err != io.EOF {
		return Params{}, nil, fmt.Errorf("read image: %w", err)
	}
	return DefaultParams(n), io.MultiReader(&head, raw), nil
}

// batch is a run of chunks on its way through the pipeline.
type batch struct {
	raw    []byte
	chunks []Chunk
	out    []byte        // frames, one after the other
	ready  chan struct{} // the worker is done with it
}

func (b *batch) reset() { b.raw, b.chunks, b.out = b.raw[:0], b.chunks[:0], b.out[:0] }

// encodeAll runs the pipeline: one goroutine cuts, opts.Workers compress, the
// caller's writes in order. Batches are reused, which bounds the memory.
func encodeAll(ctx context.Context, chunker *Chunker, s *sink, opts EncodeOptions) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	batches := 2*opts.Workers + 2
	free, work, order := make(chan *batch, batches), make(chan *batch, batches), make(chan *batch, batches)
	for range batches {
		free <- &batch{raw: make([]byte, 0, max(batchBytes, int(opts.Params.Max))), ready: make(chan struct{}, 1)}
	}
	var running sync.WaitGroup
	var readErr error
	running.Go(func() {
		defer close(order)
		defer close(work)
		readErr = cutAll(ctx, chunker, free, func(b *batch) { work <- b; order <- b })
	})
	for range opts.Workers {
		running.Go(func() { compressAll(work, opts) })
	}
	var err error
	for b := range order {
		<-b.ready
		if err == nil {
			if err = s.write(b); err != nil {
				stop()
			}
		}
		free <- b
	}
	running.Wait()
	if err == nil {
		err = readErr
	}
	return err
}

// cutAll fills free batches with chunks and passes them on until the image ends.
func cutAll(ctx context.Context, chunker *Chunker, free <-chan *batch, pass func(*batch)) error {
	var b *batch
	for {
		raw, err := chunker.Next()
		if err == io.EOF {
			if b != nil {
				pass(b)
			}
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read image: %w", err)
		}
		if b != nil && len(b.raw)+len(raw) > cap(b.raw) {
			pass(b)
			b = nil
		}
		if b == nil {
			select {
			case b = <-free:
				b.reset()
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		b.raw = append(b.raw, raw...)
		b.chunks = append(b.chunks, Chunk{Raw: uint32(len(raw))})
	}
}

// compressAll turns batches into frames until there are no more.
func compressAll(work <-chan *batch, opts EncodeOptions) {
	enc := newFrameEncoder(opts)
	for b := range work {
		raw := b.raw
		for i := range b.chunks {
			c := &b.chunks[i]
			before := len(b.out)
			b.out = enc.EncodeAll(raw[:c.Raw], b.out)
			c.Compressed = uint32(len(b.out) - before)
			c.Digest = chunkDigest(raw[:c.Raw])
			raw = raw[c.Raw:]
		}
		b.ready <- struct{}{}
	}
}

// newFrameEncoder returns a compressor whose window is the largest chunk.
func newFrameEncoder(opts EncodeOptions) *zstd.Encoder {
	window := max(1<<bits.Len32(opts.Params.Max-1), zstd.MinWindowSize)
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(opts.Level)),
		zstd.WithWindowSize(window),
		zstd.WithSingleSegment(true),
		zstd.WithEncoderCRC(false),
		zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // only for options outside their ranges, which are checked
	}
	return enc
}

// sink writes batches in order and sums up what the index needs.
type sink struct {
	object     io.Writer
	progress   func(int64)
	whole      hash.Hash
	chunks     []Chunk
	rawSize    int64
	objectSize int64
	indexBytes int
}

func (s *sink) write(b *batch) error {
	s.rawSize += int64(len(b.raw))
	s.objectSize += int64(len(b.out))
	if max(s.rawSize, s.objectSize) > MaxImageBytes {
		return imageTooLarge()
	}
	for _, c := range b.chunks {
		s.indexBytes += c.encodedSize()
	}
	s.chunks = append(s.chunks, b.chunks...)
	if s.indexBytes > MaxIndexBytes {
		return indexTooLarge(len(s.chunks))
	}
	s.whole.Write(b.raw)
	if _, err := s.object.Write(b.out); err != nil {
		return fmt.Errorf("write object: %w", err)
	}
	if s.progress != nil {
		s.progress(s.rawSize)
	}
	return nil
}
