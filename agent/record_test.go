package agent

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// TestLongestRecordFits: whatever an error says, a job names or a window is, the
// journal takes it.
func TestLongestRecordFits(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	at := time.Date(2026, 11, 28, 2, 0, 0, 999_999_999, time.FixedZone("", 3600))
	for _, reason := range []string{long(MaxReason), strings.Repeat("<&>", MaxReason), strings.Repeat("\x00\xff", MaxReason), strings.Repeat(`"`, MaxReason), strings.Repeat("\u2028", MaxReason), strings.Repeat("é", MaxReason)} {
		r := Record{
			State: StateRolledBack, BootID: long(64), JobID: long(maxJobID), Attempt: math.MaxInt, Name: long(63), Version: long(63), Command: long(63),
			From: long(16), To: long(16), FromDigest: long(64), ToDigest: long(64), Watermark: math.MaxInt, SpanStart: math.MaxInt, Bytes: math.MaxInt64,
			Quarantined: true,
			Window:      ota.Window{RRule: long(ota.MaxRuleBytes), Start: long(19), Duration: math.MaxInt64, Fetch: ota.FetchAnytime},
			Consent:     ota.Consent{MaxDefers: math.MaxInt, Deadline: at}, Defers: math.MaxInt, DeferUntil: at, Consented: true,
			Floor: math.MaxInt64, FloorAfter: math.MaxInt64, Deadline: at, BootsLeft: math.MaxInt, Restages: math.MaxInt, Waits: math.MaxInt, Doubts: math.MaxInt,
			Stores: math.MaxInt, Verdict: ota.InProgress, Class: ota.ClassRolledBack,
		}.because(reason)
		b, err := encodeRecord(r)
		if err != nil || len(b) > maxRecord {
			t.Errorf("%.10q: %d bytes, at most %d: %v", reason, len(b), maxRecord, err)
		}
		again, err := decodeRecord(b)
		if err != nil || again.Reason != r.Reason {
			t.Errorf("%.10q: read back as %.10q, %v", reason, again.Reason, err)
		}
	}
}
