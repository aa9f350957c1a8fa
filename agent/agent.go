package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/pkg/ota"
)

// Config is what an agent is built from. Fields without a default are required.
type Config struct {
	Dir         string // state directory, made with mode 0700
	DeviceID    string
	Hardware    string // hardware model, matched with the manifest's
	FactoryRoot []byte // first TUF root, pinned at enrollment

	Transport  Transport
	Source     Source
	Boot       Boot
	Installers map[string]Installer // by ota.Manifest.Installer
	Health     Health

	Factory  ota.Manifest  // of the image in the slot a device was made with; zero: none
	Version  string        // the agent's own version, for the shadow
	NotOlder time.Time     // a date that is surely past, such as the build's; bounds the clock from below
	Poll     time.Duration // upper bound of the jittered wait between polls; 0: DefaultPoll

	Log    *slog.Logger                        // nil: discarded
	Now    func() time.Time                    // nil: time.Now
	Jitter func(d time.Duration) time.Duration // from 0 to d; nil: random
	FS     disk.FS                             // nil: disk.OS
}

// DefaultPoll bounds the wait between two questions for a job when nothing
// wakes the agent.
const DefaultPoll = 15 * time.Minute

// Agent is the update loop of one device. Run may be called once.
type Agent struct {
	cfg Config
}

// New checks the configuration, creates or opens the state in Config.Dir and
// returns an agent that has not started.
func New(cfg Config) (*Agent, error) {
	return nil, errors.New("agent: not built in")
}

// Run works until ctx ends (nil), until the process has to restart to boot the
// other slot (ErrReboot), or until its own disk fails it (any other error). It
// never ends because of the server. All it started is stopped when it returns.
func (a *Agent) Run(ctx context.Context) error { return nil }
