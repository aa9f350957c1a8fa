package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// Sizes of the pipeline of Stream, in bytes.
const (
	pipelineBytes = 256 << 10 // for raw chunks between decompression and write, if two do not need more
	readBuffer    = 64 << 10  // for the object
)

// pipeline holds the buffers between the two halves of Stream.
type pipeline struct {
	object *bufio.Reader
	slots  [][]byte // each has room for any chunk
}

func (d *Decoder) newPipeline() *pipeline {
	var maxCompressed int
	for _, c := range d.ix.Chunks {
		maxCompressed = max(maxCompressed, int(min(c.Compressed, MaxChunkBytes+MaxChunkOverhead)))
	}
	p := &pipeline{object: bufio.NewReaderSize(nil, max(readBuffer, maxCompressed))}
	p.slots = make([][]byte, max(2, min(16, pipelineBytes/max(d.maxRaw, 1))))
	for i := range p.slots {
		p.slots[i] = d.newBuffer()
	}
	return p
}

// Stream decodes the object from chunk first to the end and calls write for
// each chunk in order, after it was verified; raw is valid during the call. It
// ends with the first error: ErrChunk if a chunk does not match the index,
// io.ErrUnexpectedEOF if the object is cut short, what the reader or write
// returned, or ctx.Err. The chunks before it have been written, so a caller can
// go on from there.
//
// object stands at the offset of chunk first. Stream reads ahead, but never
// past the end of the object. One goroutine reads and decompresses while the
// caller's verifies and writes; Stream returns when it has ended, so the reader
// must return from Read when ctx is cancelled, as a response body does. write
// must not call the decoder.
func (d *Decoder) Stream(ctx context.Context, object io.Reader, first int, write func(chunk int, rawOffset int64, raw []byte) error) error {
	if first < 0 || first > len(d.ix.Chunks) {
		return fmt.Errorf("%w %d: the image has %d", ErrChunk, first, len(d.ix.Chunks))
	}
	if d.stream == nil {
		d.stream = d.newPipeline()
	}
	rawOffset, objectOffset := d.ix.Span(first)
	d.stream.object.Reset(io.LimitReader(object, d.ix.ObjectSize()-objectOffset))
	defer d.stream.object.Reset(nil)

	reading, stop := context.WithCancel(ctx)
	free := make(chan []byte, len(d.stream.slots))
	for _, slot := range d.stream.slots {
		free <- slot
	}
	full := make(chan unverified, len(d.stream.slots))
	ended := make(chan error, 1)
	go func() {
		err := d.expandAll(reading, first, free, full)
		close(full)
		ended <- err
	}()

	err := d.writeAll(ctx, rawOffset, full, free, write)
	stop()
	if readErr := <-ended; err == nil {
		err = readErr
	}
	// The reader may notice the end of ctx before the context derived from it
	// does, and so call it an error of its own.
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// expandAll is the first half: it fills free buffers until the object ends.
func (d *Decoder) expandAll(ctx context.Context, first int, free <-chan []byte, full chan<- unverified) error {
	for i := first; i < len(d.ix.Chunks); i++ {
		var slot []byte
		select {
		case slot = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		compressed, err := d.stream.object.Peek(int(d.ix.Chunks[i].Compressed))
		if err != nil {
			return readError(ctx, i, err)
		}
		u, err := d.expand(i, compressed, slot)
		if err != nil {
			return err
		}
		if _, err := d.stream.object.Discard(len(compressed)); err != nil {
			return readError(ctx, i, err)
		}
		full <- u // has room for all slots
	}
	return nil
}

// readError says where the object failed; a cancelled context is the cause of
// whatever the reader made of it.
func readError(ctx context.Context, chunk int, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read chunk %d: %w", chunk, err)
}

// writeAll is the second half: it verifies and writes until full is closed.
func (d *Decoder) writeAll(ctx context.Context, offset int64, full <-chan unverified, free chan<- []byte, write func(int, int64, []byte) error) error {
	for u := range full {
		if err := ctx.Err(); err != nil {
			return err
		}
		raw, err := u.verify(d.ix)
		if err != nil {
			return err
		}
		if err := write(u.chunk, offset, raw); err != nil {
			return err
		}
		offset += int64(len(raw))
		free <- u.bytes[:0]
	}
	return nil
}

// Verify reads the whole object and returns nil only if every chunk, the digest
// of the raw image and the length match the index: ErrIndex if the index itself
// is not valid, ErrChunk for a chunk, ErrObject for an object that is too short
// or too long or another image, or the error of the reader or the context.
// object must return from Read when ctx is cancelled.
func Verify(ctx context.Context, ix *Index, object io.Reader) error {
	if err := ix.validate(); err != nil {
		return err
	}
	whole := sha256.New()
	err := NewDecoder(ix).Stream(ctx, object, 0, func(_ int, _ int64, raw []byte) error {
		whole.Write(raw)
		return nil
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: shorter than the %d bytes of the index: %w", ErrObject, ix.ObjectSize(), err)
	}
	if err != nil {
		return err
	}
	if [32]byte(whole.Sum(nil)) != ix.RawDigest {
		return fmt.Errorf("%w: the chunks match, the digest of the image does not", ErrObject)
	}
	return atEnd(ctx, object, ix.ObjectSize())
}

// atEnd reports a byte after the object.
func atEnd(ctx context.Context, object io.Reader, size int64) error {
	n, err := io.ReadFull(object, make([]byte, 1))
	switch {
	case n > 0:
		return fmt.Errorf("%w: longer than the %d bytes of the index", ErrObject, size)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != io.EOF:
		return fmt.Errorf("read the end of the object: %w", err)
	}
	return nil
}
