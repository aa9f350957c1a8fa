package ota

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestLetGo walks through how the newer rollouts on a device may stand when one made way.
func TestLetGo(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	made := func(id string, age time.Duration, state RolloutState, e Execution) Standing {
		r := Rollout{ID: id, Release: ReleaseID{Name: "gw", Version: id}, State: state, CreatedAt: now.Add(-age)}
		e.RolloutID, e.Attempt = id, max(e.Attempt, 1)
		return Standing{Execution: e, Rollout: r, Digest: "of " + id, Goal: "of " + id}
	}
	madeWay := func(by string) Execution {
		e, _ := Supersede(Execution{Status: Queued}, by, now)
		return e
	}
	canceled, _ := Cancel(Execution{Status: Queued}, "bad", now)
	removed, _ := Remove(Execution{Status: Queued}, DeletedReason, now)
	again := canceled
	again.RetryAt = now
	last := madeWay("c")
	last.Attempt = MaxAttempts
	reverting := made("a", 3*time.Hour, RolloutPaused, madeWay("c"))
	reverting.Rollout.Reverting = true
	older := made("a", 3*time.Hour, RolloutRunning, madeWay("c"))
	held := made("a", 3*time.Hour, RolloutPaused, madeWay("c"))
	held.Rollout.Terms, held.Rollout.StartedAt = Terms{Continuous: true, OnPause: PauseHoldBeforeInstall}, now
	for name, c := range map[string]struct {
		list []Standing
		runs string
		want string // whose attempts are made again
	}{
		"aborted, and it was cancelled":      {[]Standing{older, made("c", time.Hour, RolloutAborted, canceled)}, "", "a"},
		"it is being aborted":                {[]Standing{older, made("c", time.Hour, RolloutAborting, canceled)}, "", "a"},
		"the device left it":                 {[]Standing{older, made("c", time.Hour, RolloutRunning, canceled)}, "", "a"},
		"the device was deleted meanwhile":   {[]Standing{older, made("c", time.Hour, RolloutAborted, removed)}, "", "a"},
		"nothing of it is left":              {[]Standing{older}, "", "a"},
		"the older is paused":                {[]Standing{made("a", 3*time.Hour, RolloutPaused, madeWay("c")), made("c", time.Hour, RolloutAborted, canceled)}, "", "a"},
		"it waits there":                     {[]Standing{older, made("c", time.Hour, RolloutRunning, Execution{Status: Queued})}, "", ""},
		"it waits there, and is paused":      {[]Standing{older, made("c", time.Hour, RolloutPaused, Execution{Status: Queued})}, "", ""},
		"it is at work":                      {[]Standing{older, made("c", time.Hour, RolloutAborting, Execution{Status: InProgress})}, "", ""},
		"it failed there":                    {[]Standing{older, made("c", time.Hour, RolloutAborted, Execution{Status: Failed, Class: ClassFailed})}, "", ""},
		"it is tried again there":            {[]Standing{older, made("c", time.Hour, RolloutRunning, again)}, "", ""},
		"it would be, had it not ended":      {[]Standing{older, made("c", time.Hour, RolloutAborted, again)}, "", "a"},
		"the older is being aborted":         {[]Standing{made("a", 3*time.Hour, RolloutAborting, madeWay("c"))}, "", ""},
		"the older is being finished":        {[]Standing{made("a", 3*time.Hour, RolloutFinishing, madeWay("c"))}, "", ""},
		"the older is held as it finishes":   {[]Standing{held}, "", ""},
		"the older has ended":                {[]Standing{made("a", 3*time.Hour, RolloutCompleted, madeWay("c"))}, "", ""},
		"the older goes back":                {[]Standing{reverting}, "", ""},
		"there were as many as there may be": {[]Standing{made("a", 3*time.Hour, RolloutRunning, last)}, "", ""},
		"it was cancelled otherwise":         {[]Standing{made("a", 3*time.Hour, RolloutPaused, canceled)}, "", ""},
		"it runs the image by now":           {[]Standing{older, made("c", time.Hour, RolloutAborted, canceled)}, "of a", ""},
		"it runs the newer one's":            {[]Standing{older, made("c", time.Hour, RolloutAborted, canceled)}, "of c", "a"},
		"of two that made way the newer":     {[]Standing{older, made("b", 2*time.Hour, RolloutRunning, madeWay("c")), made("c", time.Hour, RolloutAborted, canceled)}, "", "b"},
		"the newer of two has ended":         {[]Standing{older, made("b", 2*time.Hour, RolloutAborted, madeWay("c")), made("c", time.Hour, RolloutAborted, canceled)}, "", "a"},
		"another newer one has it":           {[]Standing{older, made("b", 2*time.Hour, RolloutRunning, Execution{Status: Queued}), made("c", time.Hour, RolloutAborted, canceled)}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, e := range LetGo(c.list, c.runs, now) {
				if !e.RetryAt.Equal(now) || e.Status != Canceled {
					t.Errorf("%+v", e)
				}
				got += e.RolloutID
			}
			if got != c.want {
				t.Errorf("again: %q, want %q", got, c.want)
			}
		})
	}
}

// TestLetGoProperty: whatever stands on a device, at most one attempt of a firmware is
// made again, no finished one is opened, and asking again changes nothing.
func TestLetGoProperty(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		var list []Standing
		for i := range rapid.IntRange(1, 5).Draw(t, "rollouts") {
			r := Rollout{
				ID: string(rune('a' + i)), Release: ReleaseID{Name: "gw", Version: "1"}, Priority: rapid.IntRange(0, 1).Draw(t, "priority"),
				State: rapid.SampledFrom(RolloutStates).Draw(t, "state"), CreatedAt: now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "age")) * time.Hour),
			}
			e := Execution{RolloutID: r.ID, Attempt: rapid.IntRange(1, MaxAttempts).Draw(t, "attempt"), Status: rapid.SampledFrom(Statuses).Draw(t, "status")}
			if e.Status == Canceled && rapid.Bool().Draw(t, "made way") {
				e.Details = map[string]string{DetailReason: SupersededReason + "z"}
			}
			list = append(list, Standing{Execution: e, Rollout: r})
		}
		changed := LetGo(list, "", now)
		for _, e := range changed {
			i := int(e.RolloutID[0] - 'a')
			before := list[i].Execution
			if before.RetryAt = now; before.Status != Canceled || e.Status != before.Status || e.Version != before.Version {
				t.Fatalf("%+v became %+v", list[i].Execution, e)
			}
			for _, o := range list {
				if o.Rollout.Supersedes(list[i].Rollout) && o.Status != Canceled && o.Status != Removed {
					t.Fatalf("%s is made again under %s, which is %s there", e.RolloutID, o.RolloutID, o.Status)
				}
			}
			for _, o := range changed {
				if list[o.RolloutID[0]-'a'].Rollout.Supersedes(list[i].Rollout) {
					t.Fatalf("both %s and %s are made again", e.RolloutID, o.RolloutID)
				}
			}
			list[i].Execution = e
		}
		if again := LetGo(list, "", now); len(again) > 0 {
			t.Fatalf("asked again: %+v", again)
		}
	})
}
