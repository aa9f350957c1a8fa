package simulate

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/boot/file"
	"github.com/otad/otad/agent/disk/disktest"
	agenthttp "github.com/otad/otad/agent/http"
	"github.com/otad/otad/agent/mqtt"
	"github.com/otad/otad/pkg/ota"
)

// Where a device keeps its things on its disk.
const (
	slotsDir = "/device"
	stateDir = "/device/state"
)

// afterPower is how long a device is off after a loss of power, on the average.
const afterPower = 5 * time.Second

// device is one device from its enrollment on.
type device struct {
	fleet *Fleet
	id    string
	draw  draws
	cert  *tls.Certificate
	ca    *x509.Certificate
	url   string // of the broker
	root  []byte
	disk  *disktest.Mem
	lines lines

	silent    atomic.Bool
	powerCuts atomic.Int64
	runs      atomic.Pointer[string]
}

func newDevice(ctx context.Context, f *Fleet, id string) (*device, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	identity, err := agenthttp.Enroll(ctx, agenthttp.Options{
		ServerURL: f.cfg.Server, Token: f.cfg.Token, DeviceID: id, Hardware: f.cfg.Hardware, Key: key,
	})
	if err != nil {
		return nil, fmt.Errorf("enroll %s: %w", id, err)
	}
	d := &device{fleet: f, id: id, draw: draws{f.cfg.Seed, id}, url: identity.MQTTURL, root: identity.Root, disk: disktest.NewMem()}
	d.lines.mean, d.lines.draw = f.cfg.Faults.Cut, d.draw
	d.ca, d.cert, err = certificates(identity, key)
	return d, err
}

func certificates(id agenthttp.Identity, key crypto.Signer) (*x509.Certificate, *tls.Certificate, error) {
	ca, err := agenthttp.ParseCertificates(id.CA)
	if err != nil {
		return nil, nil, err
	}
	chain, err := agenthttp.ParseCertificates(id.Certificate)
	if err != nil {
		return nil, nil, err
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return ca[0], cert, nil
}

// run is the device's lives, one boot after the other, until ctx ends.
func (d *device) run(ctx context.Context) error {
	for boot := 0; ctx.Err() == nil; boot++ {
		err := d.live(ctx, boot)
		switch {
		case d.disk.Dead(): // without power, whatever it died of
			d.powerCuts.Add(1)
			d.disk = d.disk.Crash(disktest.Torn, d.draw.number("disk", boot))
			wait(ctx, d.draw.around(afterPower, "off", boot))
		case errors.Is(err, agent.ErrReboot):
		case err != nil && ctx.Err() == nil:
			return err
		}
	}
	return nil
}

// live is one boot.
func (d *device) live(ctx context.Context, boot int) (err error) {
	slots, err := file.Open(file.Config{Dir: slotsDir, FS: d.disk})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, slots.Close()) }()
	facts, err := slots.Facts()
	if err != nil {
		return err
	}
	booted := facts.Slots[facts.Active]
	release := ota.ReleaseID{Name: booted.Name, Version: booted.Version}
	if facts.Active != facts.Selected && d.draw.happens(d.fleet.cfg.Faults.Silent, "silent", release.String()) {
		d.silent.Store(true)
		<-ctx.Done()
		return nil
	}
	if booted.Name != "" {
		runs := release.String()
		d.runs.Store(&runs)
	}
	powered, cut := context.WithCancel(ctx)
	defer cut()
	if mean := d.fleet.cfg.Faults.PowerCut; mean > 0 {
		disk := d.disk
		timer := time.AfterFunc(d.draw.exponential(mean, "power", boot), func() {
			disk.Crash(disktest.Kept, 0) // from here on nothing is written
			cut()
		})
		defer timer.Stop()
	}
	return d.work(powered, slots, release)
}

// work connects and runs the agent.
func (d *device) work(ctx context.Context, boot agent.Boot, runs ota.ReleaseID) error {
	cfg := d.fleet.cfg
	own := func() *tls.Certificate { return d.cert }
	source, err := agenthttp.New(agenthttp.Config{ServerURL: cfg.Server, CA: d.ca, Certificate: own, Dial: d.lines.dial})
	if err != nil {
		return err
	}
	defer source.Close()
	pool := x509.NewCertPool()
	pool.AddCert(d.ca)
	var backoff func(int) time.Duration
	if cfg.Reconnect > 0 {
		backoff = mqtt.FullJitter(cfg.Reconnect, 16*cfg.Reconnect)
	}
	line, err := mqtt.New(mqtt.Config{URL: d.url, DeviceID: d.id, CAs: pool, Certificate: own, Dial: d.lines.dial, Backoff: backoff, Log: cfg.Log})
	if err != nil {
		return err
	}
	defer line.Close()
	defer d.lines.cutIfDone(ctx) // a device without power says no goodbye
	a, err := agent.New(agent.Config{
		Dir: stateDir, DeviceID: d.id, Hardware: cfg.Hardware, FactoryRoot: d.root,
		Transport: recorder{line, d.id, &d.fleet.ledger}, Source: source, Boot: boot, FS: d.disk, Log: cfg.Log,
		Installers: map[string]agent.Installer{ota.InstallImage: installer{d}, ota.InstallBinary: installer{d}},
		Health:     health{d, runs}, Version: "simulated",
	})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// wait waits that long, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
