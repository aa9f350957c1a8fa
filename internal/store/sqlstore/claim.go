package sqlstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"
)

// ErrClaimed: the embedded broker of another otad works on the database. Two of
// them would overwrite each other's sessions.
var ErrClaimed = errors.New("the embedded broker of another otad works on this database: stop that one, or give all of them an external broker (--mqtt-broker)")

const (
	// claimWait is how long a claim waits for a predecessor that just ended, and
	// whose connection the database has not missed yet.
	claimWait = 3 * time.Second
	// claimEvery is how often the lock is looked after, and how long a look may take.
	claimEvery = 5 * time.Second
	claimPause = 100 * time.Millisecond
)

// ownerKey holds, beside the broker's own keys, who may write them.
const ownerKey = "owner"

// Claim is the right of one otad to keep its embedded broker's state in the
// store. It rests on a lock, which tells that its owner lives, and on a name
// under which every write is checked, which holds even where an owner does not
// know yet that it lost the lock.
type Claim struct {
	Every time.Duration // between two looks of Keep at the lock; 5 s unless it is set before

	store *Store
	name  []byte    // nil: the database is open in this process only
	conn  *sql.Conn // has the lock; nil: lost. Keep's while that runs.
}

// ClaimBroker claims the broker's state, or fails with ErrClaimed. Release it
// before the store is closed.
func (s *Store) ClaimBroker(ctx context.Context) (*Claim, error) {
	c := &Claim{store: s, Every: claimEvery}
	if s.config.Dialect.LockBroker == nil {
		return c, nil
	}
	c.name = make([]byte, 16)
	_, _ = rand.Read(c.name) // never fails
	if err := c.lockWithin(ctx, claimWait); err != nil {
		return nil, err
	}
	err := s.writer.do(ctx, func(t *tx) error {
		_, err := t.bulk(t.exec, putState, 1, nil, texts("key", []string{ownerKey}), blobs("value", [][]byte{c.name}))
		return err
	})
	if err != nil {
		c.Release()
		return nil, fmt.Errorf("claim broker state: %w", err)
	}
	return c, nil
}

func (c *Claim) lockWithin(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	tick := time.NewTicker(claimPause)
	defer tick.Stop()
	for {
		conn, err := c.store.config.Dialect.LockBroker(ctx, c.store.config.Reader)
		switch {
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("lock broker state: %w", err)
		case conn != nil:
			c.conn = conn
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ErrClaimed
		}
	}
}

// SaveState is Store.SaveState for the owner of the claim; ErrClaimed when that
// is another one by now.
func (c *Claim) SaveState(ctx context.Context, set map[string][]byte) error {
	return c.store.saveState(ctx, set, c.name)
}

// LoadState is Store.LoadState.
func (c *Claim) LoadState(ctx context.Context, f func(key string, value []byte) error) error {
	return c.store.LoadState(ctx, f)
}

// Keep looks after the lock until ctx ends, and takes it again when its
// connection was lost and nobody claimed the state in between. Otherwise it
// returns ErrClaimed: the broker has to stop.
func (c *Claim) Keep(ctx context.Context) error {
	tick := time.NewTicker(c.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if c.name == nil || c.held(ctx) {
			continue
		}
		if err := c.regain(ctx); err != nil {
			return err
		}
	}
}

// held reports whether the connection with the lock is alive.
func (c *Claim) held(ctx context.Context) bool {
	if c.conn == nil {
		return false
	}
	ping, cancel := context.WithTimeout(ctx, claimEvery)
	defer cancel()
	if c.conn.PingContext(ping) == nil || ctx.Err() != nil {
		return true
	}
	c.Release()
	return false
}

// regain tries once. That the database is away, or believes the lost connection
// to be alive, is no error: without the name nobody writes.
func (c *Claim) regain(ctx context.Context) error {
	try, cancel := context.WithTimeout(ctx, claimEvery)
	defer cancel()
	conn, err := c.store.config.Dialect.LockBroker(try, c.store.config.Reader)
	if err == nil {
		c.conn = conn
	}
	var owner []byte
	err = c.store.row(try, `SELECT value FROM broker_state WHERE key = ?`, ownerKey).Scan(&owner)
	if errors.Is(err, sql.ErrNoRows) || err == nil && !bytes.Equal(owner, c.name) {
		return ErrClaimed
	}
	return nil
}

// Release gives the lock back. Keep must have returned.
func (c *Claim) Release() {
	if c.conn == nil {
		return
	}
	_ = c.conn.Raw(func(any) error { return driver.ErrBadConn }) // not into the pool, with the lock
	_ = c.conn.Close()
	c.conn = nil
}

// owns fails unless name is the owner of the broker's state, and keeps it so until
// the transaction ends.
func (t *tx) owns(name []byte) error {
	var owner []byte
	err := t.row(`SELECT value FROM broker_state WHERE key = ?`+t.w.dialect.ForShare, ownerKey).Scan(&owner)
	if errors.Is(err, sql.ErrNoRows) || err == nil && !bytes.Equal(owner, name) {
		return ErrClaimed
	}
	return err
}
