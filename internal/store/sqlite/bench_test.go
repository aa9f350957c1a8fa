package sqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlite"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/internal/store/storetest"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

const (
	benchDevices = 10_000
	benchWriters = 200
)

func deviceID(i int) string { return fmt.Sprintf("device-%07d", i) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// enrollMany enrolls devices, a batch at a time.
func enrollMany(t testing.TB, s fleet.Store, n int) {
	t.Helper()
	ctx := context.Background()
	must(t, s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", Uses: n, Hardware: "board-a"}))
	var next atomic.Int64
	atOnce(t, benchWriters, func() error {
		for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
			d := fleet.Device{ID: deviceID(i - 1), KeyFingerprint: strings.Repeat("ab", 32)}
			if _, err := s.Enroll(ctx, d, [32]byte{}, time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
}

func atOnce(t testing.TB, n int, f func() error) {
	t.Helper()
	errs := make(chan error, n)
	for range n {
		go func() { errs <- f() }()
	}
	for range n {
		must(t, <-errs)
	}
}

func createRelease(ctx context.Context, s fleet.Store) error {
	_, err := s.CreateRelease(ctx, ota.Release{Manifest: ota.Manifest{Name: "app", Version: "1"}, CreatedAt: time.Now()})
	return err
}

func running(id string, target int) ota.Rollout {
	return ota.Rollout{
		ID: id, Release: ota.ReleaseID{Name: "app", Version: "1"}, State: ota.RolloutRunning, CreatedAt: time.Now(),
		Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StageOpen, Target: target}},
	}
}

// benchUpdate is an update of about 0.8 KB, as an agent reports it.
func benchUpdate(t testing.TB, n uint64) shadow.Update {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `{"state":{"reported":{"firmware":{"name":"app","version":"1.%d","digest":"%064x"}`, n%10, n)
	for i := range 12 {
		fmt.Fprintf(&b, `,"sensor-%d":{"value":%d,"unit":"degrees celsius","ok":true}`, i, n%1000)
	}
	b.WriteString(`}}}`)
	u, err := shadow.ParseUpdate([]byte(b.String()))
	must(t, err)
	return u
}

func benchStore(b *testing.B, devices int) fleet.Store {
	b.Helper()
	s := open(b, filepath.Join(b.TempDir(), "otad.db"))
	enrollMany(b, s, devices)
	return s
}

// benchDir keeps the fleet that every run of these uses, until TestMain ends.
var benchDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "otad-bench-") })

func openBench(b *testing.B) *sqlstore.Store {
	b.Helper()
	dir, err := benchDir()
	must(b, err)
	benched = dir
	s, err := sqlite.Open(context.Background(), filepath.Join(dir, "otad.db"))
	must(b, err)
	b.Cleanup(func() { must(b, s.Close()) })
	return s
}

// benched is what TestMain removes.
var benched string

// besides opens the store's database a second time.
func besides(b *testing.B) *sql.DB {
	b.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(benched, "otad.db")+
		"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)&_txlock=immediate")
	must(b, err)
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { must(b, db.Close()) })
	return db
}

func onBench(b *testing.B) storetest.Bench {
	b.Helper()
	s := openBench(b)
	return storetest.Bench{Store: s, Exec: func(statement string) error {
		_, err := besides(b).Exec(statement)
		return err
	}}
}

func BenchmarkShadowUpdate(b *testing.B) { storetest.BenchUpdates(b, onBench(b)) }

func BenchmarkShadowRead(b *testing.B) { storetest.BenchReads(b, onBench(b)) }

// BenchmarkCancel cancels executions that wait.
func BenchmarkCancel(b *testing.B) {
	b.Run("100k", func(b *testing.B) { benchCancel(b, 100_000) })
	b.Run("300k", func(b *testing.B) { benchCancel(b, 300_000) })
	b.Run("1M", func(b *testing.B) { benchCancel(b, 1_000_000) })
}

func benchCancel(b *testing.B, n int) {
	path := filepath.Join(b.TempDir(), "otad.db")
	s := open(b, path)
	storetest.BenchCancel(b, storetest.Bench{Store: s, Exec: func(statement string) error {
		db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)")
		if err != nil {
			return err
		}
		defer db.Close()
		_, err = db.Exec(statement)
		return err
	}}, n)
}

// BenchmarkShadowUpdateGroups is BenchmarkShadowUpdate beside dynamic groups: idle
// ones ask for nothing that an update changes, steady ones for what every one
// does without a change of their members, busy ones have a third of their members
// or so come and go with each.
func BenchmarkShadowUpdateGroups(b *testing.B) {
	for _, c := range []struct {
		name, expr string
		groups     int
	}{
		{"none", "", 0}, {"idle10", `shadow.desired.k%d = "x"`, 10}, {"idle100", `shadow.desired.k%d = "x"`, 100},
		{"steady100", `shadow.reported."sensor-1".value >= -%d`, 100},
		{"busy10", `shadow.reported."sensor-1".value > %d00`, 10}, {"busy100", `shadow.reported."sensor-1".value > %d0`, 100},
	} {
		b.Run(c.name, func(b *testing.B) {
			const devices = 2000
			s, ctx := benchStore(b, devices), context.Background()
			for i := range devices { // so that it is a change, not a first report, that groups see
				_, err := s.UpdateShadow(ctx, deviceID(i), "", benchUpdate(b, uint64(i)), time.Now())
				must(b, err)
			}
			for i := range c.groups {
				must(b, s.CreateGroup(ctx, fleet.Group{Name: fmt.Sprint("g", i), Dynamic: true, Selector: fmt.Sprintf(c.expr, i), CreatedAt: time.Now()}, nil))
				must(b, fleet.FillGroup(ctx, s, fmt.Sprint("g", i)))
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			before := storetest.ProcessorTime()
			b.ResetTimer()
			atOnce(b, benchWriters, func() error {
				for left.Add(-1) >= 0 {
					n := rand.Uint64()
					if _, err := s.UpdateShadow(ctx, deviceID(int(n%devices)), "", benchUpdate(b, n), time.Now()); err != nil {
						return err
					}
				}
				return nil
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
			b.ReportMetric((storetest.ProcessorTime()-before).Seconds()*1e6/float64(b.N), "cpu-us/op")
		})
	}
}

func BenchmarkGroupReflects(b *testing.B) { storetest.BenchGroupReflects(b, onBench(b)) }

// BenchmarkShadowUpdateAlone is one caller: what a write costs without company.
func BenchmarkShadowUpdateAlone(b *testing.B) {
	s, ctx := benchStore(b, benchDevices), context.Background()
	b.ResetTimer()
	for range b.N {
		n := rand.Uint64()
		_, err := s.UpdateShadow(ctx, deviceID(int(n%benchDevices)), "", benchUpdate(b, n), time.Now())
		must(b, err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
}

// BenchmarkShadowUpdateNaive is what group commit is measured against: the same
// work in one transaction for each update, callers waiting for a connection.
func BenchmarkShadowUpdateNaive(b *testing.B) {
	on := onBench(b)
	db := besides(b)
	storetest.BenchNaive(b, on, func(id string, u shadow.Update) error { return naiveUpdate(db, id, u) })
}

func naiveUpdate(db *sql.DB, id string, u shadow.Update) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	var text string
	if err := tx.QueryRow(`SELECT document FROM shadows WHERE device_id = ? AND name = ''`, id).Scan(&text); err != nil {
		return err
	}
	doc, err := shadow.ParseDocument(text)
	if err != nil {
		return err
	}
	r, err := shadow.Apply(doc, u, time.Now())
	if err != nil {
		return err
	}
	if _, err := tx.Exec(`UPDATE shadows SET version = ?, document = ? WHERE device_id = ? AND name = ''`, r.Document.Version, string(r.Document.Append(nil)), id); err != nil {
		return err
	}
	return tx.Commit()
}

// BenchmarkOpenStage100k opens a stage of 100,000 executions.
func BenchmarkOpenStage100k(b *testing.B) {
	const n = 100_000
	s, ctx := benchStore(b, n), context.Background()
	must(b, createRelease(ctx, s))
	insert := make([]ota.Execution, n)
	for i, j := range rand.Perm(n) {
		insert[i] = ota.Execution{DeviceID: deviceID(j), Attempt: 1, Status: ota.Queued}
	}
	b.ResetTimer()
	for i := range b.N {
		r := running(fmt.Sprintf("019a7c1e-4b5d-7e6f-8a9b-%012d", i), n)
		must(b, s.CreateRollout(ctx, r))
		must(b, s.Advance(ctx, fleet.Advance{Rollout: r, Insert: insert, Now: time.Now()}))
	}
	b.StopTimer()
	r := running(fmt.Sprintf("019a7c1e-4b5d-7e6f-8a9b-%012d", 0), n)
	start := time.Now()
	p, err := s.Progress(ctx, r, time.Now())
	must(b, err)
	if p.Stages[0].Queued != n {
		b.Fatalf("progress %+v", p)
	}
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/progress")
}

// BenchmarkDevices reads 10,000 devices with a shadow each.
func BenchmarkDevices(b *testing.B) {
	s, ctx := benchStore(b, benchDevices), context.Background()
	var next atomic.Int64
	atOnce(b, benchWriters, func() error {
		for i := next.Add(1); i <= benchDevices; i = next.Add(1) {
			if _, err := s.UpdateShadow(ctx, deviceID(int(i-1)), "", benchUpdate(b, uint64(i)), time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	b.ResetTimer()
	for range b.N {
		n := 0
		must(b, s.Devices(ctx, "", func(v fleet.DeviceView) bool { n++; return true }))
		if n != benchDevices {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.N)*benchDevices/b.Elapsed().Seconds(), "devices/s")
}

// BenchmarkNextExecution is the poll of a device that has nothing to do among
// many that have.
func BenchmarkNextExecution(b *testing.B) {
	s, ctx := benchStore(b, benchDevices), context.Background()
	must(b, createRelease(ctx, s))
	r := running("r", benchDevices)
	must(b, s.CreateRollout(ctx, r))
	var insert []ota.Execution
	for i := range benchDevices / 2 {
		insert = append(insert, ota.Execution{DeviceID: deviceID(i), Attempt: 1, Status: ota.Queued})
	}
	must(b, s.Advance(ctx, fleet.Advance{Rollout: r, Insert: insert, Now: time.Now()}))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, _ = s.NextExecution(ctx, deviceID(rand.IntN(benchDevices)))
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "polls/s")
}

// BenchmarkReports has 10,000 devices start and succeed, 200 at a time: two
// durable operations with an event each.
func BenchmarkReports(b *testing.B) {
	s, ctx := benchStore(b, benchDevices), context.Background()
	must(b, createRelease(ctx, s))
	var used time.Duration
	b.ResetTimer()
	for n := range b.N {
		b.StopTimer()
		r := running(fmt.Sprint("r", n), benchDevices)
		must(b, s.CreateRollout(ctx, r))
		insert := make([]ota.Execution, benchDevices)
		for i := range insert {
			insert[i] = ota.Execution{DeviceID: deviceID(i), Attempt: 1, Status: ota.Queued}
		}
		must(b, s.Advance(ctx, fleet.Advance{Rollout: r, Insert: insert, Now: time.Now()}))
		before := storetest.ProcessorTime()
		var next atomic.Int64
		b.StartTimer()
		atOnce(b, benchWriters, func() error {
			for i := int(next.Add(1)); i <= benchDevices; i = int(next.Add(1)) {
				id := deviceID(i - 1)
				if _, err := s.StartNext(ctx, id, ota.Starting{}, time.Now()); err != nil {
					return err
				}
				if _, err := s.Report(ctx, ota.Report{RolloutID: r.ID, DeviceID: id, Status: ota.Succeeded}, time.Now()); err != nil {
					return err
				}
			}
			return nil
		})
		used += storetest.ProcessorTime() - before
	}
	reports := float64(2 * benchDevices * b.N)
	b.ReportMetric(reports/b.Elapsed().Seconds(), "reports/s")
	b.ReportMetric(used.Seconds()*1e6/reports, "cpu-us/report")
}
