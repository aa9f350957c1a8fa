package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlite"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// killedEnv makes the test binary the process that is to be killed.
const killedEnv = "OTAD_TEST_KILLED_STORE"

func TestMain(m *testing.M) {
	if path := os.Getenv(killedEnv); path != "" {
		if err := writeUntilKilled(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if benched != "" {
		_ = os.RemoveAll(benched)
	}
	os.Exit(code)
}

const (
	killedDevices = 16
	killedRounds  = 10
	// killedLines is about how many acknowledged writes a round lets happen.
	killedLines = 400
)

// TestKilledProcessKeepsWhatItAcknowledged kills a writing process ten times in
// one file, and wants everything back that it said was stored.
func TestKilledProcessKeepsWhatItAcknowledged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "otad.db")
	prepareKilled(t, path)
	acknowledged := map[string]int64{}
	for round := range killedRounds {
		before := len(acknowledged)
		runAndKill(t, path, 1+rand.IntN(killedLines), acknowledged)
		verifyKilled(t, path, round, acknowledged)
		if round == 0 && len(acknowledged) == before {
			t.Fatal("the process acknowledged nothing")
		}
	}
}

func prepareKilled(t *testing.T, path string) {
	t.Helper()
	s, ctx := open(t, path), context.Background()
	enrollMany(t, s, killedDevices)
	must(t, createRelease(ctx, s))
	for name, expr := range map[string]string{"early": `shadow.reported.n < 40`, "late": `NOT shadow.reported.n < 40`, "some": `shadow.reported.n > 10 AND shadow.reported.n <= 90`} {
		must(t, s.CreateGroup(ctx, fleet.Group{Name: name, Dynamic: true, Selector: expr, CreatedAt: time.Now()}, nil))
		must(t, fleet.FillGroup(ctx, s, name))
	}
	r := running("r0", killedDevices)
	must(t, s.CreateRollout(ctx, r))
	must(t, s.Close())
}

// runAndKill notes what the process acknowledges and kills it after about so
// many lines, in the middle of whatever it is doing.
func runAndKill(t *testing.T, path string, lines int, acknowledged map[string]int64) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	in := bufio.NewScanner(out)
	for n := 0; in.Scan(); n++ {
		line := in.Text()
		if n == lines {
			must(t, cmd.Process.Kill())
		}
		var key string
		var version int64
		// The last line may be cut off by the kill; then it was never said.
		if _, err := fmt.Sscanf(line, "%s %d.", &key, &version); err == nil && strings.HasSuffix(line, ".") {
			acknowledged[key] = max(acknowledged[key], version)
		}
	}
	_ = cmd.Wait()
	if cmd.ProcessState.Exited() {
		t.Fatalf("the process ended by itself: %v", cmd.ProcessState)
	}
}

func verifyKilled(t *testing.T, path string, round int, acknowledged map[string]int64) {
	t.Helper()
	s, ctx := open(t, path), context.Background()
	for key, version := range acknowledged {
		kind, id, _ := strings.Cut(key, "/")
		var got int64
		switch kind {
		case "shadow":
			doc, err := s.Shadow(ctx, id, "")
			must(t, err)
			got = doc.Version
			if n, _ := doc.Reported.Get("n"); n.String() != fmt.Sprint(doc.Version) {
				t.Errorf("round %d: %s is at version %d but holds write %v", round, key, doc.Version, n)
			}
		case "execution":
			e, err := s.Execution(ctx, "r0", id)
			must(t, err)
			got = int64(e.Attempt)*1000 + e.Version
		case "rollout":
			r, err := s.Rollout(ctx, id)
			must(t, err)
			got = r.Revision
		}
		if got < version {
			t.Errorf("round %d: %s: acknowledged %d, found %d", round, key, version, got)
		}
	}
	broken, err := s.Check(ctx)
	must(t, err)
	for _, b := range broken {
		t.Errorf("round %d: %s", round, b)
	}
	must(t, s.Close())
}

// writeUntilKilled writes from many goroutines and says each acknowledged write
// on a line of its own, "kind/id version.".
func writeUntilKilled(path string) error {
	s, err := sqlite.Open(context.Background(), path)
	if err != nil {
		return err
	}
	k := &killed{Store: s, out: os.Stdout}
	errs := make(chan error)
	for i := range killedDevices {
		go func() { errs <- k.shadows(deviceID(i)) }()
	}
	go func() { errs <- k.rollouts() }()
	return <-errs
}

type killed struct {
	fleet.Store
	mu  sync.Mutex
	out io.Writer
}

func (k *killed) say(kind, id string, version int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fmt.Fprintf(k.out, "%s/%s %d.\n", kind, id, version)
}

// shadows writes into every version of a shadow its own number.
func (k *killed) shadows(id string) error {
	ctx := context.Background()
	n := int64(0)
	if doc, err := k.Shadow(ctx, id, ""); err == nil {
		n = doc.Version
	}
	for {
		n++
		u, err := shadow.ParseUpdate(fmt.Appendf(nil, `{"state":{"reported":{"n":%d}}}`, n))
		if err != nil {
			return err
		}
		r, err := k.UpdateShadow(ctx, id, "", u, time.Now())
		if err != nil {
			return err
		}
		k.say("shadow", id, r.Document.Version)
	}
}

// rollouts gives every device attempt after attempt and finishes each.
func (k *killed) rollouts() error {
	ctx := context.Background()
	for {
		r, err := k.Rollout(ctx, "r0")
		if err != nil {
			return err
		}
		step := fleet.Advance{Rollout: r, Now: time.Now()}
		for i := range killedDevices {
			attempt := 1
			if e, err := k.Execution(ctx, "r0", deviceID(i)); err == nil {
				attempt = e.Attempt
				if e.Status.Terminal() {
					attempt++
				}
			}
			step.Insert = append(step.Insert, ota.Execution{DeviceID: deviceID(i), Attempt: attempt, Status: ota.Queued})
		}
		if err := k.Advance(ctx, step); err != nil {
			return err
		}
		k.say("rollout", "r0", r.Revision+1)
		for i := range killedDevices {
			if err := k.execute(deviceID(i)); err != nil {
				return err
			}
		}
	}
}

func (k *killed) execute(id string) error {
	ctx := context.Background()
	e, err := k.StartNext(ctx, id, ota.Starting{}, time.Now())
	if err != nil {
		return err
	}
	k.say("execution", id, int64(e.Attempt)*1000+e.Version)
	e, err = k.Report(ctx, ota.Report{RolloutID: "r0", DeviceID: id, Status: ota.Failed}, time.Now())
	if err != nil {
		return err
	}
	k.say("execution", id, int64(e.Attempt)*1000+e.Version)
	return nil
}
