package fleet_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// command orders a command on the devices that a selector means.
func (w *world) command(sel, name string, parameters map[string]string) fleet.RolloutView {
	w.t.Helper()
	v, err := w.s.CreateRollout(w.ctx, ota.Rollout{
		Command: &ota.Command{Name: name, Parameters: parameters}, Selector: sel, Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}},
	})
	w.ok(err)
	return v
}

// TestCommandOnOneDeviceIsAtOnce: no engine has to run, the device is told what to
// do, and the rules about firmware do not hold it back.
func TestCommandOnOneDeviceIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		ids := w.enroll(2, "rpi4")
		install, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%"), Priority: 9})
		w.ok(err)
		_, err = w.s.Report(w.ctx, ota.Report{RolloutID: install.ID, DeviceID: ids[0], Status: ota.Queued, Details: map[string]string{ota.DetailStep: string(ota.StepWaiting)}})
		w.ok(err)
		defer w.background(w.s.RunNotifier)()
		v := w.command(`id = "`+ids[0]+`"`, "set-level", map[string]string{"level": "3"})
		synctest.Wait()
		if c := v.Progress.Total(); v.State != ota.RolloutRunning || v.Population != 1 || c.Queued != 1 || v.InProgressTimeout == 0 {
			t.Fatalf("%s for %d, %+v, bound by %s", v.State, v.Population, c, v.InProgressTimeout)
		}
		next := w.notes.next[ids[0]]
		if next == nil || next.RolloutID != v.ID {
			t.Fatalf("told of %+v", next)
		}
		d, err := w.s.JobDocument(w.ctx, *next)
		w.ok(err)
		if err := d.Validate(); err != nil || d.Operation != ota.OperationCommand || d.Command.String() != "set-level level=3" {
			t.Errorf("document %+v: %v", d, err)
		}
		because, err := w.s.Why(w.ctx, ids[1])
		w.ok(err)
		for _, b := range because {
			if b.Rollout.ID == v.ID && b.Why != "the rollout's selector does not match it" {
				t.Errorf("the other: %s", b.Why)
			}
		}
		_, err = w.s.Report(w.ctx, ota.Report{RolloutID: v.ID, DeviceID: ids[0], Status: ota.Failed, Details: map[string]string{"output": "no such level"}})
		w.ok(err)
		if v = w.run(v.ID, 1, nil, succeed); v.State != ota.RolloutCompleted {
			t.Fatalf("%s: %s", v.State, v.Reason)
		}
		if next := w.notes.next[ids[0]]; next == nil || next.RolloutID != install.ID {
			t.Errorf("afterwards it is told of %+v", next)
		}
	})
}

func TestCommandReachesWhatIsThere(t *testing.T) {
	w := newWorld(t)
	ids := w.enroll(1, "rpi4")
	plan := ota.Rollout{Command: &ota.Command{Name: "x"}, Selector: `id = "none"`, Stages: w.stages("100%")}
	if _, err := w.s.CreateRollout(w.ctx, plan); !errors.Is(err, fleet.ErrNoDevices) || !strings.Contains(err.Error(), "command x") {
		t.Errorf("no such device: %v", err)
	}
	_, err := w.s.RevokeDevice(w.ctx, ids[0])
	w.ok(err)
	plan.Selector = ""
	if _, err := w.s.CreateRollout(w.ctx, plan); !errors.Is(err, fleet.ErrNoDevices) || !strings.Contains(err.Error(), "1 revoked") {
		t.Errorf("a revoked one: %v", err)
	}
}

// TestCommandOfARevokedDeviceEnds: nothing is left that waits for an operator.
func TestCommandOfARevokedDeviceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(1, "rpi4")
		v := w.command("", ota.CommandReboot, nil)
		_, err := w.s.RevokeDevice(w.ctx, ids[0])
		w.ok(err)
		if v = w.run(v.ID, 1, nil, succeed); v.State != ota.RolloutCompleted {
			t.Fatalf("%s: %s", v.State, v.Reason)
		}
	})
}

func TestUploadsAreKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ids := w.enroll(1, "rpi4")
		v := w.command("", ota.CommandCollectLogs, nil)
		e, err := w.s.StartNext(w.ctx, ids[0], ota.Starting{})
		w.ok(err)
		d, err := w.s.JobDocument(w.ctx, e)
		w.ok(err)
		if d.Command.UploadURL != w.s.UploadURL(e) || e.Command.UploadURL != "" {
			t.Errorf("document %+v", d.Command)
		}
		w.ok(w.s.PutUpload(w.ctx, v.ID, ids[0], 1, strings.NewReader("logs")))
		if err := w.s.PutUpload(w.ctx, v.ID, ids[0], 1, failing{}); err == nil {
			t.Error("a body that breaks off was stored")
		}
		w.ok(w.s.PutUpload(w.ctx, v.ID, ids[0], 1, strings.NewReader("all logs")))
		_, body, err := w.s.Upload(w.ctx, v.ID, ids[0], 1)
		w.ok(err)
		b, err := io.ReadAll(body)
		w.ok(errors.Join(err, body.Close()))
		if string(b) != "all logs" {
			t.Errorf("read %q", b)
		}
		time.Sleep(fleet.UploadLife - time.Second)
		w.ok(w.s.SweepUploads(w.ctx))
		if page, _, err := w.s.UploadPage(w.ctx, fleet.UploadFilter{}, 9); err != nil || len(page) != 1 {
			t.Errorf("before its time: %+v %v", page, err)
		}
		time.Sleep(time.Second)
		w.ok(w.s.SweepUploads(w.ctx))
		if page, _, err := w.s.UploadPage(w.ctx, fleet.UploadFilter{}, 9); err != nil || len(page) != 0 {
			t.Errorf("after its time: %+v %v", page, err)
		}
		if _, _, err := w.s.Upload(w.ctx, v.ID, ids[0], 1); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("its bytes: %v", err)
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestCommandsUnderAPlan: stages, gates, abort rules, rate and bounds hold for a command
// as for an install.
func TestCommandsUnderAPlan(t *testing.T) {
	never := func(string) bool { return false }
	rules := func(text string) []ota.AbortRule {
		rule, err := ota.ParseAbortRule(text)
		if err != nil {
			t.Fatal(err)
		}
		return []ota.AbortRule{rule}
	}
	const devices = 6
	for name, c := range map[string]struct {
		stages string
		gate   float64
		abort  []ota.AbortRule
		terms  ota.Terms
		fails  func(device string) bool
		state  ota.RolloutState
		reason string
		made   int                                     // executions, ever
		check  func(t *testing.T, all []ota.Execution) // in the order in which they were made
	}{
		"the first fails, and nobody else runs it": {
			stages: "1,100%", gate: 1, abort: rules("any>=1"), fails: func(string) bool { return true },
			state: ota.RolloutAborted, reason: "abort rule any>=1: 1 of 1 finished", made: 1,
		},
		"a share of those that finished": {
			stages: "2,100%", abort: rules("failed>40% min 4"), terms: ota.Terms{InFlight: ota.InFlight{Max: 1}}, fails: func(id string) bool { return id[len(id)-1] > '1' },
			state: ota.RolloutAborted, reason: "abort rule failed>40% min 4:", made: devices, check: atWorkAtOnce(1),
		},
		"a gate that is not met stops it": {
			stages: "2,100%", gate: 1, fails: func(string) bool { return true },
			state: ota.RolloutPaused, reason: "stage 1 failed its gate: 0 of 2 finished succeeded", made: 2,
		},
		"without a gate it goes on": {
			stages: "2,100%", fails: func(string) bool { return true }, state: ota.RolloutCompleted, made: devices,
		},
		"its rate": {
			stages: "2,100%", terms: ota.Terms{Rate: ota.Rate{PerMinute: 1}}, fails: never, state: ota.RolloutCompleted, made: devices,
			check: func(t *testing.T, all []ota.Execution) {
				for i, e := range all[1:] {
					if apart := e.QueuedAt.Sub(all[i].QueuedAt); apart < time.Minute {
						t.Errorf("execution %d is made %s after the one before, want a minute", i+2, apart)
					}
				}
			},
		},
		"its bound in flight": {
			stages: "100%", terms: ota.Terms{InFlight: ota.InFlight{Max: 2}}, fails: never, state: ota.RolloutCompleted, made: devices, check: atWorkAtOnce(2),
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				ids := w.enroll(devices, "rpi4")
				stages, err := ota.ParseStages(c.stages, ota.Gate{Success: c.gate}, 0)
				w.ok(err)
				v, err := w.s.CreateRollout(w.ctx, ota.Rollout{Command: &ota.Command{Name: "check"}, Stages: stages, Abort: c.abort, Terms: c.terms, Seed: "x"})
				w.ok(err)
				v = w.run(v.ID, 2, ids, func(e ota.Execution) ota.Report {
					if c.fails(e.DeviceID) {
						return ota.Report{Status: ota.Failed}
					}
					return ota.Report{Status: ota.Succeeded}
				})
				if v.State != c.state || !strings.Contains(v.Reason, c.reason) {
					t.Errorf("%s: %s; want %s: %s", v.State, v.Reason, c.state, c.reason)
				}
				var all []ota.Execution
				w.ok(w.store.Executions(w.ctx, fleet.ExecutionFilter{RolloutID: v.ID}, func(e ota.Execution) bool {
					all = append(all, e)
					return true
				}))
				slices.SortFunc(all, func(a, b ota.Execution) int { return a.QueuedAt.Compare(b.QueuedAt) })
				if len(all) != c.made || v.Progress.Total().Total() != c.made {
					t.Errorf("%d executions were made, counted %d, want %d: %+v", len(all), v.Progress.Total().Total(), c.made, v.Progress.Total())
				}
				if c.check != nil {
					c.check(t, all)
				}
			})
		})
	}
}

// atWorkAtOnce checks that no more than so many run it at a time, and so many do.
func atWorkAtOnce(most int) func(t *testing.T, all []ota.Execution) {
	return func(t *testing.T, all []ota.Execution) {
		peak := 0
		for _, e := range all {
			n := 0
			for _, o := range all {
				if !o.StartedAt.IsZero() && !e.StartedAt.IsZero() && !o.StartedAt.After(e.StartedAt) && o.FinishedAt.After(e.StartedAt) {
					n++
				}
			}
			peak = max(peak, n)
		}
		if peak != most {
			t.Errorf("%d at work at a time, want %d", peak, most)
		}
	}
}
