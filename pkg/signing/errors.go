package signing

import (
	"errors"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// The classes of errors of this package; test them with errors.Is.
var (
	// ErrPassphrase: a sealed key does not open, the passphrase is wrong or the file damaged.
	ErrPassphrase = errors.New("wrong passphrase or damaged key file")
	// ErrKeyRole: a sealed key was made for another role than the one asked for.
	ErrKeyRole = errors.New("key belongs to another role")
	// ErrFormat: bytes are not a well-formed document of the kind asked for.
	ErrFormat = errors.New("malformed")
	// ErrInvalid: an operator's or caller's argument breaks a rule; the text says which.
	ErrInvalid = errors.New("invalid")
	// ErrConflict: a target path already stands for other content.
	ErrConflict = errors.New("target exists with other content")
	// ErrSignature: too few valid signatures of the keys that count.
	ErrSignature = errors.New("not signed by enough trusted keys")
	// ErrExpired: a document's life is over at the time given.
	ErrExpired = errors.New("expired")
	// ErrRollback: a version is not the one that must follow or that the parent
	// document names, or something that was listed has vanished.
	ErrRollback = errors.New("version goes back or does not match")
	// ErrVersionJump: a version leaps by more than MaxVersionJump. Worth an
	// alarm: it is the mark of a stolen online key (fast-forward attack).
	ErrVersionJump = errors.New("version leaps too far")
	// ErrMismatch: bytes have not the signed length and digest.
	ErrMismatch = errors.New("content does not match its signed length and digest")
	// ErrTooLarge: bytes exceed the cap of their kind.
	ErrTooLarge = errors.New("too large")
	// ErrUnknownTarget: the operators signed no target of that path.
	ErrUnknownTarget = errors.New("unknown target")
	// ErrIncomplete: a step of the chain root, timestamp, snapshot, targets is missing.
	ErrIncomplete = errors.New("trust chain is not complete")
)

// guard runs f and turns a panic inside it into ErrFormat: go-tuf 2.4.2
// dereferences null entries.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: parser panic: %v", ErrFormat, r)
		}
	}()
	return f()
}

// translate puts an error of go-tuf into one of our classes. The more special
// kinds come first, since each of them also answers to ErrRepository.
func translate(err error) error {
	class := ErrFormat
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrFormat):
		return err
	case errors.Is(err, &metadata.ErrExpiredMetadata{}):
		class = ErrExpired
	case errors.Is(err, &metadata.ErrUnsignedMetadata{}):
		class = ErrSignature
	case errors.Is(err, &metadata.ErrLengthOrHashMismatch{}):
		class = ErrMismatch
	case errors.Is(err, &metadata.ErrBadVersionNumber{}), errors.Is(err, &metadata.ErrRepository{}):
		class = ErrRollback
	}
	return fmt.Errorf("%w: %w", class, err)
}
