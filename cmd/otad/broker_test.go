package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBrokerCRL(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	if _, err := run(t.Context(), "broker", "crl", "--data", data); err == nil || !strings.Contains(err.Error(), "no store") {
		t.Errorf("of nothing: %v", err)
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("a store was made")
	}
	o := start(t, data)
	if _, err := run(t.Context(), "broker", "crl", "--data", data); err == nil || !strings.Contains(err.Error(), "--crl-file") {
		t.Errorf("of a running server: %v", err)
	}
	must(t, o.cmd.Process.Kill())
	_ = o.cmd.Wait() // it was killed
	shown, err := run(t.Context(), "broker", "crl", "--data", data)
	must(t, err)
	file := filepath.Join(t.TempDir(), "crl.pem")
	if _, err := run(t.Context(), "broker", "crl", "--data", data, "--out", file); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(file)
	must(t, err)
	for _, text := range []string{shown, string(written)} {
		block, rest := pem.Decode([]byte(text))
		if block == nil {
			t.Fatalf("no list in %q", text)
		}
		if _, err := x509.ParseRevocationList(block.Bytes); err != nil || len(rest) == 0 {
			t.Errorf("%v, and %d bytes more", err, len(rest))
		}
	}
}

// The setting of the server is what the broker's configuration names.
func TestBrokerConfigNamesTheLists(t *testing.T) {
	file := filepath.Join(t.TempDir(), "otad.yaml")
	must(t, os.WriteFile(file, []byte("crl-file: /var/lib/otad-crl/crl.pem\n"), 0o600))
	for want, args := range map[string][]string{
		"\ncrlfile /var/lib/otad-crl/crl.pem\n": {"--config", file},
		"\ncrlfile /elsewhere\n":                {"--config", file, "--crl-file", "/elsewhere"},
	} {
		out, err := run(t.Context(), append([]string{"broker", "config", "mosquitto"}, args...)...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("want %q: %v\n%s", want, err, out)
		}
	}
}

func TestBrokerConfigEMQX(t *testing.T) {
	dir := t.TempDir()
	out, err := run(t.Context(), "broker", "config", "emqx", "--out", dir, "--topic-publish", "sensors/{device}/#")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for file, want := range map[string]string{
		"otad-emqx.conf": `path = "/etc/emqx/otad-acl.conf"`,
		"otad-acl.conf":  `{allow, all, publish, ["sensors/${username}/#"]}.`,
	} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v\n%s", file, err, text)
		}
	}
	for _, args := range [][]string{{"emqx", "--crl-file", "/x"}, {"hivemq"}, {}, {"emqx", "--client-ids", "gw-1"}, {"emqx", "--topic-publish", "{device}/#"}} {
		if _, err := run(t.Context(), append([]string{"broker", "config"}, args...)...); err == nil || exitCode(err) != 2 {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// The broker is another user than who writes its files: it may read copies of all
// but the key, which is given to it.
func TestWhoMayReadTheFilesOfTheBroker(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"cert", "--data", filepath.Join(dir, "data"), "--hosts", "broker.example"}, {"config", "mosquitto"}, {"config", "emqx"},
	} {
		_, err := run(t.Context(), slices.Concat([]string{"broker"}, args, []string{"--out", filepath.Join(dir, "out")})...)
		must(t, err)
	}
	want := map[string]os.FileMode{
		"broker.key": 0o600, "broker.pem": 0o644, "ca.pem": 0o644,
		"otad.conf": 0o644, "otad.acl": 0o644, "otad-emqx.conf": 0o644, "otad-acl.conf": 0o644,
	}
	files, err := os.ReadDir(filepath.Join(dir, "out"))
	must(t, err)
	for _, f := range files {
		info, err := f.Info()
		must(t, err)
		if info.Mode().Perm() != want[f.Name()] {
			t.Errorf("%s: %s", f.Name(), info.Mode())
		}
	}
	if len(files) != len(want) {
		t.Errorf("%d files", len(files))
	}
}

func TestBrokerConfigLetsItsServerIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "otad.yaml")
	if err := os.WriteFile(file, []byte("mqtt-client-id: otad-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"mosquitto", "emqx"} {
		for want, args := range map[string][]string{"otad-1": nil, "otad-2": {"--client-ids", "otad-2,otad-3"}} {
			out, err := run(t.Context(), append([]string{"broker", "config", kind, "--config", file}, args...)...)
			if err != nil || !strings.Contains(out, want) || (args == nil) != strings.Contains(out, "otad-1") {
				t.Errorf("%s %v: %v\n%s", kind, args, err, out)
			}
		}
	}
}
