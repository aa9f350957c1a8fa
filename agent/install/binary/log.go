package binary

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// MaxLog is the size of the log file, in bytes, at which it becomes NAME.1 in
// place of the one before.
const MaxLog = 1 << 20

// logFile is a file of bounded size; safe for concurrent use. What can not be
// written is dropped: a full disk stops no program.
type logFile struct {
	name string

	mu   sync.Mutex
	f    *os.File
	size int64
}

func openLog(name string) (*logFile, error) {
	l := &logFile{name: name}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write implements io.Writer and never fails.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil && l.size+int64(len(p)) > MaxLog {
		l.turn()
	}
	if l.f != nil && len(p) <= MaxLog {
		n, _ := l.f.Write(p)
		l.size += int64(n)
	}
	return len(p), nil
}

func (l *logFile) turn() {
	if err := errors.Join(l.f.Close(), os.Rename(l.name, l.name+".1")); err != nil {
		l.f = nil
		return
	}
	if l.open() != nil {
		l.f = nil
	}
}

// Close closes the file.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
