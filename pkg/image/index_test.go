package image_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/otad/otad/pkg/image"
)

// withChecksum returns b with a right trailer, as an attacker would make it.
func withChecksum(b []byte) []byte {
	if len(b) < 4 {
		return b
	}
	b = bytes.Clone(b)
	body := b[:len(b)-4]
	binary.BigEndian.PutUint32(b[len(body):], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// drawIndex draws a valid index of up to 300 chunks.
func drawIndex(t *rapid.T) *image.Index {
	minimum := rapid.Uint32Range(image.MinChunkBytes, 4096).Draw(t, "min")
	avg := uint32(4096) << rapid.IntRange(0, 4).Draw(t, "avg")
	ix := &image.Index{Params: image.Params{Min: minimum, Avg: avg, Max: rapid.Uint32Range(avg, image.MaxChunkBytes).Draw(t, "max")}}
	for n := rapid.IntRange(1, 300).Draw(t, "chunks"); len(ix.Chunks) < n; {
		least := ix.Params.Min
		if len(ix.Chunks) == n-1 {
			least = 1
		}
		raw := rapid.Uint32Range(least, ix.Params.Max).Draw(t, "raw")
		c := image.Chunk{Raw: raw, Compressed: rapid.Uint32Range(10, raw+image.MaxChunkOverhead).Draw(t, "compressed")}
		copy(c.Digest[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "digest"))
		ix.Chunks = append(ix.Chunks, c)
		ix.RawSize += int64(raw)
	}
	return ix
}

func TestIndexRoundTripAndSpan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawIndex(t)
		encoded, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		got, err := image.ParseIndex(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Equal(want) {
			t.Fatalf("parsed %+v, want %+v", got, want)
		}
		var raw, object int64
		for i := range len(got.Chunks) + 1 {
			for _, ix := range []*image.Index{got, want} {
				if r, o := ix.Span(i); r != raw || o != object {
					t.Fatalf("Span(%d) = %d, %d, want %d, %d", i, r, o, raw, object)
				}
			}
			if i < len(got.Chunks) {
				raw, object = raw+int64(got.Chunks[i].Raw), object+int64(got.Chunks[i].Compressed)
			}
		}
		if got.RawSize != raw || got.ObjectSize() != object {
			t.Fatalf("sizes %d, %d, want %d, %d", got.RawSize, got.ObjectSize(), raw, object)
		}
	})
}

func TestDamagedIndexIsRefused(t *testing.T) {
	ix, _ := encode(t, mixed(1, 100_000), image.EncodeOptions{})
	encoded := marshal(t, ix)
	tried := 0
	for i := range encoded {
		for bit := range 9 {
			b := bytes.Clone(encoded)
			b[i] ^= byte(1<<bit) | byte(bit>>3)*0xff // each bit, then all of them
			if _, err := image.ParseIndex(b); !errors.Is(err, image.ErrIndex) {
				t.Fatalf("byte %d xor %#x: error %v, want ErrIndex", i, b[i]^encoded[i], err)
			}
			tried++
		}
		if _, err := image.ParseIndex(encoded[:i]); !errors.Is(err, image.ErrIndex) {
			t.Fatalf("first %d bytes: error %v, want ErrIndex", i, err)
		}
		tried++
	}
	for _, extra := range []string{"\x00", "x", string(encoded)} {
		longer := append(bytes.Clone(encoded), extra...)
		for _, b := range [][]byte{longer, withChecksum(longer)} {
			if _, err := image.ParseIndex(b); !errors.Is(err, image.ErrIndex) {
				t.Fatalf("%d bytes more: error %v, want ErrIndex", len(extra), err)
			}
			tried++
		}
	}
	t.Logf("refused %d of %d damaged indexes", tried, tried)
}

func TestContradictoryIndexIsRefused(t *testing.T) {
	good := func() *image.Index {
		return &image.Index{RawSize: 300, Params: small, Chunks: []image.Chunk{{Compressed: 40, Raw: 200}, {Compressed: 164, Raw: 100}}}
	}
	marshal(t, good())
	for name, change := range map[string]func(*image.Index){
		"no chunks":               func(ix *image.Index) { ix.Chunks = nil },
		"size zero, no chunks":    func(ix *image.Index) { ix.Chunks, ix.RawSize = nil, 0 },
		"negative size":           func(ix *image.Index) { ix.RawSize = -300 },
		"size too small":          func(ix *image.Index) { ix.RawSize-- },
		"size too large":          func(ix *image.Index) { ix.RawSize++ },
		"size over the limit":     func(ix *image.Index) { ix.RawSize = image.MaxImageBytes + 1 },
		"empty chunk":             func(ix *image.Index) { ix.Chunks[1].Raw, ix.RawSize = 0, 200 },
		"short chunk in front":    func(ix *image.Index) { ix.Chunks[0].Raw, ix.RawSize = 63, 163 },
		"chunk over max":          func(ix *image.Index) { ix.Chunks[1].Raw, ix.RawSize = 1025, 1225 },
		"no room for a frame":     func(ix *image.Index) { ix.Chunks[0].Compressed = 9 },
		"frame over the overhead": func(ix *image.Index) { ix.Chunks[1].Compressed = 165 },
		"length near 2^32":        func(ix *image.Index) { ix.Chunks[1].Compressed = math.MaxUint32 },
		"raw near 2^32":           func(ix *image.Index) { ix.Chunks[1].Raw = math.MaxUint32 },
		"min too small":           func(ix *image.Index) { ix.Params.Min = image.MinChunkBytes - 1 },
		"max too large":           func(ix *image.Index) { ix.Params.Max = image.MaxChunkBytes + 1 },
		"average no power of two": func(ix *image.Index) { ix.Params.Avg = 257 },
		"average under min":       func(ix *image.Index) { ix.Params.Min = 512 },
		"average over max":        func(ix *image.Index) { ix.Params.Avg = 2048 },
		"no parameters":           func(ix *image.Index) { ix.Params = image.Params{} },
	} {
		ix := good()
		change(ix)
		if _, err := ix.MarshalBinary(); !errors.Is(err, image.ErrIndex) {
			t.Errorf("%s: error %v, want ErrIndex", name, err)
		}
		if err := image.Verify(t.Context(), ix, strings.NewReader("")); !errors.Is(err, image.ErrIndex) {
			t.Errorf("%s: verify: error %v, want ErrIndex", name, err)
		}
	}
}

func TestForgedIndexIsRefused(t *testing.T) {
	encoded := marshal(t, &image.Index{RawSize: 300, Params: small, Chunks: []image.Chunk{{Compressed: 40, Raw: 200}, {Compressed: 100, Raw: 100}}})
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
	}
	insert := func(at int, with ...byte) func([]byte) []byte {
		return func(b []byte) []byte { return append(append(bytes.Clone(b[:at]), with...), b[at+1:]...) }
	}
	for name, change := range map[string]func([]byte) []byte{
		"count of 2^32-1":       put32(60, math.MaxUint32),
		"count too small":       put32(60, 1),
		"count too large":       put32(60, 3),
		"size over 2^63":        put32(8, math.MaxUint32),
		"size over 2^32":        put32(8, 1),
		"long form of a length": insert(64, 40|0x80, 0),
		"length over 2^32":      insert(64, 0x80, 0x80, 0x80, 0x80, 0x10),
		"length over 2^64":      insert(64, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f),
		"other version":         func(b []byte) []byte { b[7] = 2; return b },
		"all lengths unending":  func(b []byte) []byte { copy(b[64:], bytes.Repeat([]byte{0x80}, len(b)-68)); return b },
	} {
		b := withChecksum(change(bytes.Clone(encoded)))
		if _, err := image.ParseIndex(b); !errors.Is(err, image.ErrIndex) {
			t.Errorf("%s: error %v, want ErrIndex", name, err)
		}
	}
}

// A header that announces four billion chunks must not make the reader allocate
// for them.
func TestParseIndexAllocatesNoMoreThanItRead(t *testing.T) {
	b := bytes.Clone(marshal(t, manyChunks(1000)))
	binary.BigEndian.PutUint32(b[60:], math.MaxUint32)
	b = withChecksum(b)
	if n := testing.AllocsPerRun(10, func() { _, _ = image.ParseIndex(b) }); n > 20 {
		t.Errorf("%v allocations to refuse", n)
	}
	if _, err := image.ParseIndex(make([]byte, image.MaxIndexBytes+1)); !errors.Is(err, image.ErrIndex) {
		t.Errorf("index over the limit: error %v, want ErrIndex", err)
	}
	if _, err := manyChunks(900_000).MarshalBinary(); !errors.Is(err, image.ErrLimit) || !strings.Contains(err.Error(), "larger average") {
		t.Errorf("index over the limit: error %v, want ErrLimit with the remedy", err)
	}
}

func TestIndexBeyond32Bits(t *testing.T) {
	for _, size := range []int64{1<<31 - 1, 1 << 31, 1<<31 + 1, 1<<32 - 1, 1 << 32, 1<<32 + 1, image.MaxImageBytes} {
		ix := &image.Index{RawSize: size, Params: image.Params{Min: 1 << 18, Avg: 1 << 19, Max: 1 << 20}}
		for left := size; left > 0; left -= 1 << 20 {
			raw := uint32(min(left, 1<<20))
			ix.Chunks = append(ix.Chunks, image.Chunk{Raw: raw, Compressed: max(raw, 10)})
		}
		parsed, err := image.ParseIndex(marshal(t, ix))
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		n := len(parsed.Chunks)
		if raw, _ := parsed.Span(n); raw != size {
			t.Errorf("%d bytes: end at %d", size, raw)
		}
		if raw, object := parsed.Span(n - 1); raw != int64(n-1)<<20 || object != raw {
			t.Errorf("%d bytes: last chunk at %d, %d", size, raw, object)
		}
	}
	ix := manyChunks(1)
	ix.RawSize = image.MaxImageBytes + 1
	if _, err := ix.MarshalBinary(); !errors.Is(err, image.ErrIndex) {
		t.Errorf("over the largest image: error %v", err)
	}
}

func TestDefaultParams(t *testing.T) {
	for _, c := range []struct {
		size int64
		avg  uint32
	}{
		{-1, 16 << 10}, {0, 16 << 10}, {1, 4 << 10}, {2<<20 - 1, 4 << 10}, {2 << 20, 16 << 10}, {8 << 30, 16 << 10},
		{8<<30 + 2, 32 << 10}, {32 << 30, 64 << 10}, {image.MaxImageBytes, 128 << 10}, {math.MaxInt64, 256 << 10},
	} {
		p := image.DefaultParams(c.size)
		if err := p.Validate(); err != nil || p.Avg != c.avg {
			t.Errorf("DefaultParams(%d) = %+v, %v, want an average of %d", c.size, p, err, c.avg)
		}
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add(marshal(f, manyChunks(1)))
	f.Add(marshal(f, manyChunks(3)))
	f.Add(marshal(f, manyChunks(130)))
	f.Add(marshal(f, &image.Index{RawSize: 1, Params: small, Chunks: []image.Chunk{{Compressed: 10, Raw: 1}}}))
	f.Add([]byte("otadidx\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = withChecksum(b) // past the checksum, which is no defence
		ix, err := image.ParseIndex(b)
		if err != nil {
			if !errors.Is(err, image.ErrIndex) || ix != nil {
				t.Fatalf("index %v, error %v", ix, err)
			}
			return
		}
		if again := marshal(t, ix); !bytes.Equal(again, b) {
			t.Fatalf("accepted %x, re-encoded %x", b, again)
		}
		if raw, object := ix.Span(len(ix.Chunks)); raw != ix.RawSize || object != ix.ObjectSize() {
			t.Fatalf("ends %d, %d", raw, object)
		}
	})
}
