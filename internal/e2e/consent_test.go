package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// owner writes what the owner of a device decides into its agent.json.
func (s *site) owner(id string, settings map[string]any) {
	s.t.Helper()
	name := s.path(id, "agent.json")
	b, err := os.ReadFile(name)
	if err != nil {
		s.t.Fatal(err)
	}
	all := map[string]any{}
	if err := json.Unmarshal(b, &all); err != nil {
		s.t.Fatal(err)
	}
	for k, v := range settings {
		all[k] = v
	}
	if b, err = json.Marshal(all); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// TestConsent: the people at one device refuse an update, those at another agree.
// What runs, and the zone of the wall clock, is in the shadow.
func TestConsent(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	answer := "#!/bin/sh\ncase \"$OTAGENT_VERSION\" in 1.0.0) exit 0;; esac\n"
	for id, more := range map[string]string{"gw-1": "exit 0\n", "gw-2": "echo the lathe runs; exit 1\n"} {
		s.enroll(id)
		program := s.path(id + ".sh")
		if err := os.WriteFile(program, []byte(answer+more), 0o700); err != nil {
			t.Fatal(err)
		}
		s.owner(id, map[string]any{"timezone": "Europe/Berlin", "consent": []string{program}})
		s.startDevice(id)
	}
	s.release("1.0.0", 1000, true)
	s.ends(s.rollout("1.0.0", "--stages", "100%"), "COMPLETED")
	s.release("2.0.0", 1000, true)
	id := s.rollout("2.0.0", "--stages", "100%", "--gate", "50%")
	r := s.ends(id, "COMPLETED")
	if len(r.Failures) != 1 || r.Failures[0].Class != "rejected" || !strings.Contains(r.Failures[0].Reason, "refused by the user: the lathe runs") {
		t.Errorf("%+v", r.Failures)
	}
	if one, two := s.runs("gw-1"), s.runs("gw-2"); one != "2.0.0" || two != "1.0.0" {
		t.Errorf("gw-1 runs %s, gw-2 %s", one, two)
	}
	until(t, "the zone in the shadow", func() bool {
		out := s.must("shadow", "get", "gw-2", "-o", "json")
		return strings.Contains(out, `"timezone": "Europe/Berlin"`) && strings.Contains(out, `"version": "1.0.0"`)
	})
	s.shutWindow()
	s.check()
}

// shutWindow rolls out into a window that opens in two months.
func (s *site) shutWindow() {
	s.t.Helper()
	s.release("3.0.0", 1000, true)
	opens := time.Now().AddDate(0, 2, 0)
	id := s.rollout("3.0.0", "--stages", "100%", "--claim-timeout", "1h", "--window", fmt.Sprintf("FREQ=YEARLY;BYMONTH=%d;BYMONTHDAY=1;BYHOUR=4 for 1h", opens.Month()))
	until(s.t, "both devices to wait for their window", func() bool {
		one, two := s.must("device", "why", "gw-1"), s.must("device", "why", "gw-2")
		return strings.Contains(one, "has not begun: window opens") && strings.Contains(two, "has not begun: window opens")
	})
	s.must("rollout", "abort", id, "--yes")
	s.ends(id, "ABORTED")
	if one, two := s.runs("gw-1"), s.runs("gw-2"); one != "2.0.0" || two != "1.0.0" {
		s.t.Errorf("outside the window gw-1 came to run %s, gw-2 %s", one, two)
	}
}
