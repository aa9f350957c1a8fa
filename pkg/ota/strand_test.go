package ota

import (
	"strings"
	"testing"
	"time"
)

// TestStrand walks every attempt that may be followed by one that is not offered.
func TestStrand(t *testing.T) {
	via := []ReleaseID{{"gw", "2"}, {"gw", "3"}}
	stay := "gw@4 needs gw 3 or newer, and no signed release leads there from gw@1: sign one that gw@1 can take"
	for name, tt := range map[string]struct {
		e    Execution
		over ReleaseID
		leg  int
	}{
		"its leg was withdrawn":       {Execution{Attempt: 1, Leg: 1, Via: via, Status: Canceled}, via[0], 1},
		"its next leg was withdrawn":  {Execution{Attempt: 1, Leg: 1, Via: via, Status: Succeeded, Class: ClassUnderway}, via[1], 2},
		"a leg failed, and withdrawn": {Execution{Attempt: 2, Leg: 1, Via: via, Status: Failed, Class: ClassFailed}, via[0], 1},
		"it drifted":                  {Execution{Attempt: 3, Leg: 3, Status: Succeeded, Class: ClassDrifted}, ReleaseID{}, 3},
	} {
		next := Strand(tt.e, stay, tt.over)
		if next.Status != Rejected || next.Attempt != tt.e.Attempt+1 || next.Leg != tt.leg || len(next.Via) != 0 {
			t.Errorf("%s: %+v", name, next)
		}
		if !strings.HasPrefix(next.Reason(), StrandedReason+stay) || strings.Contains(next.Reason(), "is withdrawn") != (tt.over != ReleaseID{}) || !strings.Contains(next.Reason(), tt.over.Version) {
			t.Errorf("%s: %s", name, next.Reason())
		}
		for _, retry := range []Retry{{}, {Attempts: MaxAttempts}, {Attempts: MaxAttempts, On: []Class{ClassRejected}, Backoff: time.Hour}} {
			made := Queue(Execution{Attempt: next.Attempt, Leg: next.Leg, Retry: retry, Timers: Timers{Claim: time.Hour}}, t0)
			got, err := Refuse(made, next.Reason(), t0)
			if err != nil || got.Status != Rejected || got.Class != ClassRejected || got.Version != 2 || !got.FinishedAt.Equal(t0) || !got.Expires.IsZero() || !got.Stranded() {
				t.Fatalf("%s: %+v, %v", name, got, err)
			}
			if waits := !got.RetryAt.IsZero(); waits != (len(retry.On) > 0) {
				t.Errorf("%s, retried as %+v: again at %s", name, retry, got.RetryAt)
			}
		}
	}
	own := Execution{Status: Rejected, Details: map[string]string{DetailReason: "I do not like it"}}
	if own.Stranded() {
		t.Error("the device refused it by itself")
	}
}

// TestStrandedReasonFits: whatever names there are, the reason can be kept.
func TestStrandedReasonFits(t *testing.T) {
	long := ReleaseID{strings.Repeat("n", 64), strings.Repeat("9", 64)}
	target := Release{Manifest: Manifest{Name: long.Name, Version: long.Version, HardwareIDs: []string{"h"}, Requires: []ReleaseID{long}}, State: ReleaseSigned}
	from := Release{Manifest: Manifest{Name: long.Name, Version: strings.Repeat("1", 64), ImageDigest: "d"}, State: ReleaseSigned}
	paths, err := NewPaths(target, []Release{target, from})
	if err != nil {
		t.Fatal(err)
	}
	path := paths.From(Position{"h", "d"})
	if path.Stay == "" {
		t.Fatal("there is a way")
	}
	next := Strand(Execution{Attempt: 1, Via: []ReleaseID{long}}, path.Stay, long)
	if _, err := Refuse(Queue(Execution{Attempt: 2}, t0), next.Reason(), t0); err != nil {
		t.Error(err)
	}
}
