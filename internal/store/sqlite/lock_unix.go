//go:build unix

package sqlite

import (
	"os"

	"golang.org/x/sys/unix"
)

// lock takes the exclusive lock of f without waiting. The kernel releases it
// when the file is closed or the process ends, however it ends.
func lock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
