package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/internal/simulate"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

const (
	simulateNote   = 10 * time.Second // between two lines about where the fleet stands
	simulateVerify = 5 * time.Minute  // how long the last comparison may take
)

type simulateFlags struct {
	cfg              simulate.Config
	token, tokenFile string
	bad, crash       []string
	silent           string
	duration         time.Duration
}

func newSimulateCmd(a *app) *cobra.Command {
	var f simulateFlags
	cmd := &cobra.Command{
		Use: "simulate --device-server URL --devices N --hardware MODEL", Short: "Run a fleet of simulated devices against the server", Args: takes(),
		Long: `simulate enrolls devices and runs them until it is interrupted, or for as long as
--duration says. Each is the real agent with connections of its own: it verifies
what is signed, downloads, writes, boots and commits. Only its disk is memory and
its health is drawn, so keep images small. Start rollouts beside it.

Faults are drawn from --seed: on which devices an image fails its health check
or its application crashes later, which never come back from a reboot, when connections are cut and power is lost.

At the end every report that the server has acknowledged is compared with what
the server says of the executions. The exit status is 7 when one is missing.

Never against a server of real devices: the devices stay enrolled, until they are
revoked, and rollouts count them. The server's --enroll-limit bounds how many
enroll in a minute.`,
		Example: `  token=$(otactl token create --uses 1000 --hardware sim -q)
  OTAGENT_TOKEN=$token otactl simulate --device-server https://localhost:8444 --devices 1000 --hardware sim \
    --bad gateway@1.2.0=30% --silent 1% --cut 5m --power-cut 30m --duration 10m`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.simulate(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.cfg.Server, "device-server", "", "URL of the server's device plane, https://host:port")
	fl.IntVar(&f.cfg.Devices, "devices", 100, fmt.Sprintf("how many devices, at most %d", simulate.MaxDevices))
	fl.StringVar(&f.cfg.Hardware, "hardware", "", "their hardware model")
	fl.StringVar(&f.cfg.Prefix, "prefix", simulate.DefaultPrefix, "what their ids begin with")
	fl.StringVar(&f.token, "token", "", "enrollment token (or OTAGENT_TOKEN)")
	fl.StringVar(&f.tokenFile, "token-file", "", "file that holds the enrollment token")
	fl.Uint64Var(&f.cfg.Seed, "seed", 1, "of the faults")
	fl.StringArrayVar(&f.bad, "bad", nil, "share of devices on which an image fails its health check: `NAME@VERSION=30%`, or 30% for every other release (repeat)")
	fl.StringArrayVar(&f.crash, "crash", nil, "share of devices on which the application of a release crashes again and again after its health check: `NAME@VERSION=30%`, or 30% for every other release (repeat)")
	fl.StringVar(&f.silent, "silent", "0%", "share of devices that never come back from the reboot into a release")
	fl.DurationVar(&f.cfg.Faults.Cut, "cut", 0, "mean time between two losses of a device's connections; 0: none")
	fl.DurationVar(&f.cfg.Faults.PowerCut, "power-cut", 0, "mean time between two losses of a device's power; 0: none")
	fl.DurationVar(&f.cfg.Faults.Trial, "trial", 2*time.Second, "how long health checks take on the average")
	fl.DurationVar(&f.cfg.Reconnect, "reconnect", 0, "the longest first wait after a lost connection, which doubles; 0: as agents do")
	fl.DurationVar(&f.duration, "duration", 0, "how long; 0: until interrupted")
	return cmd
}

// config reads what stands in words.
func (f simulateFlags) config(a *app) (cfg simulate.Config, err error) {
	cfg = f.cfg
	if cfg.Server == "" || cfg.Hardware == "" {
		return cfg, usage("--device-server and --hardware are needed")
	}
	if cfg.Token, err = a.enrollmentToken(f.token, f.tokenFile); err != nil {
		return cfg, err
	}
	if cfg.Faults.Silent, err = parsePart("--silent", f.silent); err != nil {
		return cfg, err
	}
	if cfg.Faults.Bad, cfg.Faults.BadAny, err = parseParts("--bad", f.bad); err != nil {
		return cfg, err
	}
	cfg.Faults.Crash, cfg.Faults.CrashAny, err = parseParts("--crash", f.crash)
	return cfg, err
}

// parseParts reads "NAME@VERSION=30%" for a release, and "30%" for every other one.
func parseParts(flag string, texts []string) (of map[ota.ReleaseID]float64, other float64, err error) {
	of = map[ota.ReleaseID]float64{}
	for _, text := range texts {
		name, part, named := strings.Cut(text, "=")
		if !named {
			part = text
		}
		share, err := parsePart(flag, part)
		if err != nil {
			return nil, 0, err
		}
		if !named {
			other = share
			continue
		}
		id, err := ota.ParseReleaseID(name)
		if err != nil {
			return nil, 0, usage("%s %s: %w", flag, text, err)
		}
		of[id] = share
	}
	return of, other, nil
}

// parsePart reads "30%" as 0.3.
func parsePart(flag, text string) (float64, error) {
	number, ok := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(v >= 0 && v <= 100) {
		return 0, usage("%s %q: want a share of devices, from 0%% to 100%%", flag, text)
	}
	return v / 100, nil
}

// simulateSummary is what -o json prints.
type simulateSummary struct {
	simulate.Counts
	Acknowledged map[ota.Status]int `json:"acknowledged"` // attempts by the last status that the server acknowledged
	Missing      []string           `json:"missing"`      // what it acknowledged, and does not know
}

func (a *app) simulate(ctx context.Context, f simulateFlags) error {
	cfg, err := f.config(a)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	a.note("enrolling %d devices", cfg.Devices)
	fleet, err := simulate.New(ctx, cfg)
	if err != nil {
		return agentFailure(err)
	}
	a.note("%d devices run; start a rollout, and interrupt this when it is over", cfg.Devices)
	a.followFleet(ctx, fleet, f.duration)
	summary := simulateSummary{Counts: fleet.Counts(), Acknowledged: map[ota.Status]int{}}
	if err := fleet.Close(); err != nil {
		return fail(exitFailed, "%w", err)
	}
	verify, stop := context.WithTimeout(context.WithoutCancel(ctx), simulateVerify)
	defer stop()
	if err := c.compareLedger(verify, fleet.Ledger(), &summary); err != nil {
		return err
	}
	if err := printOne(a, summary, strconv.Itoa(summary.Devices), summary.show); err != nil {
		return err
	}
	if n := len(summary.Missing); n > 0 {
		return fail(exitCondition, "%d reports are not as the server has acknowledged them; the first: %s", n, summary.Missing[0])
	}
	return nil
}

// followFleet says from time to time where the devices stand, until it is over.
func (a *app) followFleet(ctx context.Context, fleet *simulate.Fleet, duration time.Duration) {
	if duration > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, duration)
		defer stop()
	}
	tick := time.NewTicker(simulateNote)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c := fleet.Counts()
			a.note("%d of %d connected, %d silent, %d power cuts; %s", c.Connected, c.Devices, c.Silent, c.PowerCuts, countsText(c.Runs))
		case <-ctx.Done():
			return
		}
	}
}

// compareLedger asks the server for the executions of every job in the ledger.
func (c *client) compareLedger(ctx context.Context, l *simulate.Ledger, s *simulateSummary) error {
	stored := map[simulate.Attempt]ota.Status{}
	for _, job := range l.Jobs() {
		err := c.eachExecution(ctx, &otadv1.ListExecutionsRequest{RolloutId: job, EveryAttempt: true}, func(e *otadv1.Execution) bool {
			stored[simulate.Attempt{Job: job, Device: e.GetDeviceId(), Number: int(e.GetAttempt())}] = ota.Status(e.GetStatus())
			return true
		})
		if err != nil {
			return err
		}
	}
	for _, e := range l.Entries() {
		s.Acknowledged[e.Status]++
	}
	if s.Missing = l.Missing(stored); s.Missing == nil {
		s.Missing = []string{}
	}
	return nil
}

func (s simulateSummary) show(w io.Writer) error {
	acknowledged := map[string]int{}
	for status, n := range s.Acknowledged {
		acknowledged[string(status)] = n
	}
	return writeTable(w, nil, [][]string{
		{"devices", strconv.Itoa(s.Devices)},
		{"connected at the end", strconv.Itoa(s.Connected)},
		{"never came back", strconv.Itoa(s.Silent)},
		{"power cuts", strconv.Itoa(s.PowerCuts)},
		{"run", countsText(s.Runs)},
		{"acknowledged", countsText(acknowledged)},
		{"of that missing", strconv.Itoa(len(s.Missing))},
	})
}

// countsText is numbers with what they count, in order.
func countsText(counts map[string]int) string {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[what], what))
	}
	if len(parts) == 0 {
		return "nothing yet"
	}
	return strings.Join(parts, ", ")
}
