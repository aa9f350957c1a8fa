package sqlstore

import (
	"context"
	"strconv"
	"sync"

	"github.com/otad/otad/pkg/ota"
)

// Limits of reading together.
const (
	// maxLookup is the most keys that one query asks for.
	maxLookup = 256
	// lookers is how many such queries are under way at once.
	lookers = 2
)

// lookups reads for callers that ask at the same time in one query, on a
// database where the way there and back costs more than the row. Nobody waits for
// company: what has gathered while a query was under way goes with the next.
type lookups[K comparable, V any] struct {
	// read returns what there is of the keys, each of which it is given once.
	read    func(ctx context.Context, keys []K) (map[K]V, error)
	queue   chan *lookup[K, V]
	closing chan struct{}
	ended   sync.WaitGroup
}

// lookup is one caller's question.
type lookup[K comparable, V any] struct {
	key  K
	done chan looked[V]
}

type looked[V any] struct {
	value V
	err   error
}

func startLookups[K comparable, V any](read func(context.Context, []K) (map[K]V, error)) *lookups[K, V] {
	l := &lookups[K, V]{read: read, queue: make(chan *lookup[K, V], maxLookup), closing: make(chan struct{})}
	for range lookers {
		l.ended.Go(l.loop)
	}
	return l
}

func (l *lookups[K, V]) stop() {
	close(l.closing)
	l.ended.Wait()
}

// get returns what there is of a key, or the zero value. Who asks for the same at
// the same time gets the same: nobody may change it. An error is about all that were
// read with it.
func (l *lookups[K, V]) get(ctx context.Context, key K) (none V, err error) {
	q := &lookup[K, V]{key: key, done: make(chan looked[V], 1)}
	select {
	case l.queue <- q:
	case <-ctx.Done():
		return none, ctx.Err()
	case <-l.closing:
		return none, errClosed
	}
	select {
	case a := <-q.done:
		return a.value, a.err
	case <-ctx.Done():
		return none, ctx.Err()
	case <-l.closing:
		return none, errClosed
	}
}

func (l *lookups[K, V]) loop() {
	for {
		select {
		case q := <-l.queue:
			l.answer(l.gather(q))
		case <-l.closing:
			return
		}
	}
}

func (l *lookups[K, V]) gather(first *lookup[K, V]) []*lookup[K, V] {
	list := []*lookup[K, V]{first}
	for len(list) < maxLookup {
		select {
		case q := <-l.queue:
			list = append(list, q)
		default:
			return list
		}
	}
	return list
}

// answer asks for all of them at once.
func (l *lookups[K, V]) answer(questions []*lookup[K, V]) {
	asked := make(map[K]bool, len(questions))
	keys := make([]K, 0, len(questions))
	for _, q := range questions {
		if !asked[q.key] {
			asked[q.key] = true
			keys = append(keys, q.key)
		}
	}
	found, err := l.read(context.Background(), keys)
	for _, q := range questions {
		q.done <- looked[V]{found[q.key], err}
	}
}

// together bounds a query that belongs to many callers, as it does those of the
// writer.
func (s *Store) together(ctx context.Context) (context.Context, context.CancelFunc) {
	if d := s.config.Dialect.Timeout; d != 0 {
		return context.WithTimeout(ctx, d)
	}
	return context.WithCancel(ctx)
}

const lookupShadows = `SELECT s.device_id, s.name, s.document FROM {rows} JOIN shadows s ON s.device_id = v.device AND s.name = v.name
	WHERE s.deleted_at IS NULL`

// readShadows returns the texts of shadows.
func (s *Store) readShadows(ctx context.Context, keys []shadowKey) (map[shadowKey]string, error) {
	ctx, cancel := s.together(ctx)
	defer cancel()
	found := make(map[shadowKey]string, len(keys))
	err := s.lookOver(ctx, func(r row) error {
		var key shadowKey
		var text string
		err := r.Scan(&key.device, &key.name, &text)
		found[key] = text
		return err
	}, lookupShadows, texts("device", list(keys, func(k shadowKey) string { return k.device })),
		texts("name", list(keys, func(k shadowKey) string { return k.name })))
	return found, err
}

// pendingKey asks for the first of what a device may work on.
type pendingKey struct {
	device string
	limit  int
}

// readPending returns what devices may work on.
func (s *Store) readPending(ctx context.Context, keys []pendingKey) (map[pendingKey][]ota.Execution, error) {
	ctx, cancel := s.together(ctx)
	defer cancel()
	found := make(map[pendingKey][]ota.Execution, len(keys))
	devices := map[int][]string{} // by limit; callers use few
	for _, k := range keys {
		devices[k.limit] = append(devices[k.limit], k.device)
	}
	for limit, ids := range devices {
		err := s.lookOver(ctx, func(r row) error {
			e, err := scanExecution(r)
			key := pendingKey{e.DeviceID, limit}
			found[key] = append(found[key], e)
			return err
		}, lookupPending+strconv.Itoa(limit)+pendingEnd, texts("device", ids))
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// lookOver calls f for each row that a query over rows finds, on a database that
// takes any number of them.
func (s *Store) lookOver(ctx context.Context, f func(row) error, query string, columns ...Column) error {
	args := make([]any, len(columns))
	for i, c := range columns {
		args[i] = c.list
	}
	return s.rows(ctx, f, s.config.Dialect.over(query, columns, 0), args...)
}
