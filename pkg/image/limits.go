package image

import "errors"

// Errors of this package. Their texts are completed with the place and, where
// there is one, the remedy.
var (
	// ErrIndex: the bytes are not an index, or its values contradict each other.
	ErrIndex = errors.New("invalid image index")
	// ErrChunk: a chunk of the object does not match the index. It may be fetched
	// again from elsewhere.
	ErrChunk = errors.New("invalid image chunk")
	// ErrObject: the object as a whole does not match the index.
	ErrObject = errors.New("invalid image object")
	// ErrEmpty: there is no raw byte to encode.
	ErrEmpty = errors.New("empty image")
	// ErrParams: chunking parameters or encode options outside their ranges.
	ErrParams = errors.New("invalid image parameters")
	// ErrLimit: the image is over a limit of the format.
	ErrLimit = errors.New("image over the limit")
)

// Limits of the format.
const (
	// MaxImageBytes bounds the raw image and its object.
	MaxImageBytes int64 = 64 << 30
	// MaxIndexBytes bounds an encoded index, and so the memory of a reader.
	MaxIndexBytes = 16 << 20
	// MaxChunkBytes bounds the raw bytes of a chunk.
	MaxChunkBytes = 1 << 20
	// MinChunkBytes bounds Params.Min from below: the reach of the gear hash.
	MinChunkBytes = gearReach
	// MaxChunkOverhead is how many bytes a compressed chunk may be longer than
	// its raw bytes.
	MaxChunkOverhead = 64
)
