package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func TestRolloutSpec(t *testing.T) {
	f := rolloutFlags{
		firmware: "gateway@1.0.0", selector: "online = true", stages: "5,10%,100%", gate: "98% min 20", soak: time.Hour,
		abort: []string{"failed>5% min 20", "any>=3", ""}, seed: "s", priority: 2, timeout: 2 * time.Hour,
		maxDefers: ota.DefaultConsent.MaxDefers, retry: ota.Retry{Attempts: 1},
	}
	got, err := f.spec(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, attempts := range []int{0, -1} {
		none := f
		none.retry.Attempts = attempts
		if _, err := none.spec(nil); err == nil || classify(err).status != exitUsage {
			t.Errorf("%d attempts: %v", attempts, err)
		}
	}
	gate, soak := &otadv1.Gate{Success: 0.98, MinFinished: 20}, durationpb.New(time.Hour)
	want := &otadv1.RolloutSpec{
		Firmware: "gateway@1.0.0", Selector: "online = true", Seed: "s", Priority: 2, InProgressTimeout: durationpb.New(2 * time.Hour),
		Stages: []*otadv1.StageSpec{{Count: 5, Gate: gate, Soak: soak}, {Percent: 10, Gate: gate, Soak: soak}, {Percent: 100, Gate: gate, Soak: soak}},
		Abort:  []*otadv1.AbortRule{{Class: "failed", Share: 0.05, MinSample: 20}, {Class: "any", Share: 1, Count: 3}},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestASkippedStageSaysSo(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC))
	for _, c := range []struct {
		stage *otadv1.Stage
		want  string
	}{
		{&otadv1.Stage{State: "PASSED"}, "PASSED"},
		{&otadv1.Stage{State: "PASSED", SkippedAt: at}, "PASSED, skipped"},
		{&otadv1.Stage{State: "OPEN", SkippedAt: at}, "OPEN, skipped"},
		{&otadv1.Stage{State: "FAILED", SkippedAt: at}, "FAILED"}, // again, since
	} {
		r := newRolloutView(&otadv1.Rollout{Stages: []*otadv1.Stage{c.stage}})
		s := r.Stages[0]
		if shown, drawn := r.stageRows()[0][2], drawnRows(r, time.Now())[0][2]; shown != c.want || drawn != c.want || !strings.Contains(stageLine(1, s), " "+c.want+":") {
			t.Errorf("%s is shown as %s, drawn as %s, written as %q", c.want, shown, drawn, stageLine(1, s))
		}
		if (s.SkippedAt != nil) != (c.stage.GetSkippedAt() != nil) || s.State != c.stage.GetState() {
			t.Errorf("%s: %s, skipped at %v", c.want, s.State, s.SkippedAt)
		}
	}
}

func TestOutcome(t *testing.T) {
	failed := []stageView{{State: "PASSED"}, {State: "FAILED"}}
	for _, test := range []struct {
		state  string
		stages []stageView
		over   bool
		status int
	}{
		{"RUNNING", nil, false, exitDone},
		{"ABORTING", failed, false, exitDone},
		{"COMPLETED", nil, true, exitDone},
		{"ABORTED", nil, true, exitCondition},
		{"PAUSED", failed, true, exitCondition},
		{"PAUSED", []stageView{{State: "OPEN"}}, false, exitDone}, // by an operator, who will resume it
	} {
		over, err := rolloutView{ID: "r", State: test.state, Stages: test.stages}.outcome()
		status := exitDone
		if err != nil {
			status = classify(err).status
		}
		if over != test.over || status != test.status {
			t.Errorf("%s: over %v, status %d; want %v, %d", test.state, over, status, test.over, test.status)
		}
	}
}

func TestWatchWritesChangesAndRedrawsOnATerminal(t *testing.T) {
	first := rolloutView{ID: "r1", Firmware: "gateway@1", State: "RUNNING", Stages: []stageView{
		{Size: "10%", State: "OPEN", Target: 2, Counts: countsView{Queued: 1, InProgress: 1}}, {Size: "100%", State: "PENDING"},
	}}
	first.Health = &healthView{Wait: "24h0m0s", Signals: []signalView{{Signal: "crash +1%", Verdict: "hold"}}}
	second := first
	second.Health = &healthView{Wait: "24h0m0s", Signals: []signalView{{Signal: "crash +1%", Verdict: "hold", Worse: 3, Same: 2, Why: "seems worse"}}}
	second.State, second.Reason = "ABORTING", "any>10%"
	second.Stages = []stageView{
		{Size: "10%", State: "OPEN", Target: 2, Counts: countsView{InProgress: 1, Finished: map[string]int32{"rolled_back": 1}}}, first.Stages[1],
	}

	a, stdout, _ := testApp()
	w := a.newRolloutWatch()
	for _, r := range []rolloutView{first, first, second} {
		if err := w.show(r); err != nil {
			t.Fatal(err)
		}
	}
	want := `12:00:00  stage 1 (10%) OPEN: 0 succeeded, 1 in progress, 1 queued
12:00:00  rollout r1 RUNNING
12:00:00  stage 1 (10%) OPEN: 0 succeeded, 1 in progress, 0 queued, 1 rolled_back
12:00:00  health crash +1%: hold, 3 of 5 pairs worse: seems worse; the stage waits at most 24h0m0s for it once it has soaked
12:00:00  rollout r1 ABORTING: any>10%
`
	if diff := cmp.Diff(want, stdout.String()); diff != "" {
		t.Error(diff)
	}

	a, stdout, _ = testApp()
	a.terminal = func(any) bool { return true }
	a.env = func(name string) string { return map[string]string{"NO_COLOR": "1"}[name] }
	w = a.newRolloutWatch()
	for _, r := range []rolloutView{first, second} {
		if err := w.show(r); err != nil {
			t.Fatal(err)
		}
	}
	want = `r1  gateway@1  RUNNING
STAGE   SIZE   STATE     DONE   SHARE                    IN PROGRESS   QUEUED   UNSUCCESSFUL
1       10%    OPEN      0/2    [....................]   1             1        0
2       100%   PENDING   0/0    [....................]   0             0        0

HEALTH      VERDICT   WORSE   SAME   BETTER   PAIRS   UNKNOWN   SEEN   PROVEN           P   WHY
crash +1%   hold      0       0      0        0       0         -      +0.0% to +0.0%   0   -
`
	drawn := strings.Split(stdout.String(), "\x1b[7A\x1b[J")
	if len(drawn) != 2 {
		t.Fatalf("drawn %d times:\n%q", len(drawn), stdout)
	}
	if diff := cmp.Diff(want, drawn[0]); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(drawn[1], "1/2    [##########..........]") || !strings.Contains(drawn[1], "1 rolled_back") {
		t.Errorf("second drawing:\n%s", drawn[1])
	}
}

// On a terminal times go on while nothing happens; elsewhere nothing is written then.
func TestWatchRedrawsEachSecond(t *testing.T) {
	follow := func(t *testing.T, terminal bool, output string) string {
		t.Helper()
		a, stdout, _ := testApp()
		a.now, a.flags.output = time.Now, output
		a.terminal = func(any) bool { return terminal }
		a.env = func(name string) string { return map[string]string{"NO_COLOR": "1"}[name] }
		soaking := time.Now()
		soaks := rolloutView{ID: "r1", Firmware: "gateway@1", State: "RUNNING", Stages: []stageView{{Size: "100%", State: "SOAKING", Soak: "1m0s", SoakingAt: &soaking, Target: 2}}}
		done := rolloutView{ID: "r1", Firmware: "gateway@1", State: "COMPLETED", Stages: []stageView{{Size: "100%", State: "PASSED", Target: 2}}}
		states := []rolloutView{soaks, done}
		ctx, cancel := context.WithCancel(t.Context())
		came, over, err := a.newRolloutWatch().follow(func() (rolloutView, bool) {
			switch len(states) {
			case 0: // as a stream that goes on
				<-ctx.Done()
				return rolloutView{}, false
			case 1:
				time.Sleep(3500 * time.Millisecond)
			}
			r := states[0]
			states = states[1:]
			return r, true
		}, cancel)
		if !came || !over || err != nil {
			t.Errorf("came %v, over %v, %v", came, over, err)
		}
		return stdout.String()
	}
	synctest.Test(t, func(t *testing.T) {
		drawn := strings.Split(follow(t, true, formatTable), "\x1b[3A\x1b[J")
		want := []string{"SOAKING, 1m0s left", "SOAKING, 59s left", "SOAKING, 58s left", "SOAKING, 57s left", "PASSED"}
		if len(drawn) != len(want) {
			t.Fatalf("drawn %d times, want %d:\n%s", len(drawn), len(want), strings.Join(drawn, "\n"))
		}
		for i, text := range want {
			if !strings.Contains(drawn[i], text) {
				t.Errorf("drawing %d lacks %q:\n%s", i+1, text, drawn[i])
			}
		}
		if n := strings.Count(follow(t, false, formatTable), "\n"); n != 4 {
			t.Errorf("%d lines without a terminal, want 2 for each of 2 changes", n)
		}
		if n := strings.Count(follow(t, true, formatJSONL), "\n"); n != 2 {
			t.Errorf("%d documents, want one for each of 2 changes", n)
		}
	})
}

func TestPaceIsThatOfTheLastMinute(t *testing.T) {
	begin := time.Unix(1_700_000_000, 0)
	running := func(done int32) rolloutView {
		return rolloutView{State: "RUNNING", Stages: []stageView{
			{Target: 10, Counts: countsView{Finished: map[string]int32{"succeeded": min(done, 10)}}},
			{Target: 1000, Counts: countsView{Finished: map[string]int32{"succeeded": max(done-10, 0)}}},
		}}
	}
	var p pace
	for _, c := range []struct {
		after time.Duration
		done  int32
		want  string
	}{
		{0, 0, ""},
		{500 * time.Millisecond, 5, ""}, // too short to say
		{30 * time.Second, 50, "100 devices a minute; at that, 9m30s for the 950 left"},
		{60 * time.Second, 100, "100 devices a minute; at that, 9m0s for the 900 left"},
		{120 * time.Second, 100, ""},                      // nothing in the last minute
		{150 * time.Second, 1000, "600 devices a minute"}, // since the last look that was a minute before
	} {
		if got := p.text(running(c.done), begin.Add(c.after)); got != c.want {
			t.Errorf("after %s with %d done: %q, want %q", c.after, c.done, got, c.want)
		}
	}
	if got := p.text(rolloutView{State: "PAUSED", Stages: running(1000).Stages}, begin.Add(3*time.Minute)); got != "" {
		t.Errorf("paused: %q", got)
	}
}

// A plan says of each other rollout who comes first.
func TestConflictsSayWhoComesFirst(t *testing.T) {
	spec := &otadv1.RolloutSpec{Priority: 3}
	for want, c := range map[string]*otadv1.Conflict{
		"makes way: what has not begun there is cancelled":       {Priority: 3, Supersedes: true},
		"comes first: it has priority 4, this plan 3":            {Priority: 4},
		"comes after this plan: it has priority -2, this plan 3": {Priority: -2},
		"comes first: it is older, of the same priority":         {Priority: 3},
	} {
		if v := newConflictView(spec, c); v.why != want || v.First != strings.HasPrefix(want, "comes first") {
			t.Errorf("%+v, want %q", v, want)
		}
	}
}

// A rollout that is being finished is no firmware of a group any more, also when a pause
// with hold keeps it from its end; one that is paused is.
func TestFirmwareOfAGroup(t *testing.T) {
	of := func(state string, ending bool) *otadv1.Rollout {
		return &otadv1.Rollout{State: state, Ending: ending, Spec: &otadv1.RolloutSpec{Continuous: true, Selector: "s"}}
	}
	for _, c := range []struct {
		r    *otadv1.Rollout
		want bool
	}{
		{of("RUNNING", false), true}, {of("PAUSED", false), true}, {of("PAUSED", true), false}, {of("FINISHING", true), false}, {of("COMPLETED", false), false},
		{&otadv1.Rollout{State: "RUNNING", Spec: &otadv1.RolloutSpec{Selector: "s"}}, false},
	} {
		if got := keepsUp(c.r, "s"); got != c.want || keepsUp(c.r, "other") {
			t.Errorf("%s, ending %v: %v", c.r.GetState(), c.r.GetEnding(), got)
		}
	}
	if act := (rolloutView{ID: "r-1", State: "PAUSED", Ending: true}).nextAct(); !strings.Contains(act, "to its end") {
		t.Errorf("held while it is finished: %q", act)
	}
}

func TestUnsuccessfulExecutions(t *testing.T) {
	due := time.Now()
	for _, c := range []struct {
		e    executionView
		want bool
	}{
		{executionView{Class: "failed"}, true}, {executionView{Class: "drifted"}, true}, {executionView{Class: "failed", RetryAt: &due}, false},
		{executionView{Class: "succeeded"}, false}, {executionView{Class: "underway"}, false}, {executionView{Status: "CANCELED"}, false}, {executionView{Status: "QUEUED"}, false},
	} {
		if got := c.e.unsuccessful(); got != c.want {
			t.Errorf("%+v: %v", c.e, got)
		}
	}
}
