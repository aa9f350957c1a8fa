package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// faulty is the store as a server sees it: every call that a rollout makes waits
// at the gate and becomes what the driver says.
type faulty struct {
	fleet.Store
	sim *Sim
}

// change is what the last call did to the store, for the checker.
type change struct {
	caller
	method  string
	advance *fleet.Advance
	report  *ota.Report
	device  string // that was deleted
	now     time.Time
}

func (f faulty) through(ctx context.Context, method, about string, effect func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	who, known := ctx.Value(callerKey{}).(caller)
	if !known {
		return effect()
	}
	switch f.sim.gate.enter(&call{caller: who, method: method, about: about}) {
	case failBefore:
		return errStore
	case killBefore:
		who.server.kill()
		return context.Canceled
	case failAfter:
		_ = effect()
		return errStore
	case killAfter:
		_ = effect()
		who.server.kill()
		return context.Canceled
	}
	return effect()
}

// givesTurns is what the driver knows a step with an opening by.
const givesTurns = "Advance, Open"

// write is through for what changes executions or rollouts.
func (f faulty) write(ctx context.Context, c change, about string, effect func() error) error {
	c.caller, _ = ctx.Value(callerKey{}).(caller)
	method := c.method
	if c.advance != nil && c.advance.Open != nil {
		method = givesTurns
	}
	return f.through(ctx, method, about, func() error {
		err := effect()
		if err == nil {
			f.sim.changed = &c
		}
		return err
	})
}

func (f faulty) CreateRollout(ctx context.Context, r ota.Rollout) error {
	return f.write(ctx, change{method: "CreateRollout"}, r.ID, func() error { return f.Store.CreateRollout(ctx, r) })
}

func (f faulty) Rollout(ctx context.Context, id string) (r ota.Rollout, err error) {
	err = f.through(ctx, "Rollout", id, func() error { r, err = f.Store.Rollout(ctx, id); return err })
	return r, err
}

func (f faulty) Rollouts(ctx context.Context) (list []ota.Rollout, err error) {
	err = f.through(ctx, "Rollouts", "", func() error { list, err = f.Store.Rollouts(ctx); return err })
	return list, err
}

func (f faulty) Progress(ctx context.Context, r ota.Rollout, now time.Time) (p ota.Progress, err error) {
	who, _ := ctx.Value(callerKey{}).(caller)
	err = f.through(ctx, "Progress", r.ID, func() error {
		f.sim.check.seen(who.label, r.ID)
		p, err = f.Store.Progress(ctx, r, now)
		return err
	})
	return p, err
}

func (f faulty) Advance(ctx context.Context, a fleet.Advance) error {
	return f.write(ctx, change{method: "Advance", advance: &a, now: a.Now}, a.Rollout.ID, func() error { return f.Store.Advance(ctx, a) })
}

func (f faulty) TakeTurns(ctx context.Context, id string, o fleet.Opening, devices []string, now time.Time) error {
	return f.write(ctx, change{method: "TakeTurns", now: now}, id, func() error { return f.Store.TakeTurns(ctx, id, o, devices, now) })
}

func (f faulty) Openings(ctx context.Context) (list []ota.Rollout, err error) {
	err = f.through(ctx, "Openings", "", func() error { list, err = f.Store.Openings(ctx); return err })
	return list, err
}

func (f faulty) Due(ctx context.Context, r ota.Rollout, device string) (due bool, err error) {
	err = f.through(ctx, "Due", fmt.Sprint(r.ID, " ", device), func() error { due, err = f.Store.Due(ctx, r, device); return err })
	return due, err
}

func (f faulty) Turn(ctx context.Context, id, line, device string) (turn int, ok bool, err error) {
	err = f.through(ctx, "Turn", fmt.Sprint(id, " ", device), func() error { turn, ok, err = f.Store.Turn(ctx, id, line, device); return err })
	return turn, ok, err
}

func (f faulty) PutCandidates(ctx context.Context, id, line string, turn int, list []ota.Candidate) error {
	return f.through(ctx, "PutCandidates", id, func() error { return f.Store.PutCandidates(ctx, id, line, turn, list) })
}

func (f faulty) Cancel(ctx context.Context, r ota.Rollout, now time.Time, limit int) (done fleet.Cancelled, err error) {
	err = f.write(ctx, change{method: "Cancel", now: now}, r.ID, func() error { done, err = f.Store.Cancel(ctx, r, now, limit); return err })
	return done, err
}

func (f faulty) Moving(ctx context.Context) (ids []string, err error) {
	err = f.through(ctx, "Moving", "", func() error { ids, err = f.Store.Moving(ctx); return err })
	return ids, err
}

func (f faulty) Busy(ctx context.Context, after string, limit int) (ids []string, err error) {
	err = f.through(ctx, "Busy", after, func() error { ids, err = f.Store.Busy(ctx, after, limit); return err })
	return ids, err
}

func (f faulty) Candidates(ctx context.Context, id, line string, turn, limit int) (list []ota.Candidate, err error) {
	err = f.through(ctx, "Candidates", fmt.Sprint(id, " ", turn), func() error { list, err = f.Store.Candidates(ctx, id, line, turn, limit); return err })
	return list, err
}

func (f faulty) DropCandidates(ctx context.Context, id, keep string, limit int) (more bool, err error) {
	err = f.through(ctx, "DropCandidates", id, func() error { more, err = f.Store.DropCandidates(ctx, id, keep, limit); return err })
	return more, err
}

func (f faulty) Pending(ctx context.Context, device string, limit int) (list []ota.Execution, err error) {
	err = f.through(ctx, "Pending", device, func() error { list, err = f.Store.Pending(ctx, device, limit); return err })
	return list, err
}

func (f faulty) StartNext(ctx context.Context, device string, s ota.Starting, now time.Time) (e ota.Execution, err error) {
	err = f.write(ctx, change{method: "StartNext", now: now}, device, func() error { e, err = f.Store.StartNext(ctx, device, s, now); return err })
	return e, err
}

func (f faulty) Report(ctx context.Context, r ota.Report, now time.Time) (e ota.Execution, err error) {
	err = f.write(ctx, change{method: "Report", report: &r, now: now}, r.DeviceID, func() error { e, err = f.Store.Report(ctx, r, now); return err })
	return e, err
}

func (f faulty) Expire(ctx context.Context, now time.Time) (expired []ota.Execution, next time.Time, err error) {
	who, _ := ctx.Value(callerKey{}).(caller)
	err = f.through(ctx, "Expire", "", func() error {
		if expired, next, err = f.Store.Expire(ctx, now); len(expired) > 0 {
			f.sim.changed = &change{caller: who, method: "Expire", now: now}
		}
		return err
	})
	return expired, next, err
}

func (f faulty) Execution(ctx context.Context, rollout, device string) (e ota.Execution, err error) {
	err = f.through(ctx, "Execution", device, func() error { e, err = f.Store.Execution(ctx, rollout, device); return err })
	return e, err
}

func (f faulty) Executions(ctx context.Context, filter fleet.ExecutionFilter, each func(ota.Execution) bool) error {
	return f.through(ctx, "Executions", filter.RolloutID, func() error { return f.Store.Executions(ctx, filter, each) })
}

func (f faulty) SelectDevices(ctx context.Context, q fleet.DeviceQuery, each func(fleet.DeviceView) bool) error {
	return f.through(ctx, "SelectDevices", "", func() error { return f.Store.SelectDevices(ctx, q, each) })
}

func (f faulty) Survey(ctx context.Context, q fleet.DeviceQuery, tags []string, each func(fleet.Surveyed) bool) error {
	return f.through(ctx, "Survey", "", func() error { return f.Store.Survey(ctx, q, tags, each) })
}

func (f faulty) Release(ctx context.Context, id ota.ReleaseID) (r ota.Release, err error) {
	err = f.through(ctx, "Release", id.String(), func() error { r, err = f.Store.Release(ctx, id); return err })
	return r, err
}

func (f faulty) RevokeDevice(ctx context.Context, id string, now time.Time) error {
	return f.write(ctx, change{method: "RevokeDevice", now: now}, id, func() error { return f.Store.RevokeDevice(ctx, id, now) })
}

func (f faulty) DeleteDevice(ctx context.Context, d fleet.Deletion, now time.Time) error {
	return f.write(ctx, change{method: "DeleteDevice", device: d.DeviceID, now: now}, d.DeviceID, func() error {
		err := f.Store.DeleteDevice(ctx, d, now)
		if err == nil { // every server learns it, whatever becomes of this one
			a := f.sim.agent[d.DeviceID]
			f.sim.after(0, a.forgotten)
		}
		return err
	})
}

func (f faulty) Withdraw(ctx context.Context, w fleet.Withdrawal) (done fleet.Withdrawn, err error) {
	err = f.write(ctx, change{method: "Withdraw", now: w.Now}, w.Release.String(), func() error { done, err = f.Store.Withdraw(ctx, w); return err })
	return done, err
}

func (f faulty) Marked(ctx context.Context, limit int) (list []fleet.Marked, err error) {
	err = f.through(ctx, "Marked", "", func() error { list, err = f.Store.Marked(ctx, limit); return err })
	return list, err
}

func (f faulty) Settle(ctx context.Context, looks []fleet.Look, now time.Time) error {
	who, _ := ctx.Value(callerKey{}).(caller)
	return f.through(ctx, "Settle", "", func() error {
		err := f.Store.Settle(ctx, looks, now)
		f.sim.moved = true
		if slices.ContainsFunc(looks, func(l fleet.Look) bool { return len(l.Changed)+len(l.Moves) > 0 }) && err == nil {
			f.sim.changed = &change{caller: who, method: "Settle", now: now}
		}
		return err
	})
}

func (f faulty) UpdateShadow(ctx context.Context, id, name string, u shadow.Update, now time.Time) (r shadow.Result, err error) {
	err = f.through(ctx, "UpdateShadow", id, func() error { r, err = f.Store.UpdateShadow(ctx, id, name, u, now); return err })
	return r, err
}

func (f faulty) CreateDevice(ctx context.Context, d fleet.Device) error {
	return f.through(ctx, "CreateDevice", d.ID, func() error { return f.Store.CreateDevice(ctx, d) })
}

func (f faulty) ChangeTags(ctx context.Context, id string, set map[string]string, remove []string) error {
	return f.through(ctx, "ChangeTags", id, func() error { return f.Store.ChangeTags(ctx, id, set, remove) })
}

func (f faulty) ChangeMembers(ctx context.Context, name string, add, remove []string) error {
	return f.through(ctx, "ChangeMembers", name, func() error { return f.Store.ChangeMembers(ctx, name, add, remove) })
}
