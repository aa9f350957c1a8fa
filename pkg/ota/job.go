package ota

import (
	"net/url"
	"regexp"
	"time"
	"unicode/utf8"
)

// JobDocument is what a device is told to do: the body of a job. An install only
// points at signed data; the device believes nothing else in it. What a device
// does not know among the members it passes over, an operation that it does not
// know it rejects.
type JobDocument struct {
	Operation string `json:"operation"` // OperationInstall or OperationCommand

	// Of an install.
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	Target  string `json:"target,omitempty"` // TUF target path of the artifact index

	Attempt int `json:"attempt"` // from 1

	// Of an install; none of them has to be there.
	Window  Window   `json:"window,omitzero"`        // when it may install; zero: always
	Hold    bool     `json:"hold,omitempty"`         // the rollout is paused: wait before the new slot is activated
	Consent *Consent `json:"consent,omitempty"`      // bounds what the people at the device may put off; nil: DefaultConsent
	Notes   string   `json:"releaseNotes,omitempty"` // for these people

	Command *Command `json:"command,omitempty"` // of a command
}

// Operations of a JobDocument.
const (
	OperationInstall = "install"
	OperationCommand = "command"
)

// Limits of a job document.
const (
	// MaxJobDocumentBytes is the longest in JSON, as in AWS IoT. What NewJobDocument
	// returns for a valid release is far below it.
	MaxJobDocumentBytes = 32768
	MaxNotesBytes       = 4096
	MaxDefers           = 100
)

// Consent bounds how long the people at a device may put an activation off.
type Consent struct {
	MaxDefers int       `json:"maxDefers"`         // how often; 0: they are not asked
	Deadline  time.Time `json:"deadline,omitzero"` // from then on they are not asked either; zero: no such time
}

// DefaultConsent is that of a document without one: on devices that ask, people
// may put it off so often.
var DefaultConsent = Consent{MaxDefers: 10}

func (c *Consent) validate() error {
	if c != nil && (c.MaxDefers < 0 || c.MaxDefers > MaxDefers) {
		return invalid("consent with %d deferrals: want 0 to %d", c.MaxDefers, MaxDefers)
	}
	return nil
}

// Asks reports whether one may be asked at now who has put it off so often.
func (c Consent) Asks(defers int, now time.Time) bool {
	return defers < c.MaxDefers && (c.Deadline.IsZero() || now.Before(c.Deadline))
}

// Command is a named action, run on the device as far as its own configuration
// allows it.
type Command struct {
	Name           string            `json:"name"` // CommandReboot, CommandCollectLogs or one of the device's own
	Parameters     map[string]string `json:"parameters,omitempty"`
	TimeoutSeconds int               `json:"timeoutSeconds,omitempty"` // 0: DefaultCommandTimeout
	MaxOutputBytes int               `json:"maxOutputBytes,omitempty"` // of the output that is reported; 0: DefaultCommandOutput
	UploadURL      string            `json:"uploadUrl,omitempty"`      // where CommandCollectLogs puts what it collected: https, of the device's own server
}

// Commands that every agent has.
const (
	CommandReboot      = "reboot"
	CommandCollectLogs = "collect-logs"
)

// Limits of a command.
const (
	MaxCommandParameters  = 16
	MaxParameterBytes     = 256
	MaxUploadURLBytes     = 1024
	DefaultCommandTimeout = time.Minute
	MaxCommandTimeout     = 24 * time.Hour
	// MaxCommandOutput is what six values of statusDetails hold.
	MaxCommandOutput     = 6 * MaxDetailValueBytes
	DefaultCommandOutput = 2 * MaxDetailValueBytes
)

// Timeout is how long the command may run.
func (c Command) Timeout() time.Duration {
	if c.TimeoutSeconds == 0 {
		return DefaultCommandTimeout
	}
	return time.Duration(c.TimeoutSeconds) * time.Second
}

// OutputLimit is how many bytes of its output are reported.
func (c Command) OutputLimit() int {
	if c.MaxOutputBytes == 0 {
		return DefaultCommandOutput
	}
	return c.MaxOutputBytes
}

// Keys become names of environment variables.
var parameterPattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]{0,62}$`)

// ValidateParameterName reports a name of a command's parameter outside
// [a-zA-Z][a-zA-Z0-9_]{0,62}.
func ValidateParameterName(s string) error {
	if !parameterPattern.MatchString(s) {
		return invalid("command parameter %.80q: 1 to 63 of a-z A-Z 0-9 _, starting with a letter", s)
	}
	return nil
}

// Validate reports a command that no device could run.
func (c Command) Validate() error {
	if err := ValidateWord("command", c.Name); err != nil {
		return err
	}
	if len(c.Parameters) > MaxCommandParameters {
		return invalid("command with %d parameters: at most %d", len(c.Parameters), MaxCommandParameters)
	}
	for k, v := range c.Parameters {
		if err := ValidateParameterName(k); err != nil {
			return err
		}
		if len(v) > MaxParameterBytes || !utf8.ValidString(v) {
			return invalid("command parameter %s: want a text of at most %d bytes", k, MaxParameterBytes)
		}
	}
	if limit := int(MaxCommandTimeout / time.Second); c.TimeoutSeconds < 0 || c.TimeoutSeconds > limit {
		return invalid("command timeout of %d seconds: want 1 to %d, or none for %d", c.TimeoutSeconds, limit, int(DefaultCommandTimeout/time.Second))
	}
	if c.MaxOutputBytes < 0 || c.MaxOutputBytes > MaxCommandOutput {
		return invalid("command output of %d bytes: want 1 to %d, or none for %d", c.MaxOutputBytes, MaxCommandOutput, DefaultCommandOutput)
	}
	return c.validateUpload()
}

func (c Command) validateUpload() error {
	if (c.UploadURL != "") != (c.Name == CommandCollectLogs) {
		return invalid("command %s with upload URL %.80q: %s needs one, others have none", c.Name, c.UploadURL, CommandCollectLogs)
	}
	if c.UploadURL == "" {
		return nil
	}
	u, err := url.Parse(c.UploadURL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || len(c.UploadURL) > MaxUploadURLBytes {
		return invalid("upload URL %.80q: want https, a host and at most %d bytes", c.UploadURL, MaxUploadURLBytes)
	}
	return nil
}

// NewJobDocument points at a release for the given attempt (from 1).
func NewJobDocument(id ReleaseID, attempt int) JobDocument {
	return JobDocument{Operation: OperationInstall, Name: id.Name, Version: id.Version, Target: id.TargetPath(), Attempt: attempt}
}

// JobOf is the document of an execution.
func JobOf(e Execution) JobDocument {
	d := NewJobDocument(e.Release, e.Attempt)
	d.Window, d.Hold, d.Consent = e.Window, e.Hold, e.Consent
	return d
}

// NewCommandDocument tells a device to run a command, for the given attempt
// (from 1).
func NewCommandDocument(c Command, attempt int) JobDocument {
	return JobDocument{Operation: OperationCommand, Command: &c, Attempt: attempt}
}

// Validate reports a document that this version can not act on.
func (d JobDocument) Validate() error {
	if d.Attempt < 1 {
		return invalid("job attempt %d: counted from 1", d.Attempt)
	}
	switch d.Operation {
	case OperationInstall:
		return d.validateInstall()
	case OperationCommand:
		if d.Command == nil || d.Name != "" || d.Version != "" || d.Target != "" {
			return invalid("a job of operation %q has a command and no release", d.Operation)
		}
		return d.Command.Validate()
	}
	return invalid("job operation %.40q: this agent knows %s and %s", d.Operation, OperationInstall, OperationCommand)
}

func (d JobDocument) validateInstall() error {
	id := ReleaseID{Name: d.Name, Version: d.Version}
	if err := id.Validate(); err != nil {
		return err
	}
	if d.Target != id.TargetPath() {
		return invalid("job target %.80q does not belong to %s", d.Target, id)
	}
	if d.Command != nil {
		return invalid("a job of operation %q has no command", d.Operation)
	}
	if len(d.Notes) > MaxNotesBytes || !utf8.ValidString(d.Notes) {
		return invalid("release notes of %d bytes: want a text of at most %d", len(d.Notes), MaxNotesBytes)
	}
	if err := d.Consent.validate(); err != nil {
		return err
	}
	if d.Window == (Window{}) {
		return nil
	}
	return d.Window.Validate()
}
