package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/otad/otad/pkg/image"
)

// attack streams a bad object; zstd has more than one frame for the same bytes,
// so a few changes are none to the image. It asserts that what was written is the true
// image up to some chunk, and reports whether the object was refused. An object
// that decodes to the true image all the same is not refused.
func attack(t *testing.T, d *image.Decoder, object, truth []byte) (refused bool) {
	t.Helper()
	var written []byte
	err := d.Stream(t.Context(), bytes.NewReader(object), 0, func(_ int, _ int64, raw []byte) error {
		written = append(written, raw...)
		return nil
	})
	if !bytes.HasPrefix(truth, written) {
		t.Fatalf("unverified bytes were written: %d", len(written))
	}
	if err == nil && len(written) != len(truth) {
		t.Fatalf("%d of %d bytes without an error", len(written), len(truth))
	}
	return err != nil
}

func TestDamagedObjectWritesNothingUnverified(t *testing.T) {
	for name, data := range map[string][]byte{
		"program": executable(t)[1<<20:][:60_000],
		"mixed":   mixed(11, 60_000),
		"random":  random(12, 20_000),
		"zeros":   make([]byte, 60_000),
	} {
		t.Run(name, func(t *testing.T) {
			ix, object := encode(t, data, image.EncodeOptions{Level: 3})
			d := image.NewDecoder(ix)
			step := max(1, len(object)/600)
			tried, harmless := 0, 0
			for i := 0; i < len(object); i += step {
				for _, mask := range []byte{1, 0x80, 0xff} {
					damaged := bytes.Clone(object)
					damaged[i] ^= mask
					tried++
					if !attack(t, d, damaged, data) {
						harmless++
					}
				}
			}
			t.Logf("%d damaged objects: %d refused, %d decoded to the true bytes", tried, tried-harmless, harmless)
			if harmless*200 > tried {
				t.Errorf("%d of %d damaged objects were accepted", harmless, tried)
			}
		})
	}
}

func TestCutAndExtendedObject(t *testing.T) {
	data := mixed(13, 40_000)
	ix, object := encode(t, data, image.EncodeOptions{Level: 1})
	for n := 0; n < len(object); n += 97 {
		written, err := decode(ix, object[:n])
		if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, image.ErrChunk) || !bytes.HasPrefix(data, written) {
			t.Fatalf("first %d bytes: error %v", n, err)
		}
		if err := image.Verify(t.Context(), ix, bytes.NewReader(object[:n])); !errors.Is(err, image.ErrObject) {
			t.Fatalf("first %d bytes: verify: %v", n, err)
		}
	}
	longer := append(bytes.Clone(object), 0)
	if err := image.Verify(t.Context(), ix, bytes.NewReader(longer)); !errors.Is(err, image.ErrObject) {
		t.Errorf("one byte more: verify: %v", err)
	}
	r := bytes.NewReader(longer)
	if err := image.NewDecoder(ix).Stream(t.Context(), r, 0, func(int, int64, []byte) error { return nil }); err != nil || r.Len() != 1 {
		t.Errorf("one byte more: stream: %v, %d bytes left", err, r.Len())
	}
}

func TestVerifyChecksTheWholeDigest(t *testing.T) {
	ix, object := encode(t, mixed(14, 40_000), image.EncodeOptions{Level: 1})
	ix.RawDigest[31] ^= 1
	if err := image.Verify(t.Context(), ix, bytes.NewReader(object)); !errors.Is(err, image.ErrObject) {
		t.Errorf("error %v, want ErrObject", err)
	}
}

func TestChunksOfAnotherPlaceAreRefused(t *testing.T) {
	p := image.Params{Min: 4096, Avg: 4096, Max: 4096}
	ix, object := encode(t, random(15, 8*4096), image.EncodeOptions{Params: p})
	d := image.NewDecoder(ix)
	for i := range ix.Chunks {
		for j := range ix.Chunks {
			_, at := ix.Span(j)
			raw, err := d.Decode(i, object[at:][:ix.Chunks[j].Compressed])
			if i == j && err != nil || i != j && (!errors.Is(err, image.ErrChunk) || raw != nil) {
				t.Fatalf("chunk %d for %d: %d bytes, %v", j, i, len(raw), err)
			}
		}
	}
}

// plain compresses b as the format wants it, unless options say otherwise.
func plain(t testing.TB, b []byte, options ...zstd.EOption) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	return enc.EncodeAll(b, nil)
}

// forge returns an index whose one chunk has the length of frame and the digest
// of raw, as an honest index of a malicious object would.
func forge(t testing.TB, frame, raw []byte) *image.Index {
	t.Helper()
	ix, _ := encode(t, raw, image.EncodeOptions{Params: image.Params{Min: 64, Avg: 4096, Max: image.MaxChunkBytes}, Level: 1})
	if len(ix.Chunks) != 1 {
		t.Fatalf("%d chunks", len(ix.Chunks))
	}
	ix.Chunks[0].Compressed = uint32(len(frame))
	return ix
}

func TestFramesOfAnotherFormAreRefused(t *testing.T) {
	raw := bytes.Repeat([]byte("abc"), 50)
	good := plain(t, raw)
	if _, err := image.NewDecoder(forge(t, good, raw)).Decode(0, good); err != nil {
		t.Fatal(err)
	}
	skippable := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 0x184D2A50), 0)
	huge := plain(t, make([]byte, 64<<20), zstd.WithWindowSize(1<<26))
	lying := append(bytes.Clone(good[:4]), 0x20, byte(len(raw))) // says 150 bytes, blocks say 64 MiB
	lying = append(lying, huge[9:]...)
	for name, frame := range map[string][]byte{
		"bomb of 64 MiB":        huge,
		"bomb that lies":        lying,
		"skippable frame after": append(bytes.Clone(good), skippable...),
		"skippable frame first": append(bytes.Clone(skippable), good...),
		"empty frame after":     append(bytes.Clone(good), plain(t, nil, zstd.WithZeroFrames(true))...),
		"byte after":            append(bytes.Clone(good), 0),
		"checksum":              plain(t, raw, zstd.WithEncoderCRC(true)),
		"window":                plain(t, raw, zstd.WithSingleSegment(false)),
		"size in eight bytes":   append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 150, 0, 0, 0, 0, 0, 0, 0}, good[6:]...),
		"two frames":            append(plain(t, raw[:75]), plain(t, raw[75:])...),
		"no block":              append(bytes.Clone(good[:6]), 0, 0, 0, 0),
		"not zstd":              raw,
	} {
		ix := forge(t, frame, raw)
		got, err := image.NewDecoder(ix).Decode(0, frame)
		if !errors.Is(err, image.ErrChunk) || got != nil {
			t.Errorf("%s: %d bytes, %v, want ErrChunk", name, len(got), err)
		}
	}
}

// A bomb must cost no more memory than the chunk it pretends to be.
func TestBombDoesNotAllocate(t *testing.T) {
	raw := make([]byte, 4096)
	honest := plain(t, raw)
	const lastRun = 1 | 1<<1 // a block header: the last block, one byte repeated
	bomb := binary.LittleEndian.AppendUint32(bytes.Clone(honest[:7]), lastRun|(128<<10)<<3)
	ix := forge(t, bomb, raw)
	d := image.NewDecoder(ix)
	const runs = 1000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		if _, err := d.Decode(0, bomb); !errors.Is(err, image.ErrChunk) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / runs; n > 4096 {
		t.Errorf("%d bytes allocated for each refused bomb", n)
	}
}

func TestDecodeRefusesWrongArguments(t *testing.T) {
	ix, object := encode(t, mixed(16, 20_000), image.EncodeOptions{Level: 1})
	d := image.NewDecoder(ix)
	n := int(ix.Chunks[0].Compressed)
	for _, c := range []struct {
		chunk int
		bytes []byte
	}{{-1, object[:n]}, {len(ix.Chunks), object[:n]}, {0, nil}, {0, object[:n-1]}, {0, object[:n+1]}} {
		if raw, err := d.Decode(c.chunk, c.bytes); !errors.Is(err, image.ErrChunk) || raw != nil {
			t.Errorf("chunk %d, %d bytes: %d bytes, %v", c.chunk, len(c.bytes), len(raw), err)
		}
	}
	for _, first := range []int{-1, len(ix.Chunks) + 1} {
		if err := d.Stream(t.Context(), bytes.NewReader(object), first, nil); !errors.Is(err, image.ErrChunk) {
			t.Errorf("stream from %d: %v", first, err)
		}
	}
	if _, err := d.Decode(0, object[:n]); err != nil {
		t.Errorf("the decoder is not usable after errors: %v", err)
	}
}

// The buffers are reused: what is allocated does not grow with the image.
func TestDecodeReusesItsBuffers(t *testing.T) {
	data := executable(t)[:3<<20]
	ix, object := encode(t, data, image.EncodeOptions{Level: 3})
	d := image.NewDecoder(ix)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i, c := range ix.Chunks {
		_, at := ix.Span(i)
		if _, err := d.Decode(i, object[at:][:c.Compressed]); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	limit := len(data) / 2
	if raceDetector {
		limit = 16 * len(data)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > uint64(limit) {
		t.Errorf("%d bytes allocated to decode %d", n, len(data))
	}
}

func TestStreamFromEveryChunk(t *testing.T) {
	data := mixed(17, 100_000)
	ix, object := encode(t, data, image.EncodeOptions{Level: 1})
	d := image.NewDecoder(ix)
	for first := range len(ix.Chunks) + 1 {
		rawAt, objectAt := ix.Span(first)
		next, got := first, []byte{}
		err := d.Stream(t.Context(), bytes.NewReader(object[objectAt:]), first, func(chunk int, offset int64, raw []byte) error {
			if chunk != next || offset != rawAt+int64(len(got)) {
				t.Fatalf("chunk %d at %d, want %d at %d", chunk, offset, next, rawAt+int64(len(got)))
			}
			next, got = next+1, append(got, raw...)
			return nil
		})
		if err != nil || next != len(ix.Chunks) || !bytes.Equal(got, data[rawAt:]) {
			t.Fatalf("from chunk %d: %d bytes, %v", first, len(got), err)
		}
	}
}

// The offsets of an image over 4 GiB, of zeros: its object is short.
func TestStreamBeyond32Bits(t *testing.T) {
	const chunks, size = 4100, image.MaxChunkBytes
	one, frame := encode(t, make([]byte, size), image.EncodeOptions{Params: image.Params{Min: size, Avg: size, Max: size}})
	ix := &image.Index{RawSize: chunks * size, Params: one.Params}
	for range chunks {
		ix.Chunks = append(ix.Chunks, one.Chunks[0])
	}
	parsed, err := image.ParseIndex(marshal(t, ix))
	if err != nil {
		t.Fatal(err)
	}
	var end int64
	err = image.NewDecoder(parsed).Stream(t.Context(), bytes.NewReader(bytes.Repeat(frame, 10)), chunks-10, func(_ int, offset int64, raw []byte) error {
		end = offset + int64(len(raw))
		return nil
	})
	if err != nil || end != chunks*size {
		t.Errorf("end at %d, want %d: %v", end, int64(chunks)*size, err)
	}
}

func TestStreamEndsWithTheFirstError(t *testing.T) {
	data := mixed(18, 500_000)
	ix, object := encode(t, data, image.EncodeOptions{Level: 1, Params: image.DefaultParams(1)})
	full := errors.New("disk full")
	d := image.NewDecoder(ix)
	calls := 0
	err := d.Stream(t.Context(), bytes.NewReader(object), 0, func(chunk int, _ int64, _ []byte) error {
		if calls++; chunk == 5 {
			return full
		}
		return nil
	})
	if err != full || calls != 6 {
		t.Errorf("error %v after %d calls", err, calls)
	}

	reset := errors.New("connection reset")
	_, at := ix.Span(9)
	calls = 0
	err = d.Stream(t.Context(), io.MultiReader(bytes.NewReader(object[:at]), errorReader{reset}), 0, func(int, int64, []byte) error { calls++; return nil })
	if !errors.Is(err, reset) || calls != 9 {
		t.Errorf("error %v after %d calls: the chunks before a broken connection count", err, calls)
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// silent is a connection on which nothing comes until the context ends.
type silent struct{ ctx context.Context }

func (r silent) Read([]byte) (int, error) {
	<-r.ctx.Done()
	return 0, errors.New("use of closed connection")
}

func TestStreamEndsWhenCancelled(t *testing.T) {
	ix, object := encode(t, mixed(19, 200_000), image.EncodeOptions{Level: 1})
	for name, when := range map[string]int{"before": -1, "while writing": 3, "while reading": 5} {
		ctx, cancel := context.WithCancel(t.Context())
		if when < 0 {
			cancel()
		}
		_, at := ix.Span(6)
		written := 0
		err := image.NewDecoder(ix).Stream(ctx, io.MultiReader(bytes.NewReader(object[:at]), silent{ctx}), 0, func(chunk int, _ int64, _ []byte) error {
			if written++; chunk == when {
				cancel()
			}
			return nil
		})
		if err != context.Canceled || written != when+1 {
			t.Errorf("cancelled %s: error %v after %d chunks", name, err, written)
		}
		if err := image.Verify(ctx, ix, silent{ctx}); err != context.Canceled {
			t.Errorf("verify: %v", err)
		}
		cancel()
	}
}

func FuzzDecode(f *testing.F) {
	raw := mixed(20, 5000)
	params := image.Params{Min: 5000, Avg: 8192, Max: 8192}
	ix, object := encode(f, raw, image.EncodeOptions{Params: params})
	f.Add(object)
	f.Add(plain(f, raw, zstd.WithEncoderLevel(zstd.SpeedFastest)))
	f.Add(plain(f, make([]byte, 5000)))
	f.Add(raw)
	f.Fuzz(func(t *testing.T, frame []byte) {
		forged := *ix
		forged.Chunks = []image.Chunk{ix.Chunks[0]}
		forged.Chunks[0].Compressed = uint32(len(frame))
		got, err := image.NewDecoder(&forged).Decode(0, frame)
		if err == nil && !bytes.Equal(got, raw) {
			t.Fatal("unverified bytes")
		}
		if err != nil && (got != nil || !errors.Is(err, image.ErrChunk)) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}
