package mqtt

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Limits of one request for blocks of a stream, after the AWS IoT documentation
// of MQTT-based file delivery.
const (
	MinStreamBlock = 256
	MaxStreamBlock = 128 << 10
	// MaxStreamAnswer is how many bytes of a file one request brings; what else it
	// asks for is left out and asked for again by the device.
	MaxStreamAnswer = 128 << 10
	// MaxStreamBlocks is how many blocks a request may name, and so the longest
	// bitmap has MaxStreamBitmap bytes.
	MaxStreamBlocks = 98304
	MaxStreamBitmap = MaxStreamBlocks / 8
	// MaxStreamRequest bounds a request's payload: the longest bitmap in
	// hexadecimal, and room for the rest.
	MaxStreamRequest = 2*MaxStreamBitmap + 8<<10
	// streamVersion is that of every stream. What a job installs never changes, and
	// the embedded C library asks for version 1 whatever it was told.
	streamVersion = 1
)

// The codes of a rejected stream request.
const (
	streamInvalidTopic   = "InvalidTopic"
	streamInvalidJSON    = "InvalidJson"
	streamInvalidCBOR    = "InvalidCbor"
	streamInvalidRequest = "InvalidRequest"
	streamUnauthorized   = "Unauthorized"
	streamBlockSize      = "BlockSizeOutOfBounds"
	streamOffset         = "OffsetOutOfBounds"
	streamBlockCount     = "BlockCountLimitExceeded"
	streamBitmap         = "BlockBitmapLimitExceeded"
	streamNotFound       = "ResourceNotFound"
	streamVersionDiffers = "VersionMismatch"
	streamInternal       = "InternalError"
)

// streamFault is why a request is rejected.
type streamFault struct{ code, message string }

func (f *streamFault) Error() string { return f.code + ": " + f.message }

func streamFaultf(code, format string, args ...any) *streamFault {
	return &streamFault{code, fmt.Sprintf(format, args...)}
}

// streamRequest is a describe or a get; nil and empty fields were not given.
type streamRequest struct {
	ClientToken string `json:"c"`
	Version     *int64 `json:"s"`
	File        *int64 `json:"f"`
	BlockSize   *int64 `json:"l"`
	Offset      int64  `json:"o"`
	Count       *int64 `json:"n"`
	Bitmap      bitmap `json:"b"`
}

// bitmap says which blocks after the offset are wanted: bit k, from the lowest
// bit of the first byte, is block offset + k. On the wire it is hexadecimal text
// in JSON, with or without 0x, and a byte string in CBOR.
type bitmap []byte

// UnmarshalJSON implements json.Unmarshaler.
func (b *bitmap) UnmarshalJSON(text []byte) error {
	var s *string
	if err := json.Unmarshal(text, &s); err == nil && s == nil {
		return nil // null is not given
	} else if err != nil {
		return errBitmap
	}
	digits := strings.TrimPrefix(strings.TrimPrefix(*s, "0x"), "0X")
	raw, err := hex.DecodeString(digits)
	if err != nil {
		return errBitmap
	}
	*b = raw
	return nil
}

var errBitmap = errors.New("b is not whole bytes in hexadecimal")

// has reports whether block offset + k is wanted.
func (b bitmap) has(k int64) bool { return k>>3 < int64(len(b)) && b[k>>3]>>(k&7)&1 == 1 }

func (b bitmap) empty() bool { return len(bytes.Trim(b, "\x00")) == 0 }

// decodeStream reads a request. An empty payload is one with nothing given. What
// could be read of the client token comes back beside a fault.
func decodeStream(f wireFormat, payload []byte) (streamRequest, *streamFault) {
	var r streamRequest
	if len(payload) > MaxStreamRequest {
		return r, streamFaultf(streamInvalidRequest, "the request has %d bytes, at most %d", len(payload), MaxStreamRequest)
	}
	if len(payload) > 0 {
		if err := f.read(payload, &r); errors.Is(err, errType) {
			return r, streamFaultf(streamInvalidRequest, "%v", err)
		} else if err != nil {
			return r, streamFaultf(unreadable[f.name], "the payload can not be read: %v", err)
		}
	}
	if len(r.ClientToken) > maxClientToken {
		r.ClientToken = ""
		return r, streamFaultf(streamInvalidRequest, "c must be at most %d bytes", maxClientToken)
	}
	if r.Version != nil && *r.Version != streamVersion {
		return r, streamFaultf(streamVersionDiffers, "the stream has version %d, not %d", streamVersion, *r.Version)
	}
	return r, nil
}

// unreadable is the code for a payload that is not of its format.
var unreadable = map[string]string{"json": streamInvalidJSON, "cbor": streamInvalidCBOR}

// blocks lists the blocks of a file of this size that a request gets, in
// ascending order: at most n, and at most MaxStreamAnswer bytes of whole blocks.
func (r streamRequest) blocks(size int64) ([]int64, *streamFault) {
	if f := r.validate(); f != nil {
		return nil, f
	}
	length := *r.BlockSize
	total := (size + length - 1) / length
	if r.Offset < 0 || r.Offset >= total {
		return nil, streamFaultf(streamOffset, "block %d: the file has %d blocks of %d bytes", r.Offset, total, length)
	}
	count := MaxStreamAnswer / length
	if r.Count != nil {
		count = min(count, *r.Count)
	}
	span := count // how far behind the offset a wanted block may lie
	if r.Bitmap != nil {
		span = 8 * int64(len(r.Bitmap))
	}
	var list []int64
	for k := int64(0); k < span && r.Offset+k < total && int64(len(list)) < count; k++ {
		if r.Bitmap == nil || r.Bitmap.has(k) {
			list = append(list, r.Offset+k)
		}
	}
	if len(list) == 0 && r.Bitmap.empty() {
		return nil, streamFaultf(streamInvalidRequest, "b names no block")
	}
	if len(list) == 0 {
		return nil, streamFaultf(streamOffset, "the bitmap names no block of the file: it has %d blocks of %d bytes, the offset is %d", total, length, r.Offset)
	}
	return list, nil
}

func (r streamRequest) validate() *streamFault {
	switch {
	case r.File == nil || r.BlockSize == nil:
		return streamFaultf(streamInvalidRequest, "f (file) and l (block size) are needed")
	case *r.BlockSize < MinStreamBlock || *r.BlockSize > MaxStreamBlock:
		return streamFaultf(streamBlockSize, "l is %d: want %d to %d bytes", *r.BlockSize, MinStreamBlock, MaxStreamBlock)
	case r.Count != nil && *r.Count < 1:
		return streamFaultf(streamInvalidRequest, "n is %d: want at least 1", *r.Count)
	case r.Count != nil && *r.Count > MaxStreamBlocks:
		return streamFaultf(streamBlockCount, "n is %d: at most %d", *r.Count, MaxStreamBlocks)
	case len(r.Bitmap) > MaxStreamBitmap:
		return streamFaultf(streamBitmap, "b has %d bytes: at most %d", len(r.Bitmap), MaxStreamBitmap)
	}
	return nil
}

// The answers; the member names are the protocol's.
type (
	streamDescription struct {
		ClientToken string            `json:"c,omitempty"`
		Version     int               `json:"s"`
		Description string            `json:"d"`
		Files       []streamFileEntry `json:"r"`
	}
	streamFileEntry struct {
		File int   `json:"f"`
		Size int64 `json:"z"`
	}
	streamBlock struct {
		ClientToken string `json:"c,omitempty"`
		File        int    `json:"f"`
		Length      int    `json:"l"` // of this block
		Index       int64  `json:"i"` // from the start of the file, in blocks
		Payload     []byte `json:"p"`
	}
	streamRejected struct {
		Code        string `json:"o"`
		Message     string `json:"m"`
		ClientToken string `json:"c,omitempty"`
	}
)
