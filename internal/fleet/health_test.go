package fleet_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// happens stores an event of a device.
func (w *world) happens(id, kind string) {
	w.t.Helper()
	_, err := w.s.TakeEvents(w.ctx, id, "log", []fleet.Event{{Seq: w.seq.Add(1), Kind: kind, Data: "{}"}})
	w.ok(err)
}

func (w *world) gauge(id string, n float64) {
	w.t.Helper()
	_, err := w.s.UpdateShadow(w.ctx, id, "", shadow.NewUpdate(nil, map[string]any{"cpu": map[string]any{"temp": n}}))
	w.ok(err)
}

// TestHealthGate: what updated devices do worse than those that wait stops the
// rollout, and what they do not lets it go on.
func TestHealthGate(t *testing.T) {
	tells := func(w *world, id string) { w.gauge(id, 50) }
	for _, c := range []struct {
		name    string
		signals string
		after   func(w *world, id string) // its update
		others  func(w *world, id string) // five minutes on, on those that wait; nil: nothing
		onFail  ota.HealthPolicy
		state   ota.RolloutState
		reason  string
	}{
		{"nothing happens", "crash +1%", func(*world, string) {}, nil, "", ota.RolloutCompleted, ""},
		{"they crash", "crash +1%", func(w *world, id string) { w.happens(id, fleet.EventCrash) }, nil, "", ota.RolloutPaused, "stage 1 failed: health crash: worse than the tolerance"},
		{"they crash, and that aborts", "crash +1%", func(w *world, id string) { w.happens(id, fleet.EventCrash) }, nil, ota.HealthAbort, ota.RolloutAborted, "health crash: worse"},
		{"they boot, and nobody asked", "crash +1%", func(w *world, id string) { w.happens(id, fleet.EventReboot) }, nil, "", ota.RolloutCompleted, ""},
		{"they grow hot", "shadow.reported.cpu.temp +5", func(w *world, id string) { w.gauge(id, 70) }, tells, "", ota.RolloutPaused, "shadow.reported.cpu.temp: worse"},
		{"they grow warm", "shadow.reported.cpu.temp +5", func(w *world, id string) { w.gauge(id, 53) }, tells, "", ota.RolloutCompleted, ""},
		{"they tell no number any more", "shadow.reported.cpu.temp +5", func(*world, string) {}, tells, "", ota.RolloutPaused, "20 updated devices told no value since"},
		{"all told a number before", "shadow.reported.cpu.temp +5", func(*world, string) {}, nil, "", ota.RolloutPaused, "stage 1 proves nothing of its health after 1h0m0s"},
		{"another image comes to those that wait", "crash +1%", func(w *world, id string) { w.happens(id, fleet.EventCrash) }, func(w *world, id string) { w.runs(id, strings.Repeat("d", 64)) }, "", ota.RolloutPaused, "crash: the image of the partner of 20 updated devices was changed"},
		{"nobody has the number", "shadow.reported.cpu.tmp +5", func(w *world, id string) { w.gauge(id, 50) }, tells, "", ota.RolloutPaused, "none of 20 updated devices, nor its partner, told a number at shadow.reported.cpu.tmp"},
		{"some crash, without proof", "crash +1%", func(w *world, id string) {
			if id <= "rpi4-005" {
				w.happens(id, fleet.EventCrash)
			}
		}, nil, "", ota.RolloutPaused, "stage 1 has no verdict on its health after 1h0m0s: crash: seems worse"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.release("1.0")
				ids := w.enroll(40, "rpi4")
				for _, id := range ids {
					w.gauge(id, 50)
				}
				_, err := w.s.UpdateShadow(w.ctx, ids[0], "", shadow.NewUpdate(nil, map[string]any{"cpu": map[string]any{"tmp": 1}}))
				w.ok(err) // once
				signal, err := ota.ParseSignal(c.signals)
				w.ok(err)
				plan := ota.Rollout{
					Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("50%,100%"), Seed: "s",
					Terms: ota.Terms{Health: ota.Health{Signals: []ota.Signal{signal}, Watch: 10 * time.Minute, Wait: time.Hour, OnFail: c.onFail}},
				}
				v, err := w.s.CreateRollout(w.ctx, plan)
				w.ok(err)
				go func() {
					<-time.After(5 * time.Minute) // virtual: the first stage is watched
					v, err := w.s.Rollout(w.ctx, v.ID)
					if err != nil || v.State != ota.RolloutRunning {
						return
					}
					for _, id := range ids {
						why, err := w.s.Why(w.ctx, id)
						if err == nil && why[0].Execution == nil && !strings.Contains(why[0].Why, "; its health is not settled: ") {
							t.Errorf("%s: %s", id, why[0].Why)
						}
						if err == nil && why[0].Execution == nil && c.others != nil {
							c.others(w, id)
						}
					}
				}()
				v = w.run(v.ID, 2, ids, func(e ota.Execution) ota.Report {
					go func() {
						<-time.After(time.Minute) // virtual: after it has reported
						if w.ctx.Err() == nil {
							c.after(w, e.DeviceID)
						}
					}()
					return ota.Report{Status: ota.Succeeded}
				})
				if v.State != c.state || !strings.Contains(v.Reason, c.reason) {
					t.Fatalf("%s: %s", v.State, v.Reason)
				}
				verdict := ota.Verdicts(v.Terms.Health, v.Progress.Health)[0]
				if strings.HasPrefix(c.name, "they grow warm") && verdict.Within != 20 {
					t.Errorf("%+v: want all within the margin", verdict.Compared)
				}
				if v.State == ota.RolloutCompleted {
					if n := verdict.N(); n != 20 || v.Progress.Health.Alone != 20 || verdict.Judgement != ota.HealthPass || v.EndedAt.Sub(v.CreatedAt) < 10*time.Minute {
						t.Errorf("%d pairs, %d alone, %s, after %s", n, v.Progress.Health.Alone, verdict.Judgement, v.EndedAt.Sub(v.CreatedAt))
					}
				} else if v.Stages[1].State != ota.StagePending {
					t.Errorf("the second stage is %s", v.Stages[1].State)
				}
				<-time.After(2 * time.Minute) // of what is still to happen
			})
		})
	}
}

// A plan is refused with a number that no device of it tells; others may.
func TestANumberThatNobodyTells(t *testing.T) {
	w := newWorld(t)
	w.release("1.0")
	ids := w.enroll(3, "rpi4")
	w.gauge(ids[0], 50)
	w.gauge(ids[1], 50)
	_, err := w.s.UpdateShadow(w.ctx, ids[2], "", shadow.NewUpdate(nil, map[string]any{"cpu": map[string]any{"name": "x", "tmp": "hot"}}))
	w.ok(err)
	for _, c := range []struct{ selector, signal, field string }{
		{"", "shadow.reported.cpu.temp +5", ""},
		{"", "shadow.reported.cpu.tmp +5", "health.signals[1]"},
		{"", "shadow.reported.cpu +5", "health.signals[1]"},
		{"", "shadow.reported.cpu.name.x +5", "health.signals[1]"},
		{`id = "rpi4-001"`, "shadow.reported.cpu.temp +5", ""},
		{`id = "rpi4-002" OR id = "other"`, "shadow.reported.cpu.temp +5", "health.signals[1]"},
	} {
		signal, err := ota.ParseSignal(c.signal)
		w.ok(err)
		plan := ota.Rollout{
			Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("100%"), Selector: c.selector,
			Terms: ota.Terms{Health: ota.Health{Signals: []ota.Signal{{Name: ota.SignalCrash}, signal}}},
		}
		_, planned := w.s.PlanRollout(w.ctx, plan)
		_, created := w.s.CreateRollout(w.ctx, plan)
		for what, err := range map[string]error{"planned": planned, "created": created} {
			if ota.FieldOf(err) != c.field || (err != nil) != (c.field != "") || err != nil && !errors.Is(err, fleet.ErrInvalid) {
				t.Errorf("%s of %q %s: %v", c.signal, c.selector, what, err)
			}
		}
	}
}

// ahead is the store of a replica beside another one, which matches half of the
// devices as soon as this one has read the first half of what it needs for that.
type ahead struct {
	fleet.Store
	other bool // has been there
}

func (a *ahead) overtake(ctx context.Context, r ota.Rollout) error {
	members, err := a.Store.Unmatched(ctx, r, 100)
	if err != nil || a.other || len(members) == 0 {
		return err
	}
	a.other = true
	partners, err := a.Store.Partners(ctx, r, r.Stages[0].Target, 100)
	if err != nil {
		return err
	}
	var pairs []fleet.Pair
	for i, m := range members[:len(members)/2] {
		pairs = append(pairs, fleet.Pair{
			DeviceID: m.ID, Attempt: m.Attempt, PartnerID: partners[i].ID, From: m.FinishedAt, Until: m.FinishedAt.Add(r.Terms.Health.Watching()),
		})
	}
	return a.Store.PutPairs(ctx, r.ID, pairs)
}

func (a *ahead) Unmatched(ctx context.Context, r ota.Rollout, limit int) ([]fleet.Member, error) {
	list, err := a.Store.Unmatched(ctx, r, limit)
	return list, errors.Join(err, a.overtake(ctx, r))
}

func (a *ahead) Partners(ctx context.Context, r ota.Rollout, turn, limit int) ([]fleet.Surveyed, error) {
	list, err := a.Store.Partners(ctx, r, turn, limit)
	return list, errors.Join(err, a.overtake(ctx, r))
}

// Nobody is alone because two replicas match at the same time.
func TestReplicasMatchAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.release("1.0")
		ids := w.enroll(16, "rpi4")
		signal, err := ota.ParseSignal("crash +1%")
		w.ok(err)
		store := &ahead{Store: w.store}
		w.s.Store = store
		v, err := w.s.CreateRollout(w.ctx, ota.Rollout{
			Release: ota.ReleaseID{Name: "gw", Version: "1.0"}, Stages: w.stages("50%,100%"), Seed: "s",
			Terms: ota.Terms{Health: ota.Health{Signals: []ota.Signal{signal}, Watch: 10 * time.Minute, Wait: time.Hour}},
		})
		w.ok(err)
		stop := w.background(w.s.RunEngine)
		synctest.Wait()
		stop() // the first stage is there, and all of it is done before the next look
		for _, id := range ids {
			if e, err := w.s.StartNext(w.ctx, id, ota.Starting{}); err == nil {
				<-time.After(time.Second)
				_, err = w.s.Report(w.ctx, ota.Report{RolloutID: e.RolloutID, DeviceID: id, Status: ota.Succeeded})
				w.ok(err)
			}
		}
		v = w.run(v.ID, 1, ids, succeed)
		verdict := ota.Verdicts(v.Terms.Health, v.Progress.Health)[0]
		if v.State != ota.RolloutCompleted || !store.other || verdict.N() != 8 || v.Progress.Health.Alone != 8 {
			t.Errorf("%s: %d pairs, %d alone, want 8 of the first stage and 8 of the last", v.State, verdict.N(), v.Progress.Health.Alone)
		}
	})
}
