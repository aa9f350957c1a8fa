package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// rolloutFlags are the options of plan, create and edit, as typed.
type rolloutFlags struct {
	firmware, selector, group, stages, gate, seed, file string
	abort, approveStages, health                        []string
	soak, timeout, healthWatch, healthWait              time.Duration
	priority                                            int32
	rate, maxPer, window, start, onPause, onAbort, sick string
	drift                                               string
	maxInFlight                                         int
	timers                                              ota.Timers
	retry                                               ota.Retry
	retryOn, strata                                     []string
	maxDefers                                           int
	approval, quarantined, continuous                   bool
	dryRun, watch, draft                                bool
	cmd                                                 *cobra.Command
	lines                                               planLines // of the file, once it is read
}

// besideFile are the flags that may be given with a plan file.
var besideFile = []string{"file", "firmware", "select", "group", "seed", "dry-run", "watch", "draft"}

func (f *rolloutFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	f.cmd = cmd
	fl.StringVar(&f.file, "file", "", "read the plan from this YAML file ('-': standard input)")
	fl.StringVar(&f.firmware, "firmware", "", "the signed release to install, NAME@VERSION (required)")
	fl.StringVar(&f.selector, "select", "", "only the devices that match this selector (default: every device the release fits)")
	fl.StringVar(&f.group, "group", "", "only the devices in this group")
	fl.StringVar(&f.stages, "stages", defaultStages, "cumulative sizes of the stages, percentages or numbers of devices")
	fl.StringVar(&f.gate, "gate", "95%", "share of a stage that must succeed before the next one opens, such as '95% min 20'")
	fl.DurationVar(&f.soak, "soak", defaultSoak, "how long the gate must hold before the next stage opens")
	fl.StringArrayVar(&f.abort, "abort", []string{defaultAbort}, "stop when this is true, such as 'failed>5% min 20' or 'rolled_back>=3' (repeat; '' for none)")
	fl.StringVar(&f.seed, "seed", "", "fixes which devices come first (default: chosen by the server)")
	fl.DurationVar(&f.timeout, "timeout", 0, "how long a device may be at it before it counts as timed out, 1m to 168h (default: for ever)")
	fl.Int32Var(&f.priority, "priority", 0, "the higher comes first on a device that has several rollouts; a plan is refused under a higher one of the same firmware")
	fl.StringVar(&f.rate, "rate", "", "how many devices are started, such as 100/m, or '10/m x2 per 50 succeeded max 1000/m' (default: all of a stage)")
	fl.IntVar(&f.maxInFlight, "max-in-flight", 0, "how many devices may be at work at a time (default: all of a stage)")
	fl.StringVar(&f.maxPer, "max-per", "", "the same for each value of a tag or of hardware, such as site=5")
	fl.DurationVar(&f.timers.Claim, "claim-timeout", 0, "how long a device may take to begin before it counts as timed out (default: for ever)")
	fl.DurationVar(&f.timers.Fetch, "fetch-timeout", 0, "the same for its download")
	fl.DurationVar(&f.timers.Install, "install-timeout", 0, "the same from the download to the activation")
	fl.DurationVar(&f.timers.Reboot, "reboot-timeout", ota.DefaultTimers.Reboot, "how long it may take to come back before it counts as silent (0: for ever)")
	fl.DurationVar(&f.timers.Health, "health-timeout", ota.DefaultTimers.Health, "how long it may take to prove its health before it counts as silent (0: for ever)")
	fl.IntVar(&f.retry.Attempts, "attempts", 1, "how often a device may try in all")
	fl.DurationVar(&f.retry.Backoff, "backoff", 0, "how long to wait before the second attempt, doubled before each further one")
	fl.StringSliceVar(&f.retryOn, "retry-on", nil, "which ends are tried again (default: failed,silent,timed_out)")
	fl.StringSliceVar(&f.strata, "strata", nil, "every stage holds a share of each value of these: hardware or tag keys")
	fl.StringVar(&f.window, "window", "", "when devices may install, by their own clocks, such as 'FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h'")
	fl.IntVar(&f.maxDefers, "max-defers", ota.DefaultConsent.MaxDefers, "how often the people at a device may put it off, where it asks them")
	fl.StringVar(&f.start, "start", "", "not before this time, RFC 3339 (default: at once)")
	fl.BoolVar(&f.approval, "approval", false, "an operator must approve it before it starts")
	fl.StringSliceVar(&f.approveStages, "approve-stages", nil, "stages, from 1, that do not open before an operator approves them")
	fl.StringVar(&f.onPause, "on-pause", string(ota.PauseLetFinish), "what a pause does to devices at work: let-finish or hold-before-install")
	fl.StringArrayVar(&f.health, "health", nil, "what updated devices must not do worse in than those that wait: 'crash +1%', 'reboot +1% min 50', 'offline +2%', 'shadow.reported.cpu.temp +5' (repeat)")
	fl.DurationVar(&f.healthWatch, "health-watch", ota.DefaultWatch, "how long both are watched, from the end of the update on")
	fl.DurationVar(&f.healthWait, "health-wait", ota.DefaultHealthWait, "how long a stage waits for verdicts after its soak before it fails")
	fl.StringVar(&f.sick, "on-unhealthy", string(ota.HealthPause), "what becomes of the rollout then: pause or abort")
	fl.StringVar(&f.onAbort, "on-abort", string(ota.AbortKeep), "what becomes of devices it has changed when it is aborted: keep or revert")
	fl.StringVar(&f.drift, "drift", string(ota.DriftRequeue), "a device that runs another image after its success: requeue, as far as --attempts go, or record")
	fl.BoolVar(&f.continuous, "continuous", false, "devices that come to match the selector join it, those that match no longer leave; it ends by otactl rollout finish")
	fl.BoolVar(&f.quarantined, "quarantined", false, "let in devices on which this image was rolled back before")
}

// spec checks the whole plan by the rules that the server uses too, so that a
// wrong one never leaves this machine.
func (f *rolloutFlags) spec(a *app) (*otadv1.RolloutSpec, error) {
	plan := f.plan
	if f.file != "" {
		plan = func() (ota.Rollout, error) { return f.fromFile(a, besideFile) }
	}
	r, err := plan()
	if err != nil {
		return nil, err
	}
	if r.Command != nil {
		return nil, hint(usage("%s is a plan of a command", f.file), "otactl command run --file %s", f.file)
	}
	if r.Release == (ota.ReleaseID{}) {
		return nil, hint(usage("which firmware?"), "add --firmware NAME@VERSION; otactl firmware list shows the releases")
	}
	if err := f.valid(r); err != nil {
		return nil, err
	}
	return specMessage(r), nil
}

// valid refuses a plan that could never work; one of a file with the line.
func (f *rolloutFlags) valid(r ota.Rollout) error {
	err := r.Ordered().Validate()
	switch {
	case err == nil:
		return nil
	case f.file == "":
		return usage("%w", err)
	}
	return hint(f.lines.locate(usage("%w", err)), hintSchema)
}

// fromFile is the plan in the file, with the few flags that may stand beside it.
func (f *rolloutFlags) fromFile(a *app, may []string) (ota.Rollout, error) {
	var beside []string
	f.cmd.LocalNonPersistentFlags().VisitAll(func(fl *pflag.Flag) {
		if fl.Changed && !slices.Contains(may, fl.Name) {
			beside = append(beside, "--"+fl.Name)
		}
	})
	if len(beside) > 0 {
		return ota.Rollout{}, usage("%s and --file: write it into the plan", strings.Join(beside, ", "))
	}
	r, lines, err := a.readPlan(f.file)
	if err != nil {
		return r, err
	}
	lines.beside = map[string]string{}
	if f.firmware != "" {
		lines.beside["firmware"] = "--firmware " + f.firmware
	}
	if f.seed != "" {
		lines.beside["seed"] = "--seed"
	}
	switch {
	case f.group != "" && f.selector == "" && r.Selector != "":
		lines.beside["select"] = fmt.Sprintf("--group %s, with line %d of %s", f.group, lines.line("select"), lines.file)
	case f.group != "":
		lines.beside["select"] = "--group " + f.group
	case f.selector != "":
		lines.beside["select"] = "--select"
	}
	f.lines = lines
	r.Selector, r.Seed = first(f.selector, r.Selector), first(f.seed, r.Seed)
	return r, f.release(&r)
}

func (f *rolloutFlags) release(r *ota.Rollout) (err error) {
	if f.firmware == "" {
		return nil
	}
	if r.Release, err = ota.ParseReleaseID(f.firmware); err != nil {
		return usage("--firmware: %w", err)
	}
	return nil
}

// plan is the plan that the flags make.
func (f *rolloutFlags) plan() (ota.Rollout, error) {
	r := ota.Rollout{Selector: f.selector, Seed: f.seed, Priority: int(f.priority), InProgressTimeout: f.timeout}
	if err := f.release(&r); err != nil {
		return r, err
	}
	gate, err := ota.ParseGate(f.gate)
	if err != nil {
		return r, usage("--gate: %w", err)
	}
	if r.Stages, err = ota.ParseStages(f.stages, gate, f.soak); err != nil {
		return r, hint(usage("--stages: %w", err), "write ascending sizes up to 100%%, such as --stages 1%%,10%%,50%%,100%%")
	}
	for _, text := range f.approveStages {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > len(r.Stages) {
			return r, usage("--approve-stages %s: want 1 to %d", text, len(r.Stages))
		}
		r.Stages[n-1].Approval = true
	}
	for _, text := range f.abort {
		if text == "" {
			continue
		}
		rule, err := ota.ParseAbortRule(text)
		if err != nil {
			return r, usage("--abort: %w", err)
		}
		r.Abort = append(r.Abort, rule)
	}
	r.Terms, err = f.terms()
	return r, err
}

func (f *rolloutFlags) terms() (t ota.Terms, err error) {
	if f.retry.Attempts < 1 {
		return t, usage("--attempts %d: want 1, which is no retry, to %d", f.retry.Attempts, ota.MaxAttempts)
	}
	t = ota.Terms{
		Approval: f.approval, InFlight: ota.InFlight{Max: f.maxInFlight}, Timers: f.timers, Strata: f.strata, Quarantined: f.quarantined,
		Continuous: f.continuous,
		Retry:      f.retry,
	}
	if f.retry.Attempts == 1 && f.retry.Backoff == 0 && len(f.retryOn) == 0 {
		t.Retry = ota.Retry{}
	}
	for _, class := range f.retryOn {
		t.Retry.On = append(t.Retry.On, ota.Class(class))
	}
	if t.Health, err = f.compared(); err != nil {
		return t, err
	}
	if policy := ota.AbortPolicy(f.onAbort); policy != ota.AbortKeep {
		t.OnAbort = policy
	}
	if policy := ota.PausePolicy(f.onPause); policy != ota.PauseLetFinish {
		t.OnPause = policy
	}
	if policy := ota.DriftPolicy(f.drift); policy != ota.DriftRequeue {
		t.Drift = policy
	}
	if f.maxDefers != ota.DefaultConsent.MaxDefers {
		t.Consent = &ota.Consent{MaxDefers: f.maxDefers}
	}
	if f.rate != "" {
		if t.Rate, err = ota.ParseRate(f.rate); err != nil {
			return t, usage("--rate: %w", err)
		}
	}
	if f.window != "" {
		if t.Window, err = ota.ParseWindow(f.window); err != nil {
			return t, usage("--window: %w", err)
		}
	}
	if f.start != "" {
		if t.Start, err = time.Parse(time.RFC3339, f.start); err != nil {
			return t, usage("--start %q: want a time such as 2026-12-01T02:00:00+01:00", f.start)
		}
	}
	if f.maxPer != "" {
		key, n, ok := strings.Cut(f.maxPer, "=")
		t.InFlight.Per = key
		if t.InFlight.PerMax, err = strconv.Atoi(n); !ok || err != nil {
			return t, usage("--max-per %q: want a tag key and a number, such as site=5", f.maxPer)
		}
	}
	return t, nil
}

// compared is the health of the plan; what is as the server has it anyway is left
// to it.
func (f *rolloutFlags) compared() (h ota.Health, err error) {
	for _, text := range f.health {
		s, err := ota.ParseSignal(text)
		if err != nil {
			return h, usage("--health: %w", err)
		}
		h.Signals = append(h.Signals, s)
	}
	if f.healthWatch != ota.DefaultWatch {
		h.Watch = f.healthWatch
	}
	if f.healthWait != ota.DefaultHealthWait {
		h.Wait = f.healthWait
	}
	if f.sick != string(ota.HealthPause) {
		h.OnFail = ota.HealthPolicy(f.sick)
	}
	return h, nil
}

func specMessage(r ota.Rollout) *otadv1.RolloutSpec {
	spec := &otadv1.RolloutSpec{Firmware: r.Release.String(), Selector: r.Selector, Seed: r.Seed, Priority: int32(r.Priority), InProgressTimeout: someTime(r.InProgressTimeout)}
	for _, s := range r.Stages {
		spec.Stages = append(spec.Stages, &otadv1.StageSpec{
			Percent: s.Size.Percent, Count: int32(s.Size.Count), Selector: s.Size.Selector, Soak: durationpb.New(s.Soak), Approval: s.Approval,
			Gate: &otadv1.Gate{Success: s.Gate.Success, MinFinished: int32(s.Gate.MinFinished)},
		})
	}
	for _, rule := range r.Abort {
		spec.Abort = append(spec.Abort, &otadv1.AbortRule{
			Class: string(rule.Class), Share: rule.Share, MinSample: int32(rule.MinSample), Count: int32(rule.Count),
		})
	}
	if c := r.Command; c != nil {
		spec.Command = &otadv1.Command{
			Name: c.Name, Parameters: c.Parameters, Timeout: someTime(time.Duration(c.TimeoutSeconds) * time.Second), MaxOutput: int32(c.MaxOutputBytes),
		}
	}
	termsMessage(r.Terms, spec)
	return spec
}

func termsMessage(t ota.Terms, spec *otadv1.RolloutSpec) {
	spec.Approval, spec.Strata, spec.OnPause, spec.OnAbort, spec.Quarantined = t.Approval, t.Strata, string(t.OnPause), string(t.OnAbort), t.Quarantined
	spec.Drift, spec.Continuous = string(t.Drift), t.Continuous
	if !t.Start.IsZero() {
		spec.Start = timestamppb.New(t.Start)
	}
	if rate := t.Rate; rate != (ota.Rate{}) {
		spec.Rate = &otadv1.Rate{PerMinute: rate.PerMinute, Factor: rate.Factor, Each: int32(rate.Each), Of: string(rate.Of), Max: rate.Max}
	}
	spec.Health = healthMessage(t.Health)
	if t.InFlight != (ota.InFlight{}) {
		spec.InFlight = &otadv1.InFlight{Max: int32(t.InFlight.Max), Per: t.InFlight.Per, PerMax: int32(t.InFlight.PerMax)}
	}
	if t.Timers != (ota.Timers{}) {
		spec.Timers = &otadv1.Timers{
			Claim: someTime(t.Timers.Claim), Fetch: someTime(t.Timers.Fetch), Install: someTime(t.Timers.Install),
			Reboot: someTime(t.Timers.Reboot), Health: someTime(t.Timers.Health),
		}
	}
	if t.Retry.Attempts > 0 {
		spec.Retry = &otadv1.Retry{Attempts: int32(t.Retry.Attempts), Backoff: someTime(t.Retry.Backoff)}
		for _, class := range t.Retry.On {
			spec.Retry.On = append(spec.Retry.On, string(class))
		}
	}
	if w := t.Window; w != (ota.Window{}) {
		spec.Window = &otadv1.Window{Rrule: w.RRule, Start: w.Start, Duration: durationpb.New(time.Duration(w.Duration) * time.Second), Fetch: w.Fetch}
	}
	if c := t.Consent; c != nil {
		spec.Consent = &otadv1.Consent{MaxDefers: int32(c.MaxDefers)}
		if !c.Deadline.IsZero() {
			spec.Consent.Deadline = timestamppb.New(c.Deadline)
		}
	}
}

// someTime leaves out none.
func someTime(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
