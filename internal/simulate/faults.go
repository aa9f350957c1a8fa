package simulate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// draws are a device's random choices: the same seed, device and question have
// the same answer, in whatever order they are asked.
type draws struct {
	seed uint64
	id   string
}

// number is the answer to a question as a number.
func (d draws) number(question ...any) uint64 { return ota.Bucket(fmt.Sprint(d.seed, question), d.id) }

// unit is an answer from 0 up to, and without, 1.
func (d draws) unit(question ...any) float64 {
	return float64(d.number(question...)>>11) / (1 << 53)
}

func (d draws) happens(share float64, question ...any) bool { return d.unit(question...) < share }

// around is an answer from half of the mean to half as much again.
func (d draws) around(mean time.Duration, question ...any) time.Duration {
	return time.Duration((0.5 + d.unit(question...)) * float64(mean))
}

// exponential is how long it takes until something happens that does so at any
// moment alike.
func (d draws) exponential(mean time.Duration, question ...any) time.Duration {
	return time.Duration(-math.Log(1-d.unit(question...)) * float64(mean))
}

// health judges the image of this boot as it was drawn. It implements
// agent.Health.
type health struct {
	device *device
	runs   ota.ReleaseID
}

// errUnhealthy is why an image fails on a device.
var errUnhealthy = errors.New("simulated fault of this image on this device")

// longestTrial bounds a trial, whatever the contract says.
const longestTrial = 10 * time.Minute

// Deadline implements agent.Health.
func (h health) Deadline([]byte) (time.Duration, error) { return longestTrial, nil }

// Check implements agent.Health.
func (h health) Check(ctx context.Context, _ []byte, _ agent.Trial) error {
	faults := h.device.fleet.cfg.Faults
	wait(ctx, h.device.draw.around(faults.Trial, "trial", h.runs.String()))
	if err := ctx.Err(); err != nil {
		return err
	}
	if h.device.draw.happens(shareOf(faults.Bad, h.runs, faults.BadAny), "bad", h.runs.String()) {
		return errUnhealthy
	}
	return nil
}

// shareOf is the share that was told for a release, or that of any other.
func shareOf(shares map[ota.ReleaseID]float64, id ota.ReleaseID, other float64) float64 {
	if share, ok := shares[id]; ok {
		return share
	}
	return other
}

// crashEvery is the mean time between two crashes of an application that was drawn
// to crash.
const crashEvery = 2 * time.Second

// errCrashed is why an application ended.
var errCrashed = errors.New("simulated crash of this application on this device")

// installer starts applications that are nothing but what was drawn. It implements
// agent.Installer.
type installer struct{ device *device }

// Start implements agent.Installer.
func (i installer) Start(_ context.Context, app agent.App) (agent.Process, error) {
	faults, runs := i.device.fleet.cfg.Faults, app.Manifest.ID()
	ctx, stop := context.WithCancel(context.Background())
	p := &application{stop: stop}
	if app.Crashed == nil || !i.device.draw.happens(shareOf(faults.Crash, runs, faults.CrashAny), "crash", runs.String()) {
		return p, nil
	}
	p.running.Go(func() {
		for n := 0; ; n++ {
			if wait(ctx, i.device.draw.exponential(crashEvery, "crash", runs.String(), n)); ctx.Err() != nil {
				return
			}
			app.Crashed(errCrashed) // and it is started again at once
		}
	})
	return p, nil
}

// application is what runs on a device. It implements agent.Process.
type application struct {
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Alive implements agent.Process.
func (*application) Alive() bool { return true }

// Stop implements agent.Process.
func (p *application) Stop() {
	p.stop()
	p.running.Wait()
}

// lines are a device's open connections.
type lines struct {
	mean time.Duration // between two cuts; 0: none
	draw draws

	mu    sync.Mutex
	conns map[net.Conn]bool
	made  int
}

// dial implements the agent's dialers.
func (l *lines) dial(ctx context.Context, network, address string) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, lines: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = map[net.Conn]bool{}
	}
	l.conns[c] = true
	l.made++
	if l.mean > 0 {
		c.cut = time.AfterFunc(l.draw.exponential(l.mean, "cut", l.made), func() { _ = c.Close() }) // it may be closed already
	}
	return c, nil
}

// open reports whether there is any.
func (l *lines) open() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns) > 0
}

// cutIfDone cuts them all when the device has no power any more.
func (l *lines) cutIfDone(powered context.Context) {
	if powered.Err() == nil {
		return
	}
	l.mu.Lock()
	conns := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // nothing is left to be said on it
	}
}

// conn forgets itself when it is closed.
type conn struct {
	net.Conn
	lines *lines
	cut   *time.Timer
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.lines.mu.Lock()
	delete(c.lines.conns, c)
	cut := c.cut
	c.lines.mu.Unlock()
	if cut != nil {
		cut.Stop()
	}
	return c.Conn.Close()
}
