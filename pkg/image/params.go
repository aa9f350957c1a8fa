package image

import (
	"fmt"
	"math/bits"
)

// Params are the parameters of content-defined chunking, in bytes:
// MinChunkBytes <= Min <= Avg <= Max <= MaxChunkBytes, and Avg is a power of
// two. Every chunk but the last has Min to Max bytes. They travel in the index,
// so that a later image, or an old slot, is cut alike.
type Params struct{ Min, Avg, Max uint32 }

const (
	smallImage  = 2 << 20  // below: 4 KiB chunks, for microcontroller images
	smallAvg    = 4 << 10  //
	defaultAvg  = 16 << 10 // measured best for file systems
	plainImage  = 8 << 30  // above: larger chunks, which keep the index small
	spread      = 4        // Min = Avg/spread, Max = Avg*spread
	largestAvg  = MaxChunkBytes / spread
	unknownSize = 0
)

// DefaultParams returns the parameters for an image of rawSize bytes: an
// average of 4 KiB under 2 MiB, 16 KiB up to 8 GiB, and above that as much as
// keeps the image at about half a million chunks. A rawSize of 0 or less means
// unknown and gives 16 KiB.
func DefaultParams(rawSize int64) Params {
	avg := uint32(defaultAvg)
	if rawSize > unknownSize && rawSize < smallImage {
		avg = smallAvg
	}
	for size := rawSize; size > plainImage && avg < largestAvg; size /= 2 {
		avg *= 2
	}
	return Params{Min: avg / spread, Avg: avg, Max: avg * spread}
}

// Validate returns ErrParams with the first rule that p breaks.
func (p Params) Validate() error {
	switch {
	case p.Min < MinChunkBytes || p.Max > MaxChunkBytes:
		return fmt.Errorf("%w: chunks of %d to %d bytes: want %d to %d", ErrParams, p.Min, p.Max, MinChunkBytes, MaxChunkBytes)
	case p.Min > p.Avg || p.Avg > p.Max:
		return fmt.Errorf("%w: chunks of %d, %d, %d bytes: want min <= avg <= max", ErrParams, p.Min, p.Avg, p.Max)
	case bits.OnesCount32(p.Avg) != 1:
		return fmt.Errorf("%w: average chunk of %d bytes: want a power of two", ErrParams, p.Avg)
	}
	return nil
}
