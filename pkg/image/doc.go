// Package image holds the two files of a firmware image: the object, which
// carries the compressed bytes, and the index, which says what they must be.
//
// The parties: an encoder (otactl, or otad on its behalf) cuts the raw image
// into content-defined chunks and makes both files. The index is signed (it is
// a TUF target); the object is not. The server checks an uploaded object with
// Verify. The agent fetches ranges of the object and writes what Decoder hands
// out. The object may come from anyone: no byte leaves Decoder before its chunk
// has matched the length and the digest of the index. Who trusts which index is
// not decided here, and patches between two images are not part of an object.
//
// # Object
//
// The object is the chunks of the image in order, each one Zstandard frame
// (RFC 8878), with nothing before, between or after. So any range that starts
// and ends at chunk offsets can be fetched alone, and `zstd -d` of the whole
// object gives the raw image. A chunk is exactly one frame; the frame has the
// single segment flag and the content size of the chunk, and neither checksum
// nor dictionary. Data that does not compress is kept in raw blocks of such a
// frame, which costs at most MaxChunkOverhead bytes a chunk.
//
// # Index
//
// Integers are big-endian; uvarint is the shortest base 128 form of
// encoding/binary. Accepted bytes re-encode to the same bytes.
//
//	offset  bytes  field
//	0       8      magic "otadidx" and the version, 1
//	8       8      size of the raw image, 1 to MaxImageBytes
//	16      32     sha256 of the raw image
//	48      4      smallest chunk, bytes, from MinChunkBytes
//	52      4      average chunk, bytes, a power of two
//	56      4      largest chunk, bytes, up to MaxChunkBytes
//	60      4      number of chunks, n
//	64      n x    uvarint  bytes of the frame in the object
//	               uvarint  raw bytes; only the last chunk may be under the smallest
//	               16       sha256 of the raw bytes, its first 16 bytes
//	end-4   4      CRC-32C of everything before: against accidents, not attacks
//
// # Chunking
//
// Version 1 cuts with a gear hash h, modulo 2^64: for each byte b,
// h = 2h + gear[b], where gear[b] is the first 8 bytes, big-endian, of the
// sha256 of "otad gear 1" followed by the byte b. So h depends on the last 64
// bytes only. A chunk of n bytes (smallest <= n <= largest) ends where the
// leading k+2 bits of h are zero if n <= average, the leading k-2 bits if n is
// more, with average = 2^k, and otherwise at the largest size or the end of the
// image. A reader needs none of this; whoever wants its chunks to be found
// again in the next image does.
package image
