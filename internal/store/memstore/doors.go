package memstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
)

type provisioned struct {
	device string
	at     time.Time
}

// Provision implements fleet.DeviceStore.
func (s *Store) Provision(ctx context.Context, d fleet.Device, c fleet.BoundCertificate, tokenID string, now time.Time) (fleet.Device, error) {
	now = stored(now)
	err := s.locked(ctx, func() (err error) {
		p, exists := s.provisioned[c.ID]
		if exists && p.device != d.ID {
			return fmt.Errorf("certificate %s stands for another device: %w", c.ID, fleet.ErrDenied)
		}
		d, err = s.enroll(d, func() (fleet.EnrollmentToken, error) { return s.token(tokenID) }, now)
		if err != nil {
			return err
		}
		s.putCertificate(fleet.Certificate{DeviceID: d.ID, Serial: c.Serial, Ends: c.Ends}, now)
		if exists {
			return nil
		}
		for id, old := range s.provisioned {
			if old.device == d.ID && !old.at.After(now.Add(-fleet.ProvisionLife)) {
				delete(s.provisioned, id)
			}
		}
		s.provisioned[c.ID] = provisioned{d.ID, now}
		return nil
	})
	if err != nil {
		return fleet.Device{}, err
	}
	return ownDevice(d), nil
}

func (s *Store) token(id string) (fleet.EnrollmentToken, error) {
	t, ok := s.tokens[id]
	if !ok {
		return t, notFound("enrollment token %s", id)
	}
	return t, nil
}

// ProvisionedDevice implements fleet.DeviceStore.
func (s *Store) ProvisionedDevice(ctx context.Context, certificateID string) (fleet.Device, error) {
	var d fleet.Device
	err := s.locked(ctx, func() error {
		p, ok := s.provisioned[certificateID]
		if !ok {
			return notFound("certificate %s", certificateID)
		}
		d = s.devices[p.device]
		return nil
	})
	return ownDevice(d), err
}

// EnrollmentToken implements fleet.TokenStore.
func (s *Store) EnrollmentToken(ctx context.Context, id string) (t fleet.EnrollmentToken, err error) {
	err = s.locked(ctx, func() error {
		t, err = s.token(id)
		return err
	})
	return ownToken(t), err
}

// eventLog is what a device sent: the newest events, oldest first, and how far.
type eventLog struct {
	log      string
	seq      int64
	position int64
	events   []fleet.Event
}

// AppendEvents implements fleet.EventStore.
func (s *Store) AppendEvents(ctx context.Context, deviceID, log string, events []fleet.Event, now time.Time) (ack int64, err error) {
	err = s.locked(ctx, func() error {
		if _, ok := s.devices[deviceID]; !ok {
			return notFound("device %s", deviceID)
		}
		l := s.events[deviceID]
		if l.log != log {
			l.log, l.seq = log, 0
		}
		l.events = slices.Clone(l.events)
		for _, e := range events {
			if e.Seq <= l.seq {
				continue
			}
			l.position++
			l.seq = e.Seq
			e.Log, e.Position, e.At, e.Received = log, l.position, stored(e.At), stored(now)
			l.events = append(l.events, e)
		}
		l.events = l.events[max(0, len(l.events)-fleet.MaxEventsKept):]
		s.events[deviceID], ack = l, l.seq
		return nil
	})
	return ack, err
}

// Events implements fleet.EventStore.
func (s *Store) Events(ctx context.Context, deviceID string, before int64, limit int) (page []fleet.Event, err error) {
	err = s.locked(ctx, func() error {
		for _, e := range slices.Backward(s.events[deviceID].events) {
			if len(page) < limit && (before == 0 || e.Position < before) {
				page = append(page, e)
			}
		}
		return nil
	})
	return page, err
}

func (s *Store) checkDoors(say func(string, ...any)) {
	for id, p := range s.provisioned {
		if _, ok := s.devices[p.device]; !ok {
			say("certificate %s stands for no device: %s", id, p.device)
		}
	}
	for device, l := range s.events {
		if n := len(l.events); n > fleet.MaxEventsKept {
			say("%d events of device %s are kept", n, device)
		} else if n > 0 && l.events[n-1].Position != l.position {
			say("the last event of device %s stands at %d, not %d", device, l.events[n-1].Position, l.position)
		}
	}
}
