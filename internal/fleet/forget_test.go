package fleet_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

func (w *world) forget(id string) {
	w.t.Helper()
	w.ok(w.s.DeleteDevice(w.ctx, fleet.Deletion{DeviceID: id}))
}

// Whoever has the certificate of a deleted device is out for good; another device
// may have its id.
func TestDeletedDeviceStaysOut(t *testing.T) {
	w := newWorld(t)
	request := csr(t, "gw-1")
	enrollment := fleet.Enrollment{DeviceID: "gw-1", Hardware: "h", Secret: w.token(fleet.EnrollmentToken{Uses: 9}), CSR: request}
	old, err := w.s.Enroll(w.ctx, enrollment)
	w.ok(err)
	w.forget("gw-1")
	if got := w.notes.ended(); !slices.Equal(got, []string{"gw-1"}) {
		t.Errorf("sessions ended: %v", got)
	}
	_, err = w.s.AdmitCertificate(w.ctx, w.certificate(old.Certificate))
	w.wantErr(err, fleet.ErrDenied)
	_, err = w.s.Renew(w.ctx, "gw-1", request)
	w.wantErr(err, fleet.ErrDenied)
	_, err = w.s.Enroll(w.ctx, enrollment)
	w.wantErr(err, fleet.ErrDenied)
	if !strings.Contains(err.Error(), "make a new key") {
		t.Errorf("no remedy: %v", err)
	}
	enrollment.CSR = csr(t, "gw-1")
	anew, err := w.s.Enroll(w.ctx, enrollment)
	w.ok(err)
	_, err = w.s.AdmitCertificate(w.ctx, w.certificate(anew.Certificate))
	w.ok(err)
	_, err = w.s.AdmitCertificate(w.ctx, w.certificate(old.Certificate))
	w.wantErr(err, fleet.ErrDenied)
	_, list := w.lists()
	if got, want := serials(list), w.certificate(old.Certificate).SerialNumber.String(); !strings.Contains(got, want) {
		t.Errorf("%s is not in the list %s", want, got)
	}
	if got, unwanted := serials(list), w.certificate(anew.Certificate).SerialNumber.String(); strings.Contains(got, unwanted) {
		t.Errorf("the new certificate %s is in the list", unwanted)
	}
}

// A rollout neither waits for deleted devices nor counts them otherwise than it did.
func TestRolloutGoesOnWithoutDeletedDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("1.0")
		ids := w.enroll(4, "rpi4")
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: r.ID(), Stages: w.stages("50%,100%"), Seed: "s"})
		w.ok(err)
		w.opened(v.ID)
		var queued []string
		w.ok(w.s.Store.Executions(w.ctx, fleet.ExecutionFilter{RolloutID: v.ID}, func(e ota.Execution) bool {
			queued = append(queued, e.DeviceID)
			return true
		}))
		if len(queued) != 2 {
			t.Fatalf("executions on %v", queued)
		}
		gone := queued[0]
		e, err := w.s.StartNext(w.ctx, gone, ota.Starting{})
		w.ok(err)
		w.wantErr(w.s.DeleteDevice(w.ctx, fleet.Deletion{DeviceID: gone}), fleet.ErrConflict)
		w.ok(w.s.DeleteDevice(w.ctx, fleet.Deletion{DeviceID: gone, Force: true}))
		if _, err = w.s.Report(w.ctx, ota.Report{RolloutID: e.RolloutID, DeviceID: gone, Status: ota.Succeeded}); err == nil {
			t.Error("a report of a deleted device counts")
		}
		left := slices.DeleteFunc(ids, func(id string) bool { return id == gone })
		early := slices.IndexFunc(left, func(id string) bool { return !slices.Contains(queued, id) })
		w.forget(left[early]) // its turn has not come
		v = w.run(v.ID, 1, slices.Delete(left, early, early+1), succeed)
		if total := v.Progress.Total(); v.State != ota.RolloutCompleted || total.Finished[ota.ClassSucceeded] != 2 || total.Finished[ota.ClassNone] != 1 {
			t.Errorf("%s: %+v, want 2 that succeeded and 1 without a verdict", v.State, total)
		}
		if broken, err := w.store.Check(w.ctx); err != nil || len(broken) > 0 {
			t.Errorf("%v %v", broken, err)
		}
	})
}

// What was deleted while nobody could end its session is made up for at the start.
func TestDeletedWhileTheServerWasDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(3, "board")
		for _, id := range ids[:2] {
			w.ok(w.store.DeleteDevice(w.ctx, fleet.Deletion{DeviceID: id}, w.s.Now()))
		}
		time.Sleep(time.Hour)
		w.ok(w.store.CreateDevice(w.ctx, fleet.Device{ID: ids[1], Hardware: "board", CreatedAt: w.s.Now()})) // its session is its own
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.s.RunEvictions(ctx) }()
		synctest.Wait()
		if got := w.notes.ended(); !slices.Equal(got, ids[:1]) {
			t.Errorf("sessions ended: %v, want %v", got, ids[:1])
		}
		cancel()
		w.ok(<-done)
	})
}

// The bytes that a deleted device brought go with it.
func TestDeletedDeviceLeavesNoUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		id := w.enroll(1, "rpi4")[0]
		v := w.command("", ota.CommandCollectLogs, nil)
		w.opened(v.ID)
		_, err := w.s.StartNext(w.ctx, id, ota.Starting{})
		w.ok(err)
		w.ok(w.s.PutUpload(w.ctx, v.ID, id, 1, strings.NewReader("its log")))
		w.forget(id)
		if _, _, err := w.s.Upload(w.ctx, v.ID, id, 1); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("the upload: %v", err)
		}
	})
}

// To a continuous rollout, a device that comes anew is one that has come back: it gets
// what the one before it had not, and what it does not run.
func TestContinuousRolloutLetsDeletedDevicesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("2.0")
		w.made("a", "north")
		w.made("b", "north")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		v := w.continuous(r, ota.Terms{Retry: ota.Retry{Attempts: 3}}, "100%")
		w.rests()
		w.installs("a", r)
		w.rests()
		w.forget("a")
		w.forget("b")
		w.rests()
		if e := w.attempt(v.ID, "b"); e.Status != ota.Removed || e.Reason() != ota.DeletedReason {
			t.Errorf("b has %+v", e)
		}
		<-time.After(2 * time.Minute) // the soak
		if v = w.view(v.ID); v.State != ota.RolloutRunning || !v.Idle {
			t.Fatalf("it is %s, idle %v", v.State, v.Idle)
		}
		w.made("a", "north")
		w.made("b", "north")
		w.rests()
		if e := w.attempt(v.ID, "b"); e.Status != ota.Queued || e.Attempt != 2 {
			t.Errorf("b came anew, and has %+v", e)
		}
		w.runs("a", strings.Repeat("f", 64))
		w.rests()
		if e := w.attempt(v.ID, "a"); e.Status != ota.Queued || e.Attempt != 2 {
			t.Errorf("a came anew with other firmware, and has %+v", e)
		}
		if broken, err := w.store.Check(w.ctx); err != nil || len(broken) > 0 {
			t.Errorf("%v %v", broken, err)
		}
	})
}
