package memstore

import (
	"context"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

type shadowKey struct{ device, name string }

// Shadow implements fleet.ShadowStore.
func (s *Store) Shadow(ctx context.Context, deviceID, name string) (shadow.Document, error) {
	var doc shadow.Document
	err := s.locked(ctx, func() error {
		doc = s.shadows[shadowKey{deviceID, name}]
		return s.mustExist(deviceID, name, doc)
	})
	if err != nil {
		return shadow.Document{}, err
	}
	return doc, nil
}

// UpdateShadow implements fleet.ShadowStore.
func (s *Store) UpdateShadow(ctx context.Context, deviceID, name string, u shadow.Update, now time.Time) (shadow.Result, error) {
	var result shadow.Result
	err := s.locked(ctx, func() error {
		if _, ok := s.devices[deviceID]; !ok {
			return notFound("device %s", deviceID)
		}
		var err error
		key := shadowKey{deviceID, name}
		if result, err = shadow.Apply(s.shadows[key], u, stored(now)); err != nil {
			return err
		}
		_ = s.changing(deviceID, func() error { s.shadows[key] = result.Document; return nil })
		if name == "" && fleet.SaysFirmware(u) {
			s.mark(deviceID, now)
		}
		return nil
	})
	if err != nil {
		return shadow.Result{}, err
	}
	return result, nil
}

// DeleteShadow implements fleet.ShadowStore.
func (s *Store) DeleteShadow(ctx context.Context, deviceID, name string, _ time.Time) (shadow.Document, error) {
	var doc shadow.Document
	err := s.locked(ctx, func() error {
		key := shadowKey{deviceID, name}
		doc = s.shadows[key]
		if err := s.mustExist(deviceID, name, doc); err != nil {
			return err
		}
		return s.changing(deviceID, func() error { s.shadows[key] = doc.Deleted(); return nil })
	})
	if err != nil {
		return shadow.Document{}, err
	}
	return doc, nil
}

func (s *Store) mustExist(deviceID, name string, doc shadow.Document) error {
	if _, ok := s.devices[deviceID]; !ok {
		return notFound("device %s", deviceID)
	}
	if !doc.Exists() {
		return fleet.NoShadow(deviceID, name)
	}
	return nil
}
