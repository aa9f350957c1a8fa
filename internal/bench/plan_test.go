package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlite"
	"github.com/otad/otad/pkg/ota"
)

const (
	planDevices = 100_000
	planWriters = 200
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkPlan100k is "otactl rollout plan" without the network: every device
// is read, judged by a selector, ranked and counted by stage.
func BenchmarkPlan100k(b *testing.B) {
	ctx := context.Background()
	store, err := sqlite.Open(ctx, filepath.Join(b.TempDir(), "otad.db"))
	must(b, err)
	b.Cleanup(func() { must(b, store.Close()) })
	enrollAll(b, store)
	release := ota.Release{CreatedAt: time.Now(), Manifest: ota.Manifest{
		Name: "app", Version: "1.0.0", HardwareIDs: []string{hardware}, Installer: ota.InstallImage,
		ImageDigest: strings.Repeat("ab", 32), ImageSize: 1, ObjectSize: 1,
	}}
	_, err = store.CreateRelease(ctx, release)
	must(b, err)
	must(b, store.PublishMetadata(ctx, nil, []ota.ReleaseID{release.ID()}, time.Now()))
	service := fleet.New(fleet.Config{Store: store, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	plan := ota.Rollout{
		Release: release.ID(), Selector: `tags.site = "paris"`, Seed: "bench",
		Stages: []ota.Stage{{Size: ota.Size{Percent: 10}, State: ota.StagePending}, {Size: ota.Size{Percent: 50}, State: ota.StagePending}, {Size: ota.Size{Percent: 100}, State: ota.StagePending}},
	}
	b.ResetTimer()
	for range b.N {
		p, err := service.PlanRollout(ctx, plan)
		must(b, err)
		if p.Population != planDevices {
			b.Fatalf("population %d", p.Population)
		}
	}
}

func enrollAll(t testing.TB, store fleet.Store) {
	t.Helper()
	ctx := context.Background()
	must(t, store.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", Uses: planDevices, Hardware: hardware, Tags: map[string]string{"site": "paris"}}))
	var next atomic.Int64
	var g errgroup.Group
	for range planWriters {
		g.Go(func() error {
			for i := next.Add(1); i <= planDevices; i = next.Add(1) {
				d := fleet.Device{ID: fmt.Sprintf("device-%07d", i), KeyFingerprint: strings.Repeat("ab", 32)}
				if _, err := store.Enroll(ctx, d, [32]byte{}, time.Now()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, g.Wait())
}
