package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/signing"
)

// WithdrawnRelease is a release that was withdrawn, with what that did and what is left
// to do.
type WithdrawnRelease struct {
	Release  ota.Release
	Version  int64       // of the targets that were published; 0: none were
	Listed   bool        // the signed targets still list it: a device with an old job may install it
	Rollouts []Abandoned // that it ended
	Rerouted int         // executions that led over it, to go another way
	// Running and Desiring are the devices that say they run its image, or that desire
	// it.
	Running, Desiring Selected
}

// Selected counts the devices that a selector means.
type Selected struct {
	Selector string
	Devices  int
}

// WithdrawRelease takes a release out of use, for good: its rollouts are aborted, no
// path leads over it, and targets, unless nil, are the next ones, signed, which do not
// list it any more. Again it only publishes these. ErrStale as in PublishTargets.
func (s *Service) WithdrawRelease(ctx context.Context, id ota.ReleaseID, reason string, policy ota.AbortPolicy, targets []byte) (WithdrawnRelease, error) {
	w := Withdrawal{Release: id, Reason: reason, Policy: policy, Now: s.Now()}
	switch policy {
	case "", ota.AbortKeep, ota.AbortRevert:
	default:
		return WithdrawnRelease{}, fmt.Errorf("%w: policy %q: want %s or %s", ErrInvalid, policy, ota.AbortKeep, ota.AbortRevert)
	}
	out := WithdrawnRelease{}
	if targets != nil {
		next, err := s.nextTargets(ctx, targets, id, w.Now)
		if err != nil {
			return out, err
		}
		out.Version, w.Files, w.Signed = next.version, next.files, next.signed
	}
	done, err := s.Store.Withdraw(ctx, w)
	if err != nil {
		return out, err
	}
	out.Release, out.Rollouts, out.Rerouted = done.Release, done.Rollouts, len(done.Rerouted)
	s.Log.Info("release withdrawn", "release", id, "reason", done.Release.Reason, "rollouts", len(done.Rollouts), "rerouted", len(done.Rerouted), "targets", out.Version)
	s.afterWithdrawal(ctx, done, w)
	return out, s.afterwards(ctx, &out)
}

// afterWithdrawal has devices and watchers told, and the engine go on.
func (s *Service) afterWithdrawal(ctx context.Context, done Withdrawn, w Withdrawal) {
	s.signals.raise(anyRollout)
	for _, r := range done.Rollouts {
		s.signals.raise("rollout/" + r.After.ID)
		s.tellStep(r.Before, Advance{Rollout: r.After, Now: w.Now})
		s.follow(ctx, r.After)
		s.tellReleased(r.Before, r.After)
	}
	if len(done.Rerouted) > 0 {
		s.notifier.add(telling{what: tellAnew, list: done.Rerouted})
	}
	s.Look() // at who was left to a rollout that has ended
	s.Wake()
}

// afterwards says where a release that is withdrawn is left.
func (s *Service) afterwards(ctx context.Context, w *WithdrawnRelease) (err error) {
	if w.Listed, err = s.Listed(ctx, w.Release.ID()); err != nil {
		return err
	}
	w.Running.Selector = fmt.Sprintf("shadow.reported.firmware.digest = %q", w.Release.ImageDigest)
	w.Desiring.Selector = DesiredSelector(w.Release.ID())
	for _, of := range []*Selected{&w.Running, &w.Desiring} {
		sel, err := selector.Parse(of.Selector)
		if err != nil {
			return err
		}
		no := false
		if of.Devices, err = s.Store.CountDevices(ctx, DeviceQuery{Selector: sel, Revoked: &no}); err != nil {
			return err
		}
	}
	return nil
}

// Listed reports whether the newest signed targets list a release.
func (s *Service) Listed(ctx context.Context, id ota.ReleaseID) (bool, error) {
	m, err := s.Store.Metadata(ctx, RoleTargets, 0)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	list, err := signing.Targets(m.Bytes)
	return slices.ContainsFunc(list, func(t signing.Target) bool { return t.Path == id.TargetPath() }), err
}
