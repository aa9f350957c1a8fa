package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Deletion says which device is to be forgotten.
type Deletion struct {
	DeviceID string
	// Force also deletes a device that is in the middle of an install.
	Force bool
}

// DeletionMemory is how long a store remembers that a device was deleted, for the
// sake of an otad that was down meanwhile and has its session: longer than any
// session lives.
const DeletionMemory = 8 * 24 * time.Hour

// Refuses reports whether what the device is at keeps it from being deleted.
func (d Deletion) Refuses(e ota.Execution) error {
	if d.Force || e.Status != ota.InProgress || e.Command != nil {
		return nil
	}
	return fmt.Errorf("%w: device %s is in the middle of installing %s (rollout %s): wait until that has ended, or delete it all the same by force (--force)", ErrConflict, d.DeviceID, e.Release, e.RolloutID)
}

// DeletedKey is why a key of a deleted device lets nobody in.
func DeletedKey(deviceID string) error {
	return fmt.Errorf("%w: the key is that of device %s, which was deleted: make a new key and enroll with that", ErrDenied, deviceID)
}

// DeleteDevice forgets a device: its shadows, tags, groups, credentials and events,
// its sessions with what waits in them, and what it uploaded. What it was about to do
// is REMOVED; what it did stays in the rollouts that it had part in. Its
// certificates stay refused until they end. The id may be enrolled anew, with
// another key. ErrConflict: see Deletion.
func (s *Service) DeleteDevice(ctx context.Context, d Deletion) error {
	if err := s.Store.DeleteDevice(ctx, d, s.Now()); err != nil {
		return err
	}
	s.presence.forget(d.DeviceID)
	s.signals.raise(revocation)
	s.evictNow(d.DeviceID, EvictedDeleted)
	s.Wake() // a stage may have waited for it
	s.logger(ctx).Info("device deleted", "device", d.DeviceID, "forced", d.Force)
	if err := s.SweepUploads(ctx); err != nil {
		s.Log.Warn("uploads of a deleted device were not dropped, trying again later", "device", d.DeviceID, "error", err)
	}
	return nil
}

// forget drops what was heard of a device.
func (p *presence) forget(deviceID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.live, deviceID)
	delete(p.seen, deviceID)
	delete(p.heard, deviceID)
}
