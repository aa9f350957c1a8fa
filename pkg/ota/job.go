package ota

import (
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

	Hold bool `json:"hold,omitempty"` // the rollout is paused: wait before the new slot is activated, or the command run

	// Of an install; none of them has to be there.
	Quarantined bool `json:"quarantined,omitempty"` // try the image also where it was rolled back before

	Window  Window   `json:"window,omitzero"`        // when it may install; zero: always
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
		return AtField("maxDefers", invalid("consent with %d deferrals: want 0 to %d", c.MaxDefers, MaxDefers))
	}
	return nil
}

// Asks reports whether one may be asked at now who has put it off so often.
func (c Consent) Asks(defers int, now time.Time) bool {
	return defers < c.MaxDefers && (c.Deadline.IsZero() || now.Before(c.Deadline))
}

// NewJobDocument points at a release for the given attempt (from 1).
func NewJobDocument(id ReleaseID, attempt int) JobDocument {
	return JobDocument{Operation: OperationInstall, Name: id.Name, Version: id.Version, Target: id.TargetPath(), Attempt: attempt}
}

// JobOf is the document of an execution. That of CommandCollectLogs lacks where to
// put what is collected, which only the server knows.
func JobOf(e Execution) JobDocument {
	if e.Command != nil {
		d := NewCommandDocument(*e.Command, e.Attempt)
		d.Hold = e.Hold
		return d
	}
	d := NewJobDocument(e.Release, e.Attempt)
	d.Window, d.Hold, d.Consent, d.Quarantined = e.Window, e.Hold, e.Consent, e.Quarantined
	return d
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
