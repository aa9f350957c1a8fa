package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/otad/otad/internal/store/sqlstore"
)

const (
	// endLock ends the connections that hold the lock of an embedded broker, as a
	// network or an administrator does.
	endLock = `SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1836151924`
	// isLocked fails unless somebody holds one.
	isLocked = `SELECT 1 / count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1836151924`
)

func claim(t *testing.T, s *sqlstore.Store) *sqlstore.Claim {
	t.Helper()
	c, err := s.ClaimBroker(context.Background())
	must(t, err)
	t.Cleanup(c.Release)
	return c
}

func save(c *sqlstore.Claim, value string) error {
	return c.SaveState(context.Background(), map[string][]byte{"s/x": []byte(value)})
}

// keeping runs Keep with short pauses until the test ends; what it returns comes
// by the channel.
func keeping(t *testing.T, c *sqlstore.Claim) <-chan error {
	ctx, cancel := context.WithCancel(context.Background())
	ended, result := make(chan struct{}), make(chan error, 1)
	c.Every = 100 * time.Millisecond
	go func() {
		defer close(ended)
		result <- c.Keep(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return result
}

// Two embedded brokers on one database would overwrite each other's sessions.
func TestOneOtadRunsTheEmbeddedBroker(t *testing.T) {
	url := server.Schema(t)
	first, second := open(t, url), open(t, url)
	a := claim(t, first)
	must(t, save(a, "1"))
	if _, err := second.ClaimBroker(context.Background()); !errors.Is(err, sqlstore.ErrClaimed) {
		t.Fatalf("a second claim: %v", err)
	}
	claim(t, open(t, server.Schema(t))) // another database
	a.Release()
	b := claim(t, second)
	if err := save(a, "2"); !errors.Is(err, sqlstore.ErrClaimed) {
		t.Errorf("the former owner writes: %v", err)
	}
	must(t, save(b, "3"))
	must(t, b.LoadState(context.Background(), func(key string, value []byte) error {
		if key != "s/x" || string(value) != "3" {
			t.Errorf("state %q is %q", key, value)
		}
		return nil
	}))
}

// A lock that was lost with its connection is taken again.
func TestALostClaimIsRegained(t *testing.T) {
	url := server.Database(t)
	first, second := open(t, url), open(t, url)
	a := claim(t, first)
	ended := keeping(t, a)
	must(t, server.Do(endLock))
	must(t, save(a, "still the owner"))
	for server.Do(isLocked) != nil {
		select {
		case err := <-ended:
			t.Fatalf("Keep ended: %v", err)
		default:
		}
	}
	if _, err := second.ClaimBroker(context.Background()); !errors.Is(err, sqlstore.ErrClaimed) {
		t.Fatalf("claimed twice: %v", err)
	}
	must(t, save(a, "owner"))
	select {
	case err := <-ended:
		t.Errorf("Keep ended: %v", err)
	default:
	}
}

// If somebody else was faster, the first has to stop, and has written nothing since.
func TestALostClaimIsNotRegainedFromAnother(t *testing.T) {
	url := server.Database(t)
	first, second := open(t, url), open(t, url)
	a := claim(t, first)
	must(t, server.Do(endLock))
	b := claim(t, second)
	if err := save(a, "x"); !errors.Is(err, sqlstore.ErrClaimed) {
		t.Errorf("the former owner writes: %v", err)
	}
	select {
	case err := <-keeping(t, a):
		if !errors.Is(err, sqlstore.ErrClaimed) {
			t.Errorf("Keep: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("Keep goes on")
	}
	must(t, save(b, "y"))
}
