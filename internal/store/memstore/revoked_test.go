package memstore

import (
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// TestAStepDecidedBeforeADeviceWasRevoked: what it makes for the device does not
// wait for it for ever.
func TestAStepDecidedBeforeADeviceWasRevoked(t *testing.T) {
	ctx, now := t.Context(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := New()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(s.CreateDevice(ctx, fleet.Device{ID: "d", Hardware: "rpi4", CreatedAt: now}))
	_, err := s.CreateRelease(ctx, ota.Release{Manifest: ota.Manifest{Name: "gw", Version: "1"}})
	ok(err)
	r := ota.Rollout{
		ID: "r", Release: ota.ReleaseID{Name: "gw", Version: "1"}, State: ota.RolloutRunning, CreatedAt: now,
		Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StageOpen, Target: 1}},
	}
	ok(s.CreateRollout(ctx, r))
	ok(s.RevokeDevice(ctx, "d", now))
	ok(s.Advance(ctx, fleet.Advance{Rollout: r, Now: now, Insert: []ota.Execution{{RolloutID: "r", DeviceID: "d", Release: r.Release, Attempt: 1, Status: ota.Queued}}}))
	e, err := s.Execution(ctx, "r", "d")
	ok(err)
	if e.Status != ota.Removed || e.Reason() != fleet.RevokedReason {
		t.Errorf("%s: %s", e.Status, e.Reason())
	}
}
