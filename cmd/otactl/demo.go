package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// Limits of a demo: each device is a process of its own.
const (
	demoMinDevices = 2
	demoMaxDevices = 200
)

// demoHardware is the model of the demo's devices, demoFirmware what they run.
const (
	demoHardware = "demo-gateway"
	demoFirmware = "gateway"
)

type demoFlags struct {
	devices  int
	dir      string
	old, new string
	otad     string
	keep     bool
}

func newDemoCmd(a *app) *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use: "demo", Short: "The whole story on this machine: a server, agents, a rollout in stages, a bad release stopped", Args: takes(),
		Long: `demo starts a real otad and real agents as processes in a temporary directory,
and then does with them what an operator would: it makes keys, uploads and signs
firmware 1.0.0 and installs it everywhere, rolls out 1.1.0 in stages of 10 %,
50 % and 100 %, and then 1.2.0, which is properly signed but damaged. Its health
check fails on the first devices, they return to 1.1.0, the rollout is aborted
and the other devices never start it.

--old and --new name two versions of a Linux kernel for arm64 ("make demo" gets
two of Debian's). Without them the firmware is made from this executable, and the
devices run it as their application.

Everything listens on loopback, on free ports. The exit status is 0 only if all
of it went as told here.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.IntVar(&f.devices, "devices", 20, "how many devices")
	fl.StringVar(&f.dir, "dir", "", "directory to work in (default: a new temporary one)")
	fl.StringVar(&f.old, "old", "", "image of version 1.0.0, a Linux kernel")
	fl.StringVar(&f.new, "new", "", "image of version 1.1.0, a Linux kernel")
	fl.StringVar(&f.otad, "otad", "", "the server's executable (default: beside this one, then PATH)")
	fl.BoolVar(&f.keep, "keep", false, "leave the directory when it is over")
	return cmd
}

// demoSummary is what -o json prints.
type demoSummary struct {
	Devices                  int     `json:"devices"`
	Updated                  int     `json:"updated"` // devices that run 1.1.0 at the end, by the bytes in their slot
	BadReleaseStoppedAtStage int     `json:"badReleaseStoppedAtStage"`
	BadReleaseStarted        int     `json:"badReleaseStarted"` // devices that began to install it
	RolledBack               int     `json:"rolledBack"`        // of those, back on 1.1.0
	UnverifiedInstalls       int     `json:"unverifiedInstalls"`
	ImageBytes               int64   `json:"imageBytes"`
	DownloadedBytes          int64   `json:"downloadedBytes"` // by all devices, all three releases
	Seconds                  float64 `json:"seconds"`
}

// check says what did not go as told; nil when all did.
func (s demoSummary) check() error {
	canary := ota.Size{Percent: 10}.Of(s.Devices)
	switch {
	case s.Updated != s.Devices:
		return fail(exitFailed, "%d of %d devices run 1.1.0", s.Updated, s.Devices)
	case s.BadReleaseStoppedAtStage != 1:
		return fail(exitFailed, "the bad release was stopped at stage %d, not 1", s.BadReleaseStoppedAtStage)
	case s.BadReleaseStarted < 1 || s.BadReleaseStarted > canary:
		return fail(exitFailed, "%d devices started the bad release, the canary is %d", s.BadReleaseStarted, canary)
	case s.RolledBack != s.BadReleaseStarted:
		return fail(exitFailed, "%d of %d devices returned from the bad release", s.RolledBack, s.BadReleaseStarted)
	case s.UnverifiedInstalls != 0:
		return fail(exitFailed, "%d devices run bytes that nobody signed", s.UnverifiedInstalls)
	}
	return nil
}

// demo is one run of the story.
type demo struct {
	app      *app
	flags    demoFlags
	dir      string
	out      io.Writer // the story
	env      map[string]string
	firmware demoImages
	procs    *processes
	summary  demoSummary
	start    time.Time
}

func (a *app) demo(ctx context.Context, f demoFlags) (err error) {
	if f.devices < demoMinDevices || f.devices > demoMaxDevices {
		return usage("--devices %d: want %d to %d", f.devices, demoMinDevices, demoMaxDevices)
	}
	if (f.old == "") != (f.new == "") {
		return usage("--old and --new go together")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &demo{app: a, flags: f, out: a.stdout, start: a.now(), procs: newProcesses(cancel)}
	if a.flags.output != formatTable && a.flags.output != formatWide {
		d.out = a.stderr
	}
	if err := d.makeDir(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, d.procs.stop())
		err = errors.Join(err, d.cleanUp(err != nil))
	}()
	if err := d.story(ctx); err != nil {
		return errors.Join(d.procs.failure(), err)
	}
	return d.finish()
}

func (d *demo) makeDir() (err error) {
	if d.flags.dir == "" {
		d.dir, err = os.MkdirTemp("", "otad-demo-")
		return err
	}
	if d.dir, err = filepath.Abs(d.flags.dir); err != nil {
		return err
	}
	if entries, err := os.ReadDir(d.dir); err == nil && len(entries) > 0 {
		return hint(usage("%s is not empty", d.dir), "name a new directory")
	}
	return os.MkdirAll(d.dir, 0o700)
}

// cleanUp removes the directory; a failed run leaves it, as the logs in it say why.
func (d *demo) cleanUp(failed bool) error {
	if d.flags.keep || failed {
		d.app.note("everything is in %s", d.dir)
		return nil
	}
	return os.RemoveAll(d.dir)
}

func (d *demo) story(ctx context.Context) error {
	for _, chapter := range []func(context.Context) error{
		d.makeFirmware, d.startServer, d.makeKeys, d.enrollDevices, d.installFirst, d.rollOut, d.rollOutBad, d.inspect,
	} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) title(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(d.out, "\n%s\n", d.app.paint(d.out, bold, "== "+text))
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// ctl runs one otactl command as a user would, and shows it. Its standard output
// comes back; it is part of the story when show is set.
func (d *demo) ctl(ctx context.Context, show bool, args ...string) (string, int) {
	d.say("%s", d.app.paint(d.out, dim, "$ otactl "+quoteArgs(args)))
	var kept bytes.Buffer
	sub := *d.app
	sub.flags = globalFlags{output: formatTable}
	sub.started = false
	sub.env = func(key string) string { return d.env[key] }
	sub.stdout, sub.stderr = &kept, d.out
	if show {
		sub.stdout = d.out
	}
	status := run(ctx, &sub, args)
	return kept.String(), status
}

// must is ctl for a command that has to succeed.
func (d *demo) must(ctx context.Context, show bool, args ...string) (string, error) {
	out, status := d.ctl(ctx, show, args...)
	if status != exitDone {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fail(exitFailed, "otactl %s ended with status %d", quoteArgs(args[:2]), status)
	}
	return out, nil
}

func (d *demo) makeFirmware(context.Context) (err error) {
	d.title("Firmware: 1.0.0, 1.1.0 and a damaged 1.2.0")
	if d.firmware, err = newDemoImages(d.dir, d.flags.old, d.flags.new); err != nil {
		return err
	}
	for _, i := range d.firmware.all() {
		d.say("  %s  %-12s %s", i.version, exactSize(i.size), i.what)
		d.summary.ImageBytes += i.size
	}
	return nil
}

func (d *demo) startServer(ctx context.Context) error {
	d.title("Server: one process, everything embedded, on loopback")
	otad, err := findOtad(d.flags.otad)
	if err != nil {
		return err
	}
	data := filepath.Join(d.dir, "server")
	if err := d.procs.startOtad(ctx, otad, data, filepath.Join(d.dir, "otad.log")); err != nil {
		return err
	}
	var at struct{ API, Device, MQTT string }
	raw, err := os.ReadFile(filepath.Join(data, "addresses.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &at); err != nil {
		return fmt.Errorf("addresses.json: %w", err)
	}
	var pass [16]byte
	if _, err := rand.Read(pass[:]); err != nil {
		return err
	}
	d.env = map[string]string{
		"OTACTL_SERVER": at.API, "OTACTL_CA_FILE": filepath.Join(data, "ca.pem"), "OTACTL_TOKEN_FILE": filepath.Join(data, "admin.token"),
		"OTACTL_CONFIG_DIR": filepath.Join(d.dir, "operator"), "OTACTL_PASSPHRASE": hex.EncodeToString(pass[:]),
		"device": at.Device, "NO_COLOR": d.app.env("NO_COLOR"),
	}
	d.say("  operators %s, devices %s and %s", at.API, at.Device, at.MQTT)
	return nil
}

func (d *demo) makeKeys(ctx context.Context) error {
	d.title("Keys: the operator's stay with the operator, sealed")
	_, err := d.must(ctx, true, "key", "init")
	return err
}

func (d *demo) enrollDevices(ctx context.Context) error {
	d.title("Devices: %d agents, each a process with its own key", d.flags.devices)
	token, err := d.must(ctx, false, "token", "create", "--uses", strconv.Itoa(d.flags.devices), "--hardware", demoHardware, "--tag", "site=demo", "-q")
	if err != nil {
		return err
	}
	began := time.Now()
	if err := d.procs.startAgents(ctx, agentsSpec{
		n: d.flags.devices, dir: filepath.Join(d.dir, "devices"), server: d.env["device"], token: strings.TrimSpace(token),
	}); err != nil {
		return err
	}
	d.say("  %d devices enrolled and running after %.1f s", d.flags.devices, time.Since(began).Seconds())
	return nil
}

// release uploads and signs one version.
func (d *demo) release(ctx context.Context, i demoImage) error {
	args := []string{"firmware", "upload", i.path, "--name", demoFirmware, "--version", i.version, "--hardware", demoHardware,
		"--installer", d.firmware.installer, "--health", d.firmware.health}
	for _, word := range d.firmware.run {
		args = append(args, "--run", word)
	}
	_, err := d.must(ctx, false, args...)
	return err
}

// rollout starts a rollout, follows it and returns how it stands at the end.
func (d *demo) rollout(ctx context.Context, version string, args ...string) (rolloutView, int, error) {
	args = append([]string{"rollout", "create", "--firmware", demoFirmware + "@" + version, "--watch"}, args...)
	_, status := d.ctl(ctx, true, args...)
	if ctx.Err() != nil {
		return rolloutView{}, status, ctx.Err()
	}
	r, err := d.newest(ctx)
	return r, status, err
}

// newest returns the rollout that was created last.
func (d *demo) newest(ctx context.Context) (rolloutView, error) {
	c, err := d.client()
	if err != nil {
		return rolloutView{}, err
	}
	list, err := call(ctx, c.rollouts.ListRollouts, &otadv1.ListRolloutsRequest{})
	if err != nil {
		return rolloutView{}, err
	}
	if len(list.GetRollouts()) == 0 {
		return rolloutView{}, fail(exitFailed, "no rollout was created")
	}
	return newRolloutView(list.GetRollouts()[0]), nil
}

func (d *demo) client() (*client, error) {
	sub := *d.app
	sub.flags = globalFlags{}
	sub.env = func(key string) string { return d.env[key] }
	return sub.connect()
}

// executions returns every execution of a rollout.
func (d *demo) executions(ctx context.Context, id string) ([]*otadv1.Execution, error) {
	c, err := d.client()
	if err != nil {
		return nil, err
	}
	list, err := call(ctx, c.rollouts.ListExecutions, &otadv1.ListExecutionsRequest{RolloutId: id, PageSize: 1000})
	return list.GetExecutions(), err
}

func (d *demo) installFirst(ctx context.Context) error {
	d.title("Release 1.0.0 to all")
	if err := d.release(ctx, d.firmware.old); err != nil {
		return err
	}
	r, _, err := d.rollout(ctx, d.firmware.old.version, "--stages", "100%", "--soak", "0s")
	if err != nil {
		return err
	}
	return d.completed(ctx, r)
}

func (d *demo) rollOut(ctx context.Context) error {
	d.title("Release 1.1.0 by stages: 10 %%, 50 %%, 100 %%")
	if err := d.release(ctx, d.firmware.new); err != nil {
		return err
	}
	device := deviceName(1)
	if _, err := d.must(ctx, true, "shadow", "get", device, "--path", "reported.firmware"); err != nil {
		return err
	}
	if _, err := d.must(ctx, true, "rollout", "plan", "--firmware", demoFirmware+"@"+d.firmware.new.version, "--stages", "10%,50%,100%", "--soak", "1s"); err != nil {
		return err
	}
	r, _, err := d.rollout(ctx, d.firmware.new.version, "--stages", "10%,50%,100%", "--soak", "1s")
	if err != nil {
		return err
	}
	if err := d.completed(ctx, r); err != nil {
		return err
	}
	_, err = d.must(ctx, true, "shadow", "get", device, "--path", "reported.firmware")
	return err
}

// completed checks a rollout that has to go through, and counts its bytes.
func (d *demo) completed(ctx context.Context, r rolloutView) error {
	if r.State != string(ota.RolloutCompleted) {
		return fail(exitFailed, "rollout %s of %s is %s: %s", r.ID, r.Firmware, r.State, r.Reason)
	}
	n, err := d.countBytes(ctx, r.ID)
	if err == nil {
		d.say("  %d devices downloaded %s", r.Population, exactSize(n))
	}
	return err
}

func (d *demo) countBytes(ctx context.Context, id string) (int64, error) {
	all, err := d.executions(ctx, id)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range all {
		if n, err := strconv.ParseInt(e.GetDetails()[ota.DetailBytes], 10, 64); err == nil {
			sum += n
		}
	}
	d.summary.DownloadedBytes += sum
	return sum, nil
}

func (d *demo) rollOutBad(ctx context.Context) error {
	d.title("Release 1.2.0: properly signed, but damaged")
	if err := d.release(ctx, d.firmware.bad); err != nil {
		return err
	}
	r, status, err := d.rollout(ctx, d.firmware.bad.version, "--stages", "10%,50%,100%", "--soak", "1s", "--abort", "any>0%")
	if err != nil {
		return err
	}
	if status != exitCondition || r.State != string(ota.RolloutAborted) {
		return fail(exitFailed, "the bad release was not stopped: rollout %s is %s, status %d", r.ID, r.State, status)
	}
	if _, err := d.must(ctx, true, "rollout", "show", r.ID); err != nil {
		return err
	}
	for i, s := range r.Stages {
		if s.OpenedAt != nil {
			d.summary.BadReleaseStoppedAtStage = i + 1
		}
	}
	all, err := d.executions(ctx, r.ID)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.GetStartedAt() != nil {
			d.summary.BadReleaseStarted++
		}
		if e.GetClass() == string(ota.ClassRolledBack) {
			d.summary.RolledBack++
		}
	}
	_, err = d.countBytes(ctx, r.ID)
	return err
}

// inspect looks at the devices' own slots, not at what anybody reports.
func (d *demo) inspect(ctx context.Context) error {
	d.title("What the devices run, by the bytes in their slots")
	if _, err := d.must(ctx, true, "device", "list"); err != nil {
		return err
	}
	good := d.firmware.signed()
	for i := range d.flags.devices {
		digest, err := hashFile(filepath.Join(d.dir, "devices", deviceName(i+1), "current", "image"))
		if err != nil {
			return err
		}
		switch good[digest] {
		case d.firmware.new.version:
			d.summary.Updated++
		case "":
			d.summary.UnverifiedInstalls++
		}
	}
	return nil
}

func (d *demo) finish() error {
	s := d.summary
	s.Devices, s.Seconds = d.flags.devices, d.app.now().Sub(d.start).Round(100*time.Millisecond).Seconds()
	err := printOne(d.app, s, "demo", func(w io.Writer) error {
		fmt.Fprintf(w, "\n%d of %d devices run 1.1.0. The bad release was stopped at stage %d: %d started it, %d returned, %d never saw it.\n"+
			"Unverified installs: %d. Downloaded: %s. Time: %.1f s.\n",
			s.Updated, s.Devices, s.BadReleaseStoppedAtStage, s.BadReleaseStarted, s.RolledBack, s.Devices-s.BadReleaseStarted,
			s.UnverifiedInstalls, exactSize(s.DownloadedBytes), s.Seconds)
		return nil
	})
	return errors.Join(err, s.check())
}

func deviceName(i int) string { return fmt.Sprintf("gw-%02d", i) }

func quoteArgs(args []string) string {
	words := make([]string, len(args))
	for i, w := range args {
		if words[i] = w; w == "" || strings.ContainsAny(w, " {}[]()$*?'\"\\`<>|&;!~#") {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
