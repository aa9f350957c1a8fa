package ota

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func commandRollout(states ...StageState) Rollout {
	r := rollout(states...)
	r.Release, r.Command = ReleaseID{}, &Command{Name: "set-level", Parameters: map[string]string{"level": "3"}}
	for i := range r.Stages {
		r.Stages[i].Gate = Gate{}
	}
	return r
}

func TestARolloutIsOfAReleaseOrACommand(t *testing.T) {
	good := commandRollout(StagePending)
	good.Terms = Terms{
		Start: t0, Approval: true, Rate: Rate{PerMinute: 1}, InFlight: InFlight{Max: 1}, Timers: Timers{Claim: time.Hour},
		Retry: Retry{Attempts: 2}, Strata: []string{ByHardware}, OnPause: PauseHoldBeforeInstall,
	}
	if err := good.Validate(); err != nil || good.Kind() != KindCommand || rollout().Kind() != KindInstall {
		t.Fatalf("%s, %s: %v", good.Kind(), rollout().Kind(), err)
	}
	for want, breakIt := range map[string]func(*Rollout){
		"make two":              func(r *Rollout) { r.Release = ReleaseID{"gw", "1.0"} },
		"firmware name":         func(r *Rollout) { r.Command = nil },
		"could be reverted":     func(r *Rollout) { r.Terms.OnAbort = AbortRevert },
		`command "a b"`:         func(r *Rollout) { r.Command = &Command{Name: "a b"} },
		"17 parameters":         func(r *Rollout) { r.Command = &Command{Name: "x", Parameters: parameters(MaxCommandParameters + 1)} },
		"has no window":         func(r *Rollout) { r.Terms.Window = Window{RRule: "FREQ=DAILY;BYHOUR=2", Duration: 3600} },
		"asks for no consent":   func(r *Rollout) { r.Terms.Consent = &Consent{} },
		"those of an install":   func(r *Rollout) { r.Terms.Timers.Reboot = time.Hour },
		"knows no quarantine":   func(r *Rollout) { r.Terms.Quarantined = true },
		"want 1 to 32":          func(r *Rollout) { r.Stages = nil },
		"want 1m0s to 168h0m0s": func(r *Rollout) { r.InProgressTimeout = time.Second },
	} {
		r := good
		breakIt(&r)
		if err := r.Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	logs := good
	logs.Command = &Command{Name: CommandCollectLogs}
	if err := logs.Validate(); err != nil {
		t.Errorf("where to upload is not for operators to say: %v", err)
	}
	if got := good.Command.String(); got != "set-level level=3" {
		t.Error(got)
	}
}

func TestACommandEndsWithItsDevice(t *testing.T) {
	r := commandRollout(StagePending)
	if got := r.Ordered().InProgressTimeout; got != DefaultCommandTimeout+CommandSlack {
		t.Errorf("bound by %s", got)
	}
	r.InProgressTimeout = time.Hour
	if got := r.Ordered().InProgressTimeout; got != time.Hour {
		t.Errorf("bound by %s", got)
	}
	longest := commandRollout(StagePending)
	longest.Command.TimeoutSeconds = int(MaxCommandTimeout / time.Second)
	if err := longest.Ordered().Validate(); err != nil {
		t.Error(err)
	}
	if got := rollout(StagePending).Ordered().InProgressTimeout; got != 0 {
		t.Errorf("an install is bound by %s", got)
	}
}

func TestCommandsSupersedeNothing(t *testing.T) {
	old, newer := commandRollout(StageOpen), commandRollout(StageOpen)
	newer.ID, newer.CreatedAt = "r-2", t0
	install := rollout(StageOpen)
	install.ID = "r-3"
	for _, c := range [][2]Rollout{{newer, old}, {newer, install}, {install, newer}, {install, old}} {
		if c[0].Supersedes(c[1]) || c[1].Supersedes(c[0]) {
			t.Errorf("%s of %s and %s of %s", c[0].Kind(), c[0].ID, c[1].Kind(), c[1].ID)
		}
	}
}

func TestDocumentOfACommand(t *testing.T) {
	r := commandRollout(StageOpen)
	e := Execution{RolloutID: "r-1", DeviceID: "d", Attempt: 2}.Under(r)
	d := JobOf(e)
	if err := d.Validate(); err != nil || d.Operation != OperationCommand || d.Attempt != 2 || d.Command.String() != "set-level level=3" || d.Hold {
		t.Errorf("%+v: %v", d, err)
	}
	d.Command.Name = "changed"
	if r.Command.Name != "set-level" {
		t.Error("the document is not its own")
	}
	r.State, r.Terms.OnPause = RolloutPaused, PauseHoldBeforeInstall
	if d := JobOf(e.Under(r)); !d.Hold {
		t.Error("a paused rollout does not hold the command back")
	}
}

func TestAnEditKeepsTheCommand(t *testing.T) {
	r := commandRollout(StagePending)
	r.State = RolloutDraft
	plan := rollout(StagePending)
	next, err := Edit(r, plan)
	if err != nil || next.Command != r.Command || next.Release != (ReleaseID{}) || next.InProgressTimeout != DefaultCommandTimeout+CommandSlack {
		t.Errorf("%+v: %v", next, err)
	}
}

func TestACommandIsNotReverted(t *testing.T) {
	r := commandRollout(StageOpen)
	if _, err := Abort(r, "stop", AbortRevert, t0); !errors.Is(err, ErrState) {
		t.Error(err)
	}
	if next, err := Abort(r, "stop", "", t0); err != nil || next.Reverting {
		t.Errorf("%+v: %v", next, err)
	}
}
