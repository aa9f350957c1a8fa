package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// example starts a program that the AWS IoT device SDK for JavaScript v1 ships,
// in a directory of its own.
func (s *site) example(id, name string, more ...string) (p *proc, dir string) {
	s.t.Helper()
	dir = s.t.TempDir()
	argv := append([]string{
		"node", filepath.Join(modules(s.t), "aws-iot-device-sdk", "examples", name), "-H", "localhost", "-p", port(s.ports[2]),
		"-a", s.path(id, "ca.pem"), "-c", s.path(id, "device.crt"), "-k", s.path(id, "device.key"),
	}, more...)
	return startIn(s.t, dir, name, filepath.Join(dir, "log"), []string{"NODE_EXTRA_CA_CERTS=" + s.path(id, "ca.pem")}, argv...), dir
}

// sdk1Agent: the SDK's own jobs agent carries out a whole install job. The link
// in the job's document is all that it needs; it verifies the digest beside it.
func sdk1Agent(t *testing.T, s *site) {
	t.Run("job that comes while it runs", func(t *testing.T) {
		t.Parallel()
		s := s.of(t)
		s.foreign("sdk1-a")
		p, dir := s.example("sdk1-a", "jobs-agent.js", "-i", "sdk1-a", "-T", "sdk1-a")
		until(t, "the agent to ask for jobs", func() bool { return strings.Contains(p.text(), "startJobNotifications completed") })
		s.sdk1Installs(s.rollout("1.0.0", "--stages", "100%", "--select", `id = "sdk1-a"`), "sdk1-a", dir)
	})
	t.Run("job that waits", func(t *testing.T) {
		t.Parallel()
		s := s.of(t)
		s.foreign("sdk1-b")
		rollout := s.rollout("1.0.0", "--stages", "100%", "--select", `id = "sdk1-b"`)
		_, dir := s.example("sdk1-b", "jobs-agent.js", "-i", "sdk1-b", "-T", "sdk1-b")
		s.sdk1Installs(rollout, "sdk1-b", dir)
	})
}

func (s *site) sdk1Installs(rollout, id, dir string) {
	t := s.t
	t.Helper()
	if r := s.ends(rollout, "COMPLETED"); r.Stages[0].Counts.Finished["succeeded"] != 1 {
		t.Errorf("%s: %+v", id, r.Stages)
	}
	got, err := os.ReadFile(filepath.Join(dir, "app"))
	if err != nil {
		t.Fatal(err)
	}
	if want, err := os.ReadFile(s.path("app-1.0.0")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, the release has %d, %v", id, len(got), len(want), err)
	}
}

// sdk1Lamp: both sides of the SDK's example of a lamp and the app that watches
// it. The thing's name is written into it, and the app is a companion: the same
// certificate, another client id.
func sdk1Lamp(t *testing.T, s *site) {
	const id = "RGBLedLamp"
	s.foreign(id)
	app, _ := s.example(id, "thing-example.js", "-t", "1", "-i", id+"/1")
	until(t, "the app to listen", func() bool { return strings.Contains(app.text(), "Mobile thing registered.") })
	lamp, _ := s.example(id, "thing-example.js", "-t", "2", "-i", id)
	until(t, "the lamp's first state at the app", func() bool { return strings.Contains(app.text(), "delta on: "+id) })
	until(t, "the lamp's answer", func() bool { return strings.Contains(lamp.text(), "got 'accepted' status on: "+id) })
	var heard object
	_, text, _ := strings.Cut(app.text(), "delta on: "+id)
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&heard); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	stored := s.shadow(id)
	for _, color := range []string{"red", "green", "blue"} {
		if v, ok := heard.at("state." + color).(float64); !ok || v != stored.at("state.desired."+color) {
			t.Errorf("%s: the app heard %v, the server has %v", color, heard, stored)
		}
	}
	for _, p := range []*proc{app, lamp} {
		for _, bad := range []string{"timeout on", "mismtach", "offline", "error", "close"} { // as they spell it
			if strings.Contains(p.text(), bad) {
				t.Errorf("%q in what it says: %s", bad, p.text())
			}
		}
	}
	s.online(id, true)
	lamp.kill()
	s.online(id, false) // the app, which goes on, is not the device
}
