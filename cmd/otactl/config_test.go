package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResolveOrder(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caFlag, caEnv := write("flag.pem", "CA of the flag"), write("env.pem", "CA of the environment")
	tokenFlag, tokenEnv := write("flag.token", "otat_flag\n"), write("env.token", "otat_envfile\n")
	contexts := config{Current: "one", Contexts: []storedContext{
		{Name: "one", Server: "https://one", Token: "otat_one", CA: "CA one"},
		{Name: "two", Server: "https://two", Token: "otat_two", CA: "CA two"},
	}}
	for _, test := range []struct {
		name   string
		flags  globalFlags
		env    map[string]string
		want   target
		status int
	}{
		{name: "the current context", want: target{server: "https://one", token: "otat_one", ca: []byte("CA one"), caFrom: "context one"}},
		{name: "a named context", flags: globalFlags{context: "two"}, want: target{server: "https://two", token: "otat_two", ca: []byte("CA two"), caFrom: "context two"}},
		{name: "OTACTL_CONTEXT", env: map[string]string{"OTACTL_CONTEXT": "two"}, want: target{server: "https://two", token: "otat_two", ca: []byte("CA two"), caFrom: "context two"}},
		{name: "flags before environment", flags: globalFlags{server: "https://f/", tokenFile: tokenFlag, caFile: caFlag},
			env:  map[string]string{"OTACTL_SERVER": "https://e", "OTACTL_TOKEN": "otat_env", "OTACTL_CA_FILE": caEnv},
			want: target{server: "https://f", token: "otat_flag", ca: []byte("CA of the flag"), caFrom: caFlag}},
		{name: "token before token file", env: map[string]string{"OTACTL_TOKEN": "otat_env", "OTACTL_TOKEN_FILE": tokenEnv},
			want: target{server: "https://one", token: "otat_env", ca: []byte("CA one"), caFrom: "context one"}},
		{name: "token file of the environment", env: map[string]string{"OTACTL_TOKEN_FILE": tokenEnv, "OTACTL_CA_FILE": caEnv},
			want: target{server: "https://one", token: "otat_envfile", ca: []byte("CA of the environment"), caFrom: caEnv}},
		{name: "a context's token stays with its server", flags: globalFlags{server: "https://elsewhere"}, status: exitDenied},
		{name: "and its CA too", flags: globalFlags{server: "https://elsewhere", tokenFile: tokenFlag}, status: exitUsage},
		{name: "no such context", flags: globalFlags{context: "three"}, status: exitNotFound},
		{name: "in the clear", flags: globalFlags{server: "http://one"}, status: exitUsage},
		{name: "no host", flags: globalFlags{server: "https:///x"}, status: exitUsage},
	} {
		a, _, _ := testApp()
		a.flags = test.flags
		a.env = func(name string) string {
			if name == "OTACTL_CONFIG_DIR" {
				return filepath.Join(dir, "config")
			}
			return test.env[name]
		}
		if err := a.saveConfig(&contexts); err != nil {
			t.Fatal(err)
		}
		got, err := a.resolve()
		if test.status != 0 {
			if err == nil || classify(err).status != test.status {
				t.Errorf("%s: %+v, %v, want status %d", test.name, got, err, test.status)
			}
			continue
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(target{})); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", test.name, err, diff)
		}
	}
}

func TestFilesArePrivateWholeAndNotOverwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "key")
	if err := writeNewFile(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := writeNewFile(path, []byte("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second key over the first: %v", err)
	}
	if raw, _ := os.ReadFile(path); string(raw) != "one" {
		t.Errorf("the key became %q", raw)
	}
	if err := writeFile(path, []byte("three")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	if _, err := readSmall(path, 4); err == nil {
		t.Error("a file over its limit was read")
	}
}
