package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"
)

// StallTimeout is how long a client may send nothing of a body it has begun. A
// large upload as a whole may take as long as its line needs.
const StallTimeout = time.Minute

// timed ends requests whose body stalls, be it read by a handler or not: the
// server reads away what is left before it answers.
func timed(next http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return
		}
		b := &timedBody{ReadCloser: r.Body, control: http.NewResponseController(w), stall: stall}
		if err := b.extend(); err != nil { // a connection that can not be timed is not served
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		r = r.WithContext(r.Context()) // the server looks at its own for what is left to read
		r.Body = b
		next.ServeHTTP(w, r)
	})
}

// timedBody puts the deadline off with every piece, and lifts it when all is
// read: beyond that the connection is only watched for its end, and a deadline
// would look like one.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
	stall   time.Duration
	fault   error // what ended the body too early
}

func (b *timedBody) extend() error { return b.control.SetReadDeadline(time.Now().Add(b.stall)) }

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	if err := b.extend(); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == io.EOF: //nolint:errorlint // a Reader returns it as it is
		_ = b.control.SetReadDeadline(time.Time{}) // it could be set
	case err != nil:
		b.fault = err
	}
	return n, err
}

// brokenOff says how a body that the client did not finish is answered; false
// when the body is not at fault.
func brokenOff(body io.Reader) (status int, code connect.Code, text string, broken bool) {
	b, ok := body.(*timedBody)
	switch {
	case !ok || b.fault == nil:
		return 0, 0, "", false
	case errors.Is(b.fault, os.ErrDeadlineExceeded):
		return http.StatusRequestTimeout, connect.CodeDeadlineExceeded,
			fmt.Sprintf("the upload stood still for %s and was ended; nothing was stored, send it again", b.stall), true
	}
	return http.StatusBadRequest, connect.CodeCanceled, "the upload broke off; nothing was stored, send it again", true
}
