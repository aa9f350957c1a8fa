package rawimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/blob/dir"
	"github.com/otad/otad/internal/blob/s3"
	"github.com/otad/otad/internal/testserver"
	"github.com/otad/otad/pkg/image"
)

// content is compressible here and not there, as firmware is.
func content(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		if i>>14&1 == 0 {
			b[i] = byte(r.UintN(256))
		} else {
			b[i] = byte(i >> 6)
		}
	}
	return b
}

// stored puts an image into blobs.
func stored(t testing.TB, blobs blob.Store, raw []byte) (Image, *image.Index) {
	t.Helper()
	var object bytes.Buffer
	ix, err := image.Encode(t.Context(), &object, bytes.NewReader(raw), image.EncodeOptions{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	index, err := ix.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(index)
	img := Image{Object: "images/a", Index: "indexes/a", IndexDigest: hex.EncodeToString(sum[:])}
	for key, b := range map[string][]byte{img.Object: object.Bytes(), img.Index: index} {
		if _, err := blobs.Put(t.Context(), key, bytes.NewReader(b), 1<<30); err != nil {
			t.Fatal(err)
		}
	}
	return img, ix
}

func directory(t testing.TB) blob.Store {
	t.Helper()
	s, err := dir.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bucket(t *testing.T) blob.Store {
	t.Helper()
	srv := testserver.VersityGW(t)
	s, err := s3.New(t.Context(), s3.Config{
		Endpoint: srv.Endpoint, AccessKey: srv.AccessKey, SecretKey: srv.SecretKey, Region: srv.Region,
		Bucket: "rawimage", CreateBucket: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// counted counts the requests.
type counted struct {
	blob.Store
	mu    sync.Mutex
	opens int
}

func (c *counted) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	c.mu.Lock()
	c.opens++
	c.mu.Unlock()
	return c.Store.Open(ctx, key, offset, length)
}

func TestAnyRangeIsThatOfTheRawImage(t *testing.T) {
	raw := content(1<<20 + 77)
	for name, open := range map[string]func(*testing.T) blob.Store{
		"dir": func(t *testing.T) blob.Store { return directory(t) },
		"s3":  bucket,
	} {
		t.Run(name, func(t *testing.T) {
			blobs := open(t)
			img, _ := stored(t, blobs, raw)
			r := New(blobs)
			rapid.Check(t, func(t *rapid.T) {
				offset := rapid.Int64Range(0, int64(len(raw)+10)).Draw(t, "offset")
				p := make([]byte, rapid.IntRange(1, 200<<10).Draw(t, "length"))
				n, err := r.ReadAt(context.Background(), img, p, offset)
				want := raw[min(offset, int64(len(raw))):min(offset+int64(len(p)), int64(len(raw)))]
				if !bytes.Equal(p[:n], want) {
					t.Fatalf("%d bytes, want %d, or others", n, len(want))
				}
				if wantErr := map[bool]error{true: io.EOF}[n < len(p)]; !errors.Is(err, wantErr) || wantErr == nil && err != nil {
					t.Fatalf("error %v, want %v", err, wantErr)
				}
			})
		})
	}
}

// Small blocks in order: each chunk is fetched once, and a long read is one
// request.
func TestChunksAreFetchedOnce(t *testing.T) {
	raw := content(1 << 20)
	blobs := &counted{Store: directory(t)}
	img, ix := stored(t, blobs, raw)
	r := New(blobs)
	p := make([]byte, 256)
	for offset := int64(0); offset < int64(len(raw)); offset += int64(len(p)) {
		if _, err := r.ReadAt(t.Context(), img, p, offset); err != nil {
			t.Fatal(err)
		}
	}
	if want := len(ix.Chunks) + 1; blobs.opens != want {
		t.Errorf("%d requests for %d chunks and the index", blobs.opens, len(ix.Chunks))
	}
	r, blobs.opens = New(blobs), 0
	if _, err := r.ReadAt(t.Context(), img, make([]byte, 128<<10), 5000); err != nil {
		t.Fatal(err)
	}
	if blobs.opens != 2 {
		t.Errorf("%d requests for the index and one range", blobs.opens)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	raw := content(MaxCachedChunks + 4<<20)
	blobs := directory(t)
	img, _ := stored(t, blobs, raw)
	r := New(blobs)
	if _, err := r.ReadAt(t.Context(), img, make([]byte, len(raw)), 0); err != nil {
		t.Fatal(err)
	}
	if r.chunks.weight > MaxCachedChunks || r.chunks.weight < MaxCachedChunks/2 {
		t.Errorf("%d bytes of chunks kept, limit %d", r.chunks.weight, MaxCachedChunks)
	}
	sum := 0
	for e := r.chunks.order.Front(); e != nil; e = e.Next() {
		sum += len(e.Value.(entry[place, []byte]).value)
	}
	if sum != r.chunks.weight || r.chunks.order.Len() != len(r.chunks.at) {
		t.Errorf("%d bytes in %d entries, counted %d in %d", sum, r.chunks.order.Len(), r.chunks.weight, len(r.chunks.at))
	}
}

func TestDamageIsNeverReturned(t *testing.T) {
	raw := content(200 << 10)
	blobs := directory(t)
	img, ix := stored(t, blobs, raw)
	put := func(key string, b []byte) {
		t.Helper()
		if _, err := blobs.Put(t.Context(), key, bytes.NewReader(b), 1<<30); err != nil {
			t.Fatal(err)
		}
	}
	get := func(key string) []byte {
		t.Helper()
		body, err := blobs.Open(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = body.Close() }()
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	object, index := get(img.Object), get(img.Index)
	_, second := ix.Span(1)
	flipped := bytes.Clone(object)
	flipped[second+20] ^= 1
	put(img.Object, flipped)
	p := make([]byte, len(raw))
	n, err := New(blobs).ReadAt(t.Context(), img, p, 0)
	if !errors.Is(err, ErrDamaged) || n != int(ix.Chunks[0].Raw) || !bytes.Equal(p[:n], raw[:n]) {
		t.Errorf("flipped bit: %d bytes, %v", n, err)
	}
	put(img.Object, object[:len(object)-1])
	if _, err := New(blobs).ReadAt(t.Context(), img, p, 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("short object: %v", err)
	}
	put(img.Object, object)
	for name, b := range map[string][]byte{"another": append(bytes.Clone(index), 0), "too large": make([]byte, image.MaxIndexBytes+1)} {
		put(img.Index, b)
		if _, err := New(blobs).ReadAt(t.Context(), img, p, 0); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s index: %v", name, err)
		}
	}
	img.Index = strings.Repeat("b", 8)
	if _, err := New(blobs).ReadAt(t.Context(), img, p, 0); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("no index: %v", err)
	}
}

func TestConcurrentReaders(t *testing.T) {
	raw := content(2 << 20)
	blobs := directory(t)
	img, _ := stored(t, blobs, raw)
	r := New(blobs)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 0))
			for range 200 {
				p := make([]byte, 1+rnd.IntN(64<<10))
				offset := rnd.IntN(len(raw) - len(p))
				if n, err := r.ReadAt(t.Context(), img, p, int64(offset)); err != nil || !bytes.Equal(p[:n], raw[offset:offset+len(p)]) {
					t.Errorf("at %d: %d of %d bytes, %v", offset, n, len(p), err)
				}
			}
		})
	}
	wg.Wait()
}
