package image_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/otad/otad/pkg/image"
)

func BenchmarkChunker(b *testing.B) {
	data := executable(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		c, err := image.NewChunker(bytes.NewReader(data), image.DefaultParams(int64(len(data))))
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = c.Next()
		}
		if err != io.EOF {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	data := executable(b)
	for _, level := range []int{1, 3, 7, 11} {
		b.Run(fmt.Sprintf("level=%d", level), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				ix, err := image.Encode(context.Background(), io.Discard, bytes.NewReader(data), image.EncodeOptions{Level: level, SizeHint: int64(len(data))})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(ix.ObjectSize())/float64(ix.RawSize), "object/raw")
			}
		})
	}
}

func BenchmarkDecodeStream(b *testing.B) {
	data := executable(b)
	ix, object := encode(b, data, image.EncodeOptions{})
	d := image.NewDecoder(ix)
	b.SetBytes(ix.RawSize)
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Stream(context.Background(), bytes.NewReader(object), 0, func(int, int64, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	data := executable(b)
	ix, object := encode(b, data, image.EncodeOptions{})
	d := image.NewDecoder(ix)
	b.SetBytes(ix.RawSize)
	b.ReportAllocs()
	for b.Loop() {
		rest := object
		for i, c := range ix.Chunks {
			if _, err := d.Decode(i, rest[:c.Compressed]); err != nil {
				b.Fatal(err)
			}
			rest = rest[c.Compressed:]
		}
	}
}

func BenchmarkParseIndex(b *testing.B) {
	encoded := marshal(b, manyChunks(131_072))
	b.SetBytes(int64(len(encoded)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := image.ParseIndex(encoded); err != nil {
			b.Fatal(err)
		}
	}
}
