package webhook_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlite"
	"github.com/otad/otad/internal/webhook"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

// BenchmarkDelivery brings b.N events of a SQLite store to a receiver on loopback
// that answers at once, one after the other.
func BenchmarkDelivery(b *testing.B) {
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	store, err := sqlite.Open(ctx, filepath.Join(b.TempDir(), "otad.db"))
	must(err)
	defer func() { must(store.Close()) }()
	key, err := signing.NewKey()
	must(err)
	allowed, err := webhook.ParseAllowed([]string{"127.0.0.1"})
	must(err)
	s := fleet.New(fleet.Config{
		Store: store, Now: time.Now, Log: slog.New(slog.DiscardHandler), Sender: webhook.New(allowed, "otad/bench"),
		OnlineKeys: signing.Online{Timestamp: signing.OnlineKey{Signer: key}},
	})
	var got atomic.Int64
	all := make(chan struct{})
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // what it says does not matter
		if got.Add(1) == int64(b.N) {
			close(all)
		}
	}))
	defer receiver.Close()
	_, err = store.CreateRelease(ctx, ota.Release{Manifest: ota.Manifest{Name: "app", Version: "1"}, CreatedAt: time.Now()})
	must(err)
	r := ota.Rollout{ID: "r", Release: ota.ReleaseID{Name: "app", Version: "1"}, State: ota.RolloutPaused, Revision: 1, CreatedAt: time.Now(), Stages: []ota.Stage{{Size: ota.Size{Percent: 100}}}}
	must(store.CreateRollout(ctx, r))
	for i := range b.N - 1 {
		r.State = []ota.RolloutState{ota.RolloutScheduled, ota.RolloutPaused}[i%2]
		must(store.Advance(ctx, fleet.Advance{Rollout: r, Now: time.Now()}))
		r.Revision++
	}
	first := int64(0)
	_, _, err = s.CreateWebhook(ctx, fleet.WebhookSpec{URL: receiver.URL, After: &first})
	must(err)
	done := make(chan error, 1)
	b.ResetTimer()
	go func() { done <- s.RunWebhooks(ctx) }()
	<-all
	b.StopTimer()
	cancel()
	must(<-done)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
