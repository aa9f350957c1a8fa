package memstore

import (
	"context"
	"fmt"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// Check implements fleet.Store.
func (s *Store) Check(ctx context.Context) ([]string, error) {
	var broken []string
	say := func(format string, args ...any) { broken = append(broken, fmt.Sprintf(format, args...)) }
	err := s.locked(ctx, func() error {
		s.checkShadows(say)
		s.checkTrust(say)
		s.checkDoors(say)
		s.checkUploads(say)
		s.checkWebhooks(say)
		s.checkPairs(say)
		for _, r := range s.rollouts {
			s.checkRollout(r, say)
		}
		s.checkBusy(say)
		return nil
	})
	slices.Sort(broken)
	return broken, err
}

func (s *Store) checkShadows(say func(string, ...any)) {
	for key, doc := range s.shadows {
		if _, ok := s.devices[key.device]; !ok {
			say("shadow %q belongs to no device: %s", key.name, key.device)
		}
		if doc.Version < 1 {
			say("shadow %q of device %s has version %d", key.name, key.device, doc.Version)
		}
	}
}

func (s *Store) checkTrust(say func(string, ...any)) {
	for id, t := range s.tokens {
		if t.Uses < 0 {
			say("enrollment token %s was used %d times too often", id, -t.Uses)
		}
	}
	for role, versions := range s.metadata {
		first := fleet.Superseded(role, versions[len(versions)-1].Version) + 1
		for i, m := range versions {
			if m.Version != first+int64(i) {
				say("%s metadata version %d stands at place %d, %d is the first", role, m.Version, i+1, first)
			}
		}
	}
	for id, r := range s.releases {
		withdrawn := r.State == ota.ReleaseWithdrawn
		if !withdrawn && (r.State == ota.ReleaseDraft) != r.SignedAt.IsZero() || withdrawn == r.WithdrawnAt.IsZero() || withdrawn == (r.Reason == "") {
			say("release %s is %s, signed at %s", id, r.State, r.SignedAt)
		}
	}
}

func (s *Store) checkPairs(say func(string, ...any)) {
	for at, p := range s.pairs {
		if len(s.executions[at.rollout][at.device]) < at.number {
			say("pair is of no execution: %s in rollout %s", at.device, at.rollout)
		}
		if (p.PartnerID == "") != (p.Outcomes == fleet.PairAlone) {
			say("pair has no partner and is not alone: %s in rollout %s", at.device, at.rollout)
		}
		if _, ok := s.devices[p.PartnerID]; p.PartnerID != "" && p.Outcomes == "" && !ok {
			say("partner in a pair that is watched is no device: %s in rollout %s", at.device, at.rollout)
		}
	}
}

func (s *Store) checkRollout(r ota.Rollout, say func(string, ...any)) {
	if _, ok := s.releases[r.Release]; ok == (r.Command != nil) {
		say("rollout %s of kind %s is of release %q", r.ID, r.Kind(), r.Release)
	}
	if r.State.Terminal() == r.EndedAt.IsZero() {
		say("rollout %s is %s, ended at %s", r.ID, r.State, r.EndedAt)
	}
	if of, ok := s.rollouts[r.RevertOf]; r.RevertOf != "" && !ok {
		say("rollout reverts none that there is: %s", r.ID)
	} else if ok && of.State == ota.RolloutRolledBack && !r.State.Terminal() {
		say("rollout is ROLLED_BACK before its reverts have ended: %s", of.ID)
	}
	target := 0
	for _, stage := range r.Stages {
		target = max(target, stage.Target)
	}
	if n := len(s.executions[r.ID]); n > target {
		say("rollout %s has executions for %d devices: its stages allow %d", r.ID, n, target)
	}
	s.checkLine(r, say)
	flying, lanes := 0, map[string]int{}
	for _, attempts := range s.executions[r.ID] {
		if e := attempts[len(attempts)-1]; e.Status == ota.InProgress {
			flying++
			lanes[e.Lane]++
		}
	}
	if limit := r.Terms.InFlight; limit.Max > 0 && flying > limit.Max {
		say("rollout %s has %d in flight, over %d", r.ID, flying, limit.Max)
	} else if limit.PerMax > 0 {
		for lane, n := range lanes {
			if n > limit.PerMax {
				say("rollout %s has %d in flight in %q, over %d", r.ID, n, lane, limit.PerMax)
			}
		}
	}
	for device, attempts := range s.executions[r.ID] {
		if last := attempts[len(attempts)-1]; !s.there(device) && (!last.Status.Terminal() || !last.RetryAt.IsZero()) {
			say("what is not finished of rollout %s is on no device: %s", r.ID, device)
		}
		for i, e := range attempts {
			if e.Attempt != i+1 || (i < len(attempts)-1 && !e.Status.Terminal()) {
				say("attempt %d of rollout %s on device %s is %s at place %d of %d", e.Attempt, r.ID, device, e.Status, i+1, len(attempts))
			}
			checkExecution(r, e, say)
		}
	}
}

func checkExecution(r ota.Rollout, e ota.Execution, say func(string, ...any)) {
	name := fmt.Sprintf("execution of rollout %s on device %s", e.RolloutID, e.DeviceID)
	if e.Stage < 0 || e.Stage >= len(r.Stages) {
		say("%s is in stage index %d of %d", name, e.Stage, len(r.Stages))
	}
	if !slices.Contains(ota.Statuses, e.Status) || e.Version < 1 {
		say("%s has status %q, version %d", name, e.Status, e.Version)
	}
	if e.Status.Terminal() == e.FinishedAt.IsZero() {
		say("%s is %s, finished at %s", name, e.Status, e.FinishedAt)
	}
	if unstarted := e.Status == ota.Queued || e.Status == ota.Canceled || e.Status == ota.Removed || e.Status == ota.TimedOut; !unstarted && e.StartedAt.IsZero() ||
		e.Status == ota.Queued && !e.StartedAt.IsZero() {
		say("%s is %s, started at %s", name, e.Status, e.StartedAt)
	}
	if e.Status.Terminal() && !e.Expires.IsZero() || e.Expires.IsZero() != (e.ExpiresAs == ota.ClassNone) {
		say("%s is %s and expires at %s as %q", name, e.Status, e.Expires, e.ExpiresAs)
	}
	if !e.RetryAt.IsZero() && (!e.Status.Terminal() || e.Class == ota.ClassSucceeded) {
		say("%s is %s and is to be tried again at %s", name, e.Status, e.RetryAt)
	}
	if t := r.InProgressTimeout; t > 0 && e.Status == ota.InProgress && (e.Expires.IsZero() || e.Expires.After(e.StartedAt.Add(t))) {
		say("%s expires at %s, past the rollout's timeout", name, e.Expires)
	}
	verdict := e.Status.Terminal() && e.Status != ota.Canceled && e.Status != ota.Removed
	if verdict != (e.Class != ota.ClassNone) || (e.Status == ota.Succeeded) != (e.Class == ota.ClassSucceeded || e.Class == ota.ClassDrifted || e.Class == ota.ClassUnderway) {
		say("%s is %s with class %q", name, e.Status, e.Class)
	}
	if on := len(e.Via) > 0; e.Leg < 1 || e.Leg > e.Attempt || on && e.Class == ota.ClassSucceeded || !on && e.Class == ota.ClassUnderway {
		say("%s is of class %q on leg %d, via %v", name, e.Class, e.Leg, e.Via)
	}
	if !e.WentBackAt.IsZero() && e.Status != ota.TimedOut && e.Status != ota.Canceled {
		say("%s is %s, and went back later, at %s", name, e.Status, e.WentBackAt)
	}
	if drifted := e.Class == ota.ClassDrifted; drifted == e.DriftedAt.IsZero() || drifted == (e.Runs == "") {
		say("%s is of class %q, drifted at %s to %q", name, e.Class, e.DriftedAt, e.Runs)
	}
}

// checkBusy looks for devices that work on two things at once.
func (s *Store) checkBusy(say func(string, ...any)) {
	for device := range s.devices {
		busy := 0
		for _, e := range s.active(device) {
			if e.Status == ota.InProgress {
				busy++
			}
		}
		if busy > 1 {
			say("device %s has %d executions IN_PROGRESS", device, busy)
		}
	}
}
