package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestAgentKilled cuts a device's power in the middle of download, install and
// trial. It starts again and finishes; the server sees one outcome.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.addDevices(1)
	s.release("1.0.0", 1000, true)
	s.ends(s.rollout("1.0.0", "--stages", "100%"), "COMPLETED")
	for i, states := range [][]string{{"FETCH"}, {"STAGED", "ARM", "REBOOT"}, {"TRIAL"}} {
		version := "2." + string(rune('0'+i)) + ".0"
		s.release(version, 60<<20, true)
		id := s.rollout(version, "--stages", "100%")
		until(t, "the device to be in "+states[0], func() bool { return slices.Contains(states, s.status("gw-1").State) })
		s.devices["gw-1"].kill()
		if got := s.runs("gw-1"); got == "" {
			t.Fatalf("nothing bootable after a cut in %s", states[0])
		}
		s.startDevice("gw-1")
		r := s.ends(id, "COMPLETED")
		if n := r.Stages[0].Counts.Finished["succeeded"]; n != 1 {
			t.Errorf("cut in %s: %+v", states[0], r.Stages[0].Counts)
		}
		s.allRun(version)
	}
	s.check()
}

// TestServerKilled kills the server at several moments of a rollout and starts
// it again: the rollout goes on, nothing is lost or doubled.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.addDevices(4)
	s.release("1.0.0", 1<<20, true)
	id := s.rollout("1.0.0", "--stages", "25%,50%,100%")
	for range 3 {
		before := s.show(id)
		until(t, "the rollout to move", func() bool {
			now := s.show(id)
			return now.State == "COMPLETED" || finished(now) > finished(before) || open(now) != open(before)
		})
		s.server.kill()
		s.startServer()
	}
	r := s.ends(id, "COMPLETED")
	if finished(r) != 4 {
		t.Errorf("%d finished: %+v", finished(r), r.Stages)
	}
	s.allRun("1.0.0")
	s.check()
}

func finished(r rolloutJSON) (n int) {
	for _, s := range r.Stages {
		for _, of := range s.Counts.Finished {
			n += of
		}
	}
	return n
}

func open(r rolloutJSON) (n int) {
	for _, s := range r.Stages {
		if s.State != "PENDING" {
			n++
		}
	}
	return n
}

// TestFlippedByte changes one byte of the image, of the index and of the signed
// metadata on the server, as a thief of the server would. The device refuses,
// says why, and stays on its version.
func TestFlippedByte(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		flip func(*testing.T, *site)
		says []string
	}{
		"image":    {func(t *testing.T, s *site) { flipFile(t, newest(t, s.path("server", "blobs", "images+"))) }, []string{"chunk", "image"}},
		"index":    {func(t *testing.T, s *site) { flipFile(t, newest(t, s.path("server", "blobs", "indexes+"))) }, []string{"sha256", "digest", "index"}},
		"metadata": {flipMetadata, []string{"signature", "sha256", "digest", "metadata", "trust", "hash"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, nil)
			s.addDevices(1)
			s.release("1.0.0", 1000, true)
			s.ends(s.rollout("1.0.0", "--stages", "100%"), "COMPLETED")
			s.devices["gw-1"].stop()
			s.release("2.0.0", 300_000, true)
			c.flip(t, s)
			id := s.rollout("2.0.0", "--stages", "100%", "--abort", "any>0%")
			s.startDevice("gw-1")
			r := s.ends(id, "ABORTED")
			if len(r.Failures) != 1 || !slices.ContainsFunc(c.says, func(w string) bool { return strings.Contains(strings.ToLower(r.Failures[0].Reason), w) }) {
				t.Errorf("the device says %+v", r.Failures)
			}
			s.allRun("1.0.0")
		})
	}
}

func newest(t *testing.T, dir string) string {
	t.Helper()
	var path string
	var at int64
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.ModTime().UnixNano() > at {
			path, at = p, info.ModTime().UnixNano()
		}
		return err
	})
	if err != nil || path == "" {
		t.Fatalf("no object in %s: %v", dir, err)
	}
	return path
}

func flipFile(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// flipMetadata changes the signed hardware model in the stored targets, wherever
// in the database it lies.
func flipMetadata(t *testing.T, s *site) {
	t.Helper()
	s.server.stop()
	path := s.path("server", "otad.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := []byte(`"version":"2.0.0"`)
	changed := bytes.ReplaceAll(b, old, []byte(`"version":"2.0.1"`))
	if bytes.Equal(b, changed) {
		t.Fatal("the metadata was not found in the database")
	}
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	s.startServer()
}
