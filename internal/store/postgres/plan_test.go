package postgres_test

import (
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/postgres"
	"github.com/otad/otad/internal/store/storetest"
	"github.com/otad/otad/pkg/ota"
)

// TestAStepReadsItsOwnDevices: PostgreSQL plans a statement that it has seen a few times
// for any arguments, and would read the whole fleet for each step of an opening.
func TestAStepReadsItsOwnDevices(t *testing.T) {
	const (
		known = 20_000
		step  = 200
		steps = 20 // five of each connection are planned anew in any case
	)
	url := server.Database(t)
	s, err := postgres.Open(t.Context(), postgres.Config{URL: url})
	must(t, err)
	db, err := sql.Open("pgx", url)
	must(t, err)
	for _, statement := range append(storetest.Seed(known), "ANALYZE", "SELECT pg_stat_reset()") {
		_, err := db.Exec(statement)
		must(t, err)
	}
	must(t, db.Close())
	_, err = s.CreateRelease(t.Context(), ota.Release{Manifest: ota.Manifest{Name: "app", Version: "1"}, CreatedAt: time.Now()})
	must(t, err)
	r := replicaRollout("opened")
	r.Line, r.Stages[0].Target = "l", known
	must(t, s.CreateRollout(t.Context(), r))
	var line []ota.Candidate
	for i := range steps * step {
		line = append(line, ota.Candidate{DeviceID: fmt.Sprintf("device-%07d", i*(known/steps/step))})
	}
	must(t, s.PutCandidates(t.Context(), r.ID, "l", 0, line))
	tamper(t, url, "ANALYZE candidates")
	for to := step; to <= len(line); to += step {
		a := fleet.Advance{Rollout: r, Open: &fleet.Opening{From: to - step, To: to}, Now: time.Now()}
		a.Rollout.Cursor = to
		must(t, s.Advance(t.Context(), a))
		r.Cursor = to
		r.Revision++
	}
	must(t, s.Close()) // a connection that ends tells its statistics
	db, err = sql.Open("pgx", url)
	must(t, err)
	var read, found int
	must(t, db.QueryRow("SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'devices'").Scan(&read, &found))
	must(t, db.Close())
	if read > 0 || found < len(line) {
		t.Errorf("%d devices were read one after the other, %d were looked for, of %d in line", read, found, len(line))
	}
}
