package image_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/otad/otad/pkg/image"
)

// executable returns real program code: the go command, or this test.
func executable(t testing.TB) []byte {
	t.Helper()
	command, _ := exec.LookPath("go") // without one, the other remains
	for _, name := range []string{command, os.Args[0]} {
		if data, err := os.ReadFile(name); err == nil && len(data) > 4<<20 {
			return data
		}
	}
	t.Fatal("no executable of over 4 MiB to test with")
	return nil
}

// random returns the same n bytes for the same seed.
func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// mixed returns n bytes of runs, text and noise, as an image has.
func mixed(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+4096)
	for len(b) < n {
		switch size := 1 + rng.IntN(4096); rng.IntN(3) {
		case 0:
			b = append(b, make([]byte, size)...)
		case 1:
			b = append(b, random(rng.Uint64(), size)...)
		default:
			b = append(b, bytes.Repeat([]byte("firmware image "), size/15+1)...)
		}
	}
	return b[:n]
}

// encode returns the index and the object of data.
func encode(t testing.TB, data []byte, opts image.EncodeOptions) (*image.Index, []byte) {
	t.Helper()
	var object bytes.Buffer
	ix, err := image.Encode(context.Background(), &object, bytes.NewReader(data), opts)
	if err != nil {
		t.Fatalf("encode %d bytes: %v", len(data), err)
	}
	return ix, object.Bytes()
}

// decode streams the whole object; it returns what was written and the error.
func decode(ix *image.Index, object []byte) ([]byte, error) {
	var raw []byte
	err := image.NewDecoder(ix).Stream(context.Background(), bytes.NewReader(object), 0, func(_ int, _ int64, b []byte) error {
		raw = append(raw, b...)
		return nil
	})
	return raw, err
}

func marshal(t testing.TB, ix *image.Index) []byte {
	t.Helper()
	b, err := ix.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// small is a valid set of parameters that makes many chunks of few bytes.
var small = image.Params{Min: 64, Avg: 256, Max: 1024}

// manyChunks returns a valid index of n chunks that no object has to exist for.
func manyChunks(n int) *image.Index {
	ix := &image.Index{Params: image.DefaultParams(0), Chunks: make([]image.Chunk, n)}
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	for i := range ix.Chunks {
		raw := ix.Params.Min + rng.Uint32N(ix.Params.Max-ix.Params.Min+1)
		ix.Chunks[i] = image.Chunk{Compressed: raw/2 + rng.Uint32N(100), Raw: raw}
		ix.RawSize += int64(raw)
	}
	return ix
}
