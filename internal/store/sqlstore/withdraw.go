package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const (
	updateWithdrawn = `UPDATE releases SET state = ?, withdrawn_at = ?, reason = ? WHERE name = ? AND version = ?`
	// A rollout that goes on may lead over any release, whatever it is of.
	selectUnended  = selectRollout + ` WHERE ended_at IS NULL AND command = '' ORDER BY id`
	updateRerouted = `UPDATE rollouts SET idle = 0, revision = revision + 1 WHERE id = ?`

	// over is so for executions whose next release is the given one. A space stands
	// between two, and nothing in a name comes before '!' but that.
	over          = `(e.via = ? OR e.via > ? AND e.via < ?)`
	reroute       = `UPDATE executions AS e SET status = ?, class = ?, details = ?, step = '', version = version + 1, updated_at = ?, finished_at = ?, retry_at = ?, expires_at = NULL, expires_as = '' WHERE `
	rerouteBegun  = reroute + `e.status = 'IN_PROGRESS' AND e.step IN ('waiting', 'fetching', 'staged') AND e.latest = 1 AND e.rollout_id = ? AND ` + over + returnCancelled
	rerouteQueued = reroute + `e.status = 'QUEUED' AND e.latest = 1 AND e.rollout_id = ? AND ` + over + returnCancelled

	selectWithdrawn = `SELECT name, version FROM releases WHERE withdrawn_at IS NOT NULL`
)

// Withdraw implements fleet.ReleaseStore.
func (s *Store) Withdraw(ctx context.Context, w fleet.Withdrawal) (done fleet.Withdrawn, err error) {
	err = s.writer.doReading(ctx, reading{stops: true, alone: true}, func(t *tx) error {
		done, err = t.withdraw(w)
		return err
	})
	if err != nil {
		return fleet.Withdrawn{}, err
	}
	return done, nil
}

func (t *tx) withdraw(w fleet.Withdrawal) (done fleet.Withdrawn, err error) {
	// Who makes executions sees the release withdrawn, or is seen here.
	if err := t.keepOut(t.w.dialect.Revoke); err != nil {
		return done, err
	}
	old, err := scanRelease(t.row(selectRelease+` WHERE name = ? AND version = ?`+t.forUpdate("releases"), w.Release.Name, w.Release.Version))
	if errors.Is(err, sql.ErrNoRows) {
		return done, notFound("release %s", w.Release)
	}
	if err == nil {
		done.Release, err = ota.Withdraw(old, w.Reason, stored(w.Now))
	}
	if err == nil {
		err = t.publish(w.Files, w.Signed, w.Now)
	}
	if err != nil || old.State == ota.ReleaseWithdrawn {
		return done, err
	}
	r := done.Release
	before, err := t.releases()
	if err != nil {
		return done, err
	}
	if _, err := t.exec(updateWithdrawn, r.State, micros(r.WithdrawnAt), r.Reason, r.Name, r.Version); err != nil {
		return done, err
	}
	t.tell(ota.Withdrawn(old, r))
	var rollouts []ota.Rollout
	err = t.rows(func(row row) error {
		o, err := scanRollout(row)
		rollouts = append(rollouts, o)
		return err
	}, selectUnended+t.forUpdate("rollouts"))
	if err != nil {
		return done, err
	}
	for _, o := range rollouts {
		if err := t.stop(o, w, &done); err != nil {
			return done, fmt.Errorf("rollout %s: %w", o.ID, err)
		}
	}
	if err := t.markOpened(before); err != nil {
		return done, err
	}
	slices.SortFunc(done.Rerouted, func(a, b ota.Execution) int { return fleet.KeyOf(a).Compare(fleet.KeyOf(b)) })
	return done, nil
}

// stop keeps a rollout from bringing a release that was withdrawn.
func (t *tx) stop(o ota.Rollout, w fleet.Withdrawal, done *fleet.Withdrawn) error {
	now := stored(w.Now)
	next, changed := ota.Abandon(o, done.Release, w.Policy, now)
	if changed {
		p, err := planOf(next)
		if err == nil {
			err = writeRollout(t, next, p)
		}
		if err != nil {
			return err
		}
		next.Revision++
		done.Rollouts = append(done.Rollouts, fleet.Abandoned{Before: o, After: next})
		t.tell(ota.Changes(o, next, now)...)
		return t.follow(o, next, fleet.Advance{Now: now})
	}
	if !ota.GoesOn(o) {
		return nil
	}
	n := len(done.Rerouted)
	for _, of := range []struct {
		status    ota.Status
		statement string
	}{{ota.InProgress, rerouteBegun}, {ota.Queued, rerouteQueued}} {
		if err := t.reroute(o, of.status, of.statement, w, done); err != nil {
			return err
		}
	}
	if len(done.Rerouted) == n {
		return nil
	}
	_, err := t.exec(updateRerouted, o.ID)
	return err
}

// reroute has executions of a rollout that lead over the release end, to go another
// way.
func (t *tx) reroute(o ota.Rollout, status ota.Status, statement string, w fleet.Withdrawal, done *fleet.Withdrawn) error {
	as := ota.Execution{RolloutID: o.ID, Status: ota.Queued, Release: w.Release, Via: []ota.ReleaseID{w.Release}}
	as, _ = ota.Reroute(as, done.Release, stored(w.Now))
	details, err := mapText(as.Details)
	if err != nil {
		return err
	}
	via := viaText(as.Via)
	stages := map[int]int64{}
	err = t.returning(func(r row) error {
		e := ota.Execution{RolloutID: o.ID, Status: as.Status}
		err := r.Scan(&e.DeviceID, &e.Stage, timeInto{&e.QueuedAt}, timeInto{&e.StartedAt})
		stages[e.Stage]++
		done.Rerouted = append(done.Rerouted, e)
		return err
	}, statement, as.Status, as.Class, details, micros(as.UpdatedAt), micros(as.FinishedAt), micros(as.RetryAt), o.ID, via, via+" ", via+"!")
	if err != nil {
		return err
	}
	for stage, n := range stages {
		as.Stage = stage
		if err := t.counted(ota.Execution{RolloutID: o.ID, Stage: stage, Status: status}, -n); err != nil {
			return err
		}
		if err := t.counted(as, n); err != nil {
			return err
		}
		t.tell(ota.MovedTogether(status, as, int(n), w.Now))
	}
	return nil
}

// offered reports an execution that would be made of a release which was withdrawn
// since the step was decided. Nobody withdraws one before the transaction ends.
func (t *tx) offered(r ota.Rollout, insert []ota.Execution, open *fleet.Opening) error {
	var withdrawn []ota.ReleaseID
	err := t.rows(func(row row) error {
		var id ota.ReleaseID
		err := row.Scan(&id.Name, &id.Version)
		withdrawn = append(withdrawn, id)
		return err
	}, selectWithdrawn)
	if err != nil {
		return err
	}
	return fleet.Brings(r, insert, open, withdrawn)
}
