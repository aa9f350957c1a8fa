package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/boot/file"
	"github.com/otad/otad/agent/command"
	"github.com/otad/otad/agent/health"
	agenthttp "github.com/otad/otad/agent/http"
	"github.com/otad/otad/agent/install/binary"
	"github.com/otad/otad/agent/install/image"
	"github.com/otad/otad/agent/mqtt"
	"github.com/otad/otad/pkg/ota"
)

// Options is what Run needs beside the directory's content.
type Options struct {
	Dir     string
	Version string        // of the agent, for the shadow
	Poll    time.Duration // see agent.Config.Poll; 0: its default
	Log     *slog.Logger  // nil: discarded
}

// Run is the agent of an enrolled directory. It ends with nil when ctx does.
// When the agent wants a reboot, everything it started is stopped and the
// process starts its own program again with the same arguments, so that a
// supervisor sees one process; Run then does not return.
func Run(ctx context.Context, o Options) error {
	err := run(ctx, o)
	if !errors.Is(err, agent.ErrReboot) {
		return err
	}
	if ctx.Err() != nil {
		return nil // asked to end: the next start is the reboot
	}
	return restart()
}

// restart replaces this process by a fresh one of the same program.
func restart() error {
	const self = "/proc/self/exe" // the program that runs, even if its file was replaced
	if err := syscall.Exec(self, os.Args, os.Environ()); err != nil {
		return fmt.Errorf("restart %s: %w", os.Args[0], err)
	}
	return nil
}

// run is Run up to the restart.
func run(ctx context.Context, o Options) (err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := dir(o.Dir)
	lock, err := d.lockPatiently(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	id, err := d.identity()
	if err != nil {
		return err
	}
	var current atomic.Pointer[tls.Certificate]
	current.Store(id.cert)
	now := notBefore(&current)
	source, err := agenthttp.New(agenthttp.Config{ServerURL: id.ServerURL, CA: id.ca, Certificate: current.Load, Now: now})
	if err != nil {
		return err
	}
	defer source.Close()
	pool := x509.NewCertPool()
	pool.AddCert(id.ca)
	line, err := mqtt.New(mqtt.Config{
		URL: id.MQTTURL, DeviceID: id.DeviceID, CAs: pool, Certificate: current.Load, Log: o.Log, Now: now,
	})
	if err != nil {
		return err
	}
	defer line.Close()

	working, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	r := renewer{dir: d, id: id.DeviceID, key: id.key, source: source, current: &current, now: now, log: o.Log}
	wg.Go(func() { r.run(working) })
	return d.work(ctx, o, id, source, line)
}

// work opens the boot driver, which is the boot, and runs the agent.
func (d dir) work(ctx context.Context, o Options, id identity, source *agenthttp.Source, line agent.Transport) (err error) {
	boot, err := file.Open(file.Config{Dir: string(d)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, boot.Close()) }()
	zone, err := id.zone()
	if err != nil {
		return err
	}
	var asker agent.Asker
	if len(id.Consent) > 0 {
		asker = command.Consent{Argv: id.Consent}
	}
	actions, err := command.New(command.Config{Actions: id.Actions, Logs: id.Logs, Upload: source.Upload, TempDir: d.path(stateName)})
	if err != nil {
		return fmt.Errorf("%s: %w", settingsName, err)
	}
	a, err := agent.New(agent.Config{
		Dir:         d.path(stateName),
		DeviceID:    id.DeviceID,
		Hardware:    id.Hardware,
		FactoryRoot: id.root,
		Transport:   line,
		Source:      source,
		Boot:        boot,
		Installers: map[string]agent.Installer{
			ota.InstallImage:  image.Installer{},
			ota.InstallBinary: binary.Installer{Log: o.Log},
		},
		Health:   health.Checker{},
		Asker:    asker,
		Actions:  actions,
		Factory:  id.Factory,
		Version:  o.Version,
		NotOlder: built(),
		Zone:     zone,
		Poll:     o.Poll,
		Log:      o.Log,
	})
	if err != nil {
		return err
	}
	o.Log.Info("agent started", "device", id.DeviceID, "hardware", id.Hardware, "server", id.ServerURL, "dir", string(d))
	return a.Run(ctx)
}

// notBefore is a clock for certificates that never shows a time before the
// device's own was issued: many devices start in 1970.
func notBefore(current *atomic.Pointer[tls.Certificate]) func() time.Time {
	return func() time.Time {
		now := time.Now()
		if issued := current.Load().Leaf.NotBefore; issued.After(now) {
			return issued
		}
		return now
	}
}
