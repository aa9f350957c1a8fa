package shadow

import "time"

// Limits of a shadow.
const (
	MaxStateBytes       = 8 << 10  // desired and reported, without whitespace and metadata
	MaxUpdateBytes      = 32 << 10 // one update request, with whitespace
	MaxDepth            = 6        // levels of objects and arrays below a section
	MaxClientTokenBytes = 64
	MaxNameBytes        = 64
)

// Sentinels, for errors.Is. Two errors match when their codes are equal.
var (
	ErrInvalid         = &Error{Code: 400, Message: "Invalid request"}
	ErrNotFound        = &Error{Code: 404, Message: "No shadow exists"}
	ErrVersionConflict = &Error{Code: 409, Message: "Version conflict"}
	ErrTooLarge        = &Error{Code: 413, Message: "The payload exceeds the maximum size allowed"}
	ErrEncoding        = &Error{Code: 415, Message: "Unsupported documented encoding; supported encoding is UTF-8"}
)

// Error is a rejected request, with the code and text of the rejected payload.
type Error struct {
	Code    int
	Message string
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

func (e *Error) Payload(clientToken string, now time.Time) []byte { return nil }

func NotFound(name string) *Error { return &Error{Code: 404} }
