package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
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
	rolloutDevices = 100_000
	rolloutStage   = 20_000
	rolloutAsking  = 10_000 // devices that begin and report
	rolloutWriters = 200
)

// silent is a Publisher that tells nobody.
type silent struct{ told atomic.Int64 }

func (s *silent) NotifyNext(context.Context, string, *ota.Execution) error {
	s.told.Add(1)
	return nil
}
func (*silent) NotifyJobs(context.Context, string, []ota.Execution) error          { return nil }
func (*silent) ShadowUpdated(context.Context, string, string, shadow.Result) error { return nil }
func (*silent) Disconnect(string, string)                                          {}

// BenchmarkRollout100k plans a rollout over 100,000 devices, starts it with a
// stage of 20,000, lets 10,000 of them ask, begin and report, and reads where it
// stands: the service and the store, without the network.
func BenchmarkRollout100k(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "otad.db")
		store, err := sqlite.Open(context.Background(), path)
		must(b, err)
		b.Cleanup(func() { must(b, store.Close()) })
		seedRollout(b, "sqlite", path)
		benchRollout(b, store)
	})
	b.Run("postgres", func(b *testing.B) {
		server := testserver.Postgres{Durable: true}
		url := server.Database(b)
		store, err := postgres.Open(context.Background(), postgres.Config{URL: url})
		must(b, err)
		b.Cleanup(func() { must(b, store.Close()) })
		seedRollout(b, "pgx", url)
		benchRollout(b, store)
	})
}

func seedRollout(b *testing.B, driver, at string) {
	b.Helper()
	db, err := sql.Open(driver, at)
	must(b, err)
	defer db.Close()
	for _, statement := range append(storetest.Seed(rolloutDevices), "ANALYZE") {
		if _, err := db.Exec(statement); err != nil {
			b.Fatal(err)
		}
	}
}

func benchRollout(b *testing.B, store fleet.Store) {
	ctx := context.Background()
	release := ota.Release{CreatedAt: time.Now(), Manifest: ota.Manifest{
		Name: "app", Version: "1.0.0", HardwareIDs: []string{"board-a"}, Installer: ota.InstallImage,
		ImageDigest: strings.Repeat("cd", 32), ImageSize: 1, ObjectSize: 1,
	}}
	_, err := store.CreateRelease(ctx, release)
	must(b, err)
	must(b, store.PublishMetadata(ctx, nil, []ota.ReleaseID{release.ID()}, time.Now()))
	service := fleet.New(fleet.Config{Store: store, Publisher: &silent{}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	plan := ota.Rollout{Release: release.ID(), Seed: "bench", Stages: []ota.Stage{
		{Size: ota.Size{Count: rolloutStage}, Gate: ota.Gate{Success: 1}, State: ota.StagePending}, {Size: ota.Size{Percent: 100}, State: ota.StagePending},
	}}
	took := func(unit string, f func()) {
		start := time.Now()
		f()
		b.ReportMetric(time.Since(start).Seconds(), unit)
	}
	rate := func(unit string, n int, f func(id string) error) {
		start := time.Now()
		must(b, eachOf(ids(b, store), n, f))
		b.ReportMetric(float64(n)/time.Since(start).Seconds(), unit)
	}
	var id string
	took("s/plan", func() {
		p, err := service.PlanRollout(ctx, plan)
		must(b, err)
		if p.Population != rolloutDevices {
			b.Fatalf("population %d", p.Population)
		}
	})
	took("s/start+notify", func() {
		v, err := service.CreateRollout(ctx, plan)
		must(b, err)
		id = v.ID
		if n := v.Progress.Total().Queued; n != rolloutStage {
			b.Fatalf("%d executions", n)
		}
	})
	rate("next/s", rolloutAsking, func(d string) error { _, err := service.NextExecution(ctx, d); return err })
	rate("starts/s", rolloutAsking, func(d string) error { _, err := service.StartNext(ctx, d, ota.Starting{}); return err })
	rate("reports/s", rolloutAsking, func(d string) error {
		_, err := service.Report(ctx, ota.Report{RolloutID: id, DeviceID: d, Status: ota.Succeeded})
		return err
	})
	took("s/show", func() {
		v, err := service.Rollout(ctx, id)
		must(b, err)
		if n := v.Progress.Total().Of(ota.ClassSucceeded); n != rolloutAsking {
			b.Fatalf("%d succeeded", n)
		}
	})
	took("s/abort", func() { _, err := service.AbortRollout(ctx, id, "bench", ""); must(b, err) })
}

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
