package fleet_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// TestWhy walks a device through what can hold it.
func TestWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(2, "rpi4")
		other := w.enroll(1, "x86")[0]
		r := w.release("1.0")
		say := func(device, want string) fleet.Because {
			t.Helper()
			list, err := w.s.Why(w.ctx, device)
			w.ok(err)
			if len(list) != 1 || !strings.Contains(list[0].Why, want) {
				t.Fatalf("want %q in %+v", want, list)
			}
			return list[0]
		}
		plan := ota.Rollout{
			Release: r.ID(), Stages: w.stages("1,100%"), Selector: `hardware:*`,
			Terms: ota.Terms{Start: time.Now().Add(time.Hour), InFlight: ota.InFlight{Max: 1}, Timers: ota.Timers{Claim: time.Hour}, Retry: ota.Retry{Attempts: 2, Backoff: time.Hour}},
		}
		plan.Stages[0].Gate = ota.Gate{} // goes on whatever comes
		v, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		if b := say(ids[0], "the rollout is SCHEDULED"); !b.Until.Equal(plan.Terms.Start) {
			t.Errorf("until %v", b.Until)
		}
		say(other, "other hardware")
		stop := w.background(w.s.RunEngine)
		defer stop()
		<-time.After(time.Hour + time.Minute)
		synctest.Wait()
		first, second := ids[0], ids[1]
		if _, err := w.store.Execution(w.ctx, v.ID, first); err != nil {
			first, second = second, first
		}
		say(second, "waits for its turn: stage 1 of 2 is OPEN, 1 of 2 devices had theirs")
		const late = "late"
		secret := w.token(fleet.EnrollmentToken{Uses: 1, Hardware: "rpi4"})
		_, err = w.s.Enroll(w.ctx, fleet.Enrollment{DeviceID: late, Secret: secret, CSR: csr(w.t, late)})
		w.ok(err)
		say(late, "it enrolled after the rollout had begun")
		say(first, "never heard of")
		w.s.Seen(first, time.Now())
		w.s.Seen(second, time.Now())
		if b := say(first, "has not begun"); b.Until.IsZero() {
			t.Error("a claim without an end")
		}
		_, err = w.s.StartNext(w.ctx, first, ota.Starting{Details: map[string]string{ota.DetailStep: "waiting", ota.DetailReason: "window opens at two"}})
		w.ok(err)
		say(first, "at step waiting (window opens at two) since")
		_, err = w.s.PauseRollout(w.ctx, v.ID, "lunch", ota.PauseHoldBeforeInstall)
		w.ok(err)
		say(first, "waits before it activates")
		_, err = w.s.ResumeRollout(w.ctx, v.ID, "")
		w.ok(err)
		_, err = w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: first, Status: ota.Failed, Details: map[string]string{ota.DetailReason: "disk full"}})
		w.ok(err)
		if b := say(first, "attempt 1 ended failed: disk full: it is tried again"); b.Until.IsZero() {
			t.Error("a retry without a time")
		}
		<-time.After(2 * time.Hour) // the second attempt
		_, err = w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: first, Status: ota.Rejected, Details: map[string]string{ota.DetailClass: "x"}})
		w.ok(err)
		<-time.After(2 * time.Minute) // soak, then the second stage
		synctest.Wait()
		say(first, "attempt 2 ended rejected")
		say(second, "has not begun")
		_, err = w.s.UpdateShadow(w.ctx, late, "", shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"digest": r.ImageDigest}}))
		w.ok(err)
		say(late, "runs this image already")
		_, err = w.s.RevokeDevice(w.ctx, late)
		w.ok(err)
		say(late, "revoked")
	})
}
