package image

import (
	"encoding/binary"
	"errors"

	"github.com/klauspost/compress/zstd"
)

// Parts of a Zstandard frame, RFC 8878 section 3.1.1.
const (
	frameMagic       = 0xFD2FB528
	minFrameBytes    = 4 + 1 + 1 + blockHeaderBytes + 1 // one byte of content
	blockHeaderBytes = 3
	descriptorFlags  = 0b00111111 // all of the descriptor but the width of the content size
	singleSegment    = 0b00100000
	blockRLE         = 1
)

var errFrame = errors.New("not one plain zstd frame of the size in the index")

// checkFrame reports anything but exactly one frame of the form that the format
// prescribes, for raw bytes of content. So the decoder is never asked for a
// window, a dictionary, a second frame or more output than the index allows.
func checkFrame(b []byte, raw uint32) error {
	if len(b) < minFrameBytes || binary.LittleEndian.Uint32(b) != frameMagic || b[4]&descriptorFlags != singleSegment {
		return errFrame
	}
	size, rest, ok := cutContentSize(b[4]>>6, b[5:])
	if !ok || size != uint64(raw) {
		return errFrame
	}
	for len(rest) >= blockHeaderBytes {
		header := uint32(rest[0]) | uint32(rest[1])<<8 | uint32(rest[2])<<16
		body := int(header >> 3)
		if header>>1&3 == blockRLE {
			body = 1
		}
		rest = rest[blockHeaderBytes:]
		if body > len(rest) {
			return errFrame
		}
		rest = rest[body:]
		if last := header&1 == 1; last {
			break
		}
	}
	if len(rest) > 0 {
		return errFrame
	}
	return nil
}

// cutContentSize takes the content size off the front of b; flag is its width.
func cutContentSize(flag byte, b []byte) (size uint64, rest []byte, ok bool) {
	switch {
	case flag == 0 && len(b) >= 1:
		return uint64(b[0]), b[1:], true
	case flag == 1 && len(b) >= 2:
		return uint64(binary.LittleEndian.Uint16(b)) + 256, b[2:], true
	case flag == 2 && len(b) >= 4:
		return uint64(binary.LittleEndian.Uint32(b)), b[4:], true
	default: // eight bytes are for sizes that no chunk has
		return 0, nil, false
	}
}

// frameSlack is spare capacity past the output: the decoder's fast copies
// write in steps of 16 bytes.
const frameSlack = 16

// newFrameDecoder returns a decoder that never grows the buffer it is given.
func newFrameDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxChunkBytes),
		zstd.WithDecoderMaxWindow(MaxChunkBytes),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // only for options outside their ranges, and these are constants
	}
	return d
}
