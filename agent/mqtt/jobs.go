package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"unicode/utf8"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// ErrReply: the server's answer can not be understood.
var ErrReply = errors.New("unusable reply")

// RejectedError is the server's refusal of a request. An InternalError is an
// agent.ErrUnreachable too: worth a retry.
type RejectedError struct {
	Topic   string
	Code    string // as in the device protocol; a number for the shadow
	Message string
}

// Error names the request, the code and the server's words.
func (e *RejectedError) Error() string {
	return fmt.Sprintf("%s: rejected by the server: %s (%s)", e.Topic, e.Message, e.Code)
}

// Unwrap returns agent.ErrUnreachable for the server's own faults and when it
// is asked too much at once, else nil.
func (e *RejectedError) Unwrap() error {
	switch e.Code {
	case "InternalError", "RequestThrottled", "429", "500", "503":
		return agent.ErrUnreachable
	}
	return nil
}

// Codes of rejected job requests.
const (
	codeTerminal   = "TerminalStateReached"
	codeNotFound   = "ResourceNotFound"
	codeTransition = "InvalidStateTransition"
	codeVersion    = "VersionMismatch"
	codeInvalid    = "InvalidRequest" // of events
)

// jobPattern is what may stand in a topic for a job.
var jobPattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

type execution struct {
	JobID           string          `json:"jobId"`
	ThingName       string          `json:"thingName"`
	Status          ota.Status      `json:"status"`
	VersionNumber   int64           `json:"versionNumber"`
	ExecutionNumber int             `json:"executionNumber"`
	JobDocument     json.RawMessage `json:"jobDocument"`
}

// Next implements agent.Transport.
func (t *Transport) Next(ctx context.Context) (agent.Job, bool, error) {
	topic := t.topics.nextGet()
	a, err := t.request(ctx, topic, map[string]any{})
	if err != nil {
		return agent.Job{}, false, err
	}
	if a.rejected {
		return agent.Job{}, false, t.refusal(topic, a)
	}
	return parseNext(a.payload, t.cfg.DeviceID)
}

// parseNext reads an answer to $next/get. No execution, and an empty one, mean
// that there is nothing to do.
func parseNext(payload []byte, deviceID string) (agent.Job, bool, error) {
	job, ok, err := parseExecution(payload, deviceID)
	if err == nil && ok && job.Status != ota.Queued && job.Status != ota.InProgress {
		return agent.Job{}, false, fmt.Errorf("next job: %w: status %.80q", ErrReply, job.Status)
	}
	return job, ok, err
}

// parseExecution reads an answer with one execution, or none.
func parseExecution(payload []byte, deviceID string) (agent.Job, bool, error) {
	var reply struct {
		Execution execution `json:"execution"`
	}
	if err := json.Unmarshal(payload, &reply); err != nil {
		return agent.Job{}, false, fmt.Errorf("next job: %w: %w", ErrReply, err)
	}
	e := reply.Execution
	switch {
	case e.JobID == "":
		return agent.Job{}, false, nil
	case !jobPattern.MatchString(e.JobID):
		return agent.Job{}, false, fmt.Errorf("next job: %w: job id %.80q", ErrReply, e.JobID)
	case e.ThingName != "" && e.ThingName != deviceID:
		return agent.Job{}, false, fmt.Errorf("next job: %w: a job for %.80q", ErrReply, e.ThingName)
	case !slices.Contains(ota.Statuses, e.Status):
		return agent.Job{}, false, fmt.Errorf("next job: %w: status %.80q", ErrReply, e.Status)
	case e.ExecutionNumber < 1:
		return agent.Job{}, false, fmt.Errorf("next job: %w: execution number %d", ErrReply, e.ExecutionNumber)
	}
	job := agent.Job{ID: e.JobID, Attempt: e.ExecutionNumber, Status: e.Status, Version: e.VersionNumber}
	// a document that is not ours stays zero, which the agent refuses by name
	if err := json.Unmarshal(e.JobDocument, &job.Document); err != nil {
		job.Document = ota.JobDocument{}
	}
	return job, true, nil
}

// Look implements agent.Transport.
func (t *Transport) Look(ctx context.Context, jobID string, attempt int) (agent.Job, error) {
	if !jobPattern.MatchString(jobID) {
		return agent.Job{}, fmt.Errorf("job %.80q: no such id can be on the server: %w", jobID, agent.ErrEnded)
	}
	topic := t.topics.jobGet(jobID)
	a, err := t.request(ctx, topic, map[string]any{"executionNumber": attempt})
	if err != nil {
		return agent.Job{}, err
	}
	if a.rejected {
		return agent.Job{}, t.refused(topic, a)
	}
	job, ok, err := parseExecution(a.payload, t.cfg.DeviceID)
	switch {
	case err != nil:
		return agent.Job{}, err
	case !ok:
		return agent.Job{}, fmt.Errorf("job %s: %w", jobID, agent.ErrEnded)
	case job.ID != jobID || job.Attempt != attempt:
		return agent.Job{}, fmt.Errorf("%w: attempt %d at %s for attempt %d at %s", ErrReply, job.Attempt, job.ID, attempt, jobID)
	}
	return job, nil
}

// Report implements agent.Transport.
func (t *Transport) Report(ctx context.Context, r agent.Report) error { return t.update(ctx, r, 0) }

// Announce implements agent.Transport.
func (t *Transport) Announce(ctx context.Context, r agent.Report, version int64) error {
	return t.update(ctx, r, version)
}

// update sends a report that counts only for an execution of this version; 0:
// of any.
func (t *Transport) update(ctx context.Context, r agent.Report, version int64) error {
	if !jobPattern.MatchString(r.JobID) {
		return fmt.Errorf("report for job %.80q: no such id can be on the server", r.JobID)
	}
	document := map[string]any{
		"status":                   r.Status,
		"includeJobExecutionState": true,
	}
	if r.Attempt > 0 {
		document["executionNumber"] = r.Attempt
	}
	if version > 0 {
		document["expectedVersion"] = version
	}
	if len(r.Details) > 0 {
		document["statusDetails"] = clip(r.Details)
	}
	topic := t.topics.jobUpdate(r.JobID)
	a, err := t.request(ctx, topic, document)
	if err != nil {
		return err
	}
	if a.rejected {
		err := t.refused(topic, a)
		if errors.Is(err, agent.ErrChanged) && version == 0 {
			// only the attempt can have differed
			return fmt.Errorf("%w: %w", agent.ErrEnded, err)
		}
		return err
	}
	return nil
}

// refused reads a rejected request about one job: what the refusal means for its
// execution is in the error.
func (t *Transport) refused(topic string, a answer) error {
	err := t.refusal(topic, a)
	var reply struct {
		Code           string `json:"code"`
		ExecutionState struct {
			Status ota.Status `json:"status"`
		} `json:"executionState"`
	}
	if json.Unmarshal(a.payload, &reply) != nil {
		return err
	}
	state := reply.ExecutionState.Status
	switch {
	case reply.Code == codeTerminal || reply.Code == codeNotFound || state != "" && state.Terminal():
		return fmt.Errorf("%w: %w", agent.ErrEnded, err)
	case reply.Code == codeVersion:
		return fmt.Errorf("%w: %w", agent.ErrChanged, err)
	case reply.Code == codeTransition && state != "":
		return fmt.Errorf("%w: %w", agent.ErrHeld, err)
	}
	return err
}

// clip keeps details within the server's limits, so that a long reason can not
// dam up the outbox.
func clip(details map[string]string) map[string]string {
	out := make(map[string]string, len(details))
	for _, k := range slices.Sorted(maps.Keys(details)) {
		if len(out) == ota.MaxDetails {
			break
		}
		v := details[k]
		if len(v) > ota.MaxDetailValueBytes {
			v = v[:ota.MaxDetailValueBytes]
			for !utf8.ValidString(v) && len(v) > ota.MaxDetailValueBytes-utf8.UTFMax {
				v = v[:len(v)-1]
			}
		}
		out[k] = v
	}
	return out
}

// ReportShadow implements agent.Transport.
func (t *Transport) ReportShadow(ctx context.Context, reported map[string]any) error {
	topic := t.topics.shadowUpdate()
	a, err := t.request(ctx, topic, map[string]any{"state": map[string]any{"reported": reported}})
	if err != nil {
		return err
	}
	if a.rejected {
		return t.refusal(topic, a)
	}
	return nil
}

// refusal reads a rejected answer; the code is a word for jobs and a number for
// the shadow.
func (t *Transport) refusal(topic string, a answer) error {
	var reply struct {
		Code    any    `json:"code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(a.payload, &reply); err != nil {
		return fmt.Errorf("%s: %w: %w", topic, ErrReply, err)
	}
	return &RejectedError{Topic: topic, Code: fmt.Sprint(reply.Code), Message: fmt.Sprintf("%.300q", reply.Message)}
}
