package health

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	c, err := Parse([]byte(`{"hold":"3s","deadline":"1m","checks":[{"command":["{image}","--selftest"]},
		{"http":"http://127.0.0.1:8080/healthz"},{"tcp":"127.0.0.1:22"},{"kernel":{}},{"running":{}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Hold != 3*time.Second || c.Deadline != time.Minute || len(c.Checks) != 5 || !c.Checks[3].Kernel || !c.Checks[4].Running {
		t.Fatalf("%+v", c)
	}
	for _, empty := range []string{"", " ", "{}", `{"checks":[]}`} {
		c, err := Parse([]byte(empty))
		if err != nil || c.Hold != DefaultHold || c.Deadline != DefaultDeadline || len(c.Checks) != 1 || !c.Checks[0].Running {
			t.Errorf("%q: %+v %v", empty, c, err)
		}
	}
	if c, err := Parse([]byte(`{"hold":"5m"}`)); err != nil || c.Deadline <= c.Hold {
		t.Errorf("default deadline %+v %v", c, err)
	}
}

func TestParseRefuses(t *testing.T) {
	many := `{"checks":[` + strings.Repeat(`{"running":{}},`, MaxChecks) + `{"running":{}}]}`
	for in, remedy := range map[string]string{
		`[]`:                            "contract",
		`{"hold":2}`:                    "contract",
		`{"hold":"2 s"}`:                "want a duration",
		`{"hold":"-1s"}`:                "at most 1h",
		`{"hold":"2h"}`:                 "at most 1h",
		`{"deadline":"25h"}`:            "at most 24h",
		`{"hold":"9s","deadline":"9s"}`: "not after hold",
		`{"check":[]}`:                  "unknown field",
		`{} {}`:                         "bytes after",
		`{"checks":[{}]}`:               "want one of",
		`{"checks":[{"running":{},"kernel":{}}]}`:    "want one of",
		`{"checks":[{"running":{"x":1}}]}`:           "unknown field",
		`{"checks":[{"command":[]}]}`:                "want 1 to",
		`{"checks":[{"command":[""]}]}`:              "program first",
		`{"checks":[{"command":["a\u0000"]}]}`:       "none of them zero",
		`{"checks":[{"command":"reboot"}]}`:          "contract",
		`{"checks":[{"http":"ftp://x/"}]}`:           "want http://",
		`{"checks":[{"http":"http://u:p@x/"}]}`:      "want http://",
		`{"checks":[{"tcp":"localhost"}]}`:           "HOST:PORT",
		`{"checks":[{"tcp":"localhost:99999"}]}`:     "HOST:PORT",
		many:                                         "at most 16",
		`"` + strings.Repeat("x", MaxContract) + `"`: "at most 16384",
	} {
		_, err := Parse([]byte(in))
		if !errors.Is(err, ErrContract) || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%.60s: %v, want %q", in, err, remedy)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"hold":"2s","deadline":"30s","checks":[{"command":["a"]},{"http":"http://h:1/"},{"tcp":"h:1"},{"kernel":{}},{"running":{}}]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err == nil && (c.Deadline <= c.Hold || len(c.Checks) == 0 || len(c.Checks) > MaxChecks) {
			t.Fatalf("%+v", c)
		}
		if err != nil && !errors.Is(err, ErrContract) {
			t.Fatal(err)
		}
	})
}
