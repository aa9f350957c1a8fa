package fleet_test

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// TestWhoIsToldWhat: the list of jobs is sent when one comes or goes, what is
// next when that becomes another one, and nothing for what a device does with
// the one it has.
func TestWhoIsToldWhat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := w.enroll(1, "rpi4")[0]
		defer w.background(w.s.RunEngine, w.s.RunNotifier)()
		said := func(what, want string) {
			t.Helper()
			synctest.Wait()
			if got := w.notes.take(d); got != want {
				t.Errorf("%s: told %q, want %q", what, got, want)
			}
		}
		ids := map[string]string{}
		roll := func(version string, priority int) {
			t.Helper()
			<-time.After(time.Second)   // virtual: the order is by age
			w.name = "fw" + version[:1] // of one name, a later one would supersede
			w.release(version)
			v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: w.name, Version: version}, Stages: w.stages("100%"), Priority: priority})
			w.ok(err)
			ids[version] = v.ID
		}
		report := func(version string, status ota.Status) {
			t.Helper()
			_, err := w.s.Report(w.ctx, ota.Report{RolloutID: ids[version], DeviceID: d, Status: status})
			w.ok(err)
		}
		roll("1.0", 0)
		said("the first", "jobs 1.0, next 1.0")
		roll("2.0", 0)
		said("another behind it", "jobs 1.0 2.0")
		_, err := w.s.StartNext(w.ctx, d, ota.Starting{})
		w.ok(err)
		said("start-next", "")
		report("1.0", ota.InProgress)
		said("progress", "")
		roll("3.0", 9)
		said("an urgent one, while one is in progress", "jobs 1.0 3.0 2.0")
		report("1.0", ota.Succeeded)
		said("finished", "jobs 3.0 2.0, next 3.0")
		_, err = w.s.PauseRollout(w.ctx, ids["3.0"], "", "")
		w.ok(err)
		said("the next one is held back", "jobs 2.0, next 2.0")
		_, err = w.s.ResumeRollout(w.ctx, ids["3.0"], "")
		w.ok(err)
		said("and let go again", "jobs 3.0 2.0, next 3.0")
		_, err = w.s.PauseRollout(w.ctx, ids["2.0"], "", "")
		w.ok(err)
		said("one behind it is held back", "jobs 3.0")
		_, err = w.s.ResumeRollout(w.ctx, ids["2.0"], "")
		w.ok(err)
		said("and let go", "jobs 3.0 2.0")
		report("2.0", ota.InProgress)
		said("the device begins another than the next", "next 2.0")
		_, err = w.s.PauseRollout(w.ctx, ids["2.0"], "", ota.PauseHoldBeforeInstall)
		w.ok(err)
		said("what it works on is held", "jobs 2.0 3.0, next 2.0")
		_, err = w.s.ResumeRollout(w.ctx, ids["2.0"], "")
		w.ok(err)
		said("and goes on", "jobs 2.0 3.0, next 2.0")
		_, err = w.s.PauseRollout(w.ctx, ids["2.0"], "", ota.PauseLetFinish)
		w.ok(err)
		said("paused, it may finish", "")
		_, err = w.s.PauseRollout(w.ctx, ids["2.0"], "", ota.PauseHoldBeforeInstall)
		w.ok(err)
		said("and is held after all", "jobs 2.0 3.0, next 2.0")
		_, err = w.s.AbortRollout(w.ctx, ids["2.0"], "", "")
		w.ok(err)
		said("aborted, it goes on: whether it has activated is not known", "jobs 2.0 3.0, next 2.0")
		_, err = w.s.AbortRollout(w.ctx, ids["3.0"], "", "")
		w.ok(err)
		said("aborted while another is in progress", "jobs 2.0")
		report("2.0", ota.Failed)
		said("nothing is left", "jobs, next none")
		roll("4.0", 1)
		roll("5.0", 0)
		said("two more", "jobs 4.0, next 4.0, jobs 4.0 5.0")
		report("5.0", ota.Rejected)
		said("refused before it was its turn", "jobs 4.0")
		roll("6.0", 0)
		said("one more", "jobs 4.0 6.0")
		_, err = w.s.AbortRollout(w.ctx, ids["6.0"], "", "")
		w.ok(err)
		said("aborted behind the next", "jobs 4.0")
		_, err = w.s.PauseRollout(w.ctx, ids["4.0"], "", "")
		w.ok(err)
		said("held back", "jobs, next none")
		_, err = w.s.AbortRollout(w.ctx, ids["4.0"], "", "")
		w.ok(err)
		said("aborted when it was held back already", "jobs, next none") // again
		roll("7.0", 0)
		said("the last", "jobs 7.0, next 7.0")
		_, err = w.s.RevokeDevice(w.ctx, d)
		w.ok(err)
		said("revoked", "jobs, next none")
	})
}

// TestAReplicaThatDiesLeavesNobodyUntold: what a replica was about to tell lies in
// its memory, so another tells everybody when it has fallen silent.
func TestAReplicaThatDiesLeavesNobodyUntold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := w.enroll(1, "rpi4")[0]
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunPresence)()
		w.release("1.0")
		_, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: w.name, Version: "1.0"}, Stages: w.stages("100%")})
		w.ok(err)
		other := fleet.New(fleet.Config{Store: w.s.Store, Publisher: &notes{}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		kill := w.background(other.RunPresence)
		said := func(what, want string, after time.Duration) {
			t.Helper()
			<-time.After(after) // virtual
			synctest.Wait()
			if got := w.notes.take(d); got != want {
				t.Errorf("%s: told %q, want %q", what, got, want)
			}
		}
		said("the rollout starts", "jobs 1.0, next 1.0", time.Second)
		said("the other lives", "", 3*fleet.SeenInterval)
		kill()
		said("it is not silent for long yet", "", fleet.ReplicaSilence/2)
		said("it is gone", "jobs 1.0, next 1.0", fleet.ReplicaSilence+fleet.SeenInterval)
		said("that was it", "", 2*fleet.ReplicaSilence)
	})
}
