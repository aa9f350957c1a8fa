package mqtt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// The payloads of the AWS IoT Jobs MQTT API that devices and we exchange.
// Times are epoch seconds; error codes are strings.

type notifyNext struct {
	Timestamp int64      `json:"timestamp"`
	Execution *execution `json:"execution,omitempty"`
}

type execution struct {
	JobID           string            `json:"jobId"`
	ThingName       string            `json:"thingName,omitempty"`
	Status          ota.Status        `json:"status,omitempty"`
	StatusDetails   map[string]string `json:"statusDetails,omitempty"`
	QueuedAt        int64             `json:"queuedAt"`
	StartedAt       int64             `json:"startedAt,omitempty"`
	LastUpdatedAt   int64             `json:"lastUpdatedAt"`
	VersionNumber   int64             `json:"versionNumber"`
	ExecutionNumber int               `json:"executionNumber"`
	JobDocument     *ota.JobDocument  `json:"jobDocument,omitempty"`
}

func encodeExecution(e ota.Execution, document bool) execution {
	out := summary(e)
	out.ThingName, out.Status, out.StatusDetails = e.DeviceID, e.Status, e.Details
	if document {
		d := ota.NewJobDocument(e.Release, e.Attempt)
		out.JobDocument = &d
	}
	return out
}

func summary(e ota.Execution) execution {
	out := execution{
		JobID: e.RolloutID, QueuedAt: e.QueuedAt.Unix(), LastUpdatedAt: e.UpdatedAt.Unix(),
		VersionNumber: e.Version, ExecutionNumber: e.Attempt,
	}
	if !e.StartedAt.IsZero() {
		out.StartedAt = e.StartedAt.Unix()
	}
	return out
}

// number accepts 1 and "1": the embedded C library sends the string.
type number int64

func (n *number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseInt(string(bytes.Trim(b, `"`)), 10, 64)
	if err != nil {
		return fmt.Errorf("want a whole number")
	}
	*n = number(v)
	return nil
}

type jobRequest struct {
	ClientToken              string            `json:"clientToken"`
	Status                   ota.Status        `json:"status"`
	StatusDetails            map[string]string `json:"statusDetails"`
	ExpectedVersion          number            `json:"expectedVersion"`
	ExecutionNumber          number            `json:"executionNumber"`
	IncludeJobDocument       *bool             `json:"includeJobDocument"`
	IncludeJobExecutionState bool              `json:"includeJobExecutionState"`
}

type jobAnswer struct {
	ClientToken    string           `json:"clientToken,omitempty"`
	Timestamp      int64            `json:"timestamp"`
	Code           string           `json:"code,omitempty"`
	Message        string           `json:"message,omitempty"`
	Execution      *execution       `json:"execution,omitempty"`
	ExecutionState *executionState  `json:"executionState,omitempty"`
	JobDocument    *ota.JobDocument `json:"jobDocument,omitempty"`
	InProgressJobs *[]execution     `json:"inProgressJobs,omitempty"`
	QueuedJobs     *[]execution     `json:"queuedJobs,omitempty"`
}

type executionState struct {
	Status        ota.Status        `json:"status"`
	StatusDetails map[string]string `json:"statusDetails,omitempty"`
	VersionNumber int64             `json:"versionNumber"`
}

func stateOf(e ota.Execution) *executionState {
	return &executionState{Status: e.Status, StatusDetails: e.Details, VersionNumber: e.Version}
}

// maxPending is how many executions jobs/get lists of each kind.
const maxPending = 250

// job answers one request under jobs/. An error means that nothing was done and
// nothing answered.
func (p *Endpoint) job(ctx context.Context, r request, m Message) error {
	var req jobRequest
	if len(bytes.TrimSpace(m.Payload)) > 0 {
		if err := json.Unmarshal(m.Payload, &req); err != nil {
			return p.reject(ctx, m, jobAnswer{Code: "InvalidJson", Message: fmt.Sprintf("The payload is not a JSON object of this request: %v", err)})
		}
	}
	if len(req.ClientToken) > maxClientToken {
		return p.reject(ctx, m, jobAnswer{Code: "InvalidRequest", Message: fmt.Sprintf("clientToken must be at most %d bytes", maxClientToken)})
	}
	answer, err := p.jobAnswer(ctx, r, req)
	answer.ClientToken = req.ClientToken
	if err == nil {
		return p.accept(ctx, m, answer)
	}
	code, known := jobCode(err)
	if !known {
		return err
	}
	answer.Code, answer.Message = code, err.Error()
	return p.reject(ctx, m, answer)
}

const maxClientToken = 64

// jobCode maps an error to the protocol's code; false for a fault of ours.
func jobCode(err error) (string, bool) {
	for _, row := range []struct {
		class error
		code  string
	}{
		{ota.ErrTerminal, "TerminalStateReached"},
		{ota.ErrVersionMismatch, "VersionMismatch"},
		{ota.ErrTransition, "InvalidStateTransition"},
		{ota.ErrInvalid, "InvalidRequest"},
		{fleet.ErrNotFound, "ResourceNotFound"},
	} {
		if errors.Is(err, row.class) {
			return row.code, true
		}
	}
	return "", false
}

func (p *Endpoint) jobAnswer(ctx context.Context, r request, req jobRequest) (jobAnswer, error) {
	switch {
	case r.kind == kindJobs && r.op == "get":
		return p.pending(ctx, r.device)
	case r.kind == kindJobs:
		e, err := p.fleet.StartNext(ctx, r.device, req.StatusDetails)
		return next(e, true, err)
	case r.op == "get" && r.name == "$next":
		e, err := p.fleet.NextExecution(ctx, r.device)
		return next(e, req.IncludeJobDocument == nil || *req.IncludeJobDocument, err)
	case r.op == "get":
		e, err := p.fleet.Execution(ctx, r.name, r.device)
		if err != nil {
			return jobAnswer{}, err
		}
		return next(e, req.IncludeJobDocument == nil || *req.IncludeJobDocument, nil)
	}
	return p.update(ctx, r, req)
}

// next shapes an answer with one execution; none is not an error.
func next(e ota.Execution, document bool, err error) (jobAnswer, error) {
	if errors.Is(err, fleet.ErrNotFound) {
		return jobAnswer{}, nil
	}
	if err != nil {
		return jobAnswer{}, err
	}
	out := encodeExecution(e, document)
	return jobAnswer{Execution: &out}, nil
}

func (p *Endpoint) pending(ctx context.Context, device string) (jobAnswer, error) {
	all, err := p.fleet.PendingExecutions(ctx, device, maxPending)
	if err != nil {
		return jobAnswer{}, err
	}
	started, queued := []execution{}, []execution{}
	for _, e := range all {
		if e.Status == ota.InProgress {
			started = append(started, summary(e))
		} else {
			queued = append(queued, summary(e))
		}
	}
	return jobAnswer{InProgressJobs: &started, QueuedJobs: &queued}, nil
}

func (p *Endpoint) update(ctx context.Context, r request, req jobRequest) (jobAnswer, error) {
	report := ota.Report{
		RolloutID: r.name, DeviceID: r.device, Status: req.Status, Details: req.StatusDetails,
		ExpectedVersion: int64(req.ExpectedVersion), Attempt: int(req.ExecutionNumber),
	}
	if r.name == "$next" {
		e, err := p.fleet.NextExecution(ctx, r.device)
		if err != nil {
			return jobAnswer{}, err
		}
		report.RolloutID = e.RolloutID
	}
	e, err := p.fleet.Report(ctx, report)
	if err != nil {
		var answer jobAnswer
		if e.RolloutID != "" {
			answer.ExecutionState = stateOf(e)
		}
		return answer, err
	}
	var answer jobAnswer
	if req.IncludeJobExecutionState {
		answer.ExecutionState = stateOf(e)
	}
	if req.IncludeJobDocument != nil && *req.IncludeJobDocument {
		d := ota.NewJobDocument(e.Release, e.Attempt)
		answer.JobDocument = &d
	}
	return answer, nil
}

func (p *Endpoint) accept(ctx context.Context, m Message, a jobAnswer) error {
	return p.answerJob(ctx, m, "/accepted", a)
}

func (p *Endpoint) reject(ctx context.Context, m Message, a jobAnswer) error {
	return p.answerJob(ctx, m, "/rejected", a)
}

func (p *Endpoint) answerJob(ctx context.Context, m Message, suffix string, a jobAnswer) error {
	a.Timestamp = p.now().Unix()
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return p.reply(ctx, m, m.Topic+suffix, b)
}

// answerTimeout bounds one answer, so that a stuck broker does not hold a
// handler for ever.
const answerTimeout = 10 * time.Second
