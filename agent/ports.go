package agent

import (
	"context"
	"errors"
	"io"

	"github.com/otad/otad/pkg/ota"
)

// Errors of the ports.
var (
	// ErrNoSuchFile: the server has no such metadata version, target or image.
	ErrNoSuchFile = errors.New("no such file on the server")
	// ErrUnreachable: the server can not be reached now; try again later.
	ErrUnreachable = errors.New("server unreachable")
	// ErrSlow: the peer sent less than the minimum average rate.
	ErrSlow = errors.New("transfer too slow")
	// ErrEvents: the server will never take these events.
	ErrEvents = errors.New("events are not acceptable")
)

// Job is what the server wants done: one execution on this device.
type Job struct {
	ID       string // rollout id
	Attempt  int
	Status   ota.Status // QUEUED or IN_PROGRESS
	Version  int64
	Document ota.JobDocument // not validated
}

// Report is one line of the outbox, delivered in order and at least once.
type Report struct {
	JobID   string            `json:"jobId"`
	Attempt int               `json:"attempt"`
	Seq     int64             `json:"seq"`
	Status  ota.Status        `json:"status"`
	Details map[string]string `json:"details,omitempty"`
}

// Transport is the device's line to the server for small documents. Methods may
// be called from one goroutine at a time; ErrUnreachable is always worth a
// retry.
type Transport interface {
	// Next asks for the execution to work on; ok is false when there is none.
	Next(ctx context.Context) (job Job, ok bool, err error)
	// Report hands over one report and returns once the server has stored it or
	// has refused it for good: an execution that is finished, or is not known any
	// more, needs no further report and gives nil.
	Report(ctx context.Context, r Report) error
	// ReportShadow merges reported into the classic shadow's reported section
	// and returns once the server has stored it.
	ReportShadow(ctx context.Context, reported map[string]any) error
	// SendEvents hands over events of a log, in ascending order, and returns the
	// number up to which the server has stored that log. ErrEvents when it refuses
	// them for good.
	SendEvents(ctx context.Context, log string, events []Event) (ack int64, err error)
	// Wake receives a value when it is worth calling Next: on every (re)connect
	// and on every job notification. Never closed; holds at most one value.
	Wake() <-chan struct{}
}

// Source is where signed metadata and images come from. Everything it returns
// is unverified.
type Source interface {
	// Metadata fetches "timestamp.json", "3.root.json", ... of at most limit
	// bytes; a longer file is an error before limit+1 bytes are held.
	// ErrNoSuchFile when the server does not have it.
	Metadata(ctx context.Context, name string, limit int64) ([]byte, error)
	// Target fetches the target file with this path and sha256.
	Target(ctx context.Context, path string, sha256 [32]byte, limit int64) ([]byte, error)
	// Image opens the object of the raw image with this digest (lower-case hex
	// sha256) from offset on; length < 0 reads to the end. Reads fail with
	// ErrSlow under the minimum rate and when ctx ends.
	Image(ctx context.Context, digest string, offset, length int64) (io.ReadCloser, error)
}
