package e2e

import (
	"strings"
	"testing"
)

// TestPassesThrough: devices on 1.0.0 come to 3.0.0, which needs 2.0.0, by one
// rollout; and back, when that is reverted.
func TestPassesThrough(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.addDevices(3)
	s.release("1.0.0", 1000, true)
	s.release("2.0.0", 1000, true)
	s.release("3.0.0", 1000, true, "--min-version", "2.0.0")
	s.ends(s.rollout("1.0.0", "--stages", "100%", "--select", `id != "gw-3"`), "COMPLETED")
	s.ends(s.rollout("2.0.0", "--stages", "100%", "--select", `id = "gw-2"`), "COMPLETED")

	plan := s.must("rollout", "plan", "--firmware", "app@3.0.0", "--stages", "100%")
	for _, words := range []string{"1         app@2.0.0", "1         nothing: they take it at once", "needs-version   app@3.0.0 needs app 2.0.0 or newer"} {
		if !strings.Contains(plan, words) {
			t.Errorf("the plan does not say %q:\n%s", words, plan)
		}
	}
	id := s.rollout("3.0.0", "--stages", "100%")
	if r := s.ends(id, "COMPLETED"); s.runs("gw-1") != "3.0.0" || s.runs("gw-2") != "3.0.0" {
		t.Errorf("they run %s and %s", s.runs("gw-1"), s.runs("gw-2"))
	} else if r.Stages[0].Counts.Finished["succeeded"] != 2 || len(r.Stages[0].Counts.Finished) != 1 {
		t.Errorf("counts: %+v", r.Stages[0].Counts)
	}
	legs := s.must("rollout", "devices", id, "-o", "wide")
	for _, words := range []string{"app@2.0.0   1 of 2   SUCCEEDED   underway", "app@3.0.0   2 of 2   SUCCEEDED   succeeded", "app@3.0.0   1 of 1   SUCCEEDED   succeeded"} {
		if !strings.Contains(legs, words) {
			t.Errorf("the list does not say %q:\n%s", words, legs)
		}
	}
	if got := s.runs("gw-3"); got == "3.0.0" {
		t.Errorf("gw-3 runs %s", got)
	}

	s.must("rollout", "revert", id, "--yes")
	until(t, "rollout "+id+" to be ROLLED_BACK", func() bool { return s.show(id).State == "ROLLED_BACK" })
	until(t, "the devices to run what they ran before", func() bool { return s.runs("gw-1") == "1.0.0" && s.runs("gw-2") == "2.0.0" })
	s.check()
}
