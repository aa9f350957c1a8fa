package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/otad/otad/internal/testserver"
)

// simulated is a fleet of simulated devices as a process.
type simulated struct {
	*proc
	out string // file of its standard output
}

// simulate starts devices of a site and returns once all are enrolled.
func (s *site) simulate(devices int, args ...string) *simulated {
	s.t.Helper()
	token := strings.TrimSpace(s.must("token", "create", "--uses", strconv.Itoa(devices), "--hardware", hardware, "-q"))
	f := &simulated{out: s.path("simulate.json")}
	argv := append([]string{"-c", `exec "$0" "$@" >` + f.out, bin + "/otactl", "simulate", "-o", "json",
		"--device-server", s.at.Device, "--devices", strconv.Itoa(devices), "--hardware", hardware}, args...)
	env := append(s.operator(), "OTAGENT_TOKEN="+token)
	f.proc = start(s.t, "otactl simulate", s.path("simulate.log"), env, append([]string{"/bin/sh"}, argv...)...)
	until(s.t, "the simulated devices to run", func() bool {
		select {
		case <-f.done:
			s.t.Fatal("otactl simulate ended at its start")
		default:
		}
		return strings.Contains(f.text(), "devices run")
	})
	return f
}

// fleetSummary is what otactl simulate says at its end.
type fleetSummary struct {
	Devices, Silent, PowerCuts int
	Runs, Acknowledged         map[string]int
	Missing                    []string
}

// end interrupts the fleet; nothing that was acknowledged may be missing.
func (f *simulated) end() fleetSummary {
	f.t.Helper()
	if err := f.cmd.Process.Signal(syscall.SIGINT); err != nil {
		f.t.Fatal(err)
	}
	<-f.done
	var sum fleetSummary
	raw, err := os.ReadFile(f.out)
	if err == nil {
		err = json.Unmarshal(raw, &sum)
	}
	if err != nil {
		f.t.Fatalf("otactl simulate: %v in %s", err, raw)
	}
	for _, missing := range sum.Missing {
		f.t.Error(missing)
	}
	if code := f.cmd.ProcessState.ExitCode(); code != 0 {
		f.t.Errorf("otactl simulate ended with status %d", code)
	}
	return sum
}

// image is a small release of the simulated devices.
func (s *site) image(version string) {
	s.t.Helper()
	path := s.path("image-" + version)
	if err := os.WriteFile(path, noise(version, 64<<10), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.must("firmware", "upload", path, "--name", "app", "--version", version, "--hardware", hardware, "--installer", "image")
}

const (
	killedDevices = 1000
	// Of each of two databases.
	killRounds     = 50
	soakKillRounds = 1000
)

// TestRolloutsOutliveKills kills otad at random moments of rollouts over 1,000
// agents that lose connections and power, on both databases: no report that was
// acknowledged is lost, none is taken twice, no stage is ever over its size, and
// the rollouts end. SOAKSEED repeats the moments of a run, SOAKTIME makes it long (at
// least soakKillRounds, however long they take).
func TestRolloutsOutliveKills(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		killRollouts(t, nil)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		var pg testserver.Postgres
		t.Cleanup(pg.Stop)
		killRollouts(t, []string{"OTAD_DATABASE=" + pg.Database(t)})
	})
}

// killRollouts has the next rollout begin when the one before is nearly over: an otad that
// is killed every other second ends nobody as silent, so that a device which is gone for
// good holds up the end of its rollout to that of the kills, and these have to find work.
// The first stages pass by some of their devices, for the same reason.
func killRollouts(t *testing.T, env []string) {
	seed, err := strconv.ParseUint(os.Getenv("SOAKSEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("SOAKSEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	s := newSite(t, env, "--enroll-limit", "100000", "--log-level", "warn")
	versions := []string{"1.0", "1.1"}
	for _, v := range versions {
		s.image(v)
	}
	f := s.simulate(killedDevices, "--seed", strconv.FormatUint(seed, 10), "--reconnect", "1s", "--trial", "200ms",
		"--bad", "1%", "--silent", "0.1%", "--cut", "5m", "--power-cut", "5m")
	var ids []string
	over, rounds := true, killRounds
	if soakTime > 0 {
		rounds = soakKillRounds
	}
	began, kills, busy := time.Now(), 0, 0
	for round := 1; round <= rounds || time.Since(began) < soakTime; round++ {
		if over {
			ids = append(ids, s.rollout(versions[len(ids)%2], "--stages", "2%,20%,100%", "--gate", "50% min 10", "--abort", "any>60% min 20",
				"--claim-timeout", "1m", "--reboot-timeout", "1m", "--attempts", "3", "--backoff", "1s", "--retry-on", "rolled_back,failed", "--quarantined"))
		}
		timer := time.NewTimer(time.Duration(random.IntN(2500)) * time.Millisecond)
		<-timer.C // any moment will do: it is what is drawn here
		s.server.kill()
		kills++
		s.startServer()
		r := s.show(ids[len(ids)-1])
		withinSizes(t, r)
		left := killedDevices - r.finished()
		if over = final(r.State) || left < killedDevices/20; !over {
			busy++
		}
		if t.Failed() {
			t.Fatalf("round %d of SOAKSEED=%d", round, seed)
		}
	}
	for _, id := range ids {
		s.awaitFinal(id)
	}
	sum := f.end()
	t.Logf("%d kills, %d with more than a twentieth of the devices to come, %d rollouts, %v acknowledged, none lost; %d power cuts, %d devices gone; run %v",
		kills, busy, len(ids), sum.Acknowledged, sum.PowerCuts, sum.Silent, sum.Runs)
	s.check()
}

// longPatience is for a thousand devices on a busy machine.
const longPatience = 10 * time.Minute

// awaitFinal waits for a rollout to end, and holds it to its sizes all the while.
func (s *site) awaitFinal(id string) {
	s.t.Helper()
	deadline, tick := time.NewTimer(longPatience), time.NewTicker(time.Second)
	defer deadline.Stop()
	defer tick.Stop()
	for {
		r := s.show(id)
		if withinSizes(s.t, r); final(r.State) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			s.t.Fatalf("rollout %s does not end:\n%s%s", id, s.must("rollout", "show", id), s.must("rollout", "devices", id, "--active"))
		}
	}
}

func final(state string) bool { return state == "COMPLETED" || state == "ABORTED" || state == "PAUSED" }

// finished is how many devices have come to an end.
func (r rolloutJSON) finished() (n int) {
	for _, stage := range r.Stages {
		for _, finished := range stage.Counts.Finished {
			n += finished
		}
	}
	return n
}

// withinSizes holds every stage to its size.
func withinSizes(t *testing.T, r rolloutJSON) {
	t.Helper()
	before := 0
	for i, stage := range r.Stages {
		n := stage.Counts.Queued + stage.Counts.InProgress
		for _, finished := range stage.Counts.Finished {
			n += finished
		}
		if n > stage.Target-before {
			t.Errorf("rollout %s: stage %d has %d devices, of %d that it may have", r.ID, i+1, n, stage.Target-before)
		}
		before = stage.Target
	}
}

// goesOnWithin is how long a rollout may stand still when one of two otad is killed.
const goesOnWithin = 10 * time.Second

// TestRolloutOutlivesAReplica lets two otad on one PostgreSQL work the same
// rollout, behind a mosquitto, and kills one in the middle of the delivery to a
// webhook: both go on, and the webhook is told of everything. The rollout goes on
// within goesOnWithin, and what a device needs of time on this machine.
func TestRolloutOutlivesAReplica(t *testing.T) {
	t.Parallel()
	const devices = 200
	var pg testserver.Postgres
	t.Cleanup(pg.Stop)
	url := pg.Database(t)
	database := "OTAD_DATABASE=" + url
	broker := freeAddr(t)
	flags := func(id string) []string {
		return []string{"--mqtt-broker", "mqtts://localhost:" + port(broker), "--mqtt-client-id", id, "--enroll-limit", "100000", "--webhook-allow", "127.0.0.1"}
	}
	a := prepareSite(t, []string{database}, flags("otad-a")...)
	a.flags = append(a.flags, "--crl-file", a.path("crl.pem"))
	a.mosquitto(broker)
	a.startServer()
	a.must("key", "init")
	a.image("1.0")
	f := a.simulate(devices, "--reconnect", "500ms", "--trial", "200ms")
	o := newOwners(t, url)
	first := o.only()
	b := prepareSite(t, []string{database}, flags("otad-b")...)
	for _, dir := range []string{"ca", "keys"} { // replicas share them
		if err := os.CopyFS(b.path("server", dir), os.DirFS(a.path("server", dir))); err != nil {
			t.Fatal(err)
		}
	}
	b.startServer()

	hook := newHooked(b)
	id := b.rollout("1.0", "--stages", "10%,100%", "--rate", "240/m") // long enough to be killed in
	succeeded := func() (n int) {
		for _, stage := range a.show(id).Stages {
			n += stage.Counts.Finished["succeeded"]
		}
		return n
	}
	created := time.Now()
	until(t, "the first device to be done", func() bool { return succeeded() > 0 })
	alone := time.Since(created) // what a device takes on this machine, from the start on
	until(t, "some devices to be done", func() bool { return succeeded() >= devices/5 })
	second, over := o.held(hook, b, first)
	told := hook.last()
	b.server.kill()
	until(t, "the message to be given up", closed(over))
	hook.outlives()
	killed, before := time.Now(), succeeded()
	until(t, "the rollout to go on", func() bool { return succeeded() > before })
	if took := time.Since(killed); took > goesOnWithin+alone {
		t.Errorf("the next device was done %s after the kill, want %s and the %s that the first took", took, goesOnWithin, alone)
	} else {
		t.Logf("the next device was done %s after the kill, the first %s after the start", took.Round(time.Millisecond), alone.Round(time.Millisecond))
	}
	// Its supervisor starts it again: whom it was about to tell is told then, and
	// else when the other finds it silent, minutes later.
	b.startServer()
	withinSizes(t, a.ends(id, "COMPLETED"))
	sum := f.end()
	if want := map[string]int{"app@1.0": devices}; fmt.Sprint(sum.Runs) != fmt.Sprint(want) {
		t.Errorf("run %v, want %v", sum.Runs, want)
	}
	until(t, "the claim of the otad that was killed to end", func() bool { return o.of(hook.id) != second })
	until(t, "the webhook to go on", func() bool { return hook.last() > told })
	a.heard(hook)
	a.check()
}
