//go:build !unix

package sqlite

import "os"

// lock does nothing: where there is no flock, one process at a time may use
// the database.
func lock(*os.File) error { return nil }
