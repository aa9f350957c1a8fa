package postgres_test

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/postgres"
	"github.com/otad/otad/pkg/ota"
)

// TestNothingStartsAfterAPauseOfAnother has another otad in the middle of either while
// this one does the other: what was started before counts when the pause is stored, and
// nothing starts after it.
func TestNothingStartsAfterAPauseOfAnother(t *testing.T) {
	url := server.Schema(t)
	s, ctx := open(t, url), t.Context()
	db, err := sql.Open("pgx", url)
	must(t, err)
	defer db.Close()
	must(t, s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", Uses: 2}))
	var queued []ota.Execution
	for _, id := range []string{"a", "b"} {
		_, err := s.Enroll(ctx, fleet.Device{ID: id}, [32]byte{}, time.Now())
		must(t, err)
		queued = append(queued, ota.Execution{DeviceID: id, Attempt: 1, Status: ota.Queued})
	}
	r := ota.Rollout{ID: "r", Command: &ota.Command{Name: "reboot"}, State: ota.RolloutRunning, Stages: []ota.Stage{{State: ota.StageOpen, Target: 2}}, CreatedAt: time.Now()}
	must(t, s.CreateRollout(ctx, r))
	must(t, s.Advance(ctx, fleet.Advance{Rollout: r, Insert: queued, Now: time.Now()}))
	r.Revision++

	t.Run("started first", func(t *testing.T) {
		start := begin(t, db, postgres.Start, "UPDATE executions SET status = 'IN_PROGRESS' WHERE device_id = 'a'")
		paused := make(chan error, 1)
		pause := r
		pause.State = ota.RolloutPaused
		go func() { paused <- s.Advance(ctx, fleet.Advance{Rollout: pause, Now: time.Now()}) }()
		waits(t, db, paused)
		must(t, start.Commit())
		must(t, <-paused)
		if got := standing(t, s); got["a"] != ota.InProgress || got["b"] != ota.Queued {
			t.Errorf("executions %v", got)
		}
	})
	t.Run("paused first", func(t *testing.T) {
		_, err := db.Exec("UPDATE rollouts SET state = 'RUNNING'")
		must(t, err)
		pause := begin(t, db, postgres.Stop, "UPDATE rollouts SET state = 'PAUSED'")
		started := make(chan error, 1)
		go func() {
			_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "b", Status: ota.InProgress}, time.Now())
			started <- err
		}()
		waits(t, db, started)
		must(t, pause.Commit())
		if err := <-started; !errors.Is(err, ota.ErrTransition) {
			t.Errorf("it starts: %v", err)
		}
	})
}
