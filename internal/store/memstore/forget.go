package memstore

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// deletedCertificate is one that a device had which was deleted.
type deletedCertificate struct {
	fleet.RevokedCertificate
	key string
}

// DeleteDevice implements fleet.DeviceStore.
func (s *Store) DeleteDevice(ctx context.Context, d fleet.Deletion, now time.Time) error {
	now = stored(now)
	return s.locked(ctx, func() error {
		if _, ok := s.devices[d.DeviceID]; !ok {
			return notFound("device %s", d.DeviceID)
		}
		for _, byDevice := range s.executions {
			if attempts := byDevice[d.DeviceID]; len(attempts) > 0 {
				last := attempts[len(attempts)-1]
				if err := d.Refuses(last.Under(s.rollouts[last.RolloutID])); err != nil {
					return err
				}
			}
		}
		s.remove(d.DeviceID, ota.DeletedReason, now)
		s.refuse(d.DeviceID, now)
		s.unpair(d.DeviceID)
		s.drop(d.DeviceID)
		return nil
	})
}

// remove ends what the device has to do.
func (s *Store) remove(id, reason string, now time.Time) {
	for _, byDevice := range s.executions {
		attempts := byDevice[id]
		if len(attempts) == 0 {
			continue
		}
		last := len(attempts) - 1
		e, _ := ota.Remove(attempts[last], reason, now)
		if told, moved := ota.Moved(attempts[last], e); moved {
			s.tell(told)
		}
		e.RetryAt = time.Time{}
		byDevice[id] = append(slices.Clone(attempts[:last]), e)
	}
}

// refuse keeps the device out.
func (s *Store) refuse(id string, now time.Time) {
	d := s.devices[id]
	at := now
	if last := s.evictions[id].At; !last.Before(at) {
		at = last.Add(time.Microsecond) // nobody has seen it yet
	}
	s.evictions[id] = fleet.Eviction{DeviceID: id, Reason: fleet.EvictedDeleted, At: at}
	maps.DeleteFunc(s.evictions, func(of string, e fleet.Eviction) bool {
		_, there := s.devices[of]
		return !there && e.At.Before(now.Add(-fleet.DeletionMemory))
	})
	maps.DeleteFunc(s.deleted, func(_ string, c deletedCertificate) bool { return !c.Ends.After(now) })
	revoked := d.RevokedAt
	if revoked.IsZero() {
		revoked = now
	}
	for serial, c := range s.certificates {
		if _, there := s.deleted[serial]; c.DeviceID == id && c.Ends.After(now) && !there {
			s.deleted[serial] = deletedCertificate{fleet.RevokedCertificate{Certificate: c, RevokedAt: revoked}, d.KeyFingerprint}
		}
	}
}

// freshKey reports a key that was that of a device which was deleted.
func (s *Store) freshKey(key string, now time.Time) error {
	var of []string
	for _, c := range s.deleted {
		if key != "" && c.key == key && c.Ends.After(now) {
			of = append(of, c.DeviceID)
		}
	}
	if len(of) == 0 {
		return nil
	}
	return fleet.DeletedKey(slices.Min(of))
}

// unpair has no rollout that compares devices wait for this one.
func (s *Store) unpair(id string) {
	for at, p := range s.pairs {
		if p.Outcomes == "" && (p.DeviceID == id || p.PartnerID == id) {
			p.PartnerID, p.Outcomes = "", fleet.PairAlone
			s.pairs[at] = p
		}
	}
	for rollout, byDevice := range s.executions {
		attempts := byDevice[id]
		if r := s.rollouts[rollout]; len(attempts) == 0 || len(r.Terms.Health.Signals) == 0 || !r.EndedAt.IsZero() {
			continue
		}
		e := attempts[len(attempts)-1]
		at := attempt{rollout, id, e.Attempt}
		if _, paired := s.pairs[at]; !paired && e.Status == ota.Succeeded && e.Class != ota.ClassUnderway {
			s.pairs[at] = fleet.Unpaired(e)
		}
	}
}

// drop drops the device with all that is its own.
func (s *Store) drop(id string) {
	for _, r := range s.rollouts {
		if _, ok := s.turn(r, id); r.Follows && ok {
			s.left[attempt{rollout: r.ID, device: id}] = true
		}
	}
	for at, u := range s.uploads {
		if u.DeviceID == id {
			u.At, u.Bytes = time.UnixMicro(0).UTC(), fleet.UploadBegun
			s.uploads[at] = u
		}
	}
	for _, g := range s.groups {
		delete(g.members, id)
	}
	for _, devices := range s.relooks {
		delete(devices, id)
	}
	maps.DeleteFunc(s.shadows, func(k shadowKey, _ shadow.Document) bool { return k.device == id })
	maps.DeleteFunc(s.provisioned, func(_ string, p provisioned) bool { return p.device == id })
	maps.DeleteFunc(s.certificates, func(_ string, c fleet.Certificate) bool { return c.DeviceID == id })
	delete(s.events, id)
	delete(s.credentials, id)
	delete(s.marks, id)
	delete(s.devices, id)
}
