package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
)

// demoImage is one version of the demo's firmware.
type demoImage struct {
	version, path, what, digest string
	size                        int64
}

// demoImages are the three versions and how devices install them.
type demoImages struct {
	old, new, bad demoImage
	installer     string
	run           []string
	health        string // file with the health contract
}

func (d demoImages) all() []demoImage { return []demoImage{d.old, d.new, d.bad} }

// signed maps the digests that the operator signs to their versions.
func (d demoImages) signed() map[string]string {
	m := map[string]string{}
	for _, i := range d.all() {
		m[i.digest] = i.version
	}
	return m
}

// newDemoImages puts three images and a health contract into dir: two kernels
// and the second cut short, or the same of this very executable.
func newDemoImages(dir, oldPath, newPath string) (demoImages, error) {
	dir = filepath.Join(dir, "firmware")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return demoImages{}, err
	}
	d := demoImages{installer: ota.InstallImage, health: filepath.Join(dir, "health.json")}
	what, contract := "Linux kernel", `{"hold":"500ms","deadline":"20s","checks":[{"kernel":{}}]}`
	if oldPath == "" {
		self, err := os.Executable()
		if err != nil {
			return demoImages{}, err
		}
		oldPath, newPath = self, self
		d.installer, d.run = ota.InstallBinary, []string{"{image}", "demo-application"}
		what, contract = "application", `{"hold":"500ms","deadline":"8s","checks":[{"running":{}},{"command":["{image}","version"]}]}`
	}
	if err := os.WriteFile(d.health, []byte(contract), 0o600); err != nil {
		return demoImages{}, err
	}
	var err error
	if d.old, err = copyImage(dir, "1.0.0", oldPath, 1, what); err != nil {
		return demoImages{}, err
	}
	if d.new, err = copyImage(dir, "1.1.0", newPath, 1, what); err != nil {
		return demoImages{}, err
	}
	d.bad, err = copyImage(dir, "1.2.0", newPath, 0.6, what+", cut off at 60 %")
	return d, err
}

// copyImage copies the first share of a file and marks an application with its
// version, so that two copies of one executable differ: what follows the end of
// an ELF file is nothing to the loader.
func copyImage(dir, version, from string, share float64, what string) (demoImage, error) {
	in, err := os.Open(from)
	if err != nil {
		return demoImage{}, err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return demoImage{}, err
	}
	image := demoImage{version: version, path: filepath.Join(dir, "gateway-"+version), what: what}
	out, err := os.OpenFile(image.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return demoImage{}, err
	}
	_, err = io.CopyN(out, in, int64(share*float64(info.Size())))
	if share == 1 && what == "application" {
		_, markErr := fmt.Fprintf(out, "\notad demo application %s\n", version)
		err = errors.Join(err, markErr)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return demoImage{}, fmt.Errorf("make firmware %s: %w", version, err)
	}
	if image.digest, err = hashFile(image.path); err != nil {
		return demoImage{}, err
	}
	if info, err = os.Stat(image.path); err != nil {
		return demoImage{}, err
	}
	image.size = info.Size()
	return image, nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// newDemoApplicationCmd is what the demo's devices run when the firmware is this
// executable: it lives until it is told to stop.
func newDemoApplicationCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "demo-application", Hidden: true, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			tick := time.NewTicker(10 * time.Second)
			defer tick.Stop()
			for {
				fmt.Fprintln(a.stdout, a.now().Format(time.RFC3339), "at work")
				select {
				case <-tick.C:
				case <-cmd.Context().Done():
					return nil
				}
			}
		},
	}
}
