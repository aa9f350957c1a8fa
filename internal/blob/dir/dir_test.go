package dir

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/blob/blobtest"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := New(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store {
		path := filepath.Join(t.TempDir(), "made", "here")
		s := open(t, path)
		t.Cleanup(func() { wantNoTemp(t, path) })
		return s
	})
}

func wantNoTemp(t *testing.T, path string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(path, tempDir))
	if err != nil || len(left) != 0 {
		t.Errorf("left in %s: %v, %v", tempDir, left, err)
	}
}

// What a crash left goes; what another process is writing stays and succeeds.
func TestNewSweepsOnlyWhatNobodyHolds(t *testing.T) {
	path := t.TempDir()
	first := open(t, path)
	crashed := filepath.Join(path, tempDir, "CRASHED")
	if err := os.WriteFile(crashed, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	body, feed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := first.Put(t.Context(), "key", body, blobtest.Limit)
		done <- err
	}()
	if _, err := feed.Write([]byte("first half, ")); err != nil {
		t.Fatal(err)
	}

	second := open(t, path)
	if _, err := os.Stat(crashed); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a crash left is still there: %v", err)
	}
	_, _ = feed.Write([]byte("second half"))
	_ = feed.Close()
	if err := <-done; err != nil {
		t.Fatalf("put during a sweep: %v", err)
	}
	if st, err := second.Stat(t.Context(), "key"); err != nil || st.Size != 23 {
		t.Errorf("object after the sweep: %+v, %v", st, err)
	}
	wantNoTemp(t, path)
}

// A link planted in the directory must not lead out of it.
func TestLinkOutOfTheDirectoryIsNotFollowed(t *testing.T) {
	path, outside := t.TempDir(), t.TempDir()
	s := open(t, path)
	if err := os.Symlink(outside, filepath.Join(path, "images+")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "images/a", strings.NewReader("x"), 10); err == nil {
		t.Error("put through a link out of the directory succeeded")
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("written outside: %v", left)
	}
	wantNoTemp(t, path)
}

// An object and a "directory" of the same name are two things.
func TestKeyAndItsPrefixCoexist(t *testing.T) {
	s := open(t, t.TempDir())
	for _, key := range []string{"a", "a/b", "a/b/c"} {
		if _, err := s.Put(t.Context(), key, strings.NewReader(key), 10); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"a", "a/b", "a/b/c"} {
		if st, err := s.Stat(t.Context(), key); err != nil || st.Size != int64(len(key)) {
			t.Errorf("%s: %+v, %v", key, st, err)
		}
	}
}

func TestFileNamesAreDistinctAndShort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.StringMatching(`[a-z0-9][a-z0-9._-]{0,8}(/[a-z0-9][a-z0-9._-]{0,8}){0,4}`)
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		if (a == b) != (fileName(a) == fileName(b)) {
			t.Fatalf("%q and %q share a file name", a, b)
		}
		if !filepath.IsLocal(fileName(a)) {
			t.Fatalf("%q leaves the directory", fileName(a))
		}
	})
	longest := strings.Repeat("k", blob.MaxKeyBytes-2) + "/k"
	for e := range strings.SplitSeq(fileName(longest), "/") {
		if len(e) > 255 {
			t.Errorf("element of %d bytes", len(e))
		}
	}
}

func TestNewRefusesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(path); err == nil {
		t.Error("a file was taken for a directory")
	}
}
