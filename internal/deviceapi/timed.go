package deviceapi

import (
	"net/http"
	"time"
)

// timed ends requests of devices that stall: the body must be there within
// body, and every piece of the answer must be taken within write. A download as
// a whole may take as long as its line needs, and so may what the server does
// between two pieces.
//
// The body's deadline needs no lifting: net/http does so where it ends.
func timed(next http.Handler, body, write time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := &timedWriter{ResponseWriter: w, control: http.NewResponseController(w), patience: write}
		err := t.lift() // the request before left its own
		if r.Body != http.NoBody && err == nil {
			// It holds for a body that no handler reads too: the server reads it
			// away before it answers.
			err = t.control.SetReadDeadline(time.Now().Add(body))
		}
		if err != nil { // a connection that can not be timed is not served
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(t, r)
		_ = t.extend() // what is left in buffers goes out now; it could be set before
	})
}

// timedWriter has a deadline for each piece, only while the device has to take it:
// over HTTP/2 one that passes meanwhile ends the request, as of an upload.
type timedWriter struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
}

func (t *timedWriter) extend() error {
	return t.control.SetWriteDeadline(time.Now().Add(t.patience))
}

func (t *timedWriter) lift() error { return t.control.SetWriteDeadline(time.Time{}) }

// Write implements io.Writer.
func (t *timedWriter) Write(p []byte) (n int, err error) {
	for {
		piece := p[n:min(len(p), n+writeBytes)]
		if err := t.extend(); err != nil {
			return n, err
		}
		m, err := t.ResponseWriter.Write(piece)
		if n += m; err != nil {
			return n, err
		}
		if n == len(p) {
			return n, t.lift()
		}
	}
}

// FlushError is for http.ResponseController.
func (t *timedWriter) FlushError() error {
	if err := t.extend(); err != nil {
		return err
	}
	if err := t.control.Flush(); err != nil {
		return err
	}
	return t.lift()
}

// Unwrap is for http.ResponseController.
func (t *timedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }
