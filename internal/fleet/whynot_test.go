package fleet_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// says holds what is said of a device and the rollout against what is wanted: the
// cause, and parts of the reason and the remedy.
func (w *world) says(device, rollout string, cause fleet.Cause, why, remedy string) fleet.Because {
	w.t.Helper()
	list, err := w.s.Why(w.ctx, device)
	w.ok(err)
	for _, b := range list {
		if b.Rollout.ID != rollout {
			continue
		}
		if b.Cause != cause || !strings.Contains(b.Why, why) || !strings.Contains(b.Remedy, remedy) || strings.ContainsAny(b.Remedy, "{}") {
			w.t.Errorf("want %s: %q, do %q;\n got %s: %s\n\tdo: %s", cause, why, remedy, b.Cause, b.Why, b.Remedy)
		}
		return b
	}
	w.t.Errorf("nothing is said of %s: %+v", rollout, list)
	return fleet.Because{}
}

// TestWhyNothingWasGiven walks devices through what keeps a rollout from giving them
// anything.
func TestWhyNothingWasGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two, three, need := w.release("1.0"), w.release("2.0"), w.release("3.0"), w.needing("4.0", "3.0")
		for _, id := range []string{"a", "b", "c", "d"} {
			w.made(id, "north")
			w.runs(id, strings.Repeat("ab", 32))
		}
		other := w.enroll(1, "x86")[0]
		again := func(r ota.Release, device string) string {
			return "otactl rollout create --firmware " + r.ID().String() + ` --select 'id = "` + device + `"'`
		}
		create := func(r ota.Rollout) string {
			t.Helper()
			if r.Stages == nil {
				r.Stages = w.stages("100%")
			}
			v, err := w.s.CreateRollout(w.ctx, r)
			w.ok(err)
			return v.ID
		}
		abort := func(id string) {
			t.Helper()
			_, err := w.s.AbortRollout(w.ctx, id, "enough", ota.AbortKeep)
			w.ok(err)
		}
		finish := func(rollout, device string, r ota.Report) {
			t.Helper()
			r.RolloutID, r.DeviceID = rollout, device
			_, err := w.s.Report(w.ctx, r)
			w.ok(err)
		}

		draft := create(ota.Rollout{Release: one.ID(), State: ota.RolloutDraft, Terms: ota.Terms{Approval: true}})
		w.says("a", draft, fleet.CauseDraft, "DRAFT", "otactl rollout submit "+draft)
		_, err := w.s.SubmitRollout(w.ctx, draft)
		w.ok(err)
		w.says("a", draft, fleet.CauseApproval, "AWAITING_APPROVAL", "otactl rollout approve "+draft+" --revision 1")
		abort(draft)
		w.says("a", draft, fleet.CauseEnded, "ABORTED: enough", again(one, "a"))
		start := time.Now().Add(time.Hour)
		later := create(ota.Rollout{Release: one.ID(), Terms: ota.Terms{Start: start}})
		if b := w.says("a", later, fleet.CauseScheduled, "SCHEDULED", "nothing to do: it starts by itself at 2000-01-01T01"); !b.Until.Equal(start) {
			t.Errorf("until %v", b.Until)
		}
		_, err = w.s.PauseRollout(w.ctx, later, "not yet", "")
		w.ok(err)
		w.says("a", later, fleet.CausePaused, "PAUSED: not yet", "otactl rollout resume "+later)
		w.says(other, later, fleet.CauseHardware, "other hardware", "upload a release for hardware x86")
		abort(later)

		// By the stages of a rollout. The seed has d first, c next.
		staged := create(ota.Rollout{Release: one.ID(), Selector: `tags.site = "north"`, Seed: "s", Stages: []ota.Stage{
			{Size: ota.Size{Count: 1}, Gate: ota.Gate{Success: 1}, Soak: time.Hour, State: ota.StagePending},
			{Size: ota.Size{Count: 3}, Gate: ota.Gate{Success: 1}, Approval: true, State: ota.StagePending},
		}, Terms: ota.Terms{Rate: ota.Rate{PerMinute: 0.1}}})
		line, err := w.store.Candidates(w.ctx, staged, w.view(staged).Line, 0, 10)
		w.ok(err)
		first, second, third := line[0].DeviceID, line[1].DeviceID, line[2].DeviceID
		last := "a"
		for last == first || last == second || last == third {
			last = string(last[0] + 1)
		}
		w.says(other, staged, fleet.CauseNotSelected, "does not match", again(one, other))
		w.says(last, staged, fleet.CauseLate, "reach 3 of 4 devices", again(one, last))
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks, w.s.RunTimeouts)()
		w.rests()
		w.says(second, staged, fleet.CauseStage, "it is number 2 in line, in stage 2", "otactl rollout devices "+staged+" --active")
		finish(staged, first, ota.Report{Status: ota.Succeeded})
		w.rests()
		w.says(second, staged, fleet.CauseSoak, "stage 1 of 2 is SOAKING", "opens by itself at 2000-01-01T01:")
		<-time.After(time.Hour + time.Minute)
		w.rests()
		w.says(second, staged, fleet.CauseStageApproval, "stage 2 awaits its approval", "otactl rollout approve "+staged+" --stage 2")
		_, err = w.s.ApproveRollout(w.ctx, staged, 2, 0)
		w.ok(err)
		w.rests()
		if b := w.says(third, staged, fleet.CauseRate, "the rate is 0.1/m", "at the earliest at"); b.Until.Before(time.Now().Add(5*time.Minute)) || b.Until.After(time.Now().Add(time.Hour)) {
			t.Errorf("until %v", b.Until)
		}
		finish(staged, second, ota.Report{Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(ota.ClassRolledBack)}})
		w.runs(third, one.ImageDigest)
		<-time.After(20 * time.Minute)
		w.says(third, staged, fleet.CauseCurrent, "runs this image already", "nothing to do")
		w.runs(third, strings.Repeat("ab", 32))
		w.says(second, staged, fleet.CauseStageFailed, "rolled_back; the rollout is PAUSED", "--failed-stage repeat")
		_, err = w.s.ResumeRollout(w.ctx, staged, ota.ResumeSkip)
		w.ok(err)
		w.rests()
		quarantined := create(ota.Rollout{Release: one.ID(), Priority: -1})
		w.rests()
		w.says(second, quarantined, fleet.CauseQuarantined, "went back", again(one, second)+" --quarantined")
		abort(quarantined)
		w.rests()

		// Beside newer ones. What a withdrawn release is, and what needs another.
		lost := create(ota.Rollout{Release: two.ID(), Seed: "s", Stages: w.stages("1,100%"), Selector: `tags.site = "north"`})
		w.rests()
		newer := create(ota.Rollout{Release: three.ID(), Selector: `id = "` + last + `"`})
		w.rests()
		w.says(last, lost, fleet.CausePassedBy, "there it is QUEUED", "the newer rollout "+newer)
		finish(newer, last, ota.Report{Status: ota.Failed})
		w.rests()
		abort(newer)
		w.rests()
		w.says(last, lost, fleet.CausePassedByFailed, "there it ended failed", again(two, last))
		abort(lost)
		w.rests()
		for _, id := range []string{"b", "c", "d"} {
			w.runs(id, three.ImageDigest)
		}
		needy := create(ota.Rollout{Release: need.ID(), State: ota.RolloutDraft})
		w.says("a", needy, fleet.CauseNeedsVersion, "gw@4.0 needs gw 3.0 or newer", "do what the reason says")
		abort(needy)
		w.rests()
		w.says("b", needy, fleet.CauseEnded, "ABORTED: enough", again(need, "b"))

		// Who could not take it when its turn came, and who came later.
		passing := create(ota.Rollout{Release: two.ID(), Selector: `tags.site = "north"`})
		w.runs("a", two.ImageDigest)
		w.rests()
		w.runs("a", one.ImageDigest)
		w.made("e", "north")
		w.rests()
		w.says("e", passing, fleet.CauseLate, "enrolled after", "with --continuous takes those who come later")
		_, err = w.s.RevokeDevice(w.ctx, "e")
		w.ok(err)
		w.says("e", passing, fleet.CauseRevoked, "revoked", "otactl device delete e")
		_, err = w.s.WithdrawRelease(w.ctx, two.ID(), "hangs", ota.AbortKeep, nil)
		w.ok(err)
		w.made("f", "north")
		w.says("f", passing, fleet.CauseWithdrawn, "release gw@2.0 is withdrawn: hangs", "roll out another version")
	})
}

// TestWhyATurnIsLost: it came while the device ran the image.
func TestWhyATurnIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.release("1.0")
		w.made("a", "north")
		w.made("b", "north")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: one.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Rate: ota.Rate{PerMinute: 0.1}}})
		w.ok(err)
		line, err := w.store.Candidates(w.ctx, v.ID, w.view(v.ID).Line, 1, 1)
		w.ok(err)
		second := line[0].DeviceID
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		w.says(second, v.ID, fleet.CauseRate, "1 of 2 devices had theirs; it is number 2 in line", "nothing to do")
		w.runs(second, one.ImageDigest)
		<-time.After(time.Hour)
		w.runs(second, strings.Repeat("ab", 32))
		w.rests()
		w.says(second, v.ID, fleet.CauseTurnLost, "and could not take the release then", "otactl rollout create")
	})
}

// TestWhyOfContinuousRolloutsAndReverts: what these say of devices that they leave alone.
func TestWhyOfContinuousRolloutsAndReverts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		w.made("a", "north")
		w.made("b", "north")
		w.runs("a", one.ImageDigest)
		w.runs("b", strings.Repeat("ab", 32))
		stop := w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)
		older := w.continuous(one, ota.Terms{}, "100%")
		w.rests()
		newer, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Continuous: true, OnAbort: ota.AbortRevert}})
		w.ok(err)
		w.rests()
		stop()
		w.made("c", "south")
		w.says("c", older.ID, fleet.CauseJoinsWhenSelected, "it joins when it does", "otactl rollout show "+older.ID)
		w.says("c", newer.ID, fleet.CauseJoins, "about to join", "nothing to do")
		w.made("d", "south")
		w.runs("d", two.ImageDigest) // before anybody looks at it
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		w.rests()
		w.moved("d", "north")
		w.rests()
		w.says("d", older.ID, fleet.CauseAwaits, "it runs what rollout "+newer.ID, "otactl rollout finish "+newer.ID)
		w.says("b", older.ID, fleet.CauseSuperseded, "superseded by rollout "+newer.ID, "the newer rollout "+newer.ID)
		w.installs("a", two)
		_, err = w.s.AbortRollout(w.ctx, newer.ID, "bad", "")
		w.ok(err)
		w.rests()
		list, err := w.store.Rollouts(w.ctx)
		w.ok(err)
		for _, r := range list {
			if r.RevertOf == newer.ID {
				w.says("b", r.ID, fleet.CauseNotReturned, "has not changed the device", "nothing to do")
				return
			}
		}
		t.Error("nobody goes back")
	})
}

// TestWhyOfADriftThatIsMoot: ended rollouts that a device has drifted from are not listed,
// with a command to repeat them, where another brings the release or a newer one.
func TestWhyOfADriftThatIsMoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		zero, one, two := w.release("0.9"), w.release("1.0"), w.release("2.0")
		w.made("a", "north")
		w.runs("a", zero.ImageDigest)
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		create := func(r ota.Release, terms ota.Terms) string {
			t.Helper()
			v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Stages: w.stages("100%"), Terms: terms})
			w.ok(err)
			w.rests()
			return v.ID
		}
		listed := func(want ...string) {
			t.Helper()
			list, err := w.s.Why(w.ctx, "a")
			w.ok(err)
			var got []string
			for _, b := range list {
				got = append(got, b.Rollout.ID)
				if strings.Contains(b.Remedy, "rollout create") && b.Cause != fleet.CauseDrifted {
					t.Errorf("%s: do %s", b.Rollout.ID, b.Remedy)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("listed %v, want %v: %+v", got, want, list)
			}
		}
		drifts := func(r ota.Release) string {
			t.Helper()
			id := create(r, ota.Terms{})
			w.installs("a", r)
			<-time.After(time.Hour) // its soak
			w.rests()
			w.runs("a", zero.ImageDigest)
			w.rests()
			if e := w.attempt(id, "a"); e.Class != ota.ClassDrifted || !w.view(id).State.Terminal() {
				t.Fatalf("%s: %s, rollout %s", id, e.Class, w.view(id).State)
			}
			return id
		}
		first := drifts(one)
		listed(first)
		second := drifts(two)
		listed(second) // one command is enough
		third := drifts(two)
		listed(third)
		old := create(one, ota.Terms{Approval: true})
		listed(old, third) // an older release does not bring back the newer one
		w.says("a", third, fleet.CauseDrifted, "only records it", "otactl rollout create --firmware gw@2.0")
		_, err := w.s.AbortRollout(w.ctx, old, "enough", "")
		w.ok(err)
		live := create(two, ota.Terms{Start: time.Now().Add(time.Hour)})
		_, err = w.s.PauseRollout(w.ctx, live, "lunch", "")
		w.ok(err)
		listed(live)
		w.says("a", live, fleet.CausePaused, "lunch", "otactl rollout resume "+live)
		newer := create(w.release("3.0"), ota.Terms{Approval: true, Start: time.Now().Add(time.Hour)})
		_, err = w.s.AbortRollout(w.ctx, live, "enough", "")
		w.ok(err)
		listed(newer)
		_, err = w.s.AbortRollout(w.ctx, newer, "enough", "")
		w.ok(err)
		fourth := create(two, ota.Terms{})
		w.installs("a", two)
		<-time.After(time.Hour)
		w.rests()
		if !w.view(fourth).State.Terminal() {
			t.Fatal(w.view(fourth).State)
		}
		listed() // it runs what it has drifted from before
	})
}

// TestWhyOfOtherHardware: what is for other hardware is said where there is no more to
// say, or the operator's selector means the device.
func TestWhyOfOtherHardware(t *testing.T) {
	w := newWorld(t)
	r := w.release("1.0")
	other := w.enroll(1, "x86")[0]
	w.made("a", "north")
	create := func(selector string) string {
		t.Helper()
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Selector: selector, Stages: w.stages("100%")})
		w.ok(err)
		return v.ID
	}
	all := create("")
	w.says(other, all, fleet.CauseHardware, "other hardware", "upload a release")
	meant := create("hardware:*")
	w.says(other, meant, fleet.CauseHardware, "other hardware", "upload a release")
	if list, err := w.s.Why(w.ctx, other); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v; want %s alone", list, err, meant)
	}
}

// TestWhyUnderAShutWindow: whose turn comes, and who has it and does not begin, hears of
// the window, by the device's own time zone.
func TestWhyUnderAShutWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one := w.release("1.0")
		w.made("a", "north")
		w.made("b", "north")
		w.made("c", "north")
		window, err := ota.ParseWindow("FREQ=DAILY;BYHOUR=14 for 1h")
		w.ok(err)
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: one.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Rate: ota.Rate{PerMinute: 0.1}, Window: window}})
		w.ok(err)
		stop := w.background(w.s.RunEngine)
		w.rests()
		stop()
		line, err := w.store.Candidates(w.ctx, v.ID, w.view(v.ID).Line, 0, 3)
		w.ok(err)
		first, second, third := line[0].DeviceID, line[1].DeviceID, line[2].DeviceID
		zone := func(name string) {
			t.Helper()
			for _, id := range []string{first, second, third} {
				_, err := w.s.UpdateShadow(w.ctx, id, "", shadow.NewUpdate(nil, map[string]any{"timezone": name}))
				w.ok(err)
			}
		}
		const unknown = "2000-01-01T14:00:00Z (UTC), if the device's clock is in that time zone: it has not said its own"
		w.says(second, v.ID, fleet.CauseRate, "the rate is 0.1/m; its window (FREQ=DAILY;BYHOUR=14 for 1h) is shut and opens at "+unknown, "at the earliest at")
		zone("../../etc/passwd")
		w.says(second, v.ID, fleet.CauseRate, unknown, "")
		zone("Europe/Berlin")
		const berlin = "; its window (FREQ=DAILY;BYHOUR=14 for 1h) is shut and opens at 2000-01-01T14:00:00+01:00 (Europe/Berlin)"
		w.says(second, v.ID, fleet.CauseRate, berlin, "")
		w.says(first, v.ID, fleet.CauseNeverSeen, "never heard of"+berlin, "")
		w.s.Seen(first, time.Now())
		w.says(first, v.ID, fleet.CauseTold, "has not begun"+berlin, "")

		<-time.After(13*time.Hour + 30*time.Minute) // half past two in Berlin
		for _, id := range []string{first, second, third} {
			if list, err := w.s.Why(w.ctx, id); err != nil || len(list) != 1 || strings.Contains(list[0].Why, "window") {
				t.Errorf("%+v, %v", list, err)
			}
		}
		<-time.After(25 * time.Minute) // the turn comes when it is shut
		w.says(third, v.ID, fleet.CauseRate, "is shut and opens at 2000-01-02T14:00:00+01:00", "")
		if list, err := w.s.Why(w.ctx, first); err != nil || strings.Contains(list[0].Why, "window") {
			t.Errorf("%+v, %v", list, err)
		}
	})
}
