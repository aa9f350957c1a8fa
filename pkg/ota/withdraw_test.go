package ota

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestWithdraw(t *testing.T) {
	draft := Release{Manifest: Manifest{Name: "gw", Version: "2"}, State: ReleaseDraft}
	signed := draft
	signed.State, signed.SignedAt = ReleaseSigned, t0
	for _, r := range []Release{draft, signed} {
		got, err := Withdraw(r, "hangs", t0.Add(time.Hour))
		if err != nil || got.State != ReleaseWithdrawn || got.Reason != "hangs" || !got.WithdrawnAt.Equal(t0.Add(time.Hour)) || !got.SignedAt.Equal(r.SignedAt) {
			t.Errorf("%s: %+v, %v", r.State, got, err)
		}
		if again, err := Withdraw(got, "another reason", t0); err != nil || again.Reason != "hangs" || !again.WithdrawnAt.Equal(got.WithdrawnAt) {
			t.Errorf("again: %+v, %v", again, err)
		}
		if err := got.Offered(); err == nil || !strings.Contains(err.Error(), "gw@2 is withdrawn: hangs; roll out another version") {
			t.Errorf("offered: %v", err)
		}
		for _, reason := range []string{"", " \n", strings.Repeat("x", MaxWithdrawReason+1)} {
			if _, err := Withdraw(r, reason, t0); !errors.Is(err, ErrInvalid) {
				t.Errorf("reason %.9q: %v", reason, err)
			}
		}
		if _, err := Withdraw(r, strings.Repeat("x", MaxWithdrawReason), t0); err != nil {
			t.Error(err)
		}
	}
	if err := draft.Offered(); err == nil || !strings.Contains(err.Error(), "otactl firmware sign gw@2") {
		t.Errorf("draft: %v", err)
	}
	if err := signed.Offered(); err != nil {
		t.Error(err)
	}
}

// TestAbandonWalksTheStates holds every state of a rollout against what becomes of it
// when its release is withdrawn.
func TestAbandonWalksTheStates(t *testing.T) {
	release := Release{Manifest: Manifest{Name: "gw", Version: "2"}, State: ReleaseWithdrawn, Reason: "hangs"}
	ends := map[RolloutState]bool{
		RolloutDraft: true, RolloutAwaitingApproval: true, RolloutScheduled: true, RolloutRunning: true, RolloutPaused: true, RolloutFinishing: true,
	}
	for _, state := range RolloutStates {
		r := rollout(StageOpen, StagePending)
		r.Release, r.State, r.Reason, r.Follows, r.Idle = release.ID(), state, "as it was", true, true
		for policy, want := range map[AbortPolicy]RolloutState{"": RolloutAborting, AbortKeep: RolloutAborting, AbortRevert: RolloutRollingBack} {
			got, changed := Abandon(r, release, policy, t0)
			switch {
			case changed != ends[state]:
				t.Errorf("%s: changed %v", state, changed)
			case !changed && (got.State != state || got.Reason != "as it was"):
				t.Errorf("%s: became %s, %s", state, got.State, got.Reason)
			case changed && (got.State != want || got.Reason != "release gw@2 is withdrawn: hangs" || got.Follows || got.Idle || got.Reverting != (policy == AbortRevert)):
				t.Errorf("%s by %q: %+v", state, policy, got)
			}
			if r.Stages[0].State != StageOpen {
				t.Fatal("it changed the rollout that it was given")
			}
		}
	}
	running := rollout(StageOpen)
	running.Release, running.State = ReleaseID{"gw", "3"}, RolloutRunning
	if _, changed := Abandon(running, release, "", t0); changed {
		t.Error("it ended a rollout of another release")
	}
	running.Release, running.RevertOf, running.Terms.OnAbort = release.ID(), "r-0", AbortKeep
	if got, changed := Abandon(running, release, AbortRevert, t0); !changed || got.State != RolloutAborting {
		t.Errorf("a revert: %v %+v", changed, got)
	}
	running.State, running.RevertOf, running.Reverting = RolloutPaused, "", true
	if _, changed := Abandon(running, release, "", t0); changed {
		t.Error("it aborted again what goes back already")
	}
}

func TestReroute(t *testing.T) {
	release := Release{Manifest: Manifest{Name: "gw", Version: "2"}, State: ReleaseWithdrawn, Reason: "hangs"}
	goal := Rollout{Release: ReleaseID{"gw", "4"}}
	for name, c := range map[string]struct {
		e    Execution
		want bool
	}{
		"waits":            {Execution{Status: Queued, Via: []ReleaseID{{"gw", "2"}, {"gw", "3"}}}, true},
		"fetches":          {Execution{Status: InProgress, Via: []ReleaseID{{"gw", "2"}}, Details: map[string]string{DetailStep: string(StepFetching)}}, true},
		"has activated":    {Execution{Status: InProgress, Via: []ReleaseID{{"gw", "2"}}, Details: map[string]string{DetailStep: string(StepRebooting)}}, false},
		"has ended":        {Execution{Status: Failed, Via: []ReleaseID{{"gw", "2"}}}, false},
		"is at the next":   {Execution{Status: Queued, Via: []ReleaseID{{"gw", "3"}}}, false},
		"is not yet there": {Execution{Status: Queued, Via: []ReleaseID{{"gw", "1"}, {"gw", "2"}}}, false},
		"at the goal":      {Execution{Status: Queued}, false},
	} {
		e := c.e.Under(goal)
		e.Attempt, e.Leg, e.Version = 1, 1, 1
		got, rerouted := Reroute(e, release, t0)
		if rerouted != c.want {
			t.Errorf("%s: %v", name, rerouted)
		}
		if !rerouted {
			continue
		}
		if got.Status != Canceled || got.Class != ClassNone || !got.RetryAt.Equal(t0) || got.Reason() != "release gw@2 is withdrawn: hangs" {
			t.Errorf("%s: %+v", name, got)
		}
		signed := func(id ReleaseID) bool { return id != release.ID() }
		if over, blocked := Blocked(got, signed); !blocked || over != release.ID() {
			t.Errorf("%s: its next attempt would go the same way", name)
		}
		next := Detour(got, Path{Via: []ReleaseID{{"gw", "3"}}})
		if next.Attempt != 2 || next.Leg != 1 || len(next.Via) != 1 || next.Via[0] != (ReleaseID{"gw", "3"}) || blocks(next, signed) {
			t.Errorf("%s: goes on by %+v", name, next)
		}
	}
	// Who has come a leg goes on from there.
	e := Execution{Status: Succeeded, Class: ClassUnderway, Attempt: 1, Leg: 1, Via: []ReleaseID{{"gw", "1"}, {"gw", "2"}}}
	if !blocks(e, func(id ReleaseID) bool { return id != release.ID() }) {
		t.Error("its next leg is withdrawn")
	}
	if blocks(e, func(id ReleaseID) bool { return id != ReleaseID{"gw", "1"} }) {
		t.Error("the leg that it has come does not matter any more")
	}
	if next := Detour(e, Path{}); next.Leg != 2 || len(next.Via) != 0 {
		t.Errorf("%+v", next)
	}
}

func blocks(e Execution, signed func(ReleaseID) bool) bool {
	_, blocked := Blocked(e, signed)
	return blocked
}
