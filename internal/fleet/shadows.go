package fleet

import (
	"context"

	"github.com/otad/otad/pkg/shadow"
)

// Shadow returns one shadow; ErrNotFound when the device or shadow is missing.
func (s *Service) Shadow(ctx context.Context, deviceID, name string) (shadow.Document, error) {
	if err := shadow.ValidateName(name); err != nil {
		return shadow.Document{}, err
	}
	return s.Store.Shadow(ctx, deviceID, name)
}

// UpdateShadow applies an update and tells the device and the watchers. Errors
// of the update itself are *shadow.Error.
func (s *Service) UpdateShadow(ctx context.Context, deviceID, name string, u shadow.Update) (shadow.Result, error) {
	if err := shadow.ValidateName(name); err != nil {
		return shadow.Result{}, err
	}
	if u.MaxBytes == 0 {
		u.MaxBytes = s.MaxShadowBytes
	}
	r, err := s.Store.UpdateShadow(ctx, deviceID, name, u, s.Now())
	if err != nil {
		return shadow.Result{}, err
	}
	if err := s.Publisher.ShadowUpdated(ctx, deviceID, name, r); err != nil {
		s.Log.Warn("shadow update was stored but not published", "device", deviceID, "error", err)
	}
	s.signals.raise("shadow/" + deviceID + "/" + name)
	if name == "" && (SaysFirmware(u) || u.Desired.Set) {
		s.Look() // what is desired decides who is in which continuous rollout
	}
	return r, nil
}

// DeleteShadow removes a shadow and returns what it was.
func (s *Service) DeleteShadow(ctx context.Context, deviceID, name string) (shadow.Document, error) {
	if err := shadow.ValidateName(name); err != nil {
		return shadow.Document{}, err
	}
	d, err := s.Store.DeleteShadow(ctx, deviceID, name, s.Now())
	if err == nil {
		s.signals.raise("shadow/" + deviceID + "/" + name)
	}
	return d, err
}
