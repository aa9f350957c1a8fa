package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/otad/otad/pkg/image"
)

// checkRoundTrip encodes data, and asserts that every reader gets it back.
func checkRoundTrip(t testing.TB, data []byte, opts image.EncodeOptions) *image.Index {
	t.Helper()
	ix, object := encode(t, data, opts)
	if ix.RawSize != int64(len(data)) || ix.RawDigest != sha256.Sum256(data) || ix.ObjectSize() != int64(len(object)) {
		t.Fatalf("index of %d raw and %d object bytes, want %d and %d", ix.RawSize, ix.ObjectSize(), len(data), len(object))
	}
	parsed, err := image.ParseIndex(marshal(t, ix))
	if err != nil || !parsed.Equal(ix) {
		t.Fatalf("parsed index differs: %v", err)
	}
	raw, err := decode(parsed, object)
	if err != nil || !bytes.Equal(raw, data) {
		t.Fatalf("decoded %d bytes, want %d: %v", len(raw), len(data), err)
	}
	if err := image.Verify(t.Context(), parsed, bytes.NewReader(object)); err != nil {
		t.Fatalf("verify: %v", err)
	}
	return ix
}

func TestRoundTrip(t *testing.T) {
	p := image.DefaultParams(1)
	for name, data := range map[string][]byte{
		"one byte":      {7},
		"under min":     random(1, int(p.Min)-1),
		"min":           random(1, int(p.Min)),
		"over min":      random(1, int(p.Min)+1),
		"zeros":         make([]byte, 300_001),
		"max zeros":     make([]byte, p.Max),
		"max+1 zeros":   make([]byte, p.Max+1),
		"two max zeros": make([]byte, 2*p.Max),
		"255":           random(2, 255),
		"256":           random(2, 256),
		"2-byte size":   random(2, 65535+256),
		"4-byte size":   random(2, 65536+256),
		"random":        random(5, 1_000_000),
		"mixed":         mixed(6, 3_000_000),
		"program":       executable(t)[:2_500_000],
	} {
		t.Run(name, func(t *testing.T) {
			for _, level := range []int{1, 3, 7} {
				checkRoundTrip(t, data, image.EncodeOptions{Level: level, Workers: 2})
			}
			largest := image.Params{Min: image.MaxChunkBytes, Avg: image.MaxChunkBytes, Max: image.MaxChunkBytes}
			checkRoundTrip(t, data, image.EncodeOptions{Params: largest, Level: 1})
		})
	}
}

func TestRoundTripProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := image.Params{Min: rapid.Uint32Range(64, 512).Draw(rt, "min"), Avg: 512, Max: rapid.Uint32Range(512, 300_000).Draw(rt, "max")}
		data := mixed(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(1, 400_000).Draw(rt, "size"))
		checkRoundTrip(t, data, image.EncodeOptions{Params: p, Level: rapid.IntRange(1, 3).Draw(rt, "level"), Workers: rapid.IntRange(1, 3).Draw(rt, "workers")})
	})
}

func TestOutputDependsOnImageAndSettingsOnly(t *testing.T) {
	data := append(executable(t)[:1<<20:1<<20], mixed(8, 1<<20)...)
	for _, level := range []int{1, 3, 7} {
		want, object := encode(t, data, image.EncodeOptions{Level: level, Workers: 1})
		for _, workers := range []int{2, 5} {
			var again bytes.Buffer
			ix, err := image.Encode(t.Context(), &again, iotest.HalfReader(bytes.NewReader(data)), image.EncodeOptions{Level: level, Workers: workers, SizeHint: int64(len(data))})
			if err != nil || !ix.Equal(want) || !bytes.Equal(again.Bytes(), object) {
				t.Errorf("level %d, %d workers: other output, %v", level, workers, err)
			}
		}
	}
}

func TestParamsFollowTheSize(t *testing.T) {
	for _, size := range []int{1, 2<<20 - 1, 2 << 20, 3 << 20} {
		unknown, _ := encode(t, make([]byte, size), image.EncodeOptions{Level: 1})
		hinted, _ := encode(t, make([]byte, size), image.EncodeOptions{Level: 1, SizeHint: int64(size)})
		if want := image.DefaultParams(int64(size)); unknown.Params != want || hinted.Params != want {
			t.Errorf("%d bytes: %+v, with a hint %+v, want %+v", size, unknown.Params, hinted.Params, want)
		}
	}
}

func TestIncompressibleDataStaysWithinTheOverhead(t *testing.T) {
	for _, size := range []uint32{64, 1 << 10, 128 << 10, 1 << 20} {
		ix, _ := encode(t, random(9, 3<<20), image.EncodeOptions{Level: 1, Params: image.Params{Min: size, Avg: size, Max: size}})
		for i, c := range ix.Chunks {
			if c.Compressed > c.Raw+image.MaxChunkOverhead {
				t.Fatalf("chunk %d: %d bytes for %d", i, c.Compressed, c.Raw)
			}
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	broken := errors.New("broken")
	one := func() io.Reader { return bytes.NewReader([]byte{1}) }
	large := func() io.Reader { return bytes.NewReader(make([]byte, 20<<20)) }
	for name, c := range map[string]struct {
		raw    io.Reader
		object io.Writer
		opts   image.EncodeOptions
		want   error
	}{
		"empty image":            {raw: bytes.NewReader(nil), want: image.ErrEmpty},
		"empty image with hint":  {raw: bytes.NewReader(nil), opts: image.EncodeOptions{SizeHint: 5}, want: image.ErrEmpty},
		"negative level":         {raw: one(), opts: image.EncodeOptions{Level: -1}, want: image.ErrParams},
		"level too high":         {raw: one(), opts: image.EncodeOptions{Level: image.MaxLevel + 1}, want: image.ErrParams},
		"negative workers":       {raw: one(), opts: image.EncodeOptions{Workers: -1}, want: image.ErrParams},
		"too many workers":       {raw: one(), opts: image.EncodeOptions{Workers: image.MaxWorkers + 1}, want: image.ErrParams},
		"bad parameters":         {raw: one(), opts: image.EncodeOptions{Params: image.Params{Min: 1}}, want: image.ErrParams},
		"negative hint":          {raw: one(), opts: image.EncodeOptions{SizeHint: -1}, want: image.ErrParams},
		"hint over the limit":    {raw: one(), opts: image.EncodeOptions{SizeHint: image.MaxImageBytes + 1}, want: image.ErrLimit},
		"broken reader at once":  {raw: iotest.ErrReader(broken), want: broken},
		"broken reader later":    {raw: io.MultiReader(large(), iotest.ErrReader(broken)), want: broken},
		"broken writer":          {raw: large(), object: brokenWriter{broken}, want: broken},
		"broken writer, 1 batch": {raw: one(), object: brokenWriter{broken}, want: broken},
	} {
		if c.object == nil {
			c.object = io.Discard
		}
		if c.opts.Level == 0 {
			c.opts.Level = 1
		}
		if ix, err := image.Encode(t.Context(), c.object, c.raw, c.opts); ix != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: index %v, error %v, want %v", name, ix, err, c.want)
		}
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestEncodeEndsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last int64
	_, err := image.Encode(ctx, io.Discard, endless{}, image.EncodeOptions{Level: 1, Params: small, Progress: func(n int64) {
		if n <= last {
			t.Errorf("progress went from %d to %d", last, n)
		}
		if last = n; n > 3<<20 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

// endless is a reader of zeros.
type endless struct{}

func (endless) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Encode, and Verify with the decoder of the agent, in the memory of a few
// batches however long the image is.
func TestMemoryIsConstant(t *testing.T) {
	const limit = 24 << 20
	size := int64(256 << 20)
	if raceDetector {
		size = 24 << 20
	}
	for name, source := range map[string]func() io.Reader{
		"zeros":  func() io.Reader { return io.LimitReader(endless{}, size) },
		"random": func() io.Reader { return repeat(random(10, 1<<20), size) },
	} {
		t.Run(name, func(t *testing.T) {
			runtime.GC()
			base, peak, next := heap(), uint64(0), int64(0)
			opts := image.EncodeOptions{Level: 1, Workers: 2, SizeHint: size, Progress: func(n int64) {
				if n >= next {
					peak, next = max(peak, heap()), n+8<<20
				}
			}}
			ix, err := image.Encode(t.Context(), io.Discard, source(), opts)
			if err != nil {
				t.Fatal(err)
			}
			if peak > base+limit {
				t.Errorf("encode: peak of %d KiB over the start, want at most %d", (peak-base)>>10, limit>>10)
			}
			object, feed := io.Pipe()
			fed := make(chan error, 1)
			next = 0
			go func() {
				_, err := image.Encode(t.Context(), feed, source(), opts)
				feed.CloseWithError(err)
				fed <- err
			}()
			if err := image.Verify(t.Context(), ix, object); err != nil {
				t.Error(err)
			}
			if err := <-fed; err != nil {
				t.Error(err)
			}
			if peak > base+2*limit {
				t.Errorf("encode and verify: peak of %d KiB over the start, want at most %d", (peak-base)>>10, 2*limit>>10)
			}
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// repeat is a reader of size bytes: b again and again.
func repeat(b []byte, size int64) io.Reader {
	return io.LimitReader(&repeater{b: b}, size)
}

type repeater struct {
	b  []byte
	at int
}

func (r *repeater) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.at:])
	r.at = (r.at + n) % len(r.b)
	return n, nil
}

func ExampleEncode() {
	var object bytes.Buffer
	firmware := bytes.Repeat([]byte("firmware "), 100_000)
	ix, err := image.Encode(context.Background(), &object, bytes.NewReader(firmware), image.EncodeOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(ix.RawSize, ix.Params.Avg, ix.ObjectSize() == int64(object.Len()))
	fmt.Println(image.Verify(context.Background(), ix, &object))
	// Output:
	// 900000 4096 true
	// <nil>
}
