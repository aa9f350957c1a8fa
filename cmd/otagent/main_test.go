package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/otad/otad/agent/device"
	"github.com/otad/otad/pkg/enroll"
)

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	tokenFile := filepath.Join(dir, "token")
	token := enroll.Token{ID: [8]byte{1}}.String()
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	enrollTo := func(more ...string) []string {
		return append([]string{"enroll", "--dir", filepath.Join(dir, "new"), "--server", "https://127.0.0.1:1", "--id", "gw-1", "--hardware", "rpi4"}, more...)
	}
	for _, tc := range []struct {
		name string
		args []string
		env  map[string]string
		exit int
		says string // on stderr, or on stdout when exit is 0
	}{
		{"nothing", nil, nil, device.ExitUsage, "what to do?"},
		{"unknown", []string{"upgrade"}, nil, device.ExitUsage, `unknown command "upgrade"`},
		{"help", []string{"help"}, nil, 0, "otagent enroll"},
		{"help of a command", []string{"run", "-h"}, nil, 0, "otagent enroll"},
		{"version", []string{"version"}, nil, 0, "otagent devel go"},
		{"unknown flag", []string{"run", "--directory", "x"}, nil, device.ExitUsage, "-directory"},
		{"argument", []string{"run", "x"}, nil, device.ExitUsage, `got "x"`},
		{"log format", []string{"run", "--log-format", "xml"}, nil, device.ExitUsage, "text or json"},
		{"log level", []string{"run", "--log-level", "loud"}, nil, device.ExitUsage, "debug, info"},
		{"run without a device", []string{"run", "--dir", dir}, nil, device.ExitNotFound, "hint: enroll it first"},
		{"run without a directory", []string{"run", "--dir", dir + "/none"}, nil, device.ExitNotFound, "not enrolled"},
		{"status without a device", []string{"status", "--dir", dir}, nil, device.ExitNotFound, "not enrolled"},
		{"status format", []string{"status", "-o", "yaml"}, nil, device.ExitUsage, "table or json"},
		{"enroll without flags", []string{"enroll"}, nil, device.ExitUsage, "enroll needs --server"},
		{"enroll without a token", enrollTo(), nil, device.ExitUsage, "OTAGENT_TOKEN"},
		{"two tokens", enrollTo("--token", token, "--token-file", tokenFile), nil, device.ExitUsage, "not both"},
		{"bad token", enrollTo("--token", "otat_x"), nil, device.ExitUsage, "hint: make one with"},
		{"no token file", enrollTo("--token-file", dir+"/none"), nil, device.ExitFailed, "token file"},
		{"bad key type", enrollTo("--token", token, "--key-type", "rsa"), nil, device.ExitUsage, "p256"},
		{"bad id", enrollTo("--token", token, "--id", "a/b"), nil, device.ExitUsage, "a/b"},
		{"plain server", enrollTo("--token", token, "--server", "http://x"), nil, device.ExitFailed, "want https://"},
		{"arguments without an image", enrollTo("--token", token, "--", "x"), nil, device.ExitUsage, "without --factory"},
		{"no server, token in a flag", enrollTo("--token", token), nil, device.ExitUnreachable, "hint: check --server"},
		{"no server, token in a file", enrollTo("--token-file", tokenFile), nil, device.ExitUnreachable, "unreachable"},
		{"no server, token in the environment", enrollTo(), map[string]string{"OTAGENT_TOKEN": token}, device.ExitUnreachable, "unreachable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			p := program{stdout: &stdout, stderr: &stderr, env: func(k string) string { return tc.env[k] }}
			exit := p.run(t.Context(), tc.args)
			text := stderr.String()
			if tc.exit == 0 {
				text = stdout.String()
			}
			if exit != tc.exit || !strings.Contains(text, tc.says) {
				t.Errorf("exit %d, want %d\nstdout: %s\nstderr: %s", exit, tc.exit, &stdout, &stderr)
			}
			if strings.Contains(stderr.String(), token) {
				t.Error("the token is shown")
			}
		})
	}
}
