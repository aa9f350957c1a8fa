package ota

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Kind is what a rollout brings to devices.
type Kind string

// The kinds. Rules that speak of firmware bind an install alone.
const (
	KindInstall Kind = "install"
	KindCommand Kind = "command"
)

// Kind returns what the rollout brings.
func (r Rollout) Kind() Kind {
	if r.Command != nil {
		return KindCommand
	}
	return KindInstall
}

// CommandSlack is how much longer than its command an execution may be
// IN_PROGRESS where the plan does not say: the device has to come back from a
// reboot, or to find its server again.
const CommandSlack = 5 * time.Minute

// Ordered returns a rollout of a command with the bound that its executions get
// when the plan gives none: a device that dies in the middle ends nothing else.
func (r Rollout) Ordered() Rollout {
	if r.Command != nil && r.InProgressTimeout == 0 {
		r.InProgressTimeout = r.Command.Timeout() + CommandSlack
	}
	return r
}

// validateKind reports a plan that is of both kinds or of none, and terms of an
// install beside a command.
func (r Rollout) validateKind() error {
	if r.Command == nil {
		return AtField("firmware", r.Release.Validate())
	}
	if r.Release != (ReleaseID{}) {
		return AtField("command", invalid("a rollout of release %s and of command %s: make two", r.Release, r.Command.Name))
	}
	if err := r.Command.ValidateOrder(); err != nil {
		return AtField("command", err)
	}
	t := r.Terms.Timers
	t.Claim = 0
	switch {
	case r.Terms.Window != (Window{}):
		return AtField("window", invalid("a command has no window and asks for no consent: give it a start, or make it wait for approval"))
	case r.Terms.Consent != nil:
		return AtField("consent", invalid("a command has no window and asks for no consent: give it a start, or make it wait for approval"))
	case r.Terms.Health.Set():
		return AtField("health", invalid("a command has no health gate: it brings no image to compare; leave it out"))
	case r.Terms.OnAbort == AbortRevert:
		return AtField("onAbort", invalid("a command installs nothing that could be reverted: leave out the abort policy"))
	case t != (Timers{}):
		return AtField("timers", invalid("timers of fetch, install, reboot and health are those of an install: a command has a claim timer and its time-outs"))
	case r.Terms.Quarantined:
		return AtField("quarantined", invalid("a command knows no quarantine: it is for every device selected; leave it out"))
	}
	return nil
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

// String is the command and its parameters, for people.
func (c Command) String() string {
	text := c.Name
	for _, k := range slices.Sorted(maps.Keys(c.Parameters)) {
		text += fmt.Sprintf(" %s=%s", k, c.Parameters[k])
	}
	return text
}

// Keys of statusDetails that our agent sets for a command.
const (
	DetailExit        = "exitCode"    // of the program
	DetailOutputBytes = "outputBytes" // of the whole output
	DetailOutput      = "output"      // its begin; output2, ... follow
)

// Output is what the details say of a command's output.
func Output(details map[string]string) string {
	text := details[DetailOutput]
	for i := 2; details[DetailOutput+strconv.Itoa(i)] != ""; i++ {
		text += details[DetailOutput+strconv.Itoa(i)]
	}
	return text
}

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
	if err := c.ValidateOrder(); err != nil {
		return err
	}
	return c.validateUpload()
}

// ValidateOrder is Validate for a command as an operator orders it: where to put
// what is collected is not said yet.
func (c Command) ValidateOrder() error {
	if err := ValidateWord("command", c.Name); err != nil {
		return AtField("name", err)
	}
	if len(c.Parameters) > MaxCommandParameters {
		return AtField("parameters", invalid("command with %d parameters: at most %d", len(c.Parameters), MaxCommandParameters))
	}
	for _, k := range slices.Sorted(maps.Keys(c.Parameters)) {
		err := ValidateParameterName(k)
		if v := c.Parameters[k]; err == nil && (len(v) > MaxParameterBytes || !utf8.ValidString(v)) {
			err = invalid("command parameter %s: want a text of at most %d bytes", k, MaxParameterBytes)
		}
		if err != nil {
			return AtField("parameters."+k, err)
		}
	}
	if limit := int(MaxCommandTimeout / time.Second); c.TimeoutSeconds < 0 || c.TimeoutSeconds > limit {
		return AtField("timeout", invalid("command timeout of %d seconds: want 1 to %d, or none for %d", c.TimeoutSeconds, limit, int(DefaultCommandTimeout/time.Second)))
	}
	if c.MaxOutputBytes < 0 || c.MaxOutputBytes > MaxCommandOutput {
		return AtField("maxOutput", invalid("command output of %d bytes: want 1 to %d, or none for %d", c.MaxOutputBytes, MaxCommandOutput, DefaultCommandOutput))
	}
	return nil
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

// NewCommandDocument tells a device to run a command, for the given attempt
// (from 1).
func NewCommandDocument(c Command, attempt int) JobDocument {
	return JobDocument{Operation: OperationCommand, Command: &c, Attempt: attempt}
}
