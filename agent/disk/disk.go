// Package disk is the handful of file operations that the agent's promises rest
// on: which write is on the disk when. The program uses OS; tests use Mem, a
// disk whose power can be cut after every single operation.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ErrLocked: another process works in the same directory.
var ErrLocked = errors.New("in use by another process")

// FS is a file system. Names are slash-separated paths of the host.
type FS interface {
	// OpenFile opens with os flags (O_RDONLY, O_RDWR, O_CREATE, O_TRUNC, and
	// Dsync). A new file's name is durable only after SyncDir.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename replaces atomically; durable after SyncDir.
	Rename(oldName, newName string) error
	// Symlink creates a link; durable after SyncDir.
	Symlink(target, name string) error
	Readlink(name string) (string, error)
	// Remove removes a file or link; durable after SyncDir.
	Remove(name string) error
	// MkdirAll creates a directory and its parents and makes them durable.
	MkdirAll(name string, perm fs.FileMode) error
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// Lock takes a lock that one process at a time can hold, until Close or the
	// process's end; ErrLocked when another has it.
	Lock(name string) (io.Closer, error)
	// Free returns the bytes available to this process where name lies.
	Free(name string) (int64, error)
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the file's bytes and size durable.
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	// DropCache asks the system to forget what it holds of the file in memory,
	// so that the next read comes from the disk. Best effort.
	DropCache()
}

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes: at most %d", name, size, limit)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) < size {
		return nil, fmt.Errorf("read %s: %w", name, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return b, nil
}

// WriteFile replaces a file: the old content or the new one survives a power
// cut, and the new one once it has returned.
func WriteFile(fsys FS, dir, name string, b []byte, perm fs.FileMode) error {
	temp := dir + "/." + name + ".new"
	if err := writeSync(fsys, temp, b, perm); err != nil {
		return err
	}
	if err := fsys.Rename(temp, dir+"/"+name); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// WriteLoose replaces a file as WriteFile does, but leaves to the system when it
// reaches the disk: for what may be lost with the power, and saves wear.
func WriteLoose(fsys FS, dir, name string, b []byte, perm fs.FileMode) error {
	temp := dir + "/." + name + ".new"
	f, err := fsys.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return fsys.Rename(temp, dir+"/"+name)
}

func writeSync(fsys FS, name string, b []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
