package postgres_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/postgres"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/ota"
)

// TestNoExecutionIsMadeOnADeviceThatIsBeingRevoked has another otad in the middle of
// either while this one does the other: whoever comes second has to see the first.
func TestNoExecutionIsMadeOnADeviceThatIsBeingRevoked(t *testing.T) {
	url := server.Schema(t)
	s, ctx := open(t, url), t.Context()
	db, err := sql.Open("pgx", url)
	must(t, err)
	defer db.Close()
	must(t, s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", Uses: 2}))
	for _, id := range []string{"a", "b"} {
		_, err := s.Enroll(ctx, fleet.Device{ID: id}, [32]byte{}, time.Now())
		must(t, err)
	}
	r := ota.Rollout{ID: "r", Command: &ota.Command{Name: "reboot"}, State: ota.RolloutRunning, Line: "l", Stages: []ota.Stage{{State: ota.StageOpen, Target: 2}}, CreatedAt: time.Now()}
	must(t, s.CreateRollout(ctx, r))
	must(t, s.PutCandidates(ctx, "r", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}}))

	t.Run("revoked first", func(t *testing.T) {
		revoke := begin(t, db, postgres.Revoke, "UPDATE devices SET revoked_at = 1 WHERE id = 'a'")
		opened := make(chan error, 1)
		go func() {
			opened <- s.Advance(ctx, fleet.Advance{Rollout: r, Open: &fleet.Opening{From: 0, To: 2}, Now: time.Now()})
		}()
		waits(t, db, opened)
		must(t, revoke.Commit())
		must(t, <-opened)
		if got := standing(t, s); len(got) != 1 || got["b"] != ota.Queued {
			t.Errorf("executions %v, want b QUEUED and none on a, which is revoked", got)
		}
	})
	t.Run("made first", func(t *testing.T) {
		reach := begin(t, db, postgres.Reach, "UPDATE executions SET updated_at = updated_at + 1 WHERE device_id = 'b'")
		revoked := make(chan error, 1)
		go func() { revoked <- s.RevokeDevice(ctx, "b", time.Now()) }()
		waits(t, db, revoked)
		must(t, reach.Commit())
		must(t, <-revoked)
		if got := standing(t, s); got["b"] != ota.Removed {
			t.Errorf("executions %v, want b REMOVED", got)
		}
	})
}

// begin is another otad in the middle of a transaction.
func begin(t *testing.T, db *sql.DB, statements ...string) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(context.Background(), nil)
	must(t, err)
	t.Cleanup(func() { _ = tx.Rollback() })
	for _, statement := range statements {
		_, err := tx.Exec(statement)
		must(t, err)
	}
	return tx
}

// waits returns when somebody waits for a lock, and fails when done comes first.
func waits(t *testing.T, db *sql.DB, done <-chan error) {
	t.Helper()
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		select {
		case err := <-done:
			t.Fatalf("it did not wait for the other one: %v", err)
		default:
		}
		var waiting bool
		must(t, db.QueryRow("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)").Scan(&waiting))
		if waiting {
			tick.Stop()
			return
		}
	}
}

func standing(t *testing.T, s *sqlstore.Store) map[string]ota.Status {
	t.Helper()
	m := map[string]ota.Status{}
	must(t, s.Executions(t.Context(), fleet.ExecutionFilter{}, func(e ota.Execution) bool {
		m[e.DeviceID] = e.Status
		return true
	}))
	return m
}
