package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const selectRollout = `SELECT id, release_name, release_version, command, selector, seed, stages, abort, priority,
	state, reason, population, armed_at, revision, created_at, ended_at, in_progress_timeout,
	terms, line, next_turn, paced_at, approved_at, started_at, reverting, revert_of, follows, idle FROM rollouts`

func scanRollout(r row) (ota.Rollout, error) {
	var o ota.Rollout
	var reverting, follows, idle int
	err := r.Scan(&o.ID, textInto{&o.Release.Name}, textInto{&o.Release.Version}, commandInto{&o.Command}, &o.Selector, &o.Seed, jsonInto{&o.Stages}, jsonInto{&o.Abort},
		&o.Priority, &o.State, &o.Reason, &o.Population, timeInto{&o.ArmedAt}, &o.Revision,
		timeInto{&o.CreatedAt}, timeInto{&o.EndedAt}, durationInto{&o.InProgressTimeout},
		termsInto{&o}, &o.Line, &o.Cursor, timeInto{&o.PacedAt}, timeInto{&o.ApprovedAt}, timeInto{&o.StartedAt}, &reverting, &o.RevertOf, &follows, &idle)
	o.Reverting, o.Follows, o.Idle = reverting == 1, follows == 1, idle == 1
	return o, err
}

// commandInto scans a command; empty is none.
type commandInto struct{ c **ota.Command }

func (s commandInto) Scan(v any) error {
	*s.c = nil
	if v == "" {
		return nil
	}
	*s.c = new(ota.Command)
	return jsonInto{*s.c}.Scan(v)
}

// planText is the parts of a plan that are kept as JSON; empty lists are null, and
// no command is an empty text.
type planText struct{ stages, abort, terms, command string }

func planOf(r ota.Rollout) (p planText, err error) {
	kept := append([]ota.Stage(nil), r.Stages...)
	for i := range kept {
		g := &kept[i]
		g.ApprovedAt, g.OpenedAt, g.SoakingAt, g.EndedAt = stored(g.ApprovedAt), stored(g.OpenedAt), stored(g.SoakingAt), stored(g.EndedAt)
		g.SkippedAt = stored(g.SkippedAt)
	}
	terms := termsText{Terms: r.Terms, Pause: r.Pause, Edits: r.Edits}
	terms.Start = stored(terms.Start)
	if p.stages, err = jsonText(kept); err == nil {
		p.abort, err = jsonText(append([]ota.AbortRule(nil), r.Abort...))
	}
	if err == nil {
		p.terms, err = jsonText(terms)
	}
	if err == nil && r.Command != nil {
		p.command, err = jsonText(r.Command)
	}
	if err != nil {
		return p, fmt.Errorf("plan of rollout %s: %w", r.ID, err)
	}
	return p, nil
}

// CreateRollout implements fleet.RolloutStore.
func (s *Store) CreateRollout(ctx context.Context, r ota.Rollout) error {
	p, err := planOf(r)
	if err != nil {
		return err
	}
	return s.writer.do(ctx, func(t *tx) error { return createRollout(t, r, p, r.CreatedAt) })
}

func createRollout(t *tx, r ota.Rollout, p planText, now time.Time) error {
	n, err := t.exec(`INSERT INTO rollouts (id, release_name, release_version, command, selector, seed, stages, abort, priority,
			state, reason, population, armed_at, revision, created_at, ended_at, in_progress_timeout,
			terms, max_in_flight, max_per_lane, line, next_turn, paced_at, approved_at, started_at, reverting, revert_of, follows, idle, opening)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		r.ID, orNull(r.Release.Name), orNull(r.Release.Version), p.command, r.Selector, r.Seed, p.stages, p.abort, r.Priority,
		r.State, r.Reason, r.Population, micros(r.ArmedAt), r.Revision, micros(r.CreatedAt), micros(r.EndedAt), r.InProgressTimeout.Microseconds(),
		p.terms, r.Terms.InFlight.Max, r.Terms.InFlight.PerMax, r.Line, r.Cursor, micros(r.PacedAt), micros(r.ApprovedAt), micros(r.StartedAt),
		flag(r.Reverting), r.RevertOf, flag(r.Follows), flag(r.Idle), flag(r.Opening()))
	switch {
	case errors.Is(err, errForeignKey):
		return notFound("release %s", r.Release)
	case err == nil && n == 0:
		return fmt.Errorf("rollout %s exists: %w", r.ID, fleet.ErrConflict)
	case err != nil:
		return err
	}
	if r.Follows {
		if err := t.refollow(r); err != nil {
			return err
		}
	}
	t.tell(ota.Changes(ota.Rollout{}, r, now)...)
	_, err = t.exec(`INSERT INTO armed_counts (rollout_id, armed_at) VALUES (?, ?)`, r.ID, micros(r.ArmedAt))
	return err
}

// Rollout implements fleet.RolloutStore.
func (s *Store) Rollout(ctx context.Context, id string) (ota.Rollout, error) {
	r, err := scanRollout(s.row(ctx, selectRollout+` WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return ota.Rollout{}, notFound("rollout %s", id)
	}
	return r, err
}

// Rollouts implements fleet.RolloutStore.
func (s *Store) Rollouts(ctx context.Context) ([]ota.Rollout, error) {
	var list []ota.Rollout
	err := s.rows(ctx, func(r row) error {
		o, err := scanRollout(r)
		list = append(list, o)
		return err
	}, selectRollout+` ORDER BY COALESCE(created_at, 0) DESC, id`)
	if err != nil {
		return nil, fmt.Errorf("read rollouts: %w", err)
	}
	return list, nil
}

// Moving implements fleet.RolloutStore.
func (s *Store) Moving(ctx context.Context) (ids []string, err error) {
	err = s.rows(ctx, func(r row) error {
		var id string
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	}, selectMoving)
	if err != nil {
		return nil, fmt.Errorf("read rollouts that move: %w", err)
	}
	return ids, nil
}

// selectMoving names the states for which ota.RolloutState.Moves.
const selectMoving = `SELECT id FROM rollouts WHERE state IN ('SCHEDULED', 'RUNNING', 'ABORTING', 'ROLLING_BACK', 'FINISHING') AND idle = 0 ORDER BY id`

const (
	selectProgress = `SELECT stage, status, class, n, armed, retrying FROM execution_counts WHERE rollout_id = ?`
	countDue       = `SELECT COUNT(*) FROM (SELECT 1 FROM executions WHERE rollout_id = ? AND retry_at <= ? LIMIT ?) AS due`
	nextRetry      = `SELECT retry_at FROM executions WHERE rollout_id = ? AND retry_at > ? ORDER BY retry_at LIMIT 1`
)

// Progress implements fleet.RolloutStore. It reads counts, however many there are
// to be counted.
func (s *Store) Progress(ctx context.Context, r ota.Rollout, now time.Time) (ota.Progress, error) {
	p := ota.Progress{Stages: make([]ota.Counts, len(r.Stages)), Armed: ota.Counts{Finished: map[ota.Class]int{}}}
	for i := range p.Stages {
		p.Stages[i].Finished = map[ota.Class]int{}
	}
	found, retrying := false, 0
	err := s.rows(ctx, func(row row) error {
		var stage, n, armed, again int
		var status ota.Status
		var class ota.Class
		if err := row.Scan(&stage, &status, &class, &n, &armed, &again); err != nil {
			return err
		}
		found, retrying = true, retrying+again
		if armed > 0 {
			p.Armed.Finished[class] += armed
		}
		if stage < len(p.Stages) && n > 0 {
			count(&p.Stages[stage], status, class, n)
			if r.State == ota.RolloutRunning {
				p.Stages[stage].Retrying += again
			}
		}
		return nil
	}, selectProgress, r.ID)
	if err == nil && retrying > 0 && r.State == ota.RolloutRunning {
		err = s.retries(ctx, r.ID, &p, stored(now).UnixMicro())
	}
	if err == nil && r.Terms.Health.Set() {
		p.Health, err = s.seen(ctx, r, p.Armed.Finished[ota.ClassSucceeded])
	}
	if err == nil && r.Reverting {
		p.Reverts, err = s.reverts(ctx, r.ID)
	}
	if err != nil {
		return ota.Progress{}, fmt.Errorf("progress of rollout %s: %w", r.ID, err)
	}
	if !found {
		if _, err := s.Rollout(ctx, r.ID); err != nil {
			return ota.Progress{}, err
		}
	}
	return p, nil
}

func (s *Store) reverts(ctx context.Context, id string) (list []ota.Revert, err error) {
	err = s.rows(ctx, func(row row) error {
		var v ota.Revert
		err := row.Scan(&v.ID, &v.State)
		list = append(list, v)
		return err
	}, `SELECT id, state FROM rollouts WHERE revert_of = ? AND revert_of <> '' ORDER BY id`, id)
	return list, err
}

func (s *Store) retries(ctx context.Context, id string, p *ota.Progress, now int64) error {
	if err := s.row(ctx, countDue, id, now, ota.MaxTaken).Scan(&p.Due); err != nil {
		return err
	}
	err := s.row(ctx, nextRetry, id, now).Scan(timeInto{&p.NextRetry})
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

func count(c *ota.Counts, status ota.Status, class ota.Class, n int) {
	switch status {
	case ota.Queued:
		c.Queued += n
	case ota.InProgress:
		c.InProgress += n
	default:
		c.Finished[class] += n
	}
}
