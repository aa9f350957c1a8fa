package mqtt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/otad/otad/pkg/ota"
)

// MaxJobRequestBytes is the longest body of a request under jobs/.
const MaxJobRequestBytes = 64 << 10

var errJobJSON = errors.New("the payload is not JSON in UTF-8")

// jobRequest is the body of any request under jobs/; an operation looks at the
// members that are its own. Members that none has, such as the thingName and
// jobId that SDKs repeat here, are passed over, and null is as good as absent.
type jobRequest struct {
	ClientToken              string
	Status                   ota.Status
	StatusDetails            map[string]string // nil: not given
	ExpectedVersion          int64             // 0: not given
	ExecutionNumber          int64             // 0: not given
	IncludeJobDocument       *bool
	IncludeJobExecutionState bool
	StepTimeout              time.Duration // as in ota.Report; ota.NoStepTimeout for -1
}

// document reports whether the job document is wanted.
func (r jobRequest) document(byDefault bool) bool {
	if r.IncludeJobDocument == nil {
		return byDefault
	}
	return *r.IncludeJobDocument
}

// parseJobRequest reads a body, which may be empty. Its error is errJobJSON or
// ota.ErrInvalid; the client token is returned with it if it could be read.
func parseJobRequest(payload []byte) (jobRequest, error) {
	var r jobRequest
	payload = bytes.TrimSpace(payload)
	switch {
	case len(payload) == 0:
		return r, nil
	case len(payload) > MaxJobRequestBytes:
		return r, fmt.Errorf("%w request: %d bytes: at most %d", ota.ErrInvalid, len(payload), MaxJobRequestBytes)
	case !utf8.Valid(payload) || !json.Valid(payload):
		return r, errJobJSON
	}
	var members map[string]json.RawMessage
	if payload[0] != '{' || json.Unmarshal(payload, &members) != nil {
		return r, fmt.Errorf("%w request: not a JSON object", ota.ErrInvalid)
	}
	p := memberParser{members: members}
	p.read("clientToken", &r.ClientToken, "a text")
	if len(r.ClientToken) > maxClientToken {
		r.ClientToken = ""
		p.fail("clientToken", fmt.Sprintf("at most %d bytes", maxClientToken))
	}
	p.read("status", &r.Status, "a text")
	p.details(&r.StatusDetails)
	r.StepTimeout = p.minutes("stepTimeoutInMinutes")
	r.ExpectedVersion = p.counted("expectedVersion")
	r.ExecutionNumber = p.counted("executionNumber")
	p.read("includeJobDocument", &r.IncludeJobDocument, "true or false")
	p.read("includeJobExecutionState", &r.IncludeJobExecutionState, "true or false")
	return r, p.err
}

// validateUpdate reports an update that could never be accepted.
func (r jobRequest) validateUpdate() error {
	if r.Status == "" {
		return fmt.Errorf("%w request: status: required", ota.ErrInvalid)
	}
	if !slices.Contains(ota.Statuses, r.Status) {
		return fmt.Errorf("%w request: status: %.40q is none", ota.ErrInvalid, r.Status)
	}
	return nil
}

// memberParser reads the members of a request, each under its exact name, and
// keeps the first fault.
type memberParser struct {
	members map[string]json.RawMessage
	err     error
}

func (p *memberParser) fail(name, want string) {
	if p.err == nil {
		p.err = fmt.Errorf("%w request: %s: want %s", ota.ErrInvalid, name, want)
	}
}

// get returns a member; nil: absent.
func (p *memberParser) get(name string) json.RawMessage {
	raw := p.members[name]
	if string(raw) == "null" {
		return nil
	}
	return raw
}

func (p *memberParser) read(name string, into any, want string) {
	if raw := p.get(name); raw != nil && json.Unmarshal(raw, into) != nil {
		p.fail(name, want)
	}
}

// details reads statusDetails. A null among the values is not "".
func (p *memberParser) details(into *map[string]string) {
	const name, want = "statusDetails", "an object of texts"
	var values map[string]*string
	p.read(name, &values, want)
	if values == nil {
		return
	}
	*into = make(map[string]string, len(values))
	for k, v := range values {
		if v == nil {
			p.fail(name, want)
			continue
		}
		(*into)[k] = *v
	}
}

// counted reads a number from 1; 0: absent. It may be a text, as the embedded C
// library sends it.
func (p *memberParser) counted(name string) int64 {
	raw := p.get(name)
	if raw == nil {
		return 0
	}
	n, err := strconv.ParseInt(string(unquoted(raw)), 10, 64)
	if err != nil || n < 1 {
		p.fail(name, "a whole number from 1")
	}
	return n
}

// minutes reads a timeout: a number of minutes, or -1 for none; 0: absent.
func (p *memberParser) minutes(name string) time.Duration {
	raw := p.get(name)
	if raw == nil {
		return 0
	}
	n, err := strconv.ParseInt(string(unquoted(raw)), 10, 64)
	most := int64(ota.MaxTimeout / time.Minute)
	switch {
	case err == nil && n == -1:
		return ota.NoStepTimeout
	case err != nil || n < 1 || n > most:
		p.fail(name, fmt.Sprintf("1 to %d minutes, or -1 for none", most))
	}
	return time.Duration(n) * time.Minute
}

func unquoted(raw json.RawMessage) []byte {
	if len(raw) > 1 && raw[0] == '"' {
		return raw[1 : len(raw)-1]
	}
	return raw
}
