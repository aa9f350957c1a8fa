package postgres_test

import (
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// TestLargeRolloutsAreAnalyzed: PostgreSQL looks at a long line when its rollout begins,
// and at the executions when there are many, not at those of every step. What it knows of
// a table is -1 until it has looked; that it does so by itself is off here.
func TestLargeRolloutsAreAnalyzed(t *testing.T) {
	ctx, url, now := t.Context(), server.Schema(t), time.Now()
	s := open(t, url)
	const many = 10_000
	tamper(t, url, fmt.Sprintf(`INSERT INTO devices (id, hardware, tags, key_fingerprint, created_at)
		SELECT 'd' || lpad(i::text, 5, '0'), 'h', '{}', 'k', 1 FROM generate_series(0, %d - 1) i;
		ALTER TABLE candidates SET (autovacuum_enabled = false);
		ALTER TABLE executions SET (autovacuum_enabled = false)`, many))
	db, err := sql.Open("pgx", url)
	must(t, err)
	defer db.Close()
	knows := func(when string, candidates, executions int) {
		t.Helper()
		for table, want := range map[string]int{"candidates": candidates, "executions": executions} {
			var rows int
			must(t, db.QueryRow(`SELECT reltuples FROM pg_class WHERE oid = to_regclass($1)`, table).Scan(&rows))
			if rows != want {
				t.Errorf("%s it knows of %d %s, want %d", when, rows, table, want)
			}
		}
	}
	_, err = s.CreateRelease(ctx, ota.Release{Manifest: ota.Manifest{Name: "app", Version: "1"}, CreatedAt: now})
	must(t, err)
	begin := func(id string, devices int) {
		o := replicaRollout(id)
		o.State = ota.RolloutScheduled
		must(t, s.CreateRollout(ctx, o))
		line := make([]ota.Candidate, devices)
		for i := range line {
			line[i].DeviceID = fmt.Sprintf("d%05d", i)
		}
		must(t, s.PutCandidates(ctx, id, "l", 0, line))
		o, err := s.Rollout(ctx, id)
		must(t, err)
		o.Stages[0].Target = devices
		must(t, s.Advance(ctx, fleet.Advance{Rollout: ota.Begin(o, o.Stages, devices, "l", now), Now: now}))
	}
	give := func(id string, from, to int) {
		o, err := s.Rollout(ctx, id)
		must(t, err)
		o.Cursor = to
		must(t, s.Advance(ctx, fleet.Advance{Rollout: o, Open: &fleet.Opening{From: from, To: to}, Now: now}))
	}
	begin("small", many-1)
	knows("when a short line has begun,", -1, -1)
	give("small", 0, many-1)
	knows("when that has had its turns,", -1, -1)
	begin("large", many)
	knows("when a long line has begun,", 2*many-1, -1)
	give("large", 0, many-1)
	knows("before the last turn,", 2*many-1, -1)
	give("large", many-1, many)
	knows("after it,", 2*many-1, 2*many-1)
}
