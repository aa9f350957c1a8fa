package e2e

import (
	"strings"
	"testing"
)

// TestHealthGateOverAgents brings a release whose application crashes on most
// devices, after health checks that it passes: the agents tell of it, the server
// compares them with those that wait, and the first stage is the last. A release that
// behaves goes through the same gate.
func TestHealthGateOverAgents(t *testing.T) {
	t.Parallel()
	const devices, first = 160, 40
	s := newSite(t, nil, "--enroll-limit", "100000", "--log-level", "warn")
	s.image("1.0")
	s.image("2.0")
	f := s.simulate(devices, "--reconnect", "500ms", "--trial", "200ms", "--crash", "app@2.0=60%")
	gate := []string{"--stages", "25%,100%", "--health", "crash +5% min 20", "--health-watch", "8s"}

	good := s.rollout("1.0", gate...)
	s.ends(good, "COMPLETED")
	bad := s.rollout("2.0", gate...)
	r := s.ends(bad, "PAUSED")
	withinSizes(t, r)
	if !strings.Contains(r.Reason, "crash") || r.Stages[0].State != "FAILED" || r.Stages[1].State != "PENDING" {
		t.Errorf("paused for %q, stages %+v: want the first FAILED for its crashes and the second PENDING", r.Reason, r.Stages)
	}
	if n := r.Stages[0].Counts.Finished["succeeded"]; n != first {
		t.Errorf("%d devices say that they were updated well, want all %d of the stage", n, first)
	}
	for id, want := range map[string]string{good: "pass", bad: "fail"} {
		var v struct {
			Health struct {
				Signals []struct {
					Verdict             string
					Worse, Same, Better int
				}
			}
		}
		s.get(&v, "rollout", "show", id)
		if len(v.Health.Signals) != 1 || v.Health.Signals[0].Verdict != want {
			t.Errorf("rollout %s: %+v, want %s", id, v.Health, want)
		}
		t.Logf("%s: %+v", want, v.Health.Signals)
	}
	if sum := f.end(); sum.Runs["app@2.0"] != first {
		t.Errorf("run %v, want %d app@2.0", sum.Runs, first)
	}
	s.check()
}
