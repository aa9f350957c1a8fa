package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const selectRollout = `SELECT id, release_name, release_version, selector, seed, stages, abort, priority,
	state, reason, population, armed_at, revision, created_at, ended_at, in_progress_timeout FROM rollouts`

func scanRollout(r row) (ota.Rollout, error) {
	var o ota.Rollout
	err := r.Scan(&o.ID, &o.Release.Name, &o.Release.Version, &o.Selector, &o.Seed, jsonInto{&o.Stages}, jsonInto{&o.Abort},
		&o.Priority, &o.State, &o.Reason, &o.Population, timeInto{&o.ArmedAt}, &o.Revision,
		timeInto{&o.CreatedAt}, timeInto{&o.EndedAt}, durationInto{&o.InProgressTimeout})
	return o, err
}

// planText returns the stages and abort rules as JSON; empty ones are null.
func planText(r ota.Rollout) (stages, abort string, err error) {
	kept := append([]ota.Stage(nil), r.Stages...)
	for i := range kept {
		g := &kept[i]
		g.OpenedAt, g.SoakingAt, g.EndedAt = stored(g.OpenedAt), stored(g.SoakingAt), stored(g.EndedAt)
	}
	if stages, err = jsonText(kept); err == nil {
		abort, err = jsonText(append([]ota.AbortRule(nil), r.Abort...))
	}
	if err != nil {
		return "", "", fmt.Errorf("plan of rollout %s: %w", r.ID, err)
	}
	return stages, abort, nil
}

// CreateRollout implements fleet.RolloutStore.
func (s *Store) CreateRollout(ctx context.Context, r ota.Rollout) error {
	stages, abort, err := planText(r)
	if err != nil {
		return err
	}
	return s.writer.do(ctx, func(t *tx) error {
		n, err := t.exec(`INSERT INTO rollouts (id, release_name, release_version, selector, seed, stages, abort, priority,
			state, reason, population, armed_at, revision, created_at, ended_at, in_progress_timeout)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			r.ID, r.Release.Name, r.Release.Version, r.Selector, r.Seed, stages, abort, r.Priority,
			r.State, r.Reason, r.Population, micros(r.ArmedAt), r.Revision, micros(r.CreatedAt), micros(r.EndedAt), r.InProgressTimeout.Microseconds())
		switch {
		case errors.Is(err, errForeignKey):
			return notFound("release %s", r.Release)
		case err == nil && n == 0:
			return fmt.Errorf("rollout %s exists: %w", r.ID, fleet.ErrConflict)
		}
		return err
	})
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

const selectProgress = `SELECT stage, status, class, COUNT(*), SUM(CASE WHEN finished_at > ? THEN 1 ELSE 0 END)
	FROM executions WHERE rollout_id = ? AND latest = 1 GROUP BY status, stage, class`

// Progress implements fleet.RolloutStore.
func (s *Store) Progress(ctx context.Context, r ota.Rollout) (ota.Progress, error) {
	p := ota.Progress{Stages: make([]ota.Counts, len(r.Stages)), Armed: ota.Counts{Finished: map[ota.Class]int{}}}
	for i := range p.Stages {
		p.Stages[i].Finished = map[ota.Class]int{}
	}
	found := false
	err := s.rows(ctx, func(row row) error {
		var stage, n, armed int
		var status ota.Status
		var class ota.Class
		if err := row.Scan(&stage, &status, &class, &n, &armed); err != nil {
			return err
		}
		found = true
		if armed > 0 {
			p.Armed.Finished[class] += armed
		}
		if stage < len(p.Stages) {
			count(&p.Stages[stage], status, class, n)
		}
		return nil
	}, selectProgress, stored(r.ArmedAt).UnixMicro(), r.ID)
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
