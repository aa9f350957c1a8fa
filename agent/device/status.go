package device

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/disk"
	agenthttp "github.com/otad/otad/agent/http"
	"github.com/otad/otad/pkg/enroll"
	"github.com/otad/otad/pkg/ota"
)

// Status is what can be said of a device by looking at its directory.
type Status struct {
	Settings
	Running   bool          `json:"running"`
	Expires   time.Time     `json:"certificateExpires"`
	RenewFrom time.Time     `json:"certificateRenewFrom"`
	Agent     *agent.Status `json:"agent,omitempty"` // nil: it has not run yet
}

// ReadStatus looks at a directory; the agent need not run. ErrNotEnrolled when
// there is no device in it.
func ReadStatus(directory string) (Status, error) {
	d := dir(directory)
	settings, err := d.settings()
	if err != nil {
		return Status{}, err
	}
	s := Status{Settings: settings}
	b, err := d.read(certName)
	if err != nil {
		return Status{}, err
	}
	chain, err := agenthttp.ParseCertificates(b)
	if err != nil {
		return Status{}, err
	}
	s.Expires, s.RenewFrom = chain[0].NotAfter, agenthttp.RenewAt(chain[0])
	lock, err := d.lock()
	switch {
	case errors.Is(err, ErrRunning):
		s.Running = true
	case err != nil:
		return Status{}, err
	default:
		if err := lock.Close(); err != nil {
			return Status{}, err
		}
	}
	switch as, err := agent.ReadStatus(d.path(stateName)); {
	case err == nil:
		s.Agent = &as
	case !errors.Is(err, fs.ErrNotExist):
		return Status{}, err
	}
	return s, nil
}

// Exit statuses of the device's commands, the same as otactl's.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitConflict    = 4
	ExitDenied      = 5
	ExitUnreachable = 6
)

// remedies is the one table from errors to exit status and hint; the first that
// fits counts.
var remedies = []struct {
	err  error
	exit int
	hint string
}{
	{enroll.ErrToken, ExitUsage, "make one with \"otactl token create\" and copy the whole line that starts with " + enroll.Prefix},
	{ota.ErrInvalid, ExitUsage, ""},
	{ErrNotEnrolled, ExitNotFound, "enroll it first, and look whether --dir is right"},
	{ErrEnrolled, ExitConflict, "run it as it is, or give a new device another --dir"},
	{ErrRunning, ExitConflict, "stop the other agent first"},
	{disk.ErrLocked, ExitConflict, "stop the other agent first"},
	{agenthttp.ErrConflict, ExitConflict, "this id belongs to another key: choose another --id, or revoke the old device with \"otactl device revoke\""},
	{agenthttp.ErrDenied, ExitDenied, "the token may be used up, over, or not for this id or hardware; \"otactl token list\" shows it"},
	{agenthttp.ErrIdentity, ExitDenied, "check --server, and that the token was made by this server; if the device's clock is wrong, set it"},
	{agent.ErrUnreachable, ExitUnreachable, "check --server, the network and the firewall; nothing is lost, run it again"},
	{context.Canceled, ExitFailed, ""},
}

// Explain returns the exit status for an error of this package, and a remedy if
// there is one.
func Explain(err error) (exit int, hint string) {
	if err == nil {
		return ExitDone, ""
	}
	for _, r := range remedies {
		if errors.Is(err, r.err) {
			return r.exit, r.hint
		}
	}
	return ExitFailed, ""
}
