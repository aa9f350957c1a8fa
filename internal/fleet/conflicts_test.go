package fleet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// A rollout of a higher priority that has not come to the devices yet, or is going to
// bring its release back, is no surprise.
func TestPlanBesideAHigherPriority(t *testing.T) {
	north := `tags.site = "north"`
	waits := []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending, Approval: true}}
	all := []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending}}
	for name, c := range map[string]struct {
		other, plan ota.Rollout
		then        func(w *world, id string) error
		devices     int    // in conflict; 0: none
		refused     string // words of it; empty: it is not
	}{
		"waits for an approval, all in its line": {ota.Rollout{Priority: 5, Stages: waits}, ota.Rollout{}, nil, 0, "of priority 5 has gw@1.0 for 3 of its devices, and this plan, of priority 0"},
		"is left out":                            {ota.Rollout{Priority: 5, Stages: waits, Selector: north}, ota.Rollout{Selector: `tags.site = "south"`}, nil, 0, ""},
		"has some of the devices":                {ota.Rollout{Priority: 5, Stages: waits, Selector: north}, ota.Rollout{}, nil, 0, "for 2 of its devices"},
		"has those of another stage":             {ota.Rollout{Priority: 5, Stages: waits, Selector: north}, ota.Rollout{Stages: []ota.Stage{{Size: ota.Size{Selector: `tags.site = "south"`}, State: ota.StagePending}}}, nil, 0, ""},
		"has executions":                         {ota.Rollout{Priority: 5, Stages: all}, ota.Rollout{Priority: 4}, nil, 0, "(--priority 5)"},
		"is paused": {ota.Rollout{Priority: 5, Stages: waits}, ota.Rollout{}, func(w *world, id string) error {
			_, err := w.s.PauseRollout(w.ctx, id, "lunch", "")
			return err
		}, 0, "otactl rollout abort r-"},
		"is scheduled":               {ota.Rollout{Priority: 5, Stages: all, Selector: north, Terms: ota.Terms{Start: time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC)}}, ota.Rollout{}, nil, 0, "for 2 of its devices"},
		"is continuous, and had all": {ota.Rollout{Priority: 5, Stages: all, Terms: ota.Terms{Continuous: true}}, ota.Rollout{}, nil, 0, "otactl rollout finish r-"},
		"is a draft":                 {ota.Rollout{Priority: 5, Stages: all, State: ota.RolloutDraft}, ota.Rollout{}, nil, 0, ""},
		"brings the same release":    {ota.Rollout{Priority: 5, Stages: waits, Release: ota.ReleaseID{Name: "gw", Version: "2.0"}}, ota.Rollout{}, nil, 3, ""},
		"has the same priority":      {ota.Rollout{Priority: 5, Stages: waits}, ota.Rollout{Priority: 5}, nil, 3, ""},
		"has a lower one":            {ota.Rollout{Priority: 5, Stages: waits, Selector: north}, ota.Rollout{Priority: 6}, nil, 2, ""},
		"was aborted": {ota.Rollout{Priority: 5, Stages: waits}, ota.Rollout{}, func(w *world, id string) error {
			_, err := w.s.AbortRollout(w.ctx, id, "enough", ota.AbortKeep)
			return err
		}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.release("1.0"), w.release("2.0")
				w.made("a", "north")
				w.made("b", "north")
				w.made("c", "south")
				defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
				if c.other.Release.Name == "" {
					c.other.Release = one.ID()
				}
				other, err := w.s.CreateRollout(w.ctx, c.other)
				w.ok(err)
				w.rests()
				if c.then != nil {
					w.ok(c.then(w, other.ID))
					w.rests()
				}
				if c.plan.Release = two.ID(); len(c.plan.Stages) == 0 {
					c.plan.Stages = w.stages("1,100%")
				}
				p, err := w.s.PlanRollout(w.ctx, c.plan)
				_, made := w.s.CreateRollout(w.ctx, c.plan)
				if c.refused != "" {
					for _, err := range []error{err, made} {
						if !errors.Is(err, fleet.ErrOutranked) || !strings.Contains(err.Error(), c.refused) || ota.FieldOf(err) != "priority" {
							t.Errorf("%v, of %q: want %q", err, ota.FieldOf(err), c.refused)
						}
					}
					return
				}
				w.ok(err)
				w.ok(made)
				n := 0
				for _, conflict := range p.Conflicts {
					n += conflict.Devices
				}
				if n != c.devices {
					t.Errorf("%+v, want %d devices", p.Conflicts, c.devices)
				}
			})
		})
	}
}

// Between a draft and its start others may have come: each act looks again.
func TestActsBesideAHigherPriority(t *testing.T) {
	waits := []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StagePending, Approval: true}}
	draft := ota.Rollout{State: ota.RolloutDraft}
	approval := ota.Rollout{Terms: ota.Terms{Approval: true}}
	for name, c := range map[string]struct {
		plan, rival ota.Rollout
		act         func(w *world, id string, plan ota.Rollout) error
		refused     string
	}{
		"submitted":            {draft, ota.Rollout{Priority: 5}, submits, "of priority 5 has gw@1.0 for 2 of its devices"},
		"with what helps":      {draft, ota.Rollout{Priority: 5}, submits, "(--priority 6)"}, // of 5 it would be superseded
		"of other devices":     {draft, ota.Rollout{Priority: 5, Selector: `tags.site = "north"`}, submits, "for 1 of its devices"},
		"of the same priority": {draft, ota.Rollout{}, submits, ""},
		"of the same release":  {draft, ota.Rollout{Priority: 5, Release: ota.ReleaseID{Name: "gw", Version: "2.0"}}, submits, ""},
		"of nobody of its":     {ota.Rollout{State: ota.RolloutDraft, Selector: `tags.site = "south"`}, ota.Rollout{Priority: 5, Selector: `tags.site = "north"`}, submits, ""},
		"approved":             {approval, ota.Rollout{Priority: 5}, approves, "of priority 5 has gw@1.0 for 2 of its devices"},
		"approved, and fine":   {approval, ota.Rollout{}, approves, ""},
		"edited":               {draft, ota.Rollout{Priority: 5}, edits(4), "of priority 5 has gw@1.0 for 2 of its devices"},
		"edited above it":      {draft, ota.Rollout{Priority: 5}, edits(6), ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				one, two := w.release("1.0"), w.release("2.0")
				w.made("a", "north")
				w.made("c", "south")
				defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
				c.plan.Release, c.plan.Stages = two.ID(), w.stages("1,100%")
				r, err := w.s.CreateRollout(w.ctx, c.plan)
				w.ok(err)
				<-time.After(time.Second)
				c.rival.Stages = waits
				if c.rival.Release.Name == "" {
					c.rival.Release = one.ID()
				}
				_, err = w.s.CreateRollout(w.ctx, c.rival)
				w.ok(err)
				w.rests()
				err = c.act(w, r.ID, c.plan)
				now, failed := w.s.Rollout(w.ctx, r.ID)
				w.ok(failed)
				if c.refused == "" {
					w.ok(err)
					return
				}
				if !errors.Is(err, fleet.ErrOutranked) || !strings.Contains(err.Error(), c.refused) || ota.FieldOf(err) != "priority" {
					t.Errorf("%v, of %q: want %q", err, ota.FieldOf(err), c.refused)
				}
				if now.Revision != r.Revision || now.State != r.State {
					t.Errorf("it was refused, and is %s", now.State)
				}
			})
		})
	}
}

func submits(w *world, id string, _ ota.Rollout) error {
	_, err := w.s.SubmitRollout(w.ctx, id)
	return err
}

func approves(w *world, id string, _ ota.Rollout) error {
	_, err := w.s.ApproveRollout(w.ctx, id, 0, 0)
	return err
}

func edits(priority int) func(w *world, id string, plan ota.Rollout) error {
	return func(w *world, id string, plan ota.Rollout) error {
		plan.Priority = priority
		_, err := w.s.EditRollout(w.ctx, id, plan)
		return err
	}
}

// TestADraftThatWasOvertaken would pass by the devices that a rollout had which was made
// after it: whoever submits or approves it hears so.
func TestADraftThatWasOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := w.release("1.0"), w.release("2.0")
		w.made("a", "north")
		w.made("b", "south")
		defer w.background(w.s.RunEngine, w.s.RunNotifier, w.s.RunLooks)()
		draft := func(selector string) string {
			r, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Selector: selector, State: ota.RolloutDraft, Stages: w.stages("100%")})
			w.ok(err)
			return r.ID
		}
		approval, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: two.ID(), Terms: ota.Terms{Approval: true}, Stages: w.stages("100%")})
		w.ok(err)
		all, south := draft(""), draft(`tags.site = "south"`)
		<-time.After(time.Second)
		newer, err := w.s.CreateRollout(w.ctx, ota.Rollout{Release: one.ID(), Selector: `tags.site = "north"`, Stages: w.stages("100%")})
		w.ok(err)
		w.rests()
		refused := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, fleet.ErrOutranked) || !strings.Contains(err.Error(), "rollout "+newer.ID+" of gw@1.0 was made after this one") || !strings.Contains(err.Error(), "such as a") {
				t.Errorf("%s: %v", what, err)
			}
		}
		_, err = w.s.SubmitRollout(w.ctx, all)
		refused("submitted", err)
		_, err = w.s.ApproveRollout(w.ctx, approval.ID, 0, 0)
		refused("approved", err)
		_, err = w.s.SubmitRollout(w.ctx, south)
		w.ok(err) // the other has none of its devices
		_, err = w.s.EditRollout(w.ctx, all, ota.Rollout{Priority: 1, Stages: w.stages("100%")})
		w.ok(err)
		_, err = w.s.SubmitRollout(w.ctx, all)
		w.ok(err)
		w.rests()
		if e := w.attempt(all, "a"); e.Status != ota.Queued {
			t.Errorf("of a higher priority it has it: %+v", e)
		}
	})
}
