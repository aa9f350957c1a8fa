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
	// ErrEnded: on the server the execution is finished (cancelled, timed out), of
	// a later attempt, or unknown. It needs no further report.
	ErrEnded = errors.New("execution is over on the server")
	// ErrChanged: the execution is not as it was when the server was asked.
	ErrChanged = errors.New("execution has changed on the server")
	// ErrHeld: the server does not let the execution go on now, since its rollout
	// is paused or another execution comes first.
	ErrHeld = errors.New("execution is held back by the server")
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
	// Look asks how one execution stands now, finished or not, with its document
	// as it is now. ErrEnded when the server does not know it.
	Look(ctx context.Context, jobID string, attempt int) (Job, error)
	// Report hands over one report and returns once the server has stored it.
	// ErrEnded and ErrHeld when it has refused it, the first for good.
	Report(ctx context.Context, r Report) error
	// Announce is Report for an execution that still has this version: it is
	// stored, or nothing is done and the error is ErrChanged, ErrEnded or ErrHeld.
	// After ErrUnreachable it may have been stored.
	Announce(ctx context.Context, r Report, version int64) error
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
	// Connected receives a value on every (re)connect. Never closed; holds at most
	// one value.
	Connected() <-chan struct{}
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
