package fleet

import (
	"strings"
	"sync"
)

// signals wakes watchers of a key. A signal carries nothing: watchers read the
// store again, so a missed or doubled one is harmless.
type signals struct {
	mu       sync.Mutex
	watchers map[string]map[chan struct{}]bool
}

func newSignals() *signals { return &signals{watchers: map[string]map[chan struct{}]bool{}} }

// watch returns a channel that receives after every raise of key, and a func
// that ends the watch.
func (s *signals) watch(key string) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers[key] == nil {
		s.watchers[key] = map[chan struct{}]bool{}
	}
	s.watchers[key][ch] = true
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers[key], ch)
		if len(s.watchers[key]) == 0 {
			delete(s.watchers, key)
		}
	}
}

func (s *signals) raise(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake(key)
	if strings.HasPrefix(key, anyRollout) {
		s.wake(anyRollout)
	}
}

// anyRollout is what is raised with the key of every rollout.
const anyRollout = "rollout/"

func (s *signals) wake(key string) {
	for ch := range s.watchers[key] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// WatchRollout returns a channel that receives after every change of the
// rollout or its executions on this replica, and a func that ends the watch.
func (s *Service) WatchRollout(id string) (<-chan struct{}, func()) {
	return s.signals.watch("rollout/" + id)
}

// WatchShadow is WatchRollout for a shadow.
func (s *Service) WatchShadow(deviceID, name string) (<-chan struct{}, func()) {
	return s.signals.watch("shadow/" + deviceID + "/" + name)
}
