package simulate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/otad/otad/pkg/ota"
)

// Limits of a fleet.
const (
	MaxDevices    = 20_000
	DefaultPrefix = "sim-"
	// enrolling is how many devices enroll at a time: each is a TLS handshake and a
	// certificate for the server.
	enrolling = 16
)

// Config is what a fleet needs. Fields without a default are required.
type Config struct {
	Server   string // https://host:port of the device plane
	Token    string // text of an enrollment token, good for Devices devices
	Hardware string
	Devices  int
	Prefix   string // of device ids, which go on with numbers from 1; empty: DefaultPrefix
	Seed     uint64
	Faults   Faults
	// Reconnect is how long a device whose connection was lost waits at first, at
	// the most; the wait doubles. 0: as the agent does.
	Reconnect time.Duration
	Log       *slog.Logger // of the agents; nil: discarded
}

// Faults are what goes wrong in a fleet. The zero value is a good day.
type Faults struct {
	// Bad is the share of devices, 0 to 1, on which an image fails its health
	// check, by release; BadAny that of releases that are not in it.
	Bad    map[ota.ReleaseID]float64
	BadAny float64
	// Crash is the share of devices on which the application of a release crashes
	// again and again, though it starts well, by release; CrashAny that of releases
	// that are not in it.
	Crash    map[ota.ReleaseID]float64
	CrashAny float64
	// Silent is the share of devices that never come back from the reboot into a
	// release.
	Silent float64
	// Cut is the mean time between two losses of a device's connections, PowerCut
	// between two losses of its power. 0: none.
	Cut, PowerCut time.Duration
	// Trial is how long health checks take on the average.
	Trial time.Duration
}

func (c *Config) check() error {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Server == "" || c.Token == "":
		return errors.New("a fleet needs a server and an enrollment token")
	case c.Devices < 1 || c.Devices > MaxDevices:
		return fmt.Errorf("%d devices: want 1 to %d", c.Devices, MaxDevices)
	}
	if err := ota.ValidateDeviceID(c.id(c.Devices)); err != nil {
		return err
	}
	if err := ota.ValidateWord("hardware model", c.Hardware); err != nil {
		return err
	}
	return c.Faults.check()
}

func (c *Config) id(n int) string { return fmt.Sprintf("%s%d", c.Prefix, n) }

func (f Faults) check() error {
	shares := map[string]float64{"bad": f.BadAny, "crash": f.CrashAny, "silent": f.Silent}
	for id, share := range f.Bad {
		shares["bad "+id.String()] = share
	}
	for id, share := range f.Crash {
		shares["crash "+id.String()] = share
	}
	for what, share := range shares {
		if !(share >= 0 && share <= 1) {
			return fmt.Errorf("%s share of %g%%: want 0%% to 100%%", what, share*100)
		}
	}
	for what, d := range map[string]time.Duration{"cut": f.Cut, "power cut": f.PowerCut, "trial": f.Trial} {
		if d < 0 {
			return fmt.Errorf("%s of %s: must not be negative", what, d)
		}
	}
	return nil
}

// Fleet is devices that run until it is closed.
type Fleet struct {
	cfg     Config
	ledger  Ledger
	devices []*device
	running sync.WaitGroup
	stop    context.CancelFunc
	failed  atomic.Pointer[error]
}

// New enrolls the devices, each with a key of its own, and starts them. Close
// must be called.
func New(ctx context.Context, cfg Config) (*Fleet, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("simulated fleet: %w", err)
	}
	f := &Fleet{cfg: cfg, devices: make([]*device, cfg.Devices)}
	g, enrolled := errgroup.WithContext(ctx)
	g.SetLimit(enrolling)
	for i := range f.devices {
		g.Go(func() (err error) {
			f.devices[i], err = newDevice(enrolled, f, cfg.id(i+1))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	f.stop = stop
	for _, d := range f.devices {
		f.running.Go(func() {
			if err := d.run(running); err != nil {
				err = fmt.Errorf("device %s: %w", d.id, err)
				f.failed.CompareAndSwap(nil, &err)
			}
		})
	}
	return f, nil
}

// Close ends the devices and returns the first fault of one of them that was not
// drawn.
func (f *Fleet) Close() error {
	f.stop()
	f.running.Wait()
	if err := f.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Ledger is what the server has acknowledged so far.
func (f *Fleet) Ledger() *Ledger { return &f.ledger }

// Counts is where a fleet stands.
type Counts struct {
	Devices   int            `json:"devices"`
	Connected int            `json:"connected"`
	Silent    int            `json:"silent"`    // gone for good
	PowerCuts int            `json:"powerCuts"` // so far
	Runs      map[string]int `json:"runs"`      // devices by what runs on them, NAME@VERSION
}

// Counts returns where the devices stand now.
func (f *Fleet) Counts() Counts {
	c := Counts{Devices: len(f.devices), Runs: map[string]int{}}
	for _, d := range f.devices {
		if d.lines.open() {
			c.Connected++
		}
		if d.silent.Load() {
			c.Silent++
		}
		c.PowerCuts += int(d.powerCuts.Load())
		if runs := d.runs.Load(); runs != nil {
			c.Runs[*runs]++
		}
	}
	return c
}
