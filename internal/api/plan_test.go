package api

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// A plan comes through the API as it went in, every part of it.
func TestSpecComesThrough(t *testing.T) {
	r := ota.Rollout{
		Release: ota.ReleaseID{Name: "gw", Version: "1"}, Selector: "id:*", Seed: "s", Priority: 3, InProgressTimeout: time.Hour,
		Stages: []ota.Stage{
			{Size: ota.Size{Selector: "a"}, Gate: ota.Gate{Success: 0.5, MinFinished: 2}, Soak: time.Minute, Approval: true, State: ota.StagePending},
			{Size: ota.Size{Count: 5}, State: ota.StagePending}, {Size: ota.Size{Percent: 12.5}, State: ota.StagePending},
		},
		Abort: []ota.AbortRule{{Class: ota.ClassSilent, Share: 0.1, MinSample: 5, Count: 9}},
		Terms: ota.Terms{
			Start: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC), Approval: true,
			Rate:     ota.Rate{PerMinute: 1, Factor: 2, Each: 3, Of: ota.RateByNotified, Max: 4},
			InFlight: ota.InFlight{Max: 1, Per: "site", PerMax: 2},
			Timers:   ota.Timers{Claim: 1 * time.Hour, Fetch: 2 * time.Hour, Install: 3 * time.Hour, Reboot: 4 * time.Hour, Health: 5 * time.Hour},
			Retry:    ota.Retry{Attempts: 2, Backoff: time.Second, On: []ota.Class{ota.ClassFailed}}, Strata: []string{"hardware"},
			OnPause: ota.PauseHoldBeforeInstall, OnAbort: ota.AbortRevert,
			Health: ota.Health{
				Signals: []ota.Signal{{Name: "crash", Tolerance: 0.01, Alpha: 0.02, MinPairs: 3}, {Name: "shadow.reported.x", Margin: -5}},
				Watch:   time.Minute, Wait: time.Hour, OnFail: ota.HealthAbort,
			},
			Window:  ota.Window{RRule: "FREQ=DAILY", Start: "2026-01-01T02:00:00", Duration: 3600, Fetch: ota.FetchAnytime},
			Consent: &ota.Consent{MaxDefers: 4, Deadline: time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC)}, Quarantined: true, Drift: ota.DriftRecord, Continuous: true,
		},
	}
	terms := reflect.ValueOf(r.Terms)
	for i := range terms.NumField() {
		if terms.Field(i).IsZero() {
			t.Errorf("the test leaves out %s", terms.Type().Field(i).Name)
		}
	}
	got, err := decodeSpec(encodeSpec(r))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Error(diff)
	}
	bare := ota.Rollout{Release: r.Release}
	if got, err := decodeSpec(encodeSpec(bare)); err != nil || cmp.Diff(bare, got) != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

// Who is being finished and held is told from who is paused.
func TestHoldingIsTold(t *testing.T) {
	r := ota.Rollout{State: ota.RolloutRunning, Terms: ota.Terms{OnPause: ota.PauseLetFinish}}
	for _, policy := range []ota.PausePolicy{"", ota.PauseHoldBeforeInstall} {
		paused, err := ota.Pause(r, "why", policy)
		if err != nil {
			t.Fatal(err)
		}
		got := encodeRollout(fleet.RolloutView{Rollout: paused})
		if got.GetHolds() != (policy != "") || got.GetSpec().GetOnPause() != string(ota.PauseLetFinish) {
			t.Errorf("paused with %q: holds %v, the plan says %s", policy, got.GetHolds(), got.GetSpec().GetOnPause())
		}
	}
}

// The plan's word on an abort is told beside what was said with it.
func TestGoingBackIsTold(t *testing.T) {
	for _, said := range []ota.AbortPolicy{ota.AbortKeep, ota.AbortRevert} {
		aborted, err := ota.Abort(ota.Rollout{State: ota.RolloutRunning, Terms: ota.Terms{OnAbort: ota.AbortKeep}}, "why", said, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		got := encodeRollout(fleet.RolloutView{Rollout: aborted})
		if got.GetReverting() != (said == ota.AbortRevert) || got.GetSpec().GetOnAbort() != string(ota.AbortKeep) {
			t.Errorf("aborted with %q: goes back %v, the plan says %s", said, got.GetReverting(), got.GetSpec().GetOnAbort())
		}
	}
}

func TestEndingIsTold(t *testing.T) {
	began := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	follows := ota.Rollout{State: ota.RolloutPaused, Terms: ota.Terms{Continuous: true}, Follows: true, StartedAt: began}
	held := follows
	held.Follows = false
	for _, c := range []struct {
		r    ota.Rollout
		want bool
	}{{follows, false}, {held, true}, {ota.Rollout{State: ota.RolloutFinishing}, true}, {ota.Rollout{State: ota.RolloutAborting}, true}, {ota.Rollout{State: ota.RolloutCompleted}, false}} {
		if got := encodeRollout(fleet.RolloutView{Rollout: c.r}).GetEnding(); got != c.want {
			t.Errorf("%s, follows %v: ending %v", c.r.State, c.r.Follows, got)
		}
	}
}
