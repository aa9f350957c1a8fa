package deviceapi

import (
	"io"
	"net/http"
	"time"
)

// timed ends requests of devices that stall: the body must be there within
// body, and every piece of the answer must be taken within write. A download as
// a whole may take as long as its line needs.
func timed(next http.Handler, body, write time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := &timedWriter{ResponseWriter: w, control: http.NewResponseController(w), patience: write}
		err := t.extend()
		if r.Body != http.NoBody && err == nil {
			// It holds for a body that no handler reads too: the server reads it
			// away before it answers.
			err = t.control.SetReadDeadline(time.Now().Add(body))
			r = r.WithContext(r.Context()) // the server looks at its own for what is left to read
			r.Body = &timedBody{r.Body, t.control}
		}
		if err != nil { // a connection that can not be timed is not served
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(t, r)
	})
}

// timedBody lifts the deadline when all is read: beyond that the connection is
// only watched for its end, and a deadline would look like one.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF { //nolint:errorlint // a Reader returns it as it is
		_ = b.control.SetReadDeadline(time.Time{}) // it could be set
	}
	return n, err
}

// timedWriter puts the deadline off with every piece.
type timedWriter struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
}

func (t *timedWriter) extend() error {
	return t.control.SetWriteDeadline(time.Now().Add(t.patience))
}

// Write implements io.Writer.
func (t *timedWriter) Write(p []byte) (n int, err error) {
	for {
		piece := p[n:min(len(p), n+writeBytes)]
		if err := t.extend(); err != nil {
			return n, err
		}
		m, err := t.ResponseWriter.Write(piece)
		if n += m; err != nil || n == len(p) {
			return n, err
		}
	}
}

// Unwrap is for http.ResponseController.
func (t *timedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }
