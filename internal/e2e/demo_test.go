package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestDemo runs the README's story as a user does and reads its summary. It
// leaves no file and no process behind.
func TestDemo(t *testing.T) {
	t.Parallel()
	temp := t.TempDir()
	cmd := exec.Command(bin+"/otactl", "demo", "--devices", "6", "-o", "json")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	var out, story bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &story
	if err := cmd.Run(); err != nil {
		t.Fatalf("demo: %v\n%s", err, tail(story.Bytes(), 8000))
	}
	var got map[string]float64
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, out.Bytes())
	}
	for name, want := range map[string]float64{
		"devices": 6, "updated": 6, "badReleaseStoppedAtStage": 1, "badReleaseStarted": 1, "rolledBack": 1, "unverifiedInstalls": 0,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if running, _ := exec.Command("pgrep", "-f", temp).Output(); len(running) > 0 {
		t.Errorf("processes left behind: %s", strings.Fields(string(running)))
	}
}

// TestDemoFailsHonestly: a demo whose server can not be started exits non-zero
// and prints no summary.
func TestDemoFailsHonestly(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(bin+"/otactl", "demo", "--devices", "2", "--otad", "/bin/false", "-o", "json")
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	out, err := cmd.Output()
	if err == nil || len(out) > 0 {
		t.Errorf("err %v, printed %s", err, out)
	}
}
