package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestQuarantinedDeviceTriesAgain: an image that was rolled back on a device is tried
// there again by a rollout that lets quarantined devices in, each time, and by no other.
func TestQuarantinedDeviceTriesAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.addDevices(1)
	s.release("1.0.0", 1000, true)
	s.ends(s.rollout("1.0.0", "--stages", "100%"), "COMPLETED")

	mended := s.path("mended")
	script := fmt.Sprintf("#!/bin/sh\n# application 2.0.0\ncase \"$1\" in check) test -e %s && exit 0; echo no modem; exit 1;; esac\nexec sleep 100000\n", mended)
	health := `{"hold":"1s","deadline":"5s","checks":[{"running":{}},{"command":["{image}","check"]}]}`
	for name, text := range map[string]string{"app": script, "contract": health} {
		if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.must("firmware", "upload", s.path("app"), "--name", "app", "--version", "2.0.0", "--hardware", hardware, "--installer", "binary", "--health", s.path("contract"))
	for _, more := range [][]string{nil, {"--quarantined"}} {
		r := s.ends(s.rollout("2.0.0", append(more, "--stages", "100%", "--abort", "rolled_back>=1")...), "ABORTED")
		if len(r.Failures) != 1 || r.Failures[0].Class != "rolled_back" || !strings.Contains(r.Failures[0].Reason, "no modem") || strings.Contains(r.Failures[0].Reason, "not tried") {
			t.Fatalf("by %v: %+v", more, r.Failures)
		}
	}
	if _, errOut, status := s.ctl("rollout", "create", "--firmware", "app@2.0.0", "--stages", "100%"); status != 1 || !strings.Contains(errOut, "tried this image") {
		t.Errorf("without a word of quarantine: status %d, %s", status, errOut)
	}
	if why := s.must("device", "why", "gw-1"); !strings.Contains(why, "--quarantined") {
		t.Errorf("why: %s", why)
	}

	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.ends(s.rollout("2.0.0", "--stages", "100%", "--quarantined"), "COMPLETED")
	s.allRun("2.0.0")
	s.check()
}
