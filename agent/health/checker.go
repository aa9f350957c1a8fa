// Package health judges a trial on the device by the contract of its release. It is
// not a monitor: it is silent afterwards.
package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/health"
)

// Bounds of a single check.
const (
	probeTimeout   = 5 * time.Second
	commandTimeout = 5 * time.Minute
	minInterval    = 50 * time.Millisecond
	maxInterval    = time.Second
	maxOutput      = 200 // bytes of a command's output that go into its error
)

// Checker judges trials by their contract. The zero value is ready.
type Checker struct{}

var _ agent.Health = Checker{}

// definite is an error that no waiting makes good.
type definite struct{ err error }

func (d definite) Error() string { return d.err.Error() }
func (d definite) Unwrap() error { return d.err }

// Deadline implements agent.Health.
func (Checker) Deadline(contract []byte) (time.Duration, error) {
	c, err := health.Parse(contract)
	return c.Deadline, err
}

// Check implements agent.Health. It asks again and again until every check has
// held for the contract's hold, one can never hold, or ctx ends.
func (Checker) Check(ctx context.Context, contract []byte, t agent.Trial) error {
	c, err := health.Parse(contract)
	if err != nil {
		return err
	}
	r := &round{checks: c.Checks, trial: t, passed: make([]bool, len(c.Checks))}
	tick := time.NewTicker(min(max(c.Hold/8, minInterval), maxInterval))
	defer tick.Stop()
	var since time.Time // when the checks began to hold
	last := errUnfinished
	for {
		began := time.Now()
		err := r.run(ctx)
		var never definite
		switch {
		case errors.As(err, &never):
			return err
		case err != nil && ctx.Err() == nil:
			if !timedOut(err) || last == errUnfinished {
				last = err // says more than that the deadline came
			}
			since = time.Time{}
		case err == nil:
			if since.IsZero() {
				since = began
				last = fmt.Errorf("the checks did not hold for %s", c.Hold)
			}
			if time.Since(since) >= c.Hold {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return fmt.Errorf("not healthy before the deadline: %w", last)
		}
	}
}

var errUnfinished = errors.New("no check was finished")

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// round runs all checks once, and those whose answer can not change only until
// they have passed.
type round struct {
	checks []health.Check
	trial  agent.Trial
	passed []bool
}

func (r *round) run(ctx context.Context) error {
	for i, c := range r.checks {
		if c.Kernel && r.passed[i] {
			continue
		}
		if err := r.one(ctx, c); err != nil {
			return err
		}
		r.passed[i] = true
	}
	return nil
}

func (r *round) one(ctx context.Context, c health.Check) error {
	switch {
	case c.Running:
		if !r.trial.Alive() {
			return errors.New("running: the application does not run")
		}
		return nil
	case c.Kernel:
		if err := checkKernelFile(ctx, r.trial.Image); err != nil {
			return definite{fmt.Errorf("kernel: %w", err)}
		}
		return nil
	case c.Command != nil:
		return runCommand(ctx, c.Command, r.trial.Image)
	case c.HTTP != "":
		return probeHTTP(ctx, c.HTTP)
	}
	return probeTCP(ctx, c.TCP)
}

func runCommand(ctx context.Context, argv []string, image string) error {
	ctx, stop := context.WithTimeout(ctx, commandTimeout)
	defer stop()
	args := make([]string, len(argv))
	for i, a := range argv {
		args[i] = strings.ReplaceAll(a, health.ImageWord, image)
	}
	out := &head{limit: maxOutput}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	ownGroup(cmd)
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if text := strings.TrimSpace(out.String()); text != "" {
		return fmt.Errorf("command %s: %w: %s", argv[0], err, text)
	}
	return fmt.Errorf("command %s: %w", argv[0], err)
}

// head keeps the first bytes written to it.
type head struct {
	strings.Builder
	limit int
}

func (h *head) Write(p []byte) (int, error) {
	if room := h.limit - h.Len(); room > 0 {
		h.Builder.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func probeHTTP(ctx context.Context, url string) error {
	ctx, stop := context.WithTimeout(ctx, probeTimeout)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("http %s: %w", url, err)
	}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("http %s: %w", url, err)
	}
	if err := res.Body.Close(); err != nil {
		return fmt.Errorf("http %s: %w", url, err)
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("http %s: status %s", url, res.Status)
	}
	return nil
}

func probeTCP(ctx context.Context, address string) error {
	ctx, stop := context.WithTimeout(ctx, probeTimeout)
	defer stop()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("tcp %s: %w", address, err)
	}
	return conn.Close()
}
