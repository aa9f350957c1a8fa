package e2e

import (
	"strings"
	"testing"
)

// TestContinuousRollout: a device that enrolls after a continuous rollout has begun
// gets its firmware by itself, also when the server was killed in between; one whose
// tag is taken away is left alone.
func TestContinuousRollout(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.addDevices(2)
	s.must("device", "tag", "gw-1", "site=north")
	s.release("1.0.0", 1000, true)
	id := s.rollout("1.0.0", "--continuous", "--select", `tags.site = "north"`, "--stages", "100%")
	until(t, "the device that is there to run it", func() bool { return s.runs("gw-1") == "1.0.0" })
	idle := func() bool {
		return strings.Contains(s.must("rollout", "show", id), "devices that join it, or otactl rollout finish "+id)
	}
	until(t, "the rollout to wait for devices", idle)

	s.server.kill()
	s.startServer()
	s.enroll("gw-9")
	s.must("device", "tag", "gw-9", "site=north")
	s.startDevice("gw-9")
	until(t, "the new device to run it", func() bool { return s.runs("gw-9") == "1.0.0" })
	if got := s.runs("gw-2"); got == "1.0.0" {
		t.Error("a device of another site was updated")
	}
	until(t, "the rollout to wait again", idle)
	if r := s.show(id); r.State != "RUNNING" || r.Stages[0].Target != 2 || r.Stages[0].Counts.Finished["succeeded"] != 2 {
		t.Errorf("%s: %+v", r.State, r.Stages)
	}
	if out := s.must("device", "why", "gw-2"); !strings.Contains(out, "it joins when it does") {
		t.Errorf("why:\n%s", out)
	}

	s.must("rollout", "finish", id, "--reason", "all have it")
	s.ends(id, "COMPLETED")
	s.check()
}
