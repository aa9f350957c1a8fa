package sqlstore

import (
	"context"
	"sync"
)

// Limits of reading together.
const (
	// maxLookup is the most shadows that one query reads.
	maxLookup = 256
	// lookers is how many such queries are under way at once.
	lookers = 2
)

// lookups reads shadows for callers that ask at the same time in one query, on a
// database where the way there and back costs more than the row. Nobody waits for
// company: what has gathered while a query was under way goes with the next.
type lookups struct {
	store   *Store
	text    string // the query
	queue   chan *lookup
	closing chan struct{}
	ended   sync.WaitGroup
}

// lookup is one caller's question.
type lookup struct {
	key  shadowKey
	done chan looked
}

type looked struct {
	text string // empty: there is no such shadow
	err  error
}

const lookupShadows = `SELECT s.device_id, s.name, s.document FROM {rows} JOIN shadows s ON s.device_id = v.device AND s.name = v.name
	WHERE s.deleted_at IS NULL`

func (s *Store) startLookups() *lookups {
	l := &lookups{
		store: s, queue: make(chan *lookup, maxLookup), closing: make(chan struct{}),
		text: s.config.Dialect.over(lookupShadows, []Column{texts("device", nil), texts("name", nil)}, 0),
	}
	for range lookers {
		l.ended.Go(l.loop)
	}
	return l
}

func (l *lookups) stop() {
	close(l.closing)
	l.ended.Wait()
}

// shadow returns the text of a shadow, none when there is no such. An error is
// about all that were read with it.
func (l *lookups) shadow(ctx context.Context, key shadowKey) (text string, err error) {
	q := &lookup{key: key, done: make(chan looked, 1)}
	select {
	case l.queue <- q:
	case <-ctx.Done():
		return "", ctx.Err()
	case <-l.closing:
		return "", errClosed
	}
	select {
	case a := <-q.done:
		return a.text, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	case <-l.closing:
		return "", errClosed
	}
}

func (l *lookups) loop() {
	for {
		select {
		case q := <-l.queue:
			l.answer(l.gather(q))
		case <-l.closing:
			return
		}
	}
}

func (l *lookups) gather(first *lookup) []*lookup {
	list := []*lookup{first}
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
func (l *lookups) answer(questions []*lookup) {
	found := make(map[shadowKey]string, len(questions))
	devices, names := make([]string, 0, len(questions)), make([]string, 0, len(questions))
	for _, q := range questions {
		if _, twice := found[q.key]; !twice {
			found[q.key] = ""
			devices, names = append(devices, q.key.device), append(names, q.key.name)
		}
	}
	ctx, cancel := l.deadline()
	defer cancel()
	err := l.store.rows(ctx, func(r row) error {
		var key shadowKey
		var text string
		err := r.Scan(&key.device, &key.name, &text)
		found[key] = text
		return err
	}, l.text, devices, names)
	for _, q := range questions {
		q.done <- looked{found[q.key], err}
	}
}

// deadline bounds a query that belongs to many callers, as it does those of the
// writer.
func (l *lookups) deadline() (context.Context, context.CancelFunc) {
	if d := l.store.config.Dialect.Timeout; d != 0 {
		return context.WithTimeout(context.Background(), d)
	}
	return context.Background(), func() {}
}
