package deviceapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
)

// MaxUploadTime is how long an upload may take as a whole. Each piece has
// BodyTimeout.
const MaxUploadTime = time.Hour

// upload takes what a device was told to collect.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, d fleet.Device) {
	attempt, err := strconv.Atoi(r.PathValue("attempt"))
	if err != nil || attempt < 1 || r.PathValue("attempt") != strconv.Itoa(attempt) {
		s.fail(w, r, fmt.Errorf("%w: attempt %.20q: counted from 1", fleet.ErrInvalid, r.PathValue("attempt")))
		return
	}
	if r.ContentLength > fleet.MaxUploadBytes {
		s.fail(w, r, fmt.Errorf("upload of %d bytes, at most %d: %w", r.ContentLength, fleet.MaxUploadBytes, blob.ErrTooLarge))
		return
	}
	body := &patientBody{Reader: r.Body, control: http.NewResponseController(w), piece: BodyTimeout, end: time.Now().Add(MaxUploadTime)}
	switch err := s.fleet.PutUpload(r.Context(), r.PathValue("job"), d.ID, attempt, body); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.fail(w, r, fmt.Errorf("%w: the upload stalled, or took longer than %s", fleet.ErrInvalid, MaxUploadTime))
	case err != nil:
		s.fail(w, r, err)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// patientBody puts the deadline of a body off with every piece, but not beyond
// the end. Behind the last piece it sets none: the connection is watched for its end
// then, and a deadline would look like one.
type patientBody struct {
	io.Reader
	control *http.ResponseController
	piece   time.Duration
	end     time.Time
	over    bool
}

// Read implements io.Reader.
func (b *patientBody) Read(p []byte) (int, error) {
	if b.over {
		return 0, io.EOF
	}
	next := time.Now().Add(b.piece)
	if next.After(b.end) {
		next = b.end
	}
	if err := b.control.SetReadDeadline(next); err != nil {
		return 0, err
	}
	n, err := b.Reader.Read(p)
	b.over = err == io.EOF //nolint:errorlint // a Reader returns it as it is
	return n, err
}
