package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/postgres"
	"github.com/otad/otad/internal/store/sqlite"
	"github.com/otad/otad/internal/store/storetest"
	"github.com/otad/otad/internal/testserver"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

const (
	rolloutAsking  = 10_000 // devices that begin and report
	rolloutTold    = 50_000 // devices that are told, before the rest is left alone
	rolloutSpread  = 1000   // devices that ask while the stage is being opened
	rolloutWriters = 200
	rolloutNaive   = 500 // of what is done row by row to compare
)

// silent is a Publisher that tells nobody.
type silent struct{ told atomic.Int64 }

func (s *silent) NotifyNext(context.Context, string, *ota.Execution) error {
	s.told.Add(1)
	return nil
}
func (*silent) NotifyJobs(context.Context, string, []ota.Execution) error          { return nil }
func (*silent) ShadowUpdated(context.Context, string, string, shadow.Result) error { return nil }
func (*silent) Evict(fleet.Eviction)                                               {}

// BenchmarkRollout plans a rollout over a fleet, opens a stage of all of it, lets
// 10,000 devices ask, begin and report, reads where it stands, and trips its abort
// rule: the service and the store, without the network. Each of its parts runs
// alone, as in -bench Rollout/postgres/1M.
func BenchmarkRollout(b *testing.B) {
	for name, n := range map[string]int{"100k": 100_000, "1M": 1_000_000} {
		b.Run("sqlite/"+name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "otad.db")
			store, err := sqlite.Open(context.Background(), path)
			must(b, err)
			b.Cleanup(func() { must(b, store.Close()) })
			benchRollout(b, store, seedRollout(b, "sqlite", path, n), n)
		})
		b.Run("postgres/"+name, func(b *testing.B) {
			server := testserver.Postgres{Durable: true}
			url := server.Database(b)
			store, err := postgres.Open(context.Background(), postgres.Config{URL: url})
			must(b, err)
			b.Cleanup(func() { must(b, store.Close()) })
			benchRollout(b, store, seedRollout(b, "pgx", url, n), n)
		})
	}
}

// BenchmarkIdle is what the engine and all beside it cost while nothing moves: with
// no rollout, and with a thousand that are paused.
func BenchmarkIdle(b *testing.B) {
	for name, rollouts := range map[string]int{"none": 0, "paused": 1000} {
		b.Run(name, func(b *testing.B) {
			store, err := sqlite.Open(context.Background(), filepath.Join(b.TempDir(), "otad.db"))
			must(b, err)
			b.Cleanup(func() { must(b, store.Close()) })
			for i := range rollouts {
				must(b, store.CreateRollout(context.Background(), ota.Rollout{
					ID: fmt.Sprintf("r%04d", i), Command: &ota.Command{Name: ota.CommandReboot}, CreatedAt: time.Now(), State: ota.RolloutPaused, Line: "l",
					Stages: []ota.Stage{{State: ota.StageOpen, Target: 1}},
				}))
			}
			service := fleet.New(fleet.Config{Store: store, Publisher: &silent{}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithCancel(context.Background())
			var running sync.WaitGroup
			for _, run := range []func(context.Context) error{service.RunEngine, service.RunNotifier, service.RunTimeouts, service.RunLooks} {
				running.Go(func() { _ = run(ctx) })
			}
			b.Cleanup(running.Wait)
			b.Cleanup(cancel)
			for b.Loop() {
				before := processorTime(b)
				<-time.After(idleFor)
				b.ReportMetric(float64(processorTime(b)-before)/float64(idleFor)*100, "%cpu")
			}
		})
	}
}

// idleFor is twice the time after which the engine looks by itself.
const idleFor = 10 * time.Second

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// seedRollout fills a database, and returns a way into it behind the store's back.
func seedRollout(b *testing.B, driver, at string, n int) *sql.DB {
	b.Helper()
	db, err := sql.Open(driver, at)
	must(b, err)
	b.Cleanup(func() { must(b, db.Close()) })
	for _, statement := range append(storetest.Seed(n), "ANALYZE") {
		if _, err := db.Exec(statement); err != nil {
			b.Fatal(err)
		}
	}
	return db
}

func benchRollout(b *testing.B, store fleet.Store, db *sql.DB, devices int) {
	ctx, cancel := context.WithCancel(context.Background())
	release := ota.Release{CreatedAt: time.Now(), Manifest: ota.Manifest{
		Name: "app", Version: "1.0.0", HardwareIDs: []string{"board-a"}, Installer: ota.InstallImage,
		ImageDigest: strings.Repeat("cd", 32), ImageSize: 1, ObjectSize: 1,
	}}
	_, err := store.CreateRelease(ctx, release)
	must(b, err)
	must(b, store.PublishMetadata(ctx, nil, []ota.ReleaseID{release.ID()}, time.Now()))
	publisher := &silent{}
	service := fleet.New(fleet.Config{Store: store, Publisher: publisher, Now: time.Now, NotifyRate: fleet.Unpaced, Log: slog.New(slog.DiscardHandler)})
	var engine sync.WaitGroup
	engine.Go(func() { _ = service.RunEngine(ctx) })
	b.Cleanup(engine.Wait)
	b.Cleanup(cancel)
	took := func(unit string, f func()) {
		start := time.Now()
		f()
		b.ReportMetric(time.Since(start).Seconds(), unit)
	}
	rate := func(unit string, n int, f func(id string) error) {
		list := ids(b, store)
		start := time.Now()
		must(b, eachOf(list, n, f))
		b.ReportMetric(float64(n)/time.Since(start).Seconds(), unit)
	}
	plan := ota.Rollout{Release: release.ID(), Seed: "bench", Abort: []ota.AbortRule{{Class: ota.ClassFailed, Share: 1, Count: 1}},
		Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, Gate: ota.Gate{Success: 1}, State: ota.StagePending, Approval: true}}}
	took("s/plan", func() {
		b.ReportMetric(mebibytes(storetest.Peak(func() {
			p, err := service.PlanRollout(ctx, plan)
			must(b, err)
			if p.Population != devices {
				b.Fatalf("population %d", p.Population)
			}
		})), "MiB/plan")
	})
	var id string
	took("s/create", func() {
		v, err := service.CreateRollout(ctx, plan)
		must(b, err)
		id = v.ID
	})
	until := func(done func(v fleet.RolloutView) bool) {
		for tick := time.NewTicker(2 * time.Millisecond); ; <-tick.C {
			v, err := service.Rollout(ctx, id)
			must(b, err)
			if done(v) {
				tick.Stop()
				return
			}
		}
	}
	spread := inLine(b, store, id, devices)
	took("s/rows", func() {
		took("s/open", func() {
			_, err := service.ApproveRollout(ctx, id, 1, 0)
			must(b, err)
			var asking errgroup.Group
			for _, d := range spread { // all at once; each has its work when it asks
				asking.Go(func() error {
					for {
						_, err := service.NextExecution(ctx, d)
						if !errors.Is(err, fleet.ErrNotFound) {
							return err
						}
						<-time.After(time.Millisecond)
					}
				})
			}
			must(b, asking.Wait())
		})
		until(func(v fleet.RolloutView) bool { return v.Progress.Total().Queued == devices })
	})
	telling, told := context.WithCancel(ctx)
	start := time.Now()
	before := publisher.told.Load()
	engine.Go(func() { _ = service.RunNotifier(telling) })
	for tick := time.NewTicker(2 * time.Millisecond); publisher.told.Load() < min(before+rolloutTold, int64(devices)); <-tick.C {
	}
	b.ReportMetric(float64(publisher.told.Load()-before)/time.Since(start).Seconds(), "told/s")
	told()
	rate("next/s", rolloutAsking, func(d string) error { _, err := service.NextExecution(ctx, d); return err })
	rate("starts/s", rolloutAsking, func(d string) error { _, err := service.StartNext(ctx, d, ota.Starting{}); return err })
	rate("reports/s", rolloutAsking-1, func(d string) error {
		_, err := service.Report(ctx, ota.Report{RolloutID: id, DeviceID: d, Status: ota.Succeeded})
		return err
	})
	took("s/show", func() {
		v, err := service.Rollout(ctx, id)
		must(b, err)
		if n := v.Progress.Total().Of(ota.ClassSucceeded); n != rolloutAsking-1 {
			b.Fatalf("%d succeeded", n)
		}
	})
	took("s/show-naive", func() {
		rows, err := db.Query("SELECT stage, status, class, COUNT(*) FROM executions GROUP BY stage, status, class")
		must(b, err)
		for rows.Next() {
		}
		must(b, errors.Join(rows.Err(), rows.Close()))
	})
	list := ids(b, store)
	took("s/ended", func() {
		took("s/stopped", func() {
			_, err := service.Report(ctx, ota.Report{RolloutID: id, DeviceID: list[rolloutAsking-1], Status: ota.Failed})
			must(b, err)
			until(func(v fleet.RolloutView) bool { return v.State != ota.RolloutRunning })
		})
		b.ReportMetric(mebibytes(storetest.Peak(func() {
			until(func(v fleet.RolloutView) bool { return v.State == ota.RolloutAborted })
		})), "MiB/ended")
	})
	naive := plan
	naive.ID, naive.State = "naive", ota.RolloutRunning
	naive.Stages = []ota.Stage{{State: ota.StageOpen, Target: devices}}
	must(b, store.CreateRollout(ctx, naive))
	took("s/open-naive", func() {
		start := time.Now()
		for _, device := range list[:rolloutNaive] {
			e := ota.Execution{DeviceID: device, Attempt: 1, Status: ota.Queued}
			must(b, store.Advance(ctx, fleet.Advance{Rollout: naive, Insert: []ota.Execution{e}, Now: time.Now()}))
			naive.Revision++
		}
		b.ReportMetric(time.Since(start).Seconds()*float64(devices/rolloutNaive), "s/open-naive-at-that-rate")
	})
}

// inLine are devices from all along the line, and the last of it.
func inLine(b *testing.B, store fleet.Store, id string, devices int) (list []string) {
	b.Helper()
	r, err := store.Rollout(context.Background(), id)
	must(b, err)
	for i := range rolloutSpread {
		part, err := store.Candidates(context.Background(), id, r.Line, (i+1)*devices/rolloutSpread-1, 1)
		must(b, err)
		list = append(list, part[0].DeviceID)
	}
	return list
}

func mebibytes(n uint64) float64 { return float64(n) / (1 << 20) }

// ids are devices that have an execution.
func ids(b *testing.B, store fleet.Store) []string {
	b.Helper()
	var list []string
	must(b, store.Executions(context.Background(), fleet.ExecutionFilter{}, func(e ota.Execution) bool {
		list = append(list, e.DeviceID)
		return len(list) < rolloutAsking
	}))
	return list
}

func eachOf(list []string, n int, f func(id string) error) error {
	if len(list) < n {
		return fmt.Errorf("%d devices have an execution, want %d", len(list), n)
	}
	var next atomic.Int64
	var g errgroup.Group
	for range rolloutWriters {
		g.Go(func() error {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if err := f(list[i-1]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
