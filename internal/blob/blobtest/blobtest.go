// Package blobtest is the conformance suite of blob.Store. Every adapter runs
// it; a test here is a clause of the contract in package blob.
package blobtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/blob"
)

// Limit is large enough for every body of the suite but the one that exceeds it.
const Limit = 100 << 20

// Run tests the contract. open returns an empty store.
func Run(t *testing.T, open func(t *testing.T) blob.Store) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, blob.Store)
	}{
		{"failed put leaves the former state", failedPut},
		{"limit", limit},
		{"cancelled context", cancelled},
		{"round trip", roundTrip},
		{"replace", replace},
		{"replace under a reader", replaceUnderReader},
		{"ranges", ranges},
		{"concurrent puts", concurrentPuts},
		{"invalid keys", invalidKeys},
		{"unknown key", unknownKey},
		{"delete", remove},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

var errBroken = errors.New("source broke")

// A body that ends in an error must not replace or create anything, wherever
// in the body it happens. io.ErrUnexpectedEOF is what net/http reports when an
// uploader hangs up.
func failedPut(t *testing.T, s blob.Store) {
	put(t, s, "old", []byte("former"))
	for _, fail := range []error{errBroken, io.ErrUnexpectedEOF} {
		for _, after := range []int64{0, 1, 1000, 8 << 20, 8<<20 + 1, 17 << 20} {
			for _, key := range []string{"old", "new"} {
				body := io.MultiReader(Body(1, after), errReader{fail})
				if _, err := s.Put(t.Context(), key, body, Limit); !errors.Is(err, fail) {
					t.Fatalf("put %s failing with %v after %d bytes: error %v", key, fail, after, err)
				}
			}
		}
	}
	wantBody(t, s, "old", []byte("former"))
	wantNotFound(t, s, "new")
}

func limit(t *testing.T, s blob.Store) {
	put(t, s, "old", []byte("former"))
	for _, max := range []int64{0, 10, 8 << 20, 9 << 20} {
		_, err := s.Put(t.Context(), "old", Body(1, max+1), max)
		if !errors.Is(err, blob.ErrTooLarge) {
			t.Fatalf("put of %d bytes with limit %d: error %v, want ErrTooLarge", max+1, max, err)
		}
		if want := fmt.Sprintf("more than %d bytes", max); !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
		if _, err := s.Put(t.Context(), "exact", Body(1, max), max); err != nil {
			t.Fatalf("put of exactly %d bytes: %v", max, err)
		}
		if st, err := s.Stat(t.Context(), "exact"); err != nil || st.Size != max {
			t.Fatalf("stat: size %d, %v; want %d", st.Size, err, max)
		}
	}
	if _, err := s.Put(t.Context(), "huge-limit", Body(1, 5), math.MaxInt32); err != nil {
		t.Fatalf("put with a large limit: %v", err)
	}
	wantBody(t, s, "old", []byte("former"))
}

func cancelled(t *testing.T, s blob.Store) {
	put(t, s, "old", []byte("former"))
	for _, after := range []int64{0, 1000, 9 << 20} {
		for _, key := range []string{"old", "new"} {
			ctx, cancel := context.WithCancel(t.Context())
			body := io.MultiReader(Body(1, after), callReader(cancel), Body(2, 1000))
			if _, err := s.Put(ctx, key, body, Limit); !errors.Is(err, context.Canceled) {
				t.Fatalf("put cancelled after %d bytes: error %v", after, err)
			}
			if r, err := s.Open(ctx, "old", 0, -1); err == nil {
				_, err = io.ReadAll(r)
				_ = r.Close()
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("read with a cancelled context: error %v", err)
				}
			}
			if err := s.Delete(ctx, "old"); err == nil {
				t.Fatal("delete with a cancelled context succeeded")
			}
		}
	}
	wantBody(t, s, "old", []byte("former"))
	wantNotFound(t, s, "new")
}

func roundTrip(t *testing.T, s blob.Store) {
	keys := []string{"a", "images/0a1b2c", "a.b_c-d/e/f..g", strings.Repeat("k", blob.MaxKeyBytes), strings.Repeat("l/", 127) + "l"}
	for i, key := range keys {
		want := bytesOf(uint64(i), int64(i)*4321)
		before := time.Now().Add(-time.Minute)
		info := put(t, s, key, want)
		st, err := s.Stat(t.Context(), key)
		if err != nil {
			t.Fatalf("stat %s: %v", key, err)
		}
		for _, in := range []blob.Info{info, st} {
			if in.Key != key || in.Size != int64(len(want)) || in.Modified.Before(before) || in.Modified.After(before.Add(10*time.Minute)) {
				t.Errorf("info %+v, want key %s, size %d, modified about now", in, key, len(want))
			}
		}
		wantBody(t, s, key, want)
	}
}

func replace(t *testing.T, s blob.Store) {
	for _, size := range []int64{10, 9 << 20, 0, 3} {
		want := bytesOf(uint64(size), size)
		put(t, s, "key", want)
		wantBody(t, s, "key", want)
	}
}

func replaceUnderReader(t *testing.T, s blob.Store) {
	want := bytesOf(1, 1<<20)
	put(t, s, "key", want)
	r, err := s.Open(t.Context(), "key", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	put(t, s, "key", bytesOf(2, 1<<20))
	rest, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(append(head, rest...), want) {
		t.Error("a reader saw bytes of two objects")
	}
}

func ranges(t *testing.T, s blob.Store) {
	body := bytesOf(7, 1000)
	put(t, s, "key", body)
	put(t, s, "empty", nil)
	for _, c := range []struct{ offset, length, from, to int64 }{
		{0, -1, 0, 1000}, {0, 1000, 0, 1000}, {0, 1, 0, 1}, {1, 1, 1, 2}, {999, 1, 999, 1000}, {10, 20, 10, 30},
		{10, -1, 10, 1000}, {0, 0, 0, 0}, {500, 0, 0, 0},
		{990, 100, 990, 1000}, {0, 5000, 0, 1000}, {1000, 1, 0, 0}, {1000, -1, 0, 0}, {5000, 10, 0, 0}, {5000, -1, 0, 0},
		{1, math.MaxInt64, 1, 1000}, {math.MaxInt64, math.MaxInt64, 0, 0}, {math.MaxInt64 - 1, 1, 0, 0},
	} {
		if got := read(t, s, "key", c.offset, c.length); !bytes.Equal(got, body[c.from:c.to]) {
			t.Errorf("open(%d, %d): %d bytes, want [%d:%d]", c.offset, c.length, len(got), c.from, c.to)
		}
		if got := read(t, s, "empty", c.offset, c.length); len(got) != 0 {
			t.Errorf("open(%d, %d) of an empty object: %d bytes", c.offset, c.length, len(got))
		}
	}
	if _, err := s.Open(t.Context(), "key", -1, 10); err == nil {
		t.Error("a negative offset was accepted")
	}
}

// The winner is one of the bodies as a whole.
func concurrentPuts(t *testing.T, s blob.Store) {
	const writers = 8
	sums := map[[32]byte]bool{}
	var wg sync.WaitGroup
	for i := range writers {
		body := bytesOf(uint64(i), 100_000+int64(i))
		sums[sha256.Sum256(body)] = true
		wg.Go(func() {
			if _, err := s.Put(t.Context(), "contested/key", bytes.NewReader(body), Limit); err != nil {
				t.Errorf("put: %v", err)
			}
		})
	}
	wg.Wait()
	if !sums[sha256.Sum256(read(t, s, "contested/key", 0, -1))] {
		t.Error("the object is none of the bodies")
	}
}

func invalidKeys(t *testing.T, s blob.Store) {
	keys := []string{
		"", ".", "..", "/", "/a", "a/", "a//b", "../a", "a/../b", "a/..", "a/./b", ".tmp/a", ".hidden", "a/.b",
		"A", "ä", "a b", "a\x00", "a\n", "a\\b", "a+", "a%2f", "-a", strings.Repeat("k", blob.MaxKeyBytes+1),
	}
	for _, key := range keys {
		_, putErr := s.Put(t.Context(), key, strings.NewReader("x"), Limit)
		_, openErr := s.Open(t.Context(), key, 0, -1)
		_, statErr := s.Stat(t.Context(), key)
		errs := []error{putErr, openErr, statErr, s.Delete(t.Context(), key)}
		if l, ok := s.(blob.Linker); ok {
			_, err := l.Link(t.Context(), key, time.Minute)
			errs = append(errs, err)
		}
		for _, err := range errs {
			if !errors.Is(err, blob.ErrInvalidKey) {
				t.Errorf("key %q: error %v, want ErrInvalidKey", key, err)
			}
		}
	}
}

func unknownKey(t *testing.T, s blob.Store) {
	put(t, s, "known/key", []byte("x"))
	for _, key := range []string{"unknown", "un/known", "known", "known/key2"} {
		wantNotFound(t, s, key)
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("delete of the unknown %s: %v", key, err)
		}
	}
	wantBody(t, s, "known/key", []byte("x"))
}

func remove(t *testing.T, s blob.Store) {
	put(t, s, "a/one", []byte("1"))
	put(t, s, "a/two", []byte("2"))
	if err := s.Delete(t.Context(), "a/one"); err != nil {
		t.Fatal(err)
	}
	wantNotFound(t, s, "a/one")
	wantBody(t, s, "a/two", []byte("2"))
	put(t, s, "a/one", []byte("again"))
	wantBody(t, s, "a/one", []byte("again"))
}

func put(t *testing.T, s blob.Store, key string, body []byte) blob.Info {
	t.Helper()
	info, err := s.Put(t.Context(), key, bytes.NewReader(body), Limit)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return info
}

func read(t *testing.T, s blob.Store, key string, offset, length int64) []byte {
	t.Helper()
	r, err := s.Open(t.Context(), key, offset, length)
	if err != nil {
		t.Fatalf("open %s (%d, %d): %v", key, offset, length, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read %s (%d, %d): %v", key, offset, length, err)
	}
	return b
}

func wantBody(t *testing.T, s blob.Store, key string, want []byte) {
	t.Helper()
	if got := read(t, s, key, 0, -1); !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, want %d others", key, len(got), len(want))
	}
}

func wantNotFound(t *testing.T, s blob.Store, key string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), key); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("stat %s: error %v, want ErrNotFound", key, err)
	}
	for _, length := range []int64{-1, 0, 5} {
		if _, err := s.Open(t.Context(), key, 0, length); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("open %s: error %v, want ErrNotFound", key, err)
		}
	}
}

// Body is a reader of n pseudo-random bytes that seed determines; it holds no
// more than a few of them in memory.
func Body(seed uint64, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), n)
}

func bytesOf(seed uint64, n int64) []byte {
	b, _ := io.ReadAll(Body(seed, n))
	return b
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// callReader is an empty reader that calls itself once reached.
type callReader func()

func (f callReader) Read([]byte) (int, error) { f(); return 0, io.EOF }
