package sqlite_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlite"
	"github.com/otad/otad/internal/store/storetest"
)

func TestStore(t *testing.T) {
	empty := emptyDatabase(t)
	storetest.Run(t, func(t testing.TB) fleet.Store {
		path := filepath.Join(t.TempDir(), "otad.db")
		must(t, os.WriteFile(path, empty, 0o600))
		return open(t, path)
	})
}

// emptyDatabase returns the file of a store in which nothing was written, so
// that a test need not make the tables anew.
func emptyDatabase(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "empty.db")
	must(t, open(t, path).Close())
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

func open(t testing.TB, path string) fleet.Store {
	t.Helper()
	s, err := sqlite.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestOneProcessAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a ?#%41.db")
	s := open(t, path)
	if _, err := sqlite.Open(context.Background(), path); err == nil || !strings.Contains(err.Error(), "in use by another otad") {
		t.Fatalf("second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

// TestAClaimEndsWithItsProcess: whoever has the file open is alone, so what a
// killed process had claimed is free at once.
func TestAClaimEndsWithItsProcess(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	path := filepath.Join(t.TempDir(), "otad.db")
	s := open(t, path)
	must(t, s.CreateWebhook(ctx, fleet.Webhook{ID: "w", State: fleet.WebhookEnabled, CreatedAt: now}))
	_, err := s.ClaimWebhook(ctx, "w", "killed", now, now.Add(time.Hour))
	must(t, err)
	must(t, s.Close())
	_, err = open(t, path).ClaimWebhook(ctx, "w", "next", now, now.Add(time.Hour))
	must(t, err)
}

func TestFilesAreTheOwnersOnly(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "otad.db"))
	if err := s.CreateAPIToken(context.Background(), fleet.APIToken{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 3 {
		t.Fatalf("files: %v", entries)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
}

func TestCloseLeavesOneFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "otad.db")
	s := open(t, path)
	ctx := context.Background()
	if err := s.CreateAPIToken(ctx, fleet.APIToken{ID: "a", Name: "kept"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
		t.Errorf("the log still holds %d bytes", info.Size())
	}
	if err := s.CreateAPIToken(ctx, fleet.APIToken{ID: "b"}); err == nil {
		t.Error("a closed store wrote")
	}
	if err := s.Ping(ctx); err == nil {
		t.Error("a closed store answered")
	}
	if got, err := open(t, path).APIToken(ctx, "a"); err != nil || got.Name != "kept" {
		t.Errorf("after opening again: %+v %v", got, err)
	}
}
