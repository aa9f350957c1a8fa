//go:build !unix

package dir

import "os"

// lock does nothing: where there is no flock, one process at a time may use
// the directory.
func lock(*os.File) error { return nil }
