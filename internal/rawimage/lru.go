package rawimage

import "container/list"

// lru keeps values up to a total weight and drops those that were not asked for
// the longest. The last one stays whatever it weighs. Not safe for concurrent
// use.
type lru[K comparable, V any] struct {
	limit, weight int
	order         *list.List // of entry[K, V], newest first
	at            map[K]*list.Element
}

type entry[K comparable, V any] struct {
	key    K
	value  V
	weight int
}

func newLRU[K comparable, V any](limit int) *lru[K, V] {
	return &lru[K, V]{limit: limit, order: list.New(), at: map[K]*list.Element{}}
}

func (l *lru[K, V]) get(k K) (v V, ok bool) {
	e, ok := l.at[k]
	if !ok {
		return v, false
	}
	l.order.MoveToFront(e)
	return e.Value.(entry[K, V]).value, true
}

func (l *lru[K, V]) put(k K, v V, weight int) {
	if e, ok := l.at[k]; ok {
		l.drop(e)
	}
	l.at[k] = l.order.PushFront(entry[K, V]{k, v, weight})
	l.weight += weight
	for l.weight > l.limit && l.order.Len() > 1 {
		l.drop(l.order.Back())
	}
}

func (l *lru[K, V]) drop(e *list.Element) {
	old := l.order.Remove(e).(entry[K, V])
	delete(l.at, old.key)
	l.weight -= old.weight
}
