package ota

import (
	"fmt"
	"strings"
	"time"
)

// StrandedReason begins why an attempt was REJECTED by the server itself: the release
// may not be installed over what the device runs, and no signed release leads there.
const StrandedReason = "no way leads on: "

// Strand returns the attempt that follows e on a device from which no way leads on, and
// which therefore is offered nothing: it is REJECTED, as Refuse does it, with what the
// device itself would have said, and what would open a way. Over is the release over
// which its path led and that was withdrawn; zero: it stands elsewhere than its path was
// for.
func Strand(e Execution, stay string, over ReleaseID) Execution {
	next := Follow(e, Path{})
	next.Via = nil
	next.Status = Rejected
	if over != (ReleaseID{}) {
		stay += fmt.Sprintf(" (%s, over which it was to go, is withdrawn)", over)
	}
	next.Details = map[string]string{DetailReason: StrandedReason + stay}
	return next
}

// Refuse ends an attempt that was just QUEUED for the given reason, in the place of its
// device: it is of class rejected, for gates, abort rules and retries alike.
func Refuse(e Execution, reason string, now time.Time) (Execution, error) {
	return Apply(e, Report{Status: Rejected, Details: map[string]string{DetailReason: reason}}, now)
}

// Stranded reports whether the execution was ended by Refuse after Strand. The attempt
// that follows it goes the way that there is then, by Detour.
func (e Execution) Stranded() bool {
	return e.Status == Rejected && strings.HasPrefix(e.Details[DetailReason], StrandedReason)
}
