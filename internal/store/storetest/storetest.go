// Package storetest is the contract of fleet.Store as tests: every store passes
// the same ones. Each begins with an empty store and ends with Check finding
// nothing. Among them a random walk holds the store against memstore, the
// readable model.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// Run runs the suite. open returns an empty store and closes it when the test
// ends.
func Run(t *testing.T, open func(t testing.TB) fleet.Store) {
	groups := map[string][]test{
		"devices": deviceTests, "tokens": tokenTests, "shadows": shadowTests, "releases": releaseTests,
		"rollouts": rolloutTests, "executions": executionTests, "timeouts": timeoutTests, "terms": termTests, "state": stateTests, "cancelled": cancelledTests,
		"selectors": selectorTests, "groups": groupTests, "credentials": credentialTests, "presence": presenceTests,
		"provisioning": provisionTests, "events": eventTests, "certificates": certificateTests,
		"commands": commandTests, "uploads": uploadTests, "feed": feedTests, "webhooks": webhookTests,
		"looks": lookTests, "together": togetherTests, "deletions": forgetTests, "follow": followTests, "health": healthTests, "paths": pathTests, "withdrawals": withdrawTests, "turns": turnTests,
	}
	for group, tests := range groups {
		for _, test := range tests {
			t.Run(group+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				s := &suite{TB: t, Store: open(t)}
				test.run(s)
				s.sound()
			})
		}
	}
	t.Run("selectors agree", func(t *testing.T) { testSelectors(t, open) })
	t.Run("model", func(t *testing.T) { testModel(t, open) })
}

type test struct {
	name string
	run  func(*suite)
}

// suite is one test with the store it is about.
type suite struct {
	testing.TB
	fleet.Store
}

// epoch is when tests begin. It has more digits than a store keeps.
var epoch = time.Date(2026, 5, 4, 3, 2, 1, 123456789, time.FixedZone("here", 3600))

// kept is epoch as a store keeps it.
var kept = time.Date(2026, 5, 4, 2, 2, 1, 123456000, time.UTC)

var ctx = context.Background()

func (s *suite) sound() {
	s.Helper()
	broken, err := s.Check(ctx)
	s.must(err)
	if len(broken) > 0 {
		s.Errorf("broken invariants:\n%s", strings.Join(broken, "\n"))
	}
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) wantErr(err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("got error %v, want %v", err, want)
	}
}

func (s *suite) equal(what string, got, want any) {
	s.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(shadow.Result{}), cmp.AllowUnexported(shadow.Value{})); d != "" {
		s.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

func secret(n int) (h [32]byte) {
	copy(h[:], fmt.Sprint("secret ", n))
	return h
}

func (s *suite) token(t fleet.EnrollmentToken) {
	s.Helper()
	if t.CreatedAt.IsZero() {
		t.CreatedAt = epoch
	}
	s.must(s.CreateEnrollmentToken(ctx, t))
}

// enrolled enrolls devices by a token made for them.
func (s *suite) enrolled(ids ...string) {
	s.Helper()
	name := "for " + strings.Join(ids, " ")
	h := secret(0)
	copy(h[7:], name)
	s.token(fleet.EnrollmentToken{ID: name, SecretHash: h, Uses: len(ids), Hardware: "board-a"})
	for _, id := range ids {
		_, err := s.Enroll(ctx, fleet.Device{ID: id, KeyFingerprint: "key of " + id}, h, epoch)
		s.must(err)
	}
}

func release(name, version string) ota.Release {
	return ota.Release{
		Manifest: ota.Manifest{
			Name: name, Version: version, HardwareIDs: []string{"board-a"}, Installer: ota.InstallImage,
			ImageDigest: strings.Repeat("ab", 32), ImageSize: 10, ObjectSize: 9,
		},
		State: ota.ReleaseDraft, IndexDigest: strings.Repeat("cd", 32), IndexSize: 5, CreatedAt: kept,
	}
}

// rollout creates a running rollout of two stages that may hold target devices.
func (s *suite) rollout(id string, target int) ota.Rollout {
	s.Helper()
	r := newRollout(id, target)
	s.must(s.createRollout(r))
	return r
}

func newRollout(id string, target int) ota.Rollout {
	stage := ota.Stage{Size: ota.Size{Percent: 50}, Gate: ota.Gate{Success: 0.9}, State: ota.StageOpen, Target: target, OpenedAt: kept}
	second := ota.Stage{Size: ota.Size{Percent: 100}, Soak: time.Hour, State: ota.StagePending}
	return ota.Rollout{
		ID: id, Release: ota.ReleaseID{Name: "app", Version: "1"}, Selector: `tags.site = "north"`, Seed: "seed " + id,
		Stages: []ota.Stage{stage, second}, Abort: []ota.AbortRule{{Class: ota.ClassAny, Share: 1, Count: 3}},
		Priority: 1, State: ota.RolloutRunning, Population: target, ArmedAt: kept, Revision: 1, CreatedAt: kept,
	}
}

func (s *suite) createRollout(r ota.Rollout) error {
	rel := release(r.Release.Name, r.Release.Version)
	if _, err := s.CreateRelease(ctx, rel); err != nil {
		return err
	}
	return s.CreateRollout(ctx, r)
}

func queued(stage, attempt int, devices ...string) []ota.Execution {
	var list []ota.Execution
	for _, d := range devices {
		list = append(list, ota.Execution{DeviceID: d, Stage: stage, Attempt: attempt, Status: ota.Queued})
	}
	return list
}

// open gives the devices executions and returns the rollout as it then stands.
func (s *suite) open(r ota.Rollout, now time.Time, insert ...ota.Execution) ota.Rollout {
	s.Helper()
	s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Insert: insert, Now: now}))
	r, err := s.Rollout(ctx, r.ID)
	s.must(err)
	return r
}

// set moves the rollout to a state.
func (s *suite) set(r ota.Rollout, state ota.RolloutState) ota.Rollout {
	s.Helper()
	r.State = state
	return s.open(r, epoch)
}

func (s *suite) report(rollout, device string, status ota.Status, now time.Time) ota.Execution {
	s.Helper()
	e, err := s.Report(ctx, ota.Report{RolloutID: rollout, DeviceID: device, Status: status}, now)
	s.must(err)
	return e
}

func (s *suite) execution(rollout, device string) ota.Execution {
	s.Helper()
	e, err := s.Execution(ctx, rollout, device)
	s.must(err)
	return e
}

func (s *suite) executions(f fleet.ExecutionFilter) (list []ota.Execution) {
	s.Helper()
	s.must(s.Executions(ctx, f, func(e ota.Execution) bool {
		list = append(list, e)
		return true
	}))
	return list
}

func names(list []ota.Execution) (out []string) {
	for _, e := range list {
		out = append(out, fmt.Sprintf("%s %s %d", e.RolloutID, e.DeviceID, e.Attempt))
	}
	return out
}

// together runs n calls at once and returns their errors.
func together(n int, f func(i int) error) []error {
	errs := make([]error, n)
	start, done := make(chan struct{}), make(chan struct{})
	for i := range n {
		go func() {
			<-start
			errs[i] = f(i)
			done <- struct{}{}
		}()
	}
	close(start)
	for range n {
		<-done
	}
	return errs
}

// wins counts the calls that succeeded; every other must have failed with want.
func (s *suite) wins(errs []error, want error) (n int) {
	s.Helper()
	for _, err := range errs {
		if err == nil {
			n++
		} else if !errors.Is(err, want) {
			s.Fatalf("got error %v, want %v", err, want)
		}
	}
	return n
}
