package shadow

import "fmt"

// Limits of a shadow and of a request. They are those of AWS IoT, save
// MaxUpdateBytes.
const (
	MaxStateBytes       = 8 << 10  // desired and reported in compact JSON, without metadata, unless Update.MaxBytes says more
	StateBytesCeiling   = 30 << 10 // the most that Update.MaxBytes may say
	MaxUpdateBytes      = 64 << 10 // payload of one update, white space and escapes included
	MaxDepth            = 6        // levels of objects and arrays below a section
	MaxClientTokenBytes = 64
	MaxNameBytes        = 64
)

// Sentinels for errors.Is, which compares codes alone: ErrInvalid matches every
// Error of code 400. Those but ErrInvalid and ErrNotFound have the whole text
// and can be answered as they are.
var (
	ErrInvalid         = &Error{Code: 400, Message: "Invalid request"}
	ErrNotFound        = &Error{Code: 404, Message: "No shadow exists"}
	ErrVersionConflict = &Error{Code: 409, Message: "Version conflict"}
	ErrDeviceNotFound  = &Error{Code: 404, Message: "Thing not found"}
	ErrTooLarge        = &Error{Code: 413, Message: "The payload exceeds the maximum size allowed"}
	ErrEncoding        = &Error{Code: 415, Message: "Unsupported documented encoding; supported encoding is UTF-8"}
	ErrThrottled       = &Error{Code: 429, Message: "Too many requests in flight; wait for the answers"}
	ErrInternal        = &Error{Code: 500, Message: "Internal service failure"}
)

// Error is a rejected request, with the code and text of the rejected payload.
// The texts are those of the AWS service, which clients compare.
type Error struct {
	Code    int // as in HTTP
	Message string
}

// Error returns the message and the code.
func (e *Error) Error() string { return fmt.Sprintf("shadow: %s (%d)", e.Message, e.Code) }

// Is reports whether target is an *Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// NotFound returns the 404 error for the shadow of that name. For the classic
// shadow, which has no name, give the id of the device.
func NotFound(name string) *Error {
	return &Error{Code: ErrNotFound.Code, Message: "No shadow exists with name: " + name}
}

// ValidateName checks the name of a shadow; "" is the classic one. A name has
// 1 to MaxNameBytes of letters, digits and : _ - $. The error is an *Error.
func ValidateName(name string) error {
	if len(name) > MaxNameBytes {
		return invalid(fmt.Sprintf("Invalid shadow name of %d bytes: use at most %d", len(name), MaxNameBytes))
	}
	for i := range len(name) {
		if !nameByte(name[i]) {
			return invalid(fmt.Sprintf("Invalid shadow name %q: use letters, digits and : _ - $", name))
		}
	}
	return nil
}

func nameByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	case c == ':', c == '_', c == '-', c == '$':
		return true
	}
	return false
}

func invalid(message string) *Error { return &Error{Code: ErrInvalid.Code, Message: message} }

func tooDeep() *Error {
	return invalid(fmt.Sprintf("JSON contains too many levels of nesting; maximum is %d", MaxDepth))
}
