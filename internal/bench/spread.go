package main

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sync/errgroup"
)

const (
	// spreadDevices of the known ones are connected, in random order: as many as the
	// memory of the machine allows beside the rest.
	spreadDevices = 10_000
	// spreadPassword is that of each of them: to enroll so many takes its time.
	spreadPassword = "the password of every device of this fleet"
	// spreadAtOnce connect at a time.
	spreadAtOnce = 32
)

// passwords gives every known device the same one.
func passwords() string {
	salt := bytes.Repeat([]byte{7}, 16)
	hash := argon2.IDKey([]byte(spreadPassword), salt, 1, 64, 1, 32) // as the server hashes what it makes itself
	coded := base64.RawStdEncoding.EncodeToString
	return `INSERT INTO device_credentials (id, device_id, kind, secret, key_id, created_at) SELECT 'known-' || id, id, 'password', '` +
		fmt.Sprintf("$argon2id$v=%d$m=64,t=1,p=1$%s$%s", argon2.Version, coded(salt), coded(hash)) + `', '', 1700000000000000 FROM devices`
}

// spread is the load with as many callers, each of which goes round devices of its own:
// no two updates in a row are of one device or connection. each is what came of those
// of one device for each caller.
func (s *loadSite) spread(address string, trust *tls.Config, each float64) error {
	config := &tls.Config{RootCAs: trust.RootCAs, MinVersion: tls.VersionTLS13}
	devices := make([]*loadDevice, spreadDevices)
	defer func() {
		for _, d := range devices {
			if d != nil && d.wire != nil {
				_ = d.wire.nc.Close() // the figures are in
			}
		}
	}()
	began := time.Now()
	var g errgroup.Group
	g.SetLimit(spreadAtOnce)
	for i, known := range rand.Perm(knownDevices)[:spreadDevices] {
		g.Go(func() error {
			d := &loadDevice{id: fmt.Sprintf("device-%07d", known), tls: config, report: newReport()}
			devices[i] = d
			if err := d.connect(s.r.ctx, address, hello{id: d.id, password: spreadPassword}); err != nil {
				return fmt.Errorf("connect %s: %w", d.id, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	connecting := time.Since(began)
	callers := make([]*caller, loadDevices)
	for i := range callers {
		share := spreadDevices / loadDevices
		callers[i] = newCaller(devices[i*share : (i+1)*share]...)
	}
	what := fmt.Sprintf("%s: the same, %d at a time of %d devices connected, at random among %d", s.database, loadDevices, spreadDevices, knownDevices)
	perSecond, err := s.load(callers, what, s.target)
	if err != nil {
		return err
	}
	s.r.table.add(figure{
		what:     "  beside the devices that update again and again; before that, these connected, by TLS and password",
		measured: fmt.Sprintf("%.2fx; %.0f/s, each with an update", perSecond/each, spreadDevices/connecting.Seconds()),
	})
	m, err := s.server.memory()
	if err != nil {
		return err
	}
	s.r.table.add(figure{
		what:     fmt.Sprintf("  otad resident at the end of that load, %d devices connected of %d known", spreadDevices, knownDevices),
		measured: fmt.Sprintf("%s, at most %s", showMB(m.resident), showMB(m.peak)),
	})
	return nil
}
