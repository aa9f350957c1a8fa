package fleet

import "sync"

// memory is what this replica remembers of rollouts, by id. The zero value is
// empty; safe for concurrent use.
type memory[T any] struct {
	mu   sync.Mutex
	last map[string]T
}

// of returns the zero value when nothing is remembered.
func (m *memory[T]) of(rolloutID string) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last[rolloutID]
}

func (m *memory[T]) set(rolloutID string, v T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last == nil {
		m.last = map[string]T{}
	}
	m.last[rolloutID] = v
}

func (m *memory[T]) forget(rolloutID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.last, rolloutID)
}
