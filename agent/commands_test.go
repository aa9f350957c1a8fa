package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/disk/disktest"
	"github.com/otad/otad/pkg/ota"
)

// actions is a device that allows the command "level".
type actions struct {
	ran   []ota.Command
	takes time.Duration
	out   agent.Outcome
}

func (a *actions) Check(c ota.Command) error {
	if c.Name != "level" {
		return fmt.Errorf("command %q is not allowed on this device, which has: level", c.Name)
	}
	return nil
}

func (a *actions) Run(ctx context.Context, c ota.Command) agent.Outcome {
	a.ran = append(a.ran, c)
	select {
	case <-time.After(a.takes):
		return a.out
	case <-ctx.Done():
		return agent.Outcome{Err: ctx.Err()}
	}
}

// command makes a job of a command, replacing the one before.
func (r *repo) command(id string, c ota.Command) {
	r.set(func() {
		r.job = &agent.Job{ID: id, Attempt: 1, Status: ota.Queued, Version: 1, Document: ota.NewCommandDocument(c, 1)}
	})
	r.nudge()
}

func allowing(d *device, a agent.Actions) {
	edit := d.edit
	d.edit = func(c *agent.Config) {
		edit(c)
		c.Actions = a
	}
}

func TestCommand(t *testing.T) {
	for name, c := range map[string]struct {
		command ota.Command
		out     agent.Outcome
		status  ota.Status
		reason  string
		ran     int
		told    []string
	}{
		"succeeds":     {ota.Command{Name: "level", Parameters: map[string]string{"to": "3"}}, agent.Outcome{Details: map[string]string{"output": "done"}}, ota.Succeeded, "", 1, []string{"running"}},
		"fails":        {ota.Command{Name: "level"}, agent.Outcome{Err: errors.New("exit status 3"), Details: map[string]string{"output": "no\x00"}}, ota.Failed, "exit status 3", 1, []string{"running"}},
		"unknown":      {ota.Command{Name: "shell"}, agent.Outcome{}, ota.Rejected, "which has: level", 0, nil},
		"invalid":      {ota.Command{Name: "rm -rf /"}, agent.Outcome{}, ota.Rejected, "job document: invalid: command", 0, nil},
		"reboot":       {ota.Command{Name: "reboot"}, agent.Outcome{}, ota.Succeeded, "", 0, []string{"running"}},
		"reboot, how?": {ota.Command{Name: "reboot", Parameters: map[string]string{"hard": "1"}}, agent.Outcome{}, ota.Rejected, "takes no parameters", 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRepo(t)
				d := inBerlin(t, r, noise(1, 5000))
				a := &actions{takes: time.Minute, out: c.out}
				allowing(d, a)
				r.command("job-1", c.command)
				stop := d.start(t)
				elapse(time.Hour)
				stop()
				v := r.verdicts("job-1", 1)
				if len(v) != 1 || len(a.ran) != c.ran {
					t.Fatalf("ran %d times, verdicts %+v", len(a.ran), v)
				}
				expect(t, v[0], c.status, c.reason)
				expectTold(t, r, "job-1", append(c.told, string(c.status))...)
				for k, want := range c.out.Details {
					if v[0].Details[k] != want {
						t.Errorf("%s: %q, want %q", k, v[0].Details[k], want)
					}
				}
				if boots := d.boots; (name == "reboot") != (boots == 2) {
					t.Errorf("%d boots", boots)
				}
			})
		})
	}
}

// TestCommandOfAnAgentThatAllowsNone: deny by default.
func TestCommandOfAnAgentThatAllowsNone(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 5000))
	r.command("job-1", ota.Command{Name: "level"})
	expect(t, d.until("job-1", 1), ota.Rejected, "which has: reboot")
}

// TestUnknownOperation: a job of a kind that comes later is refused by name.
func TestUnknownOperation(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 5000))
	r.command("job-1", ota.Command{Name: "level"})
	r.set(func() { r.job.Document.Operation = "dance" })
	expect(t, d.until("job-1", 1), ota.Rejected, `job operation "dance": this agent knows install and command`)
}

// TestCommandIsNeverRunTwice: cut the power at every operation on the disk; what
// was under way is interrupted, and there is one verdict.
func TestCommandIsNeverRunTwice(t *testing.T) {
	for _, survival := range []disktest.Survival{disktest.Lost, disktest.Torn, disktest.Kept} {
		interrupted, ran := 0, 0
		for cut := 1; ; cut++ {
			done := false
			synctest.Test(t, func(t *testing.T) {
				r := newRepo(t)
				d := inBerlin(t, r, noise(1, 5000))
				a := &actions{takes: time.Second, out: agent.Outcome{Details: map[string]string{"output": "done"}}}
				allowing(d, a)
				mem := d.fs.(*disktest.Mem)
				r.command("job-1", ota.Command{Name: "level"})
				mem.CutAt(cut)
				ctx, stop := context.WithCancel(context.Background())
				ended := make(chan error, 1)
				go func() { ended <- d.live(ctx) }()
				elapse(time.Hour)
				stop()
				if err := <-ended; err != nil && !errors.Is(err, disktest.ErrPower) {
					t.Fatal(err)
				}
				mem.CutAt(0)
				done = !mem.Dead()
				d.fs = mem.Crash(survival, uint64(cut))
				again := d.start(t)
				elapse(time.Hour)
				again()
				v := r.verdicts("job-1", 1)
				if len(v) != 1 || len(a.ran) > 1 {
					t.Fatalf("cut %d (survival %d): ran %d times, %d verdicts", cut, survival, len(a.ran), len(v))
				}
				switch {
				case v[0].Status == ota.Failed && strings.Contains(v[0].Details[ota.DetailReason], "interrupted"):
					interrupted++
				case v[0].Status != ota.Succeeded || len(a.ran) != 1:
					t.Fatalf("cut %d (survival %d): ran %d times, %+v", cut, survival, len(a.ran), v[0])
				default:
					ran++
				}
			})
			if done {
				break
			}
		}
		if interrupted == 0 || ran == 0 {
			t.Fatalf("%d interrupted, %d ran", interrupted, ran)
		}
		t.Logf("survival %d: %d cuts interrupted it, %d did not", survival, interrupted, ran)
	}
}

// TestCommandOfALostJournal: the server says that it was begun, and nothing here
// says how far it came.
func TestCommandOfALostJournal(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 5000))
	a := &actions{}
	d.edit = func(c *agent.Config) { c.Actions = a }
	r.command("job-1", ota.Command{Name: "level"})
	r.set(func() { r.job.Status = ota.InProgress })
	expect(t, d.until("job-1", 1), ota.Failed, "interrupted")
	if len(a.ran) > 0 {
		t.Error("it was run, perhaps a second time")
	}
}

// TestCommandIsCanceled before it runs, and while it does.
func TestCommandIsCanceled(t *testing.T) {
	for name, arrange := range map[string]func(*repo){
		"before": func(r *repo) { r.announcing = func() error { r.cancelAndTell(); return nil } },
		"during": func(r *repo) { r.onStep = map[string]func(){"running": r.cancelAndTell} },
		"held":   func(r *repo) { r.job.Document.Hold = true; r.onStep = map[string]func(){"waiting": r.cancelAndTell} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRepo(t)
				d := inBerlin(t, r, noise(1, 5000))
				a := &actions{takes: 24 * time.Hour}
				allowing(d, a)
				r.command("job-1", ota.Command{Name: "level"})
				arrange(r)
				stop := d.start(t)
				elapse(time.Hour)
				r.set(func() { r.announcing, r.onStep = nil, nil })
				a.takes = 0
				r.command("job-2", ota.Command{Name: "level"})
				elapse(time.Hour)
				stop()
				if v := r.verdicts("job-1", 1); len(v) > 0 || (name == "during") != (len(a.ran) == 2) {
					t.Errorf("ran %d times, %+v", len(a.ran), v)
				}
				expect(t, r.verdicts("job-2", 1)[0], ota.Succeeded, "")
			})
		})
	}
}
