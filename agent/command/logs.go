package command

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// Logs are what collect-logs collects.
type Logs struct {
	Files []string `json:"files,omitempty"` // absolute paths
	// Units are the systemd units whose journal is collected; empty: the whole
	// journal. A system without journalctl has none.
	Units []string `json:"units,omitempty"`
}

// Limits of what is collected.
const (
	MaxLogFiles  = 32
	MaxLogBytes  = 16 << 20 // of one file, its end
	journalLines = 20_000
	journalctl   = "journalctl"
)

// Validate reports what can not be collected.
func (l Logs) Validate() error {
	if len(l.Files)+len(l.Units) > MaxLogFiles {
		return fmt.Errorf("%d log files and units: at most %d", len(l.Files)+len(l.Units), MaxLogFiles)
	}
	for _, f := range l.Files {
		if !filepath.IsAbs(f) {
			return fmt.Errorf("log file %q: want an absolute path", f)
		}
	}
	for _, u := range l.Units {
		if u == "" || strings.HasPrefix(u, "-") {
			return fmt.Errorf("unit %q: want the name of a systemd unit", u)
		}
	}
	return nil
}

// collectLogs sends a compressed archive as it is made; nothing of it is held in
// memory.
func (r *Runner) collectLogs(ctx context.Context, c ota.Command) agent.Outcome {
	if r.cfg.Upload == nil {
		return agent.Outcome{Err: errors.New("this agent has no way to upload")}
	}
	in, out := io.Pipe()
	var names, missing []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		names, missing, err = r.archive(ctx, out)
		out.CloseWithError(err)
	}()
	counted := &counter{r: in}
	err := r.cfg.Upload(ctx, c.UploadURL, counted)
	in.CloseWithError(errors.New("the upload has ended"))
	<-done
	details := map[string]string{"files": clean(strings.Join(names, " "), ota.MaxDetailValueBytes), "uploadBytes": strconv.FormatInt(counted.n, 10)}
	if len(missing) > 0 {
		details[ota.DetailReason] = clean("can not be opened: "+strings.Join(missing, " "), ota.MaxDetailValueBytes)
	}
	if err != nil {
		err = fmt.Errorf("upload: %w", err)
	}
	return agent.Outcome{Err: err, Details: details}
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// archive writes a tar of all there is, in gzip, and returns what is in it, and
// which files can not be opened.
func (r *Runner) archive(ctx context.Context, w io.Writer) (names, missing []string, err error) {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, name := range r.cfg.Logs.Files {
		f, err := os.Open(name)
		if err != nil {
			missing = append(missing, name)
			continue
		}
		err = add(t, strings.TrimPrefix(name, "/"), f)
		err = errors.Join(err, f.Close())
		if err != nil {
			return names, missing, err
		}
		names = append(names, name)
	}
	if program, err := exec.LookPath(journalctl); err == nil {
		if err := r.journal(ctx, t, program); err != nil {
			return names, missing, err
		}
		names = append(names, journalctl)
	}
	return names, missing, errors.Join(t.Close(), z.Close())
}

// add puts the end of a regular file into an archive.
func add(t *tar.Writer, name string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("log file %s: not a regular file", name)
	}
	size := min(info.Size(), MaxLogBytes)
	h := &tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: info.ModTime(), Typeflag: tar.TypeReg}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(t, io.NewSectionReader(f, info.Size()-size, size))
	if err == nil && n < size { // it was cut meanwhile
		_, err = io.CopyN(t, zeros{}, size-n)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// journal puts the newest lines of the system's journal into an archive, by way
// of a file, since an archive wants to know the size first.
func (r *Runner) journal(ctx context.Context, t *tar.Writer, program string) error {
	f, err := os.CreateTemp(r.cfg.TempDir, "journal-")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read by now
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	args := []string{"--no-pager", "-q", "-o", "short-iso", "-n", strconv.Itoa(journalLines)}
	for _, u := range r.cfg.Logs.Units {
		args = append(args, "-u", u)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout = f
	cmd.Env = []string{path, "LANG=C.UTF-8"}
	cmd.WaitDelay = linger
	ownGroup(cmd)
	if err := cmd.Run(); err != nil && ctx.Err() != nil {
		return ctx.Err() // another fault leaves what there is
	}
	return add(t, "journal-"+time.Now().UTC().Format("20060102T150405Z")+".log", f)
}
