package deviceapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// linkBlock is how much of a linked file is read ahead, for each download.
const linkBlock = 64 << 10

// linked sends the raw image of a link in a job document. The link is the
// permission; a certificate is not asked for.
func (s *Server) linked(w http.ResponseWriter, r *http.Request) {
	l, err := parseLink(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	f, err := s.fleet.LinkedImage(r.Context(), l)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	content := &fileSeeker{ctx: r.Context(), file: f}
	defer func() {
		if content.err != nil && r.Context().Err() == nil {
			s.log.Error("file was cut off", "digest", l.Digest, "device", l.Device, "error", content.err)
		}
	}()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store") // the link ends; what it led to should not outlive it elsewhere
	w.Header().Set("ETag", `"`+l.Digest+`"`)
	http.ServeContent(w, r, "", time.Time{}, content)
}

func parseLink(r *http.Request) (fleet.Link, error) {
	q := r.URL.Query()
	l := fleet.Link{Digest: r.PathValue("digest"), Device: q.Get("device"), MAC: q.Get("mac")}
	if err := ota.ValidateDigest(l.Digest); err != nil {
		return l, err
	}
	var err error
	if l.Expires, err = strconv.ParseInt(q.Get("expires"), 10, 64); err != nil || l.Device == "" || l.MAC == "" {
		return l, fmt.Errorf("%w: a download link has device, expires and mac", fleet.ErrInvalid)
	}
	return l, nil
}

// fileSeeker shows a file as what http.ServeContent reads ranges from.
type fileSeeker struct {
	ctx    context.Context
	file   fleet.StreamFile
	offset int64
	block  []byte // read ahead, from offset on
	buf    []byte
	err    error // the first fault of the store, which ServeContent keeps to itself
}

func (f *fileSeeker) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.offset
	case io.SeekEnd:
		offset += f.file.Size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	if offset != f.offset {
		f.offset, f.block = offset, nil
	}
	return offset, nil
}

func (f *fileSeeker) Read(p []byte) (int, error) {
	if f.offset >= f.file.Size {
		return 0, io.EOF
	}
	if len(f.block) == 0 {
		if err := f.fill(); err != nil {
			f.err = err
			return 0, err
		}
	}
	n := copy(p, f.block)
	f.block = f.block[n:]
	f.offset += int64(n)
	return n, nil
}

func (f *fileSeeker) fill() error {
	if f.buf == nil {
		f.buf = make([]byte, min(linkBlock, f.file.Size))
	}
	n, err := f.file.ReadAt(f.ctx, f.buf, f.offset)
	if errors.Is(err, io.EOF) && n > 0 {
		err = nil
	}
	f.block = f.buf[:n]
	return err
}
