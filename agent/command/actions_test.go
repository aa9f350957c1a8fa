package command

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/otad/otad/pkg/ota"
)

func runner(t *testing.T, actions map[string]Action) *Runner {
	t.Helper()
	r, err := New(Config{Actions: actions, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestActionRuns(t *testing.T) {
	show := script(t, `printf '%s|' "$@" "$OTAGENT_PARAM_LEVEL" "$OTAGENT_PARAM_FREETEXT" "$SECRET"; exit ${OTAGENT_PARAM_LEVEL}`)
	r := runner(t, map[string]Action{"show": {
		Run:        []string{show, "--level", "{level}", "{freeText}", "{level}x", "{}"},
		Parameters: map[string]string{"level": "[0-9]", "freeText": ".*"},
	}})
	t.Setenv("SECRET", "x")
	evil := `$(reboot); "a" 'b' | * {level}`
	out := r.Run(t.Context(), ota.Command{Name: "show", Parameters: map[string]string{"level": "0", "freeText": evil}})
	if want := "--level|0|" + evil + "|{level}x|{}|0|" + evil + "||"; out.Err != nil || out.Details["output"] != want || out.Details["exitCode"] != "0" {
		t.Errorf("%+v, want %s", out, want)
	}
	out = r.Run(t.Context(), ota.Command{Name: "show", Parameters: map[string]string{"level": "3", "freeText": ""}})
	if out.Err == nil || out.Err.Error() != "exit status 3" || out.Details["exitCode"] != "3" {
		t.Errorf("%+v", out)
	}
}

// TestActionOutputFitsAReport, with its begin and its end.
func TestActionOutputFitsAReport(t *testing.T) {
	r := runner(t, map[string]Action{"talk": {Run: []string{script(t, `echo begin; i=0; while [ $i -lt 3000 ]; do echo éééé; i=$((i+1)); done; echo end`)}}})
	for _, limit := range []int{1, 100, 1024, 1025, ota.MaxCommandOutput} {
		out := r.Run(t.Context(), ota.Command{Name: "talk", MaxOutputBytes: limit})
		if out.Err != nil || out.Details["outputBytes"] != fmt.Sprint(6+3000*9+4) || len(out.Details) > ota.MaxDetails-2 {
			t.Fatalf("%d: %+v", limit, out)
		}
		text := out.Details["output"]
		for i := 2; out.Details[fmt.Sprint("output", i)] != ""; i++ {
			text += out.Details[fmt.Sprint("output", i)]
		}
		if len(text) > limit || limit >= 100 && (!strings.HasPrefix(text, "begin") || !strings.HasSuffix(text, "end\n")) {
			t.Errorf("%d: %q", limit, text)
		}
		for k, v := range out.Details {
			if len(v) > ota.MaxDetailValueBytes {
				t.Errorf("%d: %s has %d bytes", limit, k, len(v))
			}
		}
	}
}

func TestActionTimesOut(t *testing.T) {
	r := runner(t, map[string]Action{"hang": {Run: []string{script(t, "echo here; sleep 600")}}})
	out := r.Run(t.Context(), ota.Command{Name: "hang", TimeoutSeconds: 1})
	if out.Err == nil || !strings.Contains(out.Err.Error(), "after 1s") || !strings.HasPrefix(out.Details["output"]+"here", "here") {
		t.Errorf("%+v", out)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if out := r.Run(ctx, ota.Command{Name: "hang"}); !errors.Is(out.Err, context.Canceled) {
		t.Errorf("%+v", out)
	}
}

// TestActionIsRefused: deny by default, and say what is allowed.
func TestActionIsRefused(t *testing.T) {
	r := runner(t, map[string]Action{"set": {Run: []string{"/bin/false"}, Parameters: map[string]string{"level": "[0-9]|max"}}, "list": {Run: []string{"/bin/false"}}})
	for want, c := range map[string]ota.Command{
		"which has: reboot, collect-logs, list, set": {Name: "shell"},
		`needs the parameter "level"`:                {Name: "set"},
		`takes no parameter "mode"`:                  {Name: "set", Parameters: map[string]string{"level": "1", "mode": "x"}},
		`"12" does not match`:                        {Name: "set", Parameters: map[string]string{"level": "12"}},
		`"maximum" does not match`:                   {Name: "set", Parameters: map[string]string{"level": "maximum"}},
		`does not match [0-9]`:                       {Name: "set", Parameters: map[string]string{"level": "1\n"}},
		"takes no parameters":                        {Name: "collect-logs", Parameters: map[string]string{"a": ""}},
	} {
		if err := r.Check(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", c, err, want)
		}
		if out := r.Run(t.Context(), c); out.Err == nil {
			t.Errorf("%+v was run", c)
		}
	}
	if err := r.Check(ota.Command{Name: "set", Parameters: map[string]string{"level": "max"}}); err != nil {
		t.Error(err)
	}
}

func TestConfigurationIsRefused(t *testing.T) {
	many := map[string]Action{}
	for i := range MaxActions + 1 {
		many[fmt.Sprint("a", i)] = Action{Run: []string{"/bin/true"}}
	}
	for want, c := range map[string]Config{
		"65 actions: at most 64":            {Actions: many},
		"has this command already":          {Actions: map[string]Action{"reboot": {Run: []string{"x"}}}},
		"run has 0 words":                   {Actions: map[string]Action{"a": {}}},
		"run has 65 words":                  {Actions: map[string]Action{"a": {Run: slices.Repeat([]string{"x"}, MaxActionArguments+1)}}},
		`action "a b"`:                      {Actions: map[string]Action{"a b": {Run: []string{"x"}}}},
		"parameter p: error parsing regexp": {Actions: map[string]Action{"a": {Run: []string{"x"}, Parameters: map[string]string{"p": "("}}}},
		`command parameter "p-"`:            {Actions: map[string]Action{"a": {Run: []string{"x"}, Parameters: map[string]string{"p-": "."}}}},
		"there is no such parameter":        {Actions: map[string]Action{"a": {Run: []string{"x", "{p}"}}}},
		"program must not be a parameter":   {Actions: map[string]Action{"a": {Run: []string{"{p}"}, Parameters: map[string]string{"p": "."}}}},
		"want an absolute path":             {Logs: Logs{Files: []string{"log"}}},
		"systemd unit":                      {Logs: Logs{Units: []string{"--root=/"}}},
		"33 log files":                      {Logs: Logs{Files: slices.Repeat([]string{"/x"}, MaxLogFiles+1)}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestCollectLogs(t *testing.T) {
	dir := t.TempDir()
	small, large, none := filepath.Join(dir, "small.log"), filepath.Join(dir, "large.log"), filepath.Join(dir, "none.log")
	if err := os.WriteFile(small, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(large, append(make([]byte, MaxLogBytes), "the end"...), 0o600); err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	var to string
	upload := func(_ context.Context, url string, r io.Reader) error {
		to = url
		_, err := io.Copy(&body, r)
		return err
	}
	r, err := New(Config{Logs: Logs{Files: []string{small, none, large}}, Upload: upload, TempDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	c := ota.Command{Name: ota.CommandCollectLogs, UploadURL: "https://h/uploads/1"}
	out := r.Run(t.Context(), c)
	if out.Err != nil || to != c.UploadURL || out.Details["uploadBytes"] != fmt.Sprint(body.Len()) || !strings.HasPrefix(out.Details["files"], small+" "+large) || out.Details[ota.DetailReason] != "can not be opened: "+none {
		t.Fatalf("%+v", out)
	}
	z, err := gzip.NewReader(&body)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for a := tar.NewReader(z); ; {
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(a)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(h.Name, "journal-") {
			got[h.Name] = fmt.Sprintf("%d %s", len(b), bytes.TrimLeft(b, "\x00"))
		}
	}
	want := map[string]string{small[1:]: "6 hello\n", large[1:]: fmt.Sprintf("%d the end", MaxLogBytes)}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	left, err := filepath.Glob(filepath.Join(dir, "journal-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	full := errors.New("too large")
	r.cfg.Upload = func(context.Context, string, io.Reader) error { return full } // reads nothing
	if out := r.Run(t.Context(), c); !errors.Is(out.Err, full) {
		t.Errorf("%+v", out)
	}
	r.cfg.Upload = nil
	if out := r.Run(t.Context(), c); out.Err == nil {
		t.Error("uploaded to nowhere")
	}
}
