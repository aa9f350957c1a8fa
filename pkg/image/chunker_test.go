package image_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/bits"
	"slices"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/otad/otad/pkg/image"
)

// cut returns the lengths of the chunks of r, and their bytes joined.
func cut(t interface{ Fatal(...any) }, r io.Reader, p image.Params) (lengths []int, joined []byte) {
	c, err := image.NewChunker(r, p)
	if err != nil {
		t.Fatal(err)
	}
	for {
		chunk, err := c.Next()
		if err == io.EOF {
			return lengths, joined
		}
		if err != nil {
			t.Fatal(err)
		}
		lengths, joined = append(lengths, len(chunk)), append(joined, chunk...)
	}
}

// Chunks that move with a release of this code would make every device fetch
// everything again, and no other test would fail.
func TestChunksOfVersion1NeverChange(t *testing.T) {
	if first, last := image.GearWord(0), image.GearWord(255); first != 0x8018cdad403c0d61 || last != 0xb93bb5a99ae895b3 {
		t.Errorf("gear[0], gear[255] = %#x, %#x", first, last)
	}
	got, _ := cut(t, bytes.NewReader(random(1, 8192)), small)
	if want := []int{
		262, 353, 246, 251, 333, 273, 346, 210, 193, 294, 215, 261, 72, 257, 81, 199, 273,
		266, 256, 304, 209, 283, 227, 230, 271, 199, 225, 274, 251, 312, 210, 248, 207, 101,
	}; !slices.Equal(got, want) {
		t.Errorf("chunks of %d bytes, want %d", got, want)
	}
}

func TestChunksDoNotDependOnReads(t *testing.T) {
	data := mixed(2, 50_000)
	want, _ := cut(t, bytes.NewReader(data), small)
	for name, r := range map[string]io.Reader{
		"one byte": iotest.OneByteReader(bytes.NewReader(data)),
		"half":     iotest.HalfReader(bytes.NewReader(data)),
		"data+EOF": iotest.DataErrReader(bytes.NewReader(data)),
	} {
		got, joined := cut(t, r, small)
		if !slices.Equal(got, want) || !bytes.Equal(joined, data) {
			t.Errorf("%s reader: other chunks", name)
		}
	}
}

// The rule written down from the package comment, without regard to speed.
func TestChunkerFollowsItsDescription(t *testing.T) {
	ends := func(data []byte, n int, p image.Params) bool {
		var h uint64
		for _, b := range data[n-64 : n] {
			h = 2*h + image.GearWord(b)
		}
		zeros := bits.Len32(p.Avg) - 1 + 2
		if n > int(p.Min) && n > int(p.Avg)-int(p.Min) {
			zeros -= 4
		}
		return bits.LeadingZeros64(h) >= zeros
	}
	rapid.Check(t, func(t *rapid.T) {
		p := image.Params{Min: rapid.Uint32Range(64, 256).Draw(t, "min"), Avg: 256, Max: rapid.Uint32Range(256, 1024).Draw(t, "max")}
		data := mixed(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 10_000).Draw(t, "size"))
		got, _ := cut(t, bytes.NewReader(data), p)
		for i, n := range got {
			want := int(p.Min)
			for want < min(int(p.Max), len(data)) && !ends(data, want, p) {
				want++
			}
			if want = min(want, len(data)); n != want {
				t.Fatalf("chunk %d has %d bytes, the description gives %d", i, n, want)
			}
			data = data[n:]
		}
	})
}

func TestChunkSizes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := image.Params{Min: rapid.Uint32Range(64, 256).Draw(t, "min"), Avg: 256 << rapid.IntRange(0, 2).Draw(t, "avg")}
		p.Max = rapid.Uint32Range(p.Avg, 4096).Draw(t, "max")
		data := mixed(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(0, 40_000).Draw(t, "size"))
		lengths, joined := cut(t, bytes.NewReader(data), p)
		if !bytes.Equal(joined, data) {
			t.Fatal("the chunks are not the data")
		}
		for i, n := range lengths {
			if n > int(p.Max) || n < int(p.Min) && i < len(lengths)-1 {
				t.Fatalf("chunk %d of %d has %d bytes, %+v", i, len(lengths), n, p)
			}
		}
	})
}

func TestAverageChunk(t *testing.T) {
	for _, size := range []int{1 << 20, 12 << 20} {
		p := image.DefaultParams(int64(size))
		lengths, _ := cut(t, bytes.NewReader(random(3, size)), p)
		mean := float64(size) / float64(len(lengths))
		if ratio := mean / float64(p.Avg); ratio < 0.85 || ratio > 1.15 {
			t.Errorf("mean %.0f bytes, average in the parameters %d", mean, p.Avg)
		}
	}
}

func TestMostChunksSurviveAnInsertion(t *testing.T) {
	before := executable(t)[:4<<20]
	p := image.DefaultParams(int64(len(before)))
	for _, n := range []int{1, 4096, 100_000} {
		at := len(before) / 2
		after := slices.Concat(before[:at], random(4, n), before[at:])
		lengths, _ := cut(t, bytes.NewReader(before), p)
		known := map[[32]byte]bool{}
		for rest := before; len(lengths) > 0; lengths = lengths[1:] {
			known[sha256.Sum256(rest[:lengths[0]])], rest = true, rest[lengths[0]:]
		}
		lengths, _ = cut(t, bytes.NewReader(after), p)
		var fresh int64
		for _, length := range lengths {
			if !known[sha256.Sum256(after[:length])] {
				fresh += int64(length)
			}
			after = after[length:]
		}
		if limit := int64(n) + 3*int64(p.Max); fresh > limit {
			t.Errorf("insertion of %d bytes: %d bytes in new chunks, want at most %d", n, fresh, limit)
		}
	}
}

func TestChunkerPassesReadErrors(t *testing.T) {
	broken := errors.New("broken disk")
	c, err := image.NewChunker(io.MultiReader(bytes.NewReader(make([]byte, 5000)), iotest.ErrReader(broken)), small)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for err == nil {
			_, err = c.Next()
		}
		if err != broken {
			t.Fatalf("error %v, want that of the reader", err)
		}
	}
	stuck, err := image.NewChunker(stuckReader{}, small)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stuck.Next(); err != io.ErrNoProgress {
		t.Errorf("reader without bytes: error %v", err)
	}
	if _, err := image.NewChunker(nil, image.Params{}); !errors.Is(err, image.ErrParams) {
		t.Errorf("no parameters: error %v", err)
	}
}

type stuckReader struct{}

func (stuckReader) Read([]byte) (int, error) { return 0, nil }
