package agent

import (
	"context"
	"fmt"
	"time"
)

// Trust is renewed at a random point between a half and three quarters of the
// life it has left, so that a fleet does not ask as one. A refresh that fails is
// tried again whenever the idle agent looks for a job.

// refresh brings trust up to date, and notices when it is over and can not be
// renewed: a server, or somebody before it, holds newer metadata back.
func (a *Agent) refresh(ctx context.Context) error {
	err := a.trust.refresh(ctx, a.cfg.Source, a.cfg.Now())
	if isDisk(err) || ctx.Err() != nil {
		return err
	}
	if err == nil {
		a.planRenewal()
	}
	a.judgeTrust(err)
	return err
}

// renewTrust is refresh for an agent without a job, when it is time. A device
// that never verified anything has nothing to renew. It returns disk errors and
// the context's.
func (a *Agent) renewTrust(ctx context.Context) error {
	if a.trust.trust.Expires().IsZero() || a.trustTime().Before(a.renewAt) {
		return nil
	}
	err := a.refresh(ctx)
	if isDisk(err) || ctx.Err() != nil {
		return err
	}
	if err != nil {
		a.note(fmt.Errorf("renew trust: %w", err))
	}
	return nil
}

func (a *Agent) planRenewal() {
	now := a.trustTime()
	left := max(a.trust.trust.Expires().Sub(now), 0)
	a.renewAt = now.Add(left/2 + a.cfg.Jitter(left/4))
}

// judgeTrust raises or takes back the alarm after a refresh.
func (a *Agent) judgeTrust(err error) {
	end, before := a.trust.trust.Expires(), a.trust.expired
	a.trust.expired = ""
	if err != nil && !end.IsZero() && a.trustTime().After(end) {
		a.trust.expired = clip(fmt.Sprintf("trust expired on %s and can not be renewed: %v", end.UTC().Format(time.RFC3339), err), MaxReason)
	}
	if (before == "") == (a.trust.expired == "") {
		return
	}
	a.event(EventTrust, map[string]any{"alarm": a.trust.expired})
	if before == "" {
		a.cfg.Log.Error("trust expired: is somebody holding back newer metadata?", "expired", end, "err", err)
	} else {
		a.cfg.Log.Info("trust is renewed", "expires", end)
	}
	a.shadow.set(a.reported())
	a.outbox.kick()
}

// trustTime is the time that expiry is judged by: the clock, or the clock floor
// when that is later.
func (a *Agent) trustTime() time.Time {
	now := a.cfg.Now()
	if floor := a.trust.trust.ClockFloor(); now.Before(floor) {
		return floor
	}
	return now
}
