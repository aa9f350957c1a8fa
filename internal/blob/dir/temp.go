package dir

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
)

// temp is a body on its way in. It stays locked until discard, so that sweep
// of another process can tell it from what a crash left.
type temp struct {
	root *os.Root
	file *os.File
	name string
}

// writeTemp copies r into a new file below tempDir and flushes it.
func (s *Store) writeTemp(r io.Reader) (*temp, error) {
	name := path.Join(tempDir, rand.Text())
	f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	t := &temp{root: s.root, file: f, name: name}
	if err := t.fill(r); err != nil {
		t.discard()
		return nil, err
	}
	return t, nil
}

func (t *temp) fill(r io.Reader) error {
	if err := lock(t.file); err != nil {
		return err
	}
	if _, err := io.Copy(t.file, r); err != nil {
		return err
	}
	return t.file.Sync()
}

// discard closes the file and removes the name if it was not renamed.
func (t *temp) discard() {
	_ = t.file.Close()
	_ = t.root.Remove(t.name)
}

// sweep removes the temporary files that nobody holds.
func (s *Store) sweep() error {
	d, err := s.root.Open(tempDir)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	for _, n := range names {
		if err := s.sweepOne(path.Join(tempDir, n)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweepOne(name string) error {
	f, err := s.root.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if lock(f) != nil {
		return nil // an upload under way
	}
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
