package ota

import (
	"fmt"
	"testing"
	"time"
)

// TestLegs walks every end of an attempt on the way: what class it is of, whether
// another follows, and which.
func TestLegs(t *testing.T) {
	via := []ReleaseID{{"gw", "2"}, {"gw", "3"}}
	retry := Retry{Attempts: 2, Backoff: time.Hour}
	soon, later, never := t0, t0.Add(time.Hour), time.Time{}
	for _, tt := range []struct {
		attempt, leg int
		via          []ReleaseID
		status       Status
		class        Class
		retryAt      time.Time
		next         string
	}{
		{1, 1, via, Succeeded, ClassUnderway, soon, "attempt 2, leg 2 of 3 [gw@3]"},
		{2, 2, via[1:], Succeeded, ClassUnderway, soon, "attempt 3, leg 3 of 3 []"},
		{3, 3, nil, Succeeded, ClassSucceeded, never, ""},
		{1, 1, via, Failed, ClassFailed, later, "attempt 2, leg 1 of 3 [gw@2 gw@3]"},
		{2, 1, via, Failed, ClassFailed, never, ""},                                 // its second
		{2, 1, via, Succeeded, ClassUnderway, soon, "attempt 3, leg 2 of 3 [gw@3]"}, // goes on though there were as many as may be
		{3, 2, via[1:], Failed, ClassFailed, never, ""},                             // the first leg took the second attempt
		{2, 2, via[1:], Failed, ClassFailed, later, "attempt 3, leg 2 of 3 [gw@3]"}, // none was taken before
		{3, 3, nil, Failed, ClassFailed, later, "attempt 4, leg 3 of 3 []"},
		{1, 1, via, Rejected, ClassRejected, never, ""},
	} {
		e := Execution{DeviceID: "d", Attempt: tt.attempt, Leg: tt.leg, Via: tt.via, Status: InProgress, Version: 2, StartedAt: t0, Retry: retry}
		got, err := Apply(e, Report{Status: tt.status}, t0)
		if err != nil || got.Class != tt.class || !got.RetryAt.Equal(tt.retryAt) {
			t.Errorf("%+v: class %s, again at %s, %v", tt, got.Class, got.RetryAt, err)
		}
		if tt.next == "" {
			continue
		}
		next := Follow(got, Path{})
		if text := fmt.Sprintf("attempt %d, leg %d of %d %v", next.Attempt, next.Leg, next.Legs(), next.Via); text != tt.next {
			t.Errorf("%+v: %s", tt, text)
		}
	}
	drifted := Execution{Attempt: 3, Leg: 3, Class: ClassDrifted}
	if next := Follow(drifted, Path{Via: via[1:]}); next.Leg != 3 || next.Legs() != 4 || next.tries() != 2 {
		t.Errorf("after a drift: %+v", next)
	}
}

// TestCompareOnTheWay: what a device says it runs, beside where its path has it.
func TestCompareOnTheWay(t *testing.T) {
	goal := Rollout{ID: "r", State: RolloutRunning, Release: ReleaseID{"gw", "3"}, Terms: Terms{Retry: Retry{Attempts: 3}}}
	via := []ReleaseID{{"gw", "2"}}
	queuedLeg := Execution{RolloutID: "r", Attempt: 1, Leg: 1, Via: via, Status: Queued, Version: 1, QueuedAt: t0}
	came := Execution{RolloutID: "r", Attempt: 1, Leg: 1, Via: via, Status: Succeeded, Class: ClassUnderway, Version: 3, FinishedAt: t0, RetryAt: t0}
	gone := came
	gone.Class, gone.DriftedAt, gone.Runs = ClassDrifted, t0.Add(time.Second), "other"
	next := Execution{RolloutID: "r", Attempt: 2, Leg: 2, Status: Queued, Version: 1, QueuedAt: t0}
	before := Rollout{ID: "q", State: RolloutCompleted, Release: ReleaseID{"gw", "1"}}
	old := Execution{RolloutID: "q", Attempt: 1, Status: Succeeded, Class: ClassSucceeded, FinishedAt: t0.Add(-time.Hour)}
	for name, tt := range map[string]struct {
		list []Execution
		runs string
		want string
	}{
		"has the leg's image":           {[]Execution{queuedLeg}, "two", "attempt 1 underway via [gw@2], again"},
		"has the goal's image":          {[]Execution{queuedLeg}, "three", "attempt 1 succeeded via []"},
		"runs what it should":           {[]Execution{came}, "two", ""},
		"fell back on the way":          {[]Execution{came}, "one", "attempt 1 drifted via [gw@2], again"},
		"came back":                     {[]Execution{gone}, "two", "attempt 1 underway via [gw@2], again"},
		"the next leg waits":            {[]Execution{came, next}, "two", ""},
		"the next leg is there":         {[]Execution{came, next}, "three", "attempt 2 succeeded via []"},
		"an older rollout's is no more": {[]Execution{old, came, next}, "two", ""},
	} {
		t.Run(name, func(t *testing.T) {
			digests := map[ReleaseID]string{{"gw", "1"}: "one", {"gw", "2"}: "two", {"gw", "3"}: "three"}
			var list []Standing
			for _, e := range tt.list {
				r := goal
				if e.RolloutID == "q" {
					r = before
				}
				e = e.Under(r)
				list = append(list, Standing{Execution: e, Rollout: r, Digest: digests[e.Release], Goal: digests[r.Release]})
			}
			got := ""
			for _, e := range Compare(list, Running{tt.runs, t0.Add(time.Minute)}, t0.Add(time.Minute)) {
				got += fmt.Sprintf("attempt %d %s via %v", e.Attempt, e.Class, e.Via)
				if !e.RetryAt.IsZero() {
					got += ", again"
				}
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestChangedOnTheWay: who may run an image of a rollout whose path has legs.
func TestChangedOnTheWay(t *testing.T) {
	digest := func(id ReleaseID) string { return id.Version }
	leg := Execution{Class: ClassUnderway, Release: ReleaseID{"gw", "2"}, From: "1", Status: Succeeded}
	last := func(class Class, status Status, says string) Execution {
		e := Execution{Class: class, Release: ReleaseID{"gw", "3"}, From: "1", Status: status}
		if says != "" {
			e.Details = map[string]string{DetailDigest: says}
		}
		return e
	}
	for name, tt := range map[string]struct {
		attempts []Execution
		want     bool
	}{
		"came a leg":                 {[]Execution{leg}, true},
		"and failed the next":        {[]Execution{leg, last(ClassFailed, Failed, "2")}, true},
		"and said nothing":           {[]Execution{leg, last(ClassRolledBack, Failed, "")}, true},
		"and was cancelled":          {[]Execution{leg, last(ClassNone, Canceled, "")}, true},
		"and arrived":                {[]Execution{leg, last(ClassSucceeded, Succeeded, "3")}, true},
		"and is back where it began": {[]Execution{leg, last(ClassFailed, Failed, "1")}, false},
		"and drifted":                {[]Execution{leg, last(ClassDrifted, Succeeded, "3")}, false},
		"failed the first":           {[]Execution{last(ClassRolledBack, Failed, "1")}, false},
		"nothing yet":                {[]Execution{last(ClassNone, Queued, "")}, false},
	} {
		if got := Changed(tt.attempts, digest); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
