package ota

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// MaxWithdrawReason is how long the reason of a withdrawal may be, in bytes: it stands
// in that of every rollout that it ends.
const MaxWithdrawReason = 300

// Withdraw returns a release as it is taken out of use, for good: a DRAFT that is
// never to be signed, or a SIGNED one that nobody is to install any more. One that is
// WITHDRAWN stays as it is, with the reason it has. ErrInvalid: there is no reason, or
// too long a one.
func Withdraw(r Release, reason string, now time.Time) (Release, error) {
	switch {
	case r.State == ReleaseWithdrawn:
		return r, nil
	case strings.TrimSpace(reason) == "":
		return r, invalid("withdrawing %s needs a reason: it is what people see who look for the release", r.ID())
	case len(reason) > MaxWithdrawReason:
		return r, invalid("reason of %d bytes: at most %d", len(reason), MaxWithdrawReason)
	}
	r.State, r.WithdrawnAt, r.Reason = ReleaseWithdrawn, now, reason
	return r, nil
}

// Offered reports why a release can not be rolled out; nil: it can.
func (r Release) Offered() error {
	switch r.State {
	case ReleaseSigned:
		return nil
	case ReleaseWithdrawn:
		return fmt.Errorf("%s; roll out another version, or upload a new one", r.WithdrawnText())
	}
	return fmt.Errorf("release %s is %s; sign it first: otactl firmware sign %[1]s", r.ID(), r.State)
}

// WithdrawnText says that a release is withdrawn, and why.
func (r Release) WithdrawnText() string {
	return fmt.Sprintf("release %s is withdrawn: %s", r.ID(), r.Reason)
}

// Abandon returns a rollout of a release that was withdrawn as it stands then, and
// whether that is otherwise than before:
//
//	not begun, RUNNING, FINISHING  aborted: nothing starts from then on
//	PAUSED                         the same, unless it was aborted already
//	ABORTING, ROLLING_BACK         stays: it leads away from the release
//	ended                          stays
//
// The policy is that of Abort; where a rollout can not be reverted, because it is a
// revert itself, devices keep what they have.
func Abandon(r Rollout, release Release, policy AbortPolicy, now time.Time) (Rollout, bool) {
	if r.Release != release.ID() || r.Reverting || r.State.Terminal() {
		return r, false
	}
	if r.RevertOf != "" {
		policy = AbortKeep
	}
	next, err := Abort(r, release.WithdrawnText(), policy, now)
	return next, err == nil
}

// Reroute returns an execution that leads over a release which was withdrawn, on the
// way to that of a rollout which goes on: as far as it can be given up it is CANCELED,
// and its device gets another attempt at once, on another path, or is told by Strand that
// there is none.
func Reroute(e Execution, release Release, now time.Time) (Execution, bool) {
	if e.Release != release.ID() || len(e.Via) == 0 {
		return e, false
	}
	e, cancelled := Cancel(e, release.WithdrawnText(), now)
	if cancelled {
		e.RetryAt = now
	}
	return e, cancelled
}

// Blocked reports whether the attempt that follows e would lead over a release that is
// not signed any more, and over which.
func Blocked(e Execution, signed func(ReleaseID) bool) (over ReleaseID, blocked bool) {
	via := Follow(e, Path{}).Via
	if i := slices.IndexFunc(via, func(id ReleaseID) bool { return !signed(id) }); i >= 0 {
		return via[i], true
	}
	return ReleaseID{}, false
}

// GoesOn reports whether executions of a rollout may still begin, now or when it is
// resumed, or those in progress are left to finish.
func GoesOn(r Rollout) bool {
	return !r.Reverting && (r.State == RolloutRunning || r.State == RolloutPaused || r.State == RolloutFinishing)
}
