package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// rolloutView is a rollout as -o json shows it. Times are RFC 3339.
type rolloutView struct {
	ID         string          `json:"id"`
	Firmware   string          `json:"firmware"` // NAME@VERSION; empty for a command
	Command    *commandView    `json:"command,omitempty"`
	Selector   string          `json:"selector"` // empty: every device the release fits
	State      string          `json:"state"`
	Reason     string          `json:"reason,omitempty"`
	Population int32           `json:"population"` // devices it is for
	Seed       string          `json:"seed"`
	Priority   int32           `json:"priority"`
	Timeout    string          `json:"timeout,omitempty"` // Go duration; absent: none
	Stages     []stageView     `json:"stages"`
	Abort      []string        `json:"abort"` // rules as --abort takes them
	Terms      termsView       `json:"terms"`
	Revision   int64           `json:"revision"`            // of the plan: 1 as it was created, raised by each edit
	Idle       bool            `json:"idle,omitempty"`      // continuous, with nothing to do until a device joins
	Ending     bool            `json:"ending,omitempty"`    // aborted or finished, and not ended yet, be it that it is held
	Holds      bool            `json:"holds,omitempty"`     // paused, and devices at work are asked to wait before they activate
	Reverting  bool            `json:"reverting,omitempty"` // aborted, and devices that it changed go back, have gone back or, paused, are to
	Reached    int32           `json:"reached"`             // devices that had their turn
	Health     *healthView     `json:"health,omitempty"`    // absent: nothing is compared
	RevertOf   string          `json:"revertOf,omitempty"`  // the rollout whose devices it brings back
	Reverts    []revertView    `json:"reverts,omitempty"`   // those that bring its devices back
	Rate       float64         `json:"rate,omitempty"`      // devices a minute that it may start now; absent: no bound
	ApprovedAt *time.Time      `json:"approvedAt,omitempty"`
	StartedAt  *time.Time      `json:"startedAt,omitempty"`
	CreatedAt  *time.Time      `json:"createdAt,omitempty"`
	EndedAt    *time.Time      `json:"endedAt,omitempty"`
	Failures   []executionView `json:"failures,omitempty"` // the last ones, of one that is shown or watched
	AtWork     []executionView `json:"atWork,omitempty"`   // those at their step longest, where few are in progress
}

// revertView is a rollout that brings devices of another back.
type revertView struct {
	ID    string `json:"id"`
	State string `json:"state"`
}

// stageView is one stage with the counts of its own devices.
type stageView struct {
	Size       string     `json:"size"` // cumulative: "10%" or "5"; "{SELECTOR}"
	Gate       string     `json:"gate"`
	Soak       string     `json:"soak"` // Go duration: "1m0s"
	State      string     `json:"state"`
	Target     int32      `json:"target"` // cumulative devices, 0 until the rollout starts
	Counts     countsView `json:"counts"`
	Approval   string     `json:"approval,omitempty"` // "needed" or "given"
	ApprovedAt *time.Time `json:"approvedAt,omitempty"`
	OpenedAt   *time.Time `json:"openedAt,omitempty"`
	SoakingAt  *time.Time `json:"soakingAt,omitempty"`
	EndedAt    *time.Time `json:"endedAt,omitempty"`
	SkippedAt  *time.Time `json:"skippedAt,omitempty"` // when an operator passed by what had failed in it, so that it went on without its gate
}

// standing is the state for people: a stage that goes on by an operator's word says so.
func (s stageView) standing() string {
	if skipped := s.State == string(ota.StagePassed) || s.State == string(ota.StageOpen); skipped && s.SkippedAt != nil {
		return s.State + ", skipped"
	}
	return s.State
}

// countsView counts executions; Finished is by class: succeeded, failed,
// rolled_back, rejected, timed_out, silent, drifted, underway, canceled.
type countsView struct {
	Queued     int32            `json:"queued"`
	InProgress int32            `json:"inProgress"`
	Retrying   int32            `json:"retrying,omitempty"` // of the finished ones: those that get another attempt, or their next leg
	Finished   map[string]int32 `json:"finished"`
}

func (c countsView) bad() int32 {
	var n int32
	for _, class := range ota.Unsuccessful {
		n += c.Finished[string(class)]
	}
	return n
}

// badText names the unsuccessful classes: "2 rolled_back, 1 silent".
func (c countsView) badText() string {
	var parts []string
	for _, class := range ota.Unsuccessful {
		if n := c.Finished[string(class)]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, class))
		}
	}
	return strings.Join(parts, ", ")
}

// unsuccessful is badText, and how many of them get another attempt.
func (c countsView) unsuccessful() string {
	if n := c.Retrying - c.underway(); n > 0 {
		return fmt.Sprintf("%s (%d retrying)", c.badText(), n)
	}
	return c.badText()
}

// underway is how many devices came a leg of their path and wait for the next.
func (c countsView) underway() int32 { return c.Finished[string(ota.ClassUnderway)] }

// inProgress names those too.
func (c countsView) inProgress() string {
	if n := c.underway(); n > 0 {
		return fmt.Sprintf("%d, %d underway", c.InProgress, n)
	}
	return number(c.InProgress)
}

func (c countsView) succeeded() int32 { return c.Finished[string(ota.ClassSucceeded)] }

func newRolloutView(r *otadv1.Rollout) rolloutView {
	v := rolloutView{
		ID: r.GetId(), Firmware: r.GetFirmware(), Command: newCommandView(r.GetSpec().GetCommand()), Selector: r.GetSelector(), State: r.GetState(), Reason: r.GetReason(),
		Population: r.GetPopulation(), Seed: r.GetSeed(), Priority: r.GetPriority(), Stages: []stageView{}, Abort: []string{},
		CreatedAt: when(r.GetCreatedAt()), EndedAt: when(r.GetEndedAt()), ApprovedAt: when(r.GetApprovedAt()), StartedAt: when(r.GetStartedAt()),
		Terms: newTermsView(r.GetSpec()), Idle: r.GetIdle(), Ending: r.GetEnding(), Holds: r.GetHolds(), Reverting: r.GetReverting(), Revision: r.GetRevision(), Reached: r.GetReached(), Rate: r.GetRate(), RevertOf: r.GetRevertOf(), Health: newHealthView(r.GetSpec().GetHealth(), r.GetHealth()),
	}
	if d := r.GetInProgressTimeout(); d != nil {
		v.Timeout = d.AsDuration().String()
	}
	for _, back := range r.GetReverts() {
		v.Reverts = append(v.Reverts, revertView{back.GetRolloutId(), back.GetState()})
	}
	for _, s := range r.GetStages() {
		v.Stages = append(v.Stages, stageView{
			Size: sizeText(s.GetSpec()), Gate: gateText(s.GetSpec().GetGate()), Soak: soakText(s.GetSpec().GetSoak()),
			State: s.GetState(), Target: s.GetTarget(), Approval: approvalText(s),
			Counts: countsView{
				Retrying: s.GetCounts().GetRetrying(),
				Queued:   s.GetCounts().GetQueued(), InProgress: s.GetCounts().GetInProgress(), Finished: orEmpty(s.GetCounts().GetFinished()),
			},
			ApprovedAt: when(s.GetApprovedAt()), OpenedAt: when(s.GetOpenedAt()), SoakingAt: when(s.GetSoakingAt()), EndedAt: when(s.GetEndedAt()),
			SkippedAt: when(s.GetSkippedAt()),
		})
	}
	for _, e := range r.GetFailures() {
		v.Failures = append(v.Failures, newExecutionView(e))
	}
	for _, e := range r.GetAtWork() {
		v.AtWork = append(v.AtWork, newExecutionView(e))
	}
	for _, rule := range r.GetAbort() {
		v.Abort = append(v.Abort, ota.AbortRule{
			Class: ota.Class(rule.GetClass()), Share: rule.GetShare(), MinSample: int(rule.GetMinSample()), Count: int(rule.GetCount()),
		}.String())
	}
	return v
}

func sizeText(s *otadv1.StageSpec) string {
	return ota.Size{Percent: s.GetPercent(), Count: int(s.GetCount()), Selector: s.GetSelector()}.String()
}

func gateText(g *otadv1.Gate) string {
	return ota.Gate{Success: g.GetSuccess(), MinFinished: int(g.GetMinFinished())}.String()
}

func approvalText(s *otadv1.Stage) string {
	switch {
	case !s.GetSpec().GetApproval():
		return ""
	case s.GetApprovedAt() == nil:
		return "needed"
	}
	return "given"
}

func soakText(d *durationpb.Duration) string { return d.AsDuration().String() }

// outcome says whether there is nothing more to wait for, and how it went: an
// error of status 7 unless the rollout completed.
func (r rolloutView) outcome() (bool, error) {
	switch ota.RolloutState(r.State) {
	case ota.RolloutCompleted:
		return true, nil
	case ota.RolloutAborted:
		return true, hint(fail(exitCondition, "rollout %s was aborted: %s", r.ID, first(r.Reason, "no reason given")),
			"otactl rollout show %s lists the devices that failed", r.ID)
	case ota.RolloutRolledBack:
		return true, hint(fail(exitCondition, "rollout %s was aborted and rolled back: %s", r.ID, first(r.Reason, "no reason given")),
			"otactl rollout show %s lists the devices that failed, and the rollouts that brought devices back", r.ID)
	case ota.RolloutPaused:
		if n := r.failedStage(); n > 0 {
			return true, hint(fail(exitCondition, "rollout %s is paused: %s", r.ID, first(r.Reason, fmt.Sprintf("stage %d failed its gate", n))), "%s", r.nextAct())
		}
	}
	return false, nil
}

// totals sums the stages.
func (r rolloutView) totals() countsView {
	t := countsView{Finished: map[string]int32{}}
	for _, s := range r.Stages {
		t.Queued += s.Counts.Queued
		t.InProgress += s.Counts.InProgress
		for class, n := range s.Counts.Finished {
			t.Finished[class] += n
		}
	}
	return t
}

// current is the number, from 1, of the stage that counts now, of how many.
func (r rolloutView) current() string {
	for i, s := range r.Stages {
		if s.State != string(ota.StagePassed) {
			return fmt.Sprintf("%d/%d", i+1, len(r.Stages))
		}
	}
	return fmt.Sprintf("%d/%d", len(r.Stages), len(r.Stages))
}

func number(n int32) string { return strconv.Itoa(int(n)) }

func (a *app) rolloutTable() view[rolloutView] {
	return view[rolloutView]{
		name: func(r rolloutView) string { return r.ID },
		columns: []column[rolloutView]{
			{head: "ID", cell: func(r rolloutView) string { return r.ID }},
			{head: "FIRMWARE", cell: func(r rolloutView) string { return r.Firmware }},
			{head: "STATE", cell: func(r rolloutView) string { return r.State }},
			{head: "STAGE", cell: rolloutView.current},
			{head: "DEVICES", cell: func(r rolloutView) string { return number(r.Population) }},
			{head: "SUCCEEDED", cell: func(r rolloutView) string { return number(r.totals().succeeded()) }},
			{head: "FAILED", cell: func(r rolloutView) string { return number(r.totals().bad()) }},
			{head: "CREATED", cell: func(r rolloutView) string { return a.ago(r.CreatedAt) }},
			{head: "SELECTOR", wide: true, cell: func(r rolloutView) string { return r.Selector }},
			{head: "REASON", wide: true, cell: func(r rolloutView) string { return r.Reason }},
		},
	}
}

// showRollout makes the text of rollout show.
func (a *app) showRollout(r rolloutView) func(io.Writer) error {
	return func(w io.Writer) error {
		err := writeFields(w, []field{
			{"ID", r.ID},
			{"Firmware", r.Firmware},
			{"Command", r.Command.text()},
			{"Selector", first(r.Selector, r.everyone())},
			{"Reverts", r.RevertOf},
			{"State", r.State},
			{"Reason", r.Reason},
			{"At work", r.held()},
			{"Aborted", r.aborted()},
			{"Reverted by", r.revertedBy()},
			{"Devices", r.devices()},
			{"Priority", r.priority()},
			{"Rate", r.rate()},
			{"Seed", r.Seed},
			{"Abort", strings.Join(r.Abort, ", ")},
			{"Timeout", r.Timeout},
			{"Terms", strings.Join(r.Terms.words(), "; ")},
			{"Revision", strconv.FormatInt(r.Revision, 10)},
			{"Waits for", r.waitsFor()},
			{"Created", a.ago(r.CreatedAt)},
			{"Approved", a.ago(r.ApprovedAt)},
			{"Started", a.ago(r.StartedAt)},
			{"Ended", a.ago(r.EndedAt)},
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(w)
		if err := writeTable(w, stageHeads, r.stageRows()); err != nil {
			return err
		}
		if r.Health != nil {
			fmt.Fprintln(w)
			if err := writeTable(w, healthHeads, r.Health.rows()); err != nil {
				return err
			}
		}
		return a.writeDevices(w, r, len(r.AtWork), len(r.Failures))
	}
}

// writeDevices writes whom the rollout waits for and who failed last, at most so many.
func (a *app) writeDevices(w io.Writer, r rolloutView, atWork, failures int) error {
	if n := min(atWork, len(r.AtWork)); n > 0 {
		fmt.Fprintln(w)
		if err := writeTable(w, atWorkHeads, a.atWorkRows(r.AtWork[:n])); err != nil {
			return err
		}
	}
	n := min(failures, len(r.Failures))
	if n == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return writeTable(w, failureHeads, a.failureRows(r.Failures[:n]))
}

// devices says how many it is for, and while it goes on how many had their turn.
func (r rolloutView) devices() string {
	if r.Reached == 0 || r.Reached == r.Population {
		return number(r.Population)
	}
	return fmt.Sprintf("%d, %d of them had their turn", r.Population, r.Reached)
}

// held says that devices at work are asked to wait.
func (r rolloutView) held() string {
	if !r.Holds {
		return ""
	}
	return "devices wait before they activate, until it is resumed"
}

// aborted says what became of devices that it had changed, whatever the plan says; empty:
// it was not aborted.
func (r rolloutView) aborted() string {
	switch state := ota.RolloutState(r.State); {
	case state == ota.RolloutRolledBack:
		return "devices that it changed went back to what they ran before"
	case r.Reverting:
		return "devices that it changed go back to what they ran before"
	case r.Command == nil && (state == ota.RolloutAborting || state == ota.RolloutAborted):
		return "devices that it changed keep what they have"
	}
	return ""
}

func (r rolloutView) priority() string {
	if r.Priority == 0 {
		return ""
	}
	return number(r.Priority)
}

// rate is what it may start in a minute now, where that changes as it goes on.
func (r rolloutView) rate() string {
	if r.Rate == 0 || !strings.Contains(r.Terms.Rate, "x") {
		return ""
	}
	return fmt.Sprintf("%g devices a minute now", r.Rate)
}

func (r rolloutView) revertedBy() string {
	var list []string
	for _, back := range r.Reverts {
		list = append(list, back.ID+" "+back.State)
	}
	return strings.Join(list, ", ")
}

var atWorkHeads = []string{"AT WORK", "STAGE", "ATTEMPT", "STEP", "SINCE", "UNTIL", "REASON"}

func (a *app) atWorkRows(list []executionView) [][]string {
	var rows [][]string
	for _, e := range list {
		rows = append(rows, []string{
			e.Device, number(e.Stage), number(e.Attempt), e.Step, a.ago(e.StepAt), a.ago(e.ExpiresAt), e.Reason,
		})
	}
	return rows
}

var failureHeads = []string{"DEVICE", "STAGE", "ATTEMPT", "CLASS", "REASON", "FINISHED"}

// everyone names the devices of a rollout without a selector.
func (r rolloutView) everyone() string {
	if r.Command != nil {
		return "(every device)"
	}
	return "(every device the release fits)"
}

var stageHeads = []string{"STAGE", "SIZE", "STATE", "DEVICES", "QUEUED", "IN PROGRESS", "SUCCEEDED", "UNSUCCESSFUL", "GATE", "SOAK"}

func (r rolloutView) stageRows() [][]string {
	var rows [][]string
	sizes := r.sizes()
	for i, s := range r.Stages {
		rows = append(rows, []string{
			strconv.Itoa(i + 1), s.Size, s.standing(), number(sizes[i]), number(s.Counts.Queued), s.Counts.inProgress(),
			number(s.Counts.succeeded()), first(s.Counts.unsuccessful(), "0"), s.Gate, s.Soak,
		})
	}
	return rows
}

// sizes are the devices of each stage, as its counts are.
func (r rolloutView) sizes() []int32 {
	sizes, before := make([]int32, len(r.Stages)), int32(0)
	for i, s := range r.Stages {
		sizes[i] = max(0, s.Target-before)
		before += sizes[i]
	}
	return sizes
}

func (a *app) failureRows(failures []executionView) [][]string {
	var rows [][]string
	for _, e := range failures {
		rows = append(rows, []string{
			e.Device, number(e.Stage), number(e.Attempt), first(e.Class, e.Status), e.Reason, a.ago(e.FinishedAt),
		})
	}
	return rows
}

func stateColour(state string) string {
	switch ota.RolloutState(state) {
	case ota.RolloutCompleted:
		return green
	case ota.RolloutAborting, ota.RolloutAborted, ota.RolloutRollingBack, ota.RolloutRolledBack:
		return red
	}
	return amber
}

// executionView is one job on one device.
type executionView struct {
	Device     string            `json:"device"`
	Firmware   string            `json:"firmware,omitempty"` // that it installs; empty: a command
	Leg        int32             `json:"leg,omitempty"`      // the how manieth release of the device's path that is
	Via        []string          `json:"via,omitempty"`      // releases to pass through from here on, that one first
	Stage      int32             `json:"stage"`              // from 1
	Attempt    int32             `json:"attempt"`
	Version    int64             `json:"version"`           // rises with each change of the attempt
	Lane       string            `json:"lane,omitempty"`    // its value of what maxPer names
	Command    string            `json:"command,omitempty"` // its name, in place of a firmware
	Status     string            `json:"status"`
	Class      string            `json:"class,omitempty"`
	Step       string            `json:"step,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	Details    map[string]string `json:"details"`
	QueuedAt   *time.Time        `json:"queuedAt,omitempty"`
	StartedAt  *time.Time        `json:"startedAt,omitempty"`
	UpdatedAt  *time.Time        `json:"updatedAt,omitempty"`
	FinishedAt *time.Time        `json:"finishedAt,omitempty"`
	StepAt     *time.Time        `json:"stepAt,omitempty"`     // when it came to its step
	ExpiresAt  *time.Time        `json:"expiresAt,omitempty"`  // when it will be TIMED_OUT
	RetryAt    *time.Time        `json:"retryAt,omitempty"`    // of a finished one: when the next attempt is due
	FromDigest string            `json:"fromDigest,omitempty"` // of the image that the device said it ran before
	DriftedAt  *time.Time        `json:"driftedAt,omitempty"`  // when the device said that it runs another image than it was given
	Runs       string            `json:"runs,omitempty"`       // the digest of that one
	WentBackAt *time.Time        `json:"wentBackAt,omitempty"` // when the device said that it had gone back, after the server had ended the attempt
}

func newExecutionView(e *otadv1.Execution) executionView {
	return executionView{
		Device: e.GetDeviceId(), Firmware: e.GetFirmware(), Leg: e.GetLeg(), Via: e.GetVia(), Stage: e.GetStage(), Attempt: e.GetAttempt(), Status: e.GetStatus(), Class: e.GetClass(),
		Step: e.GetStep(), Reason: e.GetReason(), Details: orEmpty(e.GetDetails()),
		StartedAt: when(e.GetStartedAt()), UpdatedAt: when(e.GetUpdatedAt()), FinishedAt: when(e.GetFinishedAt()),
		StepAt: when(e.GetStepAt()), ExpiresAt: when(e.GetExpiresAt()), FromDigest: e.GetFromDigest(),
		Version: e.GetVersion(), Lane: e.GetLane(), Command: e.GetCommand(), QueuedAt: when(e.GetQueuedAt()), RetryAt: when(e.GetRetryAt()),
		DriftedAt: when(e.GetDriftedAt()), Runs: e.GetRuns(), WentBackAt: when(e.GetWentBackAt()),
	}
}
