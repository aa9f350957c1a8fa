package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/image"
)

func newImageCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "image", Short: "Offline tools of the image format"},
		newImageEncodeCmd(a), newImageInspectCmd(a))
}

// imageView describes an image by its index.
type imageView struct {
	SHA256     string `json:"sha256"`     // of the raw image
	Size       int64  `json:"size"`       // raw bytes
	ObjectSize int64  `json:"objectSize"` // bytes of the compressed object
	Chunks     int    `json:"chunks"`
	MinChunk   uint32 `json:"minChunk"` // chunking parameters, bytes
	AvgChunk   uint32 `json:"avgChunk"`
	MaxChunk   uint32 `json:"maxChunk"`
	IndexSize  int    `json:"indexSize"`
	Object     string `json:"object,omitempty"` // files written
	Index      string `json:"index,omitempty"`
	Verified   bool   `json:"verified"` // the object was read and matches the index
}

func newImageView(ix *image.Index, encoded []byte) imageView {
	return imageView{
		SHA256: hex.EncodeToString(ix.RawDigest[:]), Size: ix.RawSize, ObjectSize: ix.ObjectSize(), Chunks: len(ix.Chunks),
		MinChunk: ix.Params.Min, AvgChunk: ix.Params.Avg, MaxChunk: ix.Params.Max, IndexSize: len(encoded),
	}
}

func (a *app) printImage(v imageView) error {
	return printOne(a, v, v.SHA256, func(w io.Writer) error {
		verified := ""
		if v.Verified {
			verified = "the object matches the index"
		}
		return writeFields(w, []field{
			{"SHA-256", v.SHA256},
			{"Size", exactSize(v.Size)},
			{"Object", exactSize(v.ObjectSize) + ", " + percent(v.ObjectSize, v.Size) + " of the image"},
			{"Chunks", fmt.Sprintf("%d of %d to %d bytes, average %d", v.Chunks, v.MinChunk, v.MaxChunk, v.AvgChunk)},
			{"Index", exactSize(int64(v.IndexSize))},
			{"Object file", v.Object},
			{"Index file", v.Index},
			{"Verified", verified},
		})
	})
}

func newImageEncodeCmd(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "encode FILE", Short: "Make the object and the index of an image", Args: takes("FILE"),
		Long: `encode writes FILE.obj, the compressed chunks, and FILE.idx, the index that a
release signs. The same image always gives the same two files. An object is a
plain Zstandard stream: "zstd -dc FILE.obj" gives the image back.`,
		Example: "  otactl image encode rootfs.img --out build/rootfs",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.encodeImage(cmd.Context(), args[0], first(out, args[0]))
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write OUT.obj and OUT.idx (default: beside the image)")
	return cmd
}

func (a *app) encodeImage(ctx context.Context, path, out string) error {
	raw, err := openImage(path)
	if err != nil {
		return err
	}
	defer raw.Close()
	ix, err := a.encodeTo(ctx, raw, out+".obj")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	encoded, err := ix.MarshalBinary()
	if err != nil {
		return err
	}
	if err := os.WriteFile(out+".idx", encoded, 0o644); err != nil {
		return err
	}
	v := newImageView(ix, encoded)
	v.Object, v.Index = out+".obj", out+".idx"
	return a.printImage(v)
}

// encodeTo writes the object beside its final name first, so that a failed run
// leaves nothing that looks like one.
func (a *app) encodeTo(ctx context.Context, raw *rawImage, path string) (*image.Index, error) {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(temp.Name())
	bar := a.progress("encode", raw.size)
	w := bufio.NewWriterSize(temp, 1<<20)
	ix, err := image.Encode(ctx, w, raw.File, image.EncodeOptions{SizeHint: raw.size, Progress: bar.set})
	bar.done(err == nil)
	if err == nil {
		err = w.Flush()
	}
	if err = errors.Join(err, temp.Chmod(0o644), temp.Close()); err != nil {
		return nil, err
	}
	return ix, os.Rename(temp.Name(), path)
}

func newImageInspectCmd(a *app) *cobra.Command {
	var object string
	cmd := &cobra.Command{
		Use: "inspect INDEX", Short: "Show an index; with --object verify an object against it", Args: takes("INDEX"),
		RunE: func(cmd *cobra.Command, args []string) error {
			encoded, err := readSmall(args[0], image.MaxIndexBytes)
			if err != nil {
				return err
			}
			ix, err := image.ParseIndex(encoded)
			if err != nil {
				return hint(fmt.Errorf("%s: %w", args[0], err), "inspect takes the .idx file that otactl image encode writes")
			}
			v := newImageView(ix, encoded)
			if object != "" {
				if err := verifyObject(cmd.Context(), ix, object); err != nil {
					return err
				}
				v.Verified = true
			}
			return a.printImage(v)
		},
	}
	cmd.Flags().StringVar(&object, "object", "", "read this object and verify every chunk")
	return cmd
}

func verifyObject(ctx context.Context, ix *image.Index, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := image.Verify(ctx, ix, bufio.NewReaderSize(f, 1<<20)); err != nil {
		return fmt.Errorf("verify %s: %w", path, err)
	}
	return nil
}

// rawImage is an open firmware image of known size.
type rawImage struct {
	*os.File
	size int64
}

// openImage opens a firmware image and refuses what can not be one.
func openImage(path string) (*rawImage, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint(err, "name the firmware image that should be read")
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = usage("%s is not a regular file", path)
	case info.Size() == 0:
		err = hint(usage("%s is empty", path), "an image has at least one byte; look at the build that made it")
	case info.Size() > image.MaxImageBytes:
		err = usage("%s has %d bytes: at most %d", path, info.Size(), image.MaxImageBytes)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rawImage{File: f, size: info.Size()}, nil
}

func exactSize(n int64) string {
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " bytes"
	}
	return fmt.Sprintf("%d bytes (%s)", n, byteSize(n))
}

func percent(part, whole int64) string {
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(max(whole, 1)))
}
