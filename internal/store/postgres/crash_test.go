package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

// TestACrashOfTheDatabaseLosesAndDoublesNothing ends the database in the middle
// of commits, twice. Every update that was acknowledged is there afterwards, and
// none that was answered with an error: a commit whose answer got lost is looked
// up. The store goes on by itself when the database is back.
func TestACrashOfTheDatabaseLosesAndDoublesNothing(t *testing.T) {
	const writers, enough = 16, 300
	url := durable.Database(t)
	s, ctx := open(t, url), context.Background()
	must(t, s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", Uses: writers}))
	for i := range writers {
		_, err := s.Enroll(ctx, fleet.Device{ID: fmt.Sprint("w", i)}, [32]byte{}, time.Now())
		must(t, err)
	}
	var acknowledged [writers]int64
	var refused atomic.Int64
	running, stop := context.WithCancel(ctx)
	progress := make(chan struct{})
	var wait sync.WaitGroup
	for i := range writers {
		wait.Go(func() {
			for running.Err() == nil {
				u := shadow.NewUpdate(nil, map[string]any{fmt.Sprint("n", acknowledged[i]%20): acknowledged[i]})
				if _, err := s.UpdateShadow(ctx, fmt.Sprint("w", i), "", u, time.Now()); err != nil {
					if strings.Contains(err.Error(), "not known") {
						t.Errorf("the outcome of a commit was not found: %v", err)
					}
					refused.Add(1)
					continue
				}
				acknowledged[i]++
				select {
				case progress <- struct{}{}:
				case <-running.Done():
				}
			}
		})
	}
	for range 2 {
		for range enough {
			<-progress
		}
		durable.Kill()
		durable.Restart(t)
	}
	for range enough {
		<-progress
	}
	stop()
	wait.Wait()
	for i, n := range acknowledged {
		doc, err := s.Shadow(ctx, fmt.Sprint("w", i), "")
		must(t, err)
		if doc.Version != n {
			t.Errorf("writer %d: version %d after %d acknowledged updates", i, doc.Version, n)
		}
	}
	broken, err := s.Check(ctx)
	if err != nil || len(broken) > 0 {
		t.Errorf("%v %v", err, broken)
	}
	t.Logf("%d refused meanwhile", refused.Load())
}
