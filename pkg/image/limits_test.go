package image

import (
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
)

// newBatch returns a batch of one chunk of n bytes.
func newBatch(n int) *batch {
	return &batch{raw: make([]byte, n), out: make([]byte, n), chunks: []Chunk{{Raw: uint32(n), Compressed: uint32(n)}}}
}

func TestImageOverTheLimit(t *testing.T) {
	for name, s := range map[string]*sink{
		"raw":    {object: io.Discard, whole: sha256.New(), rawSize: MaxImageBytes - 100},
		"object": {object: io.Discard, whole: sha256.New(), objectSize: MaxImageBytes - 100},
	} {
		if err := s.write(newBatch(100)); err != nil {
			t.Errorf("%s: exactly at the limit: %v", name, err)
		}
		if err := s.write(newBatch(1)); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "split the image") {
			t.Errorf("%s: error %v, want ErrLimit with the remedy", name, err)
		}
	}
}

func TestIndexOverTheLimitWhileEncoding(t *testing.T) {
	s := &sink{object: io.Discard, whole: sha256.New(), indexBytes: MaxIndexBytes - minEntryBytes}
	if err := s.write(newBatch(100)); err != nil {
		t.Errorf("exactly at the limit: %v", err)
	}
	if err := s.write(newBatch(100)); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "larger average") {
		t.Errorf("error %v, want ErrLimit with the remedy", err)
	}
}

func TestDecoderMemoryFollowsTheLargestChunk(t *testing.T) {
	for largest, limit := range map[uint32]int{64 << 10: 2 * MaxChunkBytes, MaxChunkBytes: 3*MaxChunkBytes + 4096} {
		d := NewDecoder(&Index{Chunks: []Chunk{{Raw: largest, Compressed: largest}}})
		p := d.newPipeline()
		total := p.object.Size()
		for _, slot := range p.slots {
			total += cap(slot)
		}
		if len(p.slots) < 2 || total > limit {
			t.Errorf("largest chunk %d: %d slots, %d bytes, want at most %d", largest, len(p.slots), total, limit)
		}
	}
}
