package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// The payloads of the AWS IoT Jobs MQTT API that devices and we exchange.
// Times are epoch seconds; error codes are strings.

type notifyNext struct {
	Timestamp int64      `json:"timestamp"`
	Execution *execution `json:"execution,omitempty"`
}

type notifyJobs struct {
	Timestamp int64                      `json:"timestamp"`
	Jobs      map[ota.Status][]execution `json:"jobs"`
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
	SecondsLeft     *int64            `json:"approximateSecondsBeforeTimedOut,omitempty"`
	JobDocument     *ota.OpenDocument `json:"jobDocument,omitempty"`
}

func encodeExecution(e ota.Execution, document *ota.OpenDocument, now time.Time) execution {
	out := summary(e)
	if !e.Expires.IsZero() {
		left := max(int64(e.Expires.Sub(now).Seconds()), 0)
		out.SecondsLeft = &left
	}
	out.ThingName, out.Status, out.StatusDetails = e.DeviceID, e.Status, e.Details
	out.JobDocument = document
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

type jobAnswer struct {
	ClientToken    string            `json:"clientToken,omitempty"`
	Timestamp      int64             `json:"timestamp"`
	Code           string            `json:"code,omitempty"`
	Message        string            `json:"message,omitempty"`
	Execution      *execution        `json:"execution,omitempty"`
	ExecutionState *executionState   `json:"executionState,omitempty"`
	JobDocument    *ota.OpenDocument `json:"jobDocument,omitempty"`
	InProgressJobs *[]execution      `json:"inProgressJobs,omitempty"`
	QueuedJobs     *[]execution      `json:"queuedJobs,omitempty"`
}

type executionState struct {
	Status        ota.Status        `json:"status"`
	StatusDetails map[string]string `json:"statusDetails,omitempty"`
	VersionNumber int64             `json:"versionNumber"`
}

func stateOf(e ota.Execution) *executionState {
	return &executionState{Status: e.Status, StatusDetails: e.Details, VersionNumber: e.Version}
}

// maxPending is how many executions jobs/get lists.
const maxPending = 250

// job answers one request under jobs/. An error means that nothing was done and
// nothing answered.
func (p *Endpoint) job(ctx context.Context, r request, m Message) error {
	req, err := parseJobRequest(m.Payload)
	var answer jobAnswer
	if err == nil {
		answer, err = p.jobAnswer(ctx, r, req)
	}
	answer.ClientToken = req.ClientToken
	if err == nil {
		return p.accept(ctx, r, m, answer)
	}
	code, known := jobCode(err)
	if !known {
		return err
	}
	answer.Code, answer.Message = code, err.Error()
	return p.reject(ctx, r, m, answer)
}

// jobCode maps an error to the protocol's code; false for a fault of ours.
func jobCode(err error) (string, bool) {
	for _, row := range []struct {
		class error
		code  string
	}{
		{errJobJSON, "InvalidJson"},
		{errJobTopic, "InvalidTopic"},
		{ota.ErrTerminal, "InvalidStateTransition"},
		{ota.ErrTransition, "InvalidStateTransition"},
		{ota.ErrVersionMismatch, "VersionMismatch"},
		{ota.ErrInvalid, "InvalidRequest"},
		{fleet.ErrNotFound, "ResourceNotFound"},
	} {
		if errors.Is(err, row.class) {
			return row.code, true
		}
	}
	return "", false
}

var errJobTopic = errors.New("no such job can be")

// jobPattern is what a job id looks like, in AWS IoT and here.
var jobPattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

const (
	nextJob = "$next"
	// maxClientToken is the longest client token, of any request.
	maxClientToken = shadow.MaxClientTokenBytes
)

func (p *Endpoint) jobAnswer(ctx context.Context, r request, req jobRequest) (jobAnswer, error) {
	switch {
	case r.kind == kindJobs && r.op == "get":
		return p.pending(ctx, r.device)
	case r.kind == kindJobs:
		e, err := p.fleet.StartNext(ctx, r.device, ota.Starting{Details: req.StatusDetails, StepTimeout: req.StepTimeout})
		return p.next(ctx, e, true, err)
	case r.op == "get" && r.name == nextJob:
		e, err := p.fleet.NextExecution(ctx, r.device)
		return p.next(ctx, e, req.document(true), err)
	case !jobPattern.MatchString(r.name):
		return jobAnswer{}, fmt.Errorf("%w: %.80q is not 1 to 64 of a-z A-Z 0-9 _ -", errJobTopic, r.name)
	case r.op == "get":
		return p.describeJob(ctx, r, req)
	}
	return p.update(ctx, r, req)
}

// describeJob returns one execution, also a finished one: how the device's job
// ended, or that it was cancelled, is for the device to know.
func (p *Endpoint) describeJob(ctx context.Context, r request, req jobRequest) (jobAnswer, error) {
	e, err := p.fleet.Execution(ctx, r.name, r.device)
	if err == nil && req.ExecutionNumber != 0 && req.ExecutionNumber != int64(e.Attempt) {
		e, err = p.fleet.Attempt(ctx, r.name, r.device, int(req.ExecutionNumber))
	}
	if err != nil {
		return jobAnswer{}, err
	}
	return p.next(ctx, e, req.document(true), nil)
}

// next shapes an answer with one execution; none is not an error.
func (p *Endpoint) next(ctx context.Context, e ota.Execution, document bool, err error) (jobAnswer, error) {
	if errors.Is(err, fleet.ErrNotFound) {
		return jobAnswer{}, nil
	}
	if err != nil {
		return jobAnswer{}, err
	}
	var d *ota.OpenDocument
	if document {
		made, err := p.fleet.JobDocument(ctx, e)
		if err != nil {
			return jobAnswer{}, err
		}
		d = &made
	}
	out := encodeExecution(e, d, p.now())
	return jobAnswer{Execution: &out}, nil
}

func (p *Endpoint) pending(ctx context.Context, device string) (jobAnswer, error) {
	all, err := p.fleet.Pending(ctx, device, maxPending)
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
	if err := req.validateUpdate(); err != nil {
		return jobAnswer{}, err
	}
	e, err := p.fleet.Report(ctx, ota.Report{
		RolloutID: r.name, DeviceID: r.device, Status: req.Status, Details: req.StatusDetails,
		ExpectedVersion: req.ExpectedVersion, Attempt: int(req.ExecutionNumber), StepTimeout: req.StepTimeout,
	})
	var answer jobAnswer
	if err != nil {
		if showsState(err) {
			answer.ExecutionState = stateOf(e)
		}
		return answer, err
	}
	if req.IncludeJobExecutionState {
		answer.ExecutionState = stateOf(e)
	}
	if req.document(false) {
		d, err := p.fleet.JobDocument(ctx, e)
		if err != nil {
			return jobAnswer{}, err
		}
		answer.JobDocument = &d
	}
	return answer, nil
}

// showsState reports whether a rejection comes with the execution as it stands.
func showsState(err error) bool {
	return errors.Is(err, ota.ErrTerminal) || errors.Is(err, ota.ErrTransition) || errors.Is(err, ota.ErrVersionMismatch)
}

func (p *Endpoint) accept(ctx context.Context, r request, m Message, a jobAnswer) error {
	return p.answerJob(ctx, r, m, "/accepted", a)
}

func (p *Endpoint) reject(ctx context.Context, r request, m Message, a jobAnswer) error {
	return p.answerJob(ctx, r, m, "/rejected", a)
}

func (p *Endpoint) answerJob(ctx context.Context, r request, m Message, suffix string, a jobAnswer) error {
	a.Timestamp = p.now().Unix()
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return p.reply(ctx, m, r.answerTopic(m, suffix), b)
}

// answerTimeout bounds one answer, so that a stuck broker does not hold a
// handler for ever.
const answerTimeout = 10 * time.Second
