package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/otad/otad/pkg/image"
)

const encodeRuns = 5

// encode measures the image encoder on a real kernel, against zstd on the same
// file where zstd has such a level.
func (r *runner) encode() error {
	kernel := filepath.Join(r.kernels, "new")
	raw, err := os.ReadFile(kernel)
	if err != nil {
		return err
	}
	for _, level := range []struct {
		number int
		name   string
		peer   []string // of zstd, of about the same ratio
	}{
		{image.DefaultLevel, "default level", nil},
		{3, "level 3", []string{"-3", "-T2"}},
	} {
		var took, used []time.Duration
		var share float64
		for range encodeRuns {
			before, err := ownCPU()
			if err != nil {
				return err
			}
			began := time.Now()
			ix, err := image.Encode(r.ctx, io.Discard, bytes.NewReader(raw), image.EncodeOptions{Level: level.number, SizeHint: int64(len(raw))})
			if err != nil {
				return err
			}
			took = append(took, time.Since(began))
			after, err := ownCPU()
			if err != nil {
				return err
			}
			used = append(used, after-before)
			share = float64(ix.ObjectSize()) / float64(ix.RawSize)
		}
		f := figure{
			what: "Image encode, arm64 kernel of " + showMB(int64(len(raw))) + ", " + level.name,
			measured: fmt.Sprintf("%s (%.0f MB a CPU second), object %.1f %% of the image",
				showRate(rate(int64(len(raw)), median(took))), rate(int64(len(raw)), median(used)), 100*share),
		}
		if level.peer != nil {
			if f.peer, err = r.encodePeer(kernel, int64(len(raw)), median(took), level.peer); err != nil {
				return err
			}
		}
		r.table.add(f)
	}
	return nil
}

// encodePeer compresses the kernel whole by zstd, which neither chunks nor
// hashes.
func (r *runner) encodePeer(kernel string, size int64, ours time.Duration, flags []string) (string, error) {
	var took []time.Duration
	for range encodeRuns {
		began := time.Now()
		if err := exec.CommandContext(r.ctx, "zstd", append(flags, "-q", "-f", kernel, "-o", r.path("kernel.zst"))...).Run(); err != nil {
			return "", fmt.Errorf("zstd: %w", err)
		}
		took = append(took, time.Since(began))
	}
	info, err := os.Stat(r.path("kernel.zst"))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%.2fx zstd %s %s (%s, %.1f %%)", median(took).Seconds()/ours.Seconds(), flags[0], flags[1],
		showRate(rate(size, median(took))), 100*float64(info.Size())/float64(size)), nil
}

// agentSizeTarget is for the static arm64 agent.
const agentSizeTarget = 15_000_000

func (r *runner) size() error {
	path := r.path("otagent-arm64")
	cmd := exec.CommandContext(r.ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/otagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build for arm64: %w: %s", err, out)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	r.table.add(figure{
		what: "Static arm64 otagent", measured: showMB(info.Size()), target: "<= 15 MB", met: info.Size() <= agentSizeTarget,
	})
	return nil
}
