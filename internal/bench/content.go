package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// content writes an image like a root file system: the two kernels, the
// executables of this project and its tools, and all of the Go distribution, one
// file after the other, over again when they are not enough. Nothing is made up,
// and a chunk is never shared within an object, so that a repetition costs what
// new bytes cost.
func (r *runner) content(path string, size int64) error {
	sources, err := r.sources()
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, mib)
	for left := size; left > 0 && err == nil; {
		before := left
		for _, source := range sources {
			if err = r.ctx.Err(); err == nil {
				err = appendFile(w, source, &left)
			}
			if left == 0 || err != nil {
				break
			}
		}
		if left == before && err == nil {
			err = errors.New("the sources of the image are empty")
		}
	}
	return errors.Join(err, w.Flush(), f.Close())
}

// appendFile copies a file, at most left bytes of it.
func appendFile(w io.Writer, path string, left *int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(w, io.LimitReader(f, *left))
	*left -= n
	return err
}

// sources lists the files in the order of the image. What is missing beside the
// kernels makes it repeat sooner.
func (r *runner) sources() ([]string, error) {
	out, err := exec.CommandContext(r.ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	var all []string
	for _, root := range []string{r.kernels, r.bin, filepath.Join(filepath.Dir(r.kernels), "tools"), strings.TrimSpace(string(out))} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.Type().IsRegular() {
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
