package e2e

import (
	"os"
	"strings"
	"testing"
)

// TestDriftedDevice: somebody selects the old slot of a device behind the back of
// its agent. The server sees it at the next connect, and brings the image again.
func TestDriftedDevice(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.addDevices(2)
	s.release("1.0.0", 1000, true)
	s.ends(s.rollout("1.0.0", "--stages", "100%"), "COMPLETED")
	s.release("2.0.0", 1000, true)
	id := s.rollout("2.0.0", "--stages", "100%", "--soak", "1h", "--attempts", "2")
	soaks := func() bool { return s.show(id).Stages[0].State == "SOAKING" }
	until(t, "both devices to run 2.0.0", soaks)

	s.devices["gw-1"].kill()
	link := s.path("gw-1", "current")
	selected, err := os.Readlink(link)
	if err != nil {
		t.Fatal(err)
	}
	other := map[string]string{"a": "b", "b": "a"}[selected[len(selected)-1:]]
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(selected[:len(selected)-1]+other, link); err != nil {
		t.Fatal(err)
	}
	if got := s.runs("gw-1"); got != "1.0.0" {
		t.Fatalf("the other slot has %q", got)
	}
	s.startDevice("gw-1")

	until(t, "the drift in the device's history", func() bool {
		return strings.Contains(s.must("device", "history", "gw-1"), "rollout-drifted")
	})
	until(t, "the device to run 2.0.0 again", func() bool { return s.runs("gw-1") == "2.0.0" && soaks() })
	if r := s.show(id); r.Stages[0].Counts.Finished["succeeded"] != 2 || r.Stages[0].Counts.Finished["drifted"] != 0 {
		t.Errorf("counts: %+v", r.Stages[0].Counts)
	}
	if out := s.must("device", "history", "gw-2"); strings.Contains(out, "rollout-drifted") {
		t.Errorf("the other device:\n%s", out)
	}
	s.must("rollout", "abort", id, "--yes")
	s.ends(id, "ABORTED")
	s.check()
}
