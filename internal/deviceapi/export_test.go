package deviceapi

import (
	"io"
	"net/http"
	"time"
)

// Timed is for tests that do not wait as long as the real limits.
var Timed = timed

// PatientBody is what an upload is read by.
func PatientBody(w http.ResponseWriter, r *http.Request, piece time.Duration) io.Reader {
	return &patientBody{Reader: r.Body, control: http.NewResponseController(w), piece: piece, end: time.Now().Add(MaxUploadTime)}
}
