package storetest

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// BenchCancel measures how all n executions of a rollout are cancelled that wait:
// what it costs, how much memory it takes, and how long others have to wait for a
// transaction of it at most.
func BenchCancel(b *testing.B, on Bench, n int) {
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	must(on.Exec(Seed(n)[0]))
	r := ota.Rollout{
		ID: "019a7c1e-4b5d-7e6f-8a9b-000000000000", Command: &ota.Command{Name: ota.CommandReboot}, CreatedAt: time.Now(), State: ota.RolloutRunning,
		Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StageOpen, Target: n}},
	}
	must(on.Store.CreateRollout(ctx, r))
	must(on.Exec(`INSERT INTO executions (rollout_id, device_id, attempt, latest, stage, status, class, version, queued_at, updated_at, details)
		SELECT '` + r.ID + `', id, 1, 1, 0, 'QUEUED', '', 1, 1700000000000000, 1700000000000000, '{}' FROM devices`))
	must(on.Exec(fmt.Sprintf(`INSERT INTO execution_counts (rollout_id, stage, status, class, n, armed, retrying) VALUES ('%s', 0, 'QUEUED', '', %d, 0, 0)`, r.ID, n)))
	must(on.Exec("ANALYZE"))
	r.State, r.Reason = ota.RolloutAborting, "it is measured"
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		var longest time.Duration
		before, database, cancelled := ProcessorTime(), on.database(), 0
		most := Peak(func() {
			for {
				began := time.Now()
				done, err := on.Store.Cancel(ctx, r, time.Now(), fleet.CancelBatch)
				must(err)
				longest = max(longest, time.Since(began))
				if done.Total() == 0 {
					break
				}
				cancelled += done.Total()
			}
		})
		if cancelled != n {
			b.Fatalf("%d of %d were cancelled", cancelled, n)
		}
		b.ReportMetric((ProcessorTime()-before).Seconds()*1e6/float64(n), "cpu-us/row")
		b.ReportMetric((on.database()-database).Seconds()*1e6/float64(n), "db-us/row")
		b.ReportMetric(float64(longest.Microseconds())/1000, "longest-ms")
		b.ReportMetric(float64(most)/(1<<20), "MiB")
	}
}

// Peak is how many bytes of memory more than before the process had in use at most
// while f ran, by looks at short intervals.
func Peak(f func()) uint64 {
	runtime.GC()
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	before, most := inUse(), uint64(0)
	ended := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, inUse())
			select {
			case <-tick.C:
			case <-ended:
				return
			}
		}
	})
	f()
	close(ended)
	looking.Wait()
	return most - min(before, most)
}
