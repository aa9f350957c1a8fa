package broker

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Store keeps what a broker must not forget when it is killed. Keys have at most
// 1 KiB, values at most a packet and a little more.
type Store interface {
	// SaveState writes all of set in one transaction; nil deletes the key. When it
	// returns nil all of it is durable, on an error nothing happened.
	SaveState(ctx context.Context, set map[string][]byte) error
	// LoadState calls f for every key in ascending order of bytes; its error ends it.
	LoadState(ctx context.Context, f func(key string, value []byte) error) error
}

// journal writes changes to the store in batches: what comes in while one batch
// is being written makes the next one. What is put and removed again meanwhile is
// never written. Changes of one unit are never in two batches.
type journal struct {
	store Store           // nil: nothing outlives the process
	quit  <-chan struct{} // closed: no more waiting between tries

	mu      sync.Mutex
	changes map[string]change
	waiting []func(error)
	open    int // units
	running bool
	failure error     // of the last write
	idle    sync.Cond // on mu; signalled when running ends
}

type change struct {
	value []byte
	fresh bool  // the store does not have the key
	unit  *unit // nil: none
}

// unit is a number of changes that the store gets together. Until it is closed
// they wait. A nil unit is none: what is done with it stands for itself.
type unit struct {
	journal *journal
	closed  bool // guarded by the journal
	waiting []func(error)
}

// retryDelay is how long a failed write waits for the next try.
const retryDelay = time.Second

func newJournal(s Store, quit <-chan struct{}) *journal {
	j := &journal{store: s, quit: quit, changes: map[string]change{}}
	j.idle.L = &j.mu
	return j
}

// begin opens a unit. It has to be closed soon, since what is in it is not
// durable until then.
func (j *journal) begin() *unit {
	if j.store == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open++
	return &unit{journal: j}
}

// close lets the changes of u go to the store.
func (u *unit) close() {
	if u == nil {
		return
	}
	j := u.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	u.closed = true
	j.open--
	j.waiting = append(j.waiting, u.waiting...)
	u.waiting = nil
	j.start()
}

// add puts a key that the store does not have, with the other changes of u.
func (j *journal) add(key string, value []byte, u *unit) { j.set(key, change{value, true, u}) }

// put sets a key, with the other changes of u. It does not wait for u if there is
// a change of the key already, for which somebody else may wait.
func (j *journal) put(key string, value []byte, u *unit) { j.set(key, change{value, false, u}) }

func (j *journal) set(key string, c change) {
	if j.store == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if old, ok := j.changes[key]; ok {
		c.fresh, c.unit = old.fresh, nil
	}
	j.changes[key] = c
	j.start()
}

// remove deletes a key.
func (j *journal) remove(key string) {
	if j.store == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if old, ok := j.changes[key]; ok && old.fresh {
		delete(j.changes, key)
		return
	}
	j.changes[key] = change{}
	j.start()
}

// then calls f once all changes up to now, open units excepted, are durable, or can
// not be made so. f must not block.
func (j *journal) then(f func(error)) {
	if j.store == nil {
		f(nil)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting = append(j.waiting, f)
	j.start()
}

// written waits until all changes up to now, open units excepted, are durable.
func (j *journal) written(ctx context.Context) error {
	done := make(chan error, 1)
	j.then(func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// thenUnit is then for the changes of u as well.
func (j *journal) thenUnit(u *unit, f func(error)) {
	if u == nil {
		j.then(f)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !u.closed {
		u.waiting = append(u.waiting, f)
		return
	}
	j.waiting = append(j.waiting, f)
	j.start()
}

// start runs the writer, with mu held. It ends by itself.
func (j *journal) start() {
	if !j.running {
		j.running = true
		go j.write()
	}
}

func (j *journal) write() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for failed := false; ; {
		changes, waiting := j.take()
		if len(changes) == 0 && len(waiting) == 0 {
			break
		}
		j.mu.Unlock()
		err := j.save(changes)
		for _, f := range waiting {
			f(err)
		}
		if err != nil && !failed {
			j.pause()
		}
		j.mu.Lock()
		if err != nil {
			j.restore(changes)
			if failed && len(j.waiting) == 0 { // the next change tries again; a full disk must not spin
				break
			}
		}
		j.failure, failed = err, err != nil
	}
	j.running = false
	j.idle.Broadcast()
}

// take takes all that may be written now.
func (j *journal) take() (changes map[string]change, waiting []func(error)) {
	changes, waiting = j.changes, j.waiting
	j.changes, j.waiting = map[string]change{}, nil
	if j.open == 0 {
		return changes, waiting
	}
	for key, c := range changes {
		if c.unit != nil && !c.unit.closed {
			j.changes[key] = c
			delete(changes, key)
		}
	}
	return changes, waiting
}

func (j *journal) pause() {
	timer := time.NewTimer(retryDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-j.quit:
	}
}

func (j *journal) save(changes map[string]change) error {
	if len(changes) == 0 {
		return nil
	}
	set := make(map[string][]byte, len(changes))
	for k, c := range changes {
		set[k] = c.value
	}
	return j.store.SaveState(context.Background(), set)
}

// restore puts back what could not be written, below what has come since.
func (j *journal) restore(old map[string]change) {
	for k, c := range old {
		newer, ok := j.changes[k]
		if !ok {
			j.changes[k] = c
			continue
		}
		newer.fresh = newer.fresh && c.fresh // the store may still have what was to be removed
		j.changes[k] = newer
	}
}

// flush waits until everything is written, with a last try for what could not be.
func (j *journal) flush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.changes) > 0 {
		j.start()
	}
	for j.running {
		j.idle.Wait()
	}
	if n := len(j.changes); n > 0 {
		return fmt.Errorf("%d changes of sessions are not stored: %w", n, j.failure)
	}
	return nil
}
