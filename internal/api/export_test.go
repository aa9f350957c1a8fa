package api

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// CodeOf is the table of codes.
var CodeOf = codeOf

// Said is the text of an error as a client hears it.
func Said(err error) string { return plain{err}.Error() }

// NewWithStall is New for tests that do not wait as long as StallTimeout.
func NewWithStall(f *fleet.Service, log *slog.Logger, stall time.Duration) http.Handler {
	s := &server{fleet: f, log: log}
	return timed(s.authenticate(s.routes(http.NotFoundHandler())), stall)
}
