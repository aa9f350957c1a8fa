package health

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/internal/testserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t *testing.T, contract string, trial agent.Trial) error {
	t.Helper()
	d, err := Checker{}.Deadline([]byte(contract))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), d)
	defer stop()
	return Checker{}.Check(ctx, []byte(contract), trial)
}

func TestHoldAndDeadline(t *testing.T) {
	const contract = `{"hold":"4s","deadline":"20s","checks":[{"running":{}}]}`
	for name, c := range map[string]struct {
		alive func(at time.Duration) bool
		want  string
		after time.Duration
	}{
		"healthy":          {func(time.Duration) bool { return true }, "", 4 * time.Second},
		"starts late":      {func(at time.Duration) bool { return at > 10*time.Second }, "", 14 * time.Second},
		"dies once":        {func(at time.Duration) bool { return at < 3*time.Second || at > 4*time.Second }, "", 8 * time.Second},
		"never":            {func(time.Duration) bool { return false }, "does not run", 20 * time.Second},
		"flaps":            {func(at time.Duration) bool { return at/time.Second%3 != 0 }, "not healthy before the deadline", 20 * time.Second},
		"late by a second": {func(at time.Duration) bool { return at > 17*time.Second }, "did not hold for 4s", 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				err := check(t, contract, agent.Trial{Alive: func() bool { return c.alive(time.Since(began)) }})
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v, want %q", err, c.want)
				}
				if took := time.Since(began); took < c.after-time.Second || took > c.after+time.Second {
					t.Fatalf("took %s, want about %s", took, c.after)
				}
			})
		})
	}
}

func TestProbes(t *testing.T) {
	var broken atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	closed, err := testserver.FreeAddr() // which no connection gets meanwhile
	if err != nil {
		t.Fatal(err)
	}
	image := t.TempDir() + "/image"
	if err := os.WriteFile(image, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := agent.Trial{Image: image, Alive: func() bool { return true }}
	contract := func(deadline, checks string) string {
		return fmt.Sprintf(`{"hold":"100ms","deadline":%q,"checks":[%s]}`, deadline, checks)
	}
	good := contract("1m", fmt.Sprintf(`{"http":%q},{"tcp":%q},{"command":["test","-f","{image}"]},{"running":{}}`, srv.URL+"/healthz", srv.Listener.Addr()))
	if err := check(t, good, up); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	var failing sync.WaitGroup
	for checks, want := range map[string]string{ // a slow machine has to get to each of them once before the deadline
		fmt.Sprintf(`{"http":%q}`, srv.URL):                  "503",
		fmt.Sprintf(`{"tcp":%q}`, closed):                    "refused",
		`{"command":["sh","-c","echo no disk >&2; exit 3"]}`: "exit status 3: no disk",
		`{"command":["/does/not/exist"]}`:                    "no such file",
		`{"command":["sleep","60"]}`:                         "not healthy",
	} {
		failing.Go(func() {
			if err := check(t, contract("4s", checks), up); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", checks, err, want)
			}
		})
	}
	failing.Wait()
}

func TestDamagedKernelFailsAtOnce(t *testing.T) {
	image := t.TempDir() + "/image"
	whole := arm64Kernel()
	if err := os.WriteFile(image, whole[:len(whole)-100], 0o600); err != nil {
		t.Fatal(err)
	}
	// At the deadline it would be too late for the test, and another error.
	err := check(t, `{"hold":"1s","deadline":"1h","checks":[{"kernel":{}}]}`, agent.Trial{Image: image})
	if err == nil || !strings.Contains(err.Error(), "cut short") || strings.Contains(err.Error(), "deadline") {
		t.Fatal(err)
	}
}
