package fleet_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// installs has a device do its next job, and say so as the agent does: first what
// it runs, then how it went.
func (w *world) installs(device string, r ota.Release) {
	w.t.Helper()
	e, err := w.s.StartNext(w.ctx, device, ota.Starting{})
	w.ok(err)
	w.runs(device, r.ImageDigest)
	<-time.After(time.Second)
	_, err = w.s.Report(w.ctx, ota.Report{RolloutID: e.RolloutID, DeviceID: device, Status: ota.Succeeded})
	w.ok(err)
	<-time.After(time.Second)
	synctest.Wait()
}

// history is the kinds of what otad wrote into the history of a device, oldest
// first.
func (w *world) history(device string) string {
	w.t.Helper()
	events, _, err := w.s.Events(w.ctx, device, 0, 100)
	w.ok(err)
	var kinds []string
	for _, e := range events {
		kinds = append([]string{strings.TrimPrefix(e.Kind, "rollout-")}, kinds...)
	}
	return strings.Join(kinds, " ")
}

// TestDrift: a device that falls back after its success is seen, counts no more
// as a success, and gets the image again.
func TestDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(2, "rpi4")
		old, r := w.release("1.0"), w.release("2.0")
		for _, id := range ids {
			w.runs(id, old.ImageDigest)
		}
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		plan := ota.Rollout{Release: r.ID(), Stages: w.stages("100%"), Terms: ota.Terms{Retry: ota.Retry{Attempts: 2, Backoff: time.Minute}}}
		plan.Stages[0].Soak = time.Hour
		v, err := w.s.CreateRollout(w.ctx, plan)
		w.ok(err)
		for _, id := range ids {
			w.installs(id, r)
		}
		class := func(device string, want ota.Class) ota.Execution {
			t.Helper()
			<-time.After(time.Second) // looks come no closer than they may
			synctest.Wait()
			e, err := w.s.Execution(w.ctx, v.ID, device)
			w.ok(err)
			if e.Class != want {
				t.Fatalf("%s: class %q, want %q: %+v", device, e.Class, want, e)
			}
			from, drifted, err := w.s.DriftOf(w.ctx, device)
			w.ok(err)
			if drifted != (want == ota.ClassDrifted) || drifted && (from.RolloutID != v.ID || from.Attempt != e.Attempt) {
				t.Fatalf("%s has drifted: %v, from %+v", device, drifted, from)
			}
			return e
		}
		stage := func(want ota.StageState) {
			t.Helper()
			r, err := w.s.Rollout(w.ctx, v.ID)
			w.ok(err)
			if r.Stages[0].State != want {
				t.Fatalf("stage is %s, want %s: %+v", r.Stages[0].State, want, r.Progress)
			}
		}
		stage(ota.StageSoaking)

		w.runs(ids[0], r.ImageDigest) // connects again
		class(ids[0], ota.ClassSucceeded)
		w.runs(ids[0], old.ImageDigest)
		if e := class(ids[0], ota.ClassDrifted); e.RetryAt.IsZero() || e.Status != ota.Succeeded {
			t.Fatalf("drifted: %+v", e)
		}
		stage(ota.StageOpen) // its gate is not met any more
		list, err := w.s.Why(w.ctx, ids[0])
		w.ok(err)
		if len(list) != 1 || !strings.Contains(list[0].Why, "attempt 1 ended drifted: runs another image since") || list[0].Until.IsZero() {
			t.Fatalf("why: %+v", list)
		}
		<-time.After(2 * time.Minute)
		w.installs(ids[0], r)
		if e := class(ids[0], ota.ClassSucceeded); e.Attempt != 2 {
			t.Fatalf("attempt %d", e.Attempt)
		}
		stage(ota.StageSoaking)
		w.runs(ids[0], old.ImageDigest) // once too often
		if e := class(ids[0], ota.ClassDrifted); !e.RetryAt.IsZero() {
			t.Fatalf("attempts are over: %+v", e)
		}
		stage(ota.StageFailed)
		<-time.After(time.Second)
		w.runs(ids[0], r.ImageDigest) // somebody flashed it
		class(ids[0], ota.ClassSucceeded)
		if got := w.history(ids[0]); got != "drifted drifted returned" {
			t.Errorf("history: %s", got)
		}
		if got := w.history(ids[1]); got != "" {
			t.Errorf("history of the other one: %s", got)
		}
		_, err = w.s.ResumeRollout(w.ctx, v.ID, ota.ResumeSkip)
		w.ok(err)
		<-time.After(time.Minute)
		synctest.Wait()

		w.runs(ids[1], old.ImageDigest) // after the end: it is seen, and nothing reopens
		if e := class(ids[1], ota.ClassDrifted); !e.RetryAt.IsZero() {
			t.Fatalf("due again after the end: %+v", e)
		}
		ended, err := w.s.Rollout(w.ctx, v.ID)
		w.ok(err)
		if ended.State != ota.RolloutCompleted || ended.Progress.Stages[0].Of(ota.ClassDrifted) != 1 {
			t.Errorf("%s, %+v", ended.State, ended.Progress.Stages[0])
		}
		if list, err = w.s.Why(w.ctx, ids[1]); err != nil || len(list) != 1 || !strings.Contains(list[0].Why, "runs another image since") {
			t.Errorf("why: %+v %v", list, err)
		}
	})
}

// TestImageByOtherMeans: a device that got the image otherwise while its turn
// waited does not install it again.
func TestImageByOtherMeans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		id := w.enroll(1, "rpi4")[0]
		r := w.release("2.0")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Stages: w.stages("100%")})
		w.ok(err)
		synctest.Wait()
		w.notes.take(id)
		<-time.After(time.Second)
		w.runs(id, r.ImageDigest)
		synctest.Wait()
		e, err := w.s.Execution(w.ctx, v.ID, id)
		w.ok(err)
		if e.Status != ota.Succeeded || e.Reason() != ota.ArrivedReason {
			t.Fatalf("%s: %s", e.Status, e.Reason())
		}
		if said := w.notes.take(id); said != "jobs, next none" {
			t.Errorf("it was told %q", said)
		}
		if got := w.history(id); got != "arrived" {
			t.Errorf("history: %s", got)
		}
	})
}

// TestLooksInBatches: of many that come back at once, each is looked at.
func TestLooksInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("2.0")
		const n = 3*fleet.MaxLooked + 1
		for i := range n {
			w.ok(w.store.CreateDevice(w.ctx, fleet.Device{ID: fmt.Sprintf("d%04d", i), Hardware: "rpi4"}))
		}
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Stages: w.stages("100%")})
		w.ok(err)
		<-time.After(time.Second)
		for i := range n {
			w.runs(fmt.Sprintf("d%04d", i), r.ImageDigest)
		}
		stop := w.background(w.s.RunLooks)
		defer stop()
		synctest.Wait()
		p, err := w.store.Progress(w.ctx, v.Rollout, w.s.Now())
		w.ok(err)
		if got := p.Stages[0].Of(ota.ClassSucceeded); got != n {
			t.Errorf("%d of %d have it", got, n)
		}
	})
}
