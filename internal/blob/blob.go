// Package blob is the port for large immutable objects: firmware images. The
// adapters are Dir (a directory) and S3; both pass blobtest. Objects are
// untrusted bytes to everyone who reads them: devices verify chunks under a
// signature, the server verifies an upload against its index.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"
)

// Errors of every Store.
var (
	// ErrNotFound: no object has that key.
	ErrNotFound = errors.New("object not found")
	// ErrInvalidKey: the key does not match [a-z0-9][a-z0-9._/-]{0,254} or has
	// an empty, "." or ".." element.
	ErrInvalidKey = errors.New("invalid object key")
	// ErrTooLarge: the body was longer than the limit; nothing was stored.
	ErrTooLarge = errors.New("object too large")
)

// Info describes a stored object.
type Info struct {
	Key      string
	Size     int64 // bytes
	Modified time.Time
}

// Store keeps objects by key. All methods may be called concurrently.
type Store interface {
	// Put stores the whole of r under key, replacing what was there. The object
	// appears entirely or not at all: an error of r, a cancelled context, a body
	// over limit bytes (ErrTooLarge) or a crash leaves the former state.
	Put(ctx context.Context, key string, r io.Reader, limit int64) (Info, error)
	// Open reads length bytes from offset; length < 0 reads to the end. Past the
	// end it returns what there is. ErrNotFound when the key is unknown. The
	// caller closes the reader.
	Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
	// Stat returns ErrNotFound when the key is unknown.
	Stat(ctx context.Context, key string) (Info, error)
	// Delete removes the object; an unknown key is not an error.
	Delete(ctx context.Context, key string) error
}

// Linker is a Store whose objects clients can fetch without this server, with
// Range. The URL lives for ttl.
type Linker interface {
	Link(ctx context.Context, key string, ttl time.Duration) (url string, err error)
}

var keyPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$`)

// MaxKeyBytes is the longest key.
const MaxKeyBytes = 255

// ValidateKey reports a key that not every adapter could store.
func ValidateKey(key string) error {
	if len(key) > MaxKeyBytes || !keyPattern.MatchString(key) {
		return fmt.Errorf("%w: %.80q", ErrInvalidKey, key)
	}
	return nil
}
