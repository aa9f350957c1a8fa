// Package dir keeps blobs as files below one directory.
//
// The object with the key images/ab12 is the file images+/ab12. Directories
// carry a "+", which no key may contain, so that the keys "images" and
// "images/ab12" can both exist. Bodies are written to .tmp/, flushed, renamed
// and the directories flushed: after a power cut an object is there entirely or
// not at all. Several processes may share the directory on one machine.
//
// It does not verify what it stores; blob says who does.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"

	"github.com/otad/otad/internal/blob"
)

const (
	tempDir   = ".tmp" // no key starts with a dot
	dirSuffix = "+"    // no key contains it
	dirMode   = 0o750
	fileMode  = 0o640
)

// Store is a blob.Store in a directory.
type Store struct {
	root *os.Root // no file name can leave it, symbolic links included
}

var _ blob.Store = (*Store)(nil)

// New opens the store in the directory at dirPath and creates it if needed.
// What crashed uploads left behind is removed; uploads that another process
// has under way are not.
func New(dirPath string) (*Store, error) {
	if err := os.MkdirAll(dirPath, dirMode); err != nil {
		return nil, fmt.Errorf("create blob directory: %w", err)
	}
	root, err := os.OpenRoot(dirPath)
	if err != nil {
		return nil, fmt.Errorf("open blob directory: %w", err)
	}
	s := &Store{root: root}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("open blob directory %s: %w", dirPath, err), root.Close())
	}
	return s, nil
}

func (s *Store) prepare() error {
	if err := s.root.Mkdir(tempDir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.sweep(); err != nil {
		return fmt.Errorf("sweep %s: %w", tempDir, err)
	}
	return s.syncDir(".")
}

// Close releases the directory. Readers that are open stay usable.
func (s *Store) Close() error { return s.root.Close() }

// Put implements blob.Store.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, limit int64) (blob.Info, error) {
	if err := blob.ValidateKey(key); err != nil {
		return blob.Info{}, err
	}
	tmp, err := s.writeTemp(blob.Limit(ctx, r, limit))
	if err != nil {
		return blob.Info{}, fmt.Errorf("store object %s: %w", key, err)
	}
	defer tmp.discard()
	if err := ctx.Err(); err != nil {
		return blob.Info{}, fmt.Errorf("store object %s: %w", key, err)
	}
	info, err := s.publish(tmp, key)
	if err != nil {
		return blob.Info{}, fmt.Errorf("store object %s: %w", key, err)
	}
	return info, nil
}

// publish renames the flushed tmp to its final name and makes the name durable.
func (s *Store) publish(tmp *temp, key string) (blob.Info, error) {
	st, err := tmp.file.Stat()
	if err != nil {
		return blob.Info{}, err
	}
	name := fileName(key)
	if err := s.makeDirs(path.Dir(name)); err != nil {
		return blob.Info{}, err
	}
	if err := s.root.Rename(tmp.name, name); err != nil {
		return blob.Info{}, err
	}
	if err := s.syncDir(path.Dir(name)); err != nil {
		return blob.Info{}, err
	}
	return blob.Info{Key: key, Size: st.Size(), Modified: st.ModTime()}, nil
}

// Open implements blob.Store.
func (s *Store) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := blob.ValidateKey(key); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("open object %s: offset %d is negative", key, offset)
	}
	f, err := s.root.Open(fileName(key))
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", key, notFound(err))
	}
	if length < 0 {
		length = math.MaxInt64
	}
	length = min(length, math.MaxInt64-offset)
	return &reader{ctx: ctx, Reader: io.NewSectionReader(f, offset, length), Closer: f}, nil
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := blob.ValidateKey(key); err != nil {
		return blob.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return blob.Info{}, err
	}
	st, err := s.root.Stat(fileName(key))
	if err != nil {
		return blob.Info{}, fmt.Errorf("stat object %s: %w", key, notFound(err))
	}
	return blob.Info{Key: key, Size: st.Size(), Modified: st.ModTime()}, nil
}

// Delete implements blob.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := blob.ValidateKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	name := fileName(key)
	if err := s.root.Remove(name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("delete object %s: %w", key, err)
	}
	return s.syncDir(path.Dir(name))
}

// makeDirs creates dir and its parents and makes each new name durable.
func (s *Store) makeDirs(dir string) error {
	if dir == "." {
		return nil
	}
	if _, err := s.root.Stat(dir); err == nil {
		return nil
	}
	if err := s.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	if err := s.root.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.syncDir(path.Dir(dir))
}

func (s *Store) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// fileName turns a valid key into a path below the root. It is never longer in
// any element than the key allows: an element before a "/" has at most 253 bytes.
func fileName(key string) string { return strings.ReplaceAll(key, "/", dirSuffix+"/") }

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return blob.ErrNotFound
	}
	return err
}

// reader ends with ctx, as a reader over the network does.
type reader struct {
	ctx context.Context
	io.Reader
	io.Closer
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
